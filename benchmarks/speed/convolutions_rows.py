"""The convolutions that `convolutions` measures, and their kernels."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

import lipjax


@dataclasses.dataclass(frozen=True)
class Row:
  """A square two-dimensional convolution, in numbers only.

  Attributes:
    size: side of the input.
    taps: side of the kernel.
    c_in, c_out: features of the input and the output.
    pads: zeros (or, if `circular`, wrapped entries) before and after each axis.
    smooth: whether the kernel's symbols peak at frequency 0, as trained ones do.
    count: how often a CIFAR-sized ResNet-18 has it; 0 for the others.
  """

  size: int
  taps: int
  c_in: int
  c_out: int
  pads: tuple[int, int]
  stride: int = 1
  input_dilation: int = 1
  kernel_dilation: int = 1
  groups: int = 1
  circular: bool = False
  smooth: bool = False
  count: int = 0

  @property
  def kernel_shape(self) -> tuple[int, int, int, int]:
    """``(height, width, inputs of a group, outputs)``."""
    return self.taps, self.taps, self.c_in // self.groups, self.c_out

  @property
  def span(self) -> int:
    """Entries that a dilated kernel stretches over."""
    return (self.taps - 1) * self.kernel_dilation + 1

  @property
  def dilated(self) -> int:
    """Side of the dilated input."""
    missing = 0 if self.circular else self.input_dilation - 1
    return self.size * self.input_dilation - missing

  @property
  def outputs(self) -> int:
    """Side of the output."""
    return (self.dilated + sum(self.pads) - self.span) // self.stride + 1

  @property
  def circle(self) -> int:
    """A circle that has the convolution as a part; with circular padding, its own."""
    if self.circular:
      return self.dilated
    step = self.stride * self.input_dilation
    return -(-max(self.dilated + max(self.pads), self.span) // step) * step

  @property
  def is_plain(self) -> bool:
    """Whether lip4conv, which knows no strides, dilations and groups, can bound it."""
    return self.stride == self.input_dilation == self.kernel_dilation == self.groups == 1

  def operator(self) -> lipjax.Convolution:
    """What lipjax is given."""
    return lipjax.Convolution(
      (self.size, self.size),
      strides=self.stride,
      padding=(self.pads, self.pads),
      input_dilation=self.input_dilation,
      kernel_dilation=self.kernel_dilation,
      feature_group_count=self.groups,
      padding_mode="circular" if self.circular else "zeros",
    )

  def kernel(self, name: str) -> np.ndarray:
    """He-normal float32; a smooth one is a blur times a matrix, and some noise."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    scale = np.sqrt(2 / (self.taps**2 * self.c_in / self.groups))
    kernel = rng.standard_normal(self.kernel_shape)
    if self.smooth:
      places = np.arange(self.taps) - (self.taps - 1) / 2
      blur = np.exp(-np.square(places) / (self.taps / 2) ** 2)
      blur = np.multiply.outer(blur, blur)[..., None, None]
      kernel = blur * rng.standard_normal(self.kernel_shape[2:]) + 0.3 * kernel
    return (scale * kernel).astype(np.float32)


def _same(size: int, taps: int, c_in: int, c_out: int, **others) -> Row:
  pad = (taps - 1) // 2 * others.get("kernel_dilation", 1)
  return Row(size, taps, c_in, c_out, (pad, pad), **others)


#: The 20 convolutions of ResNet-18 at CIFAR size, 11 of them distinct.
RESNET18 = {
  "stem 3→64 @32": _same(32, 3, 3, 64, count=1),
  "64 @32": _same(32, 3, 64, 64, count=4),
  "64→128 /2 @32": _same(32, 3, 64, 128, stride=2, count=1),
  "1×1 64→128 /2 @32": _same(32, 1, 64, 128, stride=2, count=1),
  "128 @16": _same(16, 3, 128, 128, count=3),
  "128→256 /2 @16": _same(16, 3, 128, 256, stride=2, count=1),
  "1×1 128→256 /2 @16": _same(16, 1, 128, 256, stride=2, count=1),
  "256 @8": _same(8, 3, 256, 256, count=3),
  "256→512 /2 @8": _same(8, 3, 256, 512, stride=2, count=1),
  "1×1 256→512 /2 @8": _same(8, 1, 256, 512, stride=2, count=1),
  "512 @4": _same(4, 3, 512, 512, count=3),
}

OTHERS = {
  "7×7 3→64 /2 @64": _same(64, 7, 3, 64, stride=2),
  "patches 4×4 3→96 /4 @32": Row(32, 4, 3, 96, (0, 0), stride=4),
  "5×5 VALID 6→16 @14": Row(14, 5, 6, 16, (0, 0)),
  "grouped 4× 128 @16": _same(16, 3, 128, 128, groups=4),
  "depthwise 64 @32": _same(32, 3, 64, 64, groups=64),
  "depthwise 7×7 96 @32": _same(32, 7, 96, 96, groups=96),
  "dilated 2 64 @32": _same(32, 3, 64, 64, kernel_dilation=2),
  "transposed 4×4 128→64 ×2 @8": Row(8, 4, 128, 64, (2, 2), input_dilation=2),
  "circular 64 @32": _same(32, 3, 64, 64, circular=True),
  "circular 5×5 32 @16": _same(16, 5, 32, 32, circular=True),
  "circular 64→128 /2 @32": _same(32, 3, 64, 128, circular=True, stride=2),
  "smooth stem 3→64 @32": _same(32, 3, 3, 64, smooth=True),
  "smooth 64 @32": _same(32, 3, 64, 64, smooth=True),
  "smooth 64→128 /2 @32": _same(32, 3, 64, 128, stride=2, smooth=True),
  "smooth 256 @8": _same(8, 3, 256, 256, smooth=True),
  "smooth 512 @4": _same(4, 3, 512, 512, smooth=True),
  "smooth circular 64 @32": _same(32, 3, 64, 64, circular=True, smooth=True),
  "smooth 7×7 3→64 /2 @64": _same(64, 7, 3, 64, stride=2, smooth=True),
}

#: Small ones, for ``--quick`` and the tests.
QUICK = {
  "3→8 @8": _same(8, 3, 3, 8),
  "4→8 /2 @16": _same(16, 3, 4, 8, stride=2),
  "circular 8 @8": _same(8, 3, 8, 8, circular=True),
  "smooth grouped 2× 8 @12": _same(12, 3, 8, 8, groups=2, smooth=True),
}
