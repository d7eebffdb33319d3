"""``python -m benchmarks.speed update|norms|spectral-norm …``: runs one benchmark, writes JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.speed import norms, spectral_norm, update
from benchmarks.speed.timing import environment
from benchmarks.speed.trees import SHAPES


def main() -> None:
  parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
  what = parser.add_subparsers(dest="benchmark", required=True)
  kinds = (("update", sorted(SHAPES), str), ("norms", None, int), ("spectral-norm", None, int))
  for name, choices, kind in kinds:
    sub = what.add_parser(name)
    sub.add_argument("sizes", nargs="+", choices=choices, type=kind)
    sub.add_argument("--blocks", type=int, help="samples of each case")
    sub.add_argument("--out", type=Path, help="write the JSON here")
  args = parser.parse_args()
  env = environment()
  runners = {"update": update.run, "norms": norms.run, "spectral-norm": spectral_norm.run}
  runner = runners[args.benchmark]
  results = [runner(size, args.blocks) for size in args.sizes]
  for result in results:
    _show(result)
  text = json.dumps({"environment": env, "results": results}, indent=1)
  if args.out:
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n")
  else:
    print(text)


def _show(result: dict) -> None:
  tables = (
    {"": result["rows"]}
    if "rows" in result
    else {kind: result[kind] for kind in ("gaussian", "near_tie")}
  )
  for kind, rows in tables.items():
    table = Table(title=f"{result['benchmark']} {result.get('tree', result.get('size'))} {kind}")
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    for column in ("case", *columns):
      table.add_column(column)
    for name, row in rows.items():
      table.add_row(name, *(_text(row.get(column, "")) for column in columns))
    Console(stderr=True, width=150).print(table)


def _text(value: object) -> str:
  if isinstance(value, list):
    return "–".join(_text(v) for v in value)
  return f"{value:.3g}" if isinstance(value, float) else str(value)


main()
