"""Orthogonal convolutions, as plain kernels."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.constrain.orthogonal_map import cayley, orthonormal
from lipjax.constrain.raw_weights import wide_weights


def orthogonal_convolution(raw: jax.Array, shape: Sequence[int]) -> jax.Array:
  r"""The kernel of an orthogonal convolution, from raw weights (BCOP).

  .. math:: K(z) = H \prod_a \prod_{i=1}^{k_a - 1} \big(P_{ai} + (I - P_{ai})\,z_a\big)

  as a polynomial in the shifts :math:`z_a` along the axes, with H orthogonal and P projections
  onto half of the channels: each factor is orthogonal, and so is the convolution on a circle. With
  zeros around the input (``"SAME"``) its norm is at most 1. All from the raw weights by the Cayley
  map (`orthogonal_map`). With fewer outputs than inputs, or more, it is a part of the larger one.

  Guarantee: :math:`\sigma_1 \le 1 + 4\epsilon\sqrt{c}\,n` with c channels, n factors and
  :math:`\epsilon` of the raw dtype, and all singular values so near 1 on a circle if there are as
  many outputs as inputs; checked, not proved.

  Args:
    raw: any numbers, shape (1 + Σ (taps - 1), c, c) with c the larger number of channels.
    shape: of the kernel, (\*taps, inputs, outputs).

  Returns:
    The kernel, of the raw dtype; of NaNs and infinities NaNs.

  Raises:
    ValueError: integers, fewer than three axes, raw weights of another shape; it says of which.

  Example:
    >>> import jax, lipjax
    >>> raw = jax.random.normal(jax.random.key(0), (5, 4, 4))
    >>> kernel = lipjax.orthogonal_convolution(raw, (3, 3, 4, 4))
    >>> layout = {"kernel": lipjax.Convolution((8, 8), padding="CIRCULAR")}
    >>> round(float(lipjax.spectral_norms({"kernel": kernel}, layout=layout)["kernel"]), 4)
    1.0

  Reference:
    Li, Haque, Anil, Lucas, Grosse & Jacobsen (2019), arXiv:1911.00937.
  """
  if len(shape) < 3 or min(shape) < 1:
    msg = f"shape is {tuple(shape)}; expected (*taps, inputs, outputs), each at least 1."
    raise ValueError(msg)
  *taps, inputs, outputs = shape
  channels = max(inputs, outputs)
  expected = (1 + sum(n - 1 for n in taps), channels, channels)
  if jnp.shape(raw) != expected:
    msg = (
      f"raw has shape {jnp.shape(raw)}; expected {expected} for a kernel of shape {tuple(shape)}."
    )
    raise ValueError(msg)
  wide = wide_weights(raw, "raw")
  half = orthonormal(cayley, wide[1:, :, : channels // 2])
  projections = jnp.einsum("kir,kjr->kij", half, half, precision=lax.Precision.HIGHEST)
  # (*taps so far, inputs, outputs), one axis after the other.
  kernel = orthonormal(cayley, wide[0]).reshape((1,) * len(taps) + (channels, channels))
  axes = [axis for axis, n in enumerate(taps) for _ in range(n - 1)]
  for axis, p in zip(axes, projections, strict=True):
    kernel = _longer(kernel, p, axis)
  return kernel[..., :inputs, :outputs].astype(raw.dtype)


def _longer(kernel: jax.Array, p: jax.Array, axis: int) -> jax.Array:
  """Times P + (I - P) z."""
  kept = jnp.matmul(kernel, p, precision=lax.Precision.HIGHEST)
  pad = lambda x, before: jnp.pad(
    x, [(before, 1 - before) if i == axis else (0, 0) for i in range(x.ndim)]
  )
  return pad(kept, 0) + pad(kernel - kept, 1)
