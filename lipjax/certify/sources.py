"""How far a node moves, from how far its sources do: each by one linear map."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lipjax.certify.facts import Facts, LipschitzPart, ScalarPart
from lipjax.certify.maps import (
  Known,
  Moves,
  Way,
  backward,
  half_slope,
  has_linear,
  is_nonlinear,
  is_source,
  joint,
  of_source,
)
from lipjax.certify.matrix import Rows
from lipjax.certify.stacks import (
  Measured,
  lost_on,
  measured,
  moved_by,
  movements_of,
  spectral_norms_of,
)
from lipjax.rounding.errors import up
from lipjax.rounding.numbers import times_above


class Deviations:
  """On a domain, how far each entry of sources is from where it is in the domain's middle."""

  def __init__(self, radius: Any):
    self.radius = radius
    # Sources are asked for by every node after them.
    self._found: dict[int, tuple[Facts, jax.Array]] = {}

  def of(self, known: Known, source: int) -> jax.Array:
    """Of what `of_source` says moves."""
    part = known.part(source)
    facts = known.facts[known.parents(source)[0] if isinstance(part, ScalarPart) else source]
    if source not in self._found or self._found[source][0] is not facts:
      self._found[source] = facts, _deviation(known, source, facts)
    return self._found[source][1]


def _deviation(known: Known, source: int, facts: Facts) -> jax.Array:
  part, node = known.part(source), known.nodes[source]
  if facts.range is None or facts.middle is None:
    return jnp.full(node.shape, jnp.inf, node.wide)
  (lower, upper), middle = facts.range, facts.middle
  error = middle.error if middle.errors is None else middle.errors
  far = up(jnp.maximum(upper - middle.value, middle.value - lower) + error, 3)
  if isinstance(part, ScalarPart) and not half_slope(part).ndim:
    far = times_above(far, half_slope(part))
  return jnp.broadcast_to(far, node.shape)


class _Term(NamedTuple):
  """How far a target moves at most for one source: by the map from it, times how far it moves.

  Attributes:
    way: the map.
    moved: how far the source moves in l2 for each unit that the inputs move.
    moves: the same, from how far nodes move.
    entries: on a domain, how far each of its entries is from where it is in the middle.
  """

  way: Way | Measured
  moved: Any
  moves: Moves
  entries: Any


class FromSources:
  """How far a target moves at most when its sources move as far as `bounds` says.

  With `deviations` each entry of it also as far as each entry of each source does.
  """

  def __init__(
    self,
    known: Known,
    target: int,
    order: Sequence[int],
    bounds: Mapping[int, Any],
    deviations: Deviations | None = None,
  ):
    self._shape, self._deviations = known.nodes[target].shape, deviations
    self._sums: list[list[_Term]] = []
    self._lost: list[Any] = []
    of = functools.partial(_terms, known, target, order, bounds, deviations)
    splittings = _splittings(known, target, order)
    for k, splits in enumerate(splittings):
      # What is lost counts in one of them.
      lost = self._lost if deviations is not None and k == len(splittings) - 1 else None
      self._sums.append(of(lost, splits=splits))

  def total(self) -> jax.Array:
    """The target as a whole, in l2."""
    best = jnp.asarray(jnp.inf)
    for terms, norms in zip(self._sums, self._norms, strict=True):
      moved = jnp.stack([x.moved for x in terms])
      total = jnp.sum(times_above(norms, moved))
      best = jnp.fmin(best, up(total, len(terms) + 1))
    return best

  def errors(self, off: Mapping[int, Any]) -> jax.Array:
    """How far each entry of the target is off in the domain's middle, but for what it lost itself.

    What each node has lost comes to it by one linear map, too, and not by a product of norms.

    Args:
      off: how far nodes are, in l2.
    """
    terms, norms = self._sums[-1], self._norms[-1]
    far = jnp.sum(times_above(norms, jnp.stack([x.moves(off) for x in terms])))
    total = functools.reduce(jnp.add, moved_by(self._lost), far)
    total = up(total, len(terms) + len(self._lost) + 2)
    return jnp.broadcast_to(total.reshape((-1,)), (math.prod(self._shape),)).reshape(self._shape)

  @functools.cached_property
  def _norms(self) -> list[jax.Array]:
    found = iter(spectral_norms_of(self._matrices()))
    norm = lambda x: x.way if isinstance(x.way, jax.Array) else next(found)
    return [jnp.stack([norm(x) for x in terms]) for terms in self._sums]

  def entries(self) -> jax.Array | None:
    """How far each entry of the target moves on the domain; None if matrices are not small."""
    matrices, terms = self._matrices(), [term for terms in self._sums for term in terms]
    if self._deviations is None or not matrices or len(matrices) < len(terms):
      return None
    moved, entries = [term.moved for term in terms], [term.entries for term in terms]
    found = iter(movements_of(matrices, moved, entries, self._deviations.radius))
    best = jnp.asarray(jnp.inf)
    for some in self._sums:
      total = functools.reduce(jnp.add, [next(found) for _ in some])
      best = jnp.fmin(best, up(total, len(some) + 1))
    return best.reshape(self._shape)

  def _matrices(self) -> list[Rows | Measured]:
    ways = [term.way for terms in self._sums for term in terms]
    return [way for way in ways if not isinstance(way, jax.Array)]


def _splittings(known: Known, target: int, order: Sequence[int]) -> list[bool]:
  """The `splits` of `_terms` that may give a better bound than the parents'.

  What is split into a linear part and a rest is larger, if the rest is.
  """
  if is_nonlinear(known.part(target)):
    return [True] * has_linear(known.part(target))
  parts = [known.part(i) for i in order]
  is_split = any(isinstance(x, LipschitzPart) and has_linear(x) for x in parts)
  return [False, True] if is_split else [False]


def _terms(
  known: Known,
  target: int,
  order: Sequence[int],
  bounds: Mapping[int, Any],
  deviations: Deviations | None,
  lost: list[Any] | None,
  *,
  splits: bool,
) -> list[_Term]:
  """One for each source; functions with a linear part are that and a rest if `splits`.

  What nodes before the target have lost by rounding, and the maps from them, goes to `lost`.
  """
  terms = []
  for source, way in backward(known, target, order, splits=splits):
    part, entries, middle = known.part(source), None, known.facts[source].middle
    is_whole = isinstance(part, LipschitzPart) and not (splits and part.linear)
    # How far a function is off as a whole is known.
    far = None if middle is None or is_whole or source == target else middle.lost
    if lost is not None and far is not None:
      lost.append(lost_on(way, far))
    if not is_source(part):
      continue
    if isinstance(part, LipschitzPart) and not is_whole:
      moves = functools.partial(joint, known, source, part.rest())
    else:
      way, moves = of_source(known, source, way)
      entries = None if deviations is None else deviations.of(known, source)
    way = measured(way, entries) if isinstance(way, Rows) else way
    terms.append(_Term(way, moves(bounds), moves, entries))
  return terms
