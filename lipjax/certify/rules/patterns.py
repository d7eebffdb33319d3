"""Functions of a whole axis that are written with exponentials."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.certify.graph import LinearPart, LipschitzPart, Node, Recipe
from lipjax.certify.magnitudes import norm_above, times_above
from lipjax.certify.range_rules import softmax_range
from lipjax.certify.ranges import full_range, value_range
from lipjax.measure.rounding import up

#: What only copies entries along axes, or writes them in another type.
COPIES = ("broadcast_in_dim", "reshape", "convert_element_type")


def softmax(numerator: Any, denominator: Any, aval: Any) -> Node | None:
  r"""``exp(z) / sum(exp(z))``, a function of slope 1/2 of z, and of x if z = x - s.

  Its Jacobian :math:`\mathrm{diag}(p) - pp^T` has norm at most 1/2 (Gao and Pavel 2017,
  proposition 4, has 1; 1/2 follows from :math:`2\max_i p_i(1 - p_i)` as bound of the
  absolute row sums). A shift s that is constant along the axis changes nothing.
  """
  total = _source(denominator)
  if not _is(numerator, "exp") or not _is(total, "reduce_sum"):
    return None
  axes = total.recipe.params["axes"]
  is_total = _uncast(total.recipe.operands[0]) is numerator and numerator.shape == aval.shape
  if not is_total or not _are_put_back(_places(denominator, aval.shape), total.shape, axes):
    return None
  z = _unshifted(numerator.recipe.operands[0], axes)
  recipe = Recipe("softmax", {"axes": axes}, (z,))
  return Node(aval, _softmax_part(z, axes), (z,), recipe=recipe)


def _softmax_part(z: Node, axes: tuple[int, ...]) -> LipschitzPart:
  constants = (_softmax_slope(z, axes),)
  if value_range(z, at_point=True) is None:
    return LipschitzPart(constants)
  ends = softmax_range(*full_range(z, at_point=True), axes)
  p = ends[0] / 2 + ends[1] / 2
  total = lambda x: jnp.sum(x, axes, keepdims=True)

  def rest():
    # diag(p) - pp' and diag(q) - qq' differ by max|p - q| + |p - q|(|p| + |q|) at most.
    lower, upper = softmax_range(*full_range(z), axes)
    away = jnp.maximum(upper - p, p - lower)
    length = lambda x: jnp.expand_dims(norm_above(x, axes), axes)
    sizes = times_above(length(away), length(upper) + length(p))
    return (up(jnp.max(jnp.max(away, axes, keepdims=True) + sizes, initial=0), p.size + 16),)

  linear = LinearPart(
    lambda x: p * x - p * total(p * x),
    (lambda: up(jnp.max(p, initial=0) + jnp.max(jnp.abs(total(p) - 1), initial=0), p.size),),
    roundings=2 * math.prod(z.shape[axis] for axis in axes) + 6,
    magnitude=lambda x: p * x + p * total(p * x),
    is_exact=False,
  )
  return LipschitzPart(constants, linear=linear, rest=functools.cache(rest))


def _softmax_slope(z: Node, axes: tuple[int, ...]) -> Any:
  """1/2, or the largest share where that is less: diag(p) - pp' is at most diag(p)."""
  if value_range(z) is None:
    return 0.5
  return jnp.minimum(0.5, jnp.max(softmax_range(*full_range(z), axes)[1], initial=0))


