"""Applies a layout and its overrides to a params tree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from lipjax.operators.base import LinearOperator
from lipjax.operators.layouts import AmbiguousLeafError, Layout, flax_layout
from lipjax.operators.paths import float_leaves
from lipjax.operators.product import Product

Overrides = Mapping[str, LinearOperator | None]


class LayoutError(ValueError):
  """A params tree that a layout cannot describe; lists every leaf at fault."""


def resolve_operators(
  params: Any, layout: Layout | None = None, layout_overrides: Overrides | None = None
) -> dict[str, LinearOperator]:
  """The operator of every leaf that is one, ``{path: operator}`` sorted by path.

  Args:
    params: a pytree of arrays or `jax.ShapeDtypeStruct`.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``; the first regex that matches
      a whole path decides before the layout is asked.

  Raises:
    LayoutError: some leaf is ambiguous, an operator does not fit its leaf's
      shape, or a dictionary's path or a regex matches no leaf.
  """
  leaves = float_leaves(params)
  decided, problems = decide(leaves, layout, layout_overrides)
  if problems:
    lines = "\n".join(f"  - {problem}" for problem in problems.values())
    msg = (
      f"Leaves or overrides that could not be read as operators ({len(problems)}):\n{lines}\n"
      "lipjax.describe(params) shows every leaf; a leaf that a mask leaves out is not asked"
      " about."
    )
    raise LayoutError(msg)
  return {path: op for path, op in decided.items() if op is not None}


class Measured(NamedTuple):
  """What a layout says to measure.

  Attributes:
    operators: by path, or by the name of a product.
    leaves: all leaves by path, and the stacked factors of products by name.
    products: by name.
  """

  operators: dict[str, LinearOperator]
  leaves: dict[str, Any]
  products: dict[str, Product]


def resolve_measured(
  params: Any, layout: Layout | None = None, layout_overrides: Overrides | None = None
) -> Measured:
  """As `resolve_operators`, for callers that take products of leaves as well.

  Raises:
    LayoutError: as `resolve_operators`, or a product of leaves that are not there or do not fit.
  """
  single, products = split_products(layout)
  operators = resolve_operators(params, single, layout_overrides)
  leaves = float_leaves(params)
  if not leaves:  # A placeholder tree, as in `decide`.
    products = {}
  if shared := sorted(set(products) & set(leaves)):
    msg = f"Products are named {shared}, which are paths of leaves; give them other names."
    raise LayoutError(msg)
  try:
    made = {name: product.stacked(name, leaves) for name, product in products.items()}
  except ValueError as error:
    raise LayoutError(*error.args) from error
  operators |= {name: operator for name, (operator, _) in made.items()}
  leaves |= {name: weight for name, (_, weight) in made.items()}
  return Measured(dict(sorted(operators.items())), leaves, products)


def require_operators(
  params: Any, layout: Layout | None, layout_overrides: Overrides | None, caller: str
) -> dict[str, LinearOperator]:
  """`resolve_operators`, for a transformation that would do nothing without an operator.

  Raises:
    LayoutError: as `resolve_operators`.
    ValueError: params has leaves, and none of them is an operator.
  """
  operators = resolve_operators(params, layout, layout_overrides)
  check_some(operators, float_leaves(params), caller)
  return operators


def split_products(layout: Layout | None) -> tuple[Layout | None, dict[str, Product]]:
  """A layout's operators of single leaves, and its products."""
  if not isinstance(layout, Mapping):
    return layout, {}
  products = {name: x for name, x in layout.items() if isinstance(x, Product)}
  return {path: x for path, x in layout.items() if not isinstance(x, Product)}, products


def check_some(
  operators: Mapping[str, LinearOperator], leaves: Mapping[str, Any], caller: str
) -> None:
  """Raises where there are leaves and none is an operator."""
  if leaves and not operators:
    msg = (
      f"{caller} found no operator among the leaves {sorted(leaves)}; give a"
      " layout that knows them, or take the transformation out of the chain."
    )
    raise ValueError(msg)


def decide(
  leaves: dict[str, Any], layout: Layout | None, layout_overrides: Overrides | None
) -> tuple[dict[str, LinearOperator | None], dict[str, Exception | str]]:
  """The decision for every leaf, and a problem for every leaf without one."""
  layout = flax_layout if layout is None else layout
  overrides = dict(layout_overrides or {})
  decided: dict[str, LinearOperator | None] = {}
  problems: dict[str, Exception | str] = {}
  for path, leaf in leaves.items():
    struct = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    try:
      operator = _decide_one(path, struct, layout, overrides)
      if operator is not None:
        operator.validate(struct.shape)
      decided[path] = operator
    except AmbiguousLeafError as error:
      problems[path] = error
    except ValueError as error:
      problems[path] = f"{path!r}: {error}"
  if leaves:  # A placeholder tree (optax.tree.map_params) has no leaf to match.
    problems |= _unmatched(leaves, layout, overrides)
  return decided, problems


def _decide_one(path, struct, layout, overrides):
  for pattern, operator in overrides.items():
    if re.fullmatch(pattern, path):
      return _checked(operator, f"layout_overrides[{pattern!r}]")
  if isinstance(layout, Mapping):
    return _checked(layout.get(path), f"layout[{path!r}]")
  return _checked(layout(path, struct), f"layout({path!r}, …)")


def _checked(operator, source):
  if operator is None or isinstance(operator, LinearOperator):
    return operator
  msg = (
    f"{source} is {operator!r}; expected a lipjax operator such as lipjax.Dense(), or"
    " None for a leaf that is not a linear map."
  )
  raise ValueError(msg)


def _unmatched(leaves, layout, overrides):
  problems = {}
  for pattern in overrides:
    if not any(re.fullmatch(pattern, path) for path in leaves):
      problems[f"layout_overrides {pattern}"] = (
        f"layout_overrides[{pattern!r}] matches no leaf (a regex must match the whole"
        f" path; paths are {_some(leaves)}). Correct it, or leave it out."
      )
  if isinstance(layout, Mapping):
    for path, entry in layout.items():
      if isinstance(entry, Product):
        problems[f"layout {path}"] = (
          f"layout[{path!r}] is a product of two leaves; spectral_norms, the singular vectors and"
          " add_spectral_decay take those, and this function takes operators of single leaves."
        )
      elif path not in leaves:
        problems[f"layout {path}"] = f"layout[{path!r}] names no leaf; paths are {_some(leaves)}."
  return problems


def _some(leaves):
  paths = list(leaves)
  shown = ", ".join(repr(path) for path in paths[:6])
  return shown + (f", … ({len(paths)} in all)" if len(paths) > 6 else "")
