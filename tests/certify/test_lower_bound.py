"""Lower bounds of Lipschitz constants: below the truth, close to it, and not fooled."""

import gc
import itertools
import pathlib
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from reference import FLOAT, X64, normal

from lipjax.certify.lower.arithmetic import evaluate
from lipjax.certify.lower.bound import lipschitz_lower_bound
from lipjax.jaxprs.inline import inline

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "lipsdp"
RTOL = 1e-5
X = jnp.asarray([0.3, -0.2, 0.5], FLOAT)


#: Compiling is most of the time of these tests.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def jitted(fn, argnums=0, *, n_starts=6, n_ascent_steps=40, **options):
  options |= {"n_starts": n_starts, "n_ascent_steps": n_ascent_steps}
  return jax.jit(lipschitz_lower_bound(fn, argnums, **options), compiler_options=FAST_COMPILE)


def found(fn, *args, argnums=0, **options):
  return float(jitted(fn, argnums, **options)(*args))


def assert_just_below(value, truth, rtol=RTOL):
  """A lower bound, and close."""
  assert truth * (1 - rtol) <= value <= truth


@jax.custom_vjp
def scaled_backward(x):
  return x


scaled_backward.defvjp(lambda x: (x, None), lambda _, g: (100 * g,))


@jax.custom_jvp
def scaled_forward(x):
  return x


scaled_forward.defjvp(lambda primals, tangents: (primals[0], 100 * tangents[0]))


# ---- linear functions ----


@pytest.mark.parametrize("shape", [(1, 1), (20, 30), (64, 64)])
def test_linear_function_has_its_largest_singular_value(shape):
  w = normal(shape[0], shape)
  truth = np.linalg.norm(np.asarray(w, np.float64), 2)
  assert_just_below(found(lambda x: w @ x + 1, jnp.ones(shape[1], FLOAT)), truth)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scales_with_the_function(scale):
  w = normal(0, (4, 6))
  scaled = np.asarray(scale * w, np.float64)
  assert_just_below(found(lambda x: scale * (w @ x), normal(1, (6,))), np.linalg.norm(scaled, 2))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scales_inversely_with_the_input(scale):
  assert_just_below(
    found(lambda x: jnp.sin(x / scale), X * scale, n_ascent_steps=100), 1 / scale, 1e-3
  )


def test_l2_norm_is_over_all_leaves_of_inputs_and_outputs():
  a, b = normal(0, (4, 3)), normal(1, (4, 2))

  def fn(tree):
    return {"y": a @ tree["a"] + b @ tree["b"][0], "z": (2 * tree["a"],)}

  zero = np.zeros((3, 2))
  matrix = np.block([[np.asarray(a, np.float64), np.asarray(b)], [2 * np.eye(3), zero]])
  value = found(fn, {"a": jnp.ones(3, FLOAT), "b": [jnp.ones(2, FLOAT)]})
  assert_just_below(value, np.linalg.norm(matrix, 2))


def test_argnums_choose_the_arguments():
  fn = lambda x, y, z: 2 * x + 3 * y + 6 * z
  args = (X, X, X)
  for argnums, truth in ((-1, 6), ((0, 1), 13**0.5)):
    assert_just_below(found(fn, *args, argnums=argnums), truth)


def test_other_arguments_can_be_anything():
  fn = lambda x, name, *, double: (2 * x if double else x) if name == "sin" else 0 * x
  bound = lipschitz_lower_bound(fn, n_starts=2, n_ascent_steps=2)
  assert_just_below(float(bound(X, "sin", double=True)), 2)


def test_mixed_dtypes():
  fn = lambda tree: 2 * tree["half"].astype(jnp.float32) + 2 * tree["single"]
  tree = {"half": jnp.ones(3, jnp.bfloat16), "single": jnp.ones(3, jnp.float32)}
  value = lipschitz_lower_bound(fn, n_starts=4, n_ascent_steps=4)(tree)
  assert value.dtype == jnp.float32
  # The coarsest dtype's eps, 1/128, times `rounding` is what is taken away.
  assert_just_below(float(value), 2 * np.sqrt(2), rtol=0.3)
  value = found(fn, tree, rounding=0.0)
  assert_just_below(value, 2 * np.sqrt(2) * (1 + 1e-6), rtol=1e-3)


