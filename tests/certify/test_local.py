"""Bounds on balls and boxes, and what is Lipschitz there alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import Primitive
from marks import thorough

import lipjax
from lipjax.certify import maps, matrix
from lipjax.certify.lipschitz import bounds_by_engine


def largest_slope(fn, x, radius, n=12):
  """The largest norm of the Jacobian at points of a ball."""
  jacobian = jax.jit(jax.jacrev(lambda x: fn(x).ravel()))
  found = 0.0
  for i in range(n):
    away = jax.random.normal(jax.random.key(i), x.shape)
    away = away / jnp.linalg.norm(away) * radius * (i % 4) / 3
    matrix = np.asarray(jacobian(x + away), np.float64).reshape((-1, x.size))
    found = max(found, float(np.linalg.norm(matrix, 2)))
  return found


class Dense(nn.Module):
  activation: object = nn.relu

  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = self.activation(nn.Dense(12)(x))
    return nn.Dense(3)(x)


class Convolutional(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.max_pool(nn.silu(nn.Conv(3, (3, 3))(x)), (2, 2), (2, 2))
    x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(3, (3, 3))(x))) + x[..., :1]
    return nn.Dense(3)(x.reshape((x.shape[0], -1)))


class Attention(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.MultiHeadDotProductAttention(2)(x)


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
    return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))


NORMALIZATIONS = {
  "layer": nn.LayerNorm(),
  "two passes": nn.LayerNorm(use_fast_variance=False),
  "rms": nn.RMSNorm(),
  "group": nn.GroupNorm(num_groups=2),
  "no scale": nn.LayerNorm(use_scale=False, use_bias=False),
}
NETWORKS = {
  "relu": (Dense(), (6,)),
  "gelu": (Dense(nn.gelu), (6,)),
  "tanh": (Dense(jnp.tanh), (6,)),
  "convolutional": (Convolutional(), (1, 6, 6, 2)),
  "attention": (Attention(), (4, 8)),
  **{name: (module, (3, 8)) for name, module in NORMALIZATIONS.items()},
}


def applied(module, shape, seed=0):
  x = jax.random.normal(jax.random.key(seed + 1), shape)
  variables = module.init(jax.random.key(seed), x)
  noise = lambda w: w + 0.3 * jax.random.normal(jax.random.key(seed + 2), w.shape)
  variables = {**variables, "params": jax.tree.map(noise, variables.get("params", {}))}
  return (lambda x: module.apply(variables, x)), x


@pytest.mark.parametrize(
  "name",
  [
    "layer",
    thorough("attention"),
    *(pytest.param(x, marks=pytest.mark.slow) for x in NETWORKS if x not in ("attention", "layer")),
  ],
)
def test_bounds_on_balls(name):
  module, shape = NETWORKS[name]
  fn, x = applied(module, shape)
  for radius in (0.0, 0.3, 3.0):
    upper = float(lipjax.lipschitz_upper_bound(fn, radius=radius)(x))
    assert largest_slope(fn, x, radius) <= upper * (1 + 1e-5)
    if radius == 0 and name != "convolutional":
      # Slopes are known in cells of 1/32, which is what is lost; at pooling it is more.
      assert upper <= 1.2 * largest_slope(fn, x, 0)


def test_no_matrix_of_a_small_node(monkeypatch):
  """From more inputs than a matrix may have entries: norms multiply."""
  w = jax.random.normal(jax.random.key(0), (7, 13))
  fn = lambda x: jax.nn.relu(w @ jnp.tanh(x))
  monkeypatch.setattr(maps, "ENTRIES_UP_TO", 90)
  x = jnp.zeros(13)
  upper = float(lipjax.lipschitz_upper_bound(fn, radius=0.1)(x))
  assert largest_slope(fn, x, 0.1) <= upper <= float(jnp.linalg.norm(w, 2)) * 1.01


@pytest.mark.thorough
def test_what_cancels_on_a_box():
  """Sums and differences that give back each input: neither intervals nor l2 see how near it is."""
  n, r = 16, 0.1
  q = jnp.asarray(np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0], jnp.float32)
  fn = lambda x: jax.nn.relu(q.T @ (jax.nn.relu(q @ x + 9) - 9) - 1.01 * r)
  assert float(lipjax.lipschitz_upper_bound(fn, box=(-r, r))(jnp.zeros(n))) == 0
  assert float(lipjax.lipschitz_upper_bound(fn, box=(-1.02 * r, r * 1.02))(jnp.zeros(n))) > 0.9


@pytest.mark.slow
def test_matrices_too_large_to_keep(monkeypatch):
  """Measured one by one they say the same; where there are none, norms multiply."""
  a, b = (jax.random.normal(jax.random.key(i), (4, 4)) for i in range(2))
  fn = lambda x: x + b @ jnp.tanh(a @ x) + jnp.tanh(b @ jnp.tanh(a @ x))
  bound = lambda: float(lipjax.lipschitz_upper_bound(fn, radius=0.1)(jnp.ones(4)))
  stacked = bound()
  monkeypatch.setattr(matrix, "STACKED_UP_TO", 0)
  jax.clear_caches()
  assert bound() == pytest.approx(stacked, rel=1e-5)
  monkeypatch.setattr(maps, "ENTRIES_UP_TO", 0)
  jax.clear_caches()
  assert stacked < bound() < 10 * stacked


@pytest.mark.slow
def test_bounds_grow_up_to_the_global_one():
  fn, x = applied(*NETWORKS["relu"])
  everywhere = float(lipjax.lipschitz_upper_bound(fn)(x))
  bounds = [float(lipjax.lipschitz_upper_bound(fn, radius=r)(x)) for r in (1e-3, 0.1, 1e3)]
  assert bounds[0] < bounds[1] <= bounds[2] * 1.001
  assert bounds[2] == pytest.approx(everywhere, rel=1e-2)


@pytest.mark.slow
def test_a_transformer_block_in_float64():
  with jax.enable_x64(True):
    fn, x = applied(Block(), (4, 8))
    fn64 = lambda x: fn(x.astype(jnp.float64))
    x = x.astype(jnp.float64)
    for radius in (0.0, 1e-3, 1e-2):
      upper = float(lipjax.lipschitz_upper_bound(fn64, radius=radius)(x))
      found = largest_slope(fn64, x, radius, n=4)
      assert found <= upper * (1 + 1e-5)
      if radius < 1e-2:
        assert upper <= 3 * found


@pytest.mark.thorough
def test_boxes():
  square = lambda x: x**2
  assert float(lipjax.lipschitz_upper_bound(square, box=(-1, 3))(jnp.ones(4))) == pytest.approx(
    6, rel=2e-2
  )
  bounds = lipjax.lipschitz_bounds(lambda x: jnp.exp(x[0]) / x[1], box=(1.0, 2.0))(jnp.ones(2))
  # The gradient (eˣ/y, -eˣ/y²) is largest at x = 2, y = 1.
  truth = np.exp(2) * np.sqrt(2)
  assert truth * 0.95 <= bounds.lower <= truth * (1 + 1e-5)
  assert truth <= bounds.upper <= 3 * truth


def test_the_lower_end_stays_in_the_domain():
  fn = lambda x: jnp.exp(x).sum()
  bounds = lipjax.lipschitz_bounds(fn, radius=0.5)(jnp.zeros(3))
  truth = np.sqrt(3) * np.exp(0.5 / np.sqrt(3))  # about: the steepest point of the ball
  assert bounds.lower <= bounds.upper
  assert bounds.lower == pytest.approx(truth, rel=0.05)


def test_layer_norm_everywhere():
  fn, x = applied(nn.LayerNorm(epsilon=1e-2, use_scale=False, use_bias=False), (3, 8))
  assert float(lipjax.lipschitz_upper_bound(fn)(x)) == pytest.approx(10, rel=1e-3)
  assert largest_slope(fn, jnp.ones_like(x), 1e-5) == pytest.approx(10, rel=1e-2)


@pytest.mark.parametrize(
  "fn",
  [
    lambda x: (x - x.mean(1, keepdims=True)) * jax.lax.rsqrt(x.var(0, keepdims=True) + 1),
    lambda x: (x - x.mean(0, keepdims=True)) * jax.lax.rsqrt(x.var(1, keepdims=True) + 1),
    lambda x: x * jax.lax.rsqrt(x.var(1, keepdims=True) + 1),
    lambda x: x * jax.lax.rsqrt((x[::-1] ** 2).mean(1, keepdims=True) + 1),
    lambda x: (x - x.mean(1, keepdims=True)) * jax.lax.rsqrt((2 * x).var(1, keepdims=True) - 1),
    lambda x: x * jax.lax.rsqrt((x**2).mean(1, keepdims=True)),
  ],
  ids=["other axes", "other axes too", "not centered", "reversed", "negative", "no epsilon"],
)
def test_what_only_looks_like_a_normalization_is_none(fn):
  try:
    upper = float(lipjax.lipschitz_upper_bound(fn)(jnp.ones((3, 4))))
  except lipjax.CertifyError:
    return
  assert upper == np.inf


@pytest.mark.thorough
def test_normalizations_written_otherwise():
  eps = 1e-3
  rows = lambda x: x.reshape((4, 2, 3))
  fns = [
    lambda x: (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + eps),
    lambda x: jax.nn.standardize(x, epsilon=eps),
    lambda x: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + eps),
    lambda x: (
      (rows(x) - rows(x).mean(-1)[..., None])
      * jax.lax.rsqrt(jnp.square(rows(x)).mean(-1) - rows(x).mean(-1) ** 2 + eps)[..., None]
    ),
  ]
  for fn in fns:
    upper = float(lipjax.lipschitz_upper_bound(fn)(jnp.zeros((4, 6))))
    assert upper == pytest.approx(eps**-0.5, rel=1e-4)
    x = jax.random.normal(jax.random.key(0), (4, 6))
    local = float(lipjax.lipschitz_upper_bound(fn, radius=1e-3)(x))
    assert largest_slope(fn, x, 1e-3) <= local <= 1.2 * largest_slope(fn, x, 1e-3)


def test_attention_raises_everywhere_and_says_what_to_do():
  fn, x = applied(Attention(), (4, 8))
  with pytest.raises(lipjax.CertifyError, match=r"dot_general.*test_local.py|dot_general.*radius"):
    lipjax.lipschitz_upper_bound(fn)(x)


@pytest.mark.thorough
def test_local_bounds_are_jittable_and_differentiable():
  module = Dense(nn.gelu)
  x = jax.random.normal(jax.random.key(1), (6,))
  params = module.init(jax.random.key(0), x)
  upper = lambda p, x, r: lipjax.lipschitz_upper_bound(module.apply, 1, radius=r)(p, x)
  eager = upper(params, x, 0.1)
  value, grads = jax.jit(jax.value_and_grad(upper))(params, x, 0.1)
  assert float(value) == pytest.approx(float(eager), rel=1e-5)
  assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
  assert any(bool(jnp.any(g != 0)) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
  "options", [{"radius": -1.0}, {"radius": np.nan}, {"box": (1, 0)}, {"box": (0, np.inf)}]
)
def test_domains_that_are_none(options):
  with pytest.raises(lipjax.CertifyError, match=r"radius|box"):
    lipjax.lipschitz_upper_bound(jnp.tanh, **options)(jnp.ones(2))


def test_a_primitive_that_is_called_max_is_not_taken_for_it():
  primitive = Primitive("max")
  primitive.def_abstract_eval(lambda x, y: x)
  primitive.def_impl(lambda x, y: 9 * x)

  @lipjax.register_rule(primitive)
  def rule(eqn, x, y):
    return lipjax.lipschitz_node(eqn.outvars[0].aval, [x], [9.0])

  fn = lambda x: primitive.bind(x, 1.0) ** 2
  with pytest.raises(lipjax.CertifyError):
    lipjax.lipschitz_upper_bound(fn, radius=0.1)(jnp.ones(2))


@pytest.mark.parametrize(
  "fn",
  [
    jax.nn.softmax,
    lambda x: nn.Conv(2, (3,), dtype=jnp.bfloat16).apply(
      {"params": {"kernel": jnp.ones((3, 4, 2)), "bias": jnp.ones(2)}}, x
    ),
    lambda x: nn.LayerNorm(use_bias=False, use_scale=False, epsilon=1.0).apply({}, x),
  ],
  ids=["softmax", "convolution", "layer norm"],
)
def test_bfloat16(fn):
  x = jnp.ones((3, 4), jnp.bfloat16)
  wide = float(lipjax.lipschitz_upper_bound(fn)(x.astype(jnp.float32)))
  assert float(lipjax.lipschitz_upper_bound(fn)(x)) == pytest.approx(wide, rel=2e-2)


def test_values_too_large_for_a_bound_give_infinity():
  fn = lambda x: jnp.exp(x) * jnp.exp(x[::-1])
  assert float(lipjax.lipschitz_upper_bound(fn, radius=1e3)(jnp.zeros(2))) == np.inf


def test_engines_agree_on_what_is_linear():
  w = jax.random.normal(jax.random.key(0), (5, 4))
  found = bounds_by_engine(lambda x: w @ x, 0, (jnp.ones(4),), 1.0)
  truth = np.linalg.norm(np.asarray(w, np.float64), 2)
  assert float(found["product"]) == pytest.approx(truth, rel=1e-4)
  assert float(found["liplt"]) == pytest.approx(truth, rel=1e-4)
