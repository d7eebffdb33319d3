"""Diagonal maps: the scales of normalization layers."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.operators.base import LinearOperator
from lipjax.operators.products import compute_dtype


@dataclasses.dataclass(frozen=True)
class Diagonal(LinearOperator):
  r"""Elementwise scaling, :math:`y_i = w_i x_i`, of any rank.

  Its norm is :math:`\max_i |w_i|`, reached at a unit vector, so nothing is
  iterated. For a normalization layer this is the norm of the learned scale
  alone: the division by the standard deviation is another map.

  Guarantee: exact.

  Args:
    batch_axes: axes that stack independent scalings; each has its own norm.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> sigma, u, v = lipjax.Diagonal().closed_form(jnp.array([1.0, -3.0]))
    >>> float(sigma), u.tolist(), v.tolist()
    (3.0, [0.0, -1.0], [0.0, 1.0])
  """

  batch_axes: tuple[int, ...] = ()

  has_closed_form: ClassVar[bool] = True
  meaning: ClassVar[str] = "elementwise scale: exact, max |w|"

  def __post_init__(self):
    object.__setattr__(self, "batch_axes", tuple(self.batch_axes))

  @property
  def stack_axes(self) -> tuple[int, ...]:
    return self.batch_axes

  def validate(self, shape: tuple[int, ...]) -> None:
    if self.batch_axes != tuple(range(len(self.batch_axes))) or len(self.batch_axes) > len(shape):
      msg = (
        f"{self!r} does not fit a leaf of shape {shape}: the batch axes of a"
        " Diagonal are its leading axes, (0,), (0, 1), …"
      )
      raise ValueError(msg)

  def batch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[: len(self.batch_axes)])

  def input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape)

  def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape)

  def apply(self, w: jax.Array, x: jax.Array) -> jax.Array:
    return w.astype(compute_dtype(w.dtype)) * x

  def adjoint(self, w: jax.Array, y: jax.Array) -> jax.Array:
    return self.apply(w, y)

  def weight_gradient(self, shape: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    del shape
    return x * y

  def terms(self, shape: tuple[int, ...]) -> tuple[int, int]:
    del shape
    return 1, 1

  def slice_operator(self) -> Diagonal:
    return Diagonal()

  def closed_form_values(self, w: jax.Array, k: int) -> jax.Array:
    batch = self.batch_shape(w.shape)
    flat = jnp.abs(w.astype(compute_dtype(w.dtype))).reshape(
      (*batch, -1) if w.size else (*batch, 0)
    )
    values = lax.top_k(flat, min(k, flat.shape[-1]))[0]
    values = jnp.where(jnp.isfinite(values[..., :1]), values, jnp.nan)
    return jnp.pad(values, [(0, 0)] * len(batch) + [(0, k - values.shape[-1])])

  def closed_form(self, w: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    w = w.astype(compute_dtype(w.dtype))
    batch = self.batch_shape(w.shape)
    flat = w.reshape((*batch, math.prod(w.shape[len(batch) :])))
    if flat.shape[-1] == 0:
      return jnp.zeros(batch, w.dtype), jnp.zeros_like(w), jnp.zeros_like(w)
    magnitude = jnp.abs(flat)
    sigma = jnp.max(magnitude, axis=-1)
    # A non-finite entry makes this slice's norm undefined, and only this slice's.
    sigma = jnp.where(jnp.isfinite(sigma), sigma, jnp.nan)
    at_max = jnp.argmax(magnitude, axis=-1, keepdims=True) == jnp.arange(flat.shape[-1])
    v = at_max.astype(w.dtype).reshape(w.shape)
    return sigma, v * jnp.sign(w), v
