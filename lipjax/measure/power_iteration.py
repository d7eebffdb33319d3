"""Power iteration on one operator, in both of the literature's formats."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.derivatives import differentiable_sigma
from lipjax.measure.scaling import nonzero, norm_and_direction, usable_scale
from lipjax.measure.sharding import replicated_result
from lipjax.measure.starts import ones_unit, random_unit, restart_unit
from lipjax.measure.triplet import (
  SingularTriplet,
  clean,
  triplet_dtype,
)
from lipjax.operators.base import LinearOperator

Format = Literal["one_sided", "two_sided"]


def power_iteration(
  operator: LinearOperator,
  w: jax.Array,
  *,
  start: Literal["random", "ones"] | jax.Array = "random",
  key: jax.Array | None = None,
  n_steps: int | None = None,
  tol: float | None = None,
  max_steps: int = 10_000,
  format: Format = "two_sided",
) -> SingularTriplet:
  r"""The top singular triplet of one leaf by power iteration.

  The one-sided format iterates :math:`u \leftarrow W W^T u / \|W W^T u\|`, with
  one normalization a step; the two-sided one
  :math:`v \leftarrow W^T u / \|W^T u\|,\ u \leftarrow W v / \|W v\|`. Both read
  :math:`\sigma = \|W v\|` and produce the same vectors but for rounding. The
  error shrinks by :math:`(\sigma_2/\sigma_1)^2` a step.

  Guarantee: an estimate from below, never an upper bound: it is at most the true
  norm but for rounding, and an unlucky start can leave it far below.

  Args:
    operator: what kind of linear map `w` is.
    w: the weight, any floating dtype; computed in float32 or wider. Batch axes of
      the operator give one triplet a slice.
    start: ``"random"`` (from `key`), ``"ones"`` (the papers' choice, wrong
      when orthogonal to the answer), or an array of the operator's output shape.
    key: for the random start; a fixed key when None.
    n_steps: that many steps.
    tol: instead of `n_steps`, iterate inside `jax.lax.while_loop` until a step
      changes no slice's sigma by more than ``tol * sigma``. The true relative error
      is larger, about ``tol / (1 - (sigma_2/sigma_1)**2)``, and rounding adds to it.
    max_steps: where iteration to a tolerance stops in any case.
    format: ``"two_sided"`` or ``"one_sided"``.

  Returns:
    `SingularTriplet`. Its sigma has the derivative :math:`u^T\,dW\,v`, in forward
    and reverse mode. A zero or empty operator gives 0 with zero vectors; a
    non-finite slice gives NaN for itself alone.

  Raises:
    ValueError: both or neither of `n_steps` and `tol`, or no step; an unknown format or start;
      a start or weight of the wrong shape.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> w = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> triplet = lipjax.power_iteration(lipjax.Dense(), w, n_steps=10)
    >>> round(float(triplet.sigma), 5)
    3.0

  Reference:
    Yoshida & Miyato (2017), arXiv:1705.10941, Algorithm 1; Miyato et al. (2018),
    arXiv:1802.05957, Algorithm 1 (two-sided).
  """
  if (n_steps is None) == (tol is None):
    msg = f"Give n_steps or tol, and not both; got n_steps={n_steps}, tol={tol}."
    raise ValueError(msg)
  if isinstance(n_steps, int) and n_steps < 1:
    msg = f"n_steps is {n_steps}; expected at least 1."
    raise ValueError(msg)
  if format not in ("one_sided", "two_sided"):
    msg = f"format is {format!r}; expected 'one_sided' or 'two_sided'."
    raise ValueError(msg)
  operator.validate(w.shape)
  first = initial_triplet(operator, w, start, key)
  triplet = _iterate(lax.stop_gradient(w), first, n_steps, tol, max_steps, operator, format)
  return differentiable_sigma(operator, w, clean(triplet, triplet.sigma.ndim))


@functools.partial(jax.jit, static_argnames=("operator", "format"))
def _iterate(w, first, n_steps, tol, max_steps, operator, format):
  """The iteration, compiled once for a shape when called outside jit."""
  step = two_sided_step if format == "two_sided" else one_sided_step

  def run(w, triplet):
    if operator.has_closed_form:
      return SingularTriplet(*operator.closed_form(w))
    advance = functools.partial(step, operator, w)
    if n_steps is not None:
      return lax.fori_loop(0, n_steps, lambda _, t: advance(t), triplet)
    return _until(advance, triplet, tol, max_steps)

  return replicated_result(run, w)(w, first)


def two_sided_step(
  operator: LinearOperator, w: jax.Array, triplet: SingularTriplet
) -> SingularTriplet:
  """Format B: both sides are normalized, so nothing can overflow."""
  n_batch = triplet.sigma.ndim
  _, v = norm_and_direction(operator.adjoint(w, triplet.u), n_batch)
  sigma, u = norm_and_direction(operator.apply(w, v), n_batch)
  return keep_direction(SingularTriplet(sigma, u, v))


def one_sided_step(
  operator: LinearOperator, w: jax.Array, triplet: SingularTriplet
) -> SingularTriplet:
  """Format A: two products back to back, then one normalization."""
  v, y = one_sided_products(operator, w, triplet)
  return finish_one_sided(triplet, v, y)


def one_sided_products(
  operator: LinearOperator, w: jax.Array, triplet: SingularTriplet
) -> tuple[jax.Array, jax.Array]:
  r""":math:`v = W^T u / s` and :math:`y = W v`, with `s` the last known sigma.

  Dividing the small vector by the last sigma keeps `v` near unit length, so that
  `y` overflows at no weight scale, without a reduction between the products.
  """
  v = operator.adjoint(w, scaled_start(triplet))
  return v, operator.apply(w, v)


def scaled_start(triplet: SingularTriplet) -> jax.Array:
  """`u` divided by the last known sigma."""
  n_batch = triplet.sigma.ndim
  scale = usable_scale(triplet.sigma)
  return triplet.u / scale.reshape(scale.shape + (1,) * (triplet.u.ndim - n_batch))


def finish_one_sided(triplet: SingularTriplet, v: jax.Array, y: jax.Array) -> SingularTriplet:
  r"""Normalizes both products: :math:`\sigma = \|y\| / \|v\|`.

  The ratio does not depend on the length of the stored `u`. In the first step,
  when no sigma is known, `y` can leave the dtype's range although `v` does not;
  the half step (sigma from `v`, `u` kept) is then a valid triplet, and its sigma
  brings the next step into range.
  """
  n_batch = triplet.sigma.ndim
  norm_v, v = norm_and_direction(v, n_batch)
  norm_y, u = norm_and_direction(y, n_batch)
  whole = jnp.isfinite(norm_y) & (norm_y > 0)
  half = norm_v * usable_scale(triplet.sigma)
  sigma = jnp.where(whole, norm_y / nonzero(norm_v), half)
  u = jnp.where(whole.reshape(whole.shape + (1,) * (u.ndim - n_batch)), u, triplet.u)
  return keep_direction(SingularTriplet(sigma, u, v))


def initial_triplet(
  operator: LinearOperator,
  w: jax.Array | jax.ShapeDtypeStruct,
  start: Literal["random", "ones"] | jax.Array,
  key: jax.Array | None,
  path: str = "",
) -> SingularTriplet:
  """Unit vectors to start from, with sigma 0: nothing has been measured yet."""
  dtype = triplet_dtype(w)
  n_batch = len(operator.batch_shape(w.shape))
  in_shape, out_shape = operator.input_shape(w.shape), operator.output_shape(w.shape)
  key = jax.random.key(0) if key is None else key
  if isinstance(start, str) and start == "random":
    u = random_unit(key, path + "#u", out_shape, n_batch, dtype)
    v = random_unit(key, path + "#v", in_shape, n_batch, dtype)
  elif isinstance(start, str) and start == "ones":
    u, v = ones_unit(out_shape, n_batch, dtype), ones_unit(in_shape, n_batch, dtype)
  elif isinstance(start, str) or getattr(start, "shape", None) != out_shape:
    got = repr(start) if isinstance(start, str) else f"shape {getattr(start, 'shape', None)}"
    msg = (
      f"The start of {path or 'the leaf'!r} is {got}; expected 'random', 'ones', or a"
      f" vector u of the operator's output shape {out_shape}."
    )
    raise ValueError(msg)
  else:
    u = norm_and_direction(jnp.asarray(start, dtype), n_batch)[1]
    v = ones_unit(in_shape, n_batch, dtype)
  return SingularTriplet(jnp.zeros(operator.batch_shape(w.shape), dtype), u, v)


def keep_direction(triplet: SingularTriplet) -> SingularTriplet:
  """Gives a slice without a direction (zero or non-finite) one to go on from."""
  n_batch = triplet.sigma.ndim
  good = triplet.sigma > 0

  def fill(x):
    mask = good.reshape(good.shape + (1,) * (x.ndim - n_batch))
    return jnp.where(mask, x, restart_unit(x.shape, n_batch, x.dtype))

  return SingularTriplet(triplet.sigma, fill(triplet.u), fill(triplet.v))


def _until(advance, triplet, tol, max_steps):
  """Steps until no slice's sigma changes by more than ``tol * sigma``."""

  def unfinished(carry):
    step, triplet, previous = carry
    moved = jnp.abs(triplet.sigma - previous) > tol * triplet.sigma
    # NaN compares false, so a non-finite slice never keeps the others going.
    return (step < max_steps) & ((step < 2) | jnp.any(moved))

  def body(carry):
    step, triplet, _ = carry
    return step + 1, advance(triplet), triplet.sigma

  carry = (jnp.zeros((), jnp.int32), triplet, jnp.full_like(triplet.sigma, jnp.inf))
  return lax.while_loop(unfinished, body, carry)[1]
