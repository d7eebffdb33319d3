"""Weights on spheres: of the spectral norm, Frobenius' norm, or of each row or column."""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from lipjax.constrain.keep import keep_leaves
from lipjax.constrain.leaves import LeafProjection, map_leaves, onto_spectral_sphere, scale_onto
from lipjax.constrain.projections import check_choice
from lipjax.constrain.radii import Radius, check_fixed_radius, check_radius
from lipjax.constrain.spectral_ball import Followed, keep_spectral
from lipjax.measure.frobenius import frobenius_norm
from lipjax.measure.norms import top_triplets
from lipjax.measure.options import check_k, check_steps
from lipjax.measure.refresh import TOL
from lipjax.operators.base import LinearOperator
from lipjax.operators.dense import Dense
from lipjax.operators.diagonal import Diagonal
from lipjax.operators.layouts import Layout
from lipjax.operators.mask import Mask, masked
from lipjax.operators.paths import float_leaves, map_float_leaves
from lipjax.operators.per_operator import PerOperator, Sides, numbers_by_path, sides
from lipjax.operators.products import compute_dtype
from lipjax.operators.resolve import Overrides, resolve_operators

SphereNorm = Literal["spectral", "frobenius", "rows", "columns"]


def project_sphere(
  params: Any,
  radius: float | jax.Array | PerOperator,
  *,
  norm: SphereNorm = "spectral",
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> Any:
  r"""Every operator scaled to a norm of :math:`R` = `radius`: :math:`W \leftarrow R\,W/\|W\|`.

  =============  =====================================================================
  `norm`         :math:`\|W\|`
  =============  =====================================================================
  ``spectral``   :math:`\sigma_1`; any operator
  ``frobenius``  :math:`\|W\|_F`; any operator: the nearest point of the sphere
  ``rows``       of each output's weights by themselves, in l2; matrices
  ``columns``    of each input's weights by themselves, in l2; matrices. Of an embedding
                 each token's vector
  =============  =====================================================================

  A `PerOperator` counts a row as a map to one output and a column as one of one input, so that
  ``PerOperator(c)`` is :math:`c\sqrt{d_{out}/d_{in}}`, :math:`c/\sqrt{d_{in}}` and
  :math:`c\sqrt{d_{out}}`: a norm of :math:`c` in root mean squares each time.

  Guarantee: :math:`|\|W\| - R| \le 4\epsilon\sqrt r\,R`, with :math:`r` the smaller dimension and
  :math:`\epsilon` that of the params' dtype: a margin for rounding, checked against float64 and
  not proved. What is zero has no direction, and stays zero.

  Args:
    params: a pytree of arrays. Computed in float32 or wider.
    radius: :math:`R`, a positive number or a `PerOperator`.
    norm: ``"spectral"``, ``"frobenius"``, ``"rows"`` or ``"columns"``.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    A tree like `params`, same dtypes. Every slice of a stacked leaf is scaled by itself; what holds
    a NaN or an infinity is left as it is.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: an unknown norm, a radius that is not positive, rows of what is no matrix.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 3.0]])}  # (inputs, outputs)
    >>> for norm in ("rows", "columns"):
    ...   print(norm, lipjax.project_sphere(params, 5.0, norm=norm)["kernel"].tolist())
    rows [[3.0, 0.0], [4.0, 5.0]]
    columns [[5.0, 0.0], [4.0, 3.0]]
  """
  _check_norm(norm)
  check_fixed_radius(radius)
  operators, leaves = resolve_operators(params, layout, layout_overrides), float_leaves(params)
  radii = numbers_by_path(radius, operators, leaves, 0, _SIDES[norm])
  if norm == "spectral":
    triplets = top_triplets(operators, leaves)
    projected = map_leaves(onto_spectral_sphere, operators, leaves, radii, triplets)
  else:
    projected = map_leaves(_ONTO[norm], operators, leaves, radii)
  return map_float_leaves(lambda path, w: projected.get(path, w), params)


def keep_params_on_sphere(
  radius: Radius,
  *,
  norm: SphereNorm = "spectral",
  mask: Mask | None = None,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
  tol: float | None = TOL,
  n_steps: int = 1,
  k: int | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  r"""Keeps every operator's norm equal to `radius`; last in a chain.

  The updates are changed so that ``params + updates`` is `project_sphere` of what it would have
  been. With the norms that weights start with, and Muon's updates::

    optax.chain(optax.contrib.muon(0.02), lipjax.keep_params_on_sphere("initial"))

  Weights then turn and do not grow: an update's size beside them is the learning rate's alone, and
  weight decay has nothing to do.

  Guarantee: after `optax.apply_updates`, where norms were near :math:`R` before (from far off, the
  first update leaves up to :math:`\epsilon` times what they were),

  - ``spectral``: :math:`\sigma_1` within the relative error `tol` of :math:`R`, as
    `keep_params_in_spectral_ball` by ``scale``: matrices of a side of at most 64 are checked
    against an upper bound, others rest on the norm that block power iteration finds;
  - the others: within :math:`6\epsilon\sqrt r\,R`.

  What is zero stays zero.

  Args:
    radius: :math:`R`, a positive number, a schedule of the update count, a `PerOperator`, or
      ``"initial"``: what each norm was in `init`.
    norm: as in `project_sphere`.
    mask: as in `optax.masked`.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.
    tol: relative error of the spectral norm at which the steps of an update end; None for
      `n_steps` and no more. Unused, as what follows, by other norms.
    n_steps: steps an update at least.
    k: singular values of each operator that are followed; as in `init_singular_vectors` when None.
    seed: of the random starting vectors.

  Returns:
    An optax transformation with state `SpectralBallState` for the spectral norm, which
    `read_spectral_norms` reads, else `KeepParamsState`. Updates keep their dtype. No weight is
    gathered on a mesh, but for rows and columns that are split.

  Raises:
    ValueError: an unknown norm, a radius that is not positive, `n_steps` or `k` below 1; in
      `init`, zeros that an initial radius would keep; in `update`, missing params or a state made
      for other ones.
    LayoutError: from `init`, a leaf that the layout cannot tell.

  Example:
    >>> import jax.numpy as jnp, lipjax, optax
    >>> params = {"kernel": jnp.diag(jnp.array([4.0, 1.0]))}
    >>> tx = optax.chain(optax.sgd(1.0), lipjax.keep_params_on_sphere("initial"))
    >>> updates, _ = tx.update({"kernel": jnp.diag(jnp.array([3.0, 0.0]))}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].diagonal().round(3).tolist()
    [4.0, 4.0]

  Reference:
    Liu et al. (2021), arXiv:2102.07227, and Karras et al. (2024), arXiv:2312.02696, for norms of
    weights that are held; Yang, Simon & Bernstein (2023), arXiv:2310.17813, for their size.
  """
  name = "keep_params_on_sphere"
  _check_norm(norm)
  check_radius(radius)
  check_steps(n_steps, tol)
  check_k(k)
  common = radius, layout, layout_overrides
  if norm == "spectral":
    followed = Followed(tol, n_steps, k, seed)
    return masked(keep_spectral(name, onto_spectral_sphere, *common, followed), mask)
  return masked(keep_leaves(name, _ONTO[norm], _NORMS[norm], *common, _SIDES[norm]), mask)


def _check_norm(norm: Any) -> None:
  check_choice("norm", norm, get_args(SphereNorm))


def _onto_frobenius(operator: LinearOperator, w: jax.Array, radius) -> jax.Array:
  return scale_onto(operator, w, radius, frobenius_norm(operator, w))


def _lines(axis: int, operator: LinearOperator, w: jax.Array) -> jax.Array:
  """Norms of rows (axis -1) or columns (-2) of each matrix; of a diagonal's entries."""
  if isinstance(operator, Diagonal):
    return jnp.abs(w.astype(compute_dtype(w.dtype)))
  if not isinstance(operator, Dense):
    msg = f"{operator!r} is no matrix: rows and columns of it are not those of the kernel."
    raise ValueError(msg)
  matrix = operator.matrix(w.astype(compute_dtype(w.dtype)))
  largest = jnp.max(jnp.abs(matrix), axis=axis, keepdims=True, initial=0)
  scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
  root = jnp.sqrt(jnp.sum(jnp.square(matrix / scale), axis=axis, keepdims=True))
  return jnp.squeeze(scale * root, axis)


def _onto_lines(axis: int, operator: LinearOperator, w: jax.Array, radius) -> jax.Array:
  """Each row or column of length `radius`, one number or one for each."""
  found, dtype = _lines(axis, operator, w), compute_dtype(w.dtype)
  radius = jnp.asarray(radius, dtype)
  has_norm = (found > 0) & jnp.isfinite(found) & jnp.isfinite(radius)
  length, radius = jnp.where(has_norm, found, 1), jnp.where(has_norm, radius, 1)
  if isinstance(operator, Dense):
    matrix = operator.matrix(w.astype(dtype))
    length, radius, has_norm = (jnp.expand_dims(x, axis) for x in (length, radius, has_norm))
    new = operator.leaf(jnp.where(has_norm, matrix / length * radius, matrix), w.shape)
  else:
    new = jnp.where(has_norm, w.astype(dtype) / length * radius, w)
  return jnp.where(jnp.isfinite(new), new, w).astype(w.dtype)


def _length(operator: LinearOperator, shape: tuple[int, ...], side: int) -> int:
  """Of a row or a column: of a diagonal there is one entry."""
  return 1 if isinstance(operator, Diagonal) else sides(operator, shape)[side]


_ONTO: dict[str, LeafProjection] = {
  "frobenius": _onto_frobenius,
  "rows": functools.partial(_onto_lines, -1),
  "columns": functools.partial(_onto_lines, -2),
}
_NORMS = {
  "frobenius": frobenius_norm,
  "rows": functools.partial(_lines, -1),
  "columns": functools.partial(_lines, -2),
}
_SIDES: dict[str, Sides] = {
  "spectral": sides,
  "frobenius": sides,
  "rows": lambda operator, shape: (_length(operator, shape, 0), 1),
  "columns": lambda operator, shape: (1, _length(operator, shape, 1)),
}
