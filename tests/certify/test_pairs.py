"""Bounds of the differences of logits: above every Jacobian, and closer than √2 of one bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import FLOAT, X64, jacobian, normal

import lipjax
from lipjax.certify import maps
from lipjax.certify import pairs as module
from lipjax.certify.pairs import margin_upper_bounds

EPS = float(jnp.finfo(FLOAT).eps)
MANY = np.triu_indices(5, 1)


def mlp_params(seed, widths):
  keys = zip(range(10 * seed, 10 * seed + 9), widths[:-1], widths[1:], strict=False)
  return [(normal(k, (m, n), scale=(2 / m) ** 0.5), 0.1 * normal(k + 99, (n,))) for k, m, n in keys]


def mlp(params, x, activation=jax.nn.relu):
  for w, b in params[:-1]:
    x = activation(x @ w + b)
  return x @ params[-1][0] + params[-1][1]


class Net(nn.Module):
  """Two ways to the logits, and what is not a chain."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3))(x)
    x = nn.max_pool(nn.relu(nn.BatchNorm(use_running_average=True)(x)), (2, 2), (2, 2))
    x = x + nn.tanh(nn.Conv(4, (3, 3))(x))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


def linen():
  model, x = Net(), normal(3, (1, 8, 8, 2))
  return model, model.init(jax.random.key(0), x), x


def steepest_pairs(fn, x, n_points=8):
  """The largest norms of the gradients of f_i - f_j over points at several scales."""
  found = 0
  for k in range(n_points):
    j = jacobian(lambda x: fn(x).ravel(), normal(k, x.shape, scale=10.0 ** (k % 3 - 1)))
    found = np.maximum(found, np.linalg.norm(j[:, None] - j[None], axis=-1))
  return found


def check(fn, x, effort="default", **domain):
  """Pairs of bounds that are sound as far as points say, symmetric, and no worse than one."""
  pairs = np.asarray(margin_upper_bounds(fn, effort=effort, **domain)(x), np.float64)
  upper = float(lipjax.lipschitz_upper_bound(fn, effort=effort, **domain)(x))
  np.testing.assert_array_equal(pairs, pairs.T)
  np.testing.assert_array_equal(np.diag(pairs), 0)
  assert np.all(pairs <= 2**0.5 * upper * (1 + 1e-5))
  if not domain:
    assert np.all(pairs >= steepest_pairs(fn, x) * (1 - 8 * EPS))
  return pairs, upper


@pytest.mark.parametrize(
  ("widths", "activation"),
  [
    ((20, 16, 16, 16, 5), jax.nn.relu),
    pytest.param((6, 9, 5), jnp.tanh, marks=pytest.mark.slow),
    pytest.param((6, 9, 5), jax.nn.gelu, marks=pytest.mark.slow),
    ((6, 9, 5), lambda x: x),
  ],
)
def test_chains(widths, activation):
  params = mlp_params(0, widths)
  pairs, upper = check(lambda x: mlp(params, x, activation), jnp.zeros(widths[0], FLOAT))
  assert np.all(pairs[MANY] < 2**0.5 * upper)


@pytest.mark.slow
def test_a_network_of_linen_that_is_no_chain_under_jit():
  model, variables, x = linen()
  pairs, upper = check(lambda x: model.apply(variables, x), x)
  assert pairs[MANY].mean() < 0.8 * 2**0.5 * upper
  jitted = jax.jit(margin_upper_bounds(model.apply, argnums=1))(variables, x)
  np.testing.assert_allclose(jitted, pairs, rtol=1e-5)


V, W, LAST = normal(0, (6, 8)), normal(1, (6, 8), scale=3.0), normal(2, (8, 5))


@pytest.mark.thorough
@pytest.mark.parametrize(
  "fn",
  [
    lambda x: (jnp.tanh(x @ V) * jax.nn.sigmoid(x @ W)) @ LAST,
    pytest.param(lambda x: jax.nn.softmax(x @ W) @ LAST, marks=pytest.mark.slow),
  ],
)
def test_products_of_what_moves_are_not_split(fn):
  """A gate is a linear function and a rest, which may be larger than the whole."""
  check(fn, jnp.zeros(6, FLOAT))


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_linear_classifiers_are_exact(scale):
  w, b = normal(0, (5, 7), scale=scale), normal(1, (5,))
  exact = np.asarray(w, np.float64)
  truth = np.linalg.norm(exact[:, None] - exact[None], axis=-1)
  pairs = np.asarray(margin_upper_bounds(lambda x: w @ x + b)(jnp.zeros(7, FLOAT)), np.float64)
  assert np.all(pairs >= truth)
  np.testing.assert_allclose(pairs, truth, rtol=1e-5)


