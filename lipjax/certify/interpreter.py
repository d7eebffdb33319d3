"""Reading a function as a graph: constants are computed, the rest becomes nodes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import Literal, Primitive, primitives

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Failure, Node, Recipe
from lipjax.certify.jaxprs import consts, opened, source_line
from lipjax.certify.linear_parts import moved
from lipjax.operators.products import compute_dtype

#: A constant array or a node.
Operand = Any
#: ``rule(eqn, *operands)`` gives the equation's results.
Rule = Callable[..., Any]

#: Primitives that hold programs, whose results have recipes already.
CALLS = ("jit", "call", "closed_call", "eval_jaxpr", "checkpoint", "remat2")
CALLS += ("custom_jvp_call", "custom_vjp_call", "cond", "scan", "while")

#: Functions of entries at the same place, which JAX lets broadcast axes of size 1.
ENTRYWISE = frozenset(
  [
    "add",
    "add_any",
    "and",
    "atan2",
    "clamp",
    "div",
    "eq",
    "ge",
    "gt",
    "le",
    "lt",
    "max",
    "min",
    "mul",
    "ne",
    "nextafter",
    "or",
    "pow",
    "rem",
    "select_n",
    "sub",
    "xor",
  ]
)
#: Programs inside of a primitive that its name says as well, or its rule reads.
READ = ("scatter", *(f"scatter-{what}" for what in ("add", "sub", "max", "min")))

#: How precisely ranges and middles are computed.
_EXACT = {"precision": lax.Precision.HIGHEST, "accuracy": None}

#: Rules of JAX's own primitives by name, and of others by the primitive itself.
RULES: dict[str, Rule] = {}
OTHER_RULES: dict[Any, Rule] = {}


def rule_for(*primitives: str) -> Callable[[Rule], Rule]:
  """Registers the rule of one of JAX's own primitives."""

  def register(rule: Rule) -> Rule:
    for primitive in primitives:
      RULES[primitive] = rule
    return rule

  return register


def rule_of(primitive: Any) -> Rule | None:
  """The rule of this very primitive; another of the same name has none."""
  if primitive in OTHER_RULES:
    return OTHER_RULES[primitive]
  return RULES.get(primitive.name) if primitive in _own_primitives() else None


@functools.cache
def _own_primitives() -> frozenset[Any]:
  """JAX's primitives: those it exports, and some that it does not."""
  exported = [p for p in vars(primitives).values() if isinstance(p, Primitive)]
  hidden = (
    lambda x: jnp.split(x, 2),
    jax.lax.optimization_barrier,
    jax.checkpoint(jnp.sin),  # pyright: ignore[reportPrivateImportUsage]
  )
  traced = [eqn.primitive for fn in hidden for eqn in jax.make_jaxpr(fn)(jnp.zeros(2)).eqns]
  # Those of them that this version has.
  names = ("scatter_sub_p", "stack_p", "tile_p", "unstack_p")
  found = [getattr(lax, name) for name in names if hasattr(lax, name)]
  return frozenset([*exported, *traced, *found])


def evaluate(closed: Any, operands: Sequence[Operand]) -> list[Operand]:
  """The results of a closed jaxpr."""
  jaxpr = opened(closed)
  known: dict[Any, Operand] = dict(zip(jaxpr.constvars, consts(closed), strict=True))
  known.update(zip(jaxpr.invars, operands, strict=True))
  look_up = lambda atom: atom.val if isinstance(atom, Literal) else known[atom]
  for eqn in jaxpr.eqns:
    results = _results(eqn, [look_up(atom) for atom in eqn.invars])
    known.update(zip(eqn.outvars, results, strict=True))
  return [look_up(atom) for atom in jaxpr.outvars]


