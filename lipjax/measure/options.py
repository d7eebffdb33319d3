"""Checks of the options that everything which follows singular vectors takes."""

from __future__ import annotations

from typing import Any


def check_k(k: Any) -> None:
  """Raises unless `k` is None (the default) or a positive integer."""
  if k is not None and (not isinstance(k, int) or k < 1):
    msg = (
      f"k is {k!r}; expected an integer of at least 1, or None. It decides on shapes: under"
      " optax.inject_hyperparams list it in static_args=('k',)."
    )
    raise ValueError(msg)


def check_count(name: str, value: Any) -> None:
  """Raises unless a number of steps or updates that is known is an integer of at least 1."""
  if isinstance(value, (int, float)) and (value < 1 or value != int(value)):
    msg = f"{name} is {value}; expected an integer of at least 1."
    raise ValueError(msg)


def check_steps(n_steps: Any, tol: Any) -> None:
  """Raises a `ValueError` for steps or a tolerance that cannot be."""
  check_count("n_steps", n_steps)
  if isinstance(tol, (int, float)) and not tol > 0:
    msg = f"tol is {tol}; expected a positive number, or None for n_steps steps and no more."
    raise ValueError(msg)
