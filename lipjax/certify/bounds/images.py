"""Which nodes are images, on which torus each of them is, and the matrices between them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.certify.bounds.torus import Torus, aliases, largest_norm, symbols
from lipjax.certify.facts import LinearPart, Pointwise, ScalarPart, Shifts
from lipjax.certify.maps import Known, is_nonlinear, live
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.products import product, product_lost, underflow


class Axes(NamedTuple):
  """Where a node has its channels and its image; all other axes have the length 1."""

  channel: int
  spatial: tuple[int, ...]


class Way(NamedTuple):
  """The matrices from an image to another one that is not finer.

  Attributes:
    matrix: (K, F, values of the target, values), for K frequencies that are alike in the target.
    lost: at least the norm of what rounding did to one of them.
    frequencies: of the image, (K, F, axes).
  """

  matrix: jax.Array
  lost: jax.Array
  frequencies: np.ndarray

  def plus(self, other: Way) -> Way:
    """Of two ways to the target."""
    total = self.matrix + other.matrix
    lost = self.lost + other.lost + 2 * unit_roundoff(total.dtype) * largest_norm(total)
    lost = lost + underflow(1, total.shape[-2:], total.dtype)
    return Way(total, up(lost, 4), self.frequencies)

  def is_like(self, other: Way) -> bool:
    """Whether both are of the same frequencies."""
    return np.array_equal(self.frequencies, other.frequencies)

  def in_order(self) -> Way:
    """With frequencies that are alike in one order, by whatever strides they became alike."""
    order = np.lexsort(np.moveaxis(self.frequencies[:, 0], -1, 0))
    return Way(self.matrix[order], self.lost, self.frequencies[order])


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """All images of a graph.

  Attributes:
    known: the graph.
    axes: of each node that is one.
    torus: of each.
  """

  known: Known
  axes: dict[int, Axes]
  torus: dict[int, Torus]

  def channels(self, i: int) -> int:
    """How many an image has."""
    return self.known.nodes[i].shape[self.axes[i].channel]

  def n_values(self, i: int) -> int:
    """Of an image, how many there are for each frequency."""
    return self.channels(i) if i in self.axes else self.known.nodes[i].size

  def sources(self, order: Sequence[int]) -> list[int]:
    """The inputs; or the one image that all of them are made into, linearly, before all else."""
    known = self.known
    inputs = [i for i in order if known.part(i) is None]
    roots = [i for i in order if i in self.axes and not self._is_of_images(i)]
    if len(roots) != 1 or known.part(roots[0]) is None:
      return inputs
    (root,) = roots
    earlier = set(live(known, roots)) - {root}
    is_linear = not any(is_nonlinear(known.part(i)) for i in (*earlier, root))
    is_all = not any(
      k in earlier for i in order if i not in earlier and i != root for k in known.parents(i)
    )
    return roots if is_linear and is_all else inputs

  def _is_of_images(self, i: int) -> bool:
    parents = self.known.parents(i)
    return bool(parents) and all(k in self.axes for k in parents)

  def spreads(self, i: int) -> bool:
    """Whether an image reads more than one entry of each channel."""
    shifts = _shifts(self.known, i)
    return shifts is not None and not _is_single(shifts)

  def per_channel(self, i: int, x: Any) -> Any | None:
    """Numbers that broadcast to an image as one for each channel; None if they differ in it."""
    shape = (1,) * (len(self.known.nodes[i].shape) - jnp.ndim(x)) + jnp.shape(x)
    if any(n != 1 for axis, n in enumerate(shape) if axis != self.axes[i].channel):
      return None
    return jnp.broadcast_to(jnp.ravel(jnp.asarray(x)), (self.channels(i),))

  def start(self, target: int) -> Way:
    """From an image to itself."""
    frequencies, n = self.torus[target].frequencies, 2 * self.channels(target)
    wide = self.known.nodes[target].wide
    eye = jnp.broadcast_to(jnp.eye(n, dtype=wide), (1, len(frequencies), n, n))
    return Way(eye, jnp.zeros((), wide), frequencies[None])

  def back(self, i: int, k: int, way: Way) -> Way | None:
    """The way from the k-th parent of a linear node on; None if it is no image's."""
    part = self.known.part(i)
    if not isinstance(part, LinearPart) or self.known.parents(i)[k] not in self.axes:
      return None
    if isinstance(part.on_images, Pointwise):
      factor = self.per_channel(i, part.on_images.factors[k])
      return None if factor is None else _times(way, factor)
    if isinstance(part.on_images, Shifts):
      return self._through(part.on_images, i, way)
    return None

  def _through(self, shifts: Shifts, i: int, way: Way) -> Way:
    (parent,) = self.known.parents(i)
    strides, fine = shifts.params["window_strides"], self.torus[parent]
    taps, places = _taps(shifts)
    taps = taps.astype(way.matrix.dtype)
    frequencies = aliases(way.frequencies, fine, strides)
    step, lost = symbols(taps, places, frequencies, fine, math.prod(strides) ** -0.5)
    unit, size = unit_roundoff(taps.dtype), largest_norm(step)
    # As `_with_folding`; and products that were too small.
    size_of_taps = largest_norm(jnp.sum(jnp.abs(taps), axis=0))
    lost = lost + 4 * shifts.n_folded * unit * size_of_taps + shifts.lost
    step = step.reshape((-1, *way.matrix.shape[:2], *step.shape[-2:]))
    found = jax.vmap(jax.vmap(jax.vmap(product)), (None, 0))(way.matrix, step)
    rounding = jax.vmap(jax.vmap(jax.vmap(product_lost)), (None, 0))(way.matrix, step)
    lost = largest_norm(way.matrix) * lost + way.lost * (size + lost) + jnp.max(rounding)
    return Way(found.reshape((-1, *found.shape[2:])), up(lost, 8), frequencies).in_order()


