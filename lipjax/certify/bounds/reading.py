"""A graph that is a chain of matrices and scalar functions, as these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.facts import LinearPart, ScalarPart
from lipjax.certify.maps import ENTRIES_UP_TO, ROWS_UP_TO, Known, rows_to_source


def as_chain(
  known: Known, order: Sequence[int], outputs: Sequence[int]
) -> tuple[tuple[jax.Array, ...], tuple[tuple[Any, Any], ...]] | None:
  """Weights and slopes from the input on, or None: two branches, other functions, too large.

  Only products that rounding has not touched count, those of one weight between two
  scalar functions.
  """
  is_chain = len(outputs) == 1 and all(len(known.parents(i)) <= 1 for i in order)
  if not is_chain or not all(_fits(known, i) for i in order):
    return None
  weights, slopes, i = [], [], outputs[0]
  while True:
    rows, source = rows_to_source(known, i)
    if rows is None or not rows.is_exact:
      return None
    weights.append(rows.value.reshape((rows.n_rows, -1)))
    part = known.part(source)
    if not isinstance(part, ScalarPart):
      break
    shape = known.nodes[source].shape
    slopes.append(tuple(_flat(end, shape) for end in (part.lower, part.upper)))
    i = known.parents(source)[0]
  return tuple(weights[::-1]), tuple(slopes[::-1])


def _flat(end: Any, shape: tuple[int, ...]) -> Any:
  """A number for all entries, which is known, or one for each."""
  return jnp.broadcast_to(end, shape).ravel() if isinstance(end, jax.Array) else end


def _fits(known: Known, i: int) -> bool:
  part = known.part(i)
  is_known = part is None or isinstance(part, LinearPart | ScalarPart)
  return is_known and 0 < known.nodes[i].size <= ENTRIES_UP_TO // ROWS_UP_TO
