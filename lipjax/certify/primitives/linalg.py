"""Linear systems with constant matrices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, LinearPart, Operand
from lipjax.certify.graph import Node
from lipjax.certify.primitives.record import record
from lipjax.measure.gram import gram_upper_bound
from lipjax.rounding.errors import gamma, up
from lipjax.rounding.numbers import tiny


def _lower() -> Any:
  return jnp.array([[2.0, 0.0], [1.0, -1.0]])


@record(
  "triangular_solve",
  examples=[
    lambda x: jax.scipy.linalg.solve_triangular(_lower(), x, lower=True),
    lambda x: jax.scipy.linalg.solve_triangular(_lower(), x, lower=True, trans=1),
  ],
)
def triangular_solve(node: Node, matrix: Operand, x: Operand) -> Depends:
  """The norm of the inverse of a constant matrix, the largest of a batch."""
  p = node.params
  if matrix.moves:
    msg = (
      f"'triangular_solve' with a matrix that depends on the input{node.line} has no rule: its"
      " slope has no bound where the matrix is nearly singular."
    )
    raise CertifyError(msg)
  a = jnp.asarray(matrix.value, x.node.wide)
  n = a.shape[-1]
  triangle = jnp.tril(a) if p["lower"] else jnp.triu(a)
  if p["unit_diagonal"]:
    triangle = triangle * (1 - jnp.eye(n, dtype=a.dtype)) + jnp.eye(n, dtype=a.dtype)
  options = {"left_side": p["left_side"], "lower": p["lower"], "transpose_a": p["transpose_a"]}
  options |= {"conjugate_a": False, "unit_diagonal": p["unit_diagonal"]}
  apply = lambda b: jax.lax.linalg.triangular_solve(a.astype(b.dtype), b, **options)
  norm, lost = _inverse_norm(triangle.reshape((-1, n, n)))
  part = LinearPart(apply, (lambda: norm,), roundings=4 * n + 16, lost=lost)
  return Depends(part, (x.place,))


def _inverse_norm(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
  r"""At least the largest norm of the inverses, and what a solution loses of that by rounding.

  With any X, :math:`\|A^{-1}\| \le \|X\|/(1 - \|I - XA\|)`, if that is positive. A solution by
  substitution is off by at most :math:`\gamma_n |A^{-1}||A||A^{-1}||b|` (Higham 2002, theorem 8.5).
  """
  n = matrices.shape[-1]
  inverse = jnp.linalg.inv(matrices)
  product = jnp.matmul(inverse, matrices, precision=jax.lax.Precision.HIGHEST)
  residual = jnp.eye(n, dtype=matrices.dtype) - product
  size = jnp.matmul(jnp.abs(inverse), jnp.abs(matrices), precision=jax.lax.Precision.HIGHEST)
  lost = up(gamma(n + 2, matrices.dtype) * size, n + 8) + 2 * n * tiny(matrices.dtype)
  off = gram_upper_bound(jnp.abs(residual) + lost)
  known = jnp.maximum(1 - up(off, 8), 0)
  norm = up(gram_upper_bound(inverse) / known, 8)
  # Magnitudes of the exact inverse have at most √n times the norm.
  condition = up(gram_upper_bound(size + lost) / known, 8)
  off_by = gamma(4 * n + 8, matrices.dtype) * n * condition * norm
  worst = lambda x: jnp.max(jnp.where(jnp.isnan(x), jnp.inf, x), initial=0)
  return worst(norm), up(worst(off_by), 8)
