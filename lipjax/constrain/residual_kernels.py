"""Residual layers that are 1-Lipschitz by construction: SLL and CPL, as two plain kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lipjax.constrain.almost_orthogonal import overlaps
from lipjax.constrain.raw_weights import wide_scales, wide_weights
from lipjax.measure.gram import gram_upper_bound, n_gram_steps
from lipjax.rounding.errors import up

#: Hidden entries that read nothing larger are switched off: the derivative would be 1e30 and more.
SMALLEST = 1e-15
#: By how much the norm may be taken too large, for fewer products.
TOLERANCE = 0.01


def sll_kernels(
  kernel: jax.Array, log_scale: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  r"""The two kernels of a residual layer that is 1-Lipschitz by construction (SLL).

  .. math:: x \mapsto x - 2\,W T^{-1} \sigma(W^T x + b), \qquad
     T_{ii} = \sum_j |W^T W|_{ij}\, q_j / q_i

  for any :math:`q > 0` and any activation of slopes in [0, 1] (relu, tanh, sigmoid; not
  gelu or `group_sort`), in Flax's convention::

    inner, outer = lipjax.sll_kernels(raw["kernel"], raw["log_scale"])
    y = x - jax.nn.relu(x @ inner + raw["bias"]) @ outer

  Of a convolution's kernel two convolutions, with steps of 1 and an output of the input's size
  (``"SAME"`` with zeros, or on a circle); channels share a T, from correlations at all shifts.

  Guarantee: :math:`\|f(x) - f(y)\|_2 \le (1 + 4\epsilon\sqrt h)\,\|x - y\|_2` with h hidden entries
  and :math:`\epsilon` of the kernel's dtype; 1 in exact arithmetic, the margin for rounding is
  checked and not proved. `lipschitz_upper_bound` with ``effort="tight"`` proves it, up to a few
  thousandths.

  Args:
    kernel: W, shape (inputs, hidden), or (\*taps, inputs, hidden) with odd numbers of taps. What
      reads nothing above 1e-15 is switched off.
    log_scale: the logarithms of q, shape (hidden,), from -20 to 20, others counting as these; zeros
      when None.

  Returns:
    The inner kernel, which is `kernel`, and the outer one, (hidden, inputs) or (\*taps, hidden,
    inputs), same dtype. With a NaN or an infinity in `kernel` it has NaNs.

  Raises:
    ValueError: integers, fewer than two axes, an even number of taps, scales of another shape.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> kernel = 9 * jax.random.normal(jax.random.key(0), (8, 16))
    >>> inner, outer = lipjax.sll_kernels(kernel)
    >>> layer = lambda x: x - jax.nn.relu(x @ inner) @ outer
    >>> bool(lipjax.lipschitz_upper_bound(layer)(jnp.zeros(8)) < 1.02)
    True

  Reference:
    Araujo, Havens, Delattre, Allauzen & Hu (2023), arXiv:2303.03169.
  """
  wide, scale = _checked(kernel)
  hidden = kernel.shape[-1]
  terms = overlaps(jnp.moveaxis(wide, (-1, -2), (0, 1)))
  if log_scale is not None:
    q = wide_scales(log_scale, hidden, wide.dtype)
    terms = terms * (q / q[:, None])
  return kernel, _outer(kernel, wide, up(jnp.sum(terms, axis=1), hidden), scale)


def cpl_kernels(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
  r"""The two kernels of a convex potential layer (CPL), which is 1-Lipschitz by construction.

  .. math:: x \mapsto x - \frac{2}{\|W\|_2^2}\,W \sigma(W^T x + b)

  for any activation of slopes in [0, 1]: a step of gradient descent on a convex function. Used as
  `sll_kernels` is, for a matrix; all hidden entries are divided by the same number, which is the
  better one if W has few large singular values.

  Guarantee: as of `sll_kernels`. The norm is an upper bound of it by Gram iteration, at most one
  per cent above it.

  Args:
    kernel: W, shape (inputs, hidden).

  Returns:
    The inner kernel, which is `kernel`, and the outer one, (hidden, inputs), same dtype. With a NaN
    or an infinity in `kernel` it has NaNs.

  Raises:
    ValueError: integers, a kernel that is no matrix.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> inner, outer = lipjax.cpl_kernels(jnp.array([[3.0, 0.0], [0.0, 1.0]]))
    >>> print((inner @ outer).round(2))
    [[2.   0.  ]
     [0.   0.22]]

  Reference:
    Meunier, Delattre, Araujo & Allauzen (2022), arXiv:2110.12690.
  """
  if kernel.ndim != 2:
    msg = f"kernel has shape {kernel.shape}; expected (inputs, hidden). Convolutions: sll_kernels."
    raise ValueError(msg)
  wide, scale = _checked(kernel)
  norm = gram_upper_bound(wide, n_steps=n_gram_steps(min(kernel.shape), TOLERANCE))
  return kernel, _outer(kernel, wide, jnp.full(kernel.shape[1], up(jnp.square(norm))), scale)


def _checked(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
  """A kernel with entries of at most 1, in float32 or wider, and what it was divided by."""
  taps = kernel.shape[:-2]
  if kernel.ndim < 2 or not all(n % 2 for n in taps):
    msg = f"kernel has shape {kernel.shape}; expected (*taps, inputs, hidden), odd numbers of taps."
    raise ValueError(msg)
  wide = wide_weights(kernel, "kernel")
  scale = jnp.maximum(jnp.max(jnp.abs(wide), initial=0), SMALLEST)
  return wide / scale, scale


def _outer(kernel: jax.Array, wide: jax.Array, t: jax.Array, scale: jax.Array) -> jax.Array:
  """2 T⁻¹ Wᵀ; of a convolution its adjoint, which reads the taps backwards."""
  is_off = t <= jnp.square(SMALLEST / scale)
  factor = jnp.where(is_off, 0, 2 / jnp.where(is_off, 1, t))
  adjoint = jnp.flip(jnp.swapaxes(wide, -1, -2), axis=range(kernel.ndim - 2))
  return (adjoint * factor[:, None] / scale).astype(kernel.dtype)
