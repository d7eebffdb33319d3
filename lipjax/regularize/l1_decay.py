"""L1 decay as an optax transformation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from lipjax.measure.sharding import replicated_like
from lipjax.operators.mask import Mask, masked
from lipjax.operators.paths import float_leaves, map_float_leaves


class L1DecayState(NamedTuple):
  """State of `add_l1_decay`.

  Attributes:
    count: int32, updates so far; for a strength schedule.
  """

  count: Any


def add_l1_decay(
  strength: optax.ScalarOrSchedule, *, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
  r"""Adds :math:`\lambda\,\mathrm{sign}(w)`, the gradient of :math:`\lambda\|w\|_1`.

  The L1 companion of `optax.add_decayed_weights`: it acts on every floating-point
  leaf, biases included, unless masked. Before an optimizer's scaling it is the
  penalty's gradient, after it the decay is decoupled (see `add_spectral_decay`).

  Guarantee: at :math:`w = 0` the subgradient 0 is added, so a weight at exactly 0
  is not pushed away; plain subgradient steps do not produce exact zeros.

  Args:
    strength: :math:`\lambda`, a number or a schedule of the update count.
    mask: as in `optax.masked`.

  Returns:
    An optax transformation with state `L1DecayState`. Updates keep their dtype.

  Raises:
    ValueError: from `update`, missing params; from `init`, a mask that is no tree of
      bools.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.array([[2.0, 0.0, -0.5]])}
    >>> tx = lipjax.add_l1_decay(0.5)
    >>> updates, _ = tx.update({"kernel": jnp.zeros((1, 3))}, tx.init(params), params)
    >>> updates["kernel"].tolist()
    [[0.5, 0.0, -0.5]]

  Reference:
    Tibshirani (1996), J. R. Stat. Soc. B 58(1), for the penalty.
  """

  def init(params):
    return L1DecayState(replicated_like(float_leaves(params), jnp.zeros((), jnp.int32)))

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    state_after = L1DecayState(optax.safe_increment(state.count))
    value = strength(state.count) if callable(strength) else strength
    if isinstance(value, (int, float)) and value == 0:
      return updates, state_after
    weights = float_leaves(params)

    def visit(path, g):
      if path not in weights:
        return g
      added = g + (value * jnp.sign(weights[path])).astype(g.dtype)
      # A schedule's 0 keeps even the sign of a zero.
      return added if isinstance(value, (int, float)) else jnp.where(value == 0, g, added)

    return map_float_leaves(visit, updates), state_after

  return masked(optax.GradientTransformationExtraArgs(init, update), mask)
