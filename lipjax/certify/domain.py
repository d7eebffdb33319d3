"""Where an input may lie: everywhere, in a ball, in a box."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lipjax.certify.errors import CertifyError
from lipjax.measure.rounding import down, up
from lipjax.operators.products import compute_dtype


class Domain(NamedTuple):
  r"""One array's part of a convex set of inputs.

  Attributes:
    lower: smallest value of each entry.
    upper: largest value of each entry.
    point: an input in the set.
    radius: no input in the set is further from the point, all arrays together, in l2.
  """

  lower: jax.Array
  upper: jax.Array
  point: jax.Array
  radius: jax.Array


def domains(
  leaves: list[Any], radius: Any | None, box: tuple[Any, Any] | None
) -> list[Domain] | list[None]:
  """For each array its part of the ball around them, of a box, or of both; None for no bound."""
  if radius is None and box is None:
    return [None] * len(leaves)
  points = [jnp.asarray(x, compute_dtype(jnp.result_type(x))) for x in leaves]
  if box is None:
    ends = [(jnp.full_like(x, -jnp.inf), jnp.full_like(x, jnp.inf)) for x in points]
  else:
    ends = [_ends(x, box) for x in points]
    middles = [lo / 2 + hi / 2 for lo, hi in ends]
    within = [jnp.clip(x, *pair) for x, pair in zip(points, ends, strict=True)]
    points = middles if radius is None else within
  if radius is None:
    far = [jnp.maximum(hi - x, x - lo) for x, (lo, hi) in zip(points, ends, strict=True)]
    n = sum(x.size for x in points)
    reach = up(jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in far)), n + 8)
  else:
    reach = _radius(radius)
  lower = [jnp.maximum(lo, _below(x - reach)) for x, (lo, _) in zip(points, ends, strict=True)]
  upper = [jnp.minimum(hi, _above(x + reach)) for x, (_, hi) in zip(points, ends, strict=True)]
  return [Domain(*parts, reach) for parts in zip(lower, upper, points, strict=True)]


def project(leaves: Sequence[jax.Array], onto: Sequence[Domain | None]) -> list[jax.Array]:
  """The nearest point of a ball or a box; of both, a near one, no further apart than they were.

  So a function has on the domain the Lipschitz constant that it has everywhere after this.
  """
  known = [domain for domain in onto if domain is not None]
  if not known:
    return list(leaves)
  away = [x - domain.point for x, domain in zip(leaves, known, strict=True)]
  square = functools.reduce(jnp.add, [jnp.sum(jnp.square(x)) for x in away])
  distance = jnp.sqrt(jnp.maximum(square, float(jnp.finfo(square.dtype).tiny)))
  # Not a rounding error beyond the radius.
  share = jnp.minimum(1, down(known[0].radius / distance))
  return [
    jnp.clip(domain.point + share * x, domain.lower, domain.upper).astype(leaf.dtype)
    for leaf, x, domain in zip(leaves, away, known, strict=True)
  ]


def _below(x: jax.Array) -> jax.Array:
  return jnp.nextafter(x, -jnp.inf)


def _above(x: jax.Array) -> jax.Array:
  return jnp.nextafter(x, jnp.inf)


def _radius(radius: Any) -> jax.Array:
  radius = jnp.asarray(radius, float)
  is_known = not isinstance(radius, Tracer)
  if radius.ndim or (is_known and not (np.isfinite(radius) and radius >= 0)):
    msg = f"radius must be one number, at least 0 and finite; got {radius}."
    raise CertifyError(msg)
  return _above(radius)


def _ends(x: jax.Array, box: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
  try:
    lower, upper = (jnp.broadcast_to(jnp.asarray(end, x.dtype), x.shape) for end in box)
  except (TypeError, ValueError) as error:
    msg = (
      "box must be a pair of the smallest and the largest value of an entry, numbers or arrays "
      f"of the argument's shape {x.shape}; got {box!r}."
    )
    raise CertifyError(msg) from error
  is_known = not isinstance(lower, Tracer) and not isinstance(upper, Tracer)
  if is_known and not bool(jnp.all((lower <= upper) & jnp.isfinite(lower) & jnp.isfinite(upper))):
    msg = "box must have finite ends, the first below the second."
    raise CertifyError(msg)
  return lower, upper
