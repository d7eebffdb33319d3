"""Which nodes are images, and on which torus each of them is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp

from lipjax.certify.bounds.torus import Torus
from lipjax.certify.facts import Channels, LinearPart, Pointwise, ScalarPart, Shifts
from lipjax.certify.maps import Known, is_nonlinear, live


class Axes(NamedTuple):
  """Where a node has its channels and its image; all other axes have the length 1."""

  channel: int
  spatial: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """All images of a graph.

  Attributes:
    known: the graph.
    axes: of each node that is one.
    torus: of each.
    zero_beside: those whose differences are 0 on the torus beside the image.
  """

  known: Known
  axes: dict[int, Axes]
  torus: dict[int, Torus]
  zero_beside: set[int]

  def channels(self, i: int) -> int:
    """How many an image has."""
    return self.known.nodes[i].shape[self.axes[i].channel]

  def n_values(self, i: int) -> int:
    """Of an image, how many there are for each frequency."""
    return self.channels(i) if i in self.axes else self.known.nodes[i].size

  def sources(self, order: Sequence[int], outputs: Sequence[int]) -> list[int]:
    """The inputs; or the one image that all of them are made into, linearly, before all else."""
    known = self.known
    inputs = [i for i in order if known.part(i) is None]
    roots = [i for i in order if i in self.axes and not self._is_of_images(i)]
    if len(roots) != 1 or known.part(roots[0]) is None:
      return inputs
    (root,) = roots
    earlier = set(live(known, roots)) - {root}
    is_linear = not any(is_nonlinear(known.part(i)) for i in (*earlier, root))
    later = [i for i in order if i not in earlier and i != root]
    is_all = earlier.isdisjoint(outputs) and all(
      earlier.isdisjoint(known.parents(i)) for i in later
    )
    return roots if is_linear and is_all else inputs

  def _is_of_images(self, i: int) -> bool:
    parents = self.known.parents(i)
    return bool(parents) and all(k in self.axes for k in parents)

  def reads_beside(self, i: int) -> bool:
    """Whether an image reads what it must not: what is not 0 beside another one."""
    shifts = _shifts(self.known, i)
    is_wide = shifts is not None and not _is_single(shifts)
    return is_wide and not self.zero_beside.issuperset(self.known.parents(i))

  def per_channel(self, i: int, x: Any) -> Any | None:
    """Numbers that broadcast to an image as one for each channel; None if they differ in it."""
    shape = (1,) * (len(self.known.nodes[i].shape) - jnp.ndim(x)) + jnp.shape(x)
    if any(n != 1 for axis, n in enumerate(shape) if axis != self.axes[i].channel):
      return None
    return jnp.broadcast_to(jnp.ravel(jnp.asarray(x)), (self.channels(i),))


def images_of(known: Known, order: Sequence[int]) -> Images | None:
  """Of a graph with convolutions; None if they do not fit each other."""
  axes = _axes(known, order)
  if not axes or not all(of.spatial for of in axes.values()):
    return None
  images = Images(known, axes, {}, _zero_beside(known, order))
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
      if not _is_of_entries(known, i):
        continue
      channels, alike = _channels(known, i), [i, *known.parents(i)]
      if channels is None:
        alike = [k for k in alike if known.nodes[k].shape == known.nodes[i].shape]
      for found in [axes[k] for k in alike if k in axes][:1]:
        if channels is not None and channels.axis != found.channel:
          continue
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


def _zero_beside(known: Known, order: Sequence[int]) -> set[int]:
  """The nodes whose differences are 0 on the torus beside the image."""
  found: set[int] = set()
  for i in order:
    shifts = _shifts(known, i)
    is_kept = isinstance(known.part(i), LinearPart) and all(k in found for k in known.parents(i))
    # What functions give is made 0 there, and inputs are.
    is_made = not isinstance(known.part(i), LinearPart)
    if is_made or (is_kept and (shifts is None or _is_single(shifts))):
      found.add(i)
  return found


def _shifts(known: Known, i: int) -> Shifts | None:
  part = known.part(i)
  found = part.on_images if isinstance(part, LinearPart) else None
  return found if isinstance(found, Shifts) else None


def _is_single(shifts: Shifts) -> bool:
  is_padded = any(x for pair in shifts.params["padding"] for x in pair)
  return math.prod(window_of(shifts)) == 1 and not is_padded


def _channels(known: Known, i: int) -> Channels | None:
  part = known.part(i)
  found = part.on_images if isinstance(part, LinearPart) else None
  return found if isinstance(found, Channels) else None


def _is_of_entries(known: Known, i: int) -> bool:
  """Whether an entry is made of those at the same place of the image."""
  part = known.part(i)
  if isinstance(part, ScalarPart):
    return True
  return isinstance(part, LinearPart) and isinstance(part.on_images, Pointwise | Channels)


def window_of(shifts: Shifts) -> tuple[int, ...]:
  """How many taps a kernel has along each axis."""
  kernel = shifts.params["dimension_numbers"][1]
  return tuple(shifts.kernel.shape[axis] for axis in kernel[2:])
