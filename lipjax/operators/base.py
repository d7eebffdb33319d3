"""What every parameter is: a linear map, bilinear in weight and input."""

from __future__ import annotations

import abc
from typing import ClassVar

import jax


class LinearOperator(abc.ABC):
  r"""A weight leaf `w` seen as the linear map :math:`x \mapsto B(w, x)`.

  :math:`B` is linear in `w` and in `x`, so three maps say everything that the
  rest of the library needs: `apply` :math:`B(w, \cdot)`, its `adjoint`, and
  `weight_gradient`, the transpose of :math:`B` in `w`. Subclasses are frozen,
  hashable dataclasses that hold axes and never arrays, so that they can be
  static arguments of a jitted function.

  A vector on the input side has shape ``batch_shape + input dimensions``; one
  on the output side ``batch_shape + output dimensions``. Batch axes are axes of
  `w` along which independent operators are stacked (a scanned layer, an
  ensemble): each slice has its own norm.
  """

  #: True where `closed_form` returns the exact singular triplet.
  has_closed_form: ClassVar[bool] = False
  #: One phrase for `describe`: what norm this operator's norm is.
  meaning: ClassVar[str] = "exact operator of the layer"

  @abc.abstractmethod
  def validate(self, shape: tuple[int, ...]) -> None:
    """Raises a `ValueError` where a leaf of this shape is not this operator."""

  @abc.abstractmethod
  def batch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the stack of independent operators in a leaf of this shape."""

  @abc.abstractmethod
  def input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of `x`, batch axes first, for a leaf of this shape."""

  @abc.abstractmethod
  def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of `apply(w, x)`, batch axes first, for a leaf of this shape."""

  @abc.abstractmethod
  def apply(self, w: jax.Array, x: jax.Array) -> jax.Array:
    """The forward map :math:`B(w, x)`."""

  @abc.abstractmethod
  def adjoint(self, w: jax.Array, y: jax.Array) -> jax.Array:
    r"""The adjoint: :math:`\langle y, B(w, x)\rangle = \langle B(w)^T y, x\rangle`."""

  @abc.abstractmethod
  def weight_gradient(self, shape: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    r"""The gradient in `w` of :math:`\langle y, B(w, x)\rangle`, in the leaf's shape."""

  @abc.abstractmethod
  def terms(self, shape: tuple[int, ...]) -> tuple[int, int]:
    """How long the sums of `apply` are: ``(features, products)``.

    An output is a sum of at most `features` times `products` terms, of which at most
    `products` have inputs with the same index, of a slice's flat input, modulo `features`.
    """

  @abc.abstractmethod
  def slice_operator(self) -> LinearOperator:
    """The operator of one slice, with every batch axis taken away."""

  @property
  @abc.abstractmethod
  def stack_axes(self) -> tuple[int, ...]:
    """Axes of the leaf that stack independent operators."""

  def closed_form(self, w: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The exact `(sigma, u, v)` per slice, where `has_closed_form`."""
    msg = f"{type(self).__name__} has no closed form for its norm."
    raise TypeError(msg)
