"""The interval of any linear function: a lower bound always, an upper one with a probability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, normal, rtol_of, top_sigma, with_spectrum

import lipjax
from lipjax import operator_norm_bounds

SPECTRA = {
  "gaussian": None,
  "flat": np.ones(200),
  "close": np.linspace(1, 0.9, 200),
  "decaying": np.geomspace(1, 1e-6, 200),
  "one": np.eye(1, 200)[0] + 1e-3,
}


def function_of(name):
  w = normal(0, (250, 200)) if SPECTRA[name] is None else with_spectrum(0, 250, 200, SPECTRA[name])
  w = jnp.asarray(w, FLOAT)
  return w, lambda x: w @ x


@pytest.mark.first(5)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("n_steps", [20, 200])
def test_contains_the_truth_and_is_as_wide_as_said(name, n_steps):
  w, fn = function_of(name)
  truth, x, slack = top_sigma(w), jnp.zeros(200, FLOAT), 10 * float(jnp.finfo(FLOAT).eps)
  run = jax.jit(lambda key: operator_norm_bounds(fn, x, n_steps=n_steps, key=key))
  for seed in range(5):
    bounds = run(jax.random.key(seed))
    assert bounds.lower <= truth * (1 + slack)
    assert truth * (1 - slack) <= bounds.upper
    assert bounds.names == "krylov"
  missing = 0 if n_steps == 200 else (np.log(1.648 * np.sqrt(200) / 1e-6) / 39) ** 2
  np.testing.assert_allclose(bounds.upper / bounds.lower, 1 / np.sqrt(1 - missing), rtol=1e-5)
  if n_steps == 200:
    np.testing.assert_allclose(bounds.lower, truth, rtol=rtol_of(w))


def test_fails_no_more_often_than_said():
  # With 12 steps, close singular values and a high probability, misses can be counted.
  w, fn = function_of("close")
  truth, x = top_sigma(w), jnp.zeros(200, FLOAT)
  run = lambda key: operator_norm_bounds(fn, x, n_steps=12, failure_probability=0.3, key=key)
  uppers = jax.jit(jax.vmap(lambda key: run(key).upper))(jax.random.split(jax.random.key(0), 200))
  assert np.mean(np.asarray(uppers) < truth) <= 0.3


@pytest.mark.thorough
def test_pytrees_convolutions_and_derivatives():
  w = normal(1, (3, 3, 2, 3))
  operator = lipjax.Convolution((6, 6), padding="REFLECT")
  fn = lambda w: lambda x: {"y": operator.apply(w, x["x"])}
  x = {"x": jnp.zeros((6, 6, 2), FLOAT)}
  bounds = operator_norm_bounds(fn(w), x, n_steps=72)
  certain = lipjax.spectral_norm_bounds({"w": w}, layout={"w": operator})["w"]
  assert certain.lower <= bounds.upper * (1 + 1e-5)
  assert bounds.lower <= certain.upper
  for end in ("lower", "upper"):
    found = jax.grad(lambda w, end=end: getattr(operator_norm_bounds(fn(w), x, n_steps=72), end))(w)
    expected = jax.grad(lambda w: lipjax.spectral_norms({"w": w}, layout={"w": operator})["w"])(w)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_zero_and_empty_functions():
  x = jnp.zeros(5)
  assert operator_norm_bounds(lambda x: 0 * x, x)[:2] == (0, 0)
  assert operator_norm_bounds(lambda x: x[:0], x)[:2] == (0, 0)


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"failure_probability": 0.0}, "between 0 and 1"),
    ({"failure_probability": 1.5}, "between 0 and 1"),
    ({"n_steps": 4}, "expected at least"),
  ],
)
def test_errors(options, said):
  with pytest.raises(ValueError, match=said):
    operator_norm_bounds(jnp.cumsum, jnp.zeros(100), **options)


def test_not_linear():
  with pytest.raises(ValueError, match="operator_norm_bounds needs a linear function"):
    operator_norm_bounds(jnp.tanh, jnp.zeros(3))
