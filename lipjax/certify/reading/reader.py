"""From a function to a graph: constants are computed, what depends on the input is noted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import primitives

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Graph, Node, Params, Static, pruned
from lipjax.certify.index_map import permuted
from lipjax.certify.reading.complex import Pair, is_complex, read_complex
from lipjax.certify.reading.interp import read_interp, without_calls
from lipjax.certify.reading.places import without_promises
from lipjax.certify.reading.programs import read_program
from lipjax.certify.reading.real_numbers import has_16_bits, is_one_number, simplified
from lipjax.certify.register import RULES
from lipjax.jaxprs.inline import CALLS, Constant
from lipjax.jaxprs.source import source_line
from lipjax.jaxprs.versions import name_of

#: Functions of entries at the same place, which JAX lets broadcast axes of size 1.
ENTRYWISE = """
add add_any and atan2 clamp complex div eq ge gt le lt max min mul ne nextafter or pow rem select_n
sub xor
"""
#: What gives back its operands, rounding apart.
SAME = ("copy", "name", "sharding_constraint", "stop_gradient", "device_put")
SAME += ("optimization_barrier",)
#: Larger arrays are not looked at, whether they hold one number.
LOOKED_AT = 2**16


class Place(int):
  """A node's place in the graph, while it is read; constants that are known are arrays."""


Operand = Place | Pair | np.ndarray


def read(
  fn: Callable[..., Any], argnums: int | Sequence[int], args: Sequence[Any]
) -> tuple[Graph, list[Any]]:
  """The graph of the results that depend on the arguments that move, and its arrays.

  Floating-point constants are arrays that are passed along, so that equal graphs are one program;
  single numbers, and what says where entries stand, are part of the graph.
  """
  places = _argument_places(argnums, len(args))

  def of_moving(moving):
    whole = list(args)
    for place, arg in zip(places, moving, strict=True):
      whole[place] = arg
    return jax.tree.leaves(fn(*whole))

  moving = [args[place] for place in places]
  leaves = jax.tree.leaves(moving)
  for leaf in leaves:
    _check_float(leaf)
  # Ranges are computed with the function's products, which must not be rounded to bfloat16.
  with jax.default_matmul_precision("highest"):
    closed = jax.make_jaxpr(of_moving)(moving)
  return read_jaxpr(closed)


def read_jaxpr(closed: Any) -> tuple[Graph, list[Any]]:
  """The graph of a jaxpr whose inputs all move, and its arrays."""
  reader = _Reader()
  program = without_calls(closed)
  inputs = [reader.input(variable.aval, i) for i, variable in enumerate(program.inputs)]
  results = program.run(inputs, reader.apply, reader.of_constant)
  outputs = [x for x in results if isinstance(x, int) and reader.nodes[x].moves]
  graph = pruned(reader.nodes, outputs)
  # Of the arrays those that are left.
  used = sorted({x.params["index"] for x in graph.nodes if x.name == "array"})
  renamed = [
    x._replace(params=Params({**x.params, "index": used.index(x.params["index"])}))
    if x.name == "array"
    else x
    for x in graph.nodes
  ]
  return Graph(tuple(renamed), graph.outputs), [reader.arrays[i] for i in used]


def moving_leaves(argnums: int | Sequence[int], args: Sequence[Any]) -> list[Any]:
  """The arrays that move, in the order of the graph's inputs."""
  return jax.tree.leaves([args[place] for place in _argument_places(argnums, len(args))])


