r"""One step of block power iteration with Rayleigh–Ritz, on many operators at once.

A matrix is read from memory once whether it multiplies one vector or sixteen. So a step
takes the last two blocks of right vectors, :math:`V` and :math:`V_-`, through
:math:`W^TW`,

.. math:: Y = W [V, V_-], \qquad Q = \mathrm{orth}(Y), \qquad Z = W^T Q
          = V' \Sigma S^T,

and keeps the top k singular values of :math:`Z` with their right vectors :math:`V'` and
left vectors :math:`Q S`. The block before does for a subspace what momentum does for a
vector.

Blocks are rows: for each group of equal operators an array ``(operators, rows, size)``.
Only the products with weights and sums over `size` see these; everything else happens in
matrices of ``rows × rows``, those of all groups in one stack, which is also all that a
mesh has to add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.measure.block import fixed_rows
from lipjax.measure.factors import cholesky, solve_lower
from lipjax.measure.scaling import nonzero

Rows = list[jax.Array]
Probe = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

#: Below this share of the top singular value a direction is lost in rounding.
LOST = 1e-3
#: The largest ratio of squared singular values that is told from 1.
NEAR_ONE = 0.998

#: By how much errors are taken to be larger than they seem, as the estimate is at times half
#: of the truth. More for operators with probes: their singular values come in clusters, of
#: which as much lies outside a block as in it.
SAFETY, CLUSTERED = 2.0, 4.0


class Step(NamedTuple):
  """What a step finds; all but the vectors have one row for every operator.

  Attributes:
    sigma: the top k singular values, ``(operators, k)``.
    u: the top left vectors, for each group ``(operators, 1, size)``.
    v: the k new right vectors and the k before, for each group ``(operators, 2k, size)``.
    error: an estimate of the relative error of the top value, ``(operators,)``.
    gain: by how much the top value is above what the old top vector gives, ``(operators,)``.
    promise: by how much the norm may be larger, after what the probes have shown.
  """

  sigma: jax.Array
  u: Rows
  v: Rows
  error: jax.Array
  gain: jax.Array
  promise: jax.Array


def subspace_step(
  apply: Callable[[Rows], Rows],
  adjoint: Callable[[Rows], Rows],
  probes: Sequence[Probe | None],
  sigma: jax.Array,
  v: Rows,
) -> Step:
  r"""The next block of every operator.

  **Error.** What is left of the relative error of :math:`\sigma_1` after the step is about
  :math:`s^2 q/(1 - q)`, with s the sine of the angle between the new top vector and the
  old block, and q the smallest squared ratio of singular values in the subspace, by which
  what lies outside shrinks. In closed loops and from cold that was right within a factor
  of three; it is no bound. Where many singular values are equal, vectors turn and the value
  stays: s² is taken to be at most four times what the value gained over the old vector's.

  Args:
    apply: from rows of inputs to rows of outputs, for every group.
    adjoint: the reverse.
    probes: for each group None, or `LinearOperator.probes` of all operators: it makes the
      last rows of the next block, out of the image of this one's last row.
    sigma: of the step before, ``(operators, k)``; 0 for none.
    v: of the step before.
  """
  k = sigma.shape[-1]
  y, y_scale = _scaled(apply(v))
  inner = _gram(y)
  whiten = _inverse_factor(inner, y)
  q = _combine(whiten, y)
  # ‖WᵀQ‖ is about as large as WV, so that its squares are within the range as well.
  z = _divided(adjoint(q), y_scale)
  theta, s = _eigh(_gram(z))
  right, left = _combine(_t(s)[:, :k], z), _combine(_t(s)[:, :1], q)
  length, left_length = _length(right), _length(left)
  # The first is ‖Wᵀu‖ for the unit vector u, whatever rounding has done to Q.
  is_first = jnp.arange(k) == 0
  values = length / nonzero(jnp.where(is_first, left_length, 1)) * y_scale[:, None]
  top = values[:, 0]

  gain = jnp.where(top > 0, 1 - jnp.sqrt(inner[:, 0, 0]) * y_scale / nonzero(top), 0)
  # ⟨v', old rows⟩, from what W makes of these rows: W [V, V₋] = Q (Q^T Y).
  factor = _dot(inner, _t(whiten))
  overlap = _dot(factor, s[:, :, :1])[:, :k, 0]
  overlap /= nonzero(length[:, :1])
  inside = jnp.sum(jnp.where(sigma > LOST * sigma[:, :1], jnp.square(overlap), 0), axis=1)
  smallest = jnp.min(jnp.where(theta > LOST**2 * theta[:, :1], theta, jnp.inf), axis=1)
  ratio = jnp.minimum(smallest / nonzero(theta[:, 0]), NEAR_ONE)
  outside = jnp.maximum(jnp.minimum(1 - inside, 4 * gain), 0)
  error = jnp.where(top > 0, _margins(probes, v) * outside * ratio / (1 - ratio), 0)

  found = (length > LOST * length[:, :1]) & (values > 0)
  right, left = _unit(right, length, found), _unit(left, left_length, found[:, :1])
  v, promise = _with_history(right, v, probes, factor[:, -1:], z)
  promise = jnp.sqrt(promise) * y_scale / nonzero(top) - 1
  values = jnp.where(found | jnp.isnan(values), values, 0)
  return Step(values, left, v, error, gain, promise)


def _margins(probes: Sequence[Probe | None], v: Rows) -> np.ndarray:
  """What each operator's error is multiplied by."""
  margins = [SAFETY if probe is None else CLUSTERED for probe in probes]
  return np.repeat(np.asarray(margins, np.float32), [x.shape[0] for x in v])


