"""What is measured of a network, each task in a process of its own: a JSON of numbers."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lipjax
from benchmarks.speed import certify_peers as peers_of
from benchmarks.speed.certify_networks import Network
from lipjax.certify.bounds.effort import Effort
from lipjax.certify.compiled import on_arrays
from lipjax.certify.facts import Facts, Range, ScalarPart
from lipjax.certify.graph import Graph
from lipjax.certify.lipschitz import bounds_by_engine
from lipjax.certify.pairs import margin_upper_bounds

#: Examples of the larger forward pass whose memory is compared with.
BATCH = 128
#: Calls after the first are timed for so long, at least so many of them, but for long ones, and at
#: most so many.
SECONDS, FEWEST, MOST, LONG = 2.0, 3, 50, 30.0


def forward(network: Network, n: int = 1) -> dict[str, Any]:
  x = jnp.broadcast_to(network.x, (n, *network.x.shape[1:]))
  return _timed(jax.jit(network.apply), network.params, x)[1] | _peak()


def upper(network: Network, effort: Effort = "default") -> dict[str, Any]:
  """The bound, jitted."""
  if not network.is_lipschitz:
    return {}
  bound = jax.jit(lipjax.lipschitz_upper_bound(network.apply, argnums=1, effort=effort))
  value, times = _timed(bound, network.params, network.x)
  return {"upper": float(value)} | times | _peak()


def pairs(network: Network) -> dict[str, Any]:
  """Bounds of pairs, as shares of √2 times the one bound."""
  if not network.is_lipschitz:
    return {}
  bounds = jax.jit(margin_upper_bounds(network.apply, argnums=1))
  found, times = _timed(bounds, network.params, network.x)
  times |= _peak()
  whole = lipjax.lipschitz_upper_bound(network.apply, argnums=1)(network.params, network.x)
  found = np.asarray(found)[np.triu_indices(len(found), 1)] / (math.sqrt(2) * float(whole))
  shares = {"smallest": found.min(), "mean": found.mean(), "largest": found.max()}
  return times | {"over_root_two": {name: float(value) for name, value in shares.items()}}


def values(network: Network) -> dict[str, Any]:
  """All engines' bounds, the first call without jit, and the search from below."""
  size = {"parameters": sum(x.size for x in jax.tree.leaves(network.params))}
  if not network.is_lipschitz:
    return size
  begin = time.perf_counter()
  found = bounds_by_engine(network.apply, 1, (network.params, network.x))
  engines = {name: float(value) for name, value in found.items()}
  first_s = time.perf_counter() - begin
  best = min(engines, key=engines.__getitem__)
  lower = _lower(network, None)
  return size | {
    "engines": engines,
    "method": best,
    "upper": engines[best],
    "ratio": engines[best] / lower["lower"],
    "first_s": first_s,
    "search": network.search,
    **lower,
  }


def on_balls(network: Network) -> dict[str, Any]:
  """For each radius the slope found, and for each effort all engines' bounds, jitted."""
  return {f"{radius:g}": _on_ball(network, radius) for radius in network.radii}


def _on_ball(network: Network, radius: float) -> dict[str, Any]:
  row: dict[str, Any] = dict(_lower(network, radius))
  args = network.params, network.x
  for effort in network.efforts:
    found, times = _timed(jax.jit(_bounds_on_ball(network, radius, effort)), *args)
    engines = {name: float(value) for name, value in found.items()}
    best = min(engines.values())
    row[effort] = {"engines": engines, "upper": best, "ratio": best / row["lower"]} | times
  return row


def _bounds_on_ball(network: Network, radius: float, effort: Effort) -> Callable[..., Any]:
  return lambda *args: bounds_by_engine(network.apply, 1, args, radius, effort=effort)


def _lower(network: Network, radius: float | None) -> dict[str, float]:
  begin = time.perf_counter()
  search = lipjax.lipschitz_lower_bound(network.apply, 1, radius=radius, **network.search)
  lower = float(search(network.params, network.x))
  return {"lower": lower, "lower_s": time.perf_counter() - begin}


def peers(network: Network) -> dict[str, Any]:
  """Others' bounds on all inputs, of a chain of dense layers."""
  if network.matrices is None:
    return {}
  matrices = [np.asarray(w, np.float64) for w in network.matrices]
  rows = peers_of.lipsdp_rows(matrices, peers_of.relu_slopes(matrices))
  return {
    "product of norms, SVD in float64": peers_of.clocked(lambda: peers_of.norm_product(matrices)),
    "ECLipsE-Fast": peers_of.clocked(lambda: peers_of.eclipse_fast(matrices)),
    **rows,
  }


def peers_on_balls(network: Network) -> dict[str, Any]:
  """LipSDP-Neuron for each radius, with the slopes on the ball from lipjax's ranges."""
  if network.matrices is None:
    return {}
  matrices = [np.asarray(w, np.float64) for w in network.matrices]
  rows = {}
  for radius in network.radii:
    slopes = slopes_on_ball(network, radius)
    rows[f"{radius:g}"] = peers_of.lipsdp_rows(matrices, slopes)
  return rows


def slopes_on_ball(network: Network, radius: float) -> list[peers_of.Slopes]:
  """Of each activation's entries, one layer after the other."""

  def engine(graph: Graph, facts: Sequence[Facts]) -> list[Range]:
    parts = [(node, fact.depends.part) for node, fact in zip(graph.nodes, facts, strict=True)]
    return [
      Range(part.lower, part.upper).full(node.shape)
      for node, part in parts
      if isinstance(part, ScalarPart)
    ]

  args = (network.params, network.x)
  found = on_arrays(engine, network.apply, 1, args, radius, None)
  ranges = [] if found is None else found[1]
  return [peers_of.Slopes(*(np.asarray(end, float).ravel() for end in ends)) for ends in ranges]


def auto_lirpa(network: Network, python: str) -> dict[str, Any]:
  """auto_LiRPA's for each radius, of a chain of dense layers with biases."""
  if network.matrices is None or not network.radii:
    return {}
  layers = [[np.asarray(x) for x in layer] for layer in network.params]
  return peers_of.auto_lirpa(python, layers, np.asarray(network.x), network.radii)


def _timed(fn: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
  """The value; seconds of the first call, compilation included, and the median of later ones."""
  begin = time.perf_counter()
  compiled = fn.lower(*args).compile()
  value = jax.block_until_ready(compiled(*args))
  first, samples = time.perf_counter() - begin, []
  while not samples or _is_more_wanted(samples):
    begin = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    samples.append(time.perf_counter() - begin)
  memory = compiled.memory_analysis()
  times = {
    "first_s": first,
    "median_ms": float(np.median(samples) * 1e3),
    "samples": len(samples),
  }
  return value, times | ({} if memory is None else {"temp_mb": memory.temp_size_in_bytes / 1e6})


def _is_more_wanted(samples: Sequence[float]) -> bool:
  seconds = LONG if len(samples) < FEWEST else SECONDS
  return sum(samples) < seconds and len(samples) < MOST


def _peak() -> dict[str, float]:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  # macOS counts bytes, Linux kilobytes.
  return {"peak_mb": peak / (1e6 if sys.platform == "darwin" else 1e3)}


TASKS: dict[str, Callable[[Network], dict[str, Any]]] = {
  "forward": forward,
  "batch": lambda network: forward(network, BATCH),
  "upper": upper,
  "upper_fast": lambda network: upper(network, "fast"),
  "upper_tight": lambda network: upper(network, "tight"),
  "pairs": pairs,
  "values": values,
  "on_balls": on_balls,
  "peers": peers,
  "peers_on_balls": peers_on_balls,
}
