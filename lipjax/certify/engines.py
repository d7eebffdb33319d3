"""From a graph to a bound: products of norms, and products of the linear parts' norms."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.graph import LinearPart, LipschitzPart, Node, ScalarPart
from lipjax.certify.magnitudes import norm_above, times_above, tiny
from lipjax.certify.rows import Rows, identity_rows
from lipjax.measure.rounding import up
from lipjax.operators.products import compute_dtype

#: Matrices of compositions are looked at if they have at most so many rows …
ROWS_UP_TO = 1024
#: … and entries.
ENTRIES_UP_TO = 2**22
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
    bound = bound_from_parents(node, bounds)
    if id(node) in refined:
      # Not the minimum, as an overflow makes the other one no number.
      bound = jnp.fmin(bound, _from_sources(node, order, bounds))
    # On a domain it can be known already. Either may be no number: 0 times an infinite norm.
    bounds[id(node)] = jnp.fmin(bound, node.cache.get("reach", jnp.inf))
  return bounds


def _from_sources(target: Node, order: list[Node], bounds: dict[int, jax.Array]) -> jax.Array:
  # What is split into a linear part and a rest is larger, if the rest is.
  has_linear = any(isinstance(x.part, LipschitzPart) and x.part.linear for x in order)
  ways = [from_sources(target, order, bounds, splits=x)[0] for x in {False, has_linear}]
  return functools.reduce(jnp.fmin, ways)


def from_sources(
  target: Node, order: list[Node], bounds: Mapping[int, jax.Array], *, splits: bool
) -> tuple[jax.Array, jax.Array | None]:
  """How far the target moves at most, and how far each of its entries, if its matrices are small.

  Functions with a linear part are split into that and the rest if `splits`.
  """
  totals, entries = [], []
  for source, norm, matrix in backward_norms(target, order, splits=splits):
    part = source.part
    if part is None:
      moved = jnp.ones((), norm.dtype)
    elif isinstance(part, ScalarPart):
      half = half_range(part)
      moved = bounds[id(source.parents[0])]
      norm = times_above(norm, jnp.max(half, initial=0))
      matrix = None if matrix is None else matrix.scaled(half)
      if half.ndim and matrix is not None:
        norm = jnp.fmin(norm, matrix.norm())
    elif isinstance(part, LipschitzPart) and part.linear is not None and splits:
      moved = _joint(source, part.rest(), bounds)
    else:
      moved = bound_from_parents(source, bounds)
    totals.append(times_above(norm, moved))
    entries.append(None if matrix is None else times_above(matrix.row_norms(), moved))
  total = up(functools.reduce(jnp.add, totals, jnp.zeros(())), len(totals) + 1)
  if not entries or any(x is None for x in entries):
    return total, None
  return total, up(functools.reduce(jnp.add, entries), len(entries) + 1).reshape(target.shape)


def backward_norms(
  target: Node, order: list[Node], *, splits: bool = True
) -> Iterator[tuple[Node, jax.Array, Rows | None]]:
  """A source, an input or a nonlinear node, a bound of ‖A‖ from it to the target, and its rows."""
  dtype = compute_dtype(target.aval.dtype)
  n_rows = math.prod(target.shape)
  norms = {id(target): jnp.ones((), dtype)}
  is_small = 0 < n_rows <= ROWS_UP_TO
  rows: dict[int, Rows | None] = {}
  rows[id(target)] = identity_rows(target, dtype) if is_small else None
  place = order.index(target)
  for node in reversed(order[: place + 1]):
    if id(node) not in norms:
      continue
    norm, matrix = norms.pop(id(node)), rows.pop(id(node), None)
    is_source = node.part is None or is_nonlinear(node)
    if is_source and matrix is not None:
      norm = jnp.fmin(norm, matrix.norm())
    if is_source:
      yield node, norm, matrix
    part = node.part
    if part is None or (isinstance(part, LipschitzPart) and not (splits and part.linear)):
      continue
    for i, parent in enumerate(node.parents):
      gain, earlier = step_back(node, i, matrix)
      norms[id(parent)] = up(norms.get(id(parent), 0) + times_above(norm, gain), 2)
      rows[id(parent)] = _joined(rows[id(parent)], earlier) if id(parent) in rows else earlier


def half_range(part: ScalarPart) -> jax.Array:
  """How far slopes are from the middle one."""
  low, high = part.slopes()
  middle = (low + high) / 2
  half = up(jnp.maximum(high - middle, middle - low), 2)
  # A difference can be too small to be normal.
  return jnp.where(low < high, jnp.maximum(half, tiny(half.dtype)), half)


def _joined(one: Rows | None, other: Rows | None) -> Rows | None:
  return None if one is None or other is None else one.plus(other)


def rows_to_source(target: Node) -> tuple[Rows | None, Node]:
  """The matrix from the one source of a chain's node to it, and the source; None if too large."""
  matrix: Rows | None = identity_rows(target, compute_dtype(target.aval.dtype))
  node = target
  while isinstance(node.part, LinearPart):
    matrix = step_back(node, 0, matrix)[1]
    node = node.parents[0]
    if matrix is None:
      break
  return matrix, node


def step_back(node: Node, i: int, matrix: Rows | None) -> tuple[Any, Rows | None]:
  """A bound of the map from the i-th parent to a node, and the rows from that parent on."""
  if isinstance(node.part, ScalarPart):
    low, high = node.part.slopes()
    middle = (low + high) / 2
    return jnp.max(jnp.abs(middle), initial=0), None if matrix is None else matrix.scaled(middle)
  part = node.part.linear if isinstance(node.part, LipschitzPart) else node.part
  if not isinstance(part, LinearPart):
    msg = "Only linear parts and scalar functions have a matrix."
    raise TypeError(msg)
  gain = part.norms[i]()
  if matrix is None or matrix.n_rows * math.prod(node.parents[i].shape) > ENTRIES_UP_TO:
    return gain, None
  return gain, matrix.through(node, part, i, gain)
