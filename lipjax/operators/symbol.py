r"""A convolution in the Fourier domain: from windows and a kernel to symbol matrices.

Strides and input dilation are taken apart first. With :math:`L` their least common
multiple, outputs :math:`i = i'A + a` and inputs :math:`j = j'B + b` in phases :math:`a <
A = L/s` and :math:`b < B = L/d_i` make the operator a convolution of stride 1 without
input dilation, with A times the output and B times the input features. On a circle of
:math:`M` blocks that is block diagonal under the Fourier transform, with one *symbol*
:math:`X(\theta) = \sum_\tau K_\tau e^{i\tau\theta}` for every :math:`\theta = 2\pi j/M`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.operators.window import Window

#: By how much the grid of an axis that is too long to be a circle may miss the maximum.
GRID_TOLERANCE = 2.5e-3
#: Circles up to this length are tried with twisted ends too.
TWIST_UP_TO = 24


class SymbolAxis(NamedTuple):
  """One axis, all numbers static.

  Attributes:
    taps: kernel entry for each (offset, output phase, input phase); -1 for none.
    offsets: the block offsets that the first axis of `taps` is for.
    points: angles 2π(j + twist)/points for j below `points`.
    twists: alternatives of which each gives an upper bound.
    factor: by which the largest symbol is to be multiplied.
  """

  taps: np.ndarray
  offsets: np.ndarray
  points: int
  twists: tuple[float, ...]
  factor: float


class Symbols(NamedTuple):
  """All axes: angles to look at, and what to multiply by.

  Attributes:
    axes: one for each spatial axis.
    angles: shape (alternatives, angles, axes): one of each pair ±θ.
    factor: product of the axes' factors.
    is_circle: whether every axis is a circle that the operator embeds in.
  """

  axes: tuple[SymbolAxis, ...]
  angles: np.ndarray
  factor: float
  is_circle: bool

  @property
  def phases(self) -> np.ndarray:
    """Angle of each offset's exponential, (alternatives, angles, offsets of all axes)."""
    offsets = np.array(list(itertools.product(*(axis.offsets for axis in self.axes))))
    turns = self.angles @ offsets.T.astype(float) if offsets.size else np.zeros((1, 1, 1))
    return 2 * np.pi * (turns % 1)


@functools.lru_cache(maxsize=512)
def symbols(windows: tuple[Window, ...]) -> Symbols:
  """How a convolution with these axes is looked at in the Fourier domain."""
  planned = [_axis(window) for window in windows]
  axes = tuple(axis for axis, _ in planned)
  cosets = [_angles(axes, twists) for twists in itertools.product(*(axis.twists for axis in axes))]
  longest = max(map(len, cosets))
  # A shorter alternative looks at its first angle again.
  cosets = [np.concatenate([c, np.repeat(c[:1], longest - len(c), axis=0)]) for c in cosets]
  factor = math.prod(axis.factor for axis in axes)
  return Symbols(axes, np.stack(cosets), factor, all(is_circle for _, is_circle in planned))


