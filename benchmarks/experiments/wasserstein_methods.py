"""The ways of keeping a critic 1-Lipschitz that are compared."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax

import lipjax
from benchmarks.experiments.wasserstein_critic import Activation, maxmin
from lipjax.regularize.gradient_penalties import Sides

PENALTY = 10.0


class Method(NamedTuple):
  """A way of training the critic.

  Attributes:
    name: as printed.
    constraint: last in the optimizer's chain.
    normalized: whether the critic has the weights of `lipjax.spectral_normalize`.
    sides: of the gradient penalty; None for no penalty.
    activation: of the hidden layers.
  """

  name: str
  constraint: optax.GradientTransformation = optax.identity()
  normalized: bool = False
  sides: Sides | None = None
  activation: Activation = jax.nn.relu


METHODS = (
  Method("clip 0.1", lipjax.keep_params_in_box(0.1)),
  Method("Frobenius ball", lipjax.keep_params_in_frobenius_ball(1.0)),
  Method("normalization, ReLU", normalized=True),
  Method("normalization, MaxMin", normalized=True, activation=maxmin),
  Method("spectral ball", lipjax.keep_params_in_spectral_ball(1.0)),
  Method("penalty, two-sided", sides="two"),
  Method("penalty, one-sided", sides="one"),
  # A ReLU network is linear far out, as it was near; a smooth one need not be.
  Method("penalty, SiLU", sides="two", activation=jax.nn.silu),
)

#: Timed only: without a constraint the gap grows without bound.
UNCONSTRAINED = Method("no constraint")