# ---- rules and conventions that lie ----


@pytest.mark.parametrize("fn", [scaled_backward, scaled_forward], ids=["vjp", "jvp"])
@pytest.mark.parametrize(
  "within",
  [
    lambda fn: fn,
    jax.jit,
    jax.checkpoint,
    lambda fn: jax.jit(jax.checkpoint(jax.jit(fn))),
    lambda fn: jax.vmap(fn),
    lambda fn: lambda x: lax.scan(lambda c, _: (fn(c), None), x, None, length=3)[0],
    lambda fn: lambda x: lax.map(fn, x),
    lambda fn: lambda x: lax.fori_loop(0, 3, lambda _, c: fn(c), x),
    lambda fn: lambda x: lax.while_loop(lambda c: c[0] < 2, lambda c: (3, fn(c[1])), (0, x))[1],
    lambda fn: lambda x: lax.cond(x[0] > 0, fn, lambda y: fn(-y), x),
    lambda fn: lambda x: lax.switch(jnp.int32(x[0] > 0), [fn, jax.jit(fn), fn], x),
  ],
  ids=[
    "plain", "jit", "remat", "nested", "vmap", "scan", "map", "fori", "while", "cond", "switch"
  ],
)  # fmt: skip
def test_identity_with_a_scaled_derivative_has_slope_one(fn, within):
  function = within(fn)
  program = inline(jax.make_jaxpr(function)(X))
  jacobian = jax.jacfwd(lambda x: evaluate(program, [x])[0])(X)
  np.testing.assert_array_equal(jacobian, np.eye(3))
  np.testing.assert_array_equal(evaluate(program, [X], soften=True)[0], function(X))


@pytest.mark.parametrize("fn", [scaled_backward, scaled_forward], ids=["vjp", "jvp"])
def test_scaled_derivatives_are_not_believed(fn):
  assert_just_below(found(lambda x: fn(jnp.tanh(x)), 0 * X), 1)


@pytest.mark.parametrize("loop", [False, True], ids=["plain", "scan"])
def test_stop_gradient_stops_nothing(loop):
  fn = lambda x: 3 * lax.stop_gradient(x)
  if loop:
    fn = lambda x: lax.scan(lambda c, _: (3 * lax.stop_gradient(c), None), x, None, length=1)[0]
  assert_just_below(found(fn, X), 3)


@pytest.mark.parametrize(
  ("fn", "truth"),
  [
    (lambda x: jax.nn.relu(x) - jax.nn.relu(-x), 1),
    pytest.param(lambda x: jnp.maximum(x, 0) + jnp.maximum(x, 0), 2, marks=pytest.mark.slow),
    (lambda x: jnp.maximum(x, 3 * x), 3),
    pytest.param(lambda x: jnp.minimum(x, 3 * x), 3, marks=pytest.mark.slow),
    (jnp.abs, 1),
    pytest.param(lambda x: jnp.abs(x - 1) + jnp.abs(x + 1), 2, marks=pytest.mark.slow),
    (lambda x: jnp.where(x > 0, x, 0.0), 1),
    (lambda x: jnp.where(x == 0, 100 * x, x), 1),
    pytest.param(lambda x: jnp.where(x == 0, 100.0, 1.0) * x, 1, marks=pytest.mark.slow),
    pytest.param(lambda x: jnp.clip(x, -0.5, 0.5), 1, marks=pytest.mark.slow),
    pytest.param(jax.nn.relu6, 1, marks=pytest.mark.slow),
    pytest.param(lambda x: jax.nn.leaky_relu(x, -2.0), 2, marks=pytest.mark.slow),
    pytest.param(lambda x: jnp.max(x, keepdims=True), 1, marks=pytest.mark.slow),
    pytest.param(lambda x: jnp.max(x) * jnp.ones(4), 2, marks=pytest.mark.slow),
    pytest.param(lambda x: jnp.sort(x), 1, marks=pytest.mark.slow),
    pytest.param(lambda x: jnp.linalg.norm(x), 1, marks=pytest.mark.slow),
  ],
)
def test_kinks(fn, truth):
  bound = jitted(fn, n_starts=10)
  for x in (jnp.zeros(3, FLOAT), X):
    assert_just_below(float(bound(x)), truth)