class _Reader:
  """Makes nodes of equations."""

  def __init__(self):
    self.nodes: list[Node] = []
    self.arrays: list[Any] = []
    self._known: dict[Any, Place] = {}

  def input(self, aval: Any, i: int) -> Place:
    return self.add(Node("input", (), Params(index=i), aval.shape, aval.dtype))

  def of_constant(self, constant: Constant) -> Operand:
    """What stands for a constant of a program."""
    value = constant.value
    return self.constant(np.asarray(value, constant.aval.dtype) if np.isscalar(value) else value)

  def constant(self, value: Any) -> Operand:
    """An array that is known if it says where entries stand, or is one number; else a node."""
    if _is_static(value):
      return np.asarray(value)
    if id(value) not in self._known:
      aval = jax.typeof(value)
      params = Params(index=len(self.arrays), is_nonnegative=_is_nonnegative(value))
      node = Node("array", (), params, aval.shape, aval.dtype, moves=False)
      self.arrays.append(value)  # which keeps its id
      self._known[id(value)] = self.add(node)
    return self._known[id(value)]

  def apply(self, eqn: Any, operands: Sequence[Operand]) -> list[Operand]:
    """The results of an equation."""
    name = name_of(eqn.primitive)
    if not self.moves(operands):
      return self._folded(eqn, operands)
    if eqn.primitive in RULES:
      return self._results("", eqn, operands)
    eqn = eqn._replace(params=without_promises(name, eqn.params))
    if name in SAME or (name == "reduce_precision" and has_16_bits(eqn.params)):
      return list(operands)
    if eqn.primitive in CALLS:
      return read_interp(self, eqn, operands)
    results = read_program(self, name, eqn, operands)
    if results is not None:
      return results
    if is_complex(eqn, operands):
      return read_complex(self, eqn, operands)
    if name == "convert_element_type" and self.dtype(operands[0]) == eqn.outputs[0].aval.dtype:
      return list(operands)
    known = simplified(self, name, operands, eqn.outputs[0].aval.shape)
    if known is not None:
      return [known]
    if name in ENTRYWISE.split():
      shape = eqn.outputs[0].aval.shape
      operands = [self._spread(x, shape) for x in operands]
    return self._results(name, eqn, operands)

  def failed(self, eqn: Any, text: str) -> list[Operand]:
    """Nodes that raise if the result depends on them."""
    params = Params(text=text)
    return [self.add(Node("failure", (), params, x.aval.shape, x.aval.dtype)) for x in eqn.outputs]

  def run(self, closed: Any, operands: Sequence[Operand], calls: tuple[Any, ...]) -> list[Operand]:
    """What a jaxpr returns."""
    return without_calls(closed, calls).run(operands, self.apply, self.of_constant)

  def of_function(self, fn: Callable[..., Any], *operands: Operand) -> Operand:
    """What a function of arrays makes of operands."""
    avals = [jax.ShapeDtypeStruct(self.shape(x), self.dtype(x)) for x in operands]
    return self.run(jax.make_jaxpr(fn)(*avals), operands, ())[0]

  def add(self, node: Node) -> Place:
    """A new node."""
    self.nodes.append(node)
    return Place(len(self.nodes) - 1)

  def place(self, x: Operand) -> int:
    """The place of an operand; a constant that is known becomes a node."""
    if isinstance(x, int):
      return x
    static = Static(x)
    if static not in self._known:
      node = Node("static", (), Params(value=static), x.shape, x.dtype, moves=False)
      self._known[static] = self.add(node)
    return self._known[static]

  def moves(self, operands: Sequence[Operand]) -> bool:
    return any(isinstance(x, int) and self.nodes[x].moves for x in operands)

  def shape(self, x: Operand) -> tuple[int, ...]:
    return self.nodes[x].shape if isinstance(x, int) else np.shape(x)

  def dtype(self, x: Operand) -> Any:
    return self.nodes[x].dtype if isinstance(x, int) else x.dtype

  def _results(self, name: str, eqn: Any, operands: Sequence[Operand]) -> list[Operand]:
    inputs, moves = tuple(map(self.place, operands)), self.moves(operands)
    params, line = Params(eqn.params), source_line(eqn) if moves else ""
    if not name:
      # For rules of the user's, which see the equation.
      params[""] = tuple(jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in eqn.outputs)
    return [
      self.add(
        Node(name, inputs, params, x.aval.shape, x.aval.dtype, eqn.primitive, i, moves, line)
      )
      for i, x in enumerate(eqn.outputs)
    ]

  def _spread(self, x: Operand, shape: tuple[int, ...]) -> Operand:
    """A node with every copy written out that an axis of size 1, or none, stands for."""
    if not isinstance(x, int) or not self.nodes[x].moves or self.nodes[x].shape == shape:
      return x
    key = (int(x), shape)
    if key not in self._known:
      # One node for all that read it, so that they know each other.
      before = self.nodes[x]
      axes = tuple(range(len(shape) - len(before.shape), len(shape)))
      params = Params(shape=shape, broadcast_dimensions=axes, sharding=None)
      what = "broadcast_in_dim", (x,), params, shape, before.dtype, primitives.broadcast_in_dim_p
      self._known[key] = self.add(Node(*what, line=before.line))
    return self._known[key]

  # ---- constants ----

  def _folded(self, eqn: Any, operands: Sequence[Operand]) -> list[Operand]:
    """What does not depend on the input: computed now if all of it is known, else a constant."""
    if any(isinstance(x, int) for x in operands):
      return self._results(name_of(eqn.primitive), eqn, operands)
    by_hand = None
    if len(operands) == 1:
      shape = eqn.outputs[0].aval.shape
      node = Node(name_of(eqn.primitive), (), Params(eqn.params), shape)
      by_hand = permuted(node, np.asarray(operands[0]))
    if by_hand is not None:
      return [by_hand]
    with jax.ensure_compile_time_eval():
      params = eqn.primitive.get_bind_params(eqn.params)
      results = eqn.primitive.bind(*map(jnp.asarray, operands), **params)
    return [self.constant(x) for x in (results if eqn.primitive.multiple_results else [results])]

  def row(self, x: Operand, i: int) -> Operand:
    """One of the rows along the first axis."""
    if not isinstance(x, int):
      return x[i]
    shape, dtype, moves = self.nodes[x].shape, self.nodes[x].dtype, self.nodes[x].moves
    starts, limits = (i, *(0 for _ in shape[1:])), (i + 1, *shape[1:])
    params = Params(start_indices=starts, limit_indices=limits, strides=None)
    what = (x,), params, (1, *shape[1:]), dtype, primitives.slice_p
    row = self.add(Node("slice", *what, moves=moves))
    what = (row,), Params(dimensions=(0,)), shape[1:], dtype, primitives.squeeze_p
    return self.add(Node("squeeze", *what, moves=moves))

  def stacked(self, shape: tuple[int, ...], dtype: Any, column: Sequence[Operand]) -> Operand:
    """Rows one above the other."""
    if not any(isinstance(x, int) for x in column):
      return self.constant(np.stack([np.asarray(x, dtype) for x in column]))
    rows = []
    for x in map(self.place, column):
      of_row, moves = (1, *shape[1:]), self.nodes[x].moves
      params = Params(new_sizes=of_row, dimensions=None, sharding=None)
      what = "reshape", (x,), params, of_row, dtype, primitives.reshape_p
      rows.append(self.add(Node(*what, moves=moves)))
    what = "concatenate", tuple(rows), Params(dimension=0), shape, dtype
    moves = self.moves(column)
    return self.add(Node(*what, primitives.concatenate_p, moves=moves))


