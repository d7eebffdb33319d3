"""The norm of any linear function, without its matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from lipjax.measure.derivatives import differentiable_norm
from lipjax.measure.lanczos import golub_kahan_lanczos
from lipjax.measure.starts import random_unit
from lipjax.measure.triplet import SingularTriplet
from lipjax.operators.products import compute_dtype


def operator_norm(
  linear_fn: Callable[[Any], Any],
  x: Any,
  *,
  tol: float | None = None,
  key: jax.Array | None = None,
) -> jax.Array:
  r"""The l2 operator norm :math:`\max_{\|x\|=1} \|f(x)\|` of a linear function.

  The adjoint comes from `jax.linear_transpose`; the matrix is never formed.

  Guarantee: an estimate from below, never an upper bound.

  Args:
    linear_fn: a linear function of one pytree of floating arrays to another. Norms
      are over all entries of all leaves.
    x: an example input, arrays or `jax.ShapeDtypeStruct`; only shapes and dtypes count.
    tol: relative tolerance; 8 eps of the dtype when None.
    key: of the random start; a fixed key when None.

  Returns:
    A scalar in the input's dtype, float32 or wider. Differentiable in whatever
    `linear_fn` closes over, any number of times: :math:`d\sigma = \langle u, df(v)\rangle`.

  Raises:
    ValueError: the function is not linear: JAX cannot transpose it, or it is affine
      (``f(0)`` is not 0, checked where values are concrete).

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> round(float(lipjax.operator_norm(jnp.cumsum, jnp.zeros(3))), 4)
    2.247
  """
  flat = flat_map(linear_fn, x, "operator_norm")
  if flat.is_empty:
    return jnp.zeros((), flat.dtype)
  triplet = golub_kahan_lanczos(
    flat.apply,
    flat.adjoint,
    flat.random_start(key),
    flat.n_out,
    tol=8 * float(jnp.finfo(flat.dtype).eps) if tol is None else tol,
  )
  return flat.with_derivative(triplet)


class FlatMap(NamedTuple):
  """A linear function of pytrees as one of vectors.

  Attributes:
    product: of `constants` and a vector.
    transposed: the adjoint, alike.
    constants: the arrays that the function closes over, as far as they are differentiated.
    n_in: length of an input.
    n_out: length of an output.
    dtype: float32 or wider.
  """

  product: Callable[[Any, jax.Array], jax.Array]
  transposed: Callable[[Any, jax.Array], jax.Array]
  constants: Any
  n_in: int
  n_out: int
  dtype: Any

  def apply(self, v: jax.Array) -> jax.Array:
    """The map, a constant of the derivative."""
    return self.product(lax.stop_gradient(self.constants), v)

  def adjoint(self, u: jax.Array) -> jax.Array:
    """Its adjoint, alike."""
    return self.transposed(lax.stop_gradient(self.constants), u)

  @property
  def is_empty(self) -> bool:
    """Whether there is no input or no output."""
    return 0 in (self.n_in, self.n_out)

  def random_start(self, key: jax.Array | None) -> jax.Array:
    """A random direction; the same one for no key."""
    key = jax.random.key(0) if key is None else key
    return random_unit(key, "", (self.n_in,), 0, self.dtype)

  def with_derivative(self, triplet: SingularTriplet) -> jax.Array:
    r"""The measured norm, with derivatives in what the function closes over."""
    return differentiable_norm(self.product, self.transposed, self.constants, triplet)


def flat_map(linear_fn: Callable[[Any], Any], x: Any, caller: str) -> FlatMap:
  """`linear_fn` on vectors; raises a `ValueError` where it is not linear and real."""
  example = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), x)
  flat, unravel = ravel_pytree(example)
  if not jnp.issubdtype(flat.dtype, jnp.floating):
    msg = f"x has dtype {flat.dtype}; {caller} takes real floating inputs."
    raise ValueError(msg)
  dtype = compute_dtype(flat.dtype)

  def forward(v):
    return ravel_pytree(linear_fn(unravel(v.astype(flat.dtype))))[0]

  _check_linear(forward, flat, caller)
  hoisted, constants = jax.closure_convert(forward, flat)
  output = jax.eval_shape(hoisted, flat, *constants)

  def product(constants, v):
    return hoisted(v, *constants).astype(dtype)

  def transposed(constants, u):
    apply = lambda v: hoisted(v, *constants)
    transpose = jax.linear_transpose(apply, jax.ShapeDtypeStruct(flat.shape, flat.dtype))
    return transpose(u.astype(output.dtype))[0].astype(dtype)

  return FlatMap(
    product=product,
    transposed=transposed,
    constants=constants,
    n_in=flat.size,
    n_out=output.size,
    dtype=dtype,
  )


def _check_linear(forward, flat, caller) -> None:
  """Raises where the function has no transpose or has an offset."""
  try:
    output = jax.eval_shape(forward, flat)
    jax.eval_shape(jax.linear_transpose(forward, flat), output)  # transposes when called
    at_zero = forward(jnp.zeros_like(flat))
  except Exception as error:
    msg = (
      f"{caller} needs a linear function, and JAX cannot transpose this one"
      f" ({type(error).__name__}). For the Jacobian at a point x0 of a nonlinear one,"
      " pass jax.linearize(fn, x0)[1]."
    )
    raise ValueError(msg) from error
  if jnp.issubdtype(output.dtype, jnp.complexfloating):
    msg = (
      f"The function's output is {output.dtype}; {caller} takes real maps. Return the"
      " pair (y.real, y.imag), which has the same norm."
    )
    raise ValueError(msg)
  if not isinstance(at_zero, Tracer) and bool(jnp.any(at_zero != 0)):
    msg = (
      f"{caller} needs a linear function, and this one is not 0 at 0: it adds a"
      " constant. Leave the bias out, or pass jax.linearize(fn, x0)[1]."
    )
    raise ValueError(msg)
