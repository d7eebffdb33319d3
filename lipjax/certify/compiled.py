"""From a function to something found out about it: read, rewritten, and computed in one program."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lipjax.certify.domain import check_domain, domains, is_domain
from lipjax.certify.facts import Facts
from lipjax.certify.fast import fast_jit, is_traced_here
from lipjax.certify.graph import Graph, Node, rewritten, without_copies
from lipjax.certify.numbers import are_numbers
from lipjax.certify.patterns import PATTERNS
from lipjax.certify.patterns.extremes import extremes, extremes_of_pairs
from lipjax.certify.patterns.kinks import shared_kinks
from lipjax.certify.patterns.scalars import fused
from lipjax.certify.reading.reader import moving_leaves, read
from lipjax.certify.sweep import facts_of

#: Larger graphs are computed step by step, in programs that layers of equal shapes share.
ONE_PROGRAM_UP_TO = 64
#: From a graph and what is known of its nodes to bounds, a pytree of arrays.
Engine = Callable[[Graph, list[Facts]], Any]


def on_arrays(
  engine: Engine,
  fn: Callable[..., Any],
  argnums: int | Sequence[int],
  args: Sequence[Any],
  radius: Any | None,
  box: tuple[Any, Any] | None,
  then: Callable[[Any], Any] = lambda found: found,
) -> tuple[Graph, Any] | None:
  """The graph, and what an engine finds, infinite where there is no domain; None if nothing moves.

  Where nothing is traced a small graph is one program, which is compiled fast: it runs a few times.
  What is to be computed `then`, from what the engine has found, is not a part of it: programs
  that do not depend on the graph are compiled once.
  """
  whole, arrays = read(fn, argnums, args)
  leaves = moving_leaves(argnums, args)
  # Between inputs, or results, without entries there is no distance.
  if not (any(map(jnp.size, leaves)) and any(whole.nodes[i].size for i in whole.outputs)):
    return None
  graph = patterned(whole, arrays)
  check_domain(leaves, radius, box)
  values = (arrays, leaves if radius is not None or box is not None else None, radius, box)
  shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
  what = engine, graph, whole, shapes
  if any(isinstance(x, Tracer) for x in jax.tree.leaves(values)):
    return graph, then(_found(*what, *values))
  # Where somebody else traces, what is known is computed at once.
  with jax.ensure_compile_time_eval() if is_traced_here() else contextlib.nullcontext():
    if len(graph.nodes) > ONE_PROGRAM_UP_TO or not _is_hashable((graph, whole)):
      return graph, then(_found(*what, *values))
    return graph, then(_found_fast(*what, *values))


def patterned(graph: Graph, arrays: Sequence[Any]) -> Graph:
  """The graph with everything in it that is told by more than one primitive."""
  # What is computed twice, as people write it, is one array to the patterns too.
  scalars = fused(rewritten(without_copies(graph), PATTERNS), list(arrays))
  return without_copies(rewritten(scalars, (extremes, extremes_of_pairs, shared_kinks(scalars))))


def nodes_of(fn: Callable[..., Any], *args: Any) -> Sequence[Node]:
  """The nodes that a bound of a function in its first argument is computed from."""
  graph, arrays = read(fn, 0, args)
  return patterned(graph, arrays).nodes


def _found(
  engine: Engine,
  graph: Graph,
  whole: Graph,
  shapes: Any,
  arrays: Any,
  leaves: Any,
  radius: Any,
  box: Any,
) -> Any:
  with jax.default_matmul_precision("highest"):
    within = [None] * len(shapes) if leaves is None else domains(leaves, radius, box)
    facts = facts_of(graph, arrays, within)
    is_known = jnp.logical_and(is_domain(radius, box), are_numbers(whole, arrays))
    # Whole numbers are places, and hold anyway.
    is_place = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.integer)
    known = lambda x: x if is_place(x) else jnp.where(is_known, x, jnp.inf)
    return jax.tree.map(known, engine(graph, facts))


_found_fast = fast_jit(static_argnums=(0, 1, 2, 3))(_found)


def _is_hashable(graphs: tuple[Graph, ...]) -> bool:
  try:
    hash(graphs)
  except TypeError:
    return False
  return True