def _is_static(value: Any) -> bool:
  """Whether a constant is part of the graph."""
  if isinstance(value, Tracer) or jnp.issubdtype(jax.typeof(value).dtype, jax.dtypes.extended):
    return False
  if not jnp.issubdtype(jnp.result_type(value), jnp.inexact) or not np.ndim(value):
    return True
  if math.prod(np.shape(value)) > LOOKED_AT:
    return False
  value = np.asarray(value)
  return value.size == 0 or is_one_number(value)


def _is_nonnegative(value: Any) -> bool:
  """Whether a constant is known to have no negative entry, if it is small."""
  if isinstance(value, Tracer) or not jnp.issubdtype(jax.typeof(value).dtype, jnp.floating):
    return False
  return math.prod(np.shape(value)) <= LOOKED_AT // 64 and bool(np.all(np.asarray(value) >= 0))


def _argument_places(argnums: int | Sequence[int], n: int) -> list[int]:
  places = [argnums] if isinstance(argnums, int) else list(argnums)
  if not all(-n <= place < n for place in places):
    msg = f"argnums is {argnums!r}, and the function was given {n} arguments."
    raise ValueError(msg)
  return [place % n for place in places]


def _check_float(leaf: Any) -> None:
  dtype = jnp.result_type(leaf)
  if not jnp.issubdtype(dtype, jnp.floating):
    msg = (
      f"The argument that moves must hold floating-point arrays, got {dtype}. Choose another "
      "with argnums, and close over what is not to be moved."
    )
    raise CertifyError(msg)
