"""Parts of the ellipsoid engine by themselves: norms, eigenvalues, multipliers at their limit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, X64, normal, top_sigma

import lipjax
from lipjax.certify.bounds import covariance
from lipjax.certify.bounds.ellipsoid import largest_eigenvalue
from lipjax.certify.bounds.layers import Layer, RawLayer, prepared
from lipjax.certify.lipschitz import bounds_by_engine


@pytest.mark.parametrize("scale", [0, 1e-25, 1e-10, 1, 1e10])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (300, 200)])
def test_norm_is_above(scale, shape):
  x = normal(0, shape, FLOAT, scale)
  truth = np.linalg.norm(np.asarray(x, np.float64))
  assert truth <= covariance._norm(x) <= truth * (1 + 2e-4) + 1e-15


def spectra():
  root = normal(0, (9, 3), FLOAT)
  yield "zeros", jnp.zeros((4, 4), FLOAT)
  yield "identity", jnp.eye(64, dtype=FLOAT)
  yield "rank one", jnp.outer(root[:, 0], root[:, 0])
  yield "rank three", root @ root.T
  yield "two alike", jnp.diag(jnp.asarray([1, 1, 0.5, 1e-6], FLOAT))
  yield "small", 1e-15 * root @ root.T
  yield "large", 1e15 * root @ root.T


@pytest.mark.parametrize("b", [pytest.param(b, id=name) for name, b in spectra()])
def test_largest_eigenvalue(b):
  truth = top_sigma(b)
  found, slopes = jax.value_and_grad(largest_eigenvalue)(b)
  # Of matrices of n values the 32nd root of the norm is within the 64th root of n.
  assert truth * (1 - 1e-6) <= found <= truth * len(b) ** (1 / 64)
  assert jnp.isfinite(slopes).all()
  # Twice the matrix, twice the value.
  np.testing.assert_allclose(jnp.vdot(slopes, b), found, rtol=1e-5)


A_OF = {
  "full": lambda rng, n: rng.standard_normal((n, 2 * n)),
  "rank two": lambda rng, n: rng.standard_normal((n, 2)),
  "scales": lambda rng, n: 10.0 ** rng.uniform(-4, 0, (n, 1)) * rng.standard_normal((n, n)),
  "identity": lambda rng, n: np.eye(n),
  "rows alike": lambda rng, n: np.ones((n, 1)) * rng.standard_normal((1, n)),
}


@pytest.mark.parametrize("kind", A_OF)
@pytest.mark.parametrize("share", [0.3, 0.99, 1.0])
def test_the_next_ellipsoid_is_not_too_small(kind, share):
  """Beside the exact one in float64, for all matrices that the computed one may stand for."""
  above = jax.jit(covariance._above)
  for seed in range(6):
    rng, n, m = np.random.default_rng(seed), 24, (12, 24, 40)[seed % 3]
    root = A_OF[kind](rng, n)
    a = np.asarray(root @ root.T / np.linalg.norm(root, 2) ** 2, FLOAT)
    d = 10.0 ** rng.uniform(-1, 1, n) * (rng.uniform(size=n) < 0.9)
    a64 = np.asarray(a, np.float64)
    d = d * np.sqrt(share * covariance.most(n, FLOAT) / top_sigma(d[:, None] * a64 * d))
    d, c = np.asarray(d * (1 - 1e-5), FLOAT), np.asarray(rng.uniform(-1, 1, n), FLOAT)
    own = np.asarray(10.0 ** rng.uniform(-3, 1, n), FLOAT)
    g, lost = np.asarray(rng.standard_normal((m, n)), FLOAT), (0, 1e-6, 1e-3, 0.1, 0, 1)[seed]
    nothing = dict.fromkeys(Layer._fields)
    layer = Layer(**nothing | {"matrix": jnp.asarray(g), "lost": jnp.asarray(lost, FLOAT)})
    found = np.asarray(above(*map(jnp.asarray, (a, d, c, own)), layer), np.float64)
    d, c, own, g = (np.asarray(x, np.float64) for x in (d, c, own, g))
    b = d[:, None] * a64 * d
    x = a64 + (a64 * d) @ np.linalg.solve(np.eye(n) - b, (a64 * d).T)
    p = c[:, None] * x * c + np.diag(own)
    assert np.isfinite(found).all()
    off = np.zeros_like(g)
    for _ in range(4):
      exact = (moved := g + off) @ p @ moved.T
      least, directions = np.linalg.eigh(found - exact)
      assert least[0] >= -1e-13 * np.linalg.norm(exact, 2), (seed, least[0])
      # The error that takes most away from what is left in the worst direction.
      worst = directions[:, 0]
      off = np.outer(worst, p @ moved.T @ worst)
      off *= lost / np.linalg.norm(off, 2)
    if lost == 0 and share < 0.5:
      assert top_sigma(found - g @ p @ g.T) <= 1e-3 * top_sigma(g @ p @ g.T)


@pytest.mark.thorough
@pytest.mark.parametrize(
  "of",
  [
    lipjax.lipschitz_upper_bound,
    pytest.param(lipjax.margin_upper_bounds, marks=pytest.mark.slow),
  ],
)
def test_multipliers_that_have_no_factor(of, monkeypatch):
  # I - B is singular at all of the limit; there are factors at less of it.
  monkeypatch.setattr(covariance, "most", lambda n, dtype: 1.0)
  # A size that no other test has: what is compiled for it is not used again.
  weights = [jnp.eye(11, dtype=FLOAT)] * 3

  def fn(weights, x):
    for w in weights[:-1]:
      x = jnp.where(x > 0, x, -x) @ w
    return x @ weights[-1]

  bound = lambda weights: jnp.sum(of(fn, 1)(weights, jnp.zeros(11, FLOAT)))
  found, slopes = jax.jit(jax.value_and_grad(bound))(weights)
  assert jnp.isfinite(found)
  assert all(jnp.isfinite(slope).all() and jnp.any(slope != 0) for slope in slopes)


def test_a_unit_that_is_too_small_leaves_a_function_a_function():
  # What a function makes of its values is in units of 2^after; they are in units of 2^read.
  low = -2000 if X64 else -200
  zeros = np.zeros(2, np.int32)
  ends = jnp.asarray([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]], FLOAT)
  eye, small = jnp.eye(2, dtype=FLOAT), jnp.zeros((), FLOAT)
  layers = [
    RawLayer(eye, small, ends, zeros, zeros, zeros - low, np.arange(2)),
    RawLayer(eye, small, ends, zeros - low, zeros - low, zeros, np.arange(2)),
  ]
  first = prepared(layers)[0]
  assert jnp.all(first.weights > 0)
  assert jnp.all(first.half * first.weights > 0)


@pytest.mark.parametrize("slope", [1e-30, 1e-42, 1e-60])
def test_slopes_beyond_the_weights_dtype(slope):
  # Slopes are known in float64; none may become 0 in the dtype of the weights.
  weights = [normal(i, (6, 6), jnp.float32) for i in range(3)]

  def fn(x):
    for w in weights[:-1]:
      # Of two factors: one of them would be 0 in float32 itself.
      x = w @ jnp.where(x > 0, math.sqrt(slope) * (math.sqrt(slope) * x), 0)
    return weights[-1] @ x

  found = bounds_by_engine(fn, 0, (jnp.zeros(6, jnp.float32),))
  assert set(found) == {"product", "ellipsoid"}
  assert all(0 < bound < 1e-25 for bound in found.values()), found
