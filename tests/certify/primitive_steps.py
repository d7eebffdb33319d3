"""The steps that random programs are made of; each makes an array of those before it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from certify.record_examples import EXAMPLES
from jax import lax

#: Larger values are not kept.
MOST_ENTRIES = 64
#: All constants of a program are taken from so many numbers.
POOL = 512


class Draw:
  """What a program is made of: decisions by a seed, constants from an array."""

  def __init__(self, seed, pool):
    self.rng, self.pool, self.used = np.random.default_rng(seed), pool, 0

  def constant(self, shape):
    """Numbers from 0.5 to 2, of either sign."""
    start, size = self.used, math.prod(shape)
    self.used = (start + size) % (POOL - MOST_ENTRIES)
    return self.pool[start : start + size].reshape(shape)

  def among(self, *choices):
    """One of the functions, called."""
    return choices[self.rng.integers(len(choices))]()

  def int(self, *ends):
    return int(self.rng.integers(*ends))


FUNCTIONS = (
  jnp.tanh, jnp.sin, jax.nn.sigmoid, jax.nn.relu, jnp.abs, jax.nn.silu, jax.nn.softplus,
  jnp.arctan, lax.erf, jnp.exp, jnp.square, lambda x: 2.0**x, lambda x: x**3,
  lambda x: jnp.clip(x, -1, 2), lambda x: 1 / (1.5 + jnp.tanh(x)), lambda x: jnp.maximum(x, 0.25),
)  # fmt: skip


def _pick(draw, values):
  """A value, the last ones more often."""
  return values[max(len(values) - 1 - int(draw.rng.geometric(0.5) - 1), 0)]


def _axis(draw, x):
  return draw.int(x.ndim)


def _constant(draw, x):
  """Of the shape of x, or with axes of size 1 where x has more, or the reverse."""
  shape = [(n, 1, 3)[draw.int(3)] if n == 1 else (n, 1)[draw.int(2)] for n in x.shape]
  if draw.int(4) == 0 and 2 * math.prod(shape) <= MOST_ENTRIES:
    shape = [2, *shape]
  return draw.constant(shape)


def _function(draw, values):
  return FUNCTIONS[draw.int(len(FUNCTIONS))](_pick(draw, values))


def _with_constant(draw, values):
  x = _pick(draw, values)
  c = _constant(draw, x)
  return draw.among(
    lambda: x * c, lambda: x / c, lambda: x + c, lambda: c - x,
    lambda: jnp.maximum(x, c), lambda: jnp.minimum(c, x), lambda: jnp.where(c > 0, x, c),
  )  # fmt: skip


def _fitting(draw, values):
  """Two values whose shapes broadcast."""
  a = _pick(draw, values)
  others = [b for b in values if _fits(a.shape, b.shape)]
  return a, others[draw.rng.integers(len(others))]


def _fits(one, other):
  try:
    return np.prod(np.broadcast_shapes(one, other)) <= MOST_ENTRIES
  except ValueError:
    return False


def _of_two(draw, values):
  a, b = _fitting(draw, values)
  return draw.among(
    lambda: a + b, lambda: a - b, lambda: jnp.maximum(a, b), lambda: jnp.minimum(a, b),
    lambda: a * b, lambda: jnp.tanh(a) * jax.nn.sigmoid(b), lambda: jnp.tanh(a) / (2 + jnp.sin(b)),
    lambda: jnp.where(_constant(draw, a + b) > 0, a, b), lambda: jnp.where(a > 0, a, 0 * b),
    lambda: jnp.logaddexp(a, b), lambda: lax.clamp(-1.0, a + b, 1.0),
  )  # fmt: skip


def _moved(draw, values):
  x = _pick(draw, values)
  if not x.ndim:
    return jnp.broadcast_to(x, (2, 3)[: draw.rng.integers(3)])
  axis, n = _axis(draw, x), x.ndim
  order = tuple(int(i) for i in draw.rng.permutation(n))
  where = draw.rng.integers(-x.shape[axis], x.shape[axis], size=3)
  low, high, inner = draw.rng.integers(-1, 2), draw.rng.integers(0, 2), draw.rng.integers(0, 2)
  padding = [(0, 0, 0)] * axis + [(int(low), int(high), int(inner))] + [(0, 0, 0)] * (n - axis - 1)
  sizes = tuple(x.shape[i] for i in order)
  return draw.among(
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
    lambda: lax.dynamic_slice_in_dim(x, int(draw.rng.integers(4)), 1, axis),
  )  # fmt: skip


def _written(draw, values):
  x = _pick(draw, values)
  if not x.ndim:
    return x
  where = draw.rng.integers(-x.shape[0], x.shape[0] + 1, size=2)
  rows = jnp.sin(jnp.broadcast_to(x[:1], (2, *x.shape[1:])))
  mode = ("drop", "clip")[draw.int(2)]
  at = x.at[where]
  return draw.among(
    lambda: at.set(rows, mode=mode), lambda: at.add(rows, mode=mode),
    lambda: at.max(rows, mode=mode), lambda: at.min(rows, mode=mode),
    lambda: at.subtract(rows, mode=mode), lambda: at.apply(lambda v: jnp.sin(3 * v), mode=mode),
    lambda: jnp.zeros_like(x).at[where].add(rows, mode=mode),
  )  # fmt: skip


def _reduced(draw, values):
  x = _pick(draw, values)
  if not x.ndim:
    return x
  axis = _axis(draw, x)
  keep = bool(draw.rng.integers(2))
  over = None if draw.rng.integers(4) == 0 else axis
  return draw.among(
    lambda: jnp.sum(x, over, keepdims=keep), lambda: jnp.mean(x, over, keepdims=keep),
    lambda: jnp.max(x, over, keepdims=keep), lambda: jnp.sort(x, axis),
    lambda: jnp.cumsum(x, axis), lambda: lax.cummax(x, axis, reverse=keep),
    lambda: jax.nn.softmax(x, over), lambda: jax.nn.logsumexp(x, over, keepdims=keep),
    lambda: jax.nn.log_softmax(x, over), lambda: lax.cumlogsumexp(x, axis, reverse=keep),
    lambda: jax.nn.standardize(x, axis), lambda: x @ jnp.ones((x.shape[-1], 2)),
  )  # fmt: skip


def _nearly(draw, values):
  """What looks like softmax, log-sum-exp or a normalization, with axes that may differ."""
  x = _pick(draw, values)
  if not x.ndim:
    return x
  a, b = _axis(draw, x), _axis(draw, x)
  top = jnp.max(x, a, keepdims=True)
  e = jnp.exp(x - top) if draw.rng.integers(2) else jnp.exp(x)
  total = jnp.sum(e, b, keepdims=True)
  order = tuple(int(i) for i in draw.rng.permutation(x.ndim))
  turned = lax.reshape(total, total.shape, dimensions=order)
  centered = x - jnp.mean(x, a, keepdims=True)
  scale = jnp.sqrt(jnp.mean(jnp.square(centered), b, keepdims=True) + 0.1)
  other = lax.reshape(scale, scale.shape, dimensions=order)
  return draw.among(
    lambda: e / total, lambda: e / turned, lambda: jnp.log(total) + top,
    lambda: jnp.log(turned) + top, lambda: x - jnp.log(jnp.sum(jnp.exp(x), b, keepdims=True)),
    lambda: x - jnp.log(turned), lambda: centered / scale, lambda: centered / other,
    lambda: centered * lax.rsqrt(jnp.square(other)), lambda: x / scale,
    lambda: e / jnp.broadcast_to(total, (2, *x.shape)), lambda: centered * (1 / scale),
  )  # fmt: skip


def _masked(draw, values):
  """What leaves out terms, weighs them, or fills entries in."""
  x = _pick(draw, values)
  if not x.ndim:
    return x
  axis = _axis(draw, x)
  mask = jnp.asarray(draw.rng.integers(0, 2, x.shape), bool)
  weights = jnp.asarray(draw.rng.choice([0.0, 1e-2, 1.0, 30.0], x.shape), x.dtype)
  where = draw.rng.integers(-1, x.shape[axis] + 2, size=2)
  e = jnp.exp(x)
  inverse = jnp.ravel(1 / e.sum()).at[jnp.asarray(draw.rng.integers(0, 3, x.size))]
  fill = inverse.get(mode="fill", fill_value=3.0).reshape(x.shape)
  shift = 0.1 * jnp.max(x, axis, keepdims=True)
  return draw.among(
    lambda: jax.nn.softmax(x, axis, where=mask), lambda: jax.nn.logsumexp(x, axis, where=mask),
    lambda: jax.nn.logsumexp(x, axis, b=weights), lambda: e * fill,
    lambda: jnp.take(x, where, axis, mode="fill", fill_value=2.0),
    lambda: jnp.log(jnp.sum(jnp.where(mask, e, 0), axis, keepdims=True) + 1e-3) + shift,
    lambda: jnp.where(mask, e, 0) / e.sum(axis, keepdims=True),
    lambda: e / jnp.where(mask, e, 0).sum(axis, keepdims=True),
    lambda: jnp.maximum(x, weights), lambda: jnp.clip(x, -weights, weights),
    lambda: jnp.where(x > 0, x, weights * x),
  )  # fmt: skip


def _complex(draw, values):
  """A transform, something with a complex constant, and back to real numbers."""
  x = _pick(draw, values)
  if not x.ndim:
    return x
  axis, kind = _axis(draw, x), draw.rng.integers(4)
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  z = jnp.fft.rfft(x, axis=axis) if kind == 0 else jnp.fft.fft(x, axis=axis)
  parts = draw.rng.uniform(-1, 1, (2, *z.shape))
  c = jnp.asarray(parts[0] + 1j * parts[1], jnp.complex64)
  w = jnp.asarray(draw.rng.uniform(-1, 1, (z.shape[-1], 2)) + 1j, jnp.complex64)
  at, where = z.at[jnp.asarray(draw.rng.integers(0, z.shape[0], 2))], draw.rng.integers(0, 4, 2)
  z = draw.among(
    lambda: z * c, lambda: z + c, lambda: z - jnp.conj(z), lambda: z / (c + 2),
    lambda: jnp.concatenate([z, c], axis), lambda: at.set(c[:1]), lambda: at.add(z[:1]),
    lambda: jnp.where(c.real > 0, z, c), lambda: z @ w, lambda: jnp.cumsum(z, axis),
    lambda: jnp.take(z, where, axis, mode="fill", fill_value=1 + 2j), lambda: z.sum(axis),
    lambda: jnp.tanh(x) * z if kind else z, lambda: jnp.roll(z, 1, axis).T,
  )  # fmt: skip
  last = z.shape[-1] if z.ndim else 0
  return draw.among(
    lambda: jnp.real(z), lambda: jnp.imag(z), lambda: jnp.abs(z),
    lambda: jnp.fft.ifft(z).real if last else jnp.real(z),
    lambda: jnp.fft.irfft(z, n=max(2 * last - 2, 1)) if last else jnp.imag(z),
  )  # fmt: skip


def _windowed(draw, values):
  """A convolution, or a reduction over windows, with anything that these can have."""
  x = _pick(draw, values).ravel()
  batch, channels = (1, 2)[draw.int(2)], (1, 2)[draw.int(2)]
  x = jnp.resize(x, (batch, max(x.size // (batch * channels), 1), channels))
  stride, inner, outer, k = (draw.int(1, 3) for _ in range(4))
  pads = [(draw.int(-1, 3), draw.int(0, 3))]
  name, n = (("feature_group_count", channels), ("batch_group_count", batch))[draw.int(2)]
  groups = {name: n}
  per_group = channels // groups.get("feature_group_count", 1)
  n_out = 2 * max(groups.values())
  window, steps = (1, k + 1, 1), (1, stride, 1)
  spread = {"base_dilation": (1, inner, 1), "window_dilation": (1, outer, 1)}
  windows = lambda init, op: lax.reduce_window(
    x, jnp.asarray(init, x.dtype), op, window, steps, [(0, 0), (draw.int(2), 1), (0, 0)], **spread
  )
  kernel, plain = draw.constant((k, per_group, n_out)), draw.constant((k, channels, 2))
  how = {"lhs_dilation": (inner,), "rhs_dilation": (outer,), **groups}
  numbers = ("NWC", "WIO", "NWC")
  return draw.among(
    lambda: lax.conv_general_dilated(x, kernel, (stride,), pads, dimension_numbers=numbers, **how),
    lambda: lax.conv_general_dilated(x, plain, (stride,), "SAME", dimension_numbers=numbers),
    lambda: windows(0, lax.add), lambda: jnp.tanh(windows(-1e3, lax.max)),
    lambda: jnp.tanh(windows(1e3, lax.min)),
  )  # fmt: skip


def _contracted(draw, values):
  """Products with constants and with another value, over any axes."""
  x = _pick(draw, values)
  if not x.ndim:
    return x
  axis, last = _axis(draw, x), x.shape[-1]
  c = draw.constant((x.shape[axis], 2))
  batched = draw.constant((*x.shape[:1], x.shape[axis], 2))
  y = jnp.tanh(_pick(draw, values).ravel()[:1])
  wide = np.float32 if draw.int(2) else None
  rows = x.reshape((-1, last))
  over = ((axis,), (0,))
  return draw.among(
    lambda: jnp.tensordot(x, c, (axis, 0)), lambda: jnp.tensordot(c, x, (0, axis)),
    lambda: lax.dot_general(x, c, (over, ((), ())), preferred_element_type=wide),
    lambda: lax.dot_general(x, batched, (((axis,), (1,)), ((0,), (0,)))) if axis else x * y,
    lambda: rows @ rows.T, lambda: jnp.einsum("ab,cb->b", rows, jnp.sin(rows)),
    lambda: jnp.cross(jnp.resize(x, (2, 3)), draw.constant((3,))), lambda: jnp.outer(y, x),
  )  # fmt: skip


def _ordered(draw, values):
  """What sorts, or runs along an axis."""
  x = _pick(draw, values)
  if not x.ndim:
    return x
  axis, reverse = _axis(draw, x), bool(draw.int(2))
  keys = draw.constant(x.shape)
  return draw.among(
    lambda: lax.sort((x, keys), dimension=axis, num_keys=1)[0],
    lambda: lax.sort((keys, x), dimension=axis, num_keys=1)[1],
    lambda: lax.sort((x, jnp.sin(x)), dimension=axis, num_keys=2)[0],
    lambda: lax.top_k(x, 1)[0], lambda: -jnp.sort(-x, axis), lambda: jnp.median(x, axis),
    lambda: jnp.quantile(x, 0.25, axis), lambda: jnp.prod(jnp.tanh(x), axis),
    lambda: lax.cumprod(jnp.sin(x), axis, reverse), lambda: lax.cummin(x, axis, reverse),
    lambda: lax.cumsum(x, axis, reverse),
    lambda: jnp.take_along_axis(x, jnp.argsort(keys, axis), axis),
    lambda: jnp.diff(x, axis=axis), lambda: jnp.min(x, axis), lambda: jnp.ptp(x, axis),
  )  # fmt: skip


def _indexed(draw, values):
  """Gathers, scatters and slices with batches, windows and places off the end."""
  x = _pick(draw, values)
  if not x.ndim:
    return x
  last, first = x.shape[-1], x.shape[0]
  rows = x.reshape((-1, last))
  places = jnp.asarray(draw.rng.integers(-last, last, (len(rows), 2)))
  flat = jnp.asarray(draw.rng.integers(-last - 1, last + 1, 2))
  new = jnp.tanh(rows[:, :1])
  start = draw.int(-first - 1, first + 2)
  return draw.among(
    lambda: jax.vmap(lambda row, i: row[i])(rows, places),
    lambda: jax.vmap(lambda row, i, v: row.at[i].add(v))(rows, places, new),
    lambda: jax.vmap(lambda row, i, v: row.at[i].set(v[0]))(rows, places, new),
    lambda: jax.vmap(lambda i, v: rows.at[0, i].multiply(v[0]))(flat, jnp.resize(new, (2, 1))),
    lambda: rows[:, flat], lambda: rows[jnp.asarray([0, -1])[:, None], flat],
    lambda: lax.dynamic_slice(rows, (start, 1), (1, last)),
    lambda: lax.dynamic_update_slice(x, jnp.sin(x[:1]), (start,) + (0,) * (x.ndim - 1)),
    lambda: lax.dynamic_index_in_dim(x, start, 0, keepdims=False),
    lambda: x.at[..., flat].apply(jnp.sin), lambda: x.at[..., ::2].set(0.5),
    lambda: jnp.stack(jnp.split(x, first)), lambda: jnp.concatenate([x, 2 * x])[::-2],
    lambda: x.at[flat[0]].min(jnp.cos(x[0])), lambda: jnp.tril(rows), lambda: jnp.diagonal(rows),
  )  # fmt: skip


def _looped(draw, values):
  """Loops and branches, and functions with their own derivatives."""
  x = _pick(draw, values)
  if not x.ndim:
    return x
  c, reverse = draw.constant(x.shape), bool(draw.int(2))
  loud = jax.custom_jvp(jnp.sin)
  loud.defjvp(lambda primals, tangents: (loud(*primals), 0 * tangents[0]))
  body = lambda carry, row: (jnp.tanh(carry * row[1] + row[0]), carry + row[0])
  scanned = lambda which: lax.scan(body, jnp.zeros_like(x[0]), (x, c), reverse=reverse)[which]
  return draw.among(
    lambda: scanned(0), lambda: scanned(1), lambda: lax.map(jnp.tanh, x),
    lambda: lax.fori_loop(0, 3, lambda i, v: jnp.sin(v) + x[i % len(x)], x),
    lambda: lax.fori_loop(0, 2, lambda i, v: v.at[i].set(jnp.tanh(v[0])), x),
    lambda: lax.cond(reverse, jnp.sin, jnp.tanh, x),
    lambda: lax.switch(draw.int(5), [jnp.sin] * 3, x),
    lambda: jax.checkpoint(jnp.tanh)(x), lambda: loud(x) + lax.stop_gradient(jnp.tanh(x)),
    lambda: lax.associative_scan(jnp.add, x, reverse=reverse), lambda: jax.jit(jnp.sin)(x * c),
    lambda: jax.grad(lambda v: jnp.sum(jax.nn.softplus(v * c)))(x),
  )  # fmt: skip


def _solved(draw, values):
  """A linear system with a constant matrix."""
  x = _pick(draw, values)
  x = jnp.resize(x, (2, 2)).astype(jnp.promote_types(x.dtype, jnp.float32))
  matrix = jnp.eye(2) * 3 + draw.constant((2, 2)).astype(x.dtype)
  flags = [bool(draw.int(2)) for _ in range(4)]
  names = ("left_side", "lower", "transpose_a", "unit_diagonal")
  return draw.among(
    lambda: lax.linalg.triangular_solve(matrix, x, **dict(zip(names, flags, strict=True))),
    lambda: jnp.linalg.solve(matrix, x),
  )


def _normed(draw, values):
  """Norms and quotients by them."""
  x = _pick(draw, values)
  if not x.ndim:
    return x
  axis = (*range(x.ndim), None)[draw.int(x.ndim + 1)]
  norm = jnp.linalg.norm(x if axis is not None else x.ravel(), axis=axis, keepdims=axis is not None)
  c = draw.constant(norm.shape)
  mean = x.mean(axis, keepdims=True)
  return draw.among(
    lambda: norm, lambda: x / (norm + 0.5), lambda: x / jnp.maximum(norm, 0.25),
    lambda: x / jnp.sqrt(jnp.sum(x**2, axis, keepdims=True) + 0.5), lambda: jnp.std(x, axis),
    lambda: (x - mean) / (norm + 0.5), lambda: x / (norm + jnp.abs(c)), lambda: jnp.hypot(x, 2 * x),
    lambda: (x - mean) * lax.rsqrt(x.var(axis, keepdims=True) + 0.25),
    lambda: jnp.sqrt(jnp.sum((x - c) ** 2, axis)), lambda: x / (jnp.max(jnp.abs(x)) + 0.5),
  )  # fmt: skip


def _recorded(draw, values):
  """The example of a record."""
  x = _pick(draw, values)
  return EXAMPLES[draw.int(len(EXAMPLES))](jnp.resize(x, (2, 3)))


STEPS = (
    _function, _with_constant, _of_two, _moved, _written, _reduced, _nearly, _masked, _complex,
    _windowed, _contracted, _ordered, _indexed, _looped, _solved, _normed, _recorded, _recorded,
)  # fmt: skip
