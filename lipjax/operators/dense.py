"""Dense maps: any split of a leaf's axes into inputs, outputs and stacks."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax

from lipjax.operators.base import LinearOperator
from lipjax.operators.products import contract, outer


@dataclasses.dataclass(frozen=True)
class Dense(LinearOperator):
  r"""A matrix whose rows and columns may each be several axes of the leaf.

  .. math:: y_{b,o} = \sum_i w_{b,i,o}\, x_{b,i}

  with :math:`i` running over `in_axes`, :math:`o` over `out_axes` and :math:`b`
  over `batch_axes`, in whatever order these axes lie in the leaf. One class
  covers Flax's ``Dense`` (the default), attention projections
  (``Dense((0,), (1, 2))`` for query, key and value, ``Dense((0, 1), (2,))`` for
  the output), ``DenseGeneral`` and stacks of them.

  Guarantee: exact; nothing is approximated by this description.

  Args:
    in_axes: axes of the leaf that are contracted with the input.
    out_axes: axes of the leaf that appear in the output.
    batch_axes: axes that stack independent matrices; each has its own norm.

  Raises:
    ValueError: an axis is listed twice, or a list of inputs or outputs is empty.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> operator = lipjax.Dense(in_axes=(1,), out_axes=(0,))  # Equinox: (out, in)
    >>> operator.apply(jnp.ones((3, 2)), jnp.ones(2)).shape
    (3,)
  """

  in_axes: tuple[int, ...] = (0,)
  out_axes: tuple[int, ...] = (1,)
  batch_axes: tuple[int, ...] = ()

  meaning: ClassVar[str] = "matrix: exact operator of the layer"

  def __post_init__(self):
    for name in ("in_axes", "out_axes", "batch_axes"):
      axes = getattr(self, name)
      # Lists arrive from configuration files; a tuple keeps the operator hashable.
      object.__setattr__(self, name, (axes,) if isinstance(axes, int) else tuple(axes))
    if not self.in_axes or not self.out_axes:
      msg = f"{self!r} needs at least one input axis and one output axis."
      raise ValueError(msg)
    if len(set(self._axes)) != len(self._axes):
      msg = f"{self!r} lists an axis twice; each axis of the leaf has one role."
      raise ValueError(msg)

  @property
  def _axes(self) -> tuple[int, ...]:
    return (*self.batch_axes, *self.in_axes, *self.out_axes)

  @property
  def stack_axes(self) -> tuple[int, ...]:
    return self.batch_axes

  def validate(self, shape: tuple[int, ...]) -> None:
    if sorted(self._axes) != list(range(len(shape))):
      msg = (
        f"{self!r} describes the axes {sorted(self._axes)}, but the leaf has shape"
        f" {shape}; list each of its axes 0..{len(shape) - 1} once, without negatives."
      )
      raise ValueError(msg)

  def batch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in self.batch_axes)

  def input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in (*self.batch_axes, *self.in_axes))

  def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in (*self.batch_axes, *self.out_axes))

  def apply(self, w: jax.Array, x: jax.Array) -> jax.Array:
    return contract(w, x, over=self.in_axes, keep=self.out_axes, batch=self.batch_axes)

  def adjoint(self, w: jax.Array, y: jax.Array) -> jax.Array:
    return contract(w, y, over=self.out_axes, keep=self.in_axes, batch=self.batch_axes)

  def weight_gradient(self, shape: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    return outer(
      x,
      y,
      x_axes=(*self.batch_axes, *self.in_axes),
      y_axes=(*self.batch_axes, *self.out_axes),
      ndim=len(shape),
    )

  def terms(self, shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[axis] for axis in self.in_axes), 1

  def slice_operator(self) -> Dense:
    left = sorted({*self.in_axes, *self.out_axes})
    rank = {axis: i for i, axis in enumerate(left)}
    return dataclasses.replace(
      self,
      in_axes=tuple(rank[axis] for axis in self.in_axes),
      out_axes=tuple(rank[axis] for axis in self.out_axes),
      batch_axes=(),
    )

  def matrix(self, w: jax.Array) -> jax.Array:
    """The leaf as matrices: shape ``batch_shape + (outputs, inputs)``."""
    rows = math.prod(w.shape[axis] for axis in self.out_axes)
    columns = math.prod(w.shape[axis] for axis in self.in_axes)
    w = w.transpose((*self.batch_axes, *self.out_axes, *self.in_axes))
    return w.reshape((*w.shape[: len(self.batch_axes)], rows, columns))

  def leaf(self, matrix: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The reverse of `matrix`: the leaf of this shape that has these matrices."""
    order = (*self.batch_axes, *self.out_axes, *self.in_axes)
    w = matrix.reshape([shape[axis] for axis in order])
    return w.transpose([order.index(axis) for axis in range(len(shape))])


@dataclasses.dataclass(frozen=True)
class ReshapedKernel(Dense):
  r"""A convolution's kernel flattened to the matrix ``out × (in · k₁ · k₂ …)``.

  This is the matrix of Yoshida & Miyato (2017) and Miyato et al. (2018), and the
  one that most libraries take. Its norm is **not** the convolution's operator
  norm and bounds it from neither side: an all-ones 3×3 kernel reads 3 where the
  convolution's norm is close to 9, and a stride can make the reshaped norm the
  larger one. It is a useful quantity to regularize and it is what the papers
  regularized; it certifies nothing.

  Args:
    in_axes: the kernel's spatial axes and its input-feature axis.
    out_axes: the kernel's output-feature axis.
    batch_axes: axes that stack independent kernels.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> kernel = jnp.ones((3, 3, 1, 1))
    >>> norms = lipjax.spectral_norms({"Conv_0": {"kernel": kernel}})
    >>> round(float(norms["Conv_0/kernel"]), 4)  # the convolution's norm is 8.98
    3.0

  Reference:
    Yoshida & Miyato (2017), arXiv:1705.10941, section 3; Miyato et al. (2018),
    arXiv:1802.05957, section 2.1.
  """

  in_axes: tuple[int, ...] = (0, 1, 2)
  out_axes: tuple[int, ...] = (3,)

  meaning: ClassVar[str] = "reshaped kernel: NOT the convolution's operator norm"
