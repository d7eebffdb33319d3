"""From a graph to a bound: products of norms, and products of the linear parts' norms."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lipjax.certify.graph import LinearPart, LipschitzPart, Node, ScalarPart
from lipjax.certify.magnitudes import norm_above, times_above, tiny
from lipjax.certify.rows import Measured, Rows, identity_rows, norms_of, row_norms_of
from lipjax.measure.rounding import up
from lipjax.operators.products import compute_dtype

#: Matrices of compositions are looked at if they have at most so many rows …
ROWS_UP_TO = 1024
#: … and entries.
ENTRIES_UP_TO = 2**22
#: A linear map to a target: its matrix, or at least its norm where that is too large.
Way = Rows | jax.Array
#: LipLT looks at every pair of nodes; larger graphs get the product alone.
PAIRS_UP_TO = 40_000


def product_bounds(order: list[Node]) -> dict[int, jax.Array]:
  """For every node a bound from its parents' bounds and the norms of what is between."""
  bounds: dict[int, jax.Array] = {}
  for node in order:
    bounds[id(node)] = bound_from_parents(node, bounds)
  return bounds


def bound_from_parents(node: Node, bounds: Mapping[int, jax.Array]) -> jax.Array:
  """How far a node moves at most when its parents move as far as given."""
  if node.part is None:
    return jnp.ones((), compute_dtype(node.aval.dtype))
  return _joint(node, gains(node), bounds)


def _joint(node: Node, factors: Sequence[Any], bounds: Mapping[int, jax.Array]) -> jax.Array:
  terms = [times_above(g, bounds[id(p)]) for g, p in zip(factors, node.parents, strict=True)]
  if len(terms) == 1:
    return terms[0]
  is_linear = isinstance(node.part, LinearPart) and not node.part.is_disjoint
  if is_linear or (isinstance(node.part, LipschitzPart) and node.part.adds):
    return up(functools.reduce(jnp.add, terms), len(terms))
  return hypotenuse(terms)


def hypotenuse(terms: list[jax.Array]) -> jax.Array:
  """√(sum of squares), rounded up."""
  return terms[0] if len(terms) == 1 else norm_above(jnp.stack(terms))


def gains(node: Node) -> list:
  """For each parent how far the node moves at most when it moves."""
  match node.part:
    case LinearPart(norms=norms):
      return [norm() for norm in norms]
    case LipschitzPart(constants=constants):
      return list(constants)
    case ScalarPart(slopes=slopes):
      low, high = slopes()
      return [jnp.max(jnp.maximum(jnp.abs(low), jnp.abs(high)), initial=0)]
  return []


def is_nonlinear(node: Node) -> bool:
  """Whether it is a source of its own for `liplt_bounds`."""
  return isinstance(node.part, ScalarPart | LipschitzPart)


def targets(order: list[Node], outputs: list[Node]) -> list[Node]:
  """The nodes whose bound is refined: what nonlinear nodes read, and the results."""
  read = [parent for node in order if is_nonlinear(node) for parent in node.parents]
  seen: dict[int, Node] = {}
  for node in [*read, *outputs]:
    seen.setdefault(id(node), node)
  return [node for node in order if id(node) in seen and node.part is not None]


def liplt_bounds(order: list[Node], outputs: list[Node]) -> dict[int, jax.Array]:
  r"""Bounds of all nodes by LipLT (Fazlyab et al. 2023), on any graph.

  A scalar function of slopes in [α, β] is :math:`mu + r(u)`, :math:`m = (\alpha+\beta)/2`,
  with r of slope :math:`h = (\beta-\alpha)/2`. With :math:`A_{kj}` the linear map from
  node j to node k when every scalar function is its mu,
  :math:`L_k \le \|A_{k0}\| + \sum_j \|A_{kj}\| h_j L_{u_j}`. The norms of the
  compositions are those of their matrices where these are small, else products.
  """
  refined = {id(node) for node in targets(order, outputs)}
  if len(order) * len(refined) > PAIRS_UP_TO:
    refined = {id(node) for node in outputs}
  bounds: dict[int, jax.Array] = {}
  for node in order:
    bounds[id(node)] = bound = bound_from_parents(node, bounds)
    # One with a bound for each entry was refined for its range.
    if id(node) in refined and node.cache.get("entries") is None:
      # Not the minimum, as an overflow makes the other one no number.
      bound = jnp.fmin(bound, FromSources(node, order, bounds).total())
    # On a domain it can be known already. Either may be no number: 0 times an infinite norm.
    bounds[id(node)] = jnp.fmin(bound, node.cache.get("reach", jnp.inf))
  return bounds


def has_linear(node: Node) -> bool:
  """Whether it is linear, or has a part that is."""
  is_split = isinstance(node.part, LipschitzPart) and node.part.linear is not None
  return isinstance(node.part, LinearPart) or is_split


def _splittings(target: Node, order: list[Node]) -> list[bool]:
  """The `splits` of `_terms` that may give a better bound than the parents'.

  What is split into a linear part and a rest is larger, if the rest is.
  """
  if is_nonlinear(target):
    return [True] * has_linear(target)
  is_split = any(isinstance(x.part, LipschitzPart) and has_linear(x) for x in order)
  return [False, True] if is_split else [False]


class _Term(NamedTuple):
  """How far a target moves at most for one source: by the map from it, times how far it moves."""

  way: Way | Measured
  moved: Any