def images_of(known: Known, order: Sequence[int]) -> Images | None:
  """Of a graph with convolutions; None if they do not fit each other."""
  axes = _axes(known, order)
  if not axes or not all(of.spatial for of in axes.values()):
    return None
  images = Images(known, axes, {})
  if any(not _fits(images, i) for i in order if i in axes):
    return None
  n_axes = {len(of.spatial) for of in axes.values()}
  if len(n_axes) != 1:
    return None
  sizes = [_sizes(images, order, axis) for axis in range(*n_axes)]
  if None in sizes:
    return None
  images.torus.update({i: Torus(tuple(of[i] for of in sizes if of)) for i in axes})
  return images


def _axes(known: Known, order: Sequence[int]) -> dict[int, Axes]:
  """From the convolutions to all that is of the same shape, entry by entry."""
  axes: dict[int, Axes] = {}
  for i in order:
    shifts = _shifts(known, i)
    if shifts is not None:
      left, _, out = shifts.params["dimension_numbers"]
      axes[i] = Axes(out[1], tuple(out[2:]))
      axes.setdefault(known.parents(i)[0], Axes(left[1], tuple(left[2:])))
  is_new = bool(axes)
  while is_new:
    is_new = False
    for i in order:
      if not _is_pointwise(known, i):
        continue
      alike = [k for k in (i, *known.parents(i)) if known.nodes[k].shape == known.nodes[i].shape]
      for found in [axes[k] for k in alike if k in axes][:1]:
        is_new |= any(k not in axes for k in alike)
        axes = dict.fromkeys(alike, found) | axes
  return axes


def _fits(images: Images, i: int) -> bool:
  """Whether an image has one example, and is made of what has the same axes."""
  known, (channel, spatial) = images.known, images.axes[i]
  shape, shifts = known.nodes[i].shape, _shifts(known, i)
  if any(n != 1 for axis, n in enumerate(shape) if axis != channel and axis not in spatial):
    return False
  parents = [k for k in known.parents(i) if k in images.axes]
  if shifts is None:
    return all(images.axes[k] == images.axes[i] for k in parents)
  left = shifts.params["dimension_numbers"][0]
  is_plain = all(d == 1 for d in shifts.params["lhs_dilation"])
  pads = [x for pair in shifts.params["padding"] for x in pair]
  return is_plain and min(pads) >= 0 and images.axes[parents[0]] == Axes(left[1], tuple(left[2:]))


