"""``python -m lipjax report``: the norms of a checkpoint's layers, largest first."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lipjax.checkpoints.checkpoint import Checkpoint, CheckpointError, size_of
from lipjax.checkpoints.opening import open_checkpoint
from lipjax.commands import report_products, report_rows
from lipjax.commands.demo import at_least
from lipjax.commands.report_overrides import override
from lipjax.commands.report_rows import Chosen, Row

SUMMARY = "print the spectral norms of a checkpoint's layers, largest first"
DESCRIPTION = """Opens an orbax checkpoint (also a manager's root, one with several items, one saved
on more devices), safetensors (one file, shards, or their index), Flax msgpack or .npz. Nothing is
unpickled, and arrays are read one by one. Prints for each layer an interval around its largest
singular value, or an estimate (≈) of large matrices, the Frobenius norm, the stable rank and the
share of the largest norm. Norms of convolutions are those of their reshaped kernels unless
--override says the size of the input."""
EPILOG = """exit status: 0; 1 when a checkpoint cannot be read, or holds nothing to report; 2 for
wrong arguments. Layers that could not be told, or hold numbers that are not finite, are listed and
change nothing."""


def add_parser(commands: Any) -> None:
  """Adds ``report`` to the command line."""
  parser = commands.add_parser("report", help=SUMMARY, description=DESCRIPTION, epilog=EPILOG)
  add = parser.add_argument
  add("path", type=Path, metavar="PATH", help="a file or a folder")
  of_one_or_two = parser.add_mutually_exclusive_group()
  of_one_or_two.add_argument(
    "--diff", type=Path, metavar="OTHER", help="a later checkpoint: which norms moved"
  )
  of_one_or_two.add_argument(
    "--figure", type=Path, metavar="FILE", help="draw the singular values, as .png or .svg"
  )
  add("--item", help="of orbax: ITEM, STEP or STEP/ITEM (default: the latest step)")
  layouts = ("auto", *report_rows.LAYOUTS)
  add("--layout", choices=layouts, default="auto", help="default: the one that knows most leaves")
  add(
    "--override",
    type=override,
    action="append",
    default=[],
    metavar="REGEX=OPERATOR",
    help="what a leaf is, as in 'conv/kernel=Convolution((32, 32))' or 'gate=None'",
  )
  report_products.add_arguments(add)
  add("--match", type=_regex, default="", metavar="REGEX", help="only paths in which it is found")
  add("--all", action="store_true", help="what is outside of params, as an optimizer's state, too")
  add("--top", type=at_least(1), metavar="N", help="print the N largest only")
  add("--certify", action="store_true", help="bounds from above of large matrices too; slow")
  add("--json", action="store_true", help="print JSON")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
  """Reads, measures and prints."""
  try:
    return _reported(args)
  except CheckpointError as error:
    print(f"lipjax report: {error}", file=sys.stderr)
    return 1
  except BrokenPipeError:  # as of head
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _reported(args: argparse.Namespace) -> int:
  from lipjax.commands import report_figure, report_table

  checkpoint, chosen, rows = _measured(args.path, args)
  if args.diff is not None:
    return _difference(args, rows, chosen)
  if args.figure is not None:
    report_figure.draw(checkpoint, chosen.operators, rows, args.figure)
  if args.json:
    contents = {"path": str(args.path), "format": checkpoint.format, "layout": chosen.layout}
    contents |= {"operators": rows[: args.top], "totals": report_table.totals(rows)}
    report_table.print_json(contents | {"not_told": chosen.problems})
    return 0
  notes = [f"{args.path}: {checkpoint.format}, layout {chosen.layout}.", report_table.summary(rows)]
  cells = list(report_table.cells_of(rows))[: args.top]
  report_table.show(report_table.HEAD, cells, [*notes, *_notes(rows, chosen)])
  return 0


def _difference(args: argparse.Namespace, before: list[Row], chosen: Chosen) -> int:
  from lipjax.commands import report_table

  _, of_other, after = _measured(args.diff, args)
  by_path = [{row.path: row for row in rows} for rows in (before, after)]
  paths = dict.fromkeys([row.path for row in (*after, *before)])
  pairs = [(by_path[0].get(path), by_path[1].get(path)) for path in paths]
  pairs.sort(key=lambda pair: -_moved(*pair))
  problems = chosen.problems | of_other.problems
  if args.json:
    rows = [{"before": a, "after": b} for a, b in pairs[: args.top]]
    files = {"before": str(args.path), "after": str(args.diff)}
    report_table.print_json({"files": files, "rows": rows, "not_told": problems})
    return 0
  cells = list(report_table.cells_of_diff(pairs))[: args.top]
  notes = [
    f"{args.path}: {report_table.summary(before)}",
    f"{args.diff}: {report_table.summary(after)}",
  ]
  notes += _notes([*before, *after], of_other._replace(problems=problems))
  report_table.show(report_table.HEAD_OF_DIFF, cells, notes)
  return 0


def _moved(before: Row | None, after: Row | None) -> float:
  """By how much, for the order; what is in one checkpoint alone comes first."""
  if before is None or after is None or not (before.lower > 0 and after.lower > 0):
    return math.inf
  return abs(math.log(after.lower / before.lower))


def _measured(path: Path, args: argparse.Namespace) -> tuple[Checkpoint, Chosen, list[Row]]:
  checkpoint = open_checkpoint(path, args.item)
  chosen = report_rows.choose(
    checkpoint, args.layout, dict(args.override), args.match, has_all=args.all
  )
  if not chosen.operators:
    what = f"no linear maps among {len(checkpoint.leaves)} arrays"
    tips = " ".join(list(chosen.problems.values())[:3])
    msg = f"{path}: {what}. {tips}" if tips else f"{path}: {what}."
    raise CheckpointError(msg)
  products = report_products.choose(checkpoint, chosen, {"lora": args.lora, "qk": args.qk})
  size = sum(size_of(checkpoint.leaves[x]) for x in chosen.operators)
  with _progress(str(path), size) as advance:
    rows = report_rows.measure(
      checkpoint, chosen.operators, has_bounds=args.certify, advance=advance
    )
    rows = (*rows, *report_products.measure(checkpoint, products))
    # What is not finite first: it is the worst.
    found = sorted(rows, key=lambda row: (not math.isnan(row.lower), -row.lower))
  return checkpoint, chosen, found


@contextlib.contextmanager
def _progress(title: str, n_bytes: int) -> Iterator[Callable[[int], None]]:
  """A bar, on a terminal."""
  from rich.console import Console
  from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

  console = Console(stderr=True)
  columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
  with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
    task = bar.add_task(title, total=n_bytes)
    yield lambda n: bar.advance(task, n)


def _notes(rows: list[Row], chosen: Chosen) -> Iterator[str]:
  if any(row.upper is None for row in rows):
    yield "≈: an estimate from below, near 1e-5; --certify bounds leaves from above too."
  if any(row.operator.startswith("ReshapedKernel") for row in rows):
    yield "ReshapedKernel: the flattened kernel's norm, NOT that of the convolution."
  if chosen.n_outside:
    yield f"Left out: {chosen.n_outside} leaves outside of params (--all)."
  if chosen.problems:
    yield f"Not told ({len(chosen.problems)}):"
    yield from (f"  {text}" for text in chosen.problems.values())


def _regex(text: str) -> str:
  try:
    re.compile(text)
  except re.error as error:
    msg = f"{text!r} is no regular expression: {error}"
    raise argparse.ArgumentTypeError(msg) from error
  return text
