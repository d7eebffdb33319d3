"""``x.at[places].apply(f)``: a scatter with a function inside, written out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.errors import CertifyError
from lipjax.jaxprs.inline import bind, inline
from lipjax.jaxprs.source import source_line

#: A place that is listed so often has the function applied as often.
TURNS_UP_TO = 64


def has_function(eqn: Any) -> bool:
  """Whether a scatter applies a function of its own instead of writing its updates."""
  return eqn.params.get("update_jaxpr") is not None


def written_out(eqn: Any, apply: Callable[..., Any] = bind) -> Callable[..., jax.Array]:
  """A function of the scatter's operands: of every entry, and chosen where it is listed.

  Args:
    eqn: the scatter.
    apply: from an equation of the function inside, and values, to its results.

  Returns:
    The same function of operand, indices and updates.

  Raises:
    CertifyError: places may repeat, and are many.
  """
  p = eqn.params
  operand, indices, updates = (atom.aval for atom in eqn.inputs)
  places = math.prod(indices.shape[:-1])
  turns = 1 if p["unique_indices"] else places
  if turns > TURNS_UP_TO:
    msg = (
      f"A function is applied at {places} places that may repeat{source_line(eqn)}; up to "
      f"{TURNS_UP_TO} can be followed. Write jnp.where(mask, f(x), x), or unique_indices=True."
    )
    raise CertifyError(msg)

  program = inline(p["update_jaxpr"], constants=p["update_consts"])

  def one(old: jax.Array, new: jax.Array) -> jax.Array:
    return program.run([old, new], apply)[0]

  of_all = functools.reduce(lambda f, _: jax.vmap(f), operand.shape, one)
  scatter = functools.partial(lax.scatter_add, dimension_numbers=p["dimension_numbers"])

  def fn(x: jax.Array, at: jax.Array, values: jax.Array) -> jax.Array:
    x, at, values = map(jnp.asarray, (x, at, values))  # of literals too
    if not updates.size:
      return x
    ones = jnp.ones(updates.shape, jnp.int32)
    times = scatter(jnp.zeros(operand.shape, jnp.int32), at, ones, mode=p["mode"])
    # `apply` passes zeros; other values are written by primitives of their own.
    value = jnp.broadcast_to(values.ravel()[0], operand.shape)
    for turn in range(turns):
      x = jnp.where(times > turn, of_all(x, value), x)
    return x

  return fn
