"""A report as a table, as lines for other programs, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lipjax.commands.report_rows import Row, totals

HEAD = ("path", "operator", "shape", "σ₁", "Frobenius", "stable rank", "of largest")
HEAD_OF_DIFF = ("path", "operator", "shape", "σ₁ before", "σ₁ after", "× before")
#: Columns of words; those of numbers stand to the right.
WORDS = 3


def show(head: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
  """A table and notes below it; where nobody looks at it, lines with tabs, and notes apart."""
  console, beside = Console(highlight=False), Console(stderr=True, highlight=False)
  if not console.is_terminal:
    for line in (head, *cells):
      print("\t".join(line))
    for note in notes:
      beside.print(note, markup=False, soft_wrap=True)
    return
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  for i, name in enumerate(head):
    table.add_column(name, justify="left" if i < WORDS else "right", overflow="fold")
  for line in cells:
    table.add_row(*line)
  console.print(table, markup=False)
  for note in notes:
    console.print(note, markup=False)


def cells_of(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
  """In the order given."""
  largest = totals(rows)["largest"]
  for row in rows:
    share = f"{row.lower / largest:.0%}" if largest > 0 else ""
    yield (*_names(row), norm(row), f"{row.frobenius:.4g}", f"{row.stable_rank:.3g}", share)


def cells_of_diff(pairs: Sequence[tuple[Row | None, Row | None]]) -> Iterator[tuple[str, ...]]:
  """Of the same operator in two checkpoints; None where it is in one alone."""
  for before, after in pairs:
    one = after or before
    if one is None:
      continue
    ratio = "–"
    if before is not None and after is not None and before.lower > 0:
      ratio = f"{after.lower / before.lower:.4g}"
    yield (*_names(one), *(norm(x) if x else "–" for x in (before, after)), ratio)


def norm(row: Row) -> str:
  """Both ends, or one number if they agree in five digits, or what is known from below."""
  if math.isnan(row.lower):
    return "not finite"
  if row.upper is None:
    return f"≈ {row.lower:.5g}"
  lower, upper = f"{row.lower:.5g}", f"{row.upper:.5g}"
  return lower if lower == upper else f"{lower} … {upper}"


def summary(rows: Sequence[Row]) -> str:
  """One line."""
  found = totals(rows)
  counts = f"{found['operators']} operators in {found['leaves']} leaves, {found['parameters']:,}"
  norms = f"Σσ₁² {found['sum_of_squared_norms']:.5g}, Frobenius {found['frobenius']:.5g}"
  return f"{counts} parameters; largest σ₁ {found['largest']:.5g}, {norms}."


def print_json(contents: Mapping[str, Any]) -> None:
  """Numbers that are not finite as strings, which JSON has not."""
  print(json.dumps(_finite(contents), indent=1, ensure_ascii=False))


def _finite(x: Any) -> Any:
  if isinstance(x, float):
    return x if abs(x) < float("inf") else str(x)
  if isinstance(x, Row):
    return _finite(x._asdict())
  if isinstance(x, Mapping):
    return {key: _finite(value) for key, value in x.items()}
  if isinstance(x, list | tuple):
    return [_finite(value) for value in x]
  return x


def _names(row: Row) -> tuple[str, str, str]:
  shape = "×".join(map(str, row.shape))
  return row.path, row.operator + (f" ×{row.copies}" if row.copies > 1 else ""), shape
