"""What lipjax knows of primitives and activations, as Markdown for the page `rules`.

Read from the tables that the bounds themselves use, so that the page cannot go stale.
"""

from __future__ import annotations

import sys
from collections import defaultdict

from lipjax.certify.primitives import RECORDS
from lipjax.certify.scalar.graph import NAMES
from lipjax.certify.scalar.table import ENTRIES

#: Values of a parameter at which the slopes of a function with one are shown.
EXAMPLES = {"elu": (1.0, 2.0), "celu": (1.0,), "leaky_relu": (0.01, -3.0), "squareplus": (4.0,)}


def _in_a_line(text: str | None) -> str:
  return " ".join((text or "").split()).replace("|", "\\|")


def _code(names) -> str:
  return ", ".join(f"`{name}`" for name in sorted(names))


def _table(heads: tuple[str, ...], rows) -> str:
  lines = [heads, ("---",) * len(heads), *rows]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def modules() -> dict[str, dict]:
  """For each module of records their rules, each with the primitives that it is for."""
  found: dict[str, dict] = defaultdict(lambda: defaultdict(list))
  for name, record in RECORDS.items():
    found[record.transfer.__module__][record.transfer].append(name)
  return dict(found)


def primitives() -> str:
  """A table for each module of rules, under the module's own first line."""
  parts = []
  for module, rules in sorted(modules().items()):
    rows = sorted((_code(names), _in_a_line(rule.__doc__)) for rule, names in rules.items())
    summary = (sys.modules[module].__doc__ or "").split("\n\n")[0]
    parts.append(f"**{_in_a_line(summary)}** (`{module}`)\n")
    parts.append(_table(("primitives", "constant"), rows))
  return "\n".join(parts)


def activations() -> str:
  """The functions whose slopes are tabulated."""
  rows = []
  for name, (entry, has_parameter) in ENTRIES.items():
    for value in EXAMPLES[name] if has_parameter else (None,):
      slopes = entry.slopes(value or 0.0)
      shown = f"`{name}`" if value is None else f"`{name}`, parameter {value:g}"
      lower, upper = (f"{slope:.9g}" for slope in slopes or ("", ""))
      rows.append((shown, lower, upper, f"{max(map(abs, slopes)):.9g}"))
  return _table(("function", "smallest slope", "largest slope", "constant"), sorted(rows))


def scalar_primitives() -> str:
  """What the search for slopes can look through."""
  return _code(NAMES) + "."
