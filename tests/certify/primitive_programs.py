"""Random programs of primitives, shapes and axes that nobody would write, and JAX allows.

Every step reads one or two of the values before it, so that branches share parts, in shapes that
broadcast into each other. What `check` finds is a bound below a slope, or an error that is no
`CertifyError`.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lipjax
from lipjax.certify.lower.arithmetic import evaluate

SHAPES = ((), (3,), (1,), (1, 3), (3, 1), (2, 3), (2, 1, 3), (2, 2, 2))
MOST_ENTRIES = 64
BOX = (-1.5, 1.5)
N_POINTS = 48


def program(seed):
  """A function of an array and that array's shape."""
  rng = np.random.default_rng(seed)
  shape = SHAPES[rng.integers(len(SHAPES))]
  names = [list(STEPS)[i] for i in rng.integers(len(STEPS), size=rng.integers(2, 7))]

  def fn(x):
    rng, values = np.random.default_rng(seed + 1), [x]
    for name in names:
      value = STEPS[name](rng, values)
      if 0 < value.size <= MOST_ENTRIES:
        values.append(value)
    # What is made last may read none of the others.
    return values[-1]

  fn.names = names
  return fn, shape


def check(seed, box):
  """Whether there was a bound to compare; raises if a slope is above it."""
  fn, shape = program(seed)
  x = jnp.zeros(shape)
  try:
    upper = float(lipjax.lipschitz_upper_bound(fn, box=box)(x))
  except lipjax.CertifyError:
    return False
  found = steepest(fn, shape, seed, box)
  if found > upper:  # At ties some of JAX's derivatives are none: is there such a pair of inputs?
    found = min(found, steepest_pair(fn, shape, seed, box))
  assert found <= upper * (1 + 1e-4) + 1e-6, (seed, fn.names, found, upper)
  return True


def steepest(fn, shape, seed, box):
  """The largest norm of the Jacobian at the points."""
  _, matrices = jacobians(fn, shape, seed, box)
  return np.linalg.norm(matrices, 2, axis=(1, 2)).max(initial=0) if matrices.size else 0.0


def jacobians(fn, shape, seed, box):
  """Points of several sizes, some with equal entries, and the matrices there."""
  rng = np.random.default_rng(seed + 2)
  if box is None:
    points = rng.standard_normal((N_POINTS, *shape))
    points *= np.resize([0.1, 1, 4], N_POINTS).reshape((-1,) + (1,) * len(shape))
  else:
    points = rng.uniform(*box, (N_POINTS, *shape))
  points[::4] = (
    points[::4].reshape((len(points[::4]), -1))[:, :1].reshape((-1,) + (1,) * len(shape))
  )
  points = jnp.asarray(points, jnp.float32)
  # JAX has no derivative of a scatter with a function: of that written out, if it is the same.
  traced = jax.make_jaxpr(fn)(points[0])
  alike = lambda x: evaluate(traced, [x])[0]
  values = [jax.jit(jax.vmap(f))(points) for f in (fn, alike)]
  np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-6)
  slopes = jax.jit(jax.vmap(jax.jacfwd(lambda x: alike(x).ravel())))(points)
  matrices = np.asarray(slopes, np.float64).reshape((N_POINTS, -1, math.prod(shape)))
  return np.asarray(points), np.nan_to_num(matrices)


def steepest_pair(fn, shape, seed, box):
  """The largest slope between two inputs near each other, along the steepest directions."""
  points, matrices = jacobians(fn, shape, seed, box)
  directions = np.linalg.svd(matrices)[2][:, 0].reshape(points.shape)
  value = jax.jit(jax.vmap(lambda x: fn(x).ravel()))
  found = 0.0
  for step in (0.1, 1e-2, 1e-3):
    ends = [np.asarray(points + sign * step * directions, np.float32) for sign in (-1, 1)]
    ends = [x if box is None else np.clip(x, *box) for x in ends]
    left, right = (np.asarray(value(x), np.float64) for x in ends)
    apart = np.linalg.norm((ends[1] - ends[0]).reshape((N_POINTS, -1)), axis=1)
    # Less what rounding can have made of it.
    moved = np.linalg.norm(right - left, axis=1) - 1e-6 * np.abs(left).max(initial=1)
    found = max(found, np.max(moved / np.maximum(apart, 1e-9)))
  return found


