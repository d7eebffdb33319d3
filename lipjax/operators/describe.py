"""A table of what a layout makes of every leaf."""

from __future__ import annotations

import io
from typing import Any

from lipjax.operators.layouts import AmbiguousLeafError, Layout
from lipjax.operators.paths import float_leaves
from lipjax.operators.resolve import Overrides, decide, split_products


def describe(
  params: Any,
  *,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> str:
  """A readable table of the operator that each leaf is taken for.

  Nothing is computed and nothing raises for an ambiguous leaf: the table says
  which override to write, so that it is the first thing to look at with a new
  model.

  Args:
    params: a pytree of arrays or `jax.ShapeDtypeStruct`.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    The table as text: path, shape, dtype, operator, and what its norm means.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    >>> print(lipjax.describe(params))
    path             shape    dtype     operator            meaning
    ───────────────────────────────────────────────────────────────────────────────────────────
    Dense_0/bias     (3,)     float32   –                   not a linear map
    Dense_0/kernel   (2, 3)   float32   Dense((0,), (1,))   matrix: exact operator of the layer
  """
  from rich import box
  from rich.console import Console
  from rich.table import Table

  leaves = float_leaves(params)
  single, products = split_products(layout)
  decided, problems = decide(leaves, single, layout_overrides)
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
  for column in ("path", "shape", "dtype", "operator", "meaning"):
    table.add_column(column, overflow="fold")
  for path, leaf in leaves.items():
    operator = decided.get(path)
    if path in problems:
      name, meaning = "AMBIGUOUS", _advice(problems[path])
    elif operator is None:
      name, meaning = "–", "not a linear map"
    else:
      name, meaning = short_name(operator), operator.meaning
    table.add_row(path or "(no name)", str(tuple(leaf.shape)), str(leaf.dtype), name, meaning)
  for name, product in products.items():
    meaning = f"product of {product.first} and {product.second}"
    table.add_row(name, "", "", "Product", meaning)
  for key, problem in problems.items():
    if key not in leaves:
      table.add_row("", "", "", "UNUSED", str(problem))
  text = io.StringIO()
  Console(file=text, width=160, color_system=None).print(table, markup=False)
  return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def _advice(problem: Exception | str) -> str:
  if isinstance(problem, AmbiguousLeafError):
    return f"{problem.reason}. {problem.advice}"
  return str(problem)


def short_name(operator: Any) -> str:
  """The operator as a user would write it, without the defaults' names."""
  name = type(operator).__name__
  fields = ("in_axes", "out_axes", "spatial_shape")
  axes = [getattr(operator, field) for field in fields if hasattr(operator, field)]
  if operator.stack_axes:
    axes.append(operator.stack_axes)
  return f"{name}({', '.join(map(str, axes))})"
