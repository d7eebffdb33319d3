"""Lipschitz constants from below: two inputs between which a function is steep."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.without_rules import evaluate, float_dtypes
from lipjax.measure.rounding import down, pairwise_sum, pairwise_terms, up
from lipjax.measure.scaling import nonzero, norm_and_direction
from lipjax.operators.paths import path_string
from lipjax.operators.products import compute_dtype

#: Starts lie around the argument and around 0, at these multiples of the argument's scale.
SMALLEST_SCALE, LARGEST_SCALE = 1e-2, 1e2
#: Steps of the walk, first and last, in its two halves, and of the climb; in the start's scale.
LONG_STEPS, SHORT_STEPS = (0.5, 0.02), (0.05, 0.001)
FIRST_CLIMB, SHORTEST_CLIMB = 0.1, 1e-5
#: Distances at which a slope is tried, from far apart to the root of eps.
N_DISTANCES = 24
#: Power iterations at the points found. (Lanczos' would need fewer and compiles for longer
#: than all the rest.)
N_POLISHING = 100


def lipschitz_lower_bound(
  fn: Callable[..., Any],
  argnums: int | Sequence[int] = 0,
  *,
  n_starts: int = 16,
  n_ascent_steps: int = 200,
  n_power_steps: int = 2,
  rounding: float = 16.0,
  key: jax.Array | None = None,
) -> Callable[..., jax.Array]:
  r"""A slope of `fn`, searched for: a lower bound of its l2 Lipschitz constant.

  A transformation shaped like `jax.grad`: ``lipschitz_lower_bound(fn)(*args)`` bounds

  .. math:: \sup_{x\ne y}\ \|f(x)-f(y)\| / \|x-y\|

  over all inputs `x` and `y` of the shape of ``args[argnums]``, with the l2 norm over all
  entries of all leaves, the other arguments held fixed. Only where the search begins
  depends on the argument's values. For the constant on a convex set, such as a box, pass
  ``lambda x: fn(jnp.clip(x, 0, 1))``: it is the same, since projecting brings no two
  points further apart.

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
    n_starts: points from which the search begins, side by side: the argument itself, 0, and
      noise around both at scales from 1/100 of the argument's to 100 times it.
    n_ascent_steps: steps from each: an eighth of them jumps, to choose a beginning; then
      steps uphill of decreasing length, best or not; in the end only those that gain.
    n_power_steps: power iterations a step.
    rounding: the error of evaluating `fn`, in eps of its value; 0 leaves it out.
    key: of the random starts; a fixed key when None.

  Returns:
    A function of the arguments of `fn` whose result is a scalar, float32 or wider: 0 where
    no slope was found. It can be jitted (otherwise every call compiles), and it is
    differentiable in whatever else `fn` depends on, with a and b held fixed. An ascent step
    costs each start about ``2 * n_power_steps + 5`` evaluations of `fn`; a `fn` without
    reverse mode (a `jax.lax.while_loop`) costs one more for each entry of its input.

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
    if count < 1:
      msg = f"{name} is {count}; expected at least 1."
      raise ValueError(msg)
  if n_ascent_steps < 0 or not rounding >= 0:
    msg = f"n_ascent_steps is {n_ascent_steps} and rounding {rounding}; expected at least 0."
    raise ValueError(msg)

  @functools.wraps(fn)
  def bound(*args: Any, **kwargs: Any) -> jax.Array:
    traced = _trace(fn, argnums, args, kwargs)
    if traced.n_in == 0 or traced.n_out == 0:
      return jnp.zeros((), traced.dtype)

    @jax.jit
    def run(consts, leaves, key):
      # The points are held fixed in derivatives, so the search need not have any.
      held = lax.stop_gradient(consts)
      points = _search(traced, held, leaves, key, n_starts, n_ascent_steps, n_power_steps)
      return _best_slope(traced, consts, *lax.stop_gradient(points), rounding)

    return run(traced.consts, traced.leaves, jax.random.key(0) if key is None else key)

  return bound


