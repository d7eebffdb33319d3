"""`jax.numpy.interp`, told by its program and read as a sum of clips, which it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lipjax.certify.graph import Graph, constant_value
from lipjax.jaxprs.inline import Program, inline
from lipjax.jaxprs.source import source_line
from lipjax.jaxprs.versions import callee

#: Of a line with more points the slopes are not looked for.
MOST_POINTS = 256
CLOSEST = 1e-12


def without_calls(closed: Any, calls: tuple[Any, ...] = ()) -> Program:
  """A program with all calls written out but these."""
  return inline(closed, calls, kept=is_interp)


def is_interp(eqn: Any) -> bool:
  """Whether a call is `jax.numpy.interp` with constant ends; its name alone says nothing."""
  if eqn.params.get("name") not in ("interp", "_interp") or len(eqn.invars) != 3:
    return False
  _, places, values = (x.aval for x in eqn.invars)
  is_float = all(jnp.issubdtype(x.aval.dtype, jnp.floating) for x in eqn.invars)
  if not is_float or len(places.shape) != 1 or places.shape != values.shape:
    return False
  struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type)
  avals = [struct(x.aval) for x in eqn.invars]
  theirs = jax.make_jaxpr(jnp.interp)(*avals).eqns
  return len(theirs) == 1 and str(callee(theirs[0].params)) == str(callee(eqn.params))


def read_interp(reader: Any, eqn: Any, operands: Sequence[Any]) -> list[Any]:
  """Of known points: ``y₀ + Σ slopeᵢ (clip(x, xᵢ, xᵢ₊₁) - xᵢ)``."""
  x, *points = operands
  known = [y for y in (_value(reader, point) for point in points) if y is not None]
  if len(known) < len(points):
    return reader.failed(eqn, f"The points of interp{source_line(eqn)} must be constants.")
  places, values = (np.asarray(y, np.float64) for y in known)
  steps = np.diff(places)
  # Between points that are nearer jumps are left.
  if not (np.all(steps > CLOSEST) and len(places) <= MOST_POINTS):
    text = f"interp{source_line(eqn)} needs at most {MOST_POINTS} points in increasing order."
    return reader.failed(eqn, text)
  slopes = np.diff(values) / steps

  def sum_of_clips(x: jax.Array) -> jax.Array:
    total = jnp.full_like(x, values[0])
    for i, slope in enumerate(slopes):
      total = total + float(slope) * (jnp.clip(x, places[i], places[i + 1]) - places[i])
    return total

  return [reader.of_function(sum_of_clips, x)]


def _value(reader: Any, x: Any) -> Any:
  """Of an operand; None if that moves or is traced."""
  if not isinstance(x, int):
    return x
  if reader.nodes[x].moves:
    return None
  value = constant_value(Graph(tuple(reader.nodes), (x,)), reader.arrays, x)
  return None if isinstance(value, Tracer) else value
