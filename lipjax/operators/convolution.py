"""Convolutions as the linear maps they are, with their padding and strides."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.operators.base import LinearOperator
from lipjax.operators.convolve import convolve, sum_of_taps
from lipjax.operators.frequencies import equalized, largest_part
from lipjax.operators.padding import canonical_padding, padding_pair, transposed_padding
from lipjax.operators.products import compute_dtype
from lipjax.operators.window import PaddingMode, Window

Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Convolution(LinearOperator):
  r"""A convolution on inputs of one size, its padding, strides and dilations included.

  .. math:: y_{i,o} = \sum_{t,c} w_{t,c,o}\,\tilde x_{i s + t d - l,\,c}

  with :math:`\tilde x` the dilated and padded input, in any number of spatial dimensions.
  The names and defaults are those of Flax's ``Conv``, and an input or output has the
  shape ``spatial + (features,)``. The norm depends on the input's size: with zero
  padding it grows with it.

  A transposed convolution is one with `input_dilation`; `Convolution.transposed` computes
  its padding.

  Guarantee: exact; nothing is approximated by this description.

  Args:
    spatial_shape: spatial size of the input, such as ``(32, 32)``.
    strides: of the window, one for all axes or one for each.
    padding: ``"SAME"``, ``"SAME_LOWER"``, ``"VALID"``, ``"CIRCULAR"``, ``"REFLECT"``,
      ``"CAUSAL"``, an integer, or one integer or pair ``(before, after)`` for each axis.
    input_dilation: distance of the input's entries after zeros are put between them.
    kernel_dilation: distance of the kernel's entries.
    feature_group_count: groups of features that see only each other.
    padding_mode: what lies in the padding: ``"zeros"``, ``"circular"``, ``"reflect"`` or
      ``"replicate"`` (Equinox's and PyTorch's name for it).
    in_axis: the kernel's axis of input features (of one group); may be negative.
    out_axis: its axis of output features. Flax and Haiku: (-2, -1), Equinox: (1, 0).
    batch_axes: axes that stack independent kernels. The others, in order, are spatial.
    flip_kernel: whether the kernel is reversed along its spatial axes first.

  Raises:
    ValueError: axes that do not fit, a padding or a mode that is not known.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> operator = lipjax.Convolution((8, 8), strides=2)
    >>> operator.apply(jnp.ones((3, 3, 1, 4)), jnp.ones((8, 8, 1))).shape
    (4, 4, 4)
  """

  spatial_shape: tuple[int, ...]
  strides: Any = 1
  padding: Any = "SAME"
  input_dilation: Any = 1
  kernel_dilation: Any = 1
  feature_group_count: int = 1
  padding_mode: PaddingMode = "zeros"
  in_axis: int = -2
  out_axis: int = -1
  batch_axes: tuple[int, ...] = ()
  flip_kernel: bool = False

  has_probes: ClassVar[bool] = True
  meaning: ClassVar[str] = "convolution: exact operator of the layer at this input size"

  def __post_init__(self):
    put = functools.partial(object.__setattr__, self)
    shape: Any = self.spatial_shape
    put("spatial_shape", (shape,) if isinstance(shape, int) else tuple(shape))
    for name in ("strides", "input_dilation", "kernel_dilation"):
      put(name, self._one_each(name))
    put("batch_axes", tuple(axis % self._rank for axis in self.batch_axes))
    put("in_axis", self.in_axis % self._rank)
    put("out_axis", self.out_axis % self._rank)
    axes = (*self.batch_axes, self.in_axis, self.out_axis)
    if len(set(axes)) != len(axes):
      msg = f"{self!r} lists an axis twice; each axis of the leaf has one role."
      raise ValueError(msg)
    if self.feature_group_count < 1:
      msg = f"feature_group_count is {self.feature_group_count}; expected at least 1."
      raise ValueError(msg)
    padding, mode = canonical_padding(self.padding, self.padding_mode, self._n_spatial)
    put("padding", padding)
    put("padding_mode", mode)
    self._check_dilated()

  def _check_dilated(self) -> None:
    if all(d == 1 for d in self.input_dilation):
      return
    if self.padding_mode in ("reflect", "replicate"):
      msg = f"{self.padding_mode!r} padding of a dilated input is not defined; give zeros."
      raise ValueError(msg)
    if self.padding in ("SAME", "SAME_LOWER"):
      msg = (
        f"{self.padding!r} padding of a dilated input is not defined; give numbers, or use"
        " Convolution.transposed."
      )
      raise ValueError(msg)

  @classmethod
  def transposed(
    cls,
    spatial_shape: tuple[int, ...],
    kernel_size: tuple[int, ...],
    *,
    strides: int | tuple[int, ...] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | tuple[int, ...] = 1,
    transpose_kernel: bool = False,
    batch_axes: tuple[int, ...] = (),
  ) -> Convolution:
    """The operator of Flax's ``ConvTranspose`` and of `jax.lax.conv_transpose`.

    Args:
      spatial_shape: spatial size of the input.
      kernel_size: spatial size of the kernel, on which the padding depends.
      strides: by which the output is larger.
      padding: ``"SAME"``, ``"VALID"``, ``"CIRCULAR"``, an integer, or one integer or pair
        for each axis.
      kernel_dilation: distance of the kernel's entries.
      transpose_kernel: whether the kernel is that of the convolution whose transpose
        this is: reversed, with output features before input features.
      batch_axes: leading axes that stack independent kernels.

    Example:
      >>> import lipjax
      >>> lipjax.Convolution.transposed((4, 4), (3, 3), strides=2).output_shape((3, 3, 5, 1))
      (8, 8, 1)
    """
    in_axis, out_axis = (-1, -2) if transpose_kernel else (-2, -1)
    make = functools.partial(
      cls,
      spatial_shape,
      input_dilation=strides,
      kernel_dilation=kernel_dilation,
      in_axis=in_axis,
      out_axis=out_axis,
      batch_axes=batch_axes,
      flip_kernel=transpose_kernel,
    )
    if not isinstance(padding, str):
      return make(padding=padding)
    plain = make(padding=0)
    axes = zip(
      plain.spatial_shape, kernel_size, plain.input_dilation, plain.kernel_dilation, strict=True
    )
    pairs = [transposed_padding(padding, *axis, transpose_kernel=transpose_kernel) for axis in axes]
    mode = "circular" if padding == "CIRCULAR" else "zeros"
    return make(padding=tuple(pairs), padding_mode=mode)

  @property
  def _n_spatial(self) -> int:
    return len(self.spatial_shape)

  @property
  def _rank(self) -> int:
    return self._n_spatial + 2 + len(self.batch_axes)

  @property
  def spatial_axes(self) -> tuple[int, ...]:
    """The kernel's spatial axes."""
    taken = (*self.batch_axes, self.in_axis, self.out_axis)
    return tuple(axis for axis in range(self._rank) if axis not in taken)

  @property
  def stack_axes(self) -> tuple[int, ...]:
    return self.batch_axes

  def _one_each(self, name: str) -> tuple[int, ...]:
    value, n = getattr(self, name), self._n_spatial
    value = (value,) * n if isinstance(value, int) else tuple(value or (1,) * n)
    if len(value) == 1:
      value *= n
    if len(value) != n or min(value, default=1) < 1:
      msg = f"{name} is {value}; expected one number of at least 1 for each of {n} axes."
      raise ValueError(msg)
    return value

  def validate(self, shape: tuple[int, ...]) -> None:
    if len(shape) != self._rank:
      msg = (
        f"{self!r} describes a kernel of {self._rank} axes ({self._n_spatial} spatial, two of"
        f" features, {len(self.batch_axes)} stacked), but the leaf has shape {shape}."
      )
      raise ValueError(msg)
    if shape[self.out_axis] % self.feature_group_count:
      msg = (
        f"feature_group_count is {self.feature_group_count}, which does not divide the"
        f" {shape[self.out_axis]} output features of a kernel of shape {shape}."
      )
      raise ValueError(msg)
    self.windows(shape)

  def windows(self, shape: tuple[int, ...]) -> tuple[Window, ...]:
    """The spatial axes of a kernel of this shape, with their padding in numbers."""
    return tuple(self._window(i, shape[axis]) for i, axis in enumerate(self.spatial_axes))

  def _window(self, i: int, taps: int) -> Window:
    dilation = self.input_dilation[i], self.kernel_dilation[i]
    free = Window(self.spatial_shape[i], taps, self.strides[i], *dilation, 0, 0, self.padding_mode)
    low, high = padding_pair(self.padding, i, free)
    return dataclasses.replace(free, low=low, high=high)

  def batch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in self.batch_axes)

  def input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    features = shape[self.in_axis] * self.feature_group_count
    return (*self.batch_shape(shape), *self.spatial_shape, features)

  def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = (window.outputs for window in self.windows(shape))
    return (*self.batch_shape(shape), *sizes, shape[self.out_axis])

  def apply(self, w: jax.Array, x: jax.Array) -> jax.Array:
    return self._over_stack(self.slice_operator()._convolve, w, x)

  def adjoint(self, w: jax.Array, y: jax.Array) -> jax.Array:
    one = self.slice_operator()

    def transpose(w, y):
      x = jax.ShapeDtypeStruct(one.input_shape(w.shape), y.dtype)
      return jax.linear_transpose(functools.partial(one._convolve, w), x)(y)[0]

    return self._over_stack(transpose, w, y.astype(compute_dtype(w.dtype)))

  def weight_gradient(self, shape: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    one = self.slice_operator()
    kept = tuple(n for axis, n in enumerate(shape) if axis not in self.batch_axes)

    def gradient(x, y):
      w = jax.ShapeDtypeStruct(kept, y.dtype)
      return jax.linear_transpose(lambda w: one._convolve(w, x), w)(y)[0]

    for axis in sorted(self.batch_axes):
      place = self._place(axis)
      gradient = jax.vmap(gradient, in_axes=place, out_axes=axis)
    return gradient(x, y)

  def terms(self, shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[self.in_axis], math.prod(shape[axis] for axis in self.spatial_axes)

  def probes(
    self, shape: tuple[int, ...], image: jax.Array, rest: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    del shape
    explorer = equalized(image, self.strides, self.feature_group_count)
    candidate, growth = largest_part(rest, self.strides, self.feature_group_count)
    # With zeros around it frequencies mix a little, and growth is not a singular value.
    is_exact = self.padding_mode == "circular"
    return jnp.stack([candidate, explorer]), growth if is_exact else jnp.zeros_like(growth)

  def slice_operator(self) -> Convolution:
    left = [axis for axis in range(self._rank) if axis not in self.batch_axes]
    return dataclasses.replace(
      self, in_axis=left.index(self.in_axis), out_axis=left.index(self.out_axis), batch_axes=()
    )

  def kernel(self, w: jax.Array) -> jax.Array:
    """One slice's kernel as ``spatial + (inputs of a group, outputs)``, unreversed."""
    w = w.transpose((*self.spatial_axes, self.in_axis, self.out_axis))
    return jnp.flip(w, tuple(range(self._n_spatial))) if self.flip_kernel else w

  def _place(self, axis: int) -> int:
    """Where a vector has the batch axis, once the axes before it are mapped away."""
    return sum(other < axis for other in self.batch_axes[: self.batch_axes.index(axis)])

  def _over_stack(self, fn: Callable[..., jax.Array], w: jax.Array, x: jax.Array) -> jax.Array:
    """`fn` of every slice, vectors with batch axes first in the order listed."""
    # Innermost first: the last one wrapped is the first one taken away.
    for axis in sorted(self.batch_axes):
      place = self._place(axis)
      fn = jax.vmap(fn, in_axes=(axis, place), out_axes=place)
    return fn(w, x)

  def apply_by_products(self, w: jax.Array, x: jax.Array) -> jax.Array:
    # Off the CPU a convolution may run by an algorithm of Winograd's kind.
    return lax.platform_dependent(w, x, cpu=self.apply, default=self._sum_of_taps)

  def _sum_of_taps(self, w: jax.Array, x: jax.Array) -> jax.Array:
    by_taps = functools.partial(self.slice_operator()._convolve, by=sum_of_taps)
    return self._over_stack(by_taps, w, x)

  def _convolve(self, w: jax.Array, x: jax.Array, by: Any = convolve) -> jax.Array:
    """The convolution of one slice."""
    dtype = compute_dtype(w.dtype)
    kernel, x = self.kernel(w.astype(dtype)), x.astype(dtype)
    return by(kernel, x, self.windows(w.shape), self.feature_group_count)
