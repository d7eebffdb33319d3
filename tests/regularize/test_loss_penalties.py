"""Penalties for a loss against gradients of float64 SVDs, and against optax's L2."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import FLOAT, X64, normal, top_sigma, with_spectrum

import lipjax

PARAMS = {
  "a": {
    "kernel": jnp.asarray(with_spectrum(0, 6, 4, [3.0, 1.0, 0.5, 0.2]), FLOAT),
    "bias": jnp.ones(4, FLOAT),
  },
  "b": {"kernel": jnp.asarray(with_spectrum(1, 6, 4, [2.0, 1.0, 0.5, 0.2]), FLOAT)},
  "ScanC": {
    "kernel": jnp.asarray(
      np.stack([with_spectrum(i, 6, 4, [i, 0.5, 0.2, 0.1]) for i in (2, 4)]), FLOAT
    )
  },
  "norm": {"scale": jnp.asarray([0.5, -5.0, 1.0], FLOAT)},
}
SIGMAS = np.array([3.0, 2.0, 2.0, 4.0, 5.0])
VALUES = {
  "squared": 0.5 * np.sum(SIGMAS**2),
  "norm": np.sum(SIGMAS),
  "hinge": 0.5 * np.sum(np.maximum(SIGMAS - 2.5, 0) ** 2),
  "power": np.sum((SIGMAS**2 - 1) ** 2),
}
TARGETS = {"squared": None, "norm": None, "hinge": 2.5, "power": None}
SLOPES = {
  "squared": lambda s: s,
  "norm": np.ones_like,
  "hinge": lambda s: np.maximum(s - 2.5, 0),
  "power": lambda s: 4 * (s**2 - 1) * s,
}


def svd_gradient(w, slope):
  u, s, vt = np.linalg.svd(np.asarray(w, np.float64), full_matrices=False)
  return slope(s[..., :1, None]) * u[..., :, :1] * vt[..., :1, :]


@pytest.mark.parametrize("penalty", VALUES)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_spectral_penalty(penalty, warm):
  vectors = lipjax.init_singular_vectors(PARAMS) if warm else None

  def loss(params):
    return lipjax.spectral_penalty(
      params, vectors, penalty=penalty, target=TARGETS[penalty], n_steps=60
    )

  value, gradient = jax.jit(jax.value_and_grad(loss))(PARAMS)
  np.testing.assert_allclose(value, VALUES[penalty], rtol=2e-5)
  slope = SLOPES[penalty]
  # Lanczos vectors are good to the square root of sigma's tolerance, 1e-3 in float32.
  atol = ((1e-5 if X64 else 2e-3) * 5 if not warm else 1e-4) * max(1, slope(np.array(5.0)) / 5)
  for name in ("a", "b", "ScanC"):
    expected = svd_gradient(PARAMS[name]["kernel"], slope)
    np.testing.assert_allclose(gradient[name]["kernel"], expected, atol=atol, err_msg=name)
  np.testing.assert_allclose(gradient["norm"]["scale"], [0, -slope(np.array(5.0)), 0], rtol=1e-6)
  assert not gradient["a"]["bias"].any()


def test_spectral_penalty_is_constant_in_the_vectors():
  params = {"kernel": PARAMS["a"]["kernel"]}
  vectors = lipjax.init_singular_vectors(params)
  gradient = jax.grad(lambda v: lipjax.spectral_penalty(params, vectors._replace(v=v)))(vectors.v)
  assert not gradient.any()


@pytest.mark.parametrize("penalty", VALUES)
def test_zero_has_value_and_gradient_zero(penalty):
  target = TARGETS[penalty]
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  value, gradient = jax.value_and_grad(
    lambda p: lipjax.spectral_penalty(p, penalty=penalty, target=target)
  )(zeros)
  assert float(value) == (len(SIGMAS) if penalty == "power" else 0)  # (0 - 1)^2 each
  assert not any(np.any(x) for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_power_penalty_has_no_nan_at_any_scale(scale):
  params = {"kernel": scale * PARAMS["a"]["kernel"]}
  value, gradient = jax.value_and_grad(
    lambda p: lipjax.spectral_penalty(p, penalty="power", exponent=2)
  )(params)
  assert not np.isnan(value)
  tx = lipjax.add_spectral_decay(0.1, penalty="power")
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params)
  assert not any(np.isnan(x).any() for x in jax.tree.leaves((gradient, updates)))


def test_frobenius_penalty_is_optax_weight_decay():
  gradient = jax.grad(lipjax.frobenius_penalty)(PARAMS)
  l2 = optax.add_decayed_weights(1.0)
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  decayed, _ = l2.update(zeros, l2.init(PARAMS), PARAMS)
  for name in ("a", "b", "ScanC"):
    np.testing.assert_allclose(gradient[name]["kernel"], decayed[name]["kernel"], rtol=1e-5)
  np.testing.assert_allclose(gradient["norm"]["scale"], decayed["norm"]["scale"], rtol=1e-5)
  assert not gradient["a"]["bias"].any()  # no operator
  total = 0.5 * sum(
    np.sum(np.square(np.asarray(w, np.float64)))
    for w in (*(PARAMS[n]["kernel"] for n in ("a", "b", "ScanC")), PARAMS["norm"]["scale"])
  )
  np.testing.assert_allclose(lipjax.frobenius_penalty(PARAMS), total, rtol=1e-5)


def test_l1_penalty():
  value, gradient = jax.value_and_grad(lipjax.l1_penalty)(PARAMS)
  total = sum(np.sum(np.abs(np.asarray(w, np.float64))) for w in jax.tree.leaves(PARAMS))
  np.testing.assert_allclose(value, total, rtol=1e-5)
  jax.tree.map(lambda g, w: np.testing.assert_array_equal(g, np.sign(w)), gradient, PARAMS)
  at_zero = jax.grad(lipjax.l1_penalty)({"w": jnp.zeros(3)})
  np.testing.assert_array_equal(at_zero["w"], 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(dtype):
  params = {"kernel": normal(3, (6, 4), dtype)}
  for penalty in (lipjax.spectral_penalty, lipjax.frobenius_penalty, lipjax.l1_penalty):
    value, gradient = jax.value_and_grad(penalty)(params)
    assert value.dtype == jnp.float32
    assert gradient["kernel"].dtype == dtype
    assert np.isfinite(np.asarray(gradient["kernel"], np.float32)).all()
  np.testing.assert_allclose(
    lipjax.spectral_penalty(params), 0.5 * top_sigma(params["kernel"]) ** 2, rtol=2e-5
  )


def test_a_tree_without_operators_has_penalty_zero():
  for penalty in (lipjax.spectral_penalty, lipjax.frobenius_penalty):
    assert float(penalty({"bias": jnp.ones(3)})) == 0


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"penalty": "cubed"}, "'squared', 'norm', 'hinge'"),
    ({"penalty": "hinge"}, "target"),
    ({"target": 1.0}, "hinge"),
    ({"exponent": 2}, "use penalty='power'"),
    ({"vectors": 0.1}, "float 0.1 where singular vectors belong"),
  ],
)
def test_wrong_options_raise(options, message):
  with pytest.raises(ValueError, match=message):
    lipjax.spectral_penalty(PARAMS, **options)


def test_vectors_of_other_params_raise():
  vectors = lipjax.init_singular_vectors({"kernel": jnp.ones((6, 4))})
  with pytest.raises(ValueError, match="init_singular_vectors"):
    lipjax.spectral_penalty(PARAMS, vectors)


def test_frobenius_hinge_is_zero_inside_and_pulls_back_outside():
  w = PARAMS["a"]["kernel"]
  norm = float(np.linalg.norm(np.asarray(w, np.float64)))
  hinge = lambda w, target: lipjax.frobenius_penalty({"kernel": w}, penalty="hinge", target=target)
  value, gradient = jax.value_and_grad(hinge)(w, norm - 1)
  np.testing.assert_allclose(value, 0.5, rtol=1e-4)
  np.testing.assert_allclose(gradient, np.asarray(w) / norm, atol=1e-5)
  assert not jax.grad(hinge)(w, norm + 1).any()
  assert not jax.grad(hinge)(jnp.zeros_like(w), 1.0).any()
  with pytest.raises(ValueError, match="target"):
    lipjax.frobenius_penalty({"kernel": w}, penalty="hinge")
