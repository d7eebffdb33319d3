"""The matrices between images, for each frequency."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.certify.bounds.images import Images
from lipjax.certify.bounds.reach import reach_of
from lipjax.certify.bounds.torus import aliases, symbols
from lipjax.certify.facts import Channels, LinearPart, Pointwise, Shifts, Windows
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.numbers import max_magnitude
from lipjax.rounding.products import matrix_norm_above, product, product_lost, underflow


class Way(NamedTuple):
  """The matrices from an image to another one that is not finer.

  Attributes:
    matrix: (K, F, values of the target, values), for K frequencies that are alike in the target.
    lost: at least the norm of what rounding did to one of them.
    frequencies: of the image, (K, F, axes).
    is_start: whether it is the target's to itself.
  """

  matrix: jax.Array
  lost: jax.Array
  frequencies: np.ndarray
  is_start: bool = False

  def plus(self, other: Way) -> Way | None:
    """Of two ways to the target; None if they are of other frequencies."""
    if not self.is_like(other):
      return None
    total = self.matrix + other.matrix
    lost = self.lost + other.lost + 2 * unit_roundoff(total.dtype) * matrix_norm_above(total)
    lost = lost + underflow(1, total.shape[-2:], total.dtype)
    return Way(total, up(lost, 4), self.frequencies)

  def is_like(self, other: Way) -> bool:
    """Whether both are of the same frequencies."""
    return np.array_equal(self.frequencies, other.frequencies)

  def in_order(self) -> Way:
    """With frequencies that are alike in one order, by whatever strides they became alike."""
    order = np.lexsort(np.moveaxis(self.frequencies[:, 0], -1, 0))
    return Way(self.matrix[order], self.lost, self.frequencies[order])


def start_way(images: Images, target: int) -> Way:
  """From an image to itself."""
  frequencies, n = images.torus[target].frequencies, 2 * images.channels(target)
  wide = images.known.nodes[target].wide
  eye = jnp.broadcast_to(jnp.eye(n, dtype=wide), (1, len(frequencies), n, n))
  return Way(eye, jnp.zeros((), wide), frequencies[None], is_start=True)


def way_back(images: Images, i: int, k: int, way: Way) -> Way | None:
  """The way from the k-th parent of a linear node on; None if it is no image's."""
  part = images.known.part(i)
  is_image = images.known.parents(i)[k] in images.axes
  if not isinstance(part, LinearPart) or not is_image or images.reads_beside(i):
    return None
  if isinstance(part.on_images, Pointwise):
    factor = images.per_channel(i, part.on_images.factors[k])
    return None if factor is None else _times(way, factor)
  if isinstance(part.on_images, Shifts | Windows):
    return _through(images, part.on_images, i, way)
  if isinstance(part.on_images, Channels):
    return _taken(way, part.on_images.places[k])
  return None


def _through(images: Images, on_images: Shifts | Windows, i: int, way: Way) -> Way:
  (parent,), reach = images.known.parents(i), reach_of(on_images, images.axes[i])
  strides, fine = reach.strides, images.torus[parent]
  if isinstance(on_images, Shifts):
    taps = _taps(on_images).astype(way.matrix.dtype)
  else:
    eye = jnp.eye(images.channels(i), dtype=way.matrix.dtype)
    taps = jnp.broadcast_to(eye, (math.prod(reach.sizes), *eye.shape))
  frequencies = aliases(way.frequencies, fine, strides)
  step, lost = symbols(taps, reach.places, frequencies, fine, math.prod(strides) ** -0.5)
  if isinstance(on_images, Shifts):
    # As `_with_folding`; and products that were too small.
    off = 4 * on_images.n_folded * unit_roundoff(taps.dtype)
    size = matrix_norm_above(jnp.sum(jnp.abs(taps), axis=0))
    lost = lost + off * size + on_images.lost
  if way.is_start:
    return Way(step, up(lost, 4), frequencies).in_order()
  step = step.reshape((-1, *way.matrix.shape[:2], *step.shape[-2:]))
  found = jax.vmap(jax.vmap(jax.vmap(product)), (None, 0))(way.matrix, step)
  rounding = jax.vmap(jax.vmap(jax.vmap(product_lost)), (None, 0))(way.matrix, step)
  size = matrix_norm_above(step) + lost
  lost = matrix_norm_above(way.matrix) * lost + way.lost * size + jnp.max(rounding)
  return Way(found.reshape((-1, *found.shape[2:])), up(lost, 8), frequencies).in_order()


def _taps(shifts: Shifts) -> jax.Array:
  """(taps, outputs, inputs)."""
  params = shifts.params
  kernel = params["dimension_numbers"][1]
  taps = jnp.transpose(shifts.kernel, (*kernel[2:], kernel[0], kernel[1]))
  taps = taps.reshape((-1, *taps.shape[-2:]))
  groups = params["feature_group_count"]
  if groups > 1:
    n, outputs, inputs = taps.shape
    of = np.eye(groups, dtype=bool)[:, None, :, None]
    blocks = taps.reshape((n, groups, outputs // groups, 1, inputs))
    taps = jnp.where(of, blocks, 0).reshape((n, outputs, groups * inputs))
  return taps


def _taken(way: Way, places: np.ndarray) -> Way:
  """Each channel from its place, or nowhere."""
  n = way.matrix.shape[-1] // 2
  both = jnp.where(np.tile(places < 0, 2), 0, way.matrix[..., np.concatenate([places, places + n])])
  return way._replace(matrix=both, is_start=False)


def _times(way: Way, factor: jax.Array) -> Way:
  factor = jnp.tile(factor.astype(way.matrix.dtype), 2)
  matrix = way.matrix * factor
  largest = max_magnitude(factor)
  lost = way.lost * largest + 4 * unit_roundoff(matrix.dtype) * matrix_norm_above(matrix)
  lost = lost + underflow(1, matrix.shape[-2:], matrix.dtype)
  return Way(matrix, up(lost, 4), way.frequencies)