@pytest.mark.slow
def test_last_layers_that_nearly_agree():
  """Rounding of a difference is relative to the difference where one weight is the last."""
  params = mlp_params(1, (6, 9, 5))
  w, b = params[1]
  w = w.at[:, 1].set(w[:, 0] * (1 + 16 * EPS)).at[:, 3].set(w[:, 2])
  fn = lambda x: mlp([params[0], (w, b)], x)
  pairs, upper = check(fn, jnp.zeros(6, FLOAT))
  assert pairs[2, 3] == 0
  difference = np.linalg.norm(np.asarray(w, np.float64) @ np.eye(5)[0] * 16 * EPS)
  first = np.linalg.norm(np.asarray(params[0][0], np.float64), 2)
  assert 0 < pairs[0, 1] <= 1.1 * difference * first
  assert pairs[0, 2] > 0.1 * upper


@pytest.mark.slow
def test_the_last_layer_counts_where_liplt_is_worse():
  """Of deep networks LipLT's sum exceeds the product of the norms."""
  params = [(w / jnp.linalg.norm(w, 2), b) for w, b in mlp_params(0, (8,) * 9)]
  fn = lambda x: mlp(params, x) @ jnp.eye(8, 5, dtype=FLOAT)
  x = jnp.zeros(8, FLOAT)
  pairs, _ = check(fn, x, "fast")
  w = np.asarray(params[-1][0], np.float64)[:, :5]
  assert np.all(pairs <= np.linalg.norm(w[:, :, None] - w[:, None], axis=0) * 1.01 + 1e-6)


@pytest.mark.slow
def test_many_classes_and_large_maps_fall_back(monkeypatch):
  params = mlp_params(2, (6, 9, 5))
  fn = lambda x: mlp(params, x)
  x = jnp.zeros(6, FLOAT)
  pairs, _ = check(fn, x, "fast")
  monkeypatch.setattr(maps, "ROWS_UP_TO", 3)
  monkeypatch.setattr(module, "ROWS_UP_TO", 3)
  jax.clear_caches()
  none, upper = check(fn, x, "fast")
  jax.clear_caches()
  assert np.all(pairs <= none * (1 + 1e-6))
  np.testing.assert_allclose(none[MANY], 2**0.5 * upper, rtol=1e-4)


@pytest.mark.parametrize("domain", [{"radius": 0.1}, {"box": (0.0, 1.0)}])
@pytest.mark.slow
def test_domains(domain):
  params = mlp_params(3, (6, 9, 5))
  x = jnp.full(6, 0.5, FLOAT)
  fn = lambda x: mlp(params, x)
  pairs, _ = check(fn, x, **domain)
  assert np.all(pairs <= margin_upper_bounds(fn)(x) * (1 + 1e-5))
  for k in range(20):
    step = normal(k, (6,))
    y = x + 0.1 * step / jnp.linalg.norm(step)
    j = jacobian(fn, y)
    assert np.all(pairs >= np.linalg.norm(j[:, None] - j[None], axis=-1) * (1 - 8 * EPS))


def attacked(fn, x, radius, label, n_steps=50):
  """Projected gradient steps on the smallest margin, in the ball around x."""
  margin = lambda y: fn(y)[label] - jnp.max(jnp.where(jnp.arange(5) == label, -jnp.inf, fn(y)))
  step = jax.jit(jax.value_and_grad(margin))
  y, smallest = x, jnp.inf
  for _ in range(n_steps):
    value, slope = step(y)
    smallest = min(smallest, float(value))
    y = y - 0.2 * radius * slope / (jnp.linalg.norm(slope) + 1e-30)
    away = y - x
    y = x + away * jnp.minimum(1, radius / (jnp.linalg.norm(away) + 1e-30))
  return smallest


def test_radii_grow_and_no_attack_succeeds_within():
  params = mlp_params(4, (6, 16, 16, 5))
  fn = lambda x: mlp(params, x)
  x = normal(7, (6, 6), scale=2.0)
  pairs, upper = check(fn, x[0])
  logits = jax.vmap(fn)(x)
  of_one = np.asarray(lipjax.certified_radius(logits, upper))
  of_pairs = np.asarray(lipjax.certified_radius(logits, jnp.asarray(pairs, FLOAT)))
  assert np.all(of_pairs >= of_one * (1 - 1e-5))
  assert np.mean(of_pairs) > 1.2 * np.mean(of_one)
  for x_k, radius, label in zip(x, of_pairs, np.asarray(jnp.argmax(logits, -1)), strict=True):
    assert attacked(fn, x_k, float(radius), int(label)) > -1e-5
  # The attack is one: further out it succeeds.
  found = [
    attacked(fn, x_k, 20 * float(r), int(k)) < 0
    for x_k, r, k in zip(x, of_pairs, jnp.argmax(logits, -1), strict=True)
  ]
  assert np.mean(found) > 0.5


