"""What is measured of a trained transformer: losses, and how steep it can be."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lipjax
from benchmarks.experiments.transformer_network import NOT_TABLES, Transformer, loss
from benchmarks.experiments.transformer_text import Text, windows

#: Windows of a part of the text that losses are means over.
N_WINDOWS = 128
#: Characters of a window that is certified, and the radius of the ball around its embeddings, as a
#: share of their root mean square length.
CERTIFIED_LENGTH, RADIUS = 4, 1e-4


class Measured(NamedTuple):
  """Of one trained network.

  Attributes:
    train: loss of the last batches.
    validation: loss on validation text, in nats a character.
    test: on test text.
    log_product: the sum of log10 of certified upper bounds of all matrices' norms.
    upper: a certified Lipschitz constant on a ball; see `certified`.
    slope: the norm of the Jacobian in the middle of that ball.
    seconds: that a training step took, compilation apart.
  """

  train: float
  validation: float
  test: float
  log_product: float
  upper: float
  slope: float
  seconds: float

  @property
  def log_upper(self) -> float:
    """To base 10."""
    return float(np.log10(self.upper))

  @property
  def log_slope(self) -> float:
    """To base 10."""
    return float(np.log10(self.slope))


def losses(network: Transformer, params: Any, text: Text) -> tuple[float, float]:
  """On validation and on test text."""
  parts = (windows(part, N_WINDOWS, network.length + 1) for part in (text.validation, text.test))
  validation, test = (float(_loss(network, params, part)) for part in parts)
  return validation, test


_loss = jax.jit(loss, static_argnums=0)


def log_product(params: Any) -> float:
  """The sum of log10 of certified upper bounds of the norms of all matrices but the tables."""
  bounds = lipjax.spectral_norm_bounds(params, layout_overrides=NOT_TABLES)
  return float(sum(np.log10(np.asarray(bound.upper, np.float64)) for bound in bounds.values()))


def certified(network: Transformer, params: Any, text: Text) -> tuple[float, float]:
  r"""How steep the last character's logits are in a window's embeddings: a bound, and a slope.

  Embeddings are taken in units of their root mean square length :math:`s`, since nothing holds the
  tables: the function is :math:`u \mapsto f(su)`, the bound is on the ball of `RADIUS` around the
  embeddings of the first characters of the test text, and the slope is the norm of the Jacobian
  at its center. In float64, as ranges in a ball hold with rounding.
  """
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), params)
    window = jnp.asarray(text.test[:CERTIFIED_LENGTH])
    x = network.apply({"params": wide}, window, method="embedded")
    unit = jnp.sqrt(jnp.mean(jnp.sum(x**2, axis=-1)))
    last = functools.partial(_last_logits, network)
    upper = lipjax.lipschitz_upper_bound(last, argnums=2, radius=RADIUS)(wide, unit, x / unit)
    slope = jnp.linalg.norm(_jacobian(network, wide, unit, x / unit), 2)
    return float(upper), float(slope)


def _last_logits(network: Transformer, params: Any, unit: jax.Array, u: jax.Array) -> jax.Array:
  return network.apply({"params": params}, unit * u, method="logits")[-1]


@functools.partial(jax.jit, static_argnums=0)
def _jacobian(network: Transformer, params: Any, unit: jax.Array, u: jax.Array) -> jax.Array:
  """A row for each logit."""
  return jax.jacrev(_last_logits, argnums=3)(network, params, unit, u).reshape(-1, u.size)
