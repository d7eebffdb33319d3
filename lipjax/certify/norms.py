"""Norms of weights, computed when a bound asks for them, those of one kind by one program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer


class Norm:
  """A norm that is computed when it is asked for, once; or together with others of its kind.

  Attributes:
    kind: norms of one kind are computed by one program.
    weight: what it is the norm of.
  """

  def __init__(self, of: Any, weight: jax.Array, *static: Any, rounded: Callable[..., Any]):
    self.kind = (of, static, weight.shape, weight.dtype)
    self.weight = weight
    self.of = functools.partial(of, *static)
    self._rounded = rounded
    self._value: Any = None

  def __call__(self) -> Any:
    """The norm, with what rounding can add."""
    if self._value is None:
      self.tell(self.of(self.weight))
    return self._value

  def tell(self, sigma: Any) -> None:
    """What `of` gives for the weight."""
    self._value = self._rounded(sigma)

  def is_open(self) -> bool:
    """Whether nobody has asked for it."""
    return self._value is None


def compute_norms(norms: Sequence[Any]) -> None:
  """All norms that are not known yet: those of one kind in a loop, which is compiled once."""
  kinds: dict[Any, list[Norm]] = {}
  for norm in norms:
    if isinstance(norm, Norm) and norm.is_open() and norm not in kinds.get(norm.kind, ()):
      kinds.setdefault(norm.kind, []).append(norm)
  for alike in kinds.values():
    # What is not traced shares a program as it is.
    if len(alike) > 1 and isinstance(alike[0].weight, Tracer):
      values = lax.map(alike[0].of, jnp.stack([norm.weight for norm in alike]))
      for norm, value in zip(alike, values, strict=True):
        norm.tell(value)
