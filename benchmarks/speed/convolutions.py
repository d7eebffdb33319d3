"""Certified intervals of convolutions against their exact norms, and against peers."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
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
from benchmarks.speed.convolutions_peers import LIP4CONV, Lip4Conv, fft_svd, reshaped_norm
from benchmarks.speed.convolutions_rows import OTHERS, QUICK, RESNET18, Row
from benchmarks.speed.convolutions_truth import exact_norm
from lipjax.measure.convolution_bounds import convolution_upper_bounds

#: A block takes about this long, and at most this many calls.
BLOCK_SECONDS, BLOCK_STEPS = 0.1, 20
#: A call as slow as this is timed in so many rounds at most.
SLOW_ROUNDS = {0.3: 5, 2.0: 0}

#: So many calls, to the value and the mean seconds of one.
Block = Callable[[int], dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--quick", action="store_true", help="a few small convolutions")
  parser.add_argument("--blocks", type=int, help="samples of each case")
  parser.add_argument("--peers", type=Path, help="a checkout of blaisedelattre/lip4conv")
  parser.add_argument("--torch-python", default=sys.executable, help="a Python with PyTorch")


def run(
  *,
  quick: bool = False,
  blocks: int | None = None,
  peers: Path | None = None,
  torch_python: str = sys.executable,
) -> dict[str, Any]:
  """Rows of errors, times and memory; lip4conv's where a checkout is given."""
  rows = QUICK if quick else RESNET18 | OTHERS
  blocks = blocks or (2 if quick else 15)
  result = {"benchmark": "convolutions", "rows": {}}
  with contextlib.ExitStack() as stack:
    lip4conv = stack.enter_context(Lip4Conv(peers, torch_python)) if peers else None
    result["peers"] = lip4conv.about if lip4conv else {}
    for name, row in rows.items():
      measured = _measure(row, row.kernel(name), blocks, lip4conv)
      result["rows"][name] = measured
      ours = measured["lipjax"]
      text = (
        f"{ours['error']:+.1e} {ours['median_ms']:.3g} ms",
        *(
          f"{peer} {case['error']:+.1e} ×{case.get('ratio_to_upper', 0):.2g}"
          for peer, case in measured["peers"].items()
        ),
      )
      print(name, *text, sep="; ", file=sys.stderr)
  result["summary"] = summary(result["rows"])
  result["load_average_at_end"] = os.getloadavg()[0]
  return result


def _measure(
  row: Row, kernel: np.ndarray, rounds: int, lip4conv: Lip4Conv | None
) -> dict[str, Any]:
  truth = exact_norm(row, kernel)
  operator = row.operator()
  w = jnp.asarray(kernel)
  about, blocks = {}, {}

  def ours_upper(w):
    return jnp.min(jnp.stack(list(convolution_upper_bounds(operator, w).values())))

  def ours_interval(w):
    return lipjax.spectral_norm_bounds({"w": w}, layout={"w": operator})["w"]

  for name, fn in (
    ("upper", ours_upper),
    ("interval", ours_interval),
    ("FFT and SVD", lambda w: fft_svd(row, w)),
  ):
    compiled, about[name] = _compile(fn, w)
    blocks[name] = _jax_block(compiled, w)
  for name, request in (lip4conv.requests(row, kernel) if lip4conv else {}).items():
    blocks[name] = functools.partial(lip4conv.block, request)
  values, times = _times(blocks, rounds)
  interval = values.pop("interval")
  values["reshaped kernel"] = reshaped_norm(kernel)
  # In Python's floats: JAX would round the exact norm to float32 before it compares.
  norm, values = truth["norm"], {name: float(value) for name, value in values.items()}
  lower, upper = float(interval.lower), float(interval.upper)
  cases = {
    name: {"value": value, "error": value / norm - 1, "below": value < norm}
    | about.get(name, {})
    | times.get(name, {})
    for name, value in values.items()
  }
  ours = {
    "method": interval.names,
    "holds": lower <= norm <= min(upper, values["upper"]),
    "lower": lower,
    "lower_error": lower / norm - 1,
    "interval_upper": upper,
    **cases.pop("upper"),
  }
  of_interval = about["interval"] | times["interval"]
  return {
    "convolution": vars(row) | {"circle": row.circle, "outputs": row.outputs},
    "truth": truth,
    "lipjax": ours | {f"interval_{key}": value for key, value in of_interval.items()},
    "peers": cases,
  }


def _compile(fn: Callable[..., Any], w: jax.Array) -> tuple[Callable[..., Any], dict[str, float]]:
  begin = time.perf_counter()
  compiled = jax.jit(fn).lower(w).compile()
  seconds, memory = time.perf_counter() - begin, compiled.memory_analysis()
  temp = {} if memory is None else {"temp_bytes": memory.temp_size_in_bytes}
  return compiled, {"compile_s": seconds} | temp


def _jax_block(compiled: Callable[..., Any], w: jax.Array) -> Block:
  def block(steps):
    if steps > 1:
      jax.block_until_ready(compiled(w))
    begin = time.perf_counter()
    for _ in range(steps):
      value = jax.block_until_ready(compiled(w))
    return {"value": value, "seconds": (time.perf_counter() - begin) / steps}

  return block


