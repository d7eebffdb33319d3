"""Lipschitz constants from below: two inputs between which a function is steep."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.lower.ascent import search
from lipjax.certify.lower.function import Function, Values, traced
from lipjax.measure.scaling import nonzero, norm_and_direction
from lipjax.rounding.errors import down, pairwise_sum, pairwise_terms, up

#: Distances at which a slope is tried, from far apart to the root of eps.
N_DISTANCES = 24
#: Of starts, where the caller does not say: what they hold at once is so many numbers.
AT_ONCE, FEWEST_STARTS, MOST_STARTS = 2**16, 16, 1024


def lipschitz_lower_bound(
  fn: Callable[..., Any],
  argnums: int | Sequence[int] = 0,
  *,
  radius: Any | None = None,
  box: tuple[Any, Any] | None = None,
  n_starts: int | None = None,
  n_ascent_steps: int = 200,
  n_power_steps: int = 2,
  rounding: float = 16.0,
  key: jax.Array | None = None,
) -> Callable[..., jax.Array]:
  r"""A slope of `fn`, searched for: a lower bound of its l2 Lipschitz constant.

  A transformation shaped like `jax.grad`: ``lipschitz_lower_bound(fn)(*args)`` bounds

  .. math:: \sup_{x\ne y}\ \|f(x)-f(y)\| / \|x-y\|

  over all inputs `x` and `y` of the shape of ``args[argnums]``, with the l2 norm over all
  entries of all leaves, the other arguments held fixed; or over those within `radius` of the
  argument, or in a `box`, where every input that `fn` is given then lies. Without these only where
  the search begins depends on the argument's values. For the constant on another convex set pass
  ``lambda x: fn(project(x))``: it is the same, since projecting brings no two points further apart.

  From every start x goes uphill on the norm of the Jacobian, :math:`\sigma(x) = u^TJ(x)v`
  with the top singular vectors held fixed in a step. The singular vectors come from power
  iteration, kept warm. Where `fn` has kinks the gradient of :math:`\sigma` is 0 almost
  everywhere; there the step goes towards the side of each kink (of max, min, abs, clamp and
  ``where(x > y, …)``) on which :math:`u^TJ(x)v` would be larger. At the best point of each
  start differences are taken along v, at many distances.

  ``custom_jvp``, ``custom_vjp`` and ``stop_gradient`` inside `fn` are not believed: the
  derivative is that of the arithmetic.

  Guarantee: lower, up to rounding in `fn`. The number is
  :math:`(\|f(a)-f(b)\|-\delta)/\|a-b\|` for two inputs, so it holds whatever JAX takes for
  the derivative at a kink; the rounding of its own arithmetic is in it. :math:`\delta` is
  `rounding` · eps · :math:`(\|f(a)\|+\|f(b)\|)`, eps of the coarsest dtype in `fn`: that
  evaluating `fn` is off by no more is an assumption, which a function with much
  cancellation inside breaks (use float64). As a second check the number is at most
  :math:`\|J(x)v\|`, so that a rounding error counts only if it is in both. How close it is
  to the Lipschitz constant is not known; jumps are not looked for.

  Args:
    fn: a function of floating-point arrays or pytrees of them, to such.
    argnums: the argument, or arguments, in which the slope is taken.
    radius: of the l2 ball around the argument that inputs lie in, all leaves together. In one
      that is traced, and negative or NaN, no slope is found.
    box: the smallest and the largest value of an entry of the inputs.
    n_starts: points from which the search begins, side by side: the argument itself, 0, and
      noise around both at scales from 1/100 of the argument's to 100 times it. In a ball or a
      box: the argument, the middle, and noise around both up to the whole extent. None takes
      16, and up to 1,024 where `fn` is small: where a start costs next to nothing.
    n_ascent_steps: steps from each: an eighth of them jumps, to choose a beginning; then
      steps uphill of decreasing length, best or not; in the end only those that gain.
    n_power_steps: power iterations a step.
    rounding: the error of evaluating `fn`, in eps of its value; 0 leaves it out.
    key: of the random starts; a fixed key when None.

  Returns:
    A function of the arguments of `fn` whose result is a scalar, float32 or wider: 0 where
    no slope was found. A program is compiled once, however often `fn` is made anew around
    other arrays; another number written in it is another program. It is differentiable in
    whatever else `fn` depends on, with a and b held fixed. An ascent step costs each start
    about ``2 * n_power_steps + 5`` evaluations of `fn`; a `fn` without reverse mode (a
    `jax.lax.while_loop`) costs one more for each entry of its input.

  Raises:
    ValueError: counts that are not positive; and, from the function returned, an argument
      that is not there, or an argument or output that is not floating-point.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> def fn(x):  # steepest where x is 0, in the direction of (3, 4)
    ...   return jnp.tanh(jnp.array([3.0, 4.0]) @ x)
    >>> bound = lipjax.lipschitz_lower_bound(fn)(jnp.ones(2))
    >>> 4.99 < float(bound) <= 5.0
    True

  Reference:
    The Jacobian's norm is a lower bound of the Lipschitz constant: Federer (1969), theorem
    3.1.6 (Rademacher); the gradient of a largest singular value: Lewis & Sendov (2005),
    Set-Valued Analysis 13.
  """
  counts = {"n_starts": n_starts, "n_power_steps": n_power_steps}
  for name, count in counts.items():
    if count is not None and count < 1:
      msg = f"{name} is {count}; expected at least 1."
      raise ValueError(msg)
  if n_ascent_steps < 0 or not rounding >= 0:
    msg = f"n_ascent_steps is {n_ascent_steps} and rounding {rounding}; expected at least 0."
    raise ValueError(msg)

  @functools.wraps(fn)
  def bound(*args: Any, **kwargs: Any) -> jax.Array:
    function, values = traced(fn, argnums, args, kwargs, radius, box)
    if function.n_in == 0 or function.n_out == 0:
      return jnp.zeros((), function.dtype)
    n = n_starts or min(max(AT_ONCE // function.n_numbers, FEWEST_STARTS), MOST_STARTS)
    options = (n, n_ascent_steps, n_power_steps), rounding
    return _steepest(function, options, values, jax.random.key(0) if key is None else key)

  return bound


@functools.partial(jax.jit, static_argnums=(0, 1))
def _steepest(
  function: Function,
  options: tuple[tuple[int, int, int], float],
  values: Values,
  key: jax.Array,
) -> jax.Array:
  """A search with its numbers of starts and steps; then the slope, with its `rounding`."""
  counts, rounding = options
  # The points are held fixed in derivatives, so the search need not have any.
  held = values._replace(consts=lax.stop_gradient(values.consts))
  found = search(function, held, key, *counts)
  return _best_slope(function, values, *lax.stop_gradient(found), rounding)


def _best_slope(
  function: Function, values: Values, x: jax.Array, v: jax.Array, scale: jax.Array, rounding: float
) -> jax.Array:
  r"""The largest proven :math:`\min(\|Jv\|, \|f(a)-f(b)\|/\|a-b\|)` over points and distances."""
  f = function.flat(values.consts)
  # In a ball far from 0 the ball's size is what counts.
  sizes = jax.vmap(lambda x: norm_and_direction(x, 0)[0])(x)
  typical = jnp.maximum(sizes, scale) if values.around is None else scale
  # Of the norm of a difference: of `_norm` those of the squares count half.
  roundings = lambda n: pairwise_terms(n) // 2 + 6
  nearest = math.sqrt(function.eps)
  distances = jnp.geomspace(8, nearest, N_DISTANCES, dtype=x.dtype)
  sigma = jax.vmap(lambda x, v: _norm(jax.jvp(f, (x,), (v,))[1]))(x, v)
  sigma = sigma * (1 - rounding * function.eps)

  def at(distance):
    def of_start(x, v, typical):
      steps = distance * typical * jnp.arange(-1, 2, dtype=x.dtype)
      # What the leaves' dtypes make of the points is what the function gets.
      points = jax.vmap(lambda step: function.join(function.split(x + step * v)))(steps)
      outputs = jax.vmap(f)(points)
      sizes = up(jax.vmap(_norm)(outputs), roundings(function.n_out))
      left, right = jnp.array([0, 1, 0]), jnp.array([2, 2, 1])
      lost = rounding * function.eps * up(sizes[left] + sizes[right])
      rises = jax.vmap(_norm)(outputs[right] - outputs[left])
      runs = up(jax.vmap(_norm)(points[right] - points[left]), roundings(function.n_in))
      rises = jnp.maximum(down(rises, roundings(function.n_out)) - lost, 0)
      return jnp.where(runs > 0, down(rises / nonzero(runs)), 0)

    return jax.vmap(of_start)(x, v, typical)

  slopes = jnp.minimum(lax.map(at, distances), sigma[:, None])
  return jnp.max(jnp.where(slopes > 0, slopes, 0))


def _norm(x: jax.Array) -> jax.Array:
  """The l2 norm, in `pairwise_terms` + 4 roundings, with derivative 0 at 0."""
  largest = lax.stop_gradient(nonzero(jnp.max(jnp.abs(x))))
  squares = pairwise_sum(jnp.square(x / largest), 0)
  return jnp.where(squares > 0, jnp.sqrt(nonzero(squares)), 0) * largest
