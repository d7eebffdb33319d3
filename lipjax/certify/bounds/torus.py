r"""Linear maps that commute with shifts, on a torus: one matrix for each frequency.

An image stands in a corner of a torus that is large enough for no convolution to reach around it.
What a convolution writes beside the image is 0 again after a function with the slope 0 there. In
unitary Fourier coefficients :math:`\hat z(f)` a convolution with stride s is

.. math:: \hat y(g) = \sum_a S(f_a)\,\hat z(f_a)/\sqrt{s}, \qquad
   S(f) = \sum_k w_k\,e^{2\pi i f\cdot(dk - p)/T},

over the frequencies :math:`f_a = g + aT/s` that are alike where every s-th entry is kept.

A complex matrix is the real one of twice its size, :math:`\begin{pmatrix}\Re&-\Im\\ \Im&\Re
\end{pmatrix}`, and of f and -f, which are conjugates for real images, one is enough.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.products import matrix_norm_above, product, product_lost, underflow

#: At least the error of a cosine of an angle of a few turns, in float64.
ANGLES = 64 * 2.0**-53


class Torus(NamedTuple):
  """Of so many entries along each axis."""

  sizes: tuple[int, ...]

  @property
  def frequencies(self) -> np.ndarray:
    """One of f and -f, (F, axes)."""
    return _frequencies(self)[0]

  @property
  def counts(self) -> np.ndarray:
    """How many frequencies each of them stands for: 1 or 2."""
    return _frequencies(self)[1]

  def places(self, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of frequencies (…, axes): which of ours they are, and where it is the conjugate."""
    table = _frequencies(self)[2]
    found = table[tuple(np.moveaxis(frequencies, -1, 0))]
    return found >> 1, (found & 1).astype(bool)

  def over(self, strides: Sequence[int]) -> Torus:
    """Where every s-th entry is kept."""
    return Torus(tuple(n // s for n, s in zip(self.sizes, strides, strict=True)))


@functools.cache
def _frequencies(torus: Torus) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  sizes = np.asarray(torus.sizes)
  every = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1)
  number = np.ravel_multi_index(np.moveaxis(every, -1, 0), torus.sizes)
  opposite = np.ravel_multi_index(np.moveaxis(-every % sizes, -1, 0), torus.sizes)
  first = np.minimum(number, opposite)
  kept, place = np.unique(first, return_inverse=True)
  frequencies = np.stack(np.unravel_index(kept, torus.sizes), -1)
  counts = np.bincount(place.ravel())
  return frequencies, counts, 2 * place.reshape(torus.sizes) + (number != first)


def aliases(frequencies: np.ndarray, fine: Torus, strides: Sequence[int]) -> np.ndarray:
  """Of frequencies (K, F, axes) of the coarser torus those of the finer one, (K', F, axes)."""
  coarse = np.asarray(fine.over(strides).sizes)
  shifts = np.asarray(list(itertools.product(*map(range, strides)))) * coarse
  return (frequencies[None] + shifts[:, None, None]).reshape((-1, *frequencies.shape[1:]))


def symbols(
  taps: jax.Array, places: np.ndarray, frequencies: np.ndarray, torus: Torus, scale: float
) -> tuple[jax.Array, jax.Array]:
  """Of a convolution, real, (…, 2 outputs, 2 inputs), and at least what rounding did to one.

  Args:
    taps: (taps, outputs, inputs).
    places: what entry each tap reads for the entry 0, (taps, axes).
    frequencies: (…, axes).
    torus: of the inputs.
    scale: a factor.
  """
  angles = _angles(frequencies[..., None, :], places, torus)
  waves = np.stack([np.cos(angles), np.sin(angles)], -2).reshape((-1, len(places))) * scale
  flat = taps.reshape((len(taps), -1))
  table = jnp.asarray(waves, flat.dtype)
  found = product(table, flat).reshape((*frequencies.shape[:-1], 2, *taps.shape[1:]))
  real, imaginary = found[..., 0, :, :], found[..., 1, :, :]
  # Of an entry: the table's roundings, and those of the sum.
  unit, size = unit_roundoff(flat.dtype), matrix_norm_above(jnp.sum(jnp.abs(taps), axis=0))
  lost = up(scale * size * (4 * (len(taps) + 4) * unit + ANGLES), 8)
  return as_real(real, imaginary), 2 * lost + underflow(len(taps), taps.shape[1:], flat.dtype)


def _angles(frequencies: np.ndarray, places: np.ndarray, torus: Torus) -> np.ndarray:
  """2π times frequencies times places, less whole turns."""
  sizes = np.asarray(torus.sizes)
  return 2 * np.pi * np.sum(frequencies * places % sizes / sizes, -1)


def as_real(real: jax.Array, imaginary: jax.Array) -> jax.Array:
  """The real matrix of twice the size."""
  rows = jnp.concatenate([real, -imaginary], -1), jnp.concatenate([imaginary, real], -1)
  return jnp.concatenate(rows, -2)


def spectra(rows: jax.Array, torus: Torus) -> tuple[jax.Array, jax.Array]:
  r"""Linear functions of an image, (rows, channels, image axes), as those of its coefficients.

  Returns:
    (F, rows, 2 channels), and at least the norm of what rounding did to one of them. The
    covariances of frequencies times these, added, are that of the values.
  """
  window = rows.shape[2:]
  places = np.stack(np.unravel_index(np.arange(math.prod(window)), window), -1)
  angles = _angles(torus.frequencies, places[:, None], torus)
  # Of the conjugate coefficients the real part of what they add up to.
  roots = np.sqrt(torus.counts / math.prod(torus.sizes))
  waves = np.stack([np.cos(angles), -np.sin(angles)], -1) * roots[:, None]
  table = jnp.asarray(waves.reshape((len(places), -1)), rows.dtype)
  flat = rows.reshape((-1, len(places)))
  found = product(flat, table).reshape((*rows.shape[:2], -1, 2))
  # Of one frequency: two columns of the table, in which the squares of a row are `roots` squared.
  off = 4 * unit_roundoff(rows.dtype) + ANGLES
  lost = up(off * matrix_norm_above(flat) * math.sqrt(len(places)) * float(roots.max()), 8)
  columns = jnp.moveaxis(table.reshape((len(places), -1, 2)), 1, 0)
  rounding = jnp.max(jax.vmap(functools.partial(product_lost, flat))(columns))
  # In another shape, as it is used, their norm is at most √2 times that of two columns.
  lost = up(math.sqrt(2) * (lost + rounding), 3)
  shape = (len(torus.counts), rows.shape[0], 2 * rows.shape[1])
  return jnp.transpose(found, (2, 0, 3, 1)).reshape(shape), lost


def conjugated(blocks: jax.Array, where: Any) -> jax.Array:
  """Real matrices of complex ones (…, n, n), of their conjugates where it is said."""
  n = blocks.shape[-1] // 2
  sign = np.where(np.arange(2 * n) < n, 1, -1).astype(blocks.dtype)
  return jnp.where(where[..., None, None], blocks * (sign[:, None] * sign), blocks)
