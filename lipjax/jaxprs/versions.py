"""What differs between versions of JAX, and which primitives are its own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive, primitives


def opened(jaxpr: Any) -> Any:
  """The jaxpr inside a closed one; JAX 0.12 has one class for both."""
  return getattr(jaxpr, "jaxpr", jaxpr)


def consts(jaxpr: Any) -> Sequence[Any]:
  """The constants of a closed jaxpr; none of an open one."""
  return getattr(jaxpr, "consts", None) or ()


def callee(params: dict[str, Any]) -> Any:
  """The function that a call calls: of jit, remat, and functions with derivative rules."""
  names = ("call_jaxpr", "fun_jaxpr", "jaxpr")
  return next(params[name] for name in names if name in params)


def scan_counts(inputs: Sequence[Any], outputs: Sequence[Any], body: Any) -> tuple[int, int]:
  """How many operands of a scan are constants, and how many are carried.

  JAX 0.12 has other parameters than 0.10; shapes say it in every version, as those of rows
  lose an axis in the body.

  Args:
    inputs: of the equation, with an `aval`.
    outputs: of the equation.
    body: its jaxpr.
  """
  inside = opened(body)
  n_rows = _n_differing(inputs, inside.invars)
  n_carry = len(outputs) - _n_differing(outputs, inside.outvars)
  return len(inputs) - n_rows - n_carry, n_carry


def _n_differing(one: Sequence[Any], other: Sequence[Any]) -> int:
  return sum(a.aval.shape != b.aval.shape for a, b in zip(one, other, strict=True))


def holds_program(params: dict[str, Any]) -> bool:
  """Whether a parameter is, or holds, a program."""
  is_program = lambda value: hasattr(opened(value), "eqns")
  return any(map(is_program, jax.tree.leaves(params, is_leaf=is_program)))


def name_of(primitive: Any) -> str:
  """The name of one of JAX's own primitives; another one's name says nothing."""
  return primitive.name if primitive in _own_primitives() else ""


@functools.cache
def _own_primitives() -> frozenset[Any]:
  """JAX's primitives: those it exports, and some that it does not."""
  exported = [p for p in vars(primitives).values() if isinstance(p, Primitive)]
  hidden = (
    lambda x: jnp.split(x, 2),
    lambda x: jnp.stack([x, x]),
    jax.lax.optimization_barrier,
    jax.checkpoint(jnp.sin),  # pyright: ignore[reportPrivateImportUsage]
  )
  traced = [eqn.primitive for fn in hidden for eqn in jax.make_jaxpr(fn)(jnp.zeros(2)).eqns]
  # Those of them that this version has.
  names = ("scatter_sub_p", "stack_p", "tile_p", "unstack_p")
  found = [getattr(lax, name) for name in names if hasattr(lax, name)]
  return frozenset([*exported, *traced, *found])
