"""Ways to train a transformer: an optimizer, and what its matrices are held by."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import optax

import lipjax
from benchmarks.experiments.transformer_network import NOT_TABLES, TABLES

ADAMW, MUON = "AdamW", "Muon"
NONE, WEIGHT, SPECTRAL = "none", "weight decay", "spectral decay"
BALL, SPHERE = "ball", "sphere"

#: A factor of 4 apart. What Muon leaves to Adam, tables and the head, has a tenth of its rates.
RATES = {ADAMW: (0.00025, 0.001, 0.004, 0.016), MUON: (0.0025, 0.01, 0.04, 0.16)}
ADAM_IN_MUON = 0.1
#: Muon's are a tenth, so that rates times strengths are the same.
DECAYS = {
  ADAMW: {WEIGHT: (1.0, 8.0, 32.0), SPECTRAL: (4.0, 32.0, 128.0)},
  MUON: {WEIGHT: (0.1, 0.8, 3.2), SPECTRAL: (0.4, 3.2, 12.8)},
}
#: c of `lipjax.PerOperator`. Initial matrices are between 1.5 and 3 of it.
RADII = (1.0, 2.0, 4.0)


class Method(NamedTuple):
  """How to train.

  Attributes:
    optimizer: one of `RATES`.
    constraint: its name.
    strengths: of which one is chosen on validation text.
    rates: learning rates, of which one is chosen together with it.
  """

  optimizer: str
  constraint: str
  strengths: tuple[float, ...]
  rates: tuple[float, ...]

  @property
  def name(self) -> str:
    """As printed."""
    return f"{self.optimizer}, {self.constraint}"

  def at_most(self, n: int) -> Method:
    """With so many strengths and rates to choose from."""
    return self._replace(strengths=self.strengths[:n], rates=self.rates[:n])


def methods() -> list[Method]:
  """Both optimizers with every constraint."""
  found = []
  for optimizer, decays in DECAYS.items():
    strengths = {NONE: (0.0,), **decays, BALL: RADII, SPHERE: RADII}
    found += [Method(optimizer, x, s, RATES[optimizer]) for x, s in strengths.items()]
  return found


def transformation(
  optimizer: str, constraint: str, params: Any, strength: Any, rate: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
  """Decays stand after the direction and before the learning rate; what keeps norms is last.

  The cap is `lipjax.keep_params_in_spectral_ball` by its default, which scales: on slow updates of
  these matrices it takes 7 ms of one core, and `lipjax.add_clip_decay`, by an SVD of each, 170 ms.
  """
  decays = {
    WEIGHT: functools.partial(optax.add_decayed_weights, mask=_not_tables),
    SPECTRAL: functools.partial(lipjax.add_spectral_decay, layout_overrides=NOT_TABLES),
  }
  keeps = {BALL: lipjax.keep_params_in_spectral_ball, SPHERE: lipjax.keep_params_on_sphere}
  chain = [DIRECTIONS[optimizer](params)]
  if constraint in decays:
    chain.append(decays[constraint](strength))
  chain.append(optax.scale_by_learning_rate(rate))
  if constraint in keeps:
    radius = lipjax.PerOperator(strength)
    chain.append(keeps[constraint](radius, layout_overrides=NOT_TABLES))
  return optax.chain(*chain)


def _adam(params: Any) -> optax.GradientTransformation:
  del params
  return optax.scale_by_adam()


def _muon(params: Any) -> optax.GradientTransformation:
  """Muon without its learning rate and sign."""
  to_adam = NOT_TABLES | {"head/kernel": None}
  numbers = lipjax.muon_dimension_numbers(params, layout_overrides=to_adam)
  options = {"muon_weight_dimension_numbers": numbers, "adam_learning_rate": ADAM_IN_MUON}
  return optax.chain(optax.contrib.muon(1.0, **options), optax.scale(-1.0))


DIRECTIONS = {ADAMW: _adam, MUON: _muon}


def _not_tables(params: Any) -> dict[str, bool]:
  return {name: name not in TABLES for name in params}
