"""A graph that is a chain of matrices and scalar functions, as these."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.engines import ENTRIES_UP_TO, ROWS_UP_TO, rows_to_source
from lipjax.certify.graph import LinearPart, Node, ScalarPart


def as_chain(
  order: list[Node], outputs: list[Node]
) -> tuple[tuple[jax.Array, ...], tuple[tuple[Any, Any], ...]] | None:
  """Weights and slopes from the input on, or None: two branches, other functions, too large.

  Only products that rounding has not touched count, those of one weight between two
  scalar functions.
  """
  is_chain = len(outputs) == 1 and all(len(node.parents) <= 1 for node in order)
  if not is_chain or not all(_fits(node) for node in order):
    return None
  weights, slopes, node = [], [], outputs[0]
  while True:
    rows, source = rows_to_source(node)
    if rows is None or not rows.is_exact:
      return None
    weights.append(rows.value.reshape((rows.n_rows, -1)))
    if not isinstance(source.part, ScalarPart):
      break
    slopes.append(tuple(_flat(end, source) for end in source.part.slopes()))
    node = source.parents[0]
  return tuple(weights[::-1]), tuple(slopes[::-1])


def _flat(end: Any, node: Node) -> Any:
  """A number for all entries, which is known, or one for each."""
  return jnp.broadcast_to(end, node.shape).ravel() if isinstance(end, jax.Array) else end


def _fits(node: Node) -> bool:
  is_known = node.part is None or isinstance(node.part, LinearPart | ScalarPart)
  n = math.prod(node.shape)
  return is_known and 0 < n <= ENTRIES_UP_TO // ROWS_UP_TO
