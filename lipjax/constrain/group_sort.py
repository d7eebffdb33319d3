"""GroupSort: an activation that keeps the length of what it is given."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
