"""One spatial axis of a convolution: which input every tap of every output reads."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]


@dataclasses.dataclass(frozen=True)
class Window:
  r"""One axis: :math:`y_i = \sum_t w_t\,\tilde x_{i s + t d_k - l}`.

  :math:`\tilde x` is the input with `input_dilation` − 1 zeros between its entries, and
  beyond its ends what `mode` says. All numbers are static.

  Attributes:
    size: entries of the input.
    taps: entries of the kernel.
    stride: :math:`s`.
    input_dilation: :math:`d_i`.
    kernel_dilation: :math:`d_k`.
    low: :math:`l`, padding before the dilated input; negative crops.
    high: padding after it.
    mode: what is read there.
  """

  size: int
  taps: int
  stride: int
  input_dilation: int
  kernel_dilation: int
  low: int
  high: int
  mode: PaddingMode

  @property
  def span(self) -> int:
    """Entries that a dilated kernel stretches over."""
    return (self.taps - 1) * self.kernel_dilation + 1

  @property
  def circle(self) -> int:
    """Length of the dilated input on a circle."""
    return self.size * self.input_dilation

  @property
  def dilated(self) -> int:
    """Length of the dilated input on a line."""
    return self.circle if self.mode == "circular" else max(self.circle - self.input_dilation + 1, 0)

  @property
  def outputs(self) -> int:
    """Entries of the output."""
    return max((self.dilated + self.low + self.high - self.span) // self.stride + 1, 0)

  def positions(self) -> np.ndarray:
    """Place on the dilated line that tap t of output i reads, shape (outputs, taps)."""
    starts = np.arange(self.outputs) * self.stride - self.low
    return starts[:, None] + np.arange(self.taps) * self.kernel_dilation

  def reads(self) -> np.ndarray:
    """The entry of the input at `positions`; -1 where that is a zero."""
    return self.entries(self.positions())

  def entries(self, positions: np.ndarray) -> np.ndarray:
    """The entry of the input at places of the dilated line; -1 for a zero."""
    if self.size == 0:
      return np.full_like(positions, -1)
    if self.mode == "zeros":
      inside = (positions >= 0) & (positions < self.dilated)
    else:
      positions, inside = self._folded(positions), True
    on_entry = inside & (positions % self.input_dilation == 0)
    return np.where(on_entry, positions // self.input_dilation, -1)

  def _folded(self, positions: np.ndarray) -> np.ndarray:
    last = self.dilated - 1
    if self.mode == "circular":
      return positions % self.circle
    if self.mode == "replicate" or last == 0:
      return np.clip(positions, 0, last)
    return last - np.abs(positions % (2 * last) - last)
