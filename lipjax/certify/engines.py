"""From a graph to a bound: products of norms, and products of the linear parts' norms."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.graph import LinearPart, LipschitzPart, Node, ScalarPart
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
    bounds[id(node)] = _from_parents(node, bounds)
  return bounds


def _from_parents(node: Node, bounds: dict[int, jax.Array]) -> jax.Array:
  if node.part is None:
    return jnp.ones((), compute_dtype(node.aval.dtype))
  factors = gains(node)
  terms = [up(g * bounds[id(p)], 2) for g, p in zip(factors, node.parents, strict=True)]
  if len(terms) == 1:
    return terms[0]
  is_linear = isinstance(node.part, LinearPart) and not node.part.is_disjoint
  if is_linear or (isinstance(node.part, LipschitzPart) and node.part.adds):
    return up(functools.reduce(jnp.add, terms), len(terms))
  return hypotenuse(terms)


def hypotenuse(terms: list[jax.Array]) -> jax.Array:
  """√(sum of squares), rounded up, without overflow."""
  if len(terms) == 1:
    return terms[0]
  stacked = jnp.stack(terms)
  largest = jnp.max(stacked)
  scale = jnp.where(largest > 0, largest, 1)
  return up(scale * jnp.sqrt(jnp.sum(jnp.square(stacked / scale))), len(terms) + 8)


def gains(node: Node) -> list:
  """For each parent how far the node moves at most when it moves."""
  match node.part:
    case LinearPart(norms=norms):
      return [norm() for norm in norms]
    case LipschitzPart(constants=constants):
      return list(constants)
    case ScalarPart(slopes=slopes):
      return [max(map(abs, slopes()))]
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
    bound = _from_parents(node, bounds)
    if id(node) in refined:
      bound = jnp.minimum(bound, _from_sources(node, order, bounds))
    bounds[id(node)] = bound
  return bounds


def _from_sources(target: Node, order: list[Node], bounds: dict[int, jax.Array]) -> jax.Array:
  terms = []
  for node, norm in backward_norms(target, order):
    if node.part is None:
      terms.append(norm)
      continue
    if isinstance(node.part, ScalarPart):
      low, high = node.part.slopes()
      terms.append(up(norm * (high - low) / 2 * bounds[id(node.parents[0])], 6))
    else:
      terms.append(up(norm * _from_parents(node, bounds), 4))
  return up(functools.reduce(jnp.add, terms, jnp.zeros(())), len(terms) + 1)


def backward_norms(target: Node, order: list[Node]):
  """Pairs of a source, an input or a nonlinear node, and a bound of ‖A‖ from it to the target."""
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
      norm = jnp.minimum(norm, matrix.norm())
    if is_source:
      yield node, norm
    if node.part is None or isinstance(node.part, LipschitzPart):
      continue
    for i, parent in enumerate(node.parents):
      gain, earlier = _step_back(node, i, matrix)
      norms[id(parent)] = up(norms.get(id(parent), 0) + norm * gain, 2)
      rows[id(parent)] = _joined(rows[id(parent)], earlier) if id(parent) in rows else earlier


def _joined(one: Rows | None, other: Rows | None) -> Rows | None:
  return None if one is None or other is None else one.plus(other)


def rows_to_source(target: Node) -> tuple[Rows | None, Node]:
  """The matrix from the one source of a chain's node to it, and the source; None if too large."""
  matrix: Rows | None = identity_rows(target, compute_dtype(target.aval.dtype))
  node = target
  while isinstance(node.part, LinearPart):
    matrix = _step_back(node, 0, matrix)[1]
    node = node.parents[0]
    if matrix is None:
      break
  return matrix, node


def _step_back(node: Node, i: int, matrix: Rows | None) -> tuple[Any, Rows | None]:
  if isinstance(node.part, ScalarPart):
    low, high = node.part.slopes()
    middle = (low + high) / 2
    return abs(middle), None if matrix is None else matrix.scaled(middle)
  part = node.part
  if not isinstance(part, LinearPart):
    msg = "Only linear parts and scalar functions have a matrix."
    raise TypeError(msg)
  gain = part.norms[i]()
  if matrix is None or matrix.n_rows * math.prod(node.parents[i].shape) > ENTRIES_UP_TO:
    return gain, None
  return gain, matrix.through(node, part, i, gain)
