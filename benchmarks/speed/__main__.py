"""``python -m benchmarks.speed BENCHMARK …``: runs one benchmark, writes JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.speed import (
  certify,
  convolutions,
  gpu,
  norms,
  parametrizations,
  spectral_norm,
  update,
)
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
  convolutions.add_arguments(what.add_parser("convolutions"))
  certify.add_arguments(what.add_parser("certify"))
  parametrizations.add_arguments(what.add_parser("parametrizations"))
  accelerator = what.add_parser("gpu", help="all that is claimed about accelerators")
  accelerator.add_argument("--quick", action="store_true", help="toy sizes, without tests")
  for sub in what.choices.values():
    sub.add_argument("--out", type=Path, help="write the JSON here")
  args = parser.parse_args()
  env = environment()
  special = {
    "convolutions": _convolutions,
    "certify": _certify,
    "parametrizations": _parametrizations,
    "gpu": _gpu,
  }
  results = special.get(args.benchmark, _sizes)(args)
  text = json.dumps({"environment": env, "results": results}, indent=1)
  if args.out:
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n")
  else:
    print(text)


def _convolutions(args: argparse.Namespace) -> list[dict]:
  options = ("quick", "blocks", "peers", "torch_python")
  result = convolutions.run(**{name: getattr(args, name) for name in options})
  convolutions.show(result)
  return [result]


def _certify(args: argparse.Namespace) -> list[dict]:
  result = certify.run(args.networks, args.limit, args.torch_python)
  certify.show(result)
  return [result]


def _parametrizations(args: argparse.Namespace) -> list[dict]:
  result = parametrizations.run(args.blocks, args.torch_python)
  parametrizations.show(result)
  return [result]


def _gpu(args: argparse.Namespace) -> list[dict]:
  if not args.quick and args.out is None:
    args.out = Path("benchmarks/results") / f"gpu_{gpu.card()}.json"
  return [gpu.run(quick=args.quick, tests=not args.quick)]


def _sizes(args: argparse.Namespace) -> list[dict]:
  runners = {"update": update.run, "norms": norms.run, "spectral-norm": spectral_norm.run}
  results = [runners[args.benchmark](size, args.blocks) for size in args.sizes]
  for result in results:
    _show(result)
  return results


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
