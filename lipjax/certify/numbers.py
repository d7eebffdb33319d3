"""Constants that are no numbers: with them a function has no values to compare."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.certify.facts import Facts
from lipjax.certify.graph import Graph

#: Where an infinite constant makes every result infinite; elsewhere it may be a mask's.
SUMS = ("add", "add_any", "sub", "scatter-add", "scatter-sub")
#: Not looked at: a weight that holds no number has no finite norm.
PRODUCTS = ("dot_general", "conv_general_dilated")


def are_numbers(graph: Graph, facts: Sequence[Facts]) -> bool | jax.Array:
  """Whether no constant that the outputs depend on is NaN, or infinite where that spreads."""
  known, traced = True, []
  for node in graph.nodes:
    for k in node.inputs if node.moves and node.name not in PRODUCTS else ():
      if graph.nodes[k].moves or not graph.nodes[k].is_float:
        continue
      value = graph.static(k)
      # In NumPy, which has nothing to compile, where that is possible.
      xp = jnp if value is None else np
      x = facts[k].value if value is None else value.astype(graph.nodes[k].wide)
      is_number = xp.all(xp.isfinite(x) if node.name in SUMS else ~xp.isnan(x))
      if value is None:
        traced.append(is_number)
      else:
        known = known and bool(is_number)
  return jnp.all(jnp.stack(traced)) & known if traced else known
