"""Lipschitz bounds of whole networks: how far apart the ends are, seconds, memory."""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import lipjax
from benchmarks.speed.certify_networks import LIPSDP, NETWORKS, PUBLISHED, Network
from lipjax.certify.lipschitz import bounds_by_engine
from lipjax.certify.pairs import margin_upper_bounds

#: Examples of the larger forward pass whose memory is compared with.
BATCH = 128
#: Calls after the first are timed for so long, at least so many of them and at most so many.
SECONDS, FEWEST, MOST = 2.0, 3, 50
#: Above this many running processes a core, times say little.
BUSY = 1.0
NOTE = (
  "Each task ran in a process of its own. peak_mb is its ru_maxrss, with JAX and compilation;"
  " 'over' is that minus the same of a process that only compiles and runs the forward pass;"
  " temp_mb is what the compiled program allocates beside inputs and outputs."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; all if none")
  parser.add_argument("--limit", type=int, default=1800, help="seconds for a task of a network")


def run(networks: list[str] | None = None, limit: int = 1800) -> dict[str, Any]:
  """A row for each network; those whose weights are not there are left out.

  Args:
    networks: names; all when None or empty.
    limit: seconds after which a task is stopped; the row then says so.
  """
  names = networks or list(NETWORKS)
  if unknown := set(names) - set(NETWORKS):
    msg = f"No networks {sorted(unknown)}; choose of {list(NETWORKS)}."
    raise ValueError(msg)
  if not LIPSDP.exists():
    names = [name for name in names if not name.startswith("LipSDP")]
  loads, rows = [os.getloadavg()[0]], {}
  for name in names:
    rows[name] = _row(name, {task: _in_process(name, task, limit) for task in TASKS})
    loads.append(os.getloadavg()[0])
    print(name, rows[name], file=sys.stderr)
  note = NOTE
  if max(loads) > BUSY * (os.cpu_count() or 1):
    note += f" The machine was shared: load averages up to {max(loads):.1f}, times are noisy."
  return {"benchmark": "certify", "note": note, "load_averages": loads, "rows": rows}


def _row(name: str, tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
  row = tasks | {"peers": tasks["values"].pop("peers", {})}
  row["peers"] |= {f"{key}, published": x for key, x in PUBLISHED.get(name, {}).items()}
  upper = tasks["upper"]
  for task, of in (("forward", "forward"), ("batch", f"forward_of_{BATCH}")):
    if "peak_mb" in upper and "peak_mb" in tasks[task]:
      upper[f"over_{of}_mb"] = upper["peak_mb"] - tasks[task]["peak_mb"]
  return row


def _in_process(name: str, task: str, limit: int) -> dict[str, Any]:
  """What a task of a network prints, run by itself: memory's peak is that of a process."""
  command = [sys.executable, "-m", "benchmarks.speed.certify", name, task]
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


def forward(network: Network, n: int = 1) -> dict[str, Any]:
  x = jnp.broadcast_to(network.x, (n, *network.x.shape[1:]))
  return _timed(jax.jit(network.apply), network.params, x)[1]


def upper(network: Network) -> dict[str, Any]:
  bound = jax.jit(lipjax.lipschitz_upper_bound(network.apply, argnums=1))
  return _timed(bound, network.params, network.x)[1]


def pairs(network: Network) -> dict[str, Any]:
  """Bounds of pairs, as shares of √2 times the one bound."""
  bounds = jax.jit(margin_upper_bounds(network.apply, argnums=1))
  found, times = _timed(bounds, network.params, network.x)
  whole = lipjax.lipschitz_upper_bound(network.apply, argnums=1)(network.params, network.x)
  found = np.asarray(found)[np.triu_indices(len(found), 1)] / (math.sqrt(2) * float(whole))
  shares = {"smallest": found.min(), "mean": found.mean(), "largest": found.max()}
  return times | {"over_root_two": {name: float(value) for name, value in shares.items()}}


def values(network: Network) -> dict[str, Any]:
  """All engines' bounds, the first call without jit, and the search from below."""
  begin = time.perf_counter()
  found = bounds_by_engine(network.apply, 1, (network.params, network.x))
  engines = {name: float(value) for name, value in found.items()}
  first, begin = time.perf_counter() - begin, time.perf_counter()
  search = lipjax.lipschitz_lower_bound(network.apply, argnums=1, **network.search)
  lower = float(search(network.params, network.x))
  peers = {}
  if network.matrices:
    norms = [np.linalg.norm(np.asarray(w, np.float64), 2) for w in network.matrices]
    peers["product of norms, SVD in float64"] = math.prod(norms)
  best = min(engines, key=engines.__getitem__)
  return {
    "parameters": sum(x.size for x in jax.tree.leaves(network.params)),
    "engines": engines,
    "method": best,
    "upper": engines[best],
    "lower": lower,
    "ratio": engines[best] / lower,
    "first_s": first,
    "lower_s": time.perf_counter() - begin,
    "search": network.search,
    "peers": peers,
  }


def _timed(fn: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
  """The value; seconds of the first call, compilation included, and the median of later ones."""
  begin = time.perf_counter()
  compiled = fn.lower(*args).compile()
  value = jax.block_until_ready(compiled(*args))
  first, samples = time.perf_counter() - begin, []
  while len(samples) < FEWEST or (sum(samples) < SECONDS and len(samples) < MOST):
    begin = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    samples.append(time.perf_counter() - begin)
  peak, memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, compiled.memory_analysis()
  found = {
    "first_s": first,
    "median_ms": float(np.median(samples) * 1e3),
    "samples": len(samples),
    # macOS counts bytes, Linux kilobytes.
    "peak_mb": peak / (1e6 if sys.platform == "darwin" else 1e3),
  }
  return value, found | ({} if memory is None else {"temp_mb": memory.temp_size_in_bytes / 1e6})


TASKS: dict[str, Callable[[Network], dict[str, Any]]] = {
  "forward": forward,
  "batch": lambda network: forward(network, BATCH),
  "upper": upper,
  "pairs": pairs,
  "values": values,
}


def show(result: dict[str, Any]) -> None:
  """Prints bounds, times and memory."""
  table = Table(title=f"certify: Lipschitz bounds; MB over the forward pass of 1 and of {BATCH}")
  columns = ("lower", "upper", "ratio", "engines", "pairs / √2 upper")
  for column in ("", *columns, "first call", "jitted: first", "then", "peak", "XLA"):
    table.add_column(column)
  for name, row in result["rows"].items():
    values, upper = row["values"], row["upper"]
    engines = (f"{key} {value:.4g}" for key, value in values.get("engines", {}).items())
    over = (upper.get(f"over_{of}_mb") for of in ("forward", f"forward_of_{BATCH}"))
    table.add_row(
      name,
      *(_text(values.get(key)) for key in ("lower", "upper", "ratio")),
      "\n".join(engines),
      _text(row["pairs"].get("over_root_two", {}).get("mean")),
      _text(values.get("first_s"), " s"),
      _text(upper.get("first_s"), " s"),
      _text(upper.get("median_ms"), " ms"),
      "\n".join(_text(x, " MB") for x in over),
      _text(upper.get("temp_mb"), " MB"),
    )
  console = Console(stderr=True, width=170)
  console.print(table)
  console.print(result["note"])


def _text(value: float | None, unit: str = "") -> str:
  return "–" if value is None else f"{value:.4g}{unit}"


if __name__ == "__main__":
  print(json.dumps(TASKS[sys.argv[2]](NETWORKS[sys.argv[1]]())))
