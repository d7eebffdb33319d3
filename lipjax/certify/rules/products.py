"""Products with weights, and of two bounded arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import LinearPart, LipschitzPart, Node
from lipjax.certify.interpreter import binder, rule_for
from lipjax.certify.jaxprs import source_line
from lipjax.certify.linear_parts import convolution_part, dot_part
from lipjax.certify.magnitudes import norm_above
from lipjax.certify.ranges import full_range, movement, value_range
from lipjax.measure.gram import gram_upper_bound
from lipjax.measure.rounding import up
from lipjax.operators.products import compute_dtype


@rule_for("dot_general")
def dot_general(eqn: Any, left: Any, right: Any) -> Any:
  """With a constant: the norm of its matrix, the largest of a batch.

  Of two bounded nodes, as in attention: each one's slope times the other's norm, added.
  """
  dimensions = eqn.params["dimension_numbers"]
  if isinstance(left, Node) and isinstance(right, Node):
    sizes = [_matrix_bound(x, dimensions, i) for i, x in enumerate((left, right))]
    if None in sizes:
      raise CertifyError(_two(eqn))
    part = of_two((left, right), sizes[::-1], binder(eqn), _terms(left, dimensions))
    return Node(eqn.outvars[0].aval, part, (left, right))
  is_left = isinstance(right, Node)
  weight: Any = left if is_left else right
  x: Any = right if is_left else left
  part = dot_part(weight, dimensions=dimensions, x_ndim=len(x.shape), is_left=is_left)
  return Node(eqn.outvars[0].aval, part, (x,))


@rule_for("conv_general_dilated")
def conv_general_dilated(eqn: Any, x: Any, kernel: Any) -> Any:
  """With a constant kernel: the norm of the convolution itself."""
  if not isinstance(x, Node) or isinstance(kernel, Node):
    raise CertifyError(_two(eqn))
  if eqn.params["batch_group_count"] != 1:
    msg = f"A convolution with batch_group_count > 1{source_line(eqn)} has no rule."
    raise CertifyError(msg)
  part = convolution_part(kernel, x_shape=x.shape, params=eqn.params)
  return Node(eqn.outvars[0].aval, part, (x,))


def _terms(left: Node, dimensions: Any) -> int:
  return math.prod(left.shape[i] for i in dimensions[0][0])


def of_two(nodes: Any, constants: Any, bind: Callable[..., jax.Array], terms: int) -> LipschitzPart:
  """A product of two nodes; on a domain it is linear but for the product of what they move."""
  if any(value_range(x, at_point=True) is None for x in nodes):
    return LipschitzPart(tuple(constants), adds=True)
  middles = [_middle(x) for x in nodes]

  # In the dtype of bounds: of half precision the middles would be rounded again.
  def around(a: jax.Array, b: jax.Array) -> Callable[..., jax.Array]:
    return lambda x, y: bind(a, y.astype(a.dtype)) + bind(x.astype(b.dtype), b)

  linear = LinearPart(
    around(*middles),
    # The middle is within rounding of the values that the constants are of.
    tuple(functools.partial(up, jnp.asarray(c), 64) for c in constants),
    roundings=2 * terms + 2,
    magnitude=around(*map(jnp.abs, middles)),
    is_exact=False,
  )
  away = lambda: [_distance(x, middle) for x, middle in zip(nodes, middles, strict=True)]
  rest = functools.cache(lambda: tuple(away()[::-1]))
  return LipschitzPart(tuple(constants), adds=True, linear=linear, rest=rest)


def _middle(node: Node) -> jax.Array:
  lower, upper = full_range(node, at_point=True)
  return (lower / 2 + upper / 2).astype(compute_dtype(node.aval.dtype))


def _distance(node: Node, middle: jax.Array) -> jax.Array:
  """At least how far a node can be, in l2, from a value."""
  lower, upper = full_range(node)
  entries = jnp.maximum(upper - middle, middle - lower)
  far = norm_above(entries)
  point, moved = full_range(node, at_point=True), movement(node)
  off = jnp.maximum(point[1] - middle, middle - point[0])
  return jnp.fmin(far, up(moved + norm_above(off), 2))


def _matrix_bound(node: Node, dimensions: Any, side: int) -> jax.Array | None:
  """At least the spectral norm of a factor, of the largest one in a batch, for every input."""
  if value_range(node) is None:
    return None
  within = full_range(node)
  contract, batch = dimensions[0][side], dimensions[1][side]
  free = [i for i in range(len(node.shape)) if i not in (*contract, *batch)]

  def matrices(x: jax.Array) -> jax.Array:
    x = x.astype(compute_dtype(node.aval.dtype))
    shape = (-1, *(math.prod(node.shape[i] for i in axes) for axes in (free, contract)))
    return jnp.transpose(x, (*batch, *free, *contract)).reshape(shape)

  frobenius = lambda x: jnp.max(norm_above(matrices(x), (1, 2)), initial=0)
  bound = frobenius(jnp.maximum(jnp.abs(within[0]), jnp.abs(within[1])))
  recipe = node.recipe
  if recipe and recipe.name == "softmax" and set(recipe.params["axes"]) == set(contract):
    # Rows of shares that sum to 1 have a norm of at most 1.
    bound = jnp.fmin(bound, up(jnp.sqrt(float(math.prod(node.shape[i] for i in free)))))
  if value_range(node, at_point=True) is None:
    return bound
  point, moved = full_range(node, at_point=True), movement(node)
  middle = point[0] / 2 + point[1] / 2
  error = frobenius(up(jnp.maximum(point[1] - middle, middle - point[0])))
  norm = jnp.max(gram_upper_bound(matrices(middle)), initial=0)
  around = up(norm + error + moved, 4)
  # Either may be no number: of infinite ends.
  return jnp.fmin(bound, around)


def _two(eqn: Any) -> str:
  return (
    f"{eqn.primitive.name!r} of two arrays that depend on the input{source_line(eqn)} is not "
    "Lipschitz: its slope grows with them. Self-attention is of this kind. It has a bound where "
    "the input is bounded: give a radius around the input, or a box."
  )
