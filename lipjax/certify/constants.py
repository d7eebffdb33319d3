"""Constants that are no numbers: with them a function has no values to compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lipjax.certify.graph import Node

#: Where an infinite constant makes every result infinite; elsewhere it is one entry of many, as
#: in a mask. Weights of products are not here, as their norms are infinite then.
SUMS = ("add", "add_any", "sub", "scatter-add", "scatter-sub")


def are_numbers(outputs: Sequence[Node]) -> bool | jax.Array:
  """Whether no constant that the outputs depend on is NaN, or infinite where that spreads.

  Known now where they are, else traced.
  """
  known, traced = True, []
  for name, constant in _constants(outputs):
    is_number = jnp.isfinite if name in SUMS else lambda x: ~jnp.isnan(x)
    if isinstance(constant, Tracer):
      traced.append(jnp.all(is_number(constant)))
    else:
      with jax.ensure_compile_time_eval():
        known = known and bool(jnp.all(is_number(jnp.asarray(constant))))
  return jnp.all(jnp.stack(traced)) & known if traced else known


def _constants(outputs: Sequence[Node]) -> Iterator[tuple[str, Any]]:
  """Floating-point operands of every equation on the way, each once, with its name."""
  left, seen = list(outputs), set()
  while left:
    node = left.pop()
    if id(node) in seen:
      continue
    seen.add(id(node))
    left.extend(node.parents)
    if node.recipe is None:
      continue
    for operand in node.recipe.operands:
      if isinstance(operand, Node):
        left.append(operand)
      elif id(operand) not in seen and jnp.issubdtype(jnp.result_type(operand), np.floating):
        seen.add(id(operand))
        yield node.recipe.name, operand
