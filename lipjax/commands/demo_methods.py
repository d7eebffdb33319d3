"""The three ways of training that the demo compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

import lipjax

Strength = float | jax.Array
Transformation = Callable[[Strength], optax.GradientTransformation]


class Method(NamedTuple):
  """A way of training.

  Attributes:
    name: as printed.
    grid: the strengths to choose from, ascending.
    transformation: from a strength, a number or a traced array, to the optimizer.
  """

  name: str
  grid: tuple[float, ...]
  transformation: Transformation


def _l2(strength: Strength) -> optax.GradientTransformation:
  kernels = lambda params: jax.tree.map(lambda w: w.ndim == 2, params)
  decay = optax.add_decayed_weights(strength, mask=kernels)
  # With strength 0 the updates pass bit for bit and the norms are still measured.
  return optax.chain(decay, lipjax.add_spectral_decay(0.0), _sgd())


def _spectral(strength: Strength) -> optax.GradientTransformation:
  return optax.chain(lipjax.add_spectral_decay(strength), _sgd())


def _sgd() -> optax.GradientTransformation:
  return optax.sgd(0.05, momentum=0.9)


METHODS = (
  Method("none", (0.0,), _l2),
  Method("L2", (0.003, 0.01, 0.03), _l2),
  Method("spectral", (0.1, 0.3, 1.0), _spectral),
)
