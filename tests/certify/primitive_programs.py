"""Random programs of primitives, shapes and axes that nobody would write, and JAX allows.

Every step reads one or two of the values before it, so that branches share parts, in shapes that
broadcast into each other; the example of each record of a primitive is one of the steps. What
`check` finds is a bound below a slope, or an error that is no `CertifyError`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from certify.jacobians import widened
from certify.primitive_steps import MOST_ENTRIES, POOL, STEPS, Draw

import lipjax

SHAPES = ((), (3,), (1,), (1, 3), (3, 1), (2, 3), (2, 1, 3), (2, 2, 2))
BOX = (-1.5, 1.5)
N_POINTS = 48
#: Rounds of looking for a steeper place near the steepest ones.
N_ROUNDS = 3


def pools(seed, n, dtype):
  """The constants of n cases."""
  rng = np.random.default_rng(seed + 3)
  sizes = rng.uniform(0.5, 2, (n, POOL)) * rng.choice([-1, 1], (n, POOL))
  return jnp.asarray(sizes, dtype)


def program(seed):
  """A function of an array and of its constants, and that array's shape."""
  rng = np.random.default_rng(seed)
  shape = SHAPES[rng.integers(len(SHAPES))]
  steps = [STEPS[i] for i in rng.integers(len(STEPS), size=rng.integers(2, 7))]

  def fn(x, pool):
    draw, values = Draw(seed + 1, pool), [x]
    for step in steps:
      value = step(draw, values)
      if 0 < value.size <= MOST_ENTRIES:
        values.append(value)
    # What is made last may read none of the others.
    return values[-1]

  fn.names = [step.__name__.strip("_") for step in steps]
  return fn, shape


def check(seed, box=None, dtype=np.float32, n_cases=1):
  """How many cases had a bound to compare; raises if a slope is above it.

  One case has constants that are known while the function is read; several have traced ones.
  """
  fn, shape = program(seed)
  x, given = jnp.zeros(shape, dtype), pools(seed, n_cases, dtype)
  try:
    jax.eval_shape(fn, x, given[0])
  except (TypeError, ValueError):  # JAX does not allow it, mostly in these floats
    return 0
  upper = lipjax.lipschitz_upper_bound(fn, box=box)
  try:
    if n_cases == 1:
      uppers = np.asarray(upper(x, given[0]))[None]
    else:
      uppers = np.asarray(jax.jit(jax.vmap(lambda pool: upper(x, pool)))(given))
  except lipjax.CertifyError:
    return 0
  truth = Truth(fn, shape, seed, box, given)
  founds = truth.steepest()
  too_steep = founds > uppers * (1 + 1e-4) + 1e-6
  if too_steep.any():  # At ties some of JAX's derivatives are none: is there such a pair of inputs?
    founds = np.where(too_steep, np.minimum(founds, truth.steepest_pairs()), founds)
  is_held = founds <= uppers * (1 + 1e-4) + 1e-6
  assert is_held.all(), (seed, fn.names, founds[~is_held], uppers[~is_held])
  return int(np.isfinite(uppers).sum())


class Truth:
  """The slopes of a program, for each of several arrays of constants."""

  def __init__(self, fn, shape, seed, box, given):
    self.shape, self.box, self.given = shape, box, given
    self.rng = np.random.default_rng(seed + 2)
    # In the widest floats there are, of what the program says, whatever JAX's rules are.
    closed = jax.make_jaxpr(fn)(jnp.zeros(shape, given.dtype), given[0])
    wide = lambda x, pool: widened(closed, (x, pool))[0].ravel()
    over = lambda f: jax.jit(jax.vmap(jax.vmap(f, (0, None))))
    self.value, self.slopes = over(wide), over(jax.jacfwd(wide))

  def steepest(self):
    """The largest norm of the Jacobian found, at points of several sizes and near the best."""
    points = self._points()
    best, at = self._best(points)
    for scale in 0.3 ** np.arange(N_ROUNDS):
      moves = scale * self.rng.standard_normal(points.shape) * self.rng.integers(0, 2, points.shape)
      better, nearby = self._best(self._inside(at[:, None] + moves))
      at = np.where((better > best).reshape((-1,) + (1,) * len(self.shape)), nearby, at)
      best = np.maximum(best, better)
    return best

  def steepest_pairs(self):
    """The largest slope between two inputs near each other, along the steepest directions."""
    points = self._points()
    matrices = self._matrices(points)
    directions = np.linalg.svd(matrices)[2][..., 0, :].reshape(points.shape)
    found = np.zeros(len(points))
    for step in (0.1, 1e-2, 1e-3):
      ends = [self._inside(points + sign * step * directions) for sign in (-1, 1)]
      ends = [np.asarray(jnp.asarray(x), np.float64) for x in ends]
      left, right = (np.asarray(self.value(x, self.given), np.float64) for x in ends)
      apart = np.linalg.norm((ends[1] - ends[0]).reshape((*points.shape[:2], -1)), axis=-1)
      # Less what rounding can have made of it.
      noise = 1e-6 * np.maximum(np.abs(left).max(axis=-1, initial=0), 1)
      moved = np.linalg.norm(right - left, axis=-1) - noise
      found = np.maximum(found, np.max(moved / np.maximum(apart, 1e-9), axis=1))
    return found

  def _points(self):
    rng = np.random.default_rng(1)
    shape = (len(self.given), N_POINTS, *self.shape)
    if self.box is None:
      points = rng.standard_normal(shape)
      points *= np.resize([0.1, 1, 4], N_POINTS).reshape((-1,) + (1,) * len(self.shape))
    else:
      points = rng.uniform(*self.box, shape)
    # Some have equal entries.
    alike = points[:, ::4].reshape((len(points), N_POINTS // 4, -1))[..., :1]
    points[:, ::4] = alike.reshape((*alike.shape[:2], *(1,) * len(self.shape)))
    return points

  def _inside(self, points):
    return points if self.box is None else np.clip(points, *self.box)

  def _matrices(self, points):
    slopes = np.asarray(self.slopes(jnp.asarray(points), self.given), np.float64)
    return np.nan_to_num(slopes.reshape((*points.shape[:2], -1, math.prod(self.shape))))

  def _best(self, points):
    matrices = self._matrices(points)
    if not matrices.size:
      return np.zeros(len(points)), points[:, 0]
    norms = np.linalg.norm(matrices, 2, axis=(-2, -1))
    first = norms.argmax(axis=1)
    cases = np.arange(len(points))
    return norms[cases, first], points[cases, first]


def run(seeds, box=None, dtype=np.float32, n_cases=1):
  """How many of the cases had a bound."""
  return sum(check(seed, box, dtype, n_cases) for seed in seeds)