class _Traced(NamedTuple):
  """The function as a jaxpr of flat leaves, and what it maps."""

  closed: Any
  consts: list[Any]
  leaves: list[jax.Array]
  dtype: jnp.dtype
  eps: float
  n_in: int
  n_out: int
  has_reverse: bool

  def flat(self, consts: Sequence[Any], soften: bool = False) -> Callable[[jax.Array], jax.Array]:
    """The function from one vector to another."""

    def f(x):
      outputs = evaluate(self.closed, self.split(x), consts=consts, soften=soften)
      return jnp.concatenate([jnp.ravel(y).astype(self.dtype) for y in outputs])

    return f

  def split(self, x: jax.Array) -> list[jax.Array]:
    """A vector as leaves, which may round it."""
    ends = [0]
    for leaf in self.leaves:
      ends.append(ends[-1] + leaf.size)
    pieces = zip(self.leaves, ends[:-1], ends[1:], strict=True)
    return [x[i:j].reshape(leaf.shape).astype(leaf.dtype) for leaf, i, j in pieces]

  def join(self, leaves: Sequence[jax.Array]) -> jax.Array:
    """Leaves as one vector, exactly."""
    return jnp.concatenate([jnp.ravel(leaf).astype(self.dtype) for leaf in leaves])


def _trace(fn: Callable[..., Any], argnums: Any, args: tuple[Any, ...], kwargs: Any) -> _Traced:
  chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
  if any(not -len(args) <= i < len(args) for i in chosen):
    msg = (
      f"argnums is {argnums} and the function was called with {len(args)} positional"
      " arguments; the argument in question must be one of them."
    )
    raise ValueError(msg)
  given = [args[i] for i in chosen]
  leaves, structure = jax.tree.flatten(given)
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(given)[0]:
    _check_float(leaf, f"args[{chosen[key_path[0].idx]}]", path_string(key_path[1:]))
  leaves = [jnp.asarray(leaf) for leaf in leaves]

  def of_leaves(*leaves):
    replaced = list(args)
    for i, value in zip(chosen, jax.tree.unflatten(structure, leaves), strict=True):
      replaced[i] = value
    return fn(*replaced, **kwargs)

  # Matrix units would round float32 products to TF32 or bfloat16.
  with jax.default_matmul_precision("highest"):
    closed, outputs = jax.make_jaxpr(of_leaves, return_shape=True)(*leaves)
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(outputs)[0]:
    _check_float(leaf, "the output", path_string(key_path))
  dtypes = float_dtypes(closed) | {leaf.dtype for leaf in leaves}
  traced = _Traced(
    closed=closed,
    consts=list(closed.consts),
    leaves=leaves,
    dtype=compute_dtype(jnp.result_type(*(x.dtype for x in (*leaves, *jax.tree.leaves(outputs))))),
    eps=max(float(jnp.finfo(dtype).eps) for dtype in dtypes),
    n_in=sum(leaf.size for leaf in leaves),
    n_out=sum(leaf.size for leaf in jax.tree.leaves(outputs)),
    has_reverse=True,
  )
  return traced._replace(has_reverse=traced.n_in * traced.n_out == 0 or _has_reverse(traced))


def _check_float(leaf: Any, name: str, path: str) -> None:
  where = f"{name} (leaf {path!r})" if path else name
  dtype = getattr(leaf, "dtype", None)
  found = type(leaf).__name__ if dtype is None else str(dtype)
  if isinstance(leaf, float) or (dtype is not None and jnp.issubdtype(dtype, jnp.floating)):
    return
  msg = (
    f"{where} is {found}; a slope needs floating-point arrays. Cast it, or keep it out of the"
    " function: lambda x: fn(x, labels) for an input, lambda x: fn(x)[0] for an output."
  )
  raise ValueError(msg)


def _has_reverse(traced: _Traced) -> bool:
  """Whether JAX can transpose the derivative; it cannot for a `while_loop`."""
  f = traced.flat(traced.consts)
  x = jax.ShapeDtypeStruct((traced.n_in,), traced.dtype)
  try:
    jax.eval_shape(jax.grad(lambda x: jnp.sum(f(x))), x)
  except (NotImplementedError, TypeError, ValueError):
    return False
  return True


# ---- the search ----