def log_sum_exp(left: Any, right: Any, aval: Any) -> Node | None:
  """``log(sum(exp(x - s))) + s``, of slope 1, whatever s."""
  for log, shift in ((left, right), (right, left)):
    if not _is(log, "log"):
      continue
    inner = _without_abs(log.recipe.operands[0])
    total = _source(inner)
    z = _exponent(total)
    if z is None or not log.shape == shift.shape == aval.shape:
      continue
    axes = total.recipe.params["axes"]
    x = _unshifted(z, axes)
    if x is z or _source(z.recipe.operands[1]) is not _source(shift):
      continue
    # Every row once, and to each the shift that was taken from it.
    rows = _places(inner, aval.shape)
    taken = _first(_places(z.recipe.operands[1], z.shape), axes).ravel()
    is_once = np.array_equal(np.sort(rows, axis=None), np.arange(taken.size))
    if is_once and np.array_equal(taken[rows], _places(shift, aval.shape)):
      return Node(aval, LipschitzPart((1.0,)), (x,))
  return None


def log_softmax(z: Any, log: Any, aval: Any) -> Node | None:
  r"""``z - log(sum(exp(z)))``: the Jacobian :math:`I - 1p^T` has norm below √n.

  The norm is convex in p, and √n where p is a unit vector.
  """
  logarithm = _source(log)
  total = _source(_without_abs(logarithm.recipe.operands[0])) if _is(logarithm, "log") else None
  if total is None or _exponent(total) is not z:
    return None
  axes = total.recipe.params["axes"]
  rows = _places(_without_abs(logarithm.recipe.operands[0]), logarithm.shape).ravel()
  if z.shape != aval.shape or not _are_put_back(rows[_places(log, z.shape)], total.shape, axes):
    return None
  n = math.prod(z.shape[axis] for axis in axes)
  return Node(aval, LipschitzPart((math.sqrt(n),)), (_unshifted(z, axes),))


def _without_abs(node: Any) -> Any:
  """A sum of exponentials is its own magnitude."""
  return node.recipe.operands[0] if _is(node, "abs") else node


def _exponent(total: Any) -> Any:
  """The z of ``sum(exp(z))``, None of others; half precision is summed in single precision."""
  term: Any = _uncast(total.recipe.operands[0]) if _is(total, "reduce_sum") else None
  return term.recipe.operands[0] if _is(term, "exp") else None


def _is(node: Any, name: str) -> bool:
  return isinstance(node, Node) and node.recipe is not None and node.recipe.name == name


def _uncast(node: Any) -> Any:
  while _is(node, "convert_element_type"):
    node = node.parents[0]
  return node


def _source(node: Any) -> Any:
  """What is only copied along axes or given axes of size 1 here."""
  while node.recipe is not None and node.recipe.name in COPIES:
    node = node.parents[0]
  return node


def _places(node: Any, shape: tuple[int, ...]) -> np.ndarray:
  """Which entry of its source each entry of a node is, when broadcast to a shape."""
  source, applied = _source(node), []
  while node is not source:
    # Places are whole numbers, which a conversion would round.
    if node.recipe.name != "convert_element_type":
      applied.append(node.part.apply)
    node = node.parents[0]
  with jax.ensure_compile_time_eval():
    places = jnp.arange(max(int(np.prod(source.shape)), 1)).reshape(source.shape)
    for apply in reversed(applied):
      places = apply(places)
  return np.broadcast_to(np.asarray(places), shape)


def _are_put_back(rows: np.ndarray, reduced: tuple[int, ...], axes: tuple[int, ...]) -> bool:
  """Whether entries that were reduced over axes, by number, stand where they came from."""
  expected = np.expand_dims(np.arange(math.prod(reduced)).reshape(reduced), axes)
  return np.array_equal(rows, np.broadcast_to(expected, rows.shape))


def _unshifted(z: Any, axes: tuple[int, ...]) -> Node:
  """X where z = x - s with s constant along the axes."""
  if not _is(z, "sub"):
    return z
  x, s = z.recipe.operands
  if not (isinstance(x, Node) and isinstance(s, Node)) or x.shape != z.shape:
    return z
  places = _places(s, z.shape)
  return x if np.all(places == _first(places, axes)) else z


def _first(places: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
  """The first ones along axes, which are kept."""
  return places[tuple(slice(1 if axis in axes else None) for axis in range(places.ndim))]
