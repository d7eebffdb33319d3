"""The four critics that the experiment compares: how each is held to its Lipschitz constant."""

from __future__ import annotations

from typing import NamedTuple

import optax

import lipjax

GENERATOR_RATE = 2e-4
CRITIC_RATE = 1e-4
CLIP = 0.05
PENALTY = 10.0  # λ of Gulrajani et al. (2017).
# The critic pushes up every singular value but the top one, until a dozen are within 2 % of it.
# They then take turns as the top, which one step an update follows too late.
POWER_STEPS = 20
TOLERANCE = 0.02  # How far from the target the norms may be, after the warm-up.


class Method(NamedTuple):
  """A way of training the critic.

  Attributes:
    name: as printed.
    optimizer: of the critic.
    penalty: weight of the gradient penalty; 0 for none.
    power_steps: for each update of the critic, if it is applied to normalized params; else 0.
    meaning: for the report.
  """

  name: str
  optimizer: optax.GradientTransformation
  penalty: float
  power_steps: int
  meaning: str

  @property
  def normalizes(self) -> bool:
    """Whether the critic is applied to normalized params."""
    return self.power_steps > 0


def generator_optimizer() -> optax.GradientTransformation:
  """Adam with the moments of Gulrajani et al. (2017)."""
  return optax.adam(GENERATOR_RATE, b1=0.0, b2=0.9)


def critic_optimizer() -> optax.GradientTransformation:
  """The same for the critic, whatever constrains it."""
  return optax.adam(CRITIC_RATE, b1=0.0, b2=0.9)


NORMALIZED = "lipjax.spectral_normalize, target 1, power steps an update: "
CLIPPED = optax.chain(critic_optimizer(), lipjax.keep_params_in_box(CLIP))

METHODS = (
  Method("none", critic_optimizer(), 0.0, 0, "no constraint, for reference"),
  Method("clip", CLIPPED, 0.0, 0, f"every weight in ±{CLIP} (lipjax.keep_params_in_box)"),
  Method("penalty", critic_optimizer(), PENALTY, 0, f"{PENALTY:g} × lipjax.wgan_gradient_penalty"),
  Method("spectral", critic_optimizer(), 0.0, POWER_STEPS, f"{NORMALIZED}{POWER_STEPS}"),
  Method("spectral, 1 step", critic_optimizer(), 0.0, 1, f"{NORMALIZED}1"),
)