def top_vectors(apply: Callable[[Rows], Rows], v: Rows) -> Rows:
  r"""The right vector of every operator with the largest :math:`\|Wv\|` in the span of rows.

  Args:
    apply: from rows of inputs to rows of outputs, for every group.
    v: rows of any lengths, ``(operators, rows, size)`` for each group.

  Returns:
    ``(operators, 1, size)`` for each group, of length 1 but for rounding.
  """
  q = _combine(_inverse_factor(_gram(v), v), v)
  y, _ = _scaled(apply(q))
  _, s = _eigh(_gram(y))
  return _combine(_t(s)[:, :1], q)


def _with_history(
  new: Rows, old: Rows, probes: Sequence[Probe | None], last: jax.Array, z: Rows
) -> tuple[Rows, jax.Array]:
  """The next block: the new rows, then old ones and probes; and how much the probes grew."""
  v, grown = [], []
  for x, before, probe, coefficients, zs in zip(new, old, probes, _split(last, z), z, strict=True):
    k = x.shape[1]
    if probe is None:
      v.append(jnp.concatenate([x, before[:, :k]], axis=1))
      grown.append(jnp.zeros(x.shape[0], last.dtype))
      continue
    image = _dot(coefficients.astype(zs.dtype), zs)
    rest = image - _dot(_dot(image, _t(x)), x)
    found, growth = probe(image[:, 0], rest[:, 0])
    v.append(jnp.concatenate([x, before[:, : k - found.shape[1]], found], axis=1))
    grown.append(growth.astype(last.dtype))
  return v, jnp.concatenate(grown)


def _scaled(rows: Rows) -> tuple[Rows, jax.Array]:
  """Every operator's rows by their largest magnitude, so that no square leaves the range.

  Rows with a NaN or an infinity become 0, and their scale NaN.
  """
  largest = jnp.concatenate([jnp.max(jnp.abs(x), axis=(1, 2), initial=0) for x in rows])
  scale = jnp.where(jnp.isfinite(largest), largest, jnp.nan)
  return _divided(rows, scale), scale


def _divided(rows: Rows, scale: jax.Array) -> Rows:
  """Every operator's rows by its scale; 0 where that is NaN."""
  return [
    jnp.where(jnp.isnan(by)[:, None, None], 0, x / nonzero(by.astype(x.dtype))[:, None, None])
    for x, by in zip(rows, _split(scale, rows), strict=True)
  ]


def _gram(rows: Rows) -> jax.Array:
  """Inner products of the rows of every operator."""
  return jnp.concatenate([_dot(x, _t(x)) for x in rows])


def _combine(coefficients: jax.Array, rows: Rows) -> Rows:
  """Linear combinations of the rows of every operator."""
  parts = zip(_split(coefficients, rows), rows, strict=True)
  return [_dot(c.astype(x.dtype), x) for c, x in parts]


def _inverse_factor(gram: jax.Array, rows: Rows) -> jax.Array:
  """The inverse of a Cholesky factor, which makes rows with this Gram matrix orthonormal.

  Rows that depend on others but for rounding, each group's in its own dtype, become short
  instead of long.
  """
  each = [np.full(x.shape[0], 64 * jnp.finfo(x.dtype).eps, gram.dtype) for x in rows]
  damping = np.concatenate(each)[:, None, None]
  size = nonzero(jnp.max(jnp.diagonal(gram, axis1=1, axis2=2), axis=1))[:, None, None]
  one = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
  damped = gram / size + damping * one
  inverse = jax.vmap(solve_lower)(jax.vmap(cholesky)(damped), one)
  return inverse / jnp.sqrt(size)


def _eigh(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Eigenvalues, largest first and none negative, and the eigenvectors as columns.

  Of the two signs of a vector the one with a positive sum: then vectors that have converged
  do not change sign from step to step, nor from one machine to another.
  """
  n = gram.shape[0]
  if n == 1 and jax.default_backend() != "cpu":
    # A GPU's routine for stacks takes a fifth of the time of the one for a single matrix.
    gram = jnp.concatenate([gram, gram])
  vectors, values = lax.linalg.eigh(gram, symmetrize_input=False)
  values, vectors = lax.rev(values[:n], (1,)), lax.rev(vectors[:n], (2,))
  flip = jnp.sum(vectors, axis=1, keepdims=True) < 0
  return jnp.maximum(values, 0), jnp.where(flip, -vectors, vectors)


def _length(rows: Rows) -> jax.Array:
  """Of every row, ``(operators, rows)``."""
  return jnp.concatenate([jnp.sqrt(jnp.sum(jnp.square(x), axis=2)) for x in rows])


def _unit(rows: Rows, length: jax.Array, good: jax.Array) -> Rows:
  """Rows of length 1, with fixed ones where a direction is lost."""
  return [
    jnp.where(
      is_good[..., None],
      x / nonzero(by.astype(x.dtype))[..., None],
      fixed_rows(*x.shape[1:], dtype=x.dtype),
    )
    for x, by, is_good in zip(rows, _split(length, rows), _split(good, rows), strict=True)
  ]


def _split(x: jax.Array, rows: Rows) -> list[jax.Array]:
  """The parts of a stack that belong to the groups."""
  ends = np.cumsum([group.shape[0] for group in rows])[:-1].tolist()
  return jnp.split(x, ends)


def _t(x: jax.Array) -> jax.Array:
  return jnp.swapaxes(x, -1, -2)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
