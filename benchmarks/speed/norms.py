"""A cold measurement of one matrix, against the SVD that it replaces."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

import lipjax
from benchmarks.speed.timing import compare, compile_case


def run(size: int, blocks: int | None = None) -> dict[str, Any]:
  """Rows for a Gaussian matrix and for one with second singular value 0.999."""
  rng = np.random.default_rng(size)
  gaussian = rng.normal(size=(size, size)).astype(np.float32)
  result = {"benchmark": "norms", "size": size, "megabytes": gaussian.nbytes / 1e6}
  for kind, matrix in (("gaussian", gaussian), ("near_tie", _near_tie(gaussian))):
    w = jnp.asarray(matrix)
    measure = {
      "svd": lambda w: jnp.linalg.norm(w, 2),
      "lipjax": lambda w: lipjax.spectral_norms({"kernel": w})["kernel"],
      "one_read": jnp.max,
    }
    cases = {name: compile_case(fn, w) for name, fn in measure.items()}
    truth = np.linalg.norm(matrix.astype(np.float64), 2)
    rows = compare(
      cases, baseline="svd", blocks=blocks or 7, steps=1 if size > 512 else 5, keep_carry=False
    )
    for name in ("svd", "lipjax"):
      rows[name]["relative_error"] = float(abs(float(cases[name].step(w)) - truth) / truth)
    rows["lipjax"]["times_faster_than_svd"] = 1 / rows["lipjax"]["ratio_to_svd"]
    result[kind] = rows
  return result


def _near_tie(matrix: np.ndarray) -> np.ndarray:
  """The same singular vectors with singular values 1, 0.999, then falling to 0.5."""
  u, s, vh = np.linalg.svd(matrix.astype(np.float64))
  s = np.concatenate([[1.0], np.linspace(0.999, 0.5, s.size - 1)])
  return ((u * s) @ vh).astype(np.float32)
