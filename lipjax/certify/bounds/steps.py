"""A step of an ellipsoid through a layer: of one matrix, or of one for each frequency of images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.bounds import covariance
from lipjax.certify.bounds.layers import Layer
from lipjax.certify.bounds.torus import conjugated
from lipjax.measure.turns import in_turns

#: Numbers of the matrices of frequencies that are worked on at once.
AT_ONCE = 2**22


def start(layer: Layer, *, is_certified: bool) -> jax.Array:
  """A of the first layer's values."""
  of = functools.partial(covariance.start, is_certified=is_certified)
  if layer.blocks is None:
    return of(layer)
  matrices = lambda k: _for_each(lambda g: of(layer._replace(matrix=g)), layer.matrix[k])
  return _sum(layer, matrices, is_certified)


def through(
  a: jax.Array, layer: Layer, root: jax.Array, following: Layer, *, is_certified: bool
) -> jax.Array:
  """A of the next layer's values."""

  def one(a: jax.Array, g: jax.Array) -> jax.Array:
    matrix = following._replace(matrix=g)
    return covariance.through(a, layer, root, matrix, is_certified=is_certified)

  if following.blocks is None:
    return one(a, following.matrix)

  def term(k: Any) -> jax.Array:
    # What pools give has no linear part: A is the same for all frequencies, of either image.
    found = a[following.blocks[k]]
    found = found if following.flips is None else conjugated(found, following.flips[k])
    return _for_each(one, found, following.matrix[k])

  total = _sum(following, term, is_certified)
  return total[0] if following.flips is None else total


def _sum(layer: Layer, term: Any, is_certified: bool) -> jax.Array:
  """Of what all frequencies give that are alike."""
  n_terms = len(layer.matrix)
  if n_terms == 1:
    return term(0)
  step = lambda total, k: (total + term(k), None)
  total, _ = lax.scan(step, jnp.zeros_like(term(0)), jnp.arange(n_terms))
  if not is_certified:
    return total
  return jax.vmap(lambda x: covariance.summed(x, n_terms))(total)


def _for_each(fn: Callable[..., jax.Array], *stacks: jax.Array) -> jax.Array:
  """`fn` of the matrices of each frequency, of all at once where these are few numbers."""
  count = len(stacks[0])
  largest = max(math.prod(x.shape[1:]) for x in stacks)
  n_turns = min(-(-count * largest // AT_ONCE), count)
  of_all = jax.vmap(fn)
  return of_all(*stacks) if n_turns <= 1 else in_turns(of_all, stacks, n_turns)
