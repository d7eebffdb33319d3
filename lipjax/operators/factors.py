"""The product of two weights as one operator, matrix-free."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NoReturn

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.operators.base import LinearOperator
from lipjax.operators.products import compute_dtype, contract


@dataclasses.dataclass(frozen=True)
class Factors(LinearOperator):
  r"""The map :math:`x \mapsto B^TAx` of a leaf that holds A and B, which is what users never write.

  `lipjax.Product` makes it. The leaf has shape ``(2, *batch, shared, widest)``: A and B, each
  beside zeros where the other one has more columns. Stacked and not side by side, so that factors
  that are sharded alike stay where they are.

  Args:
    inputs: columns of A.
    outputs: columns of B.
    n_batch: how many axes stack independent products.
  """

  inputs: int
  outputs: int
  n_batch: int = 0

  meaning: ClassVar[str] = "product of two matrices"

  @property
  def stack_axes(self) -> tuple[int, ...]:
    return tuple(range(1, 1 + self.n_batch))

  def validate(self, shape: tuple[int, ...]) -> None:
    if len(shape) != self.n_batch + 3 or shape[0] != 2:
      msg = f"{self!r} describes a leaf of shape (2, *batch, shared, widest); this has {shape}."
      raise ValueError(msg)

  def batch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[1 : 1 + self.n_batch])

  def input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*self.batch_shape(shape), self.inputs)

  def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*self.batch_shape(shape), self.outputs)

  def apply(self, w: jax.Array, x: jax.Array) -> jax.Array:
    first, second = self._factors(w)
    return self._up(second, self._down(first, x))

  def adjoint(self, w: jax.Array, y: jax.Array) -> jax.Array:
    first, second = self._factors(w)
    return self._up(first, self._down(second, y))

  def _factors(self, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    return w[0][..., : self.inputs], w[1][..., : self.outputs]

  def _down(self, factor: jax.Array, x: jax.Array) -> jax.Array:
    return contract(factor, x, over=(self.n_batch + 1,), keep=(self.n_batch,), batch=self._batch)

  def _up(self, factor: jax.Array, y: jax.Array) -> jax.Array:
    return contract(factor, y, over=(self.n_batch,), keep=(self.n_batch + 1,), batch=self._batch)

  @property
  def _batch(self) -> tuple[int, ...]:
    return tuple(range(self.n_batch))

  def weight_gradient(self, shape: tuple[int, ...], x: jax.Array, y: jax.Array) -> NoReturn:
    msg = "The derivative of a product depends on its factors; see Product.gradients."
    raise TypeError(msg)

  def terms(self, shape: tuple[int, ...]) -> NoReturn:
    msg = "The rounding of a product of two weights has no model here."
    raise TypeError(msg)

  def slice_operator(self) -> Factors:
    return dataclasses.replace(self, n_batch=0)


def stacked(first: jax.Array, second: jax.Array) -> jax.Array:
  """The leaf of two factors ``(*batch, shared, inputs or outputs)``.

  Where the second has fewer slices on the last batch axis, each is used several times, as heads
  of keys that several heads of queries share.
  """
  if first.shape[:-2] != second.shape[:-2]:
    second = jnp.repeat(second, first.shape[-3] // second.shape[-3], axis=-3)
  widest = max(first.shape[-1], second.shape[-1])
  pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, widest - x.shape[-1])])
  return jnp.stack([pad(first), pad(second)])


def can_repeat(batch: tuple[int, ...], shorter: tuple[int, ...]) -> bool:
  """Whether `shorter` is the batch, or is once its last axis is repeated."""
  if not batch or batch[:-1] != shorter[:-1] or len(batch) != len(shorter):
    return batch == shorter
  return batch[-1] == shorter[-1] or (shorter[-1] > 0 and batch[-1] % shorter[-1] == 0)


def product_frobenius_norms(w: jax.Array) -> jax.Array:
  r"""Of each slice's product, :math:`\|RB\|_F` with the triangular factor R of :math:`A^T`."""
  first, second = jnp.asarray(w, compute_dtype(w.dtype))
  triangles = jnp.linalg.qr(jnp.swapaxes(first, -1, -2), mode="r")
  products = jnp.matmul(triangles, second, precision=lax.Precision.HIGHEST)
  return jnp.sqrt(jnp.sum(jnp.square(products), axis=(-2, -1)))
