"""d sigma = u^T dW v, whichever way a norm is measured and differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, X64, normal, operator_matrices, with_spectrum

import lipjax
from lipjax import Dense, Diagonal, ReshapedKernel

#: Singular vectors are as good as the square root of sigma's relative tolerance: in
#: float32 sqrt(8 eps) = 1e-3 at worst, over the gap; with gaps of 1/3 some 1e-4.
VECTOR_TOL = 1e-6 if X64 else 5e-4
SPECTRUM = [3.0, 2.0, 1.0, 0.5]

LEAVES = {
  "dense": (Dense(), (6, 4)),
  "attention query": (Dense((0,), (1, 2)), (8, 2, 4)),
  "attention out": (Dense((0, 1), (2,)), (2, 4, 8)),
  "reshaped kernel": (ReshapedKernel(), (3, 2, 2, 4)),
  "stacked": (Dense((1,), (2,), (0,)), (3, 6, 4)),
  "stacked last": (Dense((0,), (1,), (2,)), (6, 4, 3)),
  "diagonal": (Diagonal(), (5,)),
  "stacked diagonal": (Diagonal((0,)), (3, 5)),
}


def svd_gradient(operator, w):
  """The gradient of the sum of the slices' norms, from float64 SVDs."""
  matrices = operator_matrices(operator, w)
  u, _, vt = np.linalg.svd(matrices, full_matrices=False)
  batch = operator.batch_shape(w.shape)
  x = vt[..., 0, :].reshape(operator.input_shape(w.shape))
  y = u[..., :, 0].reshape(operator.output_shape(w.shape))
  assert x.shape[: len(batch)] == batch
  return np.asarray(operator.weight_gradient(w.shape, jnp.asarray(x), jnp.asarray(y)))


def leaf_of(name):
  operator, shape = LEAVES[name]
  w = normal(0, shape)
  return operator, w


def cold(w, operator, method="lanczos"):
  return jnp.sum(lipjax.spectral_norms({"w": w}, layout={"w": operator}, method=method)["w"])


def warm(w, operator):
  params, layout = {"w": w}, {"w": operator}
  vectors = lipjax.init_singular_vectors(params, layout=layout)
  vectors = lipjax.update_singular_vectors(params, vectors, n_steps=60, layout=layout)
  return jnp.sum(lipjax.singular_triplets(params, vectors, layout=layout)["w"].sigma)


def power(w, operator):
  return jnp.sum(lipjax.power_iteration(operator, w, n_steps=400).sigma)


@pytest.mark.first(12)
@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("measure", [cold, warm, power])
def test_gradient_of_every_operator(name, measure):
  operator, w = leaf_of(name)
  gradient = jax.jit(jax.grad(measure), static_argnums=1)(w, operator)
  assert gradient.shape == w.shape
  np.testing.assert_allclose(gradient, svd_gradient(operator, w), atol=5 * VECTOR_TOL)


def test_forward_and_reverse_mode_and_finite_differences_agree():
  w = jnp.asarray(with_spectrum(1, 6, 4, SPECTRUM), FLOAT)
  direction = normal(2, w.shape)
  gradient = jax.grad(cold)(w, Dense())
  _, tangent = jax.jvp(lambda w: cold(w, Dense()), (w,), (direction,))
  np.testing.assert_allclose(tangent, jnp.vdot(gradient, direction), rtol=1e-5)
  w64, d64, step = np.asarray(w, np.float64), np.asarray(direction, np.float64), 1e-6
  plus, minus = (np.linalg.norm(w64 + s * d64, 2) for s in (step, -step))
  np.testing.assert_allclose(tangent, (plus - minus) / (2 * step), rtol=0, atol=5 * VECTOR_TOL)


def test_against_jaxs_own_norm():
  w = jnp.asarray(with_spectrum(3, 6, 4, SPECTRUM), FLOAT)
  expected = jax.grad(lambda w: jnp.linalg.norm(w, 2))(w)
  for method in ("lanczos", "svd"):
    np.testing.assert_allclose(
      jax.grad(cold)(w, Dense(), method), expected, atol=VECTOR_TOL, err_msg=method
    )


