"""Tables of pages that are drawn from files."""

from __future__ import annotations

from collections.abc import Iterable


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  """Cells are Markdown, without bars."""
  lines = [tuple(head)]
  lines += [("---",) * len(lines[0]), *map(tuple, rows)]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
