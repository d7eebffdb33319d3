"""Where an input may lie: everywhere, in a ball, in a box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lipjax.certify.errors import CertifyError
from lipjax.measure.scaling import nonzero
from lipjax.operators.products import compute_dtype
from lipjax.rounding.errors import down, pairwise_sum, pairwise_terms, unit_roundoff
from lipjax.rounding.numbers import max_magnitude, norm_above, normal_magnitude, tiny


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


def check_domain(leaves: Sequence[Any], radius: Any | None, box: tuple[Any, Any] | None) -> None:
  """Raises where a domain is none, of what is not traced."""
  if radius is not None:
    _radius(radius)
  if box is None:
    return
  for x in leaves:
    _given_ends(jnp.shape(x), compute_dtype(jnp.result_type(x)), box)


def domains(
  leaves: list[Any], radius: Any | None, box: tuple[Any, Any] | None
) -> list[Domain] | list[None]:
  """For each array its part of the ball around them, of a box, or of both; None for no bound."""
  if radius is None and box is None:
    return [None] * len(leaves)
  points = [_without_subnormal(x) for x in leaves]
  if box is None:
    ends = [(jnp.full_like(x, -jnp.inf), jnp.full_like(x, jnp.inf)) for x in points]
  else:
    ends = [_ends(x, box) for x in points]
    middles = [lo / 2 + hi / 2 for lo, hi in ends]
    within = [jnp.clip(x, *pair) for x, pair in zip(points, ends, strict=True)]
    points = middles if radius is None else within
  if radius is None:
    far = [jnp.maximum(hi - x, x - lo) for x, (lo, hi) in zip(points, ends, strict=True)]
    reach = norm_above(jnp.stack([norm_above(x) for x in far])) if far else jnp.zeros(())
  else:
    reach = _radius(radius)
  # Entries that are too small to be normal, and differences, count as 0.
  reach = reach + 2 * math.sqrt(sum(x.size for x in points)) * tiny(reach.dtype)
  lower = [jnp.maximum(lo, _moved(x, -reach)) for x, (lo, _) in zip(points, ends, strict=True)]
  upper = [jnp.minimum(hi, _moved(x, reach)) for x, (_, hi) in zip(points, ends, strict=True)]
  return [Domain(*parts, reach) for parts in zip(lower, upper, points, strict=True)]


def is_domain(radius: Any | None, box: tuple[Any, Any] | None) -> Any:
  """Whether there are such inputs; of numbers that are not traced `domains` says so."""
  is_ball = True if radius is None else jnp.asarray(radius, float) >= 0
  if box is None:
    return is_ball
  lower, upper = map(jnp.asarray, box)
  return is_ball & jnp.all((lower <= upper) & jnp.isfinite(lower) & jnp.isfinite(upper))


def project(leaves: Sequence[jax.Array], onto: Sequence[Domain | None]) -> list[jax.Array]:
  """The nearest point of a ball or a box; of both, a near one, no further apart than they were.

  So a function has on the domain the Lipschitz constant that it has everywhere after this.
  """
  known = [domain for domain in onto if domain is not None]
  if not known:
    return list(leaves)
  away = [x - domain.point for x, domain in zip(leaves, known, strict=True)]
  # Not `norm_above`, whose derivative the search for slopes does not believe.
  flat = jnp.concatenate([jnp.ravel(x) for x in away])
  largest = nonzero(max_magnitude(flat))
  square = pairwise_sum(jnp.square(flat / largest), 0) if flat.size else jnp.ones(())
  # Not a rounding error beyond the radius, nor the rounding of what is added to the point. At
  # the point itself the square has no root.
  radius = known[0].radius
  point = norm_above(jnp.stack([norm_above(domain.point) for domain in known]))
  radius = jnp.maximum(radius - 4 * unit_roundoff(point.dtype) * (point + radius), 0)
  share = radius / largest / jnp.sqrt(jnp.maximum(square, tiny(square.dtype)))
  share = jnp.minimum(1, down(share, pairwise_terms(flat.size) + 8))
  return [
    jnp.clip(domain.point + share * x, domain.lower, domain.upper).astype(leaf.dtype)
    for leaf, x, domain in zip(leaves, away, known, strict=True)
  ]


def surroundings(
  of: Sequence[Domain | None], join: Callable[[list[jax.Array]], jax.Array]
) -> tuple[jax.Array, jax.Array] | None:
  """The middle, and by how much entries deviate from it that are spread over the domain.

  All together in l2 by the radius, or in a box by half of its widths.
  """
  known = [domain for domain in of if domain is not None]
  if not known:
    return None
  half = join([domain.upper / 2 - domain.lower / 2 for domain in known])
  length = nonzero(norm_above(half)).astype(half.dtype)
  share = jnp.minimum(1, known[0].radius.astype(half.dtype) / length)
  return join([domain.point for domain in known]), half * share


def _without_subnormal(x: Any) -> jax.Array:
  x = jnp.asarray(x, compute_dtype(jnp.result_type(x)))
  return jnp.where(jnp.abs(x) < tiny(x.dtype), 0, x)


def _outward(x: jax.Array, side: int) -> jax.Array:
  """An end of a box that is too small to be normal, moved to 0 or the smallest normal number."""
  low = tiny(x.dtype)
  is_subnormal = (normal_magnitude(x) > 0) & (jnp.abs(x) < low)
  is_inward = jnp.signbit(x) == (side > 0)
  return jnp.where(is_subnormal, jnp.where(is_inward, 0, side * low), x)


def _moved(x: jax.Array, by: jax.Array) -> jax.Array:
  """A sum that is rounded in the direction of its second term."""
  side = jnp.sign(by)
  # A sum that is too small to be normal counts as 0.
  return jnp.nextafter(x + (by + side * 2 * tiny(by.dtype)), side * jnp.inf)


def _radius(radius: Any) -> jax.Array:
  try:
    number = jnp.asarray(radius, float)
  except (TypeError, ValueError):
    number = jnp.zeros(0)  # not one
  is_known = not isinstance(number, Tracer)
  if number.ndim or (is_known and not (np.isfinite(number) and number >= 0)):
    msg = f"radius must be one number, at least 0 and finite; got {radius!r}."
    raise CertifyError(msg)
  # Of no ball the bounds are infinite, and no slope is found in it.
  return jnp.where(number >= 0, jnp.nextafter(number, jnp.inf), jnp.nan)


def _ends(x: jax.Array, box: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
  lower, upper = _given_ends(x.shape, x.dtype, box)
  return _outward(lower, -1), _outward(upper, 1)


def _given_ends(
  shape: tuple[int, ...], dtype: Any, box: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array]:
  try:
    lower, upper = (jnp.broadcast_to(jnp.asarray(end, dtype), shape) for end in box)
  except (TypeError, ValueError) as error:
    msg = (
      "box must be a pair of the smallest and the largest value of an entry, numbers or arrays "
      f"of the argument's shape {shape}; got {box!r}."
    )
    raise CertifyError(msg) from error
  is_known = not isinstance(lower, Tracer) and not isinstance(upper, Tracer)
  if is_known and not bool(jnp.all((lower <= upper) & jnp.isfinite(lower) & jnp.isfinite(upper))):
    msg = "box must have finite ends, the first below the second."
    raise CertifyError(msg)
  return lower, upper
