"""Spectral norm regularization as an optax transformation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from lipjax.measure.groups import Group, group_leaves
from lipjax.measure.options import check_count, check_k, check_steps
from lipjax.measure.refresh import TOL, anywhere, refresh
from lipjax.measure.sharding import replicated_like, result_sharded
from lipjax.measure.tracking import Pace, init_tracked, next_pace, top_triplets_of
from lipjax.measure.triplet import clean
from lipjax.measure.vectors import SingularVectors, check_vectors
from lipjax.operators.layouts import Layout
from lipjax.operators.mask import Mask, masked
from lipjax.operators.paths import map_float_leaves
from lipjax.operators.per_operator import PerOperator, numbers_by_path
from lipjax.operators.product import Product
from lipjax.operators.resolve import Overrides, check_some, resolve_measured
from lipjax.regularize.penalty import Penalty, check_penalty, penalty_slope


class SpectralDecayState(NamedTuple):
  """State of `add_spectral_decay`.

  Attributes:
    count: int32, updates so far.
    vectors: the `SingularVectors`; read them with `read_spectral_norms`.
    pace: when they are refreshed next.
  """

  count: Any
  vectors: SingularVectors
  pace: Pace


def add_spectral_decay(
  strength: optax.ScalarOrSchedule | PerOperator,
  *,
  penalty: Penalty = "squared",
  target: float | None = None,
  exponent: float | None = None,
  mask: Mask | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
  every: int | None = None,
  tol: float | None = TOL,
  n_steps: int = 1,
  k: int | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  r"""Adds the gradient of a spectral norm penalty to the updates.

  With :math:`\lambda` the strength and :math:`\sigma, u, v` each operator's top
  singular triplet, which warm-started block power iteration follows from update to update:

  ===========  ==========================================  =====================================
  `penalty`    objective added                             added to the update of ``w``
  ===========  ==========================================  =====================================
  ``squared``  :math:`\frac\lambda2\sum\sigma^2`           :math:`\lambda\sigma u v^T`
  ``norm``     :math:`\lambda\sum\sigma`                   :math:`\lambda u v^T`
  ``hinge``    :math:`\frac\lambda2\sum(\sigma-\tau)_+^2`  :math:`\lambda(\sigma-\tau)_+u v^T`
  ``power``    :math:`\lambda\sum(\sigma^p-1)^2`           :math:`2p\lambda(\sigma^{2p-1} -
                                                           \sigma^{p-1})\,u v^T`
  ===========  ==========================================  =====================================

  The loss is unchanged. Where it stands in a chain decides what it means:

  - **Before** the optimizer's scaling it is the penalty's gradient, as if it were
    in the loss: ``optax.chain(add_spectral_decay(0.01), optax.adam(1e-3))``.
  - **After** it, before the learning rate, it is decoupled *spectral weight
    decay*, :math:`w \leftarrow w - \eta(\text{Adam} + \lambda\sigma u v^T)`, as
    AdamW does for L2: ``optax.chain(optax.scale_by_adam(),
    add_spectral_decay(0.01), optax.scale_by_learning_rate(1e-3))``.

  Guarantee: none on the norm itself; it is pulled down, not bounded. The tracked sigma is an
  estimate from below, within `tol` as a rule (docs: guarantees). A large ``strength *
  learning rate`` diverges with momentum, as it does for L2.

  **When it measures.** A refresh is one step, two products with every weight, and more
  where :math:`\sigma_1` is not within `tol` yet. It also says how far the triplets of the
  last one were off, and the next one is due before that, if it goes on, and the error that is
  left come to `tol`: after one update where weights move fast, after 16 where they barely
  move. (So weights that are replaced between two updates are noticed after 16 at the latest;
  with ``every=1`` at once.) Under `jax.vmap` all members are refreshed when one is due.

  A leaf with a NaN or an infinity has sigma NaN and gets no term.

  Every leaf that the layout takes for an operator is penalized, scales of
  normalization layers included; leave some out with `mask`.

  Args:
    strength: :math:`\lambda`, a number, a schedule of the update count, or a `PerOperator`. Some
      papers write :math:`\lambda\sigma^2` without the half: that is twice ours. With 0
      the updates pass bit for bit and the norms are still measured, for logging.
    penalty: ``"squared"``, ``"norm"``, ``"hinge"`` or ``"power"``.
    target: :math:`\tau` of the hinge.
    exponent: :math:`p` of the power, at least 1; 2 when None.
    mask: as in `optax.masked`: a tree of bools, a prefix of one, or a function of
      params. What it leaves out is not asked about.
    layout: a layout function or ``{path: operator}``, also of a `Product` of two leaves, whose
      penalty acts on both; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.
    every: refresh sigma, u and v at every that many updates; when they are due, as said
      above, when None. The penalty acts at every update with the latest ones: one so strong
      that it overshoots by that (:math:`\lambda` times its slope's slope above 1) is better
      off with 1.
    tol: relative error of sigma at which a refresh ends; None for `n_steps` and no more.
    n_steps: steps of a refresh at least.
    k: singular values of each operator that are followed, which `read_singular_values`
      gives; as in `init_singular_vectors` when None.
    seed: of the random starting vectors.

  Returns:
    An optax transformation with state `SpectralDecayState`. Updates keep their
    dtype. Extra arguments are ignored.

  Raises:
    ValueError: an unknown penalty, a missing or needless target or exponent, `n_steps`,
      `every` or `k` below 1; in `update`, missing params or a state made for other ones.
    LayoutError: from `init`, a leaf that the layout cannot tell; as when
      `optax.flatten` has hidden the leaves.

  Note:
    Under `optax.inject_hyperparams` every callable argument is called as a
    schedule and every number becomes an array: list `layout`, a callable `mask` and `k` in
    `static_args`, where they are given.

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
    Yoshida & Miyato (2017), arXiv:1705.10941, section 3.2 (the penalty); Lewandowski et al.
    (2025), arXiv:2406.06811 (the power); Loshchilov & Hutter (2019), arXiv:1711.05101
    (decoupling).
  """
  name = "add_spectral_decay"
  check_penalty(penalty, target, exponent)
  check_steps(n_steps, tol)
  check_count("every", every)
  check_k(k)

  def read(params):
    found = resolve_measured(params, layout, layout_overrides)
    check_some(found.operators, found.leaves, name)
    return found

  def init(params):
    operators, leaves, _ = read(params)
    groups = group_leaves(operators, leaves)
    one = lambda: replicated_like(leaves, jnp.ones((), jnp.int32))
    zero = lambda: replicated_like(leaves, jnp.zeros((), jnp.int32))
    vectors = init_tracked(params, groups, leaves, k, seed)
    return SpectralDecayState(zero(), vectors, Pace(one(), zero()))

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    operators, leaves, products = read(params)
    groups = group_leaves(operators, leaves)
    count, vectors, pace = state
    if not groups:
      return updates, state._replace(count=optax.safe_increment(count))
    check_vectors(vectors, groups, name, k)
    due = anywhere(pace.wait <= 0 if every is None else count % every == 0)
    vectors, progress = refresh(groups, leaves, vectors, n_steps=n_steps, tol=tol, due=due)
    strengths = numbers_by_path(strength, operators, leaves, count)
    if all(isinstance(x, (int, float)) and x == 0 for x in strengths.values()):
      updates = _after(vectors, updates)
    else:
      slope = lambda sigma: penalty_slope(penalty, sigma, target, exponent)
      terms = _terms(groups, leaves, products, vectors, slope, strengths)
      updates = _add_to_updates(updates, terms)
    pace = next_pace(pace, due, progress, TOL if tol is None else tol)
    return updates, SpectralDecayState(optax.safe_increment(count), vectors, pace)

  return masked(optax.GradientTransformationExtraArgs(init, update), mask)


def _after(vectors: SingularVectors, updates: Any) -> Any:
  """The same updates, bit for bit, but not before the vectors.

  The compiler could else let the optimizer write to the weights first, and copy all of
  them for the refresh (that cost 1.5 times AdamW's update).
  """
  never = vectors.steps < 0
  return map_float_leaves(lambda _, g: jnp.where(never, jnp.zeros_like(g), g), updates)


class Term(NamedTuple):
  """What is added to the update of a leaf.

  Attributes:
    strength: a number, where a 0 leaves the update as it is, or an array.
    of: the term, of the update's shape and `args`.
    args: arrays.
  """

  strength: Any
  of: Callable[..., jax.Array]
  args: tuple[jax.Array, ...]


def _terms(
  groups: list[Group],
  leaves: Mapping[str, Any],
  products: Mapping[str, Product],
  vectors: SingularVectors,
  slope_of: Callable[[jax.Array], jax.Array],
  strengths: Mapping[str, Any],
) -> dict[str, list[Term]]:
  """The penalty's gradient, by path: of an operator of rank one, of products in both factors."""
  terms: dict[str, list[Term]] = {}
  for group, triplet in zip(groups, top_triplets_of(vectors, groups), strict=True):
    triplet, strength = clean(triplet, triplet.sigma.ndim), strengths[group.paths[0]]
    # Without a norm (a non-finite weight) there is nothing to penalize; the NaN is logged.
    slope = jnp.where(jnp.isnan(triplet.sigma), 0, strength * slope_of(triplet.sigma))
    slope = slope.astype(triplet.v.dtype)
    v = slope.reshape(slope.shape + (1,) * (triplet.v.ndim - slope.ndim)) * triplet.v
    for i, name in enumerate(group.paths):
      both = v[i], triplet.u[i]
      if product := products.get(name):
        factors = leaves[product.first], leaves[product.second]
        for j, path in enumerate((product.first, product.second)):
          of = lambda _, *args, j=j, product=product: product.gradients(*args)[j]
          terms.setdefault(path, []).append(Term(strength, of, (*factors, *both)))
      else:
        terms.setdefault(name, []).append(Term(strength, group.operator.weight_gradient, both))
  return terms


def _add_to_updates(updates: Any, terms: Mapping[str, list[Term]]) -> Any:
  def visit(path: str, g: Any) -> Any:
    for strength, of, args in terms.get(path, ()):

      def add(g, *args, of=of, strength=strength):
        term = of(g.shape, *args)
        added = (g.astype(term.dtype) + term).astype(g.dtype)
        # A schedule's 0 keeps even the sign of a zero and ignores a NaN norm.
        return added if isinstance(strength, (int, float)) else jnp.where(strength == 0, g, added)

      g = result_sharded(add, (g, args), jax.typeof(g).sharding.spec)(g, *args)
    return g

  return map_float_leaves(visit, updates)
