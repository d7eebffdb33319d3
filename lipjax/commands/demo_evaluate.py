"""From trained networks to numbers: choosing a strength, accuracies and norms."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

import lipjax
from lipjax.commands.demo_attack import accuracies, noisy_accuracy
from lipjax.commands.demo_data import Digits
from lipjax.commands.demo_methods import Method
from lipjax.commands.demo_train import Trained

RADIUS = 0.6  # Of the attack in the table and in the choice of strengths.
RADII = (0.0, 0.2, 0.4, RADIUS, 0.8, 1.0, 1.2)


class Result(NamedTuple):
  """What is known of one method, at the strength chosen for it.

  Attributes:
    method: which.
    strength: chosen on the validation images.
    validation: ``{strength: score}`` of every strength tried.
    noisy: test accuracy of each seed under noise.
    attacked: test accuracy at each of `RADII`, shape (radii, seeds).
    norms: ``{path: sigma}`` of each seed, by SVD.
    tracked: ``{path: sigma}`` of the same weights, as the optimizer tracked them.
    history: ``{path: sigma}`` as tracked during training, shape (seeds, steps).
  """

  method: Method
  strength: float
  validation: dict[float, float]
  noisy: np.ndarray
  attacked: np.ndarray
  norms: dict[str, np.ndarray]
  tracked: dict[str, np.ndarray]
  history: dict[str, np.ndarray]

  @property
  def clean(self) -> np.ndarray:
    """Test accuracy of each seed: that of the attack of radius 0."""
    return self.attacked[0]

  @property
  def at_radius(self) -> np.ndarray:
    """Test accuracy of each seed under the attack of `RADIUS`."""
    return self.attacked[RADII.index(RADIUS)]

  @property
  def product(self) -> np.ndarray:
    """Product of the layers' norms, of each seed."""
    return np.prod(list(self.norms.values()), axis=0)

  @property
  def tracking_gap(self) -> float:
    """Largest relative deviation of a tracked norm from the exact one."""
    gaps = [np.abs(self.tracked[path] / self.norms[path] - 1) for path in self.norms]
    return float(np.max(gaps))


def evaluate(method: Method, trained: dict[float, Trained], data: Digits) -> Result:
  """Chooses the strength on validation images and measures it on test images.

  The criterion is the mean of clean accuracy and accuracy under the attack, over seeds:
  neither robustness nor accuracy alone.
  """
  scores = {
    strength: float(np.mean(_accuracies(outcome.params, data.validation, RADIUS)))
    for strength, outcome in trained.items()
  }
  best = max(scores, key=lambda strength: scores[strength])
  params, history, tracked = trained[best]
  test = [_accuracies(params, data.test, radius) for radius in RADII[1:]]
  clean = test[0][0]
  return Result(
    method,
    best,
    scores,
    np.asarray(_noisy(params, data.test)),
    np.stack([clean, *(attacked for _, attacked in test)]),
    exact_norms(params),
    tracked,
    history,
  )


def exact_norms(params: Any) -> dict[str, np.ndarray]:
  """The norm of every layer of every seed; the seeds are a batch axis of the operators."""
  stacked = {".*kernel": lipjax.Dense((1,), (2,), batch_axes=(0,))}
  # For layers this small a full SVD takes less than compiling the default, Lanczos.
  norms = lipjax.spectral_norms(params, layout_overrides=stacked, method="svd")
  return jax.tree.map(np.asarray, norms)


@jax.jit
def _noisy(params, split):
  return jax.vmap(lambda p: noisy_accuracy(p, split))(params)


@jax.jit
def _accuracies(params, split, radius):
  return jax.vmap(lambda p: accuracies(p, split, radius))(params)
