"""Penalties to add to a loss: spectral, Frobenius and L1."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.frobenius import frobenius_norms
from lipjax.measure.norms import spectral_norms
from lipjax.measure.refresh import TOL
from lipjax.measure.singular_vectors import singular_triplets, update_singular_vectors
from lipjax.measure.triplet import triplet_dtype
from lipjax.measure.vectors import SingularVectors
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import float_leaves
from lipjax.operators.resolve import Overrides
from lipjax.regularize.penalty import Penalty, check_penalty, penalty_value


def spectral_penalty(
  params: Any,
  vectors: SingularVectors | None = None,
  *,
  penalty: Penalty = "squared",
  target: float | None = None,
  exponent: float | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
  n_steps: int = 1,
  tol: float | None = TOL,
) -> jax.Array:
  r"""A penalty on every operator's spectral norm, to add to a loss.

  :math:`\frac12\sum\sigma^2` (``squared``), :math:`\sum\sigma` (``norm``),
  :math:`\frac12\sum(\sigma-\tau)_+^2` (``hinge``) or :math:`\sum(\sigma^p-1)^2`
  (``power``), over all operators and all slices of stacked ones. Times :math:`\lambda`, its
  gradient is what `add_spectral_decay` adds to the updates, which is cheaper: it needs no
  backward pass.

  Guarantee: an estimate from below, as the norms are.

  Args:
    params: a pytree of arrays.
    vectors: warm start from `init_singular_vectors` or `update_singular_vectors`;
      steps as of `update_singular_vectors` follow. The caller updates them once a
      training step. None measures from cold (`spectral_norms`), every time.
    penalty: ``"squared"``, ``"norm"``, ``"hinge"`` or ``"power"``.
    target: :math:`\tau` of the hinge.
    exponent: :math:`p` of the power, at least 1; 2 when None.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.
    n_steps: steps from `vectors` at least.
    tol: as in `update_singular_vectors`.

  Returns:
    A scalar, float32 or wider. Its gradient in params is
    :math:`\sigma\,u v^T` and so on; constant in `vectors`.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: an unknown penalty, a missing or needless target or exponent, vectors for
      other params or none at all (a strength is a factor of the result, not an argument).

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.diag(jnp.array([3.0, 1.0]))}
    >>> round(float(lipjax.spectral_penalty(params)), 4)
    4.5
    >>> gradient = jax.grad(lipjax.spectral_penalty)(params)["kernel"]
    >>> round(float(gradient[0, 0]), 4)  # sigma * u[0] * v[0]
    3.0

  Reference:
    Yoshida & Miyato (2017), arXiv:1705.10941, section 3; Lewandowski et al. (2025),
    arXiv:2406.06811, for the power.
  """
  check_penalty(penalty, target, exponent)
  layouts = {"layout": layout, "layout_overrides": layout_overrides}
  if vectors is None:
    sigmas = spectral_norms(params, **layouts)
  else:
    vectors = update_singular_vectors(params, vectors, n_steps=n_steps, tol=tol, **layouts)
    triplets = singular_triplets(params, vectors, **layouts)
    sigmas = {path: triplet.sigma for path, triplet in triplets.items()}
  return _total([penalty_value(penalty, s, target, exponent) for s in sigmas.values()])


def frobenius_penalty(
  params: Any,
  *,
  penalty: Penalty = "squared",
  target: float | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> jax.Array:
  r"""A penalty on every operator's Frobenius norm, to add to a loss.

  :math:`\frac12\sum\|w\|_F^2` (``squared``), :math:`\sum\|w\|_F` (``norm``) or
  :math:`\frac12\sum(\|w\|_F-\tau)_+^2` (``hinge``, the soft version of
  `project_frobenius_ball`), over all operators and all slices of stacked ones.

  Since :math:`\sigma_1 \le \|w\|_F \le \sqrt{\mathrm{rank}}\,\sigma_1`, it is the
  smooth relaxation of `spectral_penalty`. The squared one is what L2 decay minimizes: its
  gradient, :math:`w`, is what `optax.add_decayed_weights` adds to these leaves. It pulls
  on all singular values alike, where only the first one limits the Lipschitz constant.

  Guarantee: exact but for rounding.

  Args:
    params: a pytree of arrays.
    penalty: ``"squared"``, ``"norm"`` or ``"hinge"``.
    target: :math:`\tau` of the hinge.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    A scalar, float32 or wider. The gradient at a zero leaf is 0.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: an unknown penalty, a missing or needless target.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.full((2, 2), 3.0)}
    >>> float(lipjax.frobenius_penalty(params))
    18.0
    >>> float(lipjax.frobenius_penalty(params, penalty="hinge", target=5.0))
    0.5
  """
  check_penalty(penalty, target)
  norms = frobenius_norms(params, layout=layout, layout_overrides=layout_overrides)
  return _total([penalty_value(penalty, norm, target) for norm in norms.values()])


def l1_penalty(params: Any) -> jax.Array:
  r""":math:`\sum |w|` over every floating-point leaf, to add to a loss.

  Guarantee: exact but for rounding. Its gradient is :math:`\mathrm{sign}(w)`, with 0
  at 0; times :math:`\lambda` it is what `add_l1_decay` adds.

  Args:
    params: a pytree of arrays; pass a part of the tree to penalize only that part.

  Returns:
    A scalar, float32 or wider.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> float(lipjax.l1_penalty({"kernel": jnp.array([[1.0, -2.0]])}))
    3.0
  """

  def total(w):
    w = jnp.asarray(w).astype(triplet_dtype(w))
    # sign(w) as a constant: |w| itself has gradient 1 at 0 in JAX.
    return jnp.sum(w * lax.stop_gradient(jnp.sign(w)))

  return _total([total(w) for w in float_leaves(params).values()])


def _total(values: list[jax.Array]) -> jax.Array:
  return sum((jnp.sum(value) for value in values), start=jnp.zeros((), jnp.float32))