def test_derivative_that_is_wrong_at_the_only_start_is_not_believed():
  """At 0 JAX's derivative is 100; the differences say 1."""
  fn = lambda x: jnp.where(x == 0, 100 * x, x)
  assert_just_below(found(fn, jnp.zeros(3, FLOAT), n_starts=1, n_ascent_steps=0), 1)


def test_derivative_of_a_linear_solve_that_does_not_solve_is_not_believed():
  """JAX differentiates the equation 2 y = x; what is computed is y = x / 5."""
  fn = lambda x: lax.custom_linear_solve(
    lambda y: 2 * y, x, lambda _, b: b / 5, transpose_solve=lambda _, b: b / 2
  )
  assert_just_below(found(fn, X), 0.2)


def test_rounding_in_the_values_is_not_a_slope():
  big = 1e14 if X64 else 1e6
  assert found(lambda x: (x + big) - big, X) <= 1
  assert found(lambda x: x + big, X) <= 1


def test_rounding_noise_that_is_not_allowed_for_stays_below_the_derivative():
  big = 1e14 if X64 else 1e6
  assert found(lambda x: (x + big) - big, X, rounding=0.0) <= 1


def test_domain_is_kept_to_by_projecting():
  box = lambda x: jnp.clip(x, 0.0, 1.0)
  assert_just_below(found(lambda x: box(x) ** 2, X, n_ascent_steps=100), 2, rtol=0.05)


def test_function_undefined_on_half_the_space():
  value = found(lambda x: jnp.sqrt(1 + x), X, n_starts=8)
  assert 0.4 < value < np.inf  # it has no Lipschitz constant


# ---- nothing to find ----


@pytest.mark.first(3)
@pytest.mark.parametrize(
  "fn",
  [
    jnp.zeros_like,
    lambda x: 0 * x,
    lambda x: jnp.full(2, jnp.inf),
    lambda x: x * jnp.nan,
    jnp.sign,
  ],
)
def test_no_slope_is_zero(fn):
  assert found(fn, X) == 0


def test_empty_inputs_and_outputs():
  assert found(lambda x: x, jnp.zeros((0, 3))) == 0
  assert found(lambda x: x[:0], X) == 0
  assert found(lambda x: {}, X) == 0
  assert lipschitz_lower_bound(lambda tree: jnp.ones(2))({}) == 0
  assert lipschitz_lower_bound(lambda tree: jnp.ones(2), radius=1.0)({}) == 0


def test_without_ascent_it_is_the_norm_of_the_jacobian():
  w = normal(0, (3, 3))
  value = found(lambda x: jnp.tanh(w @ x), X, n_starts=1, n_ascent_steps=0)
  with jax.enable_x64(True):
    jacobian = jax.jacobian(lambda x: jnp.tanh(jnp.asarray(np.asarray(w, np.float64)) @ x))
    truth = np.linalg.norm(jacobian(jnp.asarray(np.asarray(X, np.float64))), 2)
  assert_just_below(value, truth * (1 + 1e-6), rtol=1e-4)


# ---- loops and branches ----


def test_while_loop_has_no_reverse_mode_and_is_searched_all_the_same():
  def fn(x):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 2 * jnp.sin(c[1])), (0, x))[1]

  assert_just_below(found(fn, X), 8, rtol=1e-3)


def test_scan_and_cond():
  ws = normal(0, (3, 4, 4))

  def fn(x):
    def body(x, w):
      return lax.cond(x.sum() > 0, lambda x: w @ jax.nn.relu(x), lambda x: jax.nn.relu(w @ x), x), 0

    return lax.scan(body, x, ws)[0]

  value = found(fn, jnp.ones(4, FLOAT))
  x = np.random.default_rng(0).standard_normal((2000, 4))
  sampled = np.linalg.norm(jax.vmap(jax.jacobian(fn))(jnp.asarray(x, FLOAT)), 2, axis=(1, 2)).max()
  assert value >= 0.99 * sampled


# ---- networks ----


def mlp(widths, seed, activation):
  weights = [
    normal(seed + i, (m, n), scale=n**-0.5) for i, (n, m) in enumerate(itertools.pairwise(widths))
  ]
  biases = [normal(seed + 50 + i, (len(w),), scale=0.3) for i, w in enumerate(weights)]

  def fn(x):
    for w, b in zip(weights[:-1], biases, strict=False):
      x = activation(w @ x + b)
    return weights[-1] @ x

  return fn, weights