class FromSources:
  """How far a target moves at most when its sources move as far as `bounds` says."""

  def __init__(self, target: Node, order: list[Node], bounds: Mapping[int, jax.Array]):
    self._target = target
    self._sums = [_terms(target, order, bounds, splits=x) for x in _splittings(target, order)]

  def total(self) -> jax.Array:
    """The target as a whole, in l2."""
    known = iter(norms_of(self._matrices()))
    best = jnp.asarray(jnp.inf)
    for terms in self._sums:
      norms = [x.way if isinstance(x.way, jax.Array) else next(known) for x in terms]
      moved = jnp.stack([x.moved for x in terms])
      total = jnp.sum(times_above(jnp.stack(norms), moved))
      best = jnp.fmin(best, up(total, len(terms) + 1))
    return best

  def entries(self) -> jax.Array | None:
    """Each entry of the target; None if the matrices are not small."""
    matrices = self._matrices()
    if not matrices or len(matrices) < sum(map(len, self._sums)):
      return None
    known = iter(row_norms_of(matrices))
    best = jnp.asarray(jnp.inf)
    for terms in self._sums:
      total = functools.reduce(jnp.add, [times_above(next(known), x.moved) for x in terms])
      best = jnp.fmin(best, up(total, len(terms) + 1))
    return best.reshape(self._target.shape)

  def _matrices(self) -> list[Rows | Measured]:
    ways = [term.way for terms in self._sums for term in terms]
    return [way for way in ways if not isinstance(way, jax.Array)]


def _terms(
  target: Node, order: list[Node], bounds: Mapping[int, jax.Array], *, splits: bool
) -> list[_Term]:
  """One for each source; functions with a linear part are that and a rest if `splits`."""
  terms = []
  for source, way in backward(target, order, splits=splits):
    part = source.part
    if isinstance(part, LipschitzPart) and part.linear is not None and splits:
      moved = _joint(source, part.rest(), bounds)
    else:
      way, moved = of_source(source, way, bounds)
    terms.append(_Term(way.measured() if isinstance(way, Rows) else way, moved))
  return terms


def of_source(source: Node, way: Way, bounds: Mapping[int, jax.Array]) -> tuple[Way, Any]:
  """The map and how far its source moves; of a scalar function, how far it is off its middle."""
  if not isinstance(source.part, ScalarPart):
    return way, bounds[id(source)]
  half, moved = _half_range(source.part), bounds[id(source.parents[0])]
  if half.ndim and isinstance(way, Rows):
    return way.scaled(half), moved
  return way, times_above(moved, jnp.max(half, initial=0))


def backward(target: Node, order: list[Node], *, splits: bool = True) -> Iterator[tuple[Node, Way]]:
  """The sources, inputs and nonlinear nodes, and the linear maps from them to the target."""
  dtype = compute_dtype(target.aval.dtype)
  is_small = 0 < math.prod(target.shape) <= ROWS_UP_TO
  ways: dict[int, Way] = {}
  ways[id(target)] = identity_rows(target, dtype) if is_small else jnp.ones((), dtype)
  for node in reversed(order[: order.index(target) + 1]):
    if id(node) not in ways:
      continue
    way, part = ways.pop(id(node)), node.part
    if part is None or is_nonlinear(node):
      yield node, way
    if part is None or (isinstance(part, LipschitzPart) and not (splits and part.linear)):
      continue
    for i, parent in enumerate(node.parents):
      earlier = _step_back(node, i, way)
      ways[id(parent)] = _joined(ways[id(parent)], earlier) if id(parent) in ways else earlier


def _half_range(part: ScalarPart) -> jax.Array:
  """How far slopes are from the middle one."""
  (low, high), middle = part.slopes(), _middle(part)
  half = up(jnp.maximum(high - middle, middle - low), 2)
  # A difference can be too small to be normal.
  return jnp.where(low < high, jnp.maximum(half, tiny(half.dtype)), half)


def _joined(one: Way, other: Way) -> Way:
  if isinstance(one, Rows) and isinstance(other, Rows):
    return one.plus(other)
  return up(_norm(one) + _norm(other), 2)


def _norm(way: Way) -> jax.Array:
  return way.norm() if isinstance(way, Rows) else way


def rows_to_source(target: Node) -> tuple[Rows | None, Node]:
  """The matrix from the one source of a chain's node to it, and the source; None if too large."""
  matrix: Rows | None = identity_rows(target, compute_dtype(target.aval.dtype))
  node = target
  while isinstance(node.part, LinearPart) and matrix is not None:
    matrix = rows_back(node, 0, matrix)
    node = node.parents[0]
  return matrix, node


def _step_back(node: Node, i: int, way: Way) -> Way:
  """From the i-th parent of a node on; a norm where the matrix is too large."""
  earlier = rows_back(node, i, way) if isinstance(way, Rows) else None
  if earlier is not None:
    return earlier
  if isinstance(node.part, ScalarPart):
    gain = jnp.max(jnp.abs(_middle(node.part)), initial=0)
  else:
    gain = _linear(node).norms[i]()
  return times_above(_norm(way), gain)


def rows_back(node: Node, i: int, matrix: Rows) -> Rows | None:
  """The matrix from the i-th parent of a node on; None if it is too large."""
  if isinstance(node.part, ScalarPart):
    return matrix.scaled(_middle(node.part))
  if matrix.n_rows * math.prod(node.parents[i].shape) > ENTRIES_UP_TO:
    return None
  part = _linear(node)
  return matrix.through(node, part, i, part.norms[i]())


def _middle(part: ScalarPart) -> jax.Array:
  low, high = part.slopes()
  return (low + high) / 2


def _linear(node: Node) -> LinearPart:
  part = node.part.linear if isinstance(node.part, LipschitzPart) else node.part
  if not isinstance(part, LinearPart):
    msg = "Only linear parts and scalar functions have a matrix."
    raise TypeError(msg)
  return part
