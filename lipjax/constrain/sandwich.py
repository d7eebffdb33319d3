"""Sandwich layers, 1-Lipschitz by construction, as two plain kernels."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from lipjax.constrain.orthogonal_map import cayley, orthonormal
from lipjax.constrain.raw_weights import wide_scales, wide_weights


def sandwich_kernels(
  raw: jax.Array, log_scale: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  r"""The two kernels of a layer that is 1-Lipschitz by construction, and no residual one.

  .. math:: x \mapsto \sqrt2\,A^T \Psi\, \sigma(\sqrt2\,\Psi^{-1} B x + b), \qquad
     AA^T + BB^T = I

  for any positive diagonal :math:`\Psi` and any activation of slopes in [0, 1]; A and B are parts
  of the orthogonal matrix that the Cayley map makes of the raw weights (`orthogonal_map`). As Flax
  has kernels::

    inner, outer = lipjax.sandwich_kernels(raw["kernel"], raw["log_scale"])
    y = jax.nn.relu(x @ inner + raw["bias"]) @ outer

  Guarantee: as of `sll_kernels`.

  Args:
    raw: any numbers, shape (hidden + inputs, hidden).
    log_scale: the logarithms of :math:`\Psi`, shape (hidden,), from -20 to 20, others counting as
      these; zeros when None.

  Returns:
    The inner kernel, (inputs, hidden), and the outer one, (hidden, hidden), of the raw dtype. With
    a NaN or an infinity in `raw` they have NaNs.

  Raises:
    ValueError: integers, raw weights or scales of another shape.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> inner, outer = lipjax.sandwich_kernels(jax.random.normal(jax.random.key(0), (12, 8)))
    >>> inner.shape, outer.shape
    ((4, 8), (8, 8))

  Reference:
    Wang & Manchester (2023), arXiv:2301.11526.
  """
  hidden = jnp.shape(raw)[-1] if jnp.ndim(raw) == 2 else 0
  if jnp.ndim(raw) != 2 or len(raw) <= hidden:
    msg = f"raw has shape {jnp.shape(raw)}; expected (hidden + inputs, hidden)."
    raise ValueError(msg)
  q = orthonormal(cayley, wide_weights(raw, "raw"))
  scale = jnp.ones(hidden, q.dtype)
  if log_scale is not None:
    scale = wide_scales(log_scale, hidden, q.dtype)
  inner, outer = q[hidden:] / scale, scale[:, None] * q[:hidden].T
  return (math.sqrt(2) * inner).astype(raw.dtype), (math.sqrt(2) * outer).astype(raw.dtype)