@pytest.mark.parametrize(
  ("activation", "widths"),
  [
    (jax.nn.relu, (2, 8, 3)),
    (jnp.tanh, (6, 16, 16, 4)),
    pytest.param(jax.nn.relu, (6, 16, 16, 4), marks=pytest.mark.slow),
    pytest.param(jax.nn.gelu, (6, 16, 16, 4), marks=pytest.mark.slow),
    pytest.param(jax.nn.leaky_relu, (6, 16, 16, 4), marks=pytest.mark.slow),
  ],
)
def test_between_sampled_jacobians_and_the_product_of_norms(activation, widths):
  fn, weights = mlp(widths, 0, activation)
  value = found(fn, jnp.zeros(widths[0], FLOAT), n_starts=16, n_ascent_steps=100)
  product = np.prod([np.linalg.norm(np.asarray(w, np.float64), 2) for w in weights])
  assert value <= product * (1.129 if activation is jax.nn.gelu else 1) ** (len(weights) - 1)
  x = jnp.asarray(np.random.default_rng(1).standard_normal((2000, widths[0])), FLOAT)
  sampled = np.linalg.norm(jax.vmap(jax.jacobian(fn))(x), 2, axis=(1, 2)).max()
  assert value >= 0.999 * sampled


def test_below_the_truth_of_a_small_relu_network():
  """One hidden layer and a full-row-rank first one: every pattern of active units occurs."""
  first, second = normal(0, (8, 12)), normal(1, (3, 8))
  a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
  patterns = (np.arange(256)[:, None] >> np.arange(8)) % 2
  truth = max(np.linalg.norm(b @ (pattern[:, None] * a), 2) for pattern in patterns)
  value = found(lambda x: second @ jax.nn.relu(first @ x), jnp.zeros(12, FLOAT), n_starts=16)
  assert_just_below(value, truth, rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 5])
def test_small_functions_are_searched_thoroughly(seed):
  """Steep in a small part of the plane, which the first sixteen starts did not find."""
  rng = np.random.default_rng(seed)
  shapes, scale = [(8, 2), (8, 8), (1, 8)], np.sqrt([2, 8, 8])
  weights = [rng.standard_normal(shape) / s for shape, s in zip(shapes, scale, strict=True)]
  biases = [rng.standard_normal(8) * 0.5 for _ in range(2)]

  def fn(x):
    for w, b in zip(weights, biases, strict=False):
      x = jax.nn.relu(jnp.asarray(w) @ x + jnp.asarray(b)[:, None])
    return jnp.asarray(weights[-1]) @ x

  with jax.enable_x64(True):
    points = rng.standard_normal((2, 100_000)) * np.geomspace(0.3, 30, 100_000)
    slopes = jax.grad(lambda x: fn(x).sum())(points)
  sampled = np.linalg.norm(slopes, axis=0).max()
  value = float(lipschitz_lower_bound(lambda x: fn(x[:, None]))(jnp.ones(2, FLOAT)))
  assert value >= 0.999 * sampled


def published(name):
  pytest.importorskip("scipy")
  path = DATA / f"{name}_weights.mat"
  if not path.exists():
    pytest.skip("the published networks are not here")
  from scipy.io import loadmat

  weights = [jnp.asarray(w, FLOAT) for w in loadmat(path)["weights"].ravel()]

  def fn(x):
    for w in weights[:-1]:
      x = jax.nn.relu(w @ x)
    return weights[-1] @ x

  return fn, jnp.zeros(weights[0].shape[1], FLOAT)


@pytest.mark.first(1)
@pytest.mark.parametrize(
  ("name", "low", "high"), [("random", 36.48, 36.48223 * (1 + 1e-6)), ("mnist", 24.29, 24.320)]
)
def test_published_networks(name, low, high):
  fn, x = published(name)
  assert low <= float(lipschitz_lower_bound(fn)(x)) <= high


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "mnist"])
@pytest.mark.parametrize("seed", range(10))
def test_published_networks_from_any_key(name, seed):
  fn, x = published(name)
  value = float(lipschitz_lower_bound(fn, key=jax.random.key(seed))(x + seed % 2))
  assert (
    {"random": 36.48, "mnist": 24.26}[name] <= value <= {"random": 36.4823, "mnist": 24.32}[name]
  )


