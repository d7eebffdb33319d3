"""Applies a layout and its overrides to a params tree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax

from lipjax.operators.base import LinearOperator
from lipjax.operators.layouts import AmbiguousLeafError, Layout, flax_layout
from lipjax.operators.paths import float_leaves

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


def require_operators(
  params: Any, layout: Layout | None, layout_overrides: Overrides | None, caller: str
) -> dict[str, LinearOperator]:
  """`resolve_operators`, for a transformation that would do nothing without an operator.

  Raises:
    LayoutError: as `resolve_operators`.
    ValueError: params has leaves, and none of them is an operator.
  """
  operators = resolve_operators(params, layout, layout_overrides)
  leaves = float_leaves(params)
  if leaves and not operators:
    msg = (
      f"{caller} found no operator among the leaves {sorted(leaves)}; give a"
      " layout that knows them, or take the transformation out of the chain."
    )
    raise ValueError(msg)
  return operators


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
    for path in layout:
      if path not in leaves:
        problems[f"layout {path}"] = f"layout[{path!r}] names no leaf; paths are {_some(leaves)}."
  return problems


def _some(leaves):
  paths = list(leaves)
  shown = ", ".join(repr(path) for path in paths[:6])
  return shown + (f", … ({len(paths)} in all)" if len(paths) > 6 else "")
