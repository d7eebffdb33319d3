"""Products with weights, and of two bounded arrays."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, Operand
from lipjax.certify.graph import Node
from lipjax.certify.linear import convolution_part, dot_part
from lipjax.certify.primitives import ranges
from lipjax.certify.primitives.record import record
from lipjax.certify.primitives.two import movement, of_two
from lipjax.measure.gram import gram_upper_bound
from lipjax.rounding.errors import up
from lipjax.rounding.numbers import norm_above


@record(
  "dot_general", range=ranges.bilinear, examples=[lambda x: x @ jnp.ones((3, 2)), lambda x: x @ x.T]
)
def dot_general(node: Node, left: Operand, right: Operand) -> Depends:
  """With a constant: the norm of its matrix, the largest of a batch.

  Of two bounded nodes, as in attention: each one's slope times the other's norm, added.
  """
  dimensions = node.params["dimension_numbers"]
  if left.moves and right.moves:
    sizes = [_matrix_bound(x, dimensions, i) for i, x in enumerate((left, right))]
    if None in sizes:
      raise CertifyError(_two(node))
    terms = math.prod(left.shape[i] for i in dimensions[0][0])
    return Depends(of_two((left, right), sizes[::-1], node.bind, terms), (left.place, right.place))
  weight, x = (left, right) if right.moves else (right, left)
  is_left = x is right
  part = dot_part(weight.value, dimensions=dimensions, x_ndim=len(x.shape), is_left=is_left)
  return Depends(part, (x.place,))


@record("conv_general_dilated", range=ranges.bilinear)
def conv_general_dilated(node: Node, x: Operand, kernel: Operand) -> Depends:
  """With a constant kernel: the norm of the convolution itself."""
  if kernel.moves:
    msg = (
      f"A convolution whose kernel depends on the input{node.line} has no rule. Write it as a"
      " product: jax.lax.conv_general_dilated_patches and jnp.einsum, and give a radius or a box."
    )
    raise CertifyError(msg)
  if node.params["batch_group_count"] != 1:
    msg = f"A convolution with batch_group_count > 1{node.line} has no rule."
    raise CertifyError(msg)
  part = convolution_part(kernel.value, x_shape=x.shape, params=node.params)
  return Depends(part, (x.place,))


def _matrix_bound(x: Operand, dimensions: Any, side: int) -> jax.Array | None:
  """At least the spectral norm of a factor, of the largest one in a batch, for every input."""
  within, middle = x.range, x.middle
  if within is None:
    return None
  contract, batch = dimensions[0][side], dimensions[1][side]
  free = [i for i in range(len(x.shape)) if i not in (*contract, *batch)]

  def matrices(values: jax.Array) -> jax.Array:
    values = values.astype(x.node.wide)
    shape = (-1, *(math.prod(x.shape[i] for i in axes) for axes in (free, contract)))
    return jnp.transpose(values, (*batch, *free, *contract)).reshape(shape)

  frobenius = lambda values: jnp.max(norm_above(matrices(values), (1, 2)), initial=0)
  bound = frobenius(within.size())
  if x.node.name == "softmax" and set(x.node.params["axes"]) == set(contract):
    # Rows of shares that sum to 1 have a norm of at most 1.
    bound = jnp.fmin(bound, up(jnp.sqrt(float(math.prod(x.shape[i] for i in free)))))
  if middle is None:
    return bound
  norm = jnp.max(gram_upper_bound(matrices(middle.value)), initial=0)
  # Either may be no number: of infinite ends.
  return jnp.fmin(bound, up(norm + middle.error + movement(x), 4))


def _two(node: Node) -> str:
  return (
    f"{node.name!r} of two arrays that depend on the input{node.line} is not "
    "Lipschitz: its slope grows with them. Self-attention is of this kind. It has a bound where "
    "the input is bounded: give a radius around the input, or a box."
  )
