"""Activations that keep lengths: GroupSort, and reflections of pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lipjax.constrain.raw_weights import check_floating


def group_sort(x: jax.Array, group_size: int = 2, axis: int = -1) -> jax.Array:
  r"""Neighbours on an axis sorted, in groups of `group_size`; MaxMin for groups of two.

  For every input it is a permutation, so that slopes are 1 in all directions: with orthogonal
  weights gradients keep their length through any number of layers.

  Guarantee: :math:`\|f(x) - f(y)\|_2 \le \|x - y\|_2`, and `lipschitz_upper_bound` proves it.

  Args:
    x: any array.
    group_size: entries of a group, at least 1, which divides the axis.
    axis: along which there are groups, the channels of an image as a rule.

  Returns:
    An array of the same shape and dtype.

  Raises:
    ValueError: a size that is below 1 or does not divide the axis.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> lipjax.group_sort(jnp.array([3.0, 1.0, 2.0, 5.0])).tolist()
    [1.0, 3.0, 2.0, 5.0]

  Reference:
    Anil, Lucas & Grosse (2019), arXiv:1811.05381, section 4.3.
  """
  n = x.shape[axis]
  if group_size < 1 or n % group_size:
    msg = f"group_size is {group_size}; expected a number of at least 1 that divides {n} entries."
    raise ValueError(msg)
  last = jnp.moveaxis(x, axis, -1)
  groups = last.reshape((*last.shape[:-1], n // group_size, group_size))
  return jnp.moveaxis(jnp.sort(groups, axis=-1).reshape(last.shape), -1, axis)


def householder(x: jax.Array, angles: jax.Array, axis: int = -1) -> jax.Array:
  r"""Neighbours on an axis reflected, in pairs, where they lie on one side of a line.

  .. math:: z \mapsto z - 2\,v \min(v^T z, 0), \qquad v = (\sin\tfrac\theta2, -\cos\tfrac\theta2)

  for each pair z, with an angle :math:`\theta` that may be learned; at :math:`\pi/2` it is MaxMin.

  Guarantee: :math:`\|f(x) - f(y)\|_2 \le \|x - y\|_2` but for rounding, and
  `lipschitz_upper_bound` proves it, up to a few ten-thousandths.

  Args:
    x: any floating-point array.
    angles: in radians, one for each pair, shape (n/2,); or one for all.
    axis: along which there are pairs, with an even number n of entries.

  Returns:
    An array of the same shape and dtype.

  Raises:
    ValueError: integers, an odd number of entries, or angles of another shape.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> lipjax.householder(jnp.array([1.0, 3.0, 5.0, 2.0]), jnp.pi / 2).round(4).tolist()
    [3.0, 1.0, 5.0, 2.0]

  Reference:
    Singla, Singla & Feizi (2022), arXiv:2108.04062.
  """
  check_floating(x, "x")
  n, shape = x.shape[axis], jnp.shape(angles)
  if n % 2:
    msg = f"x has {n} entries on axis {axis}; expected an even number, for pairs."
    raise ValueError(msg)
  if shape not in ((), (n // 2,)):
    msg = f"angles have shape {shape}; expected {(n // 2,)}, one for each pair, or one number."
    raise ValueError(msg)
  last = jnp.moveaxis(x, axis, -1)
  pairs = last.reshape((*last.shape[:-1], n // 2, 2))
  v = jnp.stack([jnp.sin(angles / 2), -jnp.cos(angles / 2)], axis=-1).astype(x.dtype)
  side = jnp.sum(pairs * v, axis=-1, keepdims=True)
  found = pairs - 2 * v * jnp.minimum(side, 0)
  return jnp.moveaxis(found.reshape(last.shape), -1, axis)
