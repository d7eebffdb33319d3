"""Constants that are no numbers: with them a function has no values to compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lipjax.certify.graph import Node
from lipjax.operators.products import compute_dtype

#: Where an infinite constant makes every result infinite; elsewhere it may be a mask's.
SUMS = ("add", "add_any", "sub", "scatter-add", "scatter-sub")
#: Not looked at: a weight that holds no number has no finite norm.
PRODUCTS = ("dot_general", "conv_general_dilated")


def are_numbers(outputs: Sequence[Node]) -> bool | jax.Array:
  """Whether no constant that the outputs depend on is NaN, or infinite where that spreads.

  Known now where they are, else traced.
  """
  known, traced = True, []
  for name, constant in _constants(outputs):
    # In NumPy, which has nothing to compile, where that is possible.
    xp = jnp if isinstance(constant, Tracer) else np
    x = xp.asarray(constant, compute_dtype(jnp.result_type(constant)))
    is_number = xp.all(xp.isfinite(x) if name in SUMS else ~xp.isnan(x))
    if isinstance(constant, Tracer):
      traced.append(is_number)
    else:
      known = known and bool(is_number)
  return jnp.all(jnp.stack(traced)) & known if traced else known


def _constants(outputs: Sequence[Node]) -> Iterator[tuple[str, Any]]:
  """Floating-point operands of every equation on the way, with its name."""
  left, seen = list(outputs), set()
  while left:
    node = left.pop()
    if id(node) in seen:
      continue
    seen.add(id(node))
    left.extend(node.parents)
    if node.recipe is None:
      continue
    left.extend(x for x in node.recipe.operands if isinstance(x, Node))
    if node.recipe.name in PRODUCTS:
      continue
    for operand in node.recipe.operands:
      if not isinstance(operand, Node) and jnp.issubdtype(jnp.result_type(operand), np.floating):
        yield node.recipe.name, operand
