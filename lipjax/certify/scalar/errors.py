"""Scalar functions of which no slopes are known say why, and what to do."""

from __future__ import annotations

from lipjax.certify.errors import CertifyError


class NotLipschitzError(CertifyError):
  """No finite bound of a scalar function's slopes was found on its domain."""


class UnknownPrimitiveError(CertifyError):
  """A scalar function holds a primitive whose slopes are not known."""


BOUND_IT = (
  "Bound it where its slope is bounded: slope_interval(g, lo=…, hi=…), over the values that a "
  "bounded set of inputs can reach."
)


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


def traced() -> CertifyError:
  """The error of a constant that is a tracer."""
  return CertifyError(
    "The scalar function closes over a value that is being traced by jit, grad or vmap. Its "
    "slopes are found outside of JAX, so its constants must be concrete: call this outside."
  )
