"""Large stacks worked on a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def in_turns(fn: Callable[..., jax.Array], stacks: Sequence[jax.Array], n_turns: int) -> jax.Array:
  """``fn(*stacks)`` in about so many parts of the first axis, one after the other."""
  count = len(stacks[0])
  in_turn = -(-count // n_turns)
  n_turns = -(-count // in_turn)

  def turns(x: jax.Array) -> jax.Array:
    # The last ones twice instead of a shorter turn, which would be compiled as well.
    missing: Any = [(0, n_turns * in_turn - count)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, missing, mode="edge").reshape((n_turns, in_turn, *x.shape[1:]))

  found = lax.map(lambda some: fn(*some), tuple(map(turns, stacks)))
  return found.reshape((-1, *found.shape[2:]))[:count]
