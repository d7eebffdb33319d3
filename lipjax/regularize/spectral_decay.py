"""Spectral norm regularization as an optax transformation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from lipjax.measure.sharding import replicated_like, result_sharded
from lipjax.measure.tracking import (
  TrackedNorms,
  advance,
  check_count,
  group_params,
  init_tracked,
)
from lipjax.measure.triplet import clean
from lipjax.operators.layouts import Layout
from lipjax.operators.mask import Mask, masked
from lipjax.operators.paths import map_float_leaves
from lipjax.operators.resolve import Overrides
from lipjax.regularize.penalty import Penalty, check_penalty, penalty_slope


class SpectralDecayState(NamedTuple):
  """State of `add_spectral_decay`.

  Attributes:
    count: int32, updates so far.
    norms: the tracked norms and vectors; read them with `read_spectral_norms`.
  """

  count: Any
  norms: TrackedNorms


def add_spectral_decay(
  strength: optax.ScalarOrSchedule,
  *,
  penalty: Penalty = "squared",
  target: float | None = None,
  mask: Mask | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
  n_steps: int = 1,
  every: int = 1,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  r"""Adds the gradient of a spectral norm penalty to the updates.

  With :math:`\lambda` the strength and :math:`\sigma, u, v` each operator's top
  singular triplet, tracked by `n_steps` of warm-started power iteration a step:

  ===========  ==========================================  ================================
  `penalty`    objective added                             added to the update of ``w``
  ===========  ==========================================  ================================
  ``squared``  :math:`\frac\lambda2\sum\sigma^2`           :math:`\lambda\sigma u v^T`
  ``norm``     :math:`\lambda\sum\sigma`                   :math:`\lambda u v^T`
  ``hinge``    :math:`\frac\lambda2\sum(\sigma-\tau)_+^2`  :math:`\lambda(\sigma-\tau)_+u v^T`
  ===========  ==========================================  ================================

  The loss is unchanged. Where it stands in a chain decides what it means:

  - **Before** the optimizer's scaling it is the penalty's gradient, as if it were
    in the loss: ``optax.chain(add_spectral_decay(0.01), optax.adam(1e-3))``.
  - **After** it, before the learning rate, it is decoupled *spectral weight
    decay*, :math:`w \leftarrow w - \eta(\text{Adam} + \lambda\sigma u v^T)`, as
    AdamW does for L2: ``optax.chain(optax.scale_by_adam(),
    add_spectral_decay(0.01), optax.scale_by_learning_rate(1e-3))``.

  Guarantee: none on the norm itself; it is pulled down, not bounded. The tracked
  sigma is an estimate from below. A large ``strength * learning rate`` diverges
  with momentum, as it does for L2.

  A leaf with a NaN or an infinity has sigma NaN and gets no term; so has, for one
  update, a leaf whose norm has grown more than 1e38-fold since the last one.

  Every leaf that the layout takes for an operator is penalized, scales of
  normalization layers included; leave some out with `mask`.

  Args:
    strength: :math:`\lambda`, a number or a schedule of the update count. Some papers
      write :math:`\lambda\sigma^2` without the half: that is twice ours. With 0
      the updates pass bit for bit and the norms are still measured, for logging.
    penalty: ``"squared"``, ``"norm"`` or ``"hinge"``.
    target: :math:`\tau` of the hinge.
    mask: as in `optax.masked`: a tree of bools, a prefix of one, or a function of
      params. What it leaves out is not asked about.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.
    n_steps: steps of power iteration at each refresh.
    every: refresh sigma, u and v at every that many updates; the penalty acts at
      every update with the latest ones.
    seed: of the random starting vectors.

  Returns:
    An optax transformation with state `SpectralDecayState`. Updates keep their
    dtype. Extra arguments are ignored.

  Raises:
    ValueError: an unknown penalty, a missing or needless target, `n_steps` or
      `every` below 1; in `update`, missing params or a state made for other ones.
    LayoutError: from `init`, a leaf that the layout cannot tell; as when
      `optax.flatten` has hidden the leaves.

  Note:
    Under `optax.inject_hyperparams` every callable argument is called as a
    schedule: list `layout` and a callable `mask` in `static_args`.

  Example:
    >>> import jax.numpy as jnp, lipjax, optax
    >>> params = {"Dense_0": {"kernel": jnp.diag(jnp.array([3.0, 1.0]))}}
    >>> tx = lipjax.add_spectral_decay(0.1, n_steps=20)
    >>> state = tx.init(params)
    >>> updates, state = tx.update({"Dense_0": {"kernel": jnp.zeros((2, 2))}}, state, params)
    >>> round(float(updates["Dense_0"]["kernel"][0, 0]), 4)  # 0.1 * sigma * u v^T
    0.3
    >>> round(float(lipjax.read_spectral_norms(state)["Dense_0/kernel"]), 4)
    3.0

  Reference:
    Yoshida & Miyato (2017), arXiv:1705.10941, section 3.2 (the penalty); Loshchilov &
    Hutter (2019), arXiv:1711.05101 (decoupling).
  """
  check_penalty(penalty, target)
  check_count("n_steps", n_steps)
  check_count("every", every)

  def find(params):
    return group_params(params, layout, layout_overrides, "add_spectral_decay")

  def init(params):
    groups, leaves = find(params)
    count = replicated_like(leaves, jnp.zeros((), jnp.int32))
    return SpectralDecayState(count, init_tracked(params, groups, leaves, seed))

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    groups, leaves = find(params)
    next_count = optax.safe_increment(state.count)
    if not groups:
      return updates, state._replace(count=next_count)
    # Never negative, but XLA cannot know it: a trip count it can read would let it
    # inline the loop (see iterate_groups).
    due = (state.count % every == 0) & (state.count >= 0)
    n_due = jnp.where(due, n_steps, 0)
    stacked, norms = advance(state.norms, groups, leaves, n_due, "add_spectral_decay")
    value = strength(state.count) if callable(strength) else strength
    if not (isinstance(value, (int, float)) and value == 0):
      updates = _add_to_updates(updates, groups, stacked, value, penalty, target)
    return updates, SpectralDecayState(next_count, norms)

  return masked(optax.GradientTransformationExtraArgs(init, update), mask)


def _add_to_updates(updates, groups, stacked, strength, penalty, target):
  """Every operator's update with its rank-one term added."""
  terms = {}
  for group, triplet in zip(groups, stacked, strict=True):
    triplet = clean(triplet, triplet.sigma.ndim)
    slope = strength * penalty_slope(penalty, triplet.sigma, target)
    # Without a norm (a non-finite weight) there is nothing to penalize; the NaN is logged.
    slope = jnp.where(jnp.isnan(triplet.sigma), 0, slope).astype(triplet.v.dtype)
    v = slope.reshape(slope.shape + (1,) * (triplet.v.ndim - slope.ndim)) * triplet.v
    for i, path in enumerate(group.paths):
      terms[path] = (group.operator, v[i], triplet.u[i])

  def visit(path, g):
    if path not in terms:
      return g
    operator, v, u = terms[path]

    def add(g, v, u):
      term = operator.weight_gradient(g.shape, v, u)
      added = (g.astype(term.dtype) + term).astype(g.dtype)
      # A schedule's 0 keeps even the sign of a zero and ignores a NaN norm.
      return added if isinstance(strength, (int, float)) else jnp.where(strength == 0, g, added)

    return result_sharded(add, g, jax.typeof(g).sharding.spec)(g, v, u)

  return map_float_leaves(visit, updates)
