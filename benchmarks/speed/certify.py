"""Lipschitz bounds of whole networks: how far apart the ends are, seconds, memory, peers."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.speed import certify_networks
from benchmarks.speed.certify_digits import DIGITS
from benchmarks.speed.certify_networks import LIPSDP, PUBLISHED
from benchmarks.speed.certify_tasks import BATCH, TASKS, auto_lirpa

NETWORKS = certify_networks.NETWORKS | DIGITS
#: Above this many running processes a core, times say little.
BUSY = 1.0
NOTE = (
  "Each task ran in a process of its own. peak_mb is its ru_maxrss, with JAX and compilation;"
  " 'over' is that minus the same of a process that only compiles and runs the forward pass;"
  " temp_mb is what the compiled program allocates beside inputs and outputs. LipSDP-Neuron's"
  " numbers are its solver's, ECLipsE-Fast's are float64's: neither is proved with rounding."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; all if none")
  parser.add_argument("--limit", type=int, default=1800, help="seconds for a task of a network")
  parser.add_argument(
    "--torch-python", help="a Python with PyTorch and auto_LiRPA, to run that too"
  )


def run(
  networks: list[str] | None = None, limit: int = 1800, torch_python: str | None = None
) -> dict[str, Any]:
  """A row for each network; those whose weights or data are not there are left out.

  Args:
    networks: names; all when None or empty.
    limit: seconds after which a task is stopped; the row then says so.
    torch_python: an interpreter with PyTorch and auto_LiRPA; that is left out when None.
  """
  names = networks or list(NETWORKS)
  if unknown := set(names) - set(NETWORKS):
    msg = f"No networks {sorted(unknown)}; choose of {list(NETWORKS)}."
    raise ValueError(msg)
  if not LIPSDP.exists():
    names = [name for name in names if not name.startswith("LipSDP")]
  if importlib.util.find_spec("sklearn") is None:
    names = [name for name in names if name not in DIGITS]
  loads, rows = [os.getloadavg()[0]], {}
  for name in names:
    tasks = {task: _in_process(name, task, limit) for task in TASKS}
    if torch_python is not None:
      tasks["auto_LiRPA"] = _in_process(name, "auto_LiRPA", limit, torch_python)
    rows[name] = _row(name, tasks)
    loads.append(os.getloadavg()[0])
    print(name, rows[name], file=sys.stderr)
  note = NOTE
  if max(loads) > BUSY * (os.cpu_count() or 1):
    note += f" The machine was shared: load averages up to {max(loads):.1f}, times are noisy."
  return {"benchmark": "certify", "note": note, "load_averages": loads, "rows": rows}


def _row(name: str, tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """Without what says nothing of such a network."""
  row = {task: found for task, found in tasks.items() if found}
  for key, bound in PUBLISHED.get(name, {}).items():
    row["peers"][f"{key}, published"] = {"bound": bound}
  upper, lower = tasks["upper"], tasks["values"].get("lower")
  for found in (upper, tasks["upper_fast"], tasks["upper_tight"]):
    if lower and "upper" in found:
      found["ratio"] = found["upper"] / lower
  for task, of in (("forward", "forward"), ("batch", f"forward_of_{BATCH}")):
    if "peak_mb" in upper and "peak_mb" in tasks[task]:
      upper[f"over_{of}_mb"] = upper["peak_mb"] - tasks[task]["peak_mb"]
  return row


def _in_process(name: str, task: str, limit: int, *options: str) -> dict[str, Any]:
  """What a task of a network prints, run by itself: memory's peak is that of a process."""
  command = [sys.executable, "-m", "benchmarks.speed.certify", name, task, *options]
  root = Path(__file__).parents[2]
  try:
    done = subprocess.run(
      command, capture_output=True, text=True, cwd=root, check=False, timeout=limit
    )
  except subprocess.TimeoutExpired:
    return {"stopped_after_s": limit}
  if done.returncode:
    msg = f"{name}, {task}: {done.stderr[-3000:]}"
    raise RuntimeError(msg)
  return json.loads(done.stdout.splitlines()[-1])


