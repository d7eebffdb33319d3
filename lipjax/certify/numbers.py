"""Constants that are no numbers: with them a function has no values to compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.certify.fast import fast_jit
from lipjax.certify.graph import Graph

#: Where an infinite constant makes every result infinite; elsewhere it may be a mask's.
SUMS = ("add", "add_any", "sub", "scatter-add", "scatter-sub")
#: Not looked at: a weight that holds no number has no finite norm.
PRODUCTS = ("dot_general", "conv_general_dilated")


def are_numbers(graph: Graph, arrays: Sequence[Any]) -> bool | jax.Array:
  """Whether no constant that the outputs depend on is NaN, or infinite where that spreads.

  Args:
    graph: as it was read: patterns and scalar functions hold constants that they do not show.
    arrays: its constants.

  Returns:
    A bool where all of them are known, else an array.
  """
  known, traced, values = True, [], dict[int, Any]()
  for i, node in enumerate(graph.nodes):
    if not node.moves:
      values[i] = graph.constant(i, arrays, values)
      continue
    for k in node.inputs if node.name not in PRODUCTS else ():
      if graph.nodes[k].moves or not graph.nodes[k].is_float:
        continue
      x, is_sum = values[k], node.name in SUMS
      # In NumPy, which has nothing to compile, where that is possible.
      if graph.static(k) is None:
        traced.append(_is_number(is_sum, graph.nodes[k].wide, x))
      else:
        x = x.astype(graph.nodes[k].wide)
        known = known and bool(np.all(np.isfinite(x) if is_sum else ~np.isnan(x)))
  return jnp.all(jnp.stack(traced)) & known if traced else known


@fast_jit(static_argnums=(0, 1))
def _is_number(is_sum: bool, wide: Any, x: jax.Array) -> jax.Array:
  x = x.astype(wide)
  return jnp.all(jnp.isfinite(x) if is_sum else ~jnp.isnan(x))
