"""Gradient penalties against per-sample gradients and finite differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from reference import FLOAT, X64, normal
from scipy import stats

import lipjax

SIDES = ("two", "one")
RTOL = 1e-12 if X64 else 2e-5
PARAMS = {"w1": normal(0, (6, 8)), "b1": normal(1, (8,)), "w2": normal(2, (8, 1))}
X = normal(3, (5, 6))


def critic(params, x):
  return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]


def penalty(params, x=X, fn=critic, **options):
  return lipjax.gradient_penalty(lambda x: fn(params, x), x, **options)


def half_square(x):
  """Half the squared norm of each sample, over every axis and leaf: its gradient is x."""
  return sum(
    0.5 * jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(x)
  )


def sample_norms(tree):
  """The norms of all that has the same first index, in float64 and by other means."""
  rows = [np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)]
  return np.sqrt(np.sum(np.square(np.concatenate(rows, axis=1)), axis=1))


def truth(norms, target=1.0, sides="two"):
  excess = norms - target
  return np.mean(np.square(excess if sides == "two" else np.maximum(excess, 0)))


def in_float64(tree):
  return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), tree)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("target", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("column", [False, True], ids=["(B,)", "(B, 1)"])
def test_value_is_that_of_gradients_taken_sample_by_sample(sides, target, column):
  with jax.enable_x64(True):
    one = lambda x: critic(in_float64(PARAMS), x)[0]
    norms = sample_norms(jax.vmap(jax.grad(one))(in_float64(X)))
  assert norms.min() < 2.5 < norms.max()  # so that the sides differ
  fn = critic if column else lambda params, x: critic(params, x)[:, 0]
  for transform in (lambda f: f, jax.jit):
    value = transform(lambda p: penalty(p, fn=fn, sides=sides, target=target))(PARAMS)
    assert value.shape == ()
    assert value.dtype == FLOAT
    np.testing.assert_allclose(value, truth(norms, target, sides), rtol=RTOL)


@pytest.mark.parametrize("sides", SIDES)
def test_gradient_in_the_parameters_is_that_of_finite_differences(sides):
  with jax.enable_x64(True):
    params, x = in_float64(PARAMS), in_float64(X)
    loss = jax.jit(lambda p: penalty(p, x, sides=sides, target=2.5))
    gradient = jax.jit(jax.grad(loss))(params)
    for name, w in params.items():
      expected = np.zeros(w.shape)
      for index in np.ndindex(w.shape):
        ahead, back = (loss(params | {name: w.at[index].add(h)}) for h in (1e-5, -1e-5))
        expected[index] = (ahead - back) / 2e-5
      np.testing.assert_allclose(gradient[name], expected, rtol=1e-6, atol=1e-8, err_msg=name)


def test_derivatives_of_higher_order_and_in_every_mode():
  with jax.enable_x64(True):
    params, x = in_float64(PARAMS), in_float64(X)
    loss = jax.jit(lambda p, x: penalty(p, x))
    check_grads(loss, (params, x), order=2, modes=["fwd", "rev"])


def test_gradient_under_jit_and_vmap():
  several = [jax.tree.map(lambda w, k=k: k * w, PARAMS) for k in (0.5, 1.0, 2.0)]
  stacked = jax.tree.map(lambda *ws: jnp.stack(ws), *several)
  together = jax.jit(jax.vmap(jax.grad(penalty)))(stacked)
  for i, params in enumerate(several):
    alone = jax.grad(penalty)(params)
    for name in PARAMS:
      np.testing.assert_allclose(together[name][i], alone[name], rtol=50 * RTOL, atol=RTOL)


@pytest.mark.parametrize("sides", SIDES)
def test_norm_is_over_all_axes_of_an_image(sides):
  # Norms over one axis, or over the batch, would be other numbers.
  images = normal(4, (3, 5, 7, 2)) * jnp.asarray([0.05, 0.15, 0.3], FLOAT).reshape(3, 1, 1, 1)
  loss = lambda images: lipjax.gradient_penalty(half_square, images, sides=sides)
  value, gradient = jax.value_and_grad(loss)(images)
  norms = sample_norms(images)
  assert norms.min() < 1 < norms.max()
  np.testing.assert_allclose(value, truth(norms, sides=sides), rtol=RTOL)
  slopes = 2 / 3 * (1 - 1 / norms) * (1 if sides == "two" else norms > 1)
  expected = np.asarray(images, np.float64) * slopes[:, None, None, None]
  np.testing.assert_allclose(gradient, expected, rtol=10 * RTOL, atol=RTOL)
  flat = lipjax.gradient_penalty(half_square, images.reshape(3, -1), sides=sides)
  np.testing.assert_allclose(value, flat, rtol=RTOL)


def test_norm_is_over_all_leaves_of_a_pytree():
  x = {"image": normal(5, (4, 3, 3, 1)), "features": [normal(6, (4, 2)), normal(7, (4,))]}
  value = lipjax.gradient_penalty(half_square, x)
  np.testing.assert_allclose(value, truth(sample_norms(x)), rtol=RTOL)
  apart = [truth(sample_norms(leaf)) for leaf in jax.tree.leaves(x)]
  assert not np.isclose(value, np.sum(apart), rtol=0.05)


@given(
  shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
  exponent=st.integers(-15, 15),
  dtype=st.sampled_from(["float32", "bfloat16"]),
  sides=st.sampled_from(SIDES),
)
def test_any_shape_and_scale(shape, exponent, dtype, sides):
  x = normal(len(shape), shape, dtype, scale=10.0**exponent)
  loss = lambda x: lipjax.gradient_penalty(half_square, x, sides=sides)
  value, gradient = jax.jit(jax.value_and_grad(loss))(x)
  expected = truth(sample_norms(x), sides=sides) if shape[0] else 0
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert gradient.dtype == dtype
  assert np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_zero_gradient(sides, dtype):
  x = X.astype(dtype)
  zeros = {name: w.astype(dtype) for name, w in (PARAMS | {"w2": 0 * PARAMS["w2"]}).items()}
  with jax.debug_nans(True):
    value, gradient = jax.value_and_grad(lambda p: penalty(p, x, sides=sides))(zeros)
  assert float(value) == (1.0 if sides == "two" else 0.0)
  for g in gradient.values():
    assert g.dtype == dtype
    assert not np.any(np.asarray(g, np.float32))


def test_one_sample_of_zero_gradient_leaves_the_others_alone():
  # The gradient of the sample is gate * w.
  def loss(w, gate):
    return lipjax.gradient_penalty(lambda x: gate * (x @ w), normal(8, (len(gate), 3)))

  w = normal(9, (3,))
  gradient = jax.grad(loss)(w, jnp.asarray([0.0, 1.0, 2.0], FLOAT))
  others = jax.grad(loss)(w, jnp.asarray([1.0, 2.0], FLOAT))
  np.testing.assert_allclose(gradient, others * 2 / 3, rtol=RTOL)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sides", SIDES)
def test_scale(scale, dtype, sides):
  w, x = normal(10, (4,), dtype, scale), jnp.ones((2, 4), dtype)
  value, gradient = jax.value_and_grad(
    lambda w: lipjax.gradient_penalty(lambda x: x @ w, x, sides=sides)
  )(w)
  w64 = np.asarray(w, np.float64)
  norm = np.linalg.norm(w64)
  slope = 2 * (norm - 1 if sides == "two" else max(norm - 1, 0))
  assert value.dtype == jnp.float32
  if scale < 1e19:
    np.testing.assert_allclose(value, truth(norm, sides=sides), rtol=1e-5)
  else:
    assert value == np.inf  # no float32 holds 1e60
  gradient = np.asarray(gradient, np.float64)
  np.testing.assert_allclose(
    gradient, slope * w64 / norm, rtol=1e-5 if dtype == "float32" else 0.02
  )


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 3e4])
def test_scale_in_float16(scale):
  w, x = normal(11, (4,), "float16", scale), jnp.ones((2, 4), "float16")
  value, gradient = jax.value_and_grad(
    lambda w: lipjax.gradient_penalty(lambda x: x @ w, x, target=3e4)
  )(w)
  np.testing.assert_allclose(
    value, truth(np.linalg.norm(np.asarray(w, np.float64)), 3e4), rtol=1e-5
  )
  assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_subnormal_gradients_give_no_nan():
  w = jnp.full((4,), 1e-40, jnp.float32)
  x = jnp.ones((2, 4), jnp.float32)
  result = jax.value_and_grad(lambda w: lipjax.gradient_penalty(lambda x: x @ w, x))(w)
  assert all(np.isfinite(r).all() for r in result)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(sides, bad):
  x = X.at[1, 2].set(bad)
  loss = lambda w: lipjax.gradient_penalty(lambda x: w * half_square(x), x, sides=sides)
  value, gradient = jax.value_and_grad(loss)(jnp.asarray(1.0, FLOAT))
  assert np.isnan(value)
  assert np.isnan(gradient)


@pytest.mark.parametrize("sides", SIDES)
def test_empty_batch(sides):
  value, gradient = jax.value_and_grad(lambda p: penalty(p, X[:0], sides=sides))(PARAMS)
  assert value == 0
  assert not any(np.any(g) for g in gradient.values())


def test_result_is_never_narrower_than_float32():
  for dtype in ("float16", "bfloat16", "float32") + (("float64",) if X64 else ()):
    x = X.astype(dtype)
    value = lipjax.gradient_penalty(half_square, x)
    assert value.dtype == jnp.promote_types(dtype, jnp.float32)
    np.testing.assert_allclose(value, truth(sample_norms(x)), rtol=2e-5)


def test_target_may_be_traced():
  norms = sample_norms(X)
  loss = lambda target: lipjax.gradient_penalty(half_square, X, target=target)
  value, slope = jax.jit(jax.value_and_grad(loss))(2.0)
  np.testing.assert_allclose(value, truth(norms, 2.0), rtol=RTOL)
  np.testing.assert_allclose(slope, -2 * np.mean(norms - 2), rtol=RTOL)


def test_supervised_model():
  labels = jnp.asarray([0, 2, 1, 2, 0])
  kernel = normal(12, (6, 3))

  def loss(kernel, x, labels):
    return optax.softmax_cross_entropy_with_integer_labels(x @ kernel, labels)

  value, gradient = jax.value_and_grad(
    lambda w: lipjax.gradient_penalty(lambda x: loss(w, x, labels), X)
  )(kernel)
  # In closed form: the gradient of a sample is W (softmax - onehot).
  logits = np.asarray(X, np.float64) @ np.asarray(kernel, np.float64)
  p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  expected = (p - np.eye(3)[np.asarray(labels)]) @ np.asarray(kernel, np.float64).T
  np.testing.assert_allclose(value, truth(sample_norms(expected)), rtol=RTOL)
  assert np.isfinite(gradient).all()
  assert gradient.any()


def test_nnx_module():
  class Critic(nnx.Module):
    def __init__(self, rngs):
      self.hidden = nnx.Linear(6, 8, rngs=rngs)
      self.norm = nnx.LayerNorm(8, rngs=rngs)
      self.head = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
      return self.head(nnx.tanh(self.norm(self.hidden(x))))

  model = Critic(nnx.Rngs(0))
  key = jax.random.key(0)
  loss = lambda model: lipjax.wgan_gradient_penalty(model, X, X + 1, key)
  value, gradient = nnx.jit(nnx.value_and_grad(loss))(model)
  np.testing.assert_allclose(value, loss(model), rtol=1e-4)
  assert np.any(gradient.hidden.kernel[...])


@pytest.mark.parametrize(
  ("sides", "start", "end"), [("two", 0.2, 1), ("one", 0.2, 0.2), ("one", 3, 1)]
)
def test_training_brings_the_norm_to_the_target(sides, start, end):
  w = start * jnp.asarray([0.6, 0.8], FLOAT)
  step = jax.jit(
    lambda w: (
      w
      - 0.2 * jax.grad(lambda w: lipjax.gradient_penalty(lambda x: x @ w, X[:, :2], sides=sides))(w)
    )
  )
  for _ in range(60):
    w = step(w)
  np.testing.assert_allclose(jnp.linalg.norm(w), end, rtol=1e-5)


def mixing(real, fake, key):
  """The mixed points, and epsilon elementwise, read off derivatives.

  With a critic whose gradient is x and a target of 0 the penalty is the mean of
  the mixed points' squared norms: its derivative in `real` is 2 epsilon x / n, in
  `fake` 2 (1 - epsilon) x / n.
  """
  loss = lambda real, fake: lipjax.wgan_gradient_penalty(half_square, real, fake, key, target=0.0)
  by_real, by_fake = jax.jit(jax.grad(loss, argnums=(0, 1)))(real, fake)
  n = jax.tree.leaves(real)[0].shape[0]
  points = jax.tree.map(lambda a, b: np.asarray(n / 2 * (a + b), np.float64), by_real, by_fake)
  epsilon = jax.tree.map(lambda a, b: np.asarray(a / (a + b), np.float64), by_real, by_fake)
  return points, epsilon


def test_mixing_is_uniform_and_independent_between_samples():
  n = 4096
  real, fake = jnp.full((n, 1), 3.0, FLOAT), jnp.full((n, 1), 1.0, FLOAT)
  points, epsilon = mixing(real, fake, jax.random.key(0))
  np.testing.assert_allclose(points, 1 + 2 * epsilon, rtol=1e-5)
  epsilon = epsilon[:, 0]
  assert epsilon.min() >= 0
  assert epsilon.max() <= 1
  assert stats.kstest(epsilon, "uniform").pvalue > 0.01
  assert len(np.unique(epsilon)) > 0.99 * n
  assert abs(np.corrcoef(epsilon[1:], epsilon[:-1])[0, 1]) < 4 / np.sqrt(n)


def test_a_sample_has_one_mix_for_all_axes_and_leaves():
  def batch(seed):
    # Far from zero and from one another, so that epsilon is read off exactly.
    return {
      "image": 5 + normal(seed, (6, 4, 3, 2)),
      "features": [5 + normal(seed + 1, (6, 3)), 5 + normal(seed + 2, (6,))],
    }

  real, fake = batch(20), jax.tree.map(lambda x: 0.1 * x, batch(30))
  points, epsilon = mixing(real, fake, jax.random.key(1))
  rows = np.concatenate([e.reshape(6, -1) for e in jax.tree.leaves(epsilon)], axis=1)
  np.testing.assert_allclose(rows, rows[:, :1] * np.ones_like(rows), rtol=1e-4)
  assert np.ptp(rows[:, 0]) > 0.1
  for p, e, r, f in zip(*map(jax.tree.leaves, (points, epsilon, real, fake)), strict=True):
    np.testing.assert_allclose(p, e * np.asarray(r) + (1 - e) * np.asarray(f), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_critic_sees_the_dtype_and_shape_of_the_samples(dtype):
  seen = []

  def spy(x):
    seen.extend((leaf.shape, str(leaf.dtype)) for leaf in x)
    return half_square(x)

  samples = (normal(40, (3, 2), dtype), normal(41, (3, 2, 2), "float32"))
  value = lipjax.wgan_gradient_penalty(spy, samples, samples, jax.random.key(0))
  assert set(seen) == {((3, 2), dtype), ((3, 2, 2), "float32")}
  assert value.dtype == jnp.float32
  # Real and fake samples are the same, so any mix is too, up to the dtype.
  np.testing.assert_allclose(value, truth(sample_norms(samples)), rtol=0.02)


def test_mixed_points_follow_the_key():
  draw = lambda seed: mixing(X + 9, X, jax.random.key(seed))[1]
  np.testing.assert_array_equal(draw(0), draw(0))
  assert not np.allclose(draw(0), draw(1))


@pytest.mark.parametrize("sides", SIDES)
def test_wgan_penalty_has_the_gradient_of_the_penalty_at_the_mixed_points(sides):
  fake = X + 9
  key = jax.random.key(2)
  points = jnp.asarray(mixing(X, fake, key)[0], FLOAT)
  wgan = lambda p: lipjax.wgan_gradient_penalty(lambda x: critic(p, x), X, fake, key, sides=sides)
  expected = jax.grad(lambda p: penalty(p, points, sides=sides))(PARAMS)
  for name, g in jax.jit(jax.grad(wgan))(PARAMS).items():
    np.testing.assert_allclose(g, expected[name], rtol=1e-3, atol=1e-4)


def test_wgan_of_an_empty_batch():
  assert lipjax.wgan_gradient_penalty(half_square, X[:0], X[:0], jax.random.key(0)) == 0


@pytest.mark.parametrize(
  ("fn", "message"),
  [
    (lambda x: jnp.mean(x), r"shape \(\) for a batch of 5.*average"),
    (lambda x: x, r"shape \(5, 6\).*loss per sample"),
    (lambda x: jnp.sum(x, axis=0), r"shape \(6,\)"),
    (lambda x: x[:, :1, None], r"shape \(5, 1, 1\)"),
    (lambda x: (x[:, 0], {}), r"a tuple.*\[0\]"),
    (lambda x: None, "NoneType"),
    (lambda x: 1.0, "a float"),
    (lambda x: jnp.argmax(x, axis=1), "returned int"),
    (PARAMS, "cannot be called"),
  ],
)
def test_wrong_functions_raise(fn, message):
  with pytest.raises(ValueError, match=message):
    lipjax.gradient_penalty(fn, X)
  with pytest.raises(ValueError, match=message):
    jax.jit(lambda x: lipjax.wgan_gradient_penalty(fn, x, x, jax.random.key(0)))(X)


@pytest.mark.parametrize(
  ("x", "message"),
  [
    (jnp.ones((2, 3), int), r"x is int.*astype\(jnp.float32\)"),
    ({"a": np.ones((2, 3)), "b": np.ones(2, bool)}, r"leaf 'b'\) is bool"),
    (jnp.ones((2, 3), jnp.complex64), "complex64"),
    (1.0, r"scalar.*x\[None\]"),
    ({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}, r"common batch axis.*'b'\) \(3, 3\)"),
    ({}, "no array"),
  ],
)
def test_wrong_inputs_raise(x, message):
  with pytest.raises(ValueError, match=message):
    lipjax.gradient_penalty(half_square, x)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"target": -1}, "target is -1"),
    ({"target": np.float32(-0.5)}, "at least 0"),
    ({"target": float("nan")}, "target is nan"),
    ({"target": jnp.ones(5)}, r"shape \(5,\)"),
    ({"sides": "both"}, "'two', 'one'"),
  ],
)
def test_wrong_options_raise(options, message):
  with pytest.raises(ValueError, match=message):
    lipjax.gradient_penalty(half_square, X, **options)
  with pytest.raises(ValueError, match=message):
    lipjax.wgan_gradient_penalty(half_square, X, X, jax.random.key(0), **options)


@pytest.mark.parametrize(
  ("real", "fake", "message"),
  [
    (X, X[:3], r"\[5, 6\].*\[3, 6\]"),
    (X, X.astype(jnp.bfloat16), "bfloat16.*cast"),
    (X, {"x": X}, "structure"),
    (jnp.ones((5, 6), jnp.uint8), X, "real is uint8.*cast"),
    (X, jnp.ones((5, 6), jnp.uint8), "fake is uint8.*cast"),
  ],
)
def test_real_and_fake_samples_that_differ_raise(real, fake, message):
  with pytest.raises(ValueError, match=message):
    lipjax.wgan_gradient_penalty(half_square, real, fake, jax.random.key(0))
