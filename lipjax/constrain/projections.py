"""Projections of a params tree: every operator's norm brought to at most a radius."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from lipjax.constrain.leaves import (
  ORTHOGONAL_BY_METHOD,
  SCALE_BY_ORDER,
  Order,
  clip_sign,
  clip_svd,
  clip_top,
  map_leaves,
  scale_frobenius,
  scale_spectral,
)
from lipjax.constrain.polar import PolarMethod
from lipjax.constrain.radii import check_fixed_number, check_fixed_radius
from lipjax.measure.norms import top_triplets
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import float_leaves, map_float_leaves
from lipjax.operators.per_operator import PerOperator, numbers_by_path
from lipjax.operators.resolve import Overrides, resolve_operators

SpectralMethod = Literal["scale", "clip_svd", "clip_sign", "clip_top"]

#: The methods that need a measured triplet, and those that need the weight alone.
BY_TRIPLET = {"scale": scale_spectral, "clip_top": clip_top}
BY_WEIGHT = {"clip_svd": clip_svd, "clip_sign": clip_sign}


def project_spectral_ball(
  params: Any,
  radius: float | jax.Array | PerOperator,
  *,
  method: SpectralMethod = "scale",
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> Any:
  r"""Every operator's spectral norm brought to at most :math:`c` = `radius`.

  =============  ============================================================
  `method`       result for :math:`W = USV^T` with :math:`\sigma_1 > c`
  =============  ============================================================
  ``scale``      :math:`W\,c/\sigma_1`; any operator, the cheapest
  ``clip_svd``   :math:`U\min(S, c)V^T`, the nearest point of the ball
  ``clip_sign``  the same by matrix products alone, for accelerators
  ``clip_top``   :math:`W - (\sigma_1 - c)\,u_1v_1^T`; the second largest
                 singular value may still exceed :math:`c`
  =============  ============================================================

  Guarantee: but for ``clip_top``, :math:`\sigma_1 \le c\,(1 + 4\epsilon\sqrt{r})` with
  :math:`r` the smaller dimension and :math:`\epsilon` that of the params' dtype: a
  margin for rounding, checked against float64 SVDs and not proved. A leaf inside the
  ball is returned bit for bit.

  Args:
    params: a pytree of arrays. Computed in float32 or wider.
    radius: :math:`c`, a positive number or a `PerOperator`.
    method: ``"scale"``, ``"clip_svd"``, ``"clip_sign"`` or ``"clip_top"``. Clipping
      needs matrices.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    A tree like `params`, same dtypes. Every slice of a stacked leaf is projected by
    itself; one with a NaN or an infinity is left as it is.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: an unknown method, a radius that is not positive.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.diag(jnp.array([4.0, 2.0, 0.5]))}
    >>> for method in ("scale", "clip_svd", "clip_top"):
    ...   projected = lipjax.project_spectral_ball(params, 1.0, method=method)
    ...   print(projected["kernel"].diagonal().round(3).tolist())
    [1.0, 0.5, 0.125]
    [1.0, 1.0, 0.5]
    [1.0, 2.0, 0.5]

  Reference:
    Gouk et al. (2021), arXiv:1804.04368, equation 13 (``scale``); Newhouse et al.
    (2025), arXiv:2507.13338, for clipping by matrix signs.
  """
  check_spectral_method(method)
  check_fixed_radius(radius)
  operators, leaves = _resolve(params, layout, layout_overrides)
  radii = numbers_by_path(radius, operators, leaves, 0)
  if method in BY_WEIGHT:
    return _replaced(params, map_leaves(BY_WEIGHT[method], operators, leaves, radii))
  triplets = top_triplets(operators, leaves)
  return _replaced(params, map_leaves(BY_TRIPLET[method], operators, leaves, radii, triplets))


def project_frobenius_ball(
  params: Any,
  radius: float | jax.Array | PerOperator,
  *,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> Any:
  r"""Every operator's Frobenius norm brought to at most `radius`: :math:`W\min(1, c/\|W\|_F)`.

  Guarantee: the nearest point of the ball; :math:`\|W\|_F \le c\,(1 + 4\epsilon)` with
  :math:`\epsilon` that of the params' dtype. As :math:`\sigma_1 \le \|W\|_F`, a matrix
  is in the spectral ball too. A leaf inside the ball is returned bit for bit.

  Args:
    params: a pytree of arrays.
    radius: :math:`c`, a positive number or a `PerOperator`, for each operator (and each slice of a
      stack).
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    A tree like `params`, same dtypes; non-finite slices are left as they are.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: a radius that is not positive.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> lipjax.project_frobenius_ball({"kernel": jnp.full((2, 2), 3.0)}, 1.0)["kernel"].tolist()
    [[0.5, 0.5], [0.5, 0.5]]
  """
  check_fixed_radius(radius)
  operators, leaves = _resolve(params, layout, layout_overrides)
  radii = numbers_by_path(radius, operators, leaves, 0)
  return _replaced(params, map_leaves(scale_frobenius, operators, leaves, radii))


def project_operator_norm_ball(
  params: Any,
  radius: float | jax.Array | PerOperator,
  *,
  order: Order,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> Any:
  r"""Every operator's :math:`\ell_1` or :math:`\ell_\infty` norm scaled to at most `radius`.

  :math:`\|A\|_1 = \max_j\sum_i|a_{ij}|` bounds how far the output moves, in the
  :math:`\ell_1` norm, when the input does; :math:`\|A\|_\infty = \max_i\sum_j|a_{ij}|`
  does so in the largest component. Rows :math:`i` are outputs, columns :math:`j` inputs.
  :math:`W \leftarrow W/\max(1, \|A\|_p/c)`.

  Guarantee: :math:`\|A\|_p \le c\,(1 + 4\epsilon\sqrt n)` with :math:`n` terms in a sum.
  Scaling is not the nearest point. A leaf inside the ball is returned bit for bit. The
  norm of a `ReshapedKernel` is not the convolution's.

  Args:
    params: a pytree of arrays.
    radius: :math:`c`, a positive number or a `PerOperator`.
    order: ``"one"`` or ``"infinity"``.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    A tree like `params`, same dtypes; non-finite slices are left as they are.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: an unknown order, a radius that is not positive.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.array([[1.0, 3.0], [0.0, 1.0]])}  # (inputs, outputs)
    >>> lipjax.project_operator_norm_ball(params, 1.0, order="one")["kernel"].tolist()
    [[0.25, 0.75], [0.0, 0.25]]

  Reference:
    Gouk et al. (2021), arXiv:1804.04368, section 3.1.
  """
  check_order(order)
  check_fixed_radius(radius)
  operators, leaves = _resolve(params, layout, layout_overrides)
  radii = numbers_by_path(radius, operators, leaves, 0)
  return _replaced(params, map_leaves(SCALE_BY_ORDER[order], operators, leaves, radii))


def orthogonalize(
  params: Any,
  *,
  method: PolarMethod = "newton_schulz",
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> Any:
  r"""Every operator replaced by the nearest one with orthonormal rows or columns.

  :math:`USV^T \mapsto UV^T`, by an odd matrix polynomial iterated to the dtype's
  precision: ``"newton_schulz"`` in the tuning of Jordan et al., finished by Björck's, or
  ``"bjorck"`` throughout, which takes about twice as many steps. The weight is first
  scaled into the range where the polynomials converge, whatever its norm.

  Guarantee: singular values within :math:`4\epsilon\sqrt r` of 1 for those above
  :math:`10\,\epsilon\,\sigma_1` (:math:`r` the smaller dimension, :math:`\epsilon` of
  the params' dtype; checked, not proved). Smaller ones stay between 0 and 1.21; a zero
  operator stays zero. An orthogonal leaf is returned bit for bit.

  Args:
    params: a pytree of arrays; a `Diagonal` becomes its signs.
    method: ``"newton_schulz"`` or ``"bjorck"``.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    A tree like `params`, same dtypes; non-finite slices are left as they are.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: an unknown method, an operator that is no matrix.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.array([[3.0, 0.0], [0.0, -0.1]])}
    >>> lipjax.orthogonalize(params)["kernel"].round(4).tolist()
    [[1.0, 0.0], [0.0, -1.0]]

  Reference:
    Björck & Bowie (1971), SIAM J. Numer. Anal. 8(2); Anil, Lucas & Grosse (2019),
    arXiv:1811.05381, section 4.2; Jordan et al. (2024), "Muon", for the coefficients.
  """
  check_polar_method(method)
  operators, leaves = _resolve(params, layout, layout_overrides)
  ones = dict.fromkeys(operators, 1.0)
  return _replaced(params, map_leaves(ORTHOGONAL_BY_METHOD[method], operators, leaves, ones))


def clip_weights(params: Any, limit: float | jax.Array) -> Any:
  r"""Every weight clipped to :math:`[-c, c]`, biases included: the WGAN's constraint.

  Guarantee: exact, with :math:`c` rounded to each leaf's dtype. It bounds norms crudely:
  :math:`\sigma_1 \le c\sqrt{mn}` for an :math:`m\times n` matrix.

  Args:
    params: a pytree of arrays; every floating-point leaf is clipped.
    limit: :math:`c`, a positive number.

  Returns:
    A tree like `params`, same dtypes. NaNs stay.

  Raises:
    ValueError: a limit that is not positive.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> lipjax.clip_weights({"bias": jnp.array([-3.0, 0.25])}, 1.0)["bias"].tolist()
    [-1.0, 0.25]

  Reference:
    Arjovsky, Chintala & Bottou (2017), arXiv:1701.07875, Algorithm 1.
  """
  check_fixed_number(limit, "limit")

  def clip(_, w):
    bound = jnp.asarray(limit, w.dtype)
    return jnp.clip(w, -bound, bound)

  return map_float_leaves(clip, params)


def check_spectral_method(method: Any) -> None:
  """Raises for an unknown method of the spectral ball."""
  check_choice("method", method, get_args(SpectralMethod))


def check_polar_method(method: Any) -> None:
  """Raises for an unknown method of orthogonalization."""
  check_choice("method", method, get_args(PolarMethod))


def check_order(order: Any) -> None:
  """Raises for an unknown order of an operator norm."""
  check_choice("order", order, get_args(Order))


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
  """Raises for a word that is not one of them."""
  if not isinstance(value, str) or value not in choices:
    msg = f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}."
    raise ValueError(msg)


def _resolve(params, layout, layout_overrides):
  return resolve_operators(params, layout, layout_overrides), float_leaves(params)


def _replaced(params, projected):
  return map_float_leaves(lambda path, w: projected.get(path, w), params)