def test_under_jit_and_vmap():
  ws = normal(4, (3, 6, 4))
  gradient = jax.jit(jax.vmap(jax.grad(lambda w: cold(w, Dense()))))(ws)
  expected = svd_gradient(Dense((1,), (2,), (0,)), ws)
  np.testing.assert_allclose(gradient, expected, atol=5 * VECTOR_TOL)


@pytest.mark.parametrize("measure", [cold, warm, power])
@pytest.mark.parametrize("operator", [Dense(), Diagonal()], ids=["dense", "diagonal"])
def test_a_zero_operator_has_gradient_exactly_zero(measure, operator):
  value, gradient = jax.value_and_grad(measure)(jnp.zeros((6, 4), FLOAT), operator)
  assert float(value) == 0
  np.testing.assert_array_equal(gradient, np.zeros((6, 4)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("measure", [cold, warm])
def test_gradients_keep_the_dtype_of_the_leaf(dtype, measure):
  w = jnp.asarray(with_spectrum(5, 6, 4, SPECTRUM), dtype)
  value, gradient = jax.value_and_grad(measure)(w, Dense())
  assert value.dtype == jnp.float32
  assert gradient.dtype == dtype
  expected = svd_gradient(Dense(), w)
  np.testing.assert_allclose(
    np.asarray(gradient, np.float64), expected, atol=float(jnp.finfo(dtype).eps) + 2e-3
  )


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 1)])
def test_thin_leaves(shape):
  w = normal(6, shape)
  expected = np.asarray(w, np.float64) / np.linalg.norm(np.asarray(w, np.float64))
  np.testing.assert_allclose(jax.grad(cold)(w, Dense()), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_gradients_do_not_depend_on_the_scale(scale):
  w = jnp.asarray(with_spectrum(7, 6, 4, SPECTRUM), FLOAT)
  np.testing.assert_allclose(
    jax.grad(cold)(w * scale, Dense()), svd_gradient(Dense(), w), atol=2 * VECTOR_TOL
  )


def test_a_tie_gives_a_subgradient():
  w = jnp.eye(4, dtype=FLOAT)
  gradient = np.asarray(jax.grad(cold)(w, Dense()), np.float64)
  # Every subgradient of the norm is u v^T with W v = u: norm 1, and <G, W> = 1.
  np.testing.assert_allclose(np.linalg.norm(gradient, "nuc"), 1, rtol=1e-5)
  np.testing.assert_allclose(np.vdot(gradient, w), 1, rtol=1e-5)


def test_the_vectors_carry_no_gradient():
  w = normal(8, (6, 4))
  vectors = lipjax.init_singular_vectors({"kernel": w})

  def through_state(w):
    new = lipjax.update_singular_vectors({"kernel": w}, vectors)
    _, u, v = lipjax.singular_triplets({"kernel": w}, new)["kernel"]
    return sum(jnp.sum(x) for x in (u, v, new.sigma, new.u, new.v))

  assert not jax.grad(through_state)(w).any()


def test_a_step_of_gradient_descent_lowers_the_norm():
  w = jnp.asarray(with_spectrum(9, 6, 4, SPECTRUM), FLOAT)
  after = w - 0.1 * jax.grad(cold)(w, Dense())
  np.testing.assert_allclose(np.linalg.norm(np.asarray(after, np.float64), 2), 2.9, rtol=1e-5)


def slope_of_gradient(operator, w, direction):
  """The derivative of `svd_gradient` along a direction, by central differences in float64."""
  w, direction, step = np.asarray(w, np.float64), np.asarray(direction, np.float64), 1e-5
  with jax.enable_x64(True):
    ends = [svd_gradient(operator, jnp.asarray(w + s * direction)) for s in (step, -step)]
  return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.first(4)
@pytest.mark.parametrize(
  ("measure", "name"),
  [*((cold, name) for name in LEAVES), (warm, "stacked"), (power, "reshaped kernel")],
)
def test_second_derivatives_of_every_operator(name, measure):
  """They were silently 0: u and v were constants."""
  operator, w = leaf_of(name)
  direction = normal(10, w.shape)
  expected = slope_of_gradient(operator, w, direction)
  gradient = jax.grad(lambda w: measure(w, operator))
  found = jax.jit(lambda w, d: jax.jvp(gradient, (w,), (d,))[1])(w, direction)
  tol = 1e-5 if X64 else 5e-3
  np.testing.assert_allclose(found, expected, atol=tol * max(1, np.abs(expected).max()))


SYMMETRIC = [[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 2.0]]


@pytest.mark.first(1)
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_hessians_in_every_mode(inner, outer):
  w = jnp.asarray(SYMMETRIC, FLOAT)
  exact = jax.hessian(lambda w: jnp.linalg.svd(w, compute_uv=False)[0])(w)
  assert float(exact.max()) == pytest.approx(0.2554, abs=1e-4)
  found = outer(inner(cold))(w, Dense())
  np.testing.assert_allclose(found, exact, atol=1e-5)
  squared = outer(inner(lambda w: 0.5 * cold(w, Dense()) ** 2))(w)
  assert float(squared.max()) == pytest.approx(1.5957, abs=1e-4)


@pytest.mark.thorough
def test_third_derivatives():
  w = jnp.asarray(SYMMETRIC, FLOAT)
  third = lambda f: jax.jacfwd(jax.jacrev(jax.grad(f)))(w)
  exact = third(lambda w: jnp.linalg.svd(w, compute_uv=False)[0])
  np.testing.assert_allclose(third(lambda w: cold(w, Dense())), exact, atol=1e-5)


@pytest.mark.thorough
def test_second_derivatives_of_linear_functions():
  w = jnp.asarray(SYMMETRIC, FLOAT)
  norm = lambda w: lipjax.operator_norm(lambda x: w @ x, jnp.zeros(3, FLOAT))
  bound = lambda w: lipjax.operator_norm_bounds(lambda x: w @ x, jnp.zeros(3, FLOAT)).lower
  expected = jax.hessian(cold)(w, Dense())
  for measure in (norm, bound):
    np.testing.assert_allclose(jax.hessian(measure)(w), expected, atol=1e-5)
  both = jax.vmap(jax.hessian(norm))(jnp.stack([w, 2 * w]))
  np.testing.assert_allclose(both, jnp.stack([expected, expected / 2]), atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_second_derivatives_at_any_scale(scale):
  w = jnp.asarray(SYMMETRIC, FLOAT)
  expected = jax.hessian(cold)(w, Dense())
  found = jax.hessian(cold)(w * scale, Dense()) * scale
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.first(2)
@pytest.mark.parametrize("w", [np.zeros((3, 3)), np.eye(3), np.ones((3, 2)), np.ones((1, 1))])
def test_second_derivatives_are_finite_at_ties_and_at_zero(w):
  found = jax.hessian(cold)(jnp.asarray(w, FLOAT), Dense())
  assert np.isfinite(found).all()
  assert w.any() or not found.any()


@pytest.mark.first(2)
@pytest.mark.parametrize("end", ["lower", "upper"])
@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_second_derivatives_of_bounds(end, mode):
  bound = lambda w: getattr(lipjax.spectral_norm_bounds({"w": w}, layout={"w": Dense()})["w"], end)
  w = jnp.asarray(SYMMETRIC, FLOAT)
  expected = jax.hessian(cold)(w, Dense())
  np.testing.assert_allclose(mode(jax.jacrev(bound))(w), expected, atol=1e-4)


@pytest.mark.thorough
def test_second_derivatives_of_bounds_of_convolutions():
  operator, w = lipjax.Convolution((6, 6), padding="CIRCULAR"), normal(11, (3, 3, 2, 2))
  layout, direction = {"w": operator}, normal(12, w.shape)
  bound = lambda w: lipjax.spectral_norm_bounds({"w": w}, layout=layout)["w"].upper
  along = lambda f: jax.jvp(jax.grad(f), (w,), (direction,))[1]
  np.testing.assert_allclose(along(bound), along(lambda w: cold(w, operator)), atol=1e-4)
