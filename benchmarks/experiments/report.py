"""What every experiment shows and writes: progress, table, figure and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.speed.timing import environment
from lipjax.commands.demo_statistics import Estimate, difference, verdict

# Read before the experiment loads the machine itself.
LOAD_AT_START = os.getloadavg()[0]


def progress() -> Progress:
  """A bar of steps; one task a method."""
  columns = (TextColumn("{task.description:44}"), BarColumn(), MofNCompleteColumn())
  return Progress(*columns, TextColumn("steps"), TimeElapsedColumn())


def table(title: str, headers: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
  """One row a method; the first column is its name."""
  grid = Table(box=box.SIMPLE_HEAD, title=title)
  grid.add_column("method", justify="left", no_wrap=True)
  for header in headers:
    grid.add_column(header, justify="right")
  for name, cells in rows.items():
    grid.add_row(f"[bold]{name}[/]", *cells)
  return grid


def cell(value: Estimate, digits: int = 2) -> str:
  """A mean, and its standard error after it."""
  return f"{value.mean:.{digits}f} [dim]±{value.error:.{digits}f}[/]"


def comparison(name: str, ours: Estimate, theirs: Estimate, digits: int = 1) -> str:
  """``name +1.2 ± 0.3 (higher)``: a difference, and whether it is more than noise."""
  delta = difference(ours, theirs)
  return f"{name} {delta.mean:+.{digits}f} ± {delta.error:.{digits}f} ({verdict(delta)})"


def show(grid: Table, sentences: Sequence[str], notes: Sequence[str]) -> None:
  """Prints the table, what follows from it, and what the numbers are and are not."""
  console = Console(highlight=False, width=max(100, Console().width))
  console.print()
  console.print(grid)
  for sentence in sentences:
    console.print(sentence)
  console.print()
  for note in notes:
    console.print(f"· {note}", style="dim")


def new_figure(n_columns: int, n_rows: int = 1) -> tuple[Any, Any]:
  """A figure with panels side by side, and its axes, row by row."""
  from matplotlib.figure import Figure

  # A Figure of its own needs neither pyplot nor a display.
  figure = Figure(figsize=(5.6 * n_columns, 4.6 * n_rows), layout="constrained", dpi=150)
  panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
  for axes in panels:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
  return figure, panels


def legend_below(axes: Any) -> None:
  """A legend under the panel, where it hides nothing."""
  axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def write(folder: Path, name: str, figure: Any, contents: Mapping[str, Any]) -> None:
  """Writes ``name.png`` and ``name.json``, the latter with the environment."""
  folder.mkdir(parents=True, exist_ok=True)
  figure.savefig(folder / f"{name}.png")
  write_json(folder, name, contents)
  print(f"\nWrote {folder / name}.png and {folder / name}.json.")


def write_json(folder: Path, name: str, contents: Mapping[str, Any]) -> None:
  """Writes ``name.json`` with the environment."""
  env = environment() | {"load_average_at_start": LOAD_AT_START}
  text = json.dumps({"environment": env, **contents}, indent=1, default=_plain)
  (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
  return np.asarray(value).tolist()
