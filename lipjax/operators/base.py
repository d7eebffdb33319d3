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

  def apply_by_products(self, w: jax.Array, x: jax.Array) -> jax.Array:
    """`apply` as sums of products, which the standard model of rounding holds for."""
    return self.apply(w, x)

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

  #: Whether `probes` gives vectors to look at beside those that are followed.
  has_probes: ClassVar[bool] = False

  def probes(
    self, shape: tuple[int, ...], image: jax.Array, rest: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    r"""Two vectors of one slice, a candidate and an explorer, from :math:`B^TB` of the explorer.

    For an operator that does not mix some subspaces: iteration that has settled in a few of
    them never sees the others, where a new largest singular value may grow. The explorer has
    the same length in all of them, with the best direction that is known in each; the
    candidate is the rest of its image in the one where that is longest.

    Args:
      shape: of the leaf of one slice.
      image: :math:`B^TB` of the last explorer, of the slice's input shape.
      rest: the image without its part along the vectors that are followed.

    Returns:
      Shape ``(2,) + input dimensions``, the explorer last; and a lower bound of the square of
      the norm, or 0.
    """
    msg = f"{type(self).__name__} has no probes."
    raise TypeError(msg)

  def closed_form(self, w: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The exact `(sigma, u, v)` per slice, where `has_closed_form`."""
    msg = f"{type(self).__name__} has no closed form for its norm."
    raise TypeError(msg)

  def closed_form_values(self, w: jax.Array, k: int) -> jax.Array:
    """The `k` largest singular values per slice, 0 where there are fewer."""
    msg = f"{type(self).__name__} has no closed form for its singular values."
    raise TypeError(msg)
