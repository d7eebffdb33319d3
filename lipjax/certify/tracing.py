"""A function of arguments, some of which move, read as a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.domain import domains
from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Node
from lipjax.certify.interpreter import Operand, evaluate


def results_of(
  fn: Callable[..., Any],
  argnums: int | Sequence[int],
  args: Sequence[Any],
  radius: Any | None,
  box: tuple[Any, Any] | None,
) -> list[Operand]:
  """The leaves of ``fn(*args)``: nodes, and constants where they depend on nothing that moves."""
  places = _places(argnums, len(args))

  def of_moving(moving):
    whole = list(args)
    for place, arg in zip(places, moving, strict=True):
      whole[place] = arg
    return jax.tree.leaves(fn(*whole))

  moving = [args[place] for place in places]
  leaves = jax.tree.leaves(moving)
  avals = [_aval(leaf) for leaf in leaves]
  inputs = [
    Node(aval, domain=domain)
    for aval, domain in zip(avals, domains(leaves, radius, box), strict=True)
  ]
  # Ranges are computed with the function's products, which must not be rounded to bfloat16.
  with jax.default_matmul_precision("highest"):
    return evaluate(jax.make_jaxpr(of_moving)(moving), inputs)


def _places(argnums: int | Sequence[int], n: int) -> list[int]:
  places = [argnums] if isinstance(argnums, int) else list(argnums)
  if not all(-n <= place < n for place in places):
    msg = f"argnums is {argnums!r}, and the function was given {n} arguments."
    raise ValueError(msg)
  return [place % n for place in places]


def _aval(leaf: Any) -> jax.ShapeDtypeStruct:
  dtype = jnp.result_type(leaf)
  if not jnp.issubdtype(dtype, jnp.floating):
    msg = (
      f"The argument that moves must hold floating-point arrays, got {dtype}. Choose another "
      "with argnums, and close over what is not to be moved."
    )
    raise CertifyError(msg)
  return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype)
