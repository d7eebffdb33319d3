"""Programs that run a few times: compiled fast instead of well."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer


def fast_jit(*, static_argnums: tuple[int, ...] = ()) -> Callable[[Any], Callable[..., Any]]:
  """`jax.jit`; where nothing is traced, with options that make compiling short and running long.

  Within somebody's trace the program is a part of theirs, and compiled as they say.
  """

  def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
    traced = jax.jit(fn, static_argnums=static_argnums)

    @functools.cache
    def at_once() -> Callable[..., Any]:
      return jax.jit(fn, static_argnums=static_argnums, compiler_options=_options())

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
      values = [x for i, x in enumerate(args) if i not in static_argnums]
      return traced(*args) if is_traced(values) else at_once()(*args)

    return call

  return decorate


def is_traced(values: Any) -> bool:
  """Whether what is computed here from arrays becomes a part of a program."""
  return any(isinstance(x, Tracer) for x in jax.tree.leaves(values)) or is_traced_here()


def is_traced_here() -> bool:
  """Whether what is computed here becomes a part of a program."""
  # Nothing to compile, unlike a sum.
  return isinstance(jax.device_put(0.0), Tracer)


def _options() -> dict[str, Any]:
  if jax.default_backend() != "cpu":
    return {}
  options: dict[str, Any] = {"xla_backend_optimization_level": 0}
  options |= {"xla_llvm_disable_expensive_passes": True, "xla_cpu_parallel_codegen_split_count": 1}
  if jax.__version_info__ < (0, 11):  # later ones do not know it
    options |= {"xla_cpu_use_fusion_emitters": False}
  return options
