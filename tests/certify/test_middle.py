"""What is computed for the input in the middle of a domain, and how far off that may be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipjax
from lipjax.certify.compiled import on_arrays

WEIGHTS = {
  name: np.random.default_rng(i).normal(size=shape) / np.sqrt(shape[0])
  for i, (name, shape) in enumerate({"W": (6, 6), "V": (6, 40), "U": (40, 6)}.items())
}


def layer_norm(x):
  centered = x - x.mean(-1, keepdims=True)
  return centered / jnp.sqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-5)


def attention(x, W):
  scores = jax.nn.softmax((x @ W) @ x.T)
  return scores @ x


def doubled(x):
  for _ in range(6):
    x = x + x
  return x


def drifting(x, W):
  for k in range(4):
    x = 1.7 * (x @ W + 3.0) - k
  return x


CASES = {
  "a sum of itself": lambda x, **_: doubled(x / 3),
  "of its multiples": lambda x, **_: doubled(x / 3) + 3 * doubled(x / 3) - doubled(-x / 3),
  "shifts and scalings": lambda x, W, **_: drifting(x, W),
  "products": lambda x, V, U, **_: jax.nn.relu(x @ V) @ U @ V @ U,
  "the larger of two": lambda x, W, **_: jnp.maximum(3 * (x @ W), x / 7) @ W,
  "layer norms": lambda x, W, **_: layer_norm(100 + layer_norm(x) @ W),
  "far from the origin": lambda x, **_: layer_norm(x + 1e4),
  "attention": lambda x, W, **_: attention(attention(x, W), W),
  "gates": lambda x, W, **_: jax.nn.sigmoid(x @ W) * jnp.tanh(x @ W / 3) / (2 + x**2),
  "spectrum": lambda x, **_: jnp.abs(jnp.fft.rfft(x, axis=1)) / 3,
  "choices": lambda x, W, **_: jnp.where(jnp.eye(4, 6) > 0, x @ W, -(x / 3)) - x / 7,
  "large and small": lambda x, W, **_: (1e18 * (x @ W)) * 1e-19 + 1e-3 * x,
  "convolution": lambda x, W, **_: jax.lax.conv_general_dilated(
    x[None, None] / 3, jnp.stack([W, -W])[:, None, :3, :3], (1, 1), "SAME"
  ),
}


def middles(fn, dtype):
  """Value and error at every node that moves, in the order of the graph."""
  weights = {name: jnp.asarray(value.astype(np.float32), dtype) for name, value in WEIGHTS.items()}
  x = jnp.asarray(np.random.default_rng(9).normal(size=(4, 6)).astype(np.float32), dtype)

  def engine(graph, facts):
    return [x.middle for n, x in zip(graph.nodes, facts, strict=True) if n.moves and n.is_float]

  found = on_arrays(engine, lambda x: fn(x, **weights), 0, (x,), 1e-3, None)
  return [None if x is None else _arrays(x) for x in found[1]]


def _arrays(middle):
  """Value, error in l2 and errors of entries."""
  value, error, _, errors = middle
  errors = error if errors is None else errors
  return [np.asarray(part, np.float64) for part in (value, error, errors)]


@pytest.mark.parametrize("name", CASES)
def test_is_no_further_from_the_exact_value_than_it_says(name):
  with jax.enable_x64(False):
    found = middles(CASES[name], jnp.float32)
  with jax.enable_x64(True):
    exact = middles(CASES[name], jnp.float64)
  assert len(found) == len(exact)
  pairs = [pair for pair in zip(found, exact, strict=True) if pair[0] is not None]
  assert len(pairs) > 2
  for (value, error, errors), (truth, rest, rests) in pairs:
    assert np.linalg.norm(value - truth) <= error + rest
    assert np.all(abs(value - truth) <= errors + rests)
    assert np.isfinite(error)


def test_errors_grow_by_norms_and_not_by_those_of_magnitudes():
  """Of products with orthogonal matrices: by 1 each, where intervals grow by up to √n."""
  rng, n = np.random.default_rng(0), 32
  weights = [np.linalg.qr(rng.normal(size=(n, n)))[0].astype(np.float32) for _ in range(8)]
  with jax.enable_x64(False):
    x = jnp.asarray(rng.normal(size=n), jnp.float32)
    every = lambda graph, facts: [x.middle.error for x in facts if x.middle is not None]
    _, errors = on_arrays(
      every, lambda x: functools.reduce(jnp.matmul, weights, x), 0, (x,), 1, None
    )
  first, last = (float(errors[k]) for k in (2, -1))
  assert 0 < last < 10 * first


@pytest.mark.parametrize("name", ["products", "the larger of two", "layer norms", "gates"])
def test_ranges_hold_what_is_computed(name):
  """So that slopes on a range hold between that and the exact value."""
  weights = {name: jnp.asarray(value, jnp.float32) for name, value in WEIGHTS.items()}

  def engine(graph, facts):
    known = [x for x in facts if x.middle is not None and x.range is not None]
    inside = lambda x: (x.range.lower <= x.middle.value) & (x.middle.value <= x.range.upper)
    return [jnp.all(inside(x)) for x in known]

  x = jnp.ones((4, 6), jnp.float32) / 3
  assert all(on_arrays(engine, lambda x: CASES[name](x, **weights), 0, (x,), 1e-7, None)[1])


def test_float32_costs_little():
  """3 % for six residual layers with layer norms; with intervals it was orders of magnitude."""
  rng = np.random.default_rng(0)
  weights = [rng.normal(size=(2, 16, 16)).astype(np.float32) / 4 for _ in range(6)]

  def network(x):
    for a, b in weights:
      x = x + jnp.tanh(layer_norm(x) @ a.astype(x.dtype)) @ b.astype(x.dtype)
    return x

  bounds = []
  for is_wide in (False, True):
    with jax.enable_x64(is_wide):
      x = jnp.asarray(np.linspace(-1, 1, 16), jnp.float64 if is_wide else jnp.float32)
      bounds.append(float(lipjax.lipschitz_upper_bound(network, radius=1e-3, effort="fast")(x)))
  assert bounds[0] <= 1.05 * bounds[1]