def _sizes(images: Images, order: Sequence[int], axis: int) -> dict[int, int] | None:
  """Of tori along an axis, so large that no convolution reaches around; None if there are none."""
  known, axes = images.known, images.axes
  least = {i: known.nodes[i].shape[of.spatial[axis]] for i, of in axes.items()}
  steps: list[tuple[int, int, int]] = []
  for i in order:
    shifts = _shifts(known, i)
    for k in known.parents(i):
      if i in axes and k in axes:
        steps.append((k, i, 1 if shifts is None else shifts.params["window_strides"][axis]))
        if shifts is not None:
          length = known.nodes[k].shape[axes[k].spatial[axis]]
          least[k] = max(least[k], length + max(shifts.params["padding"][axis]))
  shares = _shares(steps, next(iter(axes)))
  if shares is None or set(shares) != set(axes):
    return None
  whole = math.lcm(*(share.denominator for share in shares.values()))
  unit = max(math.ceil(least[i] / (share * whole)) for i, share in shares.items())
  return {i: int(share * whole * unit) for i, share in shares.items()}


def _shares(steps: list[tuple[int, int, int]], first: int) -> dict[int, Fraction] | None:
  """How long each node is beside the first one, from (fine, coarse, stride); None if it differs."""
  shares, rest = {first: Fraction(1)}, steps
  while rest:
    later = []
    for fine, coarse, stride in rest:
      if fine in shares:
        if shares.setdefault(coarse, shares[fine] / stride) * stride != shares[fine]:
          return None
      elif coarse in shares:
        shares[fine] = shares[coarse] * stride
      else:
        later.append((fine, coarse, stride))
    if len(later) == len(rest):
      return None
    rest = later
  return shares


def is_zero_beside(images: Images, i: int) -> bool:
  """Whether differences of an image are 0 on the torus beside it."""
  known, shifts = images.known, _shifts(images.known, i)
  if shifts is not None:
    return _is_single(shifts) and is_zero_beside(images, known.parents(i)[0])
  if isinstance(known.part(i), LinearPart):
    return all(is_zero_beside(images, k) for k in known.parents(i))
  return True


def _shifts(known: Known, i: int) -> Shifts | None:
  part = known.part(i)
  found = part.on_images if isinstance(part, LinearPart) else None
  return found if isinstance(found, Shifts) else None


def _is_single(shifts: Shifts) -> bool:
  is_padded = any(x for pair in shifts.params["padding"] for x in pair)
  return math.prod(_taps_shape(shifts)) == 1 and not is_padded


def _is_pointwise(known: Known, i: int) -> bool:
  part = known.part(i)
  if isinstance(part, ScalarPart):
    return True
  return isinstance(part, LinearPart) and isinstance(part.on_images, Pointwise)


def _taps_shape(shifts: Shifts) -> tuple[int, ...]:
  kernel = shifts.params["dimension_numbers"][1]
  return tuple(shifts.kernel.shape[axis] for axis in kernel[2:])


def _taps(shifts: Shifts) -> tuple[jax.Array, np.ndarray]:
  """(taps, outputs, inputs), and what each reads for the entry 0."""
  params = shifts.params
  kernel = params["dimension_numbers"][1]
  window = _taps_shape(shifts)
  taps = jnp.transpose(shifts.kernel, (*kernel[2:], kernel[0], kernel[1]))
  taps = taps.reshape((-1, *taps.shape[-2:]))
  groups = params["feature_group_count"]
  if groups > 1:
    n, outputs, inputs = taps.shape
    of = np.eye(groups, dtype=bool)[:, None, :, None]
    blocks = taps.reshape((n, groups, outputs // groups, 1, inputs))
    taps = jnp.where(of, blocks, 0).reshape((n, outputs, groups * inputs))
  places = np.stack(np.unravel_index(np.arange(math.prod(window)), window), -1)
  offsets = [pair[0] for pair in params["padding"]]
  return taps, places * np.asarray(params["rhs_dilation"]) - np.asarray(offsets)


def _times(way: Way, factor: jax.Array) -> Way:
  factor = jnp.tile(factor.astype(way.matrix.dtype), 2)
  matrix = way.matrix * factor
  largest = jnp.max(jnp.abs(factor), initial=0)
  lost = way.lost * largest + 2 * unit_roundoff(matrix.dtype) * largest_norm(matrix)
  lost = lost + underflow(1, matrix.shape[-2:], matrix.dtype)
  return Way(matrix, up(lost, 4), way.frequencies)
