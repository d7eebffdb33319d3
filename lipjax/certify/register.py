"""Rules that users write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive

from lipjax.certify.facts import Depends, LinearPart, LipschitzPart

#: ``rule(eqn, *operands)`` gives the equation's results.
Rule = Callable[..., Any]
#: By the primitive itself; another one of the same name has none.
RULES: dict[Any, Rule] = {}


def register_rule(primitive: Any) -> Callable[[Rule], Rule]:
  r"""Teaches `lipschitz_upper_bound` a primitive, or replaces what it knows of one.

  A rule is called as ``rule(eqn, *operands)`` for every equation of this very primitive
  with an operand that depends on the input: such an operand is a node with `shape` and
  `aval`, the others are arrays. It returns `linear_node` or `lipschitz_node`, a list of
  them where the primitive has several results, or raises `CertifyError`.

  Guarantee: none; the bound is as good as the rule.

  Args:
    primitive: a JAX primitive, as in ``jax.extend.core.primitives`` or a library of kernels.

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
  """
  if not isinstance(primitive, Primitive):
    msg = (
      f"register_rule takes a primitive such as jax.extend.core.primitives.exp_p, got "
      f"{primitive!r}. Functions are read through: only primitives have rules."
    )
    raise TypeError(msg)

  def register(rule: Rule) -> Rule:
    RULES[primitive] = rule
    return rule

  return register


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
  part = LinearPart(apply, (lambda: norm,), roundings=int(terms), is_exact=False)
  return Depends(part, (node.place,))