# ---- steps ----

FUNCTIONS = (
  jnp.tanh, jnp.sin, jax.nn.sigmoid, jax.nn.relu, jnp.abs, jax.nn.silu, jax.nn.softplus,
  jnp.arctan, lax.erf, jnp.exp, jnp.square, lambda x: 2.0**x, lambda x: x**3,
  lambda x: jnp.clip(x, -1, 2), lambda x: 1 / (1.5 + jnp.tanh(x)), lambda x: jnp.maximum(x, 0.3),
)  # fmt: skip


def _pick(rng, values):
  """A value, the last ones more often."""
  return values[max(len(values) - 1 - int(rng.geometric(0.5) - 1), 0)]


def _axis(rng, x):
  return int(rng.integers(x.ndim))


def _constant(rng, x):
  """Of the shape of x, or with axes of size 1 where x has more, or the reverse."""
  shape = [(n, 1, 3)[rng.integers(3)] if n == 1 else (n, 1)[rng.integers(2)] for n in x.shape]
  if rng.integers(4) == 0:
    shape = [2, *shape]
  return jnp.asarray(rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape), jnp.float32)


def _function(rng, values):
  return FUNCTIONS[rng.integers(len(FUNCTIONS))](_pick(rng, values))


def _with_constant(rng, values):
  x = _pick(rng, values)
  c = _constant(rng, x)
  return (
    lambda: x * c, lambda: x / c, lambda: x + c, lambda: c - x,
    lambda: jnp.maximum(x, c), lambda: jnp.minimum(c, x), lambda: jnp.where(c > 0, x, c),
  )[rng.integers(7)]()  # fmt: skip


def _fitting(rng, values):
  """Two values whose shapes broadcast."""
  a = _pick(rng, values)
  others = [b for b in values if _fits(a.shape, b.shape)]
  return a, others[rng.integers(len(others))]


def _fits(one, other):
  try:
    return np.prod(np.broadcast_shapes(one, other)) <= MOST_ENTRIES
  except ValueError:
    return False


def _of_two(rng, values):
  a, b = _fitting(rng, values)
  return (
    lambda: a + b, lambda: a - b, lambda: jnp.maximum(a, b), lambda: jnp.minimum(a, b),
    lambda: a * b, lambda: jnp.tanh(a) * jax.nn.sigmoid(b), lambda: jnp.tanh(a) / (2 + jnp.sin(b)),
    lambda: jnp.where(_constant(rng, a + b) > 0, a, b), lambda: jnp.where(a > 0, a, 0 * b),
    lambda: jnp.logaddexp(a, b), lambda: lax.clamp(-1.0, a + b, 1.0),
  )[rng.integers(11)]()  # fmt: skip


def _moved(rng, values):
  x = _pick(rng, values)
  if not x.ndim:
    return jnp.broadcast_to(x, (2, 3)[: rng.integers(3)])
  axis, n = _axis(rng, x), x.ndim
  order = tuple(int(i) for i in rng.permutation(n))
  where = rng.integers(-x.shape[axis], x.shape[axis], size=3)
  low, high, inner = rng.integers(-1, 2), rng.integers(0, 2), rng.integers(0, 2)
  padding = [(0, 0, 0)] * axis + [(int(low), int(high), int(inner))] + [(0, 0, 0)] * (n - axis - 1)
  sizes = tuple(x.shape[i] for i in order)
  return (
    lambda: jnp.transpose(x, order),
    lambda: lax.reshape(x, x.shape, dimensions=order),
    lambda: lax.reshape(x, (x.size,), dimensions=order),
    lambda: lax.reshape(x, sizes, dimensions=order),
    lambda: jnp.flip(x, axis),
    lambda: jnp.take(x, where, axis),
    lambda: x[(slice(None),) * axis + (slice(None, None, 2),)],
    lambda: jnp.expand_dims(x, axis),
    lambda: jnp.broadcast_to(x, (2, *x.shape)),
    lambda: jnp.concatenate([x, jnp.tanh(x)], axis),
    lambda: lax.pad(x, 0.5, padding),
    lambda: jnp.roll(x, 1, axis),
    lambda: jnp.tile(x, 2),
    lambda: lax.dynamic_slice_in_dim(x, int(rng.integers(4)), 1, axis),
  )[rng.integers(14)]()  # fmt: skip