# ---- as a transformation ----


def test_jit_and_plain_agree_and_the_key_decides():
  fn, _ = mlp((3, 8, 2), 3, jnp.tanh)
  bound = lipschitz_lower_bound(fn, n_starts=1, n_ascent_steps=8)
  plain, compiled = float(bound(X)), float(jax.jit(bound)(X))
  np.testing.assert_allclose(plain, compiled, rtol=1e-4)
  other = lipschitz_lower_bound(fn, n_starts=1, n_ascent_steps=8, key=jax.random.key(7))
  assert float(other(X)) != plain


def test_a_function_traced_again_is_not_compiled_again(caplog):
  def slope(w, factor):
    # A new function each time, as in a loop over checkpoints.
    network = lambda x: factor * jnp.tanh(jax.nn.relu(w @ x))
    return float(lipschitz_lower_bound(network, n_starts=4, n_ascent_steps=40)(0 * X))

  eye = jnp.eye(3, dtype=FLOAT)
  assert_just_below(slope(eye, 1.5), 1.5)
  with jax.log_compiles():
    assert_just_below(slope(2 * eye, 1.5), 3)  # other weights
    assert_just_below(slope(np.asarray(eye), 1.5), 1.5)
    assert "_steepest" not in caplog.text
    assert_just_below(slope(eye, 2.5), 2.5)  # another literal
    assert "_steepest" in caplog.text


def test_no_array_is_kept():
  def slope():
    w = jnp.eye(3, dtype=FLOAT)
    inner = jax.jit(lambda x: jax.nn.relu(w @ x))
    lipschitz_lower_bound(lambda x: inner(x), n_starts=2, n_ascent_steps=3)(X)
    return weakref.ref(w)

  array = slope()
  gc.collect()
  assert array() is None


def test_is_differentiable_in_what_the_function_closes_over():
  def of(w):
    return lipschitz_lower_bound(lambda x: jax.nn.relu(w @ x), n_starts=4, n_ascent_steps=20)(X)

  w = normal(0, (3, 3))
  value_and_gradient = jax.jit(jax.value_and_grad(of), compiler_options=FAST_COMPILE)
  value, gradient = value_and_gradient(w)
  assert value <= np.linalg.norm(np.asarray(w, np.float64), 2)
  np.testing.assert_allclose(np.sum(gradient * w), value, rtol=1e-3)  # homogeneous of degree 1
  assert np.all(np.asarray(value_and_gradient(0 * w)[1]) == 0)


def test_weights_may_be_traced_arguments():
  bound = jax.jit(lipschitz_lower_bound(lambda w, x: w @ x, 1, n_starts=2, n_ascent_steps=2))
  for seed in range(2):
    w = normal(seed, (4, 3))
    assert_just_below(float(bound(w, X)), np.linalg.norm(np.asarray(w, np.float64), 2))


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: found(lambda x: 1.0 * x, jnp.arange(3)), r"args\[0\] is int32.*floating-point"),
    (lambda: found(lambda t: t["a"], {"a": X, "b": jnp.arange(3)}), r"leaf 'b'"),
    (lambda: found(lambda x: x, X + 1j), "complex"),
    (lambda: lipschitz_lower_bound(lambda x: X)("name"), "is str"),
    (lambda: found(lambda x: (x, jnp.argmax(x)), X), r"the output \(leaf '1'\) is int32"),
    (lambda: found(lambda x: x, X, argnums=1), "argnums is 1 .* 1 positional"),
    (lambda: found(lambda x: x, X, n_starts=0), "n_starts is 0"),
    (lambda: found(lambda x: x, X, n_power_steps=0), "n_power_steps is 0"),
    (lambda: found(lambda x: x, X, n_ascent_steps=-1), "n_ascent_steps is -1"),
    (lambda: found(lambda x: x, X, rounding=-1.0), "rounding"),
  ],
)
def test_errors_say_what_came_and_what_is_expected(call, message):
  if X64:
    message = message.replace("int32", "int64")
  with pytest.raises(ValueError, match=message):
    call()
