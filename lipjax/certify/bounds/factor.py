"""Cholesky factors of many matrices, one after the other on a CPU.

There a batched call of LAPACK takes a thread and waits for others to do its parts. Two such calls
in one program, which need nothing of each other, may hold all threads and wait for ever: with
jaxlib 0.10 on two cores two batches of four matrices of 256 rows do.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.scipy.linalg import solve_triangular


def factor_and_solve(matrix: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The lower factor L of a matrix, NaN if there is none, and L⁻¹ times another one."""
  # Other devices have true kernels for batches.
  return (_one_by_one if jax.default_backend() == "cpu" else _both)(matrix, right)


def _both(matrix: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
  factor = jnp.linalg.cholesky(matrix)
  return factor, solve_triangular(factor, right, lower=True)


_one_by_one = sequential_vmap(_both)