@pytest.mark.thorough
@pytest.mark.parametrize("effort", ["fast", pytest.param("default", marks=pytest.mark.slow)])
def test_gradients_in_the_parameters(effort):
  model, variables, x = linen()
  # Classes 0 and 1 are the same, where a norm has no derivative.
  kernel = variables["params"]["Dense_0"]["kernel"]
  variables["params"]["Dense_0"]["kernel"] = kernel.at[:, 1].set(kernel[:, 0])
  total = lambda v: jnp.sum(margin_upper_bounds(model.apply, 1, effort=effort)(v, x))
  for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(variables)):
    assert np.all(np.isfinite(leaf))


@pytest.mark.slow
def test_gradients_of_chains_are_directional_derivatives():
  params, directions = mlp_params(5, (4, 4, 3)), mlp_params(6, (4, 4, 3))
  # At the best multipliers the bound moves as it does with these ones kept.
  pairs = margin_upper_bounds(mlp, argnums=1, effort="tight")
  pair = jax.jit(lambda p: pairs(p, jnp.zeros(4, FLOAT))[1, 2])
  slope = sum(
    float(jnp.vdot(g, d))
    for g, d in zip(
      jax.tree.leaves(jax.jit(jax.grad(pair))(params)), jax.tree.leaves(directions), strict=True
    )
  )
  h = 1e-2
  above, below = (
    float(pair(jax.tree.map(lambda p, d: p + s * h * d, params, directions))) for s in (1, -1)
  )
  assert slope == pytest.approx((above - below) / (2 * h), rel=0.05, abs=0.05)


def test_degenerate_logits():
  x = jnp.ones(4, FLOAT)
  constant = margin_upper_bounds(lambda x: jnp.arange(3.0))(x)
  np.testing.assert_array_equal(constant, np.zeros((3, 3)))
  np.testing.assert_allclose(margin_upper_bounds(lambda x: 2 * x)(x)[0, 1], 8**0.5, rtol=1e-5)
  # A nonlinear function comes last.
  of_softmax = margin_upper_bounds(jax.nn.softmax)(x)
  np.testing.assert_allclose(of_softmax[0, 1], 0.5**0.5, rtol=1e-5)
  np.testing.assert_allclose(margin_upper_bounds(jnp.tanh)(x)[0, 1], 2**0.5, rtol=1e-5)
  bad = margin_upper_bounds(lambda x: x * jnp.array([1, jnp.nan, 1, 1]))(x)
  assert np.asarray(lipjax.certified_radius(x.at[0].set(2), bad)) == 0


@pytest.mark.thorough
def test_several_arguments_and_dtypes():
  w, v = normal(0, (3, 5)), normal(1, (4, 5))
  fn = lambda x, y: jnp.tanh(x["a"] @ w + y @ v)[None, None]
  args = {"a": jnp.zeros(3, FLOAT)}, jnp.zeros(4, FLOAT)
  pairs = margin_upper_bounds(fn, (0, 1))(*args)
  upper = lipjax.lipschitz_upper_bound(fn, (0, 1))(*args)
  assert np.all(pairs <= 2**0.5 * upper * (1 + 1e-5))
  of_halves = margin_upper_bounds(lambda x: x @ w.astype(jnp.bfloat16))(jnp.zeros(3, jnp.bfloat16))
  assert jnp.finfo(of_halves.dtype).bits >= 32
  exact = np.asarray(w.astype(jnp.bfloat16), np.float64)
  truth = np.linalg.norm(exact[:, :, None] - exact[:, None], axis=0)
  assert np.all(np.asarray(of_halves, np.float64) >= truth)
  np.testing.assert_allclose(of_halves, truth, rtol=1e-4 if X64 else 1e-5)


@pytest.mark.parametrize(
  ("fn", "message"),
  [
    (lambda x: (x, x), r"returned 2 arrays.*fn\(x\)\[0\]"),
    (lambda x: x.sum(), r"shape \(\).*classes"),
    (lambda x: jnp.stack([x, x]), r"shape \(2, 3\).*one example, not a batch"),
    (jnp.exp, "exp"),
  ],
)
def test_errors(fn, message):
  with pytest.raises(ValueError, match=message):
    margin_upper_bounds(fn)(jnp.zeros(3))
  with pytest.raises(ValueError, match="argnums"):
    margin_upper_bounds(fn, 1)(jnp.zeros(3))