class _Best(NamedTuple):
  """The best point of a start, its right singular vector, and the way uphill from it."""

  sigma: jax.Array
  x: jax.Array
  v: jax.Array
  uphill: jax.Array


class _Schedule(NamedTuple):
  """What the steps do: jump to a new start, walk, return to the best point and climb from it."""

  length: jax.Array
  jumps: jax.Array
  returns: jax.Array
  climbs: jax.Array


def _search(traced, consts, leaves, key, n_starts, n_steps, n_power_steps):
  """For each start the best point, its top right singular vector, and the start's scale."""
  f = traced.flat(consts)
  # The softened derivative has reverse mode only.
  softened = traced.flat(consts, soften=traced.has_reverse)
  gradient = jax.grad if traced.has_reverse else jax.jacfwd
  centers, scale = _starts(traced.join(leaves), n_starts)
  vector_key, key = jax.random.split(key)
  v = jax.vmap(_unit)(jax.random.normal(vector_key, centers.shape, centers.dtype))

  def step(x, v, best, climb, start, scale, at):
    apply, adjoint = _jacobian(f, x, traced.has_reverse)
    for _ in range(n_power_steps):
      v = _unit(adjoint(_unit(apply(v))))
    sigma, u = norm_and_direction(apply(v), 0)
    slope = lambda x: jnp.vdot(u, jax.jvp(softened, (x,), (v,))[1])
    now = _Best(sigma, x, v, _unit(gradient(slope)(x)))
    better = sigma > best.sigma  # False where f is not defined
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)
    # Longer after a success, shorter after a failure, and long again in the end.
    climb = jnp.where(at.climbs, climb * jnp.where(better, 1.5, 0.5), climb)
    climb = jnp.where(climb < SHORTEST_CLIMB, FIRST_CLIMB, climb)
    astray = ~(jnp.isfinite(sigma) & (sigma > 0))
    base = jax.tree.map(lambda a, b: jnp.where(at.returns | astray, a, b), best, now)
    x = base.x + jnp.where(at.climbs, climb, at.length) * scale * base.uphill
    return jnp.where(at.jumps, start, x), jnp.where(jnp.any(base.v != 0), base.v, v), best, climb

  def body(state, inputs):
    x, v, best, climb = state
    index, at = inputs
    noise = jax.random.normal(jax.random.fold_in(key, index), centers.shape, centers.dtype)
    starts = centers + noise * (scale / math.sqrt(centers.shape[1]))[:, None]
    return jax.vmap(step, (0, 0, 0, 0, 0, 0, None))(x, v, best, climb, starts, scale, at), None

  # The first two begin in their centers, which are the argument and 0.
  noise = jax.random.normal(key, centers.shape, centers.dtype)
  noise = noise * (scale / math.sqrt(centers.shape[1]))[:, None]
  x = centers + jnp.where(jnp.arange(n_starts)[:, None] < 2, 0, noise)
  best = _Best(jnp.zeros(n_starts, x.dtype), x, v, jnp.zeros_like(x))
  state = x, v, best, jnp.full(n_starts, FIRST_CLIMB, x.dtype)
  schedule = jnp.arange(n_steps + 1), _schedule(n_steps, x.dtype)
  best = lax.scan(body, state, schedule)[0][2]

  def polish(x, v):
    apply, adjoint = _jacobian(f, x, traced.has_reverse)
    polished = lax.fori_loop(0, N_POLISHING, lambda _, v: _unit(adjoint(_unit(apply(v)))), v)
    return jnp.where(jnp.any(polished != 0), polished, v)

  return best.x, jax.vmap(polish)(best.x, best.v), scale


def _schedule(n_steps: int, dtype) -> _Schedule:
  """For the n steps and one more, which only looks at the last point."""
  n_jumps = n_climb = n_steps // 8
  n_long = (n_steps - n_jumps - n_climb) // 2
  n_short = n_steps - n_jumps - n_climb - n_long
  walks = [jnp.geomspace(*ends, n) for ends, n in ((LONG_STEPS, n_long), (SHORT_STEPS, n_short))]
  index = jnp.arange(n_steps + 1)
  lengths = jnp.pad(jnp.concatenate(walks), (n_jumps, n_climb + 1)).astype(dtype)
  returns = (index == n_jumps) | (index == n_jumps + n_long) | (index >= n_steps - n_climb)
  return _Schedule(lengths, index < n_jumps, returns, index >= n_steps - n_climb)


