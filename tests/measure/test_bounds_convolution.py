"""Certified intervals of convolutions against the dense operator in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, X64, dense_convolution, normal, top_sigma

import lipjax
from lipjax import Convolution
from lipjax.measure import convolution_bounds
from lipjax.operators.symbol import symbols


def truth_of(operator, w):
  return top_sigma(dense_convolution(operator, w)).max()


def check(operator, w, width=1e3):
  bounds = lipjax.spectral_norm_bounds({"w": w}, layout={"w": operator})["w"]
  wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))
  truth = truth_of(operator, wide)
  said = f"{operator!r} {w.shape}: {bounds} of {truth}"
  assert float(bounds.lower) <= truth * (1 + 1e-14), said
  assert truth * (1 - 1e-14) <= float(bounds.upper), said
  assert float(bounds.upper) <= float(bounds.lower) * (1 + width), said
  assert float(bounds.lower) >= truth * (1 - 1e-3), said
  return bounds, truth


@pytest.fixture
def no_matrix(monkeypatch):
  """Small operators by the rungs that large ones need."""
  monkeypatch.setattr(convolution_bounds, "MATRIX_SIDE", 0)
  jax.clear_caches()
  yield
  jax.clear_caches()


def random_configuration(seed):
  """A convolution of any kind that is small enough for its dense matrix, and its kernel."""
  rng = np.random.default_rng(seed)
  pick = lambda *values: values[rng.integers(len(values))]
  n_spatial = int(pick(1, 2, 2, 2, 3))
  shape = tuple(int(rng.integers(1, {1: 24, 2: 9, 3: 5}[n_spatial])) for _ in range(n_spatial))
  taps = tuple(int(rng.integers(1, 6 if n_spatial < 3 else 4)) for _ in range(n_spatial))
  groups = int(pick(1, 1, 1, 2, 3))
  each = lambda *values: tuple(int(pick(*values)) for _ in range(n_spatial))
  options = {"strides": each(1, 1, 2, 3), "kernel_dilation": each(1, 1, 1, 2)}
  kind = pick("SAME", "SAME", "VALID", "CIRCULAR", "REFLECT", "pairs", "replicate", "dilated")
  if kind in ("pairs", "replicate", "dilated"):
    low = -1 if kind == "pairs" else 0
    options["padding"] = tuple(tuple(map(int, rng.integers(low, 4, 2))) for _ in shape)
  else:
    options["padding"] = kind
  if kind == "replicate":
    options["padding_mode"] = "replicate"
  if kind == "dilated":
    options |= {"input_dilation": each(1, 2, 3), "padding_mode": pick("zeros", "circular")}
  operator = Convolution(shape, feature_group_count=groups, **options)
  w = rng.standard_normal((*taps, int(rng.integers(1, 4)), groups * int(rng.integers(1, 4))))
  structure = pick("gaussian", "smooth", "ones", "single", "checker")
  if structure == "smooth":
    w = 0.2 * w + rng.standard_normal((*(1,) * n_spatial, *w.shape[-2:]))
  elif structure == "ones":
    w = np.ones_like(w)
  elif structure == "single":
    w = w * (rng.uniform(size=(*taps, 1, 1)) < 0.3)
  elif structure == "checker":
    w = w * (-1.0) ** sum(np.ogrid[tuple(slice(t) for t in taps)])[..., None, None]
  scale, dtype = 10.0 ** rng.uniform(-25, 25), pick("float32", "float32", "bfloat16")
  return operator, jnp.asarray(w * scale, FLOAT if dtype == "float32" else dtype)


@pytest.mark.parametrize("seed", range(4))
def test_no_convolution_is_outside(seed, no_matrix):
  check(*random_configuration(seed))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(12))
@pytest.mark.parametrize("rungs", ["all", "no_matrix"])
def test_six_hundred_convolutions(part, rungs, request):
  if rungs == "no_matrix":
    request.getfixturevalue("no_matrix")
  jax.clear_caches()  # XLA crashes with some hundreds of programs in a process
  for seed in range(1000 + 50 * part, 1050 + 50 * part):
    check(*random_configuration(seed), width=1e3 if rungs == "no_matrix" else 0.01)


ASCENDED = {
  "zeros": Convolution((6, 6)),
  "circular": Convolution((6, 6), padding="CIRCULAR"),
  "strided": Convolution((7, 7), strides=2),
  "reflect": Convolution((5, 5), padding="REFLECT"),
  "replicate": Convolution((5, 5), padding=1, padding_mode="replicate"),
  "grid": Convolution((60,), padding="VALID"),
}


@pytest.mark.thorough
@pytest.mark.parametrize(
  "name",
  [
    name if name in ("zeros", "grid") else pytest.param(name, marks=pytest.mark.slow)
    for name in ASCENDED
  ],
)
def test_kernels_ascended_to_break_the_bound(name, no_matrix):
  operator = ASCENDED[name]
  w = normal(3, (*(3,) * len(operator.spatial_shape), 2, 2))

  @jax.jit
  @jax.grad
  def ascend(w):
    bounds = lipjax.spectral_norm_bounds({"w": w}, layout={"w": operator})["w"]
    return bounds.lower / bounds.upper

  for _ in range(60):
    step = ascend(w)
    w = w + 0.1 * jnp.linalg.norm(w) * step / (jnp.linalg.norm(step) + 1e-12)
  check(operator, w)


@pytest.mark.first(2)
@pytest.mark.parametrize(
  "m_n", [(5, 8), pytest.param((8, 8), marks=pytest.mark.slow), (3, 12)], ids=str
)
@pytest.mark.parametrize("strides", [1, 2])
def test_circular_is_tight(m_n, strides, no_matrix):
  n = 4 * strides
  operator = Convolution((n, n), padding="CIRCULAR", strides=strides)
  bounds, _ = check(operator, normal(0, (3, 3, *m_n)), width=0.01)
  assert bounds.names == "circulant"


@pytest.mark.thorough
@pytest.mark.parametrize("structure", ["gaussian", pytest.param("ones", marks=pytest.mark.slow)])
def test_zeros_at_32_are_within_two_per_cent(structure, no_matrix):
  w = normal(1, (3, 3, 2, 2)) if structure == "gaussian" else jnp.ones((3, 3, 1, 1), FLOAT)
  check(Convolution((32, 32)), w, width=0.02)


def test_all_ones_at_8_is_exact_by_twisted_ends(no_matrix):
  # The circulant without a twist reads 9, 8.6 % above.
  bounds, truth = check(Convolution((8, 8)), jnp.ones((3, 3, 1, 1), FLOAT), width=1e-3)
  np.testing.assert_allclose(truth, (1 + 2 * np.cos(np.pi / 9)) ** 2, rtol=1e-12)
  assert bounds.names == "circulant"


def test_smooth_kernels_on_small_inputs_are_tight(no_matrix):
  rng = np.random.default_rng(0)
  w = 0.3 * rng.standard_normal((3, 3, 4, 4)) + rng.standard_normal((1, 1, 4, 4))
  check(Convolution((8, 8)), jnp.asarray(w, FLOAT), width=0.02)


def test_a_small_matrix_is_tight_for_every_padding():
  for mode in ("zeros", "replicate"):
    operator = Convolution((5, 6), padding=1, padding_mode=mode, strides=(1, 2))
    bounds, _ = check(operator, normal(0, (3, 3, 4, 4)), width=1e-3)
    assert bounds.names == "matrix"


def test_windows_that_do_not_overlap_are_exact(no_matrix):
  operator = Convolution((16, 16), strides=4, padding="VALID")
  check(operator, normal(0, (4, 4, 3, 8)), width=1e-3)


def test_groups_take_the_largest_and_not_the_product(no_matrix):
  # PEERS.md: a peer multiplies over groups, 172.8 for a true 3.79.
  kernel = normal(0, (3, 3, 2, 8))
  bounds, truth = check(Convolution((8, 8), feature_group_count=4), kernel, width=0.1)
  each = [truth_of(Convolution((8, 8)), kernel[..., 2 * g : 2 * g + 2]) for g in range(4)]
  np.testing.assert_allclose(truth, max(each))
  assert bounds.upper < 1.1 * max(each)


@pytest.mark.first(3)
@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR", "REFLECT"])
@pytest.mark.parametrize("rungs", ["all", "no_matrix"])
def test_input_smaller_than_the_kernel(padding, rungs, request):
  # PEERS.md: a library's FFT with s= truncates such a kernel.
  if rungs == "no_matrix":
    request.getfixturevalue("no_matrix")
  check(Convolution((2, 3), padding=padding), normal(0, (5, 5, 2, 2)))


def test_zero_kernel_and_no_output():
  # PEERS.md: NaN in lip4conv.
  for operator in (Convolution((40, 40)), Convolution((2, 2), padding="VALID")):
    params = {"w": jnp.zeros((3, 3, 8, 8))}
    bounds = lipjax.spectral_norm_bounds(params, layout={"w": operator})["w"]
    assert bounds[:2] == (0, 0)


def test_a_kernel_that_is_not_finite():
  params = {"w": jnp.ones((3, 3, 8, 8)).at[0, 0, 0, 0].set(jnp.inf)}
  bounds = lipjax.spectral_norm_bounds(params, layout={"w": Convolution((40, 40))})["w"]
  assert np.isnan(bounds.lower)
  assert np.isnan(bounds.upper)


def test_stacks_of_kernels(no_matrix):
  operator = Convolution((6,), batch_axes=(1,))
  w = normal(0, (3, 4, 2, 3))
  bounds = lipjax.spectral_norm_bounds({"w": w}, layout={"w": operator})["w"]
  for i in range(4):
    truth = truth_of(operator.slice_operator(), w[:, i])
    assert bounds.lower[i] <= truth <= bounds.upper[i]


def test_angles_are_each_pair_once():
  # 33 x 33 angles of a real kernel are 545 with their mirrors left out.
  windows = Convolution((32, 32)).windows((3, 3, 1, 1))
  assert symbols(windows).angles.shape == (1, 545, 2)


@pytest.mark.skipif(not X64, reason="needs float64 (LIPJAX_TEST_X64=1)")
@pytest.mark.parametrize("end", ["lower", "upper"])
@pytest.mark.parametrize(
  "operator",
  [Convolution((40,)), Convolution((5, 5), padding=1, padding_mode="reflect")],
  ids=["zeros", "reflect"],
)
@pytest.mark.parametrize("rungs", ["all", "no_matrix"])
def test_gradient_of_both_ends_is_the_finite_difference(end, operator, rungs, request):
  if rungs == "no_matrix":
    request.getfixturevalue("no_matrix")
  shape = (*(3,) * len(operator.spatial_shape), 2, 3)
  w, direction, step = normal(0, shape), normal(1, shape), 1e-6

  @jax.jit
  def value(t):
    params = {"w": w + t * direction}
    return getattr(lipjax.spectral_norm_bounds(params, layout={"w": operator})["w"], end)

  difference = (value(step) - value(-step)) / (2 * step)
  np.testing.assert_allclose(jax.grad(value)(0.0), difference, rtol=1e-6)
  np.testing.assert_allclose(jax.jvp(value, (0.0,), (1.0,))[1], difference, rtol=1e-6)


@pytest.mark.parametrize("kind", ["shift", "delta"])
def test_maps_with_a_known_norm(kind, no_matrix):
  w = np.zeros((3, 3, 2, 2))
  w[(1, 1) if kind == "delta" else (0, 2)] = np.eye(2)
  bounds, truth = check(Convolution((9, 9)), jnp.asarray(w, FLOAT), width=0.01)
  np.testing.assert_allclose(truth, 1)
  assert bounds.upper < 1.01


def test_transposed_has_the_norm_of_the_convolution():
  forward = Convolution((8, 8), strides=2, padding=((1, 1), (1, 1)))
  w = normal(0, (4, 4, 3, 2))
  back = Convolution.transposed((4, 4), (4, 4), strides=2, transpose_kernel=True)
  found = [lipjax.spectral_norm_bounds({"w": w}, layout={"w": op})["w"] for op in (forward, back)]
  np.testing.assert_allclose(found[0].upper, found[1].upper, rtol=1e-3)
  assert all(itertools.starmap(lambda lower, upper, _: lower <= upper, found))
