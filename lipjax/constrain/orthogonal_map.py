"""Orthogonal weights as smooth functions of raw ones: the Cayley map and the exponential."""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.constrain.leaves import map_leaves, on_matrices
from lipjax.constrain.polar import polished
from lipjax.constrain.projections import check_choice
from lipjax.measure.scaling import nonzero
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import float_leaves, map_float_leaves
from lipjax.operators.resolve import Overrides, resolve_operators

OrthogonalMap = Literal["cayley", "exponential"]

#: In Frobenius' norm raw weights beyond it are scaled back: rounding would be all that is left.
LARGEST = 1e3


def orthogonal_map(
  params: Any,
  *,
  method: OrthogonalMap = "cayley",
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> Any:
  r"""Every operator replaced by one with orthonormal rows or columns, a smooth function of it.

  Of a tall matrix with the square part U above V,

  .. math:: \begin{pmatrix} U \\ V \end{pmatrix} \mapsto
     \begin{pmatrix} (I - A)(I + A)^{-1} \\ -2V(I + A)^{-1} \end{pmatrix},
     \qquad A = U - U^T + V^TV

  for ``"cayley"``, and the first columns of :math:`\exp\begin{pmatrix} U - U^T & -V^T \\ V & 0
  \end{pmatrix}` for ``"exponential"``; of a wide matrix the transposes. A parametrization: raw
  params are trained, the network is applied with the result, and a plain Dense runs it afterwards.
  Unlike `orthogonalize`, which gives the nearest one, it has derivatives everywhere, and zeros and
  weights of any rank become orthogonal too.

  Guarantee: singular values within :math:`4\epsilon\sqrt r` of 1 (r the smaller dimension,
  :math:`\epsilon` that of the params' dtype; checked, not proved).

  Args:
    params: a pytree of arrays; a `Diagonal` becomes its signs. Raw weights of a Frobenius norm
      above 1000 count as scaled to that.
    method: ``"cayley"``, one solution of linear equations, or ``"exponential"``.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    A tree like `params`, same dtypes; non-finite slices are left as they are.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: an unknown method, an operator that is no matrix.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> raw = {"kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]])}
    >>> q = lipjax.orthogonal_map(raw)["kernel"]
    >>> (q @ q.T).round(4).tolist()
    [[1.0, 0.0], [0.0, 1.0]]

  Reference:
    Trockman & Kolter (2021), arXiv:2104.07167; Lezcano-Casado & Martínez-Rubio (2019),
    arXiv:1901.08428.
  """
  check_choice("method", method, get_args(OrthogonalMap))
  operators, leaves = resolve_operators(params, layout, layout_overrides), float_leaves(params)
  mapped = map_leaves(_BY_METHOD[method], operators, leaves, dict.fromkeys(operators, 1.0))
  return map_float_leaves(lambda path, w: mapped.get(path, w), params)


def cayley(x: jax.Array) -> jax.Array:
  """Of tall matrices (…, n, m)."""
  m = x.shape[-1]
  upper, lower = x[..., :m, :], x[..., m:, :]
  a = upper - _transposed(upper) + _matmul(_transposed(lower), lower)
  eye = jnp.eye(m, dtype=x.dtype)
  inverse = _inverse(eye + a)
  return jnp.concatenate([2 * inverse - eye, -2 * _matmul(lower, inverse)], axis=-2)


@jax.custom_jvp
def _inverse(x: jax.Array) -> jax.Array:
  return jnp.linalg.inv(x)


@_inverse.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  """By products, which take less time than solving equations again."""
  inverse = _inverse(*primals)
  return inverse, -_matmul(_matmul(inverse, tangents[0]), inverse)


def exponential(x: jax.Array) -> jax.Array:
  """Likewise."""
  n, m = x.shape[-2:]
  full = jnp.concatenate([x, jnp.zeros((*x.shape[:-2], n, n - m), x.dtype)], axis=-1)
  return jax.scipy.linalg.expm(full - _transposed(full))[..., :m]


def orthonormal(of_tall: Any, x: jax.Array) -> jax.Array:
  """Orthonormal rows or columns, of matrices (…, m, n) in float32 or wider."""
  is_wide = x.shape[-1] > x.shape[-2]
  found = polished(of_tall(_bounded(_transposed(x) if is_wide else x)))
  return _transposed(found) if is_wide else found


def _bounded(x: jax.Array) -> jax.Array:
  # In units of at least 1: that of small weights has no derivative that is finite.
  unit = jnp.maximum(jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0), 1)
  norm = jnp.sqrt(nonzero(jnp.sum(jnp.square(x / unit), axis=(-2, -1), keepdims=True)))
  return jnp.where(norm > LARGEST / unit, x / unit * (LARGEST / norm), x)


def _mapped(of_tall: Any, operator: Any, w: jax.Array, _: jax.Array) -> jax.Array:
  return on_matrices(lambda x, _: orthonormal(of_tall, x), lambda w, _: jnp.sign(w), operator, w, 1)


_BY_METHOD = {
  "cayley": functools.partial(_mapped, cayley),
  "exponential": functools.partial(_mapped, exponential),
}


def _transposed(x: jax.Array) -> jax.Array:
  return jnp.swapaxes(x, -1, -2)


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)
