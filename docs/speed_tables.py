"""The tables of the page `speed`, from what ``python -m benchmarks.speed`` measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markdown_table import markdown_table

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
TREES = {
  "tiny": "64 leaves of 64×64",
  "mlp": "32 leaves of 256×256",
  "transformer": "12 transformer blocks",
}
#: Columns of updates: rows of the benchmark, and how they are called on the page.
UPDATES = {
  "spectral_decay": "`add_spectral_decay`",
  "spectral_decay_every_10": "with `every=10`",
  "spectral_decay_every_1": "with `every=1`",
  "naive_per_leaf": "naive, leaf by leaf",
  "given_terms": "adding given terms",
  "two_extra_reads": "two more reads of the weights",
}
LAYERS = {
  "flax_linen": "`flax.linen.SpectralNorm`",
  "lipjax_linen": "`lipjax.integrations.linen`",
  "lipjax_nnx": "`lipjax.integrations.nnx`",
}
PEERS = {"FFT and SVD": "SVD of every symbol", "lip4conv 2023, 6 steps": "lip4conv, 6 steps"}


def machine(name: str) -> str:
  """On what, and with what, a benchmark ran."""
  x = _read(name)["environment"]
  return f"{x['date']}, {x['processor']}, {x['cores']} cores, JAX {x['jax']} on {x['device']}"


def updates() -> str:
  """Of each tree how many times as long as AdamW's update."""
  head = "params", *UPDATES.values(), "steps an update", "compiling"
  return markdown_table(head, map(_update, _read("update")["results"]))


def _update(result: dict[str, Any]) -> list[str]:
  rows, tree = result["rows"], f"{TREES[result['tree']]}, {result['megabytes']:.3g} MB"
  ratios = (f"{rows[name]['ratio_to_adamw']:.2f}" for name in UPDATES)
  ours = rows["spectral_decay"]
  return [tree, *ratios, f"{ours['steps_per_update']:.2f}", f"{ours['compile_s']:.2g} s"]


def norms() -> str:
  """Of Gaussian matrices: cold measurements, and their SVD."""
  rows = []
  for result in _read("norms")["results"]:
    ours, svd = result["gaussian"]["lipjax"], result["gaussian"]["svd"]
    times = (f"{x['median_ms']:.3g} ms" for x in (ours, svd))
    rows.append([f"{result['size']}²", *times, f"{ours['relative_error']:.0e}"])
  return markdown_table(
    ("matrix", "`spectral_norms`", "`jnp.linalg.norm(W, 2)`", "our error"), rows
  )


def layers() -> str:
  """Of a training step with every layer normalized, how many times as long as without."""
  (result,) = _read("spectral_norm")["results"]
  found = ((name, result["rows"][key]) for key, name in LAYERS.items())
  rows = ([name, f"{x['ratio_to_plain']:.2f}", f"{x['compile_s']:.2g} s"] for name, x in found)
  return markdown_table(("layers", "a step", "compiling"), rows)


def convolutions() -> str:
  """The upper end of our interval, and peers: times, and how far above the truth."""
  (result,) = _read("convolutions")["results"]
  head = "convolution", "`spectral_norm_bounds`, upper end", *PEERS.values()
  return markdown_table(head, (_convolution(*item) for item in result["rows"].items()))


def _convolution(name: str, row: dict[str, Any]) -> list[str]:
  peers = (row["peers"].get(peer) for peer in PEERS)
  return [name, _time_and_error(row["lipjax"]), *map(_time_and_error, peers)]


def _time_and_error(found: Mapping[str, Any] | None) -> str:
  """A peer is not run where it knows nothing of a convolution."""
  return "" if found is None else f"{found['median_ms']:.3g} ms, {100 * found['error']:+.2g} %"


def parametrizations() -> str:
  """Milliseconds of a training step of one layer, and of what the weights cost beside it."""
  (result,) = _read("parametrizations")["results"]
  rows = [
    [task, f"`{name}`", f"{row['median_ms']:.1f} ms", _over_plain(row)]
    for task, cases in result["rows"].items()
    for name, row in cases.items()
  ]
  return markdown_table(("layer", "weights", "forward and backward", "over plain"), rows)


def _over_plain(row: Mapping[str, float]) -> str:
  return f"{row['over_plain_ms']:.1f} ms" if "over_plain_ms" in row else ""


def _read(name: str) -> dict[str, Any]:
  return json.loads((RESULTS / f"{name}.json").read_text())
