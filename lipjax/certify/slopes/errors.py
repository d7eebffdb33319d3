"""Scalar functions of which no slopes are known say why, and what to do."""

from __future__ import annotations

from lipjax.certify.errors import CertifyError
from lipjax.certify.inline import Equation
from lipjax.certify.jaxprs import source_line


class NotLipschitzError(CertifyError):
  """No finite bound of a scalar function's slopes was found on its domain."""


class UnknownPrimitiveError(CertifyError):
  """A scalar function holds a primitive whose slopes are not known."""


BOUND_IT = (
  "Bound it where its slope is bounded: slope_interval(g, lo=…, hi=…), over the values that a "
  "bounded set of inputs can reach."
)


def where(equation: Equation | None) -> str:
  """Where an equation was written: " (file.py:12)", or nothing when it is not known.

  JAX's own functions hold no line of the user's: then it is that of the call.
  """
  for candidate in () if equation is None else (equation, *equation.calls):
    line = source_line(candidate)
    if line:
      return line
  return ""


def unbounded(primitive: str, place: str, interval: str, domain: str) -> NotLipschitzError:
  """The error of a primitive whose slope has no bound."""
  return NotLipschitzError(
    f"{primitive}{place} has an unbounded slope, or none that can be bounded, on {interval}, "
    f"which it is given for inputs in {domain}. {BOUND_IT}"
  )


def jump(place: str, at: str) -> NotLipschitzError:
  """The error of a choice whose two branches are not proved to meet."""
  return NotLipschitzError(
    f"The branches of a choice (jnp.where, select_n){place} are not proved to agree where the "
    f"condition changes, for inputs in {at}: the function may jump there. They agree when both "
    "have exactly the same value at that point, rounding of constants included; jnp.maximum, "
    "jnp.minimum, jnp.abs and jnp.clip never jump."
  )


def unknown(primitive: str, place: str, reason: str = "") -> UnknownPrimitiveError:
  """The error of a primitive that has no rule."""
  return UnknownPrimitiveError(
    f"The slopes of {primitive}{place} are not known{reason}. Write the function with "
    "elementwise primitives of jax.lax that have a rule, or give the primitive a "
    "bound with lipjax.register_rule."
  )
