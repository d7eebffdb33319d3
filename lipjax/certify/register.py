"""Rules that users write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Primitive

from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, LinearPart, LipschitzPart, Operand, Range, ScalarPart
from lipjax.certify.graph import Node
from lipjax.certify.scalar.cells import outward
from lipjax.rounding.interval import Interval

#: ``rule(eqn, *operands)`` gives the equation's results.
Rule = Callable[..., Any]


class UsersRule(NamedTuple):
  """What a user says of a primitive."""

  transfer: Rule
  range: Rule | None


#: By the primitive itself; another one of the same name has none.
RULES: dict[Any, UsersRule] = {}


def register_rule(primitive: Any, *, range: Rule | None = None) -> Callable[[Rule], Rule]:
  r"""Teaches `lipschitz_upper_bound` a primitive, or replaces what it knows of one.

  A rule is called as ``rule(eqn, *operands)`` for every equation of this very primitive
  with an operand that depends on the input: such an operand is a node with `shape`, `aval`
  and `range`, the others are arrays. It returns `linear_node`, `lipschitz_node` or `scalar_node`, a
  list of them where the primitive has several results, or raises `CertifyError`. The `range` of a
  node is its smallest and its largest value on the ball or the box, arrays of its shape; None
  where that is not known.

  Guarantee: none; the bound is as good as the rule.

  Args:
    primitive: a JAX primitive, as in ``jax.extend.core.primitives`` or a library of kernels.
    range: between which values results lie, so that on a ball or a box there are bounds of what
      is computed from them. It is called as ``range(eqn, *ranges)`` with the range of every
      operand, of a constant twice the array, and returns a range, or a list of them, whose ends
      broadcast to the result's shape.

  Returns:
    A decorator that gives the rule back.

  Raises:
    TypeError: `primitive` is no primitive.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> from jax.extend.core import Primitive
    >>> saturate_p = Primitive("saturate")
    >>> _ = saturate_p.def_abstract_eval(lambda x: x)
    >>> @lipjax.register_rule(saturate_p)
    ... def saturate(eqn, x):
    ...   return lipjax.lipschitz_node(eqn.outvars[0].aval, [x], [0.5])
    >>> upper = lipjax.lipschitz_upper_bound(lambda x: saturate_p.bind(4 * x))(jnp.zeros(3))
    >>> print(f"{upper:.3f}")
    2.000

    With a range, a product has a bound too:

    >>> @lipjax.register_rule(saturate_p, range=lambda eqn, x: (-1, 1))
    ... def saturate(eqn, x):
    ...   return lipjax.scalar_node(eqn.outvars[0].aval, x, 0.0, 0.5)
    >>> fn = lambda x: saturate_p.bind(x) * jnp.tanh(x)
    >>> upper = lipjax.lipschitz_upper_bound(fn, radius=0.5)(jnp.zeros(3))
    >>> print(f"{upper:.3f}")
    1.231
  """
  if not isinstance(primitive, Primitive):
    msg = (
      f"register_rule takes a primitive such as jax.extend.core.primitives.exp_p, got "
      f"{primitive!r}. Functions are read through: only primitives have rules."
    )
    raise TypeError(msg)

  def register(rule: Rule) -> Rule:
    RULES[primitive] = UsersRule(rule, range)
    return rule

  return register


def depends_by_rule(node: Node, operands: tuple[Operand, ...]) -> Depends:
  """How a node depends on its operands, as its user's rule says."""
  given = [x if x.moves else jnp.asarray(x.value) for x in operands]
  found = _result(node, RULES[node.primitive].transfer(_equation(node, operands), *given))
  if isinstance(found, Depends):
    return found
  msg = (
    f"The rule of {node.primitive} gave {type(found).__name__}; expected lipjax.linear_node(…), "
    "lipjax.lipschitz_node(…) or lipjax.scalar_node(…), or a list of them where it has several "
    "results."
  )
  raise CertifyError(msg)


def range_by_rule(
  node: Node, operands: tuple[Operand, ...], ranges: Sequence[Range]
) -> Range | None:
  """Between which values a node lies, as its user's rule says."""
  rule = RULES[node.primitive].range
  if rule is None:
    return None
  full = [within.full(x.shape) for x, within in zip(operands, ranges, strict=True)]
  found = _result(node, rule(_equation(node, operands), *full))
  try:
    lower, upper = (jnp.broadcast_to(jnp.asarray(end, node.wide), node.shape) for end in found)
  except (TypeError, ValueError) as error:
    msg = (
      f"The range of {node.primitive} is {found!r}; expected its smallest and its largest value, "
      f"two arrays that broadcast to shape {node.shape}."
    )
    raise CertifyError(msg) from error
  # What is none, or in the wrong order, bounds nothing.
  is_range = lower <= upper
  return Range(jnp.where(is_range, lower, -jnp.inf), jnp.where(is_range, upper, jnp.inf))