def block_kernel(symbols: Symbols, kernel: jax.Array, groups: int) -> jax.Array:
  """:math:`K_τ` of every group, shape (groups, offsets, A·outputs, B·inputs).

  Args:
    symbols: of the convolution's windows.
    kernel: ``spatial + (inputs of a group, outputs)``.
    groups: of features.
  """
  n, (c_in, c_out) = len(symbols.axes), kernel.shape[-2:]
  for i, axis in enumerate(symbols.axes):
    kernel = jnp.moveaxis(kernel, 3 * i, 0)
    entries = jnp.concatenate([kernel, jnp.zeros_like(kernel[:1])])[axis.taps]
    kernel = jnp.moveaxis(entries, (0, 1, 2), (3 * i, 3 * i + 1, 3 * i + 2))
  # Axes are (τ, a, b) for each spatial axis, then inputs and (group, outputs).
  kernel = kernel.reshape((*kernel.shape[:-1], groups, c_out // groups))
  taus, a, b = (tuple(3 * i + j for i in range(n)) for j in range(3))
  kernel = kernel.transpose((3 * n + 1, *taus, *a, 3 * n + 2, *b, 3 * n))
  sizes = [math.prod(axis.taps.shape[j] for axis in symbols.axes) for j in range(3)]
  return kernel.reshape((groups, sizes[0], sizes[1] * (c_out // groups), sizes[2] * c_in))


def evaluate(block: jax.Array, phases: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Real and imaginary part of the symbols at angles given by the phases of their offsets.

  Args:
    block: from `block_kernel`.
    phases: shape ``(…, offsets)``.

  Returns:
    Two arrays of shape ``(…, groups, rows, columns)``.
  """
  dot = functools.partial(jnp.einsum, "...t,gtrc->...grc", precision=lax.Precision.HIGHEST)
  return dot(jnp.cos(phases), block), dot(jnp.sin(phases), block)


def _axis(window: Window) -> tuple[SymbolAxis, bool]:
  window, factor = _without_ends(window)
  stride = window.stride
  if window.mode == "circular":
    starts = np.arange(window.outputs) * stride % max(window.circle, 1)
    factor *= math.sqrt(np.unique(starts, return_counts=True)[1].max(initial=1))
    if window.circle % math.lcm(stride, window.input_dilation):
      # A stride that does not divide the circle: some rows of the operator of stride 1.
      stride = 1
  taps, offsets, shortest = _phases(window, stride)
  if len(offsets) == 1:
    return SymbolAxis(taps, offsets, 1, (0.0,), factor), True
  if window.mode == "circular":
    blocks = window.circle // math.lcm(stride, window.input_dilation)
    return SymbolAxis(taps, offsets, blocks, (0.0,), factor), True
  degree = (offsets[-1] - offsets[0]) / 2
  grid = math.ceil(math.pi * degree / math.acos(1 / (1 + GRID_TOLERANCE)))
  if grid < shortest:
    missed = 1 / math.cos(math.pi * degree / grid)
    return SymbolAxis(taps, offsets, grid, (0.0,), factor * missed), False
  twists = (0.0, 0.5) if shortest <= TWIST_UP_TO else (0.0,)
  return SymbolAxis(taps, offsets, shortest, twists, factor), True


def _without_ends(window: Window) -> tuple[Window, float]:
  """Reflected and replicated ends as an input of their own, and the norm of making it."""
  if window.mode in ("zeros", "circular"):
    return window, 1.0
  line = window.entries(np.arange(-window.low, window.dilated + window.high))
  copies = np.unique(line, return_counts=True)[1].max(initial=1)
  plain = dataclasses.replace(window, size=len(line), low=0, high=0, mode="zeros")
  return plain, math.sqrt(copies)


def _phases(window: Window, stride: int) -> tuple[np.ndarray, np.ndarray, int]:
  """Taps by block offset and phases, and the shortest circle without a wrong wrap."""
  period = math.lcm(stride, window.input_dilation)
  n_out_phases, n_in_phases = period // stride, period // window.input_dilation
  outputs = window.outputs if stride == window.stride else window.circle
  blocks_of = lambda n, phase, of: max(-(-(n - phase) // of), 0)
  found, shortest = {}, 1
  # A tap that never meets an entry would only make the symbols larger.
  met = (window.reads() >= 0).any(axis=0)
  for a, t in itertools.product(range(n_out_phases), np.flatnonzero(met)):
    place = a * stride + t * window.kernel_dilation - window.low
    if place % window.input_dilation:
      continue
    offset, b = divmod(place // window.input_dilation, n_in_phases)
    found[offset, a, b] = t
    n_in = blocks_of(window.size, b, n_in_phases)
    n_out = blocks_of(outputs, a, n_out_phases)
    shortest = max(shortest, n_in - min(offset, 0), n_out + max(offset, 0), n_out)
  first = min((key[0] for key in found), default=0)
  last = max((key[0] for key in found), default=0)
  taps = np.full((last - first + 1, n_out_phases, n_in_phases), -1)
  for (offset, a, b), t in found.items():
    taps[offset - first, a, b] = t
  return taps, np.arange(first, last + 1), int(shortest)


def _angles(axes: tuple[SymbolAxis, ...], twists: tuple[float, ...]) -> np.ndarray:
  """Turns of each axis, one of each pair ±θ: a real kernel has conjugate symbols there."""
  sizes = [axis.points for axis in axes]
  kept = []
  for index in itertools.product(*map(range, sizes)):
    mirror = tuple(
      round(-j - 2 * twist) % n for j, twist, n in zip(index, twists, sizes, strict=True)
    )
    if index <= mirror:
      kept.append(index)
  return (np.array(kept, float).reshape(len(kept), len(axes)) + twists) / np.array(sizes, float)
