"""spectral_norms against float64 SVDs, on every kind of matrix that is hard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, X64, normal, operator_sigma, rtol_of, top_sigma, with_spectrum

import lipjax
from lipjax import Dense, Diagonal

N = 64  # one shape for most cases, so one compilation
RNG = np.random.default_rng(0)


def nearly_tied():
  return with_spectrum(1, N, N, np.r_[1.0, 0.999, np.linspace(0.9, 0.1, N - 2)])


SQUARE = {
  "gaussian": RNG.standard_normal((N, N)),
  "ratio 0.999": nearly_tied(),
  "geometric 0.999": with_spectrum(2, N, N, 0.999 ** np.arange(N)),
  "rank one": with_spectrum(3, N, N, [2.5]),
  "rank one, integers": np.outer(np.arange(N), np.arange(N) % 3),
  "orthogonal": with_spectrum(4, N, N, np.ones(N)),
  "top value three times": with_spectrum(5, N, N, np.r_[np.full(3, 2.0), np.linspace(1, 0, N - 3)]),
  "top value nearly three times": with_spectrum(6, N, N, np.r_[2, 2 - 1e-6, 2 - 2e-6, np.ones(61)]),
  "one far above": with_spectrum(7, N, N, np.r_[1e4, np.ones(N - 1)]),
  "diagonal": np.diag(np.linspace(-3, 2.9, N)),
  "diagonal with one entry": np.diag(np.eye(N)[7] * -0.25),
  "permutation": np.eye(N)[RNG.permutation(N)],
  "shift (nilpotent)": np.eye(N, k=1),
  "nilpotent block": np.pad([[0.0, 1.0], [0.0, 0.0]], (0, N - 2)),
  "integers": RNG.integers(-4, 5, (N, N)),
  "all ones": np.ones((N, N)),
  "triangular ones": np.tri(N),
  "hilbert": 1 / (np.arange(N)[:, None] + np.arange(N) + 1.0),
  "zero": np.zeros((N, N)),
}
SQUARE |= {
  f"gaussian at {scale:g}": SQUARE["gaussian"] * scale for scale in (1e-30, 1e-20, 1e20, 1e30)
}
# METHODS section 2: the all-ones start is orthogonal to the answer.
orthogonal_start = np.zeros((N, N))
orthogonal_start[0, 0], orthogonal_start[0, 1] = 3 / np.sqrt(2), -3 / np.sqrt(2)
orthogonal_start[1, :2] = 0.5 / np.sqrt(2)
SQUARE["ones start orthogonal"] = orthogonal_start


@pytest.mark.parametrize("method", ["lanczos", "svd"])
@pytest.mark.parametrize("name", SQUARE)
def test_square_matrices(name, method):
  w = jnp.asarray(SQUARE[name], FLOAT)
  sigma = lipjax.spectral_norms({"kernel": w}, method=method)["kernel"]
  assert sigma.dtype == FLOAT
  np.testing.assert_allclose(sigma, top_sigma(w), rtol=rtol_of(w))


@pytest.mark.parametrize("name", sorted(set(SQUARE) - {"geometric 0.999"}))
def test_square_matrices_by_power_iteration(name):
  w = jnp.asarray(SQUARE[name], jnp.float32)
  sigma = lipjax.spectral_norms({"kernel": w}, method="power_iteration")["kernel"]
  # It stops when a step changes sigma by less than 8 eps = 1e-6, at a ratio of 0.999
  # anywhere between sigma2 and sigma1: that is the method, and why it is not the default.
  np.testing.assert_allclose(sigma, top_sigma(w), rtol=1e-3)


SHAPES = [(512, 512), (300, 40), (40, 300), (1, 64), (64, 1), (1, 1), (2, 2), (2, 70), (65, 66)]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape):
  w = normal(8, shape)
  sigma = lipjax.spectral_norms({"kernel": w})["kernel"]
  np.testing.assert_allclose(sigma, top_sigma(w), rtol=rtol_of(w))


@pytest.mark.parametrize("n", [1024, pytest.param(2048, marks=pytest.mark.slow)])
def test_large_gaussian_matrices(n):
  w = normal(9, (n, n), jnp.float32)
  sigma = lipjax.spectral_norms({"kernel": w})["kernel"]
  truth = np.sqrt(np.linalg.eigvalsh(np.asarray(w, np.float64).T @ np.asarray(w, np.float64))[-1])
  np.testing.assert_allclose(sigma, truth, rtol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("method", ["lanczos", "svd", "power_iteration"])
def test_empty_matrices_have_norm_zero(shape, method):
  sigma = lipjax.spectral_norms({"kernel": jnp.zeros(shape)}, method=method)["kernel"]
  assert float(sigma) == 0.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_weights(dtype):
  w = normal(10, (N, N), dtype)
  sigma = lipjax.spectral_norms({"kernel": w})["kernel"]
  assert sigma.dtype == jnp.float32
  np.testing.assert_allclose(sigma, top_sigma(w), rtol=1e-5)


@pytest.mark.skipif(not X64, reason="needs 64-bit arrays")
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_float64(scale):
  w = normal(11, (N, N), jnp.float64, scale)
  sigma = lipjax.spectral_norms({"kernel": w})["kernel"]
  np.testing.assert_allclose(sigma, top_sigma(w), rtol=1e-12)


@pytest.mark.parametrize("method", ["lanczos", "svd", "power_iteration"])
def test_subnormal_weights_give_no_nan(method):
  w = jnp.full((4, 3), 1e-40, jnp.float32)
  value, gradient = jax.value_and_grad(
    lambda w: lipjax.spectral_norms({"kernel": w}, method=method)["kernel"]
  )(w)
  # XLA may flush subnormal numbers to zero: then the norm is 0, and never more.
  assert 0 <= float(value) <= 1.001 * float(np.sqrt(12) * 1e-40)
  assert np.isfinite(gradient).all()
  assert np.abs(gradient).max() <= 1


@pytest.mark.parametrize("method", ["lanczos", "svd", "power_iteration"])
def test_slices_of_very_different_scale(method):
  scales = np.array([1e-30, 1.0, 0.0, 1e30, 1e-10])
  w = jnp.asarray(RNG.standard_normal((5, 6, 4)) * scales[:, None, None], jnp.float32)
  operator = Dense((1,), (2,), (0,))
  sigma = lipjax.spectral_norms({"w": w}, layout={"w": operator}, method=method)["w"]
  rtol = 1e-4 if method == "power_iteration" else 1e-5
  np.testing.assert_allclose(sigma, operator_sigma(operator, w), rtol=rtol)


@pytest.mark.parametrize("method", ["lanczos", "svd", "power_iteration"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_slice_or_leaf_is_nan_alone(bad, method):
  w = np.array(RNG.standard_normal((5, 6, 4)), np.float32)
  w[1, 2, 3] = bad
  leaf = RNG.standard_normal((6, 4)).astype(np.float32)
  poisoned = leaf.copy()
  poisoned[0, 0] = bad
  operator = Dense((1,), (2,), (0,))
  params = {"w": w, "clean": leaf, "poisoned": poisoned}
  layout = {"w": operator, "clean": Dense(), "poisoned": Dense()}
  norms = lipjax.spectral_norms(params, layout=layout, method=method)
  assert np.isnan(norms["w"]).tolist() == [False, True, False, False, False]
  assert np.isnan(norms["poisoned"])
  rtol = 1e-4 if method == "power_iteration" else 1e-5
  np.testing.assert_allclose(norms["clean"], top_sigma(leaf), rtol=rtol)
  np.testing.assert_allclose(norms["w"][2], top_sigma(w[2]), rtol=rtol)


def test_equal_leaves_are_measured_together_and_alone_alike():
  leaves = {f"layer_{i}": {"kernel": normal(20 + i, (6, 4), scale=10.0**i)} for i in range(4)}
  norms = lipjax.spectral_norms(leaves)
  assert list(norms) == sorted(norms)
  for path, sigma in norms.items():
    name = path.split("/")[0]
    np.testing.assert_allclose(sigma, top_sigma(leaves[name]["kernel"]), rtol=1e-5)


def test_numpy_params_and_jit_agree_with_jax_params():
  params = {
    "kernel": np.asarray(RNG.standard_normal((6, 4)), np.float32),
    "scale": np.ones(3, np.float32),
  }
  plain = lipjax.spectral_norms(params)
  jitted = jax.jit(lipjax.spectral_norms)(jax.tree.map(jnp.asarray, params))
  for path in plain:
    np.testing.assert_allclose(plain[path], jitted[path], rtol=1e-6)


def test_another_start_gives_the_same_norm():
  w = normal(12, (N, N))
  norms = [lipjax.spectral_norms({"kernel": w}, key=jax.random.key(i))["kernel"] for i in range(5)]
  np.testing.assert_allclose(norms, top_sigma(w), rtol=rtol_of(w))


def test_it_is_an_estimate_from_below():
  for seed in range(10):
    w = normal(30 + seed, (N, N), jnp.float32)
    # Only rounding may lift it: some tens of eps for dot products of length 64.
    sigma = lipjax.spectral_norms({"kernel": w}, tol=1e-2)["kernel"]
    assert float(sigma) <= top_sigma(w) * (1 + 64 * np.finfo(np.float32).eps)


def test_svd_of_a_scale_is_its_closed_form():
  norms = lipjax.spectral_norms({"scale": jnp.array([1.0, -3.0])}, method="svd")
  assert float(norms["scale"]) == 3.0


def test_an_unknown_method_raises():
  with pytest.raises(ValueError, match="lanczos"):
    lipjax.spectral_norms({"kernel": jnp.ones((2, 2))}, method="qr")


def test_layouts_of_a_stacked_scale():
  w = jnp.asarray([[1.0, -2.0], [0.0, 0.0], [3.0, 1.0]])
  sigma = lipjax.spectral_norms({"w": w}, layout={"w": Diagonal((0,))})["w"]
  assert sigma.tolist() == [2, 0, 3]