def _equation(node: Node, operands: tuple[Operand, ...]) -> Any:
  outvars = [SimpleNamespace(aval=aval) for aval in node.params[""]]
  invars = [SimpleNamespace(aval=x.aval) for x in operands]
  params = {key: value for key, value in node.params.items() if key}
  return SimpleNamespace(primitive=node.primitive, outvars=outvars, invars=invars, params=params)


def _result(node: Node, results: Any) -> Any:
  return results[node.output] if node.primitive.multiple_results else results


def lipschitz_node(aval: Any, nodes: Sequence[Any], constants: Sequence[float]) -> Any:
  r"""A result y of which :math:`\|\Delta y\|^2 \le \sum_i c_i^2\|\Delta x_i\|^2` is known.

  Guarantee: yours; see `register_rule`.

  Args:
    aval: shape and dtype of the result, ``eqn.outvars[0].aval``.
    nodes: the operands that it depends on.
    constants: :math:`c_i ≥ 0` of each.

  Returns:
    The node.

  Raises:
    ValueError: not one constant for each node.

  Example:
    See `register_rule`.

    >>> import lipjax
    >>> lipjax.lipschitz_node.__name__
    'lipschitz_node'
  """
  if len(nodes) != len(constants) or not nodes:
    msg = f"A constant is needed for each node, got {len(nodes)} and {len(constants)}."
    raise ValueError(msg)
  del aval
  return Depends(LipschitzPart(tuple(map(float, constants))), tuple(x.place for x in nodes))


def scalar_node(aval: Any, node: Any, lower: Any, upper: Any) -> Any:
  r"""A function of every entry of a node, :math:`\alpha \le (g(a) - g(b))/(a - b) \le \beta`.

  Guarantee: yours; see `register_rule`.

  Args:
    aval: shape and dtype of the result, ``eqn.outvars[0].aval``.
    node: the operand, of the same shape.
    lower: the smallest slope, one number or one for each entry; on a ball or a box it may depend
      on ``node.range``.
    upper: the largest slope.

  Returns:
    The node.

  Raises:
    ValueError: the shapes differ, or slopes that are known are in the wrong order or NaN; of
      traced ones the bound is infinite.

  Example:
    See `register_rule`.

    >>> import lipjax
    >>> lipjax.scalar_node.__name__
    'scalar_node'
  """
  if aval.shape != node.shape:
    msg = f"A function of every entry keeps the shape {node.shape}; the result's is {aval.shape}."
    raise ValueError(msg)
  is_traced = isinstance(lower, Tracer) or isinstance(upper, Tracer)
  xp = jnp if is_traced else np
  in_order = xp.less_equal(lower, upper)
  if not (is_traced or np.all(in_order)):
    msg = f"The smallest slope must be at most the largest one, got {lower} and {upper}."
    raise ValueError(msg)
  ends = xp.where(in_order, lower, -np.inf), xp.where(in_order, upper, np.inf)
  if not is_traced:
    ends = outward(Interval(*map(np.asarray, ends)), node.node.wide)
  return Depends(ScalarPart(*ends), (node.place,))


def linear_node(
  aval: Any, apply: Callable[[jax.Array], jax.Array], node: Any, norm: Any, *, terms: int
) -> Any:
  r"""A result that is linear in one operand, up to a constant.

  Guarantee: yours; see `register_rule`.

  Args:
    aval: shape and dtype of the result, ``eqn.outvars[0].aval``.
    apply: the linear map, JAX code that can be transposed.
    node: the operand that it depends on.
    norm: an upper bound of its norm.
    terms: how many products are summed for one entry at most, by the map or its transpose.

  Returns:
    The node.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> from jax.extend.core import Primitive
    >>> triple_p = Primitive("triple")
    >>> _ = triple_p.def_abstract_eval(lambda x: x)
    >>> @lipjax.register_rule(triple_p)
    ... def triple(eqn, x):
    ...   return lipjax.linear_node(eqn.outvars[0].aval, lambda x: 3 * x, x, 3.0, terms=1)
    >>> upper = lipjax.lipschitz_upper_bound(lambda x: triple_p.bind(x) - 3 * x)(jnp.zeros(3))
    >>> print(f"{upper:.3f}")
    0.000
  """
  del aval
  part = LinearPart(apply, (lambda: norm,), roundings=int(terms))
  return Depends(part, (node.place,))
