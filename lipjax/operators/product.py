"""The product of two leaves as an entry of a layout."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.operators.dense import Dense
from lipjax.operators.factors import Factors, can_repeat, stacked


@dataclasses.dataclass(frozen=True)
class Product:
  r"""The product of two leaves of a params tree, as an entry of a layout.

  With A and B the maps of the two leaves from their inputs to what they share, it is the map
  :math:`x \mapsto B^TAx`. `lora_products` and `qk_products` make a layout of them; one of your
  own is ``{name: Product(…)}``, beside operators of leaves or not. `spectral_norms`,
  `init_singular_vectors`, `update_singular_vectors`, `singular_triplets` and
  `add_spectral_decay` take such layouts. No product is formed.

  Guarantee: exact, a description.

  Args:
    first: the path of A's leaf.
    second: the path of B's leaf.
    of_first: A; its outputs are what the two share.
    of_second: B, likewise. For a chain of two kernels, as in LoRA, its inputs and outputs change
      places: the kernel of ``h @ b`` is ``Dense(in_axes=(1,), out_axes=(0,))``.

  Raises:
    ValueError: where it is used: a path that names no leaf, or leaves that share nothing.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"a": jnp.diag(jnp.array([3.0, 1.0])), "b": jnp.diag(jnp.array([0.0, 2.0]))}
    >>> both = lipjax.Product("a", "b", lipjax.Dense(), lipjax.Dense((1,), (0,)))
    >>> norms = lipjax.spectral_norms(params, layout={"a then b": both})
    >>> round(float(norms["a then b"]), 4)  # the product of the norms is 6
    2.0
  """

  first: str
  second: str
  of_first: Dense
  of_second: Dense

  def stacked(self, name: str, leaves: Mapping[str, Any]) -> tuple[Factors, Any]:
    """The operator of the product, and the leaf that it reads."""
    for path in (self.first, self.second):
      if path not in leaves:
        msg = f"{name!r} is a product with {path!r}, which is none of the leaves {sorted(leaves)}."
        raise ValueError(msg)
    both = leaves[self.first], leaves[self.second]
    operator = self._operator(name, *(tuple(w.shape) for w in both))
    if any(isinstance(w, jax.ShapeDtypeStruct) for w in both):
      # Without shardings, which say where leaves are and not where their stack is.
      shapes = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in both]
      return operator, jax.eval_shape(self._weight, *shapes)
    return operator, self._weight(*map(jnp.asarray, both))

  def gradients(
    self, first: jax.Array, second: jax.Array, v: jax.Array, u: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    r"""The gradients of :math:`\langle u, B^TAv\rangle` in the two leaves."""
    operator = self._operator("", first.shape, second.shape)
    along = lambda *both: jnp.sum(u * operator.apply(self._weight(*both), v))
    return jax.grad(along, (0, 1))(first.astype(u.dtype), second.astype(u.dtype))

  def _operator(self, name: str, first: tuple[int, ...], second: tuple[int, ...]) -> Factors:
    self.of_first.validate(first)
    self.of_second.validate(second)
    sizes = []
    for operator, shape in ((self.of_first, first), (self.of_second, second)):
      of = lambda axes, shape=shape: math.prod(shape[axis] for axis in axes)
      sizes.append((operator.batch_shape(shape), of(operator.out_axes), of(operator.in_axes)))
    (batch, shared, inputs), (batch_of_second, shared_of_second, outputs) = sizes
    if shared != shared_of_second or not can_repeat(batch, batch_of_second):
      msg = (
        f"{name!r} is a product of {batch} matrices of {shared} outputs and {batch_of_second} of"
        f" {shared_of_second}; what the two share must be equal."
      )
      raise ValueError(msg)
    return Factors(inputs, outputs, len(batch))

  def _weight(self, first: jax.Array, second: jax.Array) -> jax.Array:
    dtype = jnp.promote_types(first.dtype, second.dtype)
    return stacked(
      self.of_first.matrix(first.astype(dtype)), self.of_second.matrix(second.astype(dtype))
    )
