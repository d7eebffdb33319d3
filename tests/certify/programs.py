"""Random programs: networks with branches, whose shapes are few so that little is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

ACTIVATIONS = (
  jax.nn.relu,
  jax.nn.leaky_relu,
  jax.nn.tanh,
  jax.nn.sigmoid,
  jax.nn.softplus,
  jax.nn.silu,
  jax.nn.gelu,
  jax.nn.elu,
  jnp.abs,
  jnp.sin,
)
IMAGE, VECTOR = (6, 6, 3), (8,)


@st.composite
def programs(draw):
  """A pair of a function and its input's shape."""
  is_image = draw(st.booleans())
  depth = draw(st.integers(1, 5))
  steps = [draw(_image_steps if is_image else _vector_steps) for _ in range(depth)]
  seed = draw(st.integers(0, 2**16))
  ends_in = draw(st.sampled_from(["dense", "mean", "softmax", "nothing"]))

  def program(x):
    rng = np.random.default_rng(seed)
    for name, option in steps:
      x = STEPS[name](rng, x, option)
    return ENDS[ends_in](rng, x)

  return program, IMAGE if is_image else VECTOR


def _normal(rng, *shape):
  return jnp.asarray(rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)


def _activation(rng, x, i):
  return ACTIVATIONS[i % len(ACTIVATIONS)](x)


def _dense(rng, x, i):
  n = x.shape[-1]
  return x @ (_normal(rng, n, n) * (1 + i % 3)) + 1


def _residual(rng, x, i):
  y = _activation(rng, _mixed(rng, x, i), i)
  return x + y if i % 2 else y - 0.5 * x


def _concatenate(rng, x, i):
  both = jnp.concatenate([x, _activation(rng, _mixed(rng, x, i), i)], axis=-1)
  return both @ _normal(rng, both.shape[-1], x.shape[-1])


def _maximum(rng, x, i):
  return jnp.maximum(x, _mixed(rng, x, i))


def _scan(rng, x, i):
  w = _normal(rng, 3, x.shape[-1], x.shape[-1])
  turn = lambda h, w: (ACTIVATIONS[i % 3](h @ w + x), h)
  last, hs = lax.scan(turn, jnp.zeros_like(x), w, reverse=bool(i % 2))
  return last + hs.sum(0)


def _scale(rng, x, i):
  return (x - 0.3) * jnp.asarray(rng.uniform(0.5, 2, x.shape[-1]), jnp.float32) / 1.5


def _sort(rng, x, i):
  return jnp.sort(x, axis=-1)[..., ::-1]


def _pieces(rng, x, i):
  return jnp.where(jnp.arange(x.shape[-1]) % 2 == 0, jnp.roll(x, 1, axis=-1), -x)


def _mixed(rng, x, i):
  return _convolution(rng, x, 0) if x.ndim == 3 else _dense(rng, x, i)


def _convolution(rng, x, i):
  kernel = _normal(rng, 3, 3, x.shape[-1], x.shape[-1])
  y = lax.conv_general_dilated(
    x[None],
    kernel,
    (1, 1),
    ("SAME", "VALID")[i % 2 if min(x.shape[:2]) > 3 else 0],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return y[0] * 2 - 0.1


def _max_pool(rng, x, i):
  return lax.reduce_window(
    x, -jnp.inf, lax.max, (2, 2, 1), (1, 1, 1) if i % 2 else (2, 2, 1), "SAME"
  )


def _average_pool(rng, x, i):
  return (
    lax.reduce_window(x, 0.0, lax.add, (2, 2, 1), (1, 1, 1) if i % 2 else (2, 2, 1), "SAME") / 4
  )


STEPS = {
  f.__name__.strip("_"): f
  for f in (
    _activation, _dense, _residual, _concatenate, _maximum, _scan, _scale, _sort, _pieces,
    _convolution, _max_pool, _average_pool,
  )
}  # fmt: skip
ENDS = {
  "dense": lambda rng, x: x.ravel() @ _normal(rng, x.size, 4),
  "mean": lambda rng, x: x.mean(axis=tuple(range(x.ndim - 1))) if x.ndim > 1 else x.mean(),
  "softmax": lambda rng, x: jax.nn.softmax(x, axis=-1),
  "nothing": lambda rng, x: x,
}
_options = st.integers(0, 11)
_vector_steps = st.tuples(
  st.sampled_from([s for s in STEPS if s not in ("convolution", "max_pool", "average_pool")]),
  _options,
)
_image_steps = st.tuples(st.sampled_from(list(STEPS)), _options)