def _times(blocks: dict[str, Block], rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
  """The values, and medians of blocks in turn, in an order that rotates.

  A ratio is the median over rounds of this case's block by that of our upper bound in the
  same round. Calls from a millisecond to many seconds meet here, so a block's number of
  calls depends on the case, and slow ones run in the first rounds only; the slowest
  have one sample, from before them.
  """
  values, steps, turns, samples = {}, {}, {}, {}
  for name, block in blocks.items():
    # The first call warms, which takes lip4conv seconds.
    values[name], seconds = block(1)["value"], block(1)["seconds"]
    steps[name] = min(max(round(BLOCK_SECONDS / seconds), 1), BLOCK_STEPS)
    turns[name] = min([rounds, *(n for slow, n in SLOW_ROUNDS.items() if seconds >= slow)])
    samples[name] = [] if turns[name] else [seconds]
  names = list(blocks)
  for r in range(rounds):
    for name in names[r % len(names) :] + names[: r % len(names)]:
      if r < turns[name]:
        samples[name].append(blocks[name](steps[name])["seconds"])
  times = {
    name: {
      "median_ms": float(np.median(seconds) * 1e3),
      "quartiles_ms": [float(q) * 1e3 for q in np.percentile(seconds, [25, 75])],
      "ratio_to_upper": float(np.median(_ratios(seconds, samples["upper"]))),
      "samples": len(seconds),
    }
    for name, seconds in samples.items()
  }
  return values, times


def _ratios(seconds: list[float], base: list[float]) -> np.ndarray:
  """Of the same rounds, or by the median where there was one call only."""
  n = min(len(seconds), len(base))
  return np.array(seconds[:n]) / (base[:n] if n > 1 else np.median(base))


def summary(rows: dict[str, Any]) -> dict[str, Any]:
  """Violations first; then every peer over the rows that it has, and ResNet-18's sums."""
  found = {
    "violated": [name for name, row in rows.items() if not row["lipjax"]["holds"]],
    "largest_error": max(row["lipjax"]["error"] for row in rows.values()),
    "resnet18": {"lipjax": _resnet18(rows, lambda row: row["lipjax"])},
    "peers": {},
  }
  for peer in ("reshaped kernel", "FFT and SVD", *LIP4CONV):
    pairs = [(r["lipjax"], r["peers"][peer]) for r in rows.values() if peer in r["peers"]]
    if not pairs:
      continue
    ratios = [theirs["ratio_to_upper"] for _, theirs in pairs if "ratio_to_upper" in theirs]
    found["peers"][peer] = {
      "rows": len(pairs),
      "below": sum(theirs["below"] for _, theirs in pairs),
      "errors": [f(theirs["error"] for _, theirs in pairs) for f in (min, max)],
      "lipjax_errors": [f(ours["error"] for ours, _ in pairs) for f in (min, max)],
      # A value below the norm bounds nothing, however near it is.
      "tighter_than_lipjax": sum(0 <= theirs["error"] < ours["error"] for ours, theirs in pairs),
    }
    if ratios:
      found["peers"][peer] |= {
        "faster_than_lipjax": sum(ratio < 1 for ratio in ratios),
        "geometric_mean_ratio": math.exp(np.mean(np.log(ratios))),
      }
      found["resnet18"][peer] = _resnet18(rows, lambda row: row["peers"].get(peer))  # noqa: B023
  found["resnet18"] = {name: sums for name, sums in found["resnet18"].items() if sums["layers"]}
  return found


def _resnet18(rows: dict[str, Any], case_of: Callable[[Any], Any]) -> dict[str, Any]:
  """Milliseconds for those of the 20 layers that the case has, and ours for the same."""
  counted = [(row["convolution"]["count"], row) for row in rows.values()]
  counted = [(n, row) for n, row in counted if n and case_of(row)]
  total = lambda case: sum(n * case(row)["median_ms"] for n, row in counted)
  return {
    "layers": sum(n for n, _ in counted),
    "total_ms": total(case_of),
    "lipjax_total_ms": total(lambda row: row["lipjax"]),
  }


def show(result: dict[str, Any]) -> None:
  """Prints errors and times of every row, and the sums."""
  names = [*LIP4CONV, "FFT and SVD", "reshaped kernel"]
  names = [n for n in names if any(n in row["peers"] for row in result["rows"].values())]
  console = Console(stderr=True, width=190)
  table = Table(title="convolutions: errors over the exact norm; milliseconds, times ours; MB")
  for column in ("", "n", "exact", "method", "lower", "upper", "interval", *names):
    table.add_column(column)
  for name, row in result["rows"].items():
    ours = row["lipjax"]
    table.add_row(
      name,
      str(row["convolution"]["count"] or ""),
      f"{row['truth']['norm']:.6f}",
      ours["method"] + ("" if ours["holds"] else " [red]VIOLATED[/red]"),
      _percent(ours["lower_error"]),
      _text(ours),
      f"{ours['interval_median_ms']:.3g} ms",
      *(_text(row["peers"].get(peer)) for peer in names),
    )
  console.print(table)
  console.print(result["summary"])


def _text(case: dict[str, Any] | None) -> str:
  if case is None:
    return ""
  text = ("[red]below[/red] " if case["below"] else "") + _percent(case["error"])
  if "median_ms" in case:
    text += f"\n{case['median_ms']:.3g} ms"
  ratio = case.get("ratio_to_upper", 1)
  text += f" ×{ratio:.2g}" if ratio != 1 else ""
  return text + (f"\n{case['temp_bytes'] / 1e6:.1f} MB" if "temp_bytes" in case else "")


def _percent(error: float) -> str:
  return f"{100 * error:+.2g} %" if abs(error) < 1e-2 else f"{100 * error:+.3g} %"
