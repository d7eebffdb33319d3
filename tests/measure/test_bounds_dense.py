"""Certified intervals of matrices: never a violation, whatever the spectrum, scale and dtype."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, X64, normal, top_sigma, with_spectrum

import lipjax
from lipjax.measure.gram import gram_upper_bound, n_gram_steps
from lipjax.rounding.errors import product_error, transpose_product, two_sum

SCALES = (1e-30, 1e-3, 1.0, 1e30)
KINDS = (
  "gaussian",
  "orthogonal",
  "condition",
  "clustered",
  "rank_one",
  "sparse",
  "positive",
  "hadamard",
)


def matrix(seed, kind, m, n):
  """A float64 matrix of one of many kinds of structure, with a norm near 1."""
  rng, r = np.random.default_rng(seed), min(m, n)
  if kind == "gaussian":
    return rng.standard_normal((m, n)) / np.sqrt(max(m, n))
  if kind == "orthogonal":
    return with_spectrum(seed, m, n, np.ones(r))
  if kind == "condition":
    return with_spectrum(seed, m, n, np.geomspace(1, 10.0 ** -rng.uniform(0, 8), r))
  if kind == "clustered":
    return with_spectrum(seed, m, n, 1 - rng.uniform(0, 1e-4, r))
  if kind == "rank_one":
    return np.outer(rng.standard_normal(m), rng.standard_normal(n)) / np.sqrt(m * n)
  if kind == "sparse":
    return rng.standard_normal((m, n)) * (rng.uniform(size=(m, n)) < 3 / n)
  if kind == "positive":
    return rng.uniform(size=(m, n)) / np.sqrt(m * n)
  signs = rng.choice([-1.0, 1.0], (m, n))
  return signs / np.sqrt(max(m, n))


@jax.jit
def intervals(w):
  return lipjax.spectral_norm_bounds({"w": w}, layout={"w": lipjax.Dense((2,), (1,), (0,))})["w"]


def check(w, width=1e-3):
  """Truth from the weights as they are stored; the worst width."""
  bounds = jax.tree.map(lambda x: np.asarray(x, np.float64), intervals(w))
  truth = top_sigma(np.asarray(w.astype(jnp.promote_types(w.dtype, jnp.float32)), np.float64))
  slack = 1e-14 * truth  # of the SVD that is the truth
  assert np.all(bounds.lower <= truth + slack)
  assert np.all(truth - slack <= bounds.upper)
  assert np.all(bounds.upper <= bounds.lower * (1 + width))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", *(["float64"] if X64 else [])])
@pytest.mark.parametrize(("m", "n"), [(1, 7), (2, 2), (33, 20), (130, 128)])
def test_no_matrix_is_outside(m, n, dtype):
  cases = itertools.product(KINDS, SCALES, range(3))
  w = np.stack([matrix(seed, kind, m, n) * scale for kind, scale, seed in cases])
  check(jnp.asarray(w, dtype))


@pytest.mark.parametrize("kind", ["orthogonal", "gaussian"])
def test_width_at_512(kind):
  check(jnp.asarray(np.stack([matrix(0, kind, 512, 512)]), FLOAT))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_ten_thousand_matrices(seed):
  # 100 stacks of 100, sizes 1 to 512 with few large ones: about half an hour in all.
  rng = np.random.default_rng(seed)
  m, n = (int(2 ** rng.uniform(0, 9 if seed % 10 == 0 else 7)) for _ in range(2))
  dtype = ("float32", "bfloat16", "float64" if X64 else "float32")[seed % 3]
  w = [
    matrix(1000 * seed + i, KINDS[i % len(KINDS)], m, n) * 10.0 ** rng.uniform(-30, 30)
    for i in range(100)
  ]
  check(jnp.asarray(np.stack(w), dtype))


@pytest.mark.parametrize("seed", range(2))
def test_ascended_against_the_bound(seed):
  # Weights moved to make the truth as large as it can be against the upper end.
  w = normal(seed, (1, 24, 24))
  for _ in range(20):
    ratio = lambda w: jnp.linalg.norm(w[0], 2) / intervals(w).upper[0]
    w = w + 0.3 * jnp.linalg.norm(w) * jax.grad(ratio)(w)
  check(w)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_slices_without_a_norm_are_nan_and_zero_is_zero(bad):
  w = normal(0, (3, 4, 4)).at[1].set(0).at[2, 1, 1].set(bad)
  bounds = intervals(w)
  assert bounds.upper[0] > bounds.lower[0] > 0
  assert bounds.upper[1] == bounds.lower[1] == 0
  assert np.isnan(bounds.upper[2])
  assert np.isnan(bounds.lower[2])


def test_empty_and_diagonal():
  params = {"a": {"kernel": jnp.ones((0, 3))}, "b": {"scale": jnp.array([1.0, -2.5])}}
  bounds = lipjax.spectral_norm_bounds(params)
  assert bounds["a/kernel"][:2] == (0, 0)
  assert bounds["b/scale"][:2] == (2.5, 2.5)
  assert bounds["b/scale"].names == "exact"


def test_every_stack_axis_and_layout():
  operator = lipjax.Dense((3, 0), (2,), (4, 1))
  w = normal(0, (3, 2, 4, 5, 2))
  bounds = lipjax.spectral_norm_bounds({"w": w}, layout={"w": operator})["w"]
  truth = top_sigma(operator.matrix(np.asarray(w)))
  assert bounds.lower.shape == truth.shape == (2, 2)
  assert np.all((bounds.lower <= truth * (1 + 1e-15)) & (truth <= bounds.upper * (1 + 1e-15)))


def test_equal_small_leaves_are_measured_together():
  params = {f"Dense_{i}": {"kernel": normal(i, (5, 6))} for i in range(3)}
  for path, bounds in lipjax.spectral_norm_bounds(params).items():
    truth = np.linalg.norm(np.asarray(params[path.split("/")[0]]["kernel"], np.float64), 2)
    assert bounds.lower <= truth <= bounds.upper
    assert bounds.names == "gram"


@pytest.mark.parametrize("kind", ["gaussian", "positive", "condition"])
def test_gradient_of_the_upper_end_is_the_closed_form(kind):
  # ∂U/∂W = U⁻¹ W (WᵀW/U²)^(2^N − 1), METHODS §6.
  w = jnp.asarray(matrix(0, kind, 12, 9), FLOAT)
  found = np.asarray(jax.grad(gram_upper_bound)(w), np.float64)
  w = np.asarray(w, np.float64)
  u, s, vt = np.linalg.svd(w, full_matrices=False)
  order = 2.0 ** (n_gram_steps(9, 2e-4) + 1)
  relative = s / s[0]
  weights = relative ** (order - 1) * np.sum(relative**order) ** (1 / order - 1)
  np.testing.assert_allclose(found, (u * weights) @ vt, atol=1e-9 if X64 else 2e-4)


@pytest.mark.skipif(not X64, reason="needs float64 (LIPJAX_TEST_X64=1)")
@pytest.mark.parametrize("end", ["lower", "upper"])
def test_gradient_of_both_ends_is_the_finite_difference(end):
  w, direction = normal(0, (1, 7, 5)), normal(1, (1, 7, 5))
  value = lambda t: getattr(intervals(w + t * direction), end)[0]
  step = 1e-6
  difference = (value(step) - value(-step)) / (2 * step)
  np.testing.assert_allclose(jax.grad(value)(0.0), difference, rtol=1e-6)
  np.testing.assert_allclose(jax.jvp(value, (0.0,), (1.0,))[1], difference, rtol=1e-6)


def test_derivatives_at_zero_are_zero():
  gradient = jax.grad(lambda w: intervals(w).upper.sum() + intervals(w).lower.sum())
  np.testing.assert_array_equal(gradient(jnp.zeros((1, 3, 4))), 0)


def test_jit_vmap_and_scan_give_the_same():
  w = normal(0, (3, 1, 6, 4))
  one = [intervals(x) for x in w]
  mapped = jax.jit(jax.vmap(intervals))(w)
  scanned = jax.lax.scan(lambda c, x: (c, intervals(x)), 0, w)[1]
  for i, bounds in enumerate(one):
    for other in (mapped, scanned):
      np.testing.assert_allclose(other.lower[i], bounds.lower, rtol=1e-6)
      np.testing.assert_allclose(other.upper[i], bounds.upper, rtol=1e-6)


def test_two_sum_survives_the_compiler():
  # The chunks' sums rest on it: a compiler that simplified it would lose the error kept.
  big = FLOAT(2.0 ** (60 if X64 else 27))
  total, lost = jax.jit(two_sum)(big, FLOAT(1.25))
  assert float(total) == float(big)
  assert float(lost) == 1.25


@pytest.mark.parametrize(
  ("stack", "k", "chunk"),
  [((2,), 500, 8), ((2,), 500, 64), ((2,), 500, 500), ((), 500, 35), ((), 500, 8), ((3,), 11, 16),
   ((), 17, 16), ((2, 2), 90, 16), ((2**13,), 128, 8)],
)  # fmt: skip
def test_products_are_as_exact_as_said(stack, k, chunk):
  """One product, chunks by pairs, many of them or entries in a loop, small ones by entries."""
  a, b = normal(0, (*stack, k, 6), np.float32), normal(1, (*stack, k, 7), np.float32)
  wide = lambda x: np.asarray(x).astype(np.float64)
  exact = lambda a, b: np.swapaxes(wide(a), -2, -1) @ wide(b)
  error = np.abs(wide(transpose_product(a, b, chunk)) - exact(a, b))
  assert np.all(error <= product_error(k, chunk, np.float32) * exact(np.abs(a), np.abs(b)))


def test_chunks_make_products_more_exact():
  assert product_error(500, 8, np.float32) < product_error(500, 500, np.float32) / 20


def test_an_operator_without_a_bound_says_what_to_do():
  class Other(lipjax.Dense):
    pass

  class Strange(lipjax.Diagonal):
    has_closed_form = False

    def slice_operator(self):
      return self

  assert lipjax.spectral_norm_bounds({"w": jnp.eye(2)}, layout={"w": Other()})["w"].upper < 1.001
  with pytest.raises(ValueError, match="operator_norm_bounds"):
    lipjax.spectral_norm_bounds({"w": jnp.ones(2)}, layout={"w": Strange()})
