"""Complex arrays, read as real ones with a first axis of real and imaginary parts.

So a linear function of complex numbers is one of real numbers twice as many, whose norm is the
same, and everything else that is known of real arrays holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from lipjax.certify.graph import Node, Params, Static
from lipjax.certify.patterns.normalization import Rows
from lipjax.jaxprs.source import source_line
from lipjax.jaxprs.versions import name_of

#: What is linear in all complex operands together, and mixes no real parts with imaginary ones.
OF_BOTH = """
broadcast_in_dim concatenate cumsum dynamic_slice dynamic_update_slice gather pad reduce_sum
reduce_window_sum reshape rev scatter scatter-add scatter-sub select_n slice split squeeze stack
tile transpose unstack
"""


class Pair(int):
  """The place of a node that holds a complex array's real and imaginary parts."""


def is_complex(eqn: Any, operands: Sequence[Any]) -> bool:
  """Whether an equation reads a complex array that moves, or makes one."""
  makes = (jnp.issubdtype(x.aval.dtype, jnp.complexfloating) for x in eqn.outputs)
  return any(isinstance(x, Pair) for x in operands) or any(makes)


def read_complex(reader: Any, eqn: Any, operands: Sequence[Any]) -> list[Any]:
  """The results of an equation of complex arrays."""
  name, out = name_of(eqn.primitive), eqn.outputs[0].aval
  makes_pair = jnp.issubdtype(out.dtype, jnp.complexfloating)
  moving = [x for x in operands if reader.moves([x])]
  x, pairs = operands[0], [x for x in operands if isinstance(x, Pair)]
  match name:
    case "convert_element_type" if isinstance(x, Pair):
      return [x] if makes_pair else reader.failed(eqn, _unknown(name, eqn))
    case "convert_element_type":
      return [_padded(reader, x, eqn)]
    case "complex":
      return [_made(reader, operands, eqn)]
    case "real" | "imag":
      return [reader.row(x, int(name == "imag"))]
    case "abs":
      return [_magnitude(reader, x, out, eqn)]
    case "conj":
      shape = (2,) + (1,) * len(out.shape)
      sign = reader.constant(_real(np.reshape([1.0, -1.0], shape), out))
      product = eqn._replace(primitive=primitives.mul_p, params={})
      return [_node(reader, "mul", (x, sign), out, product)]
    case "fft":
      return [_node(reader, "fft", (x,), out, eqn, is_pair=makes_pair)]
    case "add" | "sub" | "add_any":
      both = [_spread(reader, y, out, eqn) for y in operands]
      return [_node(reader, name, both, out, eqn)]
    case "neg":
      return [_node(reader, "neg", (x,), out, eqn)]
    case "mul" | "dot_general" if len(pairs) > 0:
      both = [_spread(reader, y, out, eqn) if name == "mul" else _pair(reader, y) for y in operands]
      return [_node(reader, f"complex_{name}", both, out, eqn)]
    case "div" if moving == [x]:
      inverse = reader.of_function(_inverse, operands[1])
      both = [_spread(reader, x, out, eqn), _spread(reader, Pair(inverse), out, eqn)]
      return [_node(reader, "complex_mul", both, out, eqn)]
  if name in OF_BOTH.split() and makes_pair and all(isinstance(y, Pair) for y in moving):
    return [_of_both(reader, name, operands, k, eqn) for k in range(len(eqn.outputs))]
  return reader.failed(eqn, _unknown(name, eqn))


def _unknown(name: str, eqn: Any) -> str:
  return (
    f"{name!r} of complex numbers{source_line(eqn)} has no rule. Known are fft and its like, real,"
    " imag, abs, conj, sums, products with constants and what moves entries: write the others"
    " with real and imaginary parts."
  )


def _real(value: np.ndarray, out: Any) -> np.ndarray:
  """In the real dtype of a complex one."""
  return np.asarray(value, np.real(np.zeros((), out.dtype)).dtype)


def _node(
  reader: Any, name: str, operands: Sequence[Any], out: Any, eqn: Any, *, is_pair: bool = True
) -> Any:
  inputs, moves = tuple(reader.place(x) for x in operands), reader.moves(operands)
  dtype = np.real(np.zeros((), out.dtype)).dtype
  shape = (2, *out.shape) if is_pair else tuple(out.shape)
  primitive = eqn.primitive
  node = Node(name, inputs, Params(eqn.params), shape, dtype, primitive, 0, moves, source_line(eqn))
  place = reader.add(node)
  return Pair(place) if is_pair else place


