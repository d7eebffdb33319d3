"""The four critics that the experiment compares: how each is held to its Lipschitz constant."""

from __future__ import annotations

from typing import NamedTuple

import optax

import lipjax

GENERATOR_RATE = 5e-4
CRITIC_RATE = 1e-4
CLIP = 0.05
PENALTY = 10.0  # λ of Gulrajani et al. (2017).
POWER_STEPS = 1


class Method(NamedTuple):
  """A way of training the critic.

  Attributes:
    name: as printed.
    optimizer: of the critic.
    penalty: weight of the gradient penalty; 0 for none.
    normalizes: whether the critic is applied to normalized params.
    meaning: for the report.
  """

  name: str
  optimizer: optax.GradientTransformation
  penalty: float
  normalizes: bool
  meaning: str


def adam(rate: float) -> optax.GradientTransformation:
  """Adam with the moments of Gulrajani et al. (2017)."""
  return optax.adam(rate, b1=0.0, b2=0.9)


METHODS = (
  Method("none", adam(CRITIC_RATE), 0.0, False, "no constraint, for reference"),
  Method(
    "clip",
    optax.chain(adam(CRITIC_RATE), lipjax.keep_params_in_box(CLIP)),
    0.0,
    False,
    f"every weight in ±{CLIP} (lipjax.keep_params_in_box)",
  ),
  Method(
    "penalty",
    adam(CRITIC_RATE),
    PENALTY,
    False,
    f"{PENALTY:g} × lipjax.wgan_gradient_penalty",
  ),
  Method("spectral", adam(CRITIC_RATE), 0.0, True, "lipjax.spectral_normalize, target 1"),
)
