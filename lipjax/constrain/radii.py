"""Radii of balls and spheres: numbers, schedules, by size, or what norms were at first."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jax.core import Tracer

from lipjax.measure.sharding import replicated_like
from lipjax.operators.base import LinearOperator
from lipjax.operators.per_operator import PerOperator, Sides, numbers_by_path, sides

Radius = optax.ScalarOrSchedule | PerOperator | Literal["initial"]
#: From operators and leaves to each operator's norms, of a stack one for each slice.
Norms = Callable[[Mapping[str, LinearOperator], Mapping[str, Any]], Mapping[str, Any]]


def check_radius(radius: Any, name: str = "radius") -> None:
  """Raises for what is no radius of a transformation."""
  if not isinstance(radius, PerOperator) and not (isinstance(radius, str) and radius == "initial"):
    check_positive(radius, name, ", a PerOperator, or 'initial'")


def check_fixed_radius(radius: Any, name: str = "radius") -> None:
  """Raises for what is no radius of a function, which counts no updates."""
  if not (isinstance(radius, PerOperator) and not callable(radius.scale)):
    check_fixed_number(radius, name, ", or a PerOperator of a number")


def check_fixed_number(number: Any, name: str, others: str = "") -> None:
  """Raises for schedules, for other things and for numbers that are not positive."""
  if callable(number) or isinstance(number, str | PerOperator):
    msg = f"{name} is {number!r}; expected a positive number{others}."
    raise ValueError(msg)
  check_positive(number, name)


def check_positive(number: Any, name: str, others: str = "") -> None:
  """Raises unless a number is positive; schedules pass."""
  if isinstance(number, str | PerOperator):
    msg = f"{name} is {number!r}; expected a positive number, or a schedule{others}."
    raise ValueError(msg)
  if isinstance(number, numbers.Real) and not float(number) > 0:
    msg = f"{name} is {number}; expected a positive number."
    raise ValueError(msg)


def initial_radii(
  radius: Radius,
  norms: Norms,
  operators: Mapping[str, LinearOperator],
  leaves: Mapping[str, Any],
) -> Any:
  """What a state keeps of the norms at first: None where no one asks for them.

  Raises:
    ValueError: a leaf is zero, so that it would stay so.
  """
  if radius != "initial":
    return None
  found = dict(norms(operators, leaves))
  for path, norm in found.items():
    if norm.size and not isinstance(norm, Tracer) and not jnp.any(norm != 0):
      msg = (
        f"{path!r} is zero, and radius='initial' would keep it so. Leave it out with mask=…, or"
        " give a number."
      )
      raise ValueError(msg)
  # Placeholders of params have no operators: for optax.tree.map_params one leaf for all.
  return replicated_like(leaves, found) if found else 0


def radii_now(
  radius: Radius,
  count: Any,
  initial: Any,
  operators: Mapping[str, LinearOperator],
  leaves: Mapping[str, Any],
  of: Sides = sides,
) -> Mapping[str, Any]:
  """Each operator's radius after `count` updates."""
  if radius == "initial":
    # What was zero, unseen under a trace or one row of many, is free.
    return {path: jnp.where(norm > 0, norm, jnp.inf) for path, norm in initial.items()}
  return numbers_by_path(radius, operators, leaves, count, of)
