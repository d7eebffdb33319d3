"""The four critics that the experiment compares: how each is held to its Lipschitz constant."""

from __future__ import annotations

from typing import NamedTuple

import optax

import lipjax

GENERATOR_RATE = 5e-4
CRITIC_RATE = 2e-4
CLIP = 0.05
PENALTY = 10.0  # λ of Gulrajani et al. (2017).
# An update of the critic. It pushes every singular value but the top one up, so that they take
# turns as the top, and one step an update follows too late: norms up to 1.12 here, 1.06 with 3.
POWER_STEPS = 10
TOLERANCE = 0.02  # How far from the target the norms may be, after the warm-up.


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


def generator_optimizer() -> optax.GradientTransformation:
  """Adam with the moments of Gulrajani et al. (2017)."""
  return optax.adam(GENERATOR_RATE, b1=0.0, b2=0.9)


def critic_optimizer() -> optax.GradientTransformation:
  """The same for the critic, whatever constrains it."""
  return optax.adam(CRITIC_RATE, b1=0.0, b2=0.9)


METHODS = (
  Method("none", critic_optimizer(), 0.0, False, "no constraint, for reference"),
  Method(
    "clip",
    optax.chain(critic_optimizer(), lipjax.keep_params_in_box(CLIP)),
    0.0,
    False,
    f"every weight in ±{CLIP} (lipjax.keep_params_in_box)",
  ),
  Method(
    "penalty",
    critic_optimizer(),
    PENALTY,
    False,
    f"{PENALTY:g} × lipjax.wgan_gradient_penalty",
  ),
  Method("spectral", critic_optimizer(), 0.0, True, "lipjax.spectral_normalize, target 1"),
)
