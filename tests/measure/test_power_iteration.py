"""Power iteration: formats, starts, stopping, and what its estimate promises."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import FLOAT, normal, operator_sigma, top_sigma, with_spectrum

import lipjax
from lipjax import Dense, Diagonal, ReshapedKernel

FORMATS = ["one_sided", "two_sided"]
EPS = float(jnp.finfo(FLOAT).eps)
SEPARATED = with_spectrum(0, 6, 4, [3.0, 1.0, 0.5, 0.1])


def iterate(w, operator=None, **options):
  return lipjax.power_iteration(operator or Dense(), jnp.asarray(w, FLOAT), **options)


@pytest.mark.parametrize("format", FORMATS)
def test_converges_to_a_unit_triplet(format):
  sigma, u, v = iterate(SEPARATED, n_steps=40, format=format)
  # (1/3)^80 of the start's error is left: only rounding.
  np.testing.assert_allclose(sigma, 3.0, rtol=20 * EPS)
  np.testing.assert_allclose([u @ u, v @ v], 1, rtol=20 * EPS)
  np.testing.assert_allclose(
    jnp.asarray(SEPARATED, FLOAT).T @ v if v.shape == (4,) else v @ jnp.asarray(SEPARATED, FLOAT),
    sigma * u,
    atol=60 * EPS,
  )


def test_both_formats_take_the_same_steps():
  for n_steps in (1, 2, 3):
    a, b = (iterate(SEPARATED, n_steps=n_steps, format=f) for f in FORMATS)
    for x, y in zip(a, b, strict=True):
      np.testing.assert_allclose(x, y, rtol=0, atol=50 * EPS)


@pytest.mark.parametrize("format", FORMATS)
def test_the_error_shrinks_by_the_square_of_the_ratio(format):
  w = np.diag([1.0, 0.5])
  errors = [
    1 - float(iterate(w, n_steps=k, start=jnp.asarray([1.0, 1.0], FLOAT), format=format).sigma)
    for k in (1, 2, 3)
  ]
  # tan of the angle shrinks by (1/2)^2 a step and sigma's error by its square.
  for before, after in itertools.pairwise(errors):
    assert 1 / 20 < after / before < 1 / 10


@pytest.mark.parametrize("format", FORMATS)
def test_the_papers_all_ones_start_can_be_orthogonal_to_the_answer(format):
  # METHODS section 2: 0.5 for a true 3, until
  # rounding, which grows by 36 a step, brings the answer in. The random start does not.
  w = np.array([[3.0, -3.0], [0.5, 0.5]]) / np.sqrt(2)
  np.testing.assert_allclose(
    iterate(w, n_steps=2, start="ones", format=format).sigma, 0.5, rtol=1e-3
  )
  np.testing.assert_allclose(iterate(w, n_steps=20, format=format).sigma, 3.0, rtol=20 * EPS)


def test_a_given_start_of_any_length():
  sigma, u, _ = iterate(SEPARATED, n_steps=30, start=jnp.asarray([1e-3, 2e-3, 0, 1e-3], FLOAT))
  np.testing.assert_allclose(sigma, 3.0, rtol=20 * EPS)
  again = iterate(SEPARATED, n_steps=1, start=7 * u)
  np.testing.assert_allclose(again.sigma, 3.0, rtol=20 * EPS)


def test_keys_give_different_starts_and_the_default_is_fixed():
  one = lambda **k: float(iterate(SEPARATED, n_steps=1, **k).sigma)
  assert one() == one()
  assert one(key=jax.random.key(1)) != one(key=jax.random.key(2))


@pytest.mark.parametrize("format", FORMATS)
def test_tolerance(format):
  w = with_spectrum(1, 8, 8, [1.0, 0.9, *np.linspace(0.5, 0.1, 6)])
  for tol in (1e-2, 1e-4):
    sigma = float(iterate(w, tol=tol, format=format).sigma)
    # The true error is about tol / (1 - ratio^2).
    assert 1 - 2 * tol / (1 - 0.81) < sigma <= 1 + 20 * EPS


def test_max_steps_bounds_the_loop():
  stopped = iterate(SEPARATED, tol=0.0, max_steps=3)
  np.testing.assert_array_equal(stopped.sigma, iterate(SEPARATED, n_steps=3).sigma)


def test_n_steps_may_be_traced():
  run = jax.jit(lambda n: iterate(SEPARATED, n_steps=n).sigma)
  np.testing.assert_allclose(run(40), 3.0, rtol=20 * EPS)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
  st.sampled_from([(4, 4), (2, 5), (1, 3)]),
  st.integers(0, 2**32 - 1),
  st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
  st.sampled_from([1, 3]),
  st.sampled_from(FORMATS),
)
def test_the_estimate_is_a_lower_bound(shape, seed, scale, n_steps, format):
  w = normal(seed, shape, scale=scale)
  sigma = lipjax.power_iteration(Dense(), w, n_steps=n_steps, format=format).sigma
  # Dot products of at most 5 terms and two norms: 32 eps is generous.
  assert 0 < float(sigma) <= top_sigma(w) * (1 + 32 * EPS)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
  ("operator", "shape"),
  [
    (Dense((0,), (1, 2)), (6, 2, 2)),
    (Dense((2,), (0,), (1,)), (4, 3, 5)),
    (ReshapedKernel((0, 1), (2,)), (3, 2, 4)),
    (Diagonal((0,)), (3, 4)),
  ],
)
def test_any_operator(operator, shape, format):
  w = normal(3, shape)
  triplet = lipjax.power_iteration(operator, w, n_steps=300, format=format)
  assert triplet.u.shape == operator.output_shape(shape)
  assert triplet.v.shape == operator.input_shape(shape)
  np.testing.assert_allclose(triplet.sigma, operator_sigma(operator, w), rtol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("stop", [{"n_steps": 2}, {"tol": 1e-3}])
def test_zero_and_subnormal_give_no_nan(format, stop):
  # PEERS: haiku, equinox, torch and optax give NaN on zero.
  zero = iterate(np.zeros((3, 2)), format=format, **stop)
  assert [float(np.abs(x).max()) for x in zero] == [0, 0, 0]
  tiny = lipjax.power_iteration(
    Dense(), jnp.full((3, 2), 1e-40, jnp.float32), format=format, **stop
  )
  assert not any(np.isnan(x).any() for x in tiny)
  empty = iterate(np.zeros((0, 2)), format=format, **stop)
  assert float(empty.sigma) == 0


@pytest.mark.parametrize("format", FORMATS)
def test_norms_of_one_thousandth_are_not_eaten_by_an_epsilon(format):
  # PEERS: haiku's eps of 1e-4 turned a true 0.01 into 3e16, linen is wrong below 1e-6.
  for scale in (1e-2, 1e-3, 1e-6, 1e-12, 1e-25):
    sigma = iterate(SEPARATED * scale, n_steps=40, format=format).sigma
    np.testing.assert_allclose(sigma, 3 * scale, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(dtype):
  w = jnp.asarray(SEPARATED, dtype)
  triplet = lipjax.power_iteration(Dense(), w, n_steps=40)
  assert {x.dtype for x in triplet} == {jnp.dtype("float32")}
  np.testing.assert_allclose(triplet.sigma, top_sigma(w), rtol=1e-5)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, "n_steps or tol"),
    ({"n_steps": 1, "tol": 1e-3}, "n_steps or tol"),
    ({"n_steps": 1, "format": "three_sided"}, "two_sided"),
    ({"n_steps": 1, "start": "zeros"}, "'zeros'"),
    ({"n_steps": 1, "start": np.ones(6)}, r"\(6,\).*\(4,\)"),
  ],
)
def test_errors(options, message):
  with pytest.raises(ValueError, match=message):
    iterate(SEPARATED, **options)


def test_a_weight_of_another_rank_raises():
  with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
    iterate(np.ones((2, 3, 4)), n_steps=1)


def test_no_step_is_an_error_and_not_a_zero_norm():
  with pytest.raises(ValueError, match="n_steps is 0"):
    lipjax.power_iteration(lipjax.Dense(), jnp.eye(2), n_steps=0)