def show(result: dict[str, Any]) -> None:
  """Prints bounds, times and memory, then peers, then bounds on balls."""
  console = Console(stderr=True, width=170)
  for table in (_everywhere(result["rows"]), _peers(result["rows"]), _on_balls(result["rows"])):
    if table.row_count:
      console.print(table)
  console.print(result["note"])


def _everywhere(rows: Mapping[str, Any]) -> Table:
  table = Table(title=f"certify: Lipschitz bounds; MB over the forward pass of 1 and of {BATCH}")
  columns = ("lower", "upper", "ratio", "engines", "fast", "tight", "pairs / √2 upper")
  for column in ("", *columns, "first call", "jitted: first", "then", "peak", "XLA"):
    table.add_column(column)
  for name, row in rows.items():
    values, upper = row["values"], row.get("upper")
    if upper is None:  # not Lipschitz on all inputs
      continue
    engines = (f"{key} {value:.4g}" for key, value in values.get("engines", {}).items())
    over = (upper.get(f"over_{of}_mb") for of in ("forward", f"forward_of_{BATCH}"))
    table.add_row(
      name,
      *(_text(values.get(key)) for key in ("lower", "upper", "ratio")),
      "\n".join(engines),
      *("\n".join(_bound_and_times(row[f"upper_{effort}"])) for effort in ("fast", "tight")),
      _text(row["pairs"].get("over_root_two", {}).get("mean")),
      _text(values.get("first_s"), " s"),
      _text(upper.get("first_s"), " s"),
      _text(upper.get("median_ms"), " ms"),
      "\n".join(_text(x, " MB") for x in over),
      _text(upper.get("temp_mb"), " MB"),
    )
  return table


def _peers(rows: Mapping[str, Any]) -> Table:
  table = Table(title="peers on all inputs")
  for column in ("", "peer", "bound", "× lower", "seconds"):
    table.add_column(column)
  for name, row in rows.items():
    lower = row["values"].get("lower", math.nan)
    for peer, found in _found(row.get("peers", {})):
      ratio = _text(found["bound"] / lower) if "bound" in found else found["left_out"]
      table.add_row(name, peer, _text(found.get("bound")), ratio, _text(found.get("seconds")))
  return table


def _on_balls(rows: Mapping[str, Any]) -> Table:
  table = Table(title="on balls around an example: bounds, and how many times the slope found")
  for column in ("", "radius", "lower", "default", "tight", "peers"):
    table.add_column(column)
  for name, row in rows.items():
    lirpa = row.get("auto_LiRPA", {}).get("on_balls", {})
    for radius, found in _found(row.get("on_balls", {})):
      peers = dict(_found(row.get("peers_on_balls", {}).get(radius, {})))
      peers |= {"auto_LiRPA": lirpa[radius]} if radius in lirpa else {}
      of = lambda effort, found=found: "\n".join(_bound_and_times(found.get(effort, {})))
      of_efforts = map(of, ("default", "tight"))
      of_peers = (f"{peer} {_bound_or_why(x, found['lower'])}" for peer, x in peers.items())
      table.add_row(name, radius, _text(found["lower"]), *of_efforts, "\n".join(of_peers))
  return table


def _found(rows: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
  """Rows that are rows, and not how long a task was given."""
  return ((key, x) for key, x in rows.items() if isinstance(x, dict))


def _bound_and_times(found: dict[str, Any]) -> Iterator[str]:
  yield _text(found.get("upper")) + (f" = {found['ratio']:.4g}×" if "ratio" in found else "")
  yield f"{_text(found.get('first_s'), ' s')}, {_text(found.get('median_ms'), ' ms')}"


def _bound_or_why(found: dict[str, Any], lower: float) -> str:
  if "bound" not in found:
    return f"left out: {found['left_out']}"
  return f"{found['bound']:.4g} = {found['bound'] / lower:.4g}×, {found['seconds']:.2g} s"


def _text(value: float | None, unit: str = "") -> str:
  return "–" if value is None else f"{value:.4g}{unit}"


def main() -> None:
  """One task of one network, as JSON."""
  name, task, *options = sys.argv[1:]
  measure = auto_lirpa if task == "auto_LiRPA" else TASKS[task]
  print(json.dumps(measure(NETWORKS[name](), *options)))


if __name__ == "__main__":
  main()
