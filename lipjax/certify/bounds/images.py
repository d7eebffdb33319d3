"""Which nodes are images, and on which torus each of them is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp

from lipjax.certify.bounds.reach import Axes, Reach, reach_of
from lipjax.certify.bounds.torus import Torus
from lipjax.certify.facts import (
  Channels,
  Facts,
  LinearPart,
  LipschitzPart,
  Pointwise,
  ScalarPart,
  Shifts,
  Windows,
)
from lipjax.certify.maps import Known, is_nonlinear, live


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

  def lengths(self, i: int) -> list[int]:
    """Of an image, along its axes."""
    return [self.known.nodes[i].shape[axis] for axis in self.axes[i].spatial]

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
    reach, parents = self.reach(i), self.known.parents(i)
    if reach is None or self.zero_beside.issuperset(parents):
      return False
    return reach.reads_beside(self.lengths(parents[0]), self.lengths(i))

  def reach(self, i: int) -> Reach | None:
    """What an entry of an image reads of another one; None if it is what is at its place."""
    found = _on_images(self.known, i)
    return reach_of(found, self.axes[i]) if isinstance(found, Shifts | Windows) else None

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
  images = Images(known, axes, {}, set())
  images.zero_beside.update(_zero_beside(images, order))
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
      if channels is None and not isinstance(_on_images(known, i), Windows):
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
  shape, shifts, reach = known.nodes[i].shape, _shifts(known, i), images.reach(i)
  others = [axis for axis in range(len(shape)) if axis not in spatial]
  if any(shape[axis] != 1 for axis in others if axis != channel):
    return False
  parents = [k for k in known.parents(i) if k in images.axes]
  if reach is not None and any(x < 0 for pair in reach.padding for x in pair):
    return False
  if shifts is None:
    is_across = _is_across(_on_images(known, i), channel, others)
    return not is_across and all(images.axes[k] == images.axes[i] for k in parents)
  left = shifts.params["dimension_numbers"][0]
  is_plain = all(d == 1 for d in shifts.params["lhs_dilation"])
  return is_plain and images.axes[parents[0]] == Axes(left[1], tuple(left[2:]))


def _is_across(on_images: Any, channel: int, others: Sequence[int]) -> bool:
  """Whether windows are not of single channels, or what is cut and joined are no channels."""
  match on_images:
    case Channels(axis=axis):
      return axis != channel
    case Windows(sizes=sizes, strides=strides, padding=padding):
      return any(sizes[k] > 1 or strides[k] > 1 or any(padding[k]) for k in others)
  return False


def _sizes(images: Images, order: Sequence[int], axis: int) -> dict[int, int] | None:
  """Of tori along an axis, so large that no convolution reaches around; None if there are none."""
  known, axes = images.known, images.axes
  least = {i: known.nodes[i].shape[of.spatial[axis]] for i, of in axes.items()}
  steps: list[tuple[int, int, int]] = []
  for i in order:
    reach = images.reach(i) if i in axes else None
    for k in known.parents(i):
      if i in axes and k in axes:
        steps.append((k, i, 1 if reach is None else reach.strides[axis]))
        if reach is not None:
          length = known.nodes[k].shape[axes[k].spatial[axis]]
          least[k] = max(least[k], length + max(reach.padding[axis]))
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


def _zero_beside(images: Images, order: Sequence[int]) -> set[int]:
  """The nodes whose differences are 0 on the torus beside the image."""
  found, known = set[int](), images.known
  for i in order:
    parents, is_linear = known.parents(i), isinstance(known.part(i), LinearPart)
    is_kept = is_linear and all(k in found for k in parents)
    reach = images.reach(i) if is_kept and i in images.axes else None
    if reach is not None:
      is_kept = not reach.writes_beside(images.lengths(parents[0]), images.lengths(i))
    # What functions give is made 0 there, and inputs are.
    if is_kept or not is_linear:
      found.add(i)
  return found


def _on_images(known: Known, i: int) -> Any:
  return getattr(known.part(i), "on_images", None)


def _shifts(known: Known, i: int) -> Shifts | None:
  found = _on_images(known, i)
  return found if isinstance(found, Shifts) else None


def _channels(known: Known, i: int) -> Channels | None:
  found = _on_images(known, i)
  return found if isinstance(found, Channels) else None


def _is_of_entries(known: Known, i: int) -> bool:
  """Whether its axes are those of what it is made of."""
  is_it = isinstance(known.part(i), ScalarPart)
  return is_it or isinstance(_on_images(known, i), Pointwise | Channels | Windows)


def of_channels(known: Known) -> Known:
  """With what is made of windows as functions of single entries, which channels cannot tell."""
  return Known(known.nodes, [_of_channels(x) for x in known.facts])


def _of_channels(facts: Facts) -> Facts:
  part = facts.depends.part
  if not isinstance(part, LipschitzPart) or part.on_images is None:
    return facts
  (constant,) = part.constants
  # It is a root that was rounded, and is to be rounded once more.
  slope = constant if constant == 1 else constant * (1 + 1e-6)
  scalar = ScalarPart(-slope, slope, part.on_images)
  return facts._replace(depends=facts.depends._replace(part=scalar))
