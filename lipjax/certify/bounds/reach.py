"""Which entries of an image those of another one are made of, along the axes of the images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lipjax.certify.facts import Shifts, Windows


class Axes(NamedTuple):
  """Where a node has its channels and its image; all other axes have the length 1."""

  channel: int
  spatial: tuple[int, ...]


class Reach(NamedTuple):
  """Which entries of an image an entry of another one reads, along each axis of the image."""

  sizes: tuple[int, ...]
  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  dilation: tuple[int, ...]

  def reads_beside(self, before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether entries of an image are made of what is beside the one before, by their lengths."""
    ends = ((m - 1) * s + last for m, s, (_, last) in self._along(after))
    firsts = (first for _, _, (first, _) in self._along(after))
    return min(firsts) < 0 or any(end >= n for end, n in zip(ends, before, strict=True))

  def writes_beside(self, before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether entries beside the image after are made of the image before."""
    # The next entries on both sides are those at m and -1.
    pairs = zip(before, self._along(after), strict=True)
    return any(m * s + first < n or last >= s for n, (m, s, (first, last)) in pairs)

  def _along(self, lengths: Sequence[int]) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """For each axis its length, the stride, and the first and the last that the entry 0 reads."""
    for of in zip(lengths, self.strides, self.sizes, self.padding, self.dilation, strict=True):
      length, stride, size, (pad, _), step = of
      yield length, stride, (-pad, (size - 1) * step - pad)

  @property
  def places(self) -> np.ndarray:
    """What is read for the entry 0, (entries, axes)."""
    every = np.stack(np.unravel_index(np.arange(math.prod(self.sizes)), self.sizes), -1)
    return every * np.asarray(self.dilation) - np.asarray([pair[0] for pair in self.padding])


def reach_of(found: Shifts | Windows, axes: Axes) -> Reach:
  """Of a convolution, or of windows, in an image with such axes."""
  if isinstance(found, Windows):
    # The fields are the same, of fewer axes.
    fields: list[Any] = [tuple(x[axis] for axis in axes.spatial) for x in found]
    return Reach(*fields)
  p, kernel = found.params, found.params["dimension_numbers"][1]
  sizes = tuple(found.kernel.shape[axis] for axis in kernel[2:])
  return Reach(sizes, p["window_strides"], p["padding"], p["rhs_dilation"])
