"""Ways to keep a network trainable in ``plasticity``, each with one strength to choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import lipjax
from benchmarks.experiments.claims_train import Choice

NONE, NEW = "none", "new network"
L2, DECOUPLED, INITIAL = "L2", "decoupled L2", "L2 to initial"
SPECTRAL, POWER, POWER_DECOUPLED = "spectral decay", "power penalty", "decoupled power"

#: That every method tries first.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)


class Method(NamedTuple):
  """How to train.

  Attributes:
    optimizer: from a rate and a strength; programs are compiled once for each.
    strengths: to choose from at first, ascending.
    renew: whether every task gets a new network, so that there is nothing to lose.
  """

  optimizer: Callable[[Choice], optax.GradientTransformation]
  strengths: tuple[float, ...] = STRENGTHS
  renew: bool = False


def _adam(choice):
  return optax.adam(choice.rate)


def _l2(choice):
  return optax.chain(optax.add_decayed_weights(choice.strength, mask=_kernels), _adam(choice))


def _decoupled(choice):
  # Times the rate, as the step of Adam.
  return optax.adamw(choice.rate, weight_decay=choice.strength, mask=_kernels)


def _initial(choice):
  return optax.chain(optax.masked(_towards_initial(choice.strength), _kernels), _adam(choice))


def _spectral(choice):
  return optax.chain(lipjax.add_spectral_decay(choice.strength), _adam(choice))


def _power(choice):
  return optax.chain(_power_decay(choice), _adam(choice))


def _power_decoupled(choice):
  rate = optax.scale_by_learning_rate(choice.rate)
  return optax.chain(optax.scale_by_adam(), _power_decay(choice), rate)


def _power_decay(choice):
  return lipjax.add_spectral_decay(choice.strength, penalty="power", exponent=2)


METHODS = {
  NONE: Method(_adam, (0.0,)),
  NEW: Method(_adam, (0.0,), renew=True),
  L2: Method(_l2),
  DECOUPLED: Method(_decoupled),
  INITIAL: Method(_initial),
  SPECTRAL: Method(_spectral),
  POWER: Method(_power),
  POWER_DECOUPLED: Method(_power_decoupled),
}


def _towards_initial(strength) -> optax.GradientTransformation:
  """Adds the gradient of strength/2 times the squared distance from the weights of `init`."""

  def update(updates: Any, initial: Any, params: Any = None) -> tuple[Any, Any]:
    pull = lambda g, w, start: g + strength * (w - start)
    return jax.tree.map(pull, updates, params, initial), initial

  return optax.GradientTransformation(lambda params: params, update)


def _kernels(params):
  """Biases are left alone by every method; `add_spectral_decay` does so by itself."""
  return jax.tree.map(lambda w: w.ndim > 1, params)