def _written(rng, values):
  x = _pick(rng, values)
  if not x.ndim:
    return x
  where = rng.integers(-x.shape[0], x.shape[0] + 1, size=2)
  rows = jnp.sin(jnp.broadcast_to(x[:1], (2, *x.shape[1:])))
  mode = ("drop", "clip", "promise_in_bounds")[rng.integers(2)]
  at = x.at[where]
  return (
    lambda: at.set(rows, mode=mode), lambda: at.add(rows, mode=mode),
    lambda: at.max(rows, mode=mode), lambda: at.min(rows, mode=mode),
    lambda: at.subtract(rows, mode=mode), lambda: at.apply(lambda v: jnp.sin(3 * v), mode=mode),
    lambda: jnp.zeros_like(x).at[where].add(rows, mode=mode),
  )[rng.integers(7)]()  # fmt: skip


def _reduced(rng, values):
  x = _pick(rng, values)
  if not x.ndim:
    return x
  axis = _axis(rng, x)
  keep = bool(rng.integers(2))
  over = None if rng.integers(4) == 0 else axis
  return (
    lambda: jnp.sum(x, over, keepdims=keep), lambda: jnp.mean(x, over, keepdims=keep),
    lambda: jnp.max(x, over, keepdims=keep), lambda: jnp.sort(x, axis),
    lambda: jnp.cumsum(x, axis), lambda: lax.cummax(x, axis, reverse=keep),
    lambda: jax.nn.softmax(x, over), lambda: jax.nn.logsumexp(x, over, keepdims=keep),
    lambda: jax.nn.log_softmax(x, over), lambda: lax.cumlogsumexp(x, axis, reverse=keep),
    lambda: jax.nn.standardize(x, axis), lambda: x @ jnp.ones((x.shape[-1], 2)),
  )[rng.integers(12)]()  # fmt: skip


def _nearly(rng, values):
  """What looks like softmax, log-sum-exp or a normalization, with axes that may differ."""
  x = _pick(rng, values)
  if not x.ndim:
    return x
  a, b = _axis(rng, x), _axis(rng, x)
  top = jnp.max(x, a, keepdims=True)
  e = jnp.exp(x - top) if rng.integers(2) else jnp.exp(x)
  total = jnp.sum(e, b, keepdims=True)
  order = tuple(int(i) for i in rng.permutation(x.ndim))
  turned = lax.reshape(total, total.shape, dimensions=order)
  centered = x - jnp.mean(x, a, keepdims=True)
  scale = jnp.sqrt(jnp.mean(jnp.square(centered), b, keepdims=True) + 0.1)
  other = lax.reshape(scale, scale.shape, dimensions=order)
  return (
    lambda: e / total, lambda: e / turned, lambda: jnp.log(total) + top,
    lambda: jnp.log(turned) + top, lambda: x - jnp.log(jnp.sum(jnp.exp(x), b, keepdims=True)),
    lambda: x - jnp.log(turned), lambda: centered / scale, lambda: centered / other,
    lambda: centered * lax.rsqrt(jnp.square(other)), lambda: x / scale,
    lambda: e / jnp.broadcast_to(total, (2, *x.shape)), lambda: centered * (1 / scale),
  )[rng.integers(12)]()  # fmt: skip


