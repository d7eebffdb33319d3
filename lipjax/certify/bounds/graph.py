"""Bounds of any graph: products of norms, and LipLT, products of the linear parts' norms."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lipjax.certify.maps import Known, bound_from_parents, is_nonlinear
from lipjax.certify.sources import FromSources

#: LipLT looks at every pair of nodes; larger graphs get the product alone.
PAIRS_UP_TO = 40_000


def product_bounds(known: Known, order: Sequence[int]) -> dict[int, jax.Array]:
  """For every node a bound from its parents' bounds and the norms of what is between."""
  bounds: dict[int, jax.Array] = {}
  for i in order:
    # On a domain they are known, by the ranges that were refined on the way.
    found = known.facts[i].bound
    bounds[i] = bound_from_parents(known, i, bounds) if found is None else found
  return bounds


def liplt_bounds(
  known: Known, order: Sequence[int], outputs: Sequence[int]
) -> dict[int, jax.Array]:
  r"""Bounds of all nodes by LipLT (Fazlyab et al. 2023), on any graph.

  With :math:`A_{kj}` the linear map from node j to node k when every scalar function is its mu,
  :math:`L_k \le \|A_{k0}\| + \sum_j \|A_{kj}\| h_j L_{u_j}`; see `lipjax.certify.sources`. The
  norms of the compositions are those of their matrices where these are small, else products.
  """
  refined = targets(known, order, outputs)
  if len(order) * len(refined) > PAIRS_UP_TO:
    refined = set(outputs)
  bounds: dict[int, jax.Array] = {}
  for i in order:
    bounds[i] = bound = bound_from_parents(known, i, bounds)
    facts = known.facts[i]
    # One with a bound for each entry was refined for its range.
    if i in refined and facts.entries is None:
      # Not the minimum, as an overflow makes the other one no number.
      bound = jnp.fmin(bound, FromSources(known, i, order, bounds).total())
    # On a domain it can be known already. Either may be no number: 0 times an infinite norm.
    bounds[i] = bound if facts.bound is None else jnp.fmin(bound, facts.bound)
  return bounds


def targets(known: Known, order: Sequence[int], outputs: Sequence[int]) -> set[int]:
  """The nodes whose bound is refined: what nonlinear nodes read, and the results.

  Small ones: by norms of the maps alone nothing is gained, as |m| + h is the largest slope.
  """
  read = [k for i in order if is_nonlinear(known.part(i)) for k in known.parents(i)]
  return {i for i in (*read, *outputs) if known.part(i) is not None and known.is_small(i)}
