"""Layouts of products: LoRA pairs, queries with keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from lipjax.operators.base import LinearOperator
from lipjax.operators.dense import Dense
from lipjax.operators.layouts import Layout
from lipjax.operators.product import Product
from lipjax.operators.resolve import Overrides, resolve_operators


class Pair(NamedTuple):
  """Two kernels that differ by one part of their paths.

  Attributes:
    above: the path up to that part.
    name: the path with both parts, ``"block_0/attention/query*key/kernel"``.
    first: a path.
    second: the other.
  """

  above: str
  name: str
  first: str
  second: str


def find_pairs(operators: Mapping[str, LinearOperator], names: tuple[str, str]) -> list[Pair]:
  """Matrices whose paths have the first name where those of others have the second one."""
  found = []
  for path, operator in operators.items():
    parts = path.split("/")
    if names[0] not in parts or type(operator) is not Dense:
      continue
    at = len(parts) - 1 - parts[::-1].index(names[0])
    with_part = lambda part, at=at, parts=parts: "/".join([*parts[:at], part, *parts[at + 1 :]])
    other = with_part(names[1])
    if type(operators.get(other)) is Dense:
      found.append(Pair("/".join(parts[:at]), with_part("*".join(names)), path, other))
  return found


def lora_products(
  params: Any,
  *,
  names: tuple[str, str] = ("lora_a", "lora_b"),
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> dict[str, Product]:
  r"""A layout of all pairs of low-rank kernels, :math:`x \mapsto (xA)B`.

  Guarantee: exact, a description.

  Args:
    params: a pytree of arrays or `jax.ShapeDtypeStruct`.
    names: the parts of paths that tell the first kernel from the second.
    layout: of the single kernels, a layout function or ``{path: operator}``; `flax_layout` when
      None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    ``{path with both names: Product}``.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: there is no pair, or a kernel of one of these names without a partner.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"up": {"lora_a": jnp.ones((8, 2)), "lora_b": jnp.ones((2, 3))}}
    >>> norms = lipjax.spectral_norms(params, layout=lipjax.lora_products(params))
    >>> {name: round(float(norm), 3) for name, norm in norms.items()}  # 2√24
    {'up/lora_a*lora_b': 9.798}

  Reference:
    Hu et al. (2022), arXiv:2106.09685.
  """
  operators, pairs = _all_pairs(params, names, layout, layout_overrides)
  turned = lambda op: dataclasses.replace(op, in_axes=op.out_axes, out_axes=op.in_axes)
  return {
    pair.name: Product(
      pair.first, pair.second, operators[pair.first], turned(operators[pair.second])
    )
    for pair in pairs
  }


def qk_products(
  params: Any,
  *,
  names: tuple[str, str] = ("query", "key"),
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> dict[str, Product]:
  r"""A layout of each attention's product of queries and keys, :math:`W_k^TW_q` of each head.

  Its norm bounds how fast logits grow: :math:`|q \cdot k| \le \sigma\,\|x\|\,\|x'\|`, without
  biases, before they are divided by :math:`\sqrt{d_h}`.

  Guarantee: exact, a description.

  Args:
    params: a pytree of arrays or `jax.ShapeDtypeStruct`.
    names: of the modules whose kernels make queries and keys.
    layout: of the single kernels; `flax_layout` when None. The first axis of a kernel's outputs
      are its heads. Where there are fewer heads of keys, each is shared by as many heads of
      queries, in order.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    ``{path with both names: Product}``, each with a norm for each head.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: there is no pair, a kernel of one of these names without a partner, or kernels
      whose outputs are one axis, which do not say what heads are.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> from flax import linen as nn
    >>> model = nn.MultiHeadDotProductAttention(num_heads=2)
    >>> params = model.init(jax.random.key(0), jnp.ones((1, 3, 8)))["params"]
    >>> norms = lipjax.spectral_norms(params, layout=lipjax.qk_products(params))
    >>> {name: norm.shape for name, norm in norms.items()}
    {'query*key/kernel': (2,)}
  """
  operators, pairs = _all_pairs(params, names, layout, layout_overrides)
  of_heads = lambda path: _of_heads(path, operators[path])
  return {p.name: Product(p.first, p.second, of_heads(p.first), of_heads(p.second)) for p in pairs}


def _of_heads(path: str, operator: Dense) -> Dense:
  if len(operator.out_axes) < 2:
    msg = (
      f"{path!r} is {operator!r}: its outputs are one axis, which does not say what heads are;"
      " reshape the kernel to (inputs, heads, size), or write a lipjax.Product."
    )
    raise ValueError(msg)
  heads, *rest = operator.out_axes
  return Dense(operator.in_axes, tuple(rest), (*operator.batch_axes, heads))


def _all_pairs(
  params: Any, names: tuple[str, str], layout: Layout | None, layout_overrides: Overrides | None
) -> tuple[dict[str, Any], list[Pair]]:
  """Operators and pairs, where there are any, and nobody is left alone."""
  operators: Any = resolve_operators(params, layout, layout_overrides)
  pairs = find_pairs(operators, names)
  if not pairs and operators:
    msg = f"No two matrices differ by {names[0]!r} and {names[1]!r} among {sorted(operators)}."
    raise ValueError(msg)
  paired = {path for pair in pairs for path in (pair.first, pair.second)}
  has_name = lambda path: not set(names).isdisjoint(path.split("/"))
  alone = [
    p for p, op in operators.items() if has_name(p) and type(op) is Dense and p not in paired
  ]
  if alone:
    msg = (
      f"{alone} have no partner among the matrices, which differ by {names[0]!r} and {names[1]!r}"
      " alone; leave them out with layout_overrides={path: None}."
    )
    raise ValueError(msg)
  return operators, pairs