def _results(eqn: Any, operands: list[Operand]) -> list[Operand]:
  if not any(isinstance(x, Node) for x in operands):
    return _computed(eqn, operands)
  name = eqn.primitive.name
  rule = rule_of(eqn.primitive)
  if name in ENTRYWISE and eqn.primitive in _own_primitives():
    operands = [_spread(x, eqn.outvars[0].aval) for x in operands]
  earlier = [x.part.error for x in operands if isinstance(x, Node) and isinstance(x.part, Failure)]
  if rule is None and earlier:
    return [Node(v.aval, Failure(earlier[0])) for v in eqn.outvars]
  if rule is None:
    return _failed(eqn, f"There is no rule for {name!r}")
  if eqn.primitive not in OTHER_RULES and _holds_program(eqn):
    return _failed(eqn, f"There is no rule for {name!r} with a function of its own")
  try:
    results = rule(eqn, *operands)
  except CertifyError as error:
    return [Node(v.aval, Failure(error)) for v in eqn.outvars]
  results = list(results) if eqn.primitive.multiple_results else [results]
  for i, result in enumerate(results):
    is_new = isinstance(result, Node) and not any(result is x for x in operands)
    if is_new and result.recipe is None and name not in CALLS:
      # Of a primitive of the user's the name says nothing.
      known = name if eqn.primitive in _own_primitives() else ""
      result.recipe = Recipe(known, eqn.params, tuple(operands), binder(eqn, i))
  return results


def _spread(x: Operand, aval: Any) -> Operand:
  """A node with every copy written out that an axis of size 1, or none, stands for."""
  if not isinstance(x, Node) or x.shape == aval.shape or isinstance(x.part, Failure):
    return x
  # One node for all that read it, so that they know each other.
  key = f"spread to {aval.shape}"
  if key in x.cache:
    return x.cache[key]
  axes = tuple(range(len(aval.shape) - len(x.shape), len(aval.shape)))
  apply = functools.partial(lax.broadcast_in_dim, shape=aval.shape, broadcast_dimensions=axes)
  spread = jax.ShapeDtypeStruct(aval.shape, x.aval.dtype)
  copies = size(aval.shape) / max(size(x.shape), 1)
  recipe = Recipe("broadcast_in_dim", {}, (x,), apply)
  x.cache[key] = Node(spread, moved(apply, copies), (x,), recipe=recipe)
  return x.cache[key]


def _holds_program(eqn: Any) -> bool:
  """Whether a parameter is, or holds, a program that nobody reads."""
  if eqn.primitive.name in (*CALLS, *READ):
    return False
  is_program = lambda value: hasattr(opened(value), "eqns")
  return any(map(is_program, jax.tree.leaves(eqn.params, is_leaf=is_program)))


def binder(eqn: Any, i: int = 0) -> Callable[..., Any]:
  """The primitive on other values, in full precision whatever was asked for."""
  params = dict(eqn.params)
  if eqn.primitive in _own_primitives():
    params |= {name: how for name, how in _EXACT.items() if name in params}
    if params.get("preferred_element_type") is not None:
      # Bounds are computed in 32 bits at least.
      params["preferred_element_type"] = compute_dtype(params["preferred_element_type"])

  def bind(*values: Any) -> Any:
    results = eqn.primitive.bind(*values, **params)
    return results[i] if eqn.primitive.multiple_results else results

  return bind


def _computed(eqn: Any, operands: list[Operand]) -> list[Operand]:
  """What does not depend on the input, at once if nothing in it is traced."""
  bind = lambda: eqn.primitive.bind(*operands, **eqn.params)
  is_traced = any(isinstance(x, Tracer) for x in operands)
  if is_traced:
    results = bind()
  else:
    with jax.ensure_compile_time_eval():
      results = bind()
  return list(results) if eqn.primitive.multiple_results else [results]


def _failed(eqn: Any, what: str) -> list[Operand]:
  error = CertifyError(
    f"{what}{source_line(eqn)}. Write one with lipjax.register_rule, or bound the parts of "
    "the function before and after it apart."
  )
  return [Node(v.aval, Failure(error)) for v in eqn.outvars]


def is_scalar(x: Operand) -> bool:
  """Whether a constant has one value, known now, in all its entries."""
  if isinstance(x, Node | Tracer):
    return False
  values = np.asarray(x)
  return values.size > 0 and bool(np.all(values == values.flat[0]))


def scalar(x: Operand) -> Any:
  """The one value of a constant for which `is_scalar` holds."""
  return np.asarray(x).flat[0]


def size(shape: Sequence[int]) -> int:
  """How many entries."""
  return math.prod(shape)