def _of_both(reader: Any, name: str, operands: Sequence[Any], k: int, eqn: Any) -> Pair:
  """A node that does to each part what a primitive does to a real array."""
  is_complex = [jnp.issubdtype(x.aval.dtype, jnp.complexfloating) for x in eqn.inputs]
  parts = [_pair(reader, x) if is_c else x for x, is_c in zip(operands, is_complex, strict=True)]
  out, inputs = eqn.outputs[k].aval, tuple(reader.place(x) for x in parts)
  dtype = np.real(np.zeros((), out.dtype)).dtype
  inner = Node(name, (), Params(_real_params(eqn.params)), out.shape, dtype, eqn.primitive, k)
  params, shape = Params(of=inner, is_pair=tuple(is_complex)), (2, *out.shape)
  moves, line = reader.moves(operands), source_line(eqn)
  return Pair(reader.add(Node("of_both", inputs, params, shape, dtype, None, 0, moves, line)))


def _real_params(params: dict[str, Any]) -> dict[str, Any]:
  """Parameters that name a complex dtype, for real arrays."""
  is_complex = lambda x: isinstance(x, np.dtype) and np.issubdtype(x, np.complexfloating)
  real = lambda x: np.real(np.zeros((), x)).dtype
  return {key: real(x) if is_complex(x) else x for key, x in params.items()}


def _padded(reader: Any, x: Any, eqn: Any) -> Pair:
  """A real array as a complex one."""
  shape, dtype, line = reader.shape(x), reader.dtype(x), source_line(eqn)
  row = Params(new_sizes=(1, *shape), dimensions=None, sharding=None)
  inputs = (reader.place(x),)
  moves = reader.moves([x])
  what = inputs, row, (1, *shape), dtype, primitives.reshape_p, 0, moves, line
  first = reader.add(Node("reshape", *what))
  config = ((0, 1, 0), *((0, 0, 0) for _ in shape))
  zero = reader.place(np.zeros((), dtype))
  what = (first, zero), Params(padding_config=config), (2, *shape), dtype, primitives.pad_p
  return Pair(reader.add(Node("pad", *what, 0, moves, line)))


def _made(reader: Any, parts: Sequence[Any], eqn: Any) -> Pair:
  shape = (2, *eqn.outputs[0].aval.shape)
  parts = [_full(reader, x, shape[1:]) for x in parts]
  return Pair(reader.stacked(shape, np.dtype(reader.dtype(parts[0])), parts))


def _full(reader: Any, x: Any, shape: tuple[int, ...]) -> Any:
  return (
    x if reader.shape(x) == shape else reader.of_function(lambda y: jnp.broadcast_to(y, shape), x)
  )


def _magnitude(reader: Any, x: Any, out: Any, eqn: Any) -> Any:
  """√(re² + im²): the norm of each column."""
  n = int(np.prod(out.shape))
  rows = np.arange(2 * n).reshape((2, n)).T
  what = Rows(Static(rows), 2.0, 0.0, is_centered=False)
  params = Params(what=what, which=Static(np.arange(n).reshape(out.shape)))
  line = source_line(eqn)
  return reader.add(Node("row_norms", (reader.place(x),), params, out.shape, out.dtype, line=line))


def _pair(reader: Any, x: Any) -> Any:
  """A constant as real and imaginary parts."""
  if isinstance(x, Pair):
    return x
  split = lambda value: jnp.stack([jnp.real(value), jnp.imag(value)])
  return reader.of_function(split, x)


def _spread(reader: Any, x: Any, out: Any, eqn: Any) -> Any:
  """In the shape of the result, as an operand of what is done entry by entry."""
  x = _pair(reader, x)
  shape, full = reader.shape(x), (2, *out.shape)
  if shape == full:
    return x
  axes = (0, *range(len(full) - len(shape) + 1, len(full)))
  params = Params(shape=full, broadcast_dimensions=axes, sharding=None)
  moves, inputs = reader.moves([x]), (reader.place(x),)
  what = inputs, params, full, reader.dtype(x), primitives.broadcast_in_dim_p, 0, moves
  return Pair(reader.add(Node("broadcast_in_dim", *what, source_line(eqn))))


def _inverse(value: Any) -> Any:
  inverse = 1 / value
  return jnp.stack([jnp.real(inverse), jnp.imag(inverse)])