def _masked(rng, values):
  """What leaves out terms, weighs them, or fills entries in."""
  x = _pick(rng, values)
  if not x.ndim:
    return x
  axis = _axis(rng, x)
  mask = jnp.asarray(rng.integers(0, 2, x.shape), bool)
  weights = jnp.asarray(rng.choice([0.0, 1e-2, 1.0, 30.0], x.shape), jnp.float32)
  where = rng.integers(-1, x.shape[axis] + 2, size=2)
  e = jnp.exp(x)
  inverse = jnp.ravel(1 / e.sum()).at[jnp.asarray(rng.integers(0, 3, x.size))]
  fill = inverse.get(mode="fill", fill_value=3.0).reshape(x.shape)
  shift = 0.1 * jnp.max(x, axis, keepdims=True)
  return (
    lambda: jax.nn.softmax(x, axis, where=mask), lambda: jax.nn.logsumexp(x, axis, where=mask),
    lambda: jax.nn.logsumexp(x, axis, b=weights), lambda: e * fill,
    lambda: jnp.take(x, where, axis, mode="fill", fill_value=2.0),
    lambda: jnp.log(jnp.sum(jnp.where(mask, e, 0), axis, keepdims=True) + 1e-3) + shift,
    lambda: jnp.where(mask, e, 0) / e.sum(axis, keepdims=True),
    lambda: e / jnp.where(mask, e, 0).sum(axis, keepdims=True),
    lambda: jnp.maximum(x, weights), lambda: jnp.clip(x, -weights, weights),
    lambda: jnp.where(x > 0, x, weights * x),
  )[rng.integers(11)]()  # fmt: skip


def _complex(rng, values):
  """A transform, something with a complex constant, and back to real numbers."""
  x = _pick(rng, values)
  if not x.ndim:
    return x
  axis, kind = _axis(rng, x), rng.integers(4)
  z = jnp.fft.rfft(x, axis=axis) if kind == 0 else jnp.fft.fft(x, axis=axis)
  parts = rng.uniform(-1, 1, (2, *z.shape))
  c = jnp.asarray(parts[0] + 1j * parts[1], jnp.complex64)
  w = jnp.asarray(rng.uniform(-1, 1, (z.shape[-1], 2)) + 1j, jnp.complex64)
  at, where = z.at[jnp.asarray(rng.integers(0, z.shape[0], 2))], rng.integers(0, 4, 2)
  z = (
    lambda: z * c, lambda: z + c, lambda: z - jnp.conj(z), lambda: z / (c + 2),
    lambda: jnp.concatenate([z, c], axis), lambda: at.set(c[:1]), lambda: at.add(z[:1]),
    lambda: jnp.where(c.real > 0, z, c), lambda: z @ w, lambda: jnp.cumsum(z, axis),
    lambda: jnp.take(z, where, axis, mode="fill", fill_value=1 + 2j), lambda: z.sum(axis),
    lambda: jnp.tanh(x) * z if kind else z, lambda: jnp.roll(z, 1, axis).T,
  )[rng.integers(14)]()  # fmt: skip
  last = z.shape[-1] if z.ndim else 0
  return (
    lambda: jnp.real(z), lambda: jnp.imag(z), lambda: jnp.abs(z),
    lambda: jnp.fft.ifft(z).real if last else jnp.real(z),
    lambda: jnp.fft.irfft(z, n=max(2 * last - 2, 1)) if last else jnp.imag(z),
  )[rng.integers(5)]()  # fmt: skip


STEPS = {
  f.__name__.strip("_"): f
  for f in (
    _function,
    _with_constant,
    _of_two,
    _moved,
    _written,
    _reduced,
    _nearly,
    _masked,
    _complex,
  )
}


def run(seeds, box=None):
  """How many of the programs had a bound."""
  return sum(map(functools.partial(check, box=box), seeds))
