"""Bounds block by block: from a node that everything passes through to the next one.

A block is bounded by an ellipsoid of its own, from a ball. Of layers in a row that are 1-Lipschitz
by construction that is a product of ones, where multipliers for all of them at once are far away.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lipjax.certify.bounds.effort import steps_for
from lipjax.certify.bounds.ellipsoid import ellipsoid_bound
from lipjax.certify.bounds.graph import product_bounds
from lipjax.certify.bounds.graph_layers import layers_of
from lipjax.certify.facts import Depends
from lipjax.certify.maps import Known, bound_from_parents, is_nonlinear, live
from lipjax.rounding.numbers import times_above

#: Of gradient descent for a block, at most; all blocks together have the time that one graph has.
STEPS = 100


def block_bounds(
  known: Known, order: Sequence[int], outputs: Sequence[int]
) -> dict[int, jax.Array]:
  """For every node a bound, where a block ends from the one where it begins."""
  blocks = {end: begin for begin, end in blocks_of(known, order, outputs)}
  bounds: dict[int, jax.Array] = {}
  for i in order:
    bound, facts = bound_from_parents(known, i, bounds), known.facts[i]
    if i in blocks and (slope := _slope(known, blocks[i], i, len(blocks))) is not None:
      # Not the minimum, as an overflow makes the other one no number.
      bound = jnp.fmin(bound, times_above(bounds[blocks[i]], slope))
    bounds[i] = bound if facts.bound is None else jnp.fmin(bound, facts.bound)
  return bounds


def blocks_of(known: Known, order: Sequence[int], outputs: Sequence[int]) -> list[tuple[int, int]]:
  """Where blocks with branches and functions begin and end; none if there is one alone."""
  last = {i: i for i in order} | {i: max(order) + 1 for i in outputs}
  for i in order:
    for k in known.parents(i):
      last[k] = max(last[k], i)
  sources = [i for i in order if known.part(i) is None]
  needed, ends = max(sources), []
  for i in order:
    if i >= needed:
      ends.append(i)
    needed = max(needed, last[i])
  found = []
  for begin, end in itertools.pairwise(ends):
    inside = [i for i in order if begin < i <= end]
    is_branched = any(len(known.parents(i)) > 1 for i in inside)
    if is_branched and any(is_nonlinear(known.part(i)) for i in inside):
      found.append((begin, end))
  return found if len(found) > 1 else []


def _slope(known: Known, begin: int, end: int, n_blocks: int) -> jax.Array | None:
  """How far the end moves when the beginning moves by 1; None where that is not worth it."""
  # What is known of nodes is from the inputs on.
  facts = [x._replace(bound=None, entries=None) for x in known.facts]
  facts[begin] = facts[begin]._replace(depends=Depends())
  alone = Known(known.nodes, facts)
  layers = layers_of(alone, [end], product_bounds(alone, live(alone, [end])), "default")
  if layers is None:
    return None
  return ellipsoid_bound(layers, min(steps_for("tight", layers.widths) // n_blocks, STEPS))
