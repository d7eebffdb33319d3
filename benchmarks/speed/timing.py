"""Fair timing: compile time apart, blocks in turn, medians of paired ratios."""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass
class Case:
  """A compiled step and what it carries from call to call.

  Args:
    step: ``carry -> carry``, already compiled; may donate its argument.
    carry: the first argument.
    compile_s: seconds that tracing and compiling took.
  """

  step: Callable[[Any], Any]
  carry: Any
  compile_s: float


def compile_case(
  fn: Callable[..., Any],
  carry: Any,
  *constants: Any,
  turns: Sequence[Any] = (),
  donate: bool = False,
) -> Case:
  """Traces and compiles ``fn(carry, *constants)``, timing that apart from running it.

  Calls take one argument more out of `turns`, in turn, where there are any.
  """
  begin = time.perf_counter()
  jitted = jax.jit(fn, donate_argnums=(0,) if donate else ())
  compiled = jitted.lower(carry, *constants, *turns[:1]).compile()
  seconds = time.perf_counter() - begin
  more = itertools.cycle([(x,) for x in turns] or [()])
  return Case(lambda carry: compiled(carry, *constants, *next(more)), carry, seconds)


def compare(
  cases: Mapping[str, Case], *, baseline: str, blocks: int, steps: int, keep_carry: bool
) -> dict[str, dict[str, float]]:
  """Times every case in blocks of `steps`, in turn, in an order that rotates.

  A block is warmed by three untimed steps, then its mean time a step counts as one
  sample, so that work done every tenth step weighs as it should. A ratio is the
  median over rounds of this case's block over the baseline's block of the same round,
  which cancels slow drifts of a shared machine.
  """
  samples: dict[str, list[float]] = {name: [] for name in cases}
  names = list(cases)
  for r in range(blocks + 1):
    for name in names[r % len(names) :] + names[: r % len(names)]:
      seconds = _block(cases[name], steps, keep_carry)
      if r:  # the first round warms caches and allocators
        samples[name].append(seconds)
  base = np.array(samples[baseline])
  rows = {}
  for name, values in samples.items():
    ratios = np.array(values) / base
    rows[name] = {
      "compile_s": cases[name].compile_s,
      "median_ms": float(np.median(values) * 1e3),
      f"ratio_to_{baseline}": float(np.median(ratios)),
      "ratio_quartiles": [float(q) for q in np.percentile(ratios, [25, 75])],
      "samples": len(values),
    }
  return rows


def _block(case: Case, steps: int, keep_carry: bool) -> float:
  carry = case.carry
  for _ in range(3):
    out = case.step(carry)
    carry = out if keep_carry else carry
  jax.block_until_ready(out)
  begin = time.perf_counter()
  for _ in range(steps):
    out = jax.block_until_ready(case.step(carry))
    carry = out if keep_carry else carry
  seconds = (time.perf_counter() - begin) / steps
  case.carry = carry
  return seconds


def environment() -> dict[str, Any]:
  """What the numbers were measured on."""
  import flax
  import jaxlib
  import optax

  device = jax.devices()[0]
  return {
    "date": time.strftime("%Y-%m-%d"),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "jaxlib": jaxlib.__version__,
    "flax": flax.__version__,
    "optax": optax.__version__,
    "numpy": np.__version__,
    "device": f"{device.platform}: {device.device_kind}",
    "device_count": jax.device_count(),
    "cores": os.cpu_count(),
    "load_average_at_start": os.getloadavg()[0],
    "machine": platform.machine(),
    "processor": _cpu_name(),
    "x64": bool(jax.config.jax_enable_x64),
  }


def _cpu_name() -> str:
  try:
    with open("/proc/cpuinfo") as lines:
      return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    return platform.processor()
