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
#: Windows of the test text whose slopes are measured, of which the largest counts, and how long
#: they are.
N_SLOPES, SLOPE_LENGTH = 4, 16


class Measured(NamedTuple):
  """Of one trained network.

  Attributes:
    train: loss of the last batches.
    validation: loss on validation text, in nats a character.
    test: on test text.
    log_product: the sum of log10 of certified upper bounds of all matrices' norms.
    log_slope: log10 of the steepest slope that was found; see `log_slope`.
    seconds: that a training step took, compilation apart.
  """

  train: float
  validation: float
  test: float
  log_product: float
  log_slope: float
  seconds: float


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


def log_slope(network: Transformer, params: Any, text: Text) -> float:
  r"""Of the last character's logits in a window's embeddings: the largest norm of the Jacobian.

  Embeddings are taken in units of their root mean square length :math:`s`, since nothing holds the
  tables: the Jacobian is that of :math:`u \mapsto f(su)`. The largest of `N_SLOPES` windows of the
  test text is a lower bound of the Lipschitz constant in u, up to rounding.

  An upper bound on balls, by `lipjax.lipschitz_upper_bound`, took a minute for one block of width
  64 and its head on two characters (95 for a slope of 75, radius 0.001), again for other weights,
  and was not there after two minutes for two blocks. Under `jax.jit` two blocks of width 32 compile
  in 109 s and take 0.1 s for other weights; not tried yet at this network's size.
  """
  slopes = _slopes(network, params, windows(text.test, N_SLOPES, SLOPE_LENGTH))
  return float(np.log10(slopes.max()))


@functools.partial(jax.jit, static_argnums=0)
def _slopes(network: Transformer, params: Any, some: jax.Array) -> jax.Array:
  """The Jacobian's norm at each window."""

  def slope(window):
    x = network.apply({"params": params}, window, method="embedded")
    unit = jnp.sqrt(jnp.mean(jnp.sum(x**2, axis=-1)))
    last = lambda u: network.apply({"params": params}, unit * u, method="logits")[-1]
    rows = jax.jacrev(last)(x / unit).reshape(network.vocabulary, -1)
    return jnp.sqrt(jnp.linalg.eigvalsh(rows @ rows.T)[-1])

  return jax.lax.map(slope, some)