def _starts(x: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
  """Centers, in turn `x` and 0, and how far it is across the surroundings looked at."""
  typical = norm_and_direction(x, 0)[0]
  typical = jnp.where(jnp.isfinite(typical) & (typical > 0), typical, math.sqrt(x.size))
  n_scales = -(-n // 2)
  scales = jnp.geomspace(SMALLEST_SCALE, LARGEST_SCALE, n_scales, dtype=x.dtype)
  # The middle scale first: that of the first two, which begin in their centers.
  scales = jnp.roll(scales, -(n_scales // 2)).repeat(2)[:n] * typical
  return jnp.where(jnp.arange(n)[:, None] % 2 == 0, x, 0), scales


def _jacobian(f, x, has_reverse):
  """The Jacobian at `x` and its adjoint, as functions of vectors."""
  if has_reverse:
    _, apply = jax.linearize(f, x)
    transposed = jax.linear_transpose(apply, x)
    return apply, lambda u: transposed(u)[0]
  apply = lambda v: jax.jvp(f, (x,), (v,))[1]
  return apply, lambda u: jax.jacfwd(lambda x: jnp.vdot(u, f(x)))(x)


def _unit(x: jax.Array) -> jax.Array:
  """The direction; 0 for a vector that has none."""
  direction = norm_and_direction(x, 0)[1]
  return jnp.where(jnp.isfinite(direction).all(), direction, 0)


# ---- the number ----


def _best_slope(traced, consts, x, v, scale, rounding) -> jax.Array:
  r"""The largest proven :math:`\min(\|Jv\|, \|f(a)-f(b)\|/\|a-b\|)` over points and distances."""
  f = traced.flat(consts)
  typical = jnp.maximum(jax.vmap(lambda x: norm_and_direction(x, 0)[0])(x), scale)
  # Of the norm of a difference: of `_norm` those of the squares count half.
  roundings = lambda n: pairwise_terms(n) // 2 + 6
  nearest = math.sqrt(traced.eps)
  distances = jnp.geomspace(8, nearest, N_DISTANCES, dtype=x.dtype)
  sigma = jax.vmap(lambda x, v: _norm(jax.jvp(f, (x,), (v,))[1]))(x, v)
  sigma = sigma * (1 - rounding * traced.eps)

  def at(distance):
    def of_start(x, v, typical):
      steps = distance * typical * jnp.arange(-1, 2, dtype=x.dtype)
      # What the leaves' dtypes make of the points is what the function gets.
      points = jax.vmap(lambda step: traced.join(traced.split(x + step * v)))(steps)
      values = jax.vmap(f)(points)
      sizes = up(jax.vmap(_norm)(values), roundings(traced.n_out))
      left, right = jnp.array([0, 1, 0]), jnp.array([2, 2, 1])
      lost = rounding * traced.eps * up(sizes[left] + sizes[right])
      rises = jax.vmap(_norm)(values[right] - values[left])
      runs = up(jax.vmap(_norm)(points[right] - points[left]), roundings(traced.n_in))
      rises = jnp.maximum(down(rises, roundings(traced.n_out)) - lost, 0)
      return jnp.where(runs > 0, down(rises / nonzero(runs)), 0)

    return jax.vmap(of_start)(x, v, typical)

  slopes = jnp.minimum(lax.map(at, distances), sigma[:, None])
  return jnp.max(jnp.where(slopes > 0, slopes, 0))


def _norm(x: jax.Array) -> jax.Array:
  """The l2 norm, in `pairwise_terms` + 4 roundings, with derivative 0 at 0."""
  largest = lax.stop_gradient(nonzero(jnp.max(jnp.abs(x))))
  squares = pairwise_sum(jnp.square(x / largest), 0)
  return jnp.where(squares > 0, jnp.sqrt(nonzero(squares)), 0) * largest
