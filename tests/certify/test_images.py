"""The ellipsoid of images, a matrix for each frequency: never below a slope, near the dense one."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from reference import FLOAT, jacobian, normal, top_sigma

import lipjax
from lipjax.certify.bounds import graph_layers
from lipjax.certify.bounds.ellipsoid import ellipsoid, first_multipliers
from lipjax.certify.bounds.layers import RawLayer, prepared
from lipjax.certify.bounds.torus import Torus, aliases, spectra, symbols
from lipjax.certify.compiled import on_arrays
from lipjax.certify.lipschitz import bounds_by_engine, engines

NHWC = ("NHWC", "HWIO", "NHWC")


@contextlib.contextmanager
def as_images():
  """Small graphs as if they were large."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(graph_layers, "is_worth", lambda _, widths: any(n > 1 for n, _ in widths))
    # They are in the keys of what is compiled.
    engines.cache_clear()
    yield
  engines.cache_clear()


@pytest.fixture
def only_images():
  with as_images():
    yield


def kernel(seed, *shape, gain=1.6):
  return normal(seed, shape, FLOAT, gain / np.sqrt(np.prod(shape[:-1])))


def conv(x, w, strides=(1, 1), padding="SAME", **options):
  return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=NHWC, **options)


relu = jax.nn.relu
W = [kernel(0, 3, 3, 2, 4), kernel(1, 3, 3, 4, 4), kernel(2, 3, 3, 4, 4), kernel(3, 1, 1, 4, 4)]
HEAD = normal(4, (4, 3), FLOAT, 0.5)
FLAT = normal(5, (64, 3), FLOAT, 0.2)


def mean(x):
  return x.mean((1, 2)) @ HEAD


def plain(x):
  return mean(relu(conv(relu(conv(x, W[0])), W[1])))


def strided(x):
  x = relu(conv(x, W[0], (2, 2)) + 1)
  return relu(conv(x, W[1], (2, 1))).reshape(-1) @ FLAT[:32]


def valid(x):
  x = relu(conv(x, W[0], padding="VALID"))
  return mean(relu(conv(x, W[1], (2, 2), [(0, 1), (2, 0)])))


def dilated(x):
  return mean(relu(conv(relu(conv(x, W[0])), W[1], rhs_dilation=(2, 1))))


def grouped(x):
  return mean(relu(conv(relu(conv(x, W[0])), W[1][:, :, :1], feature_group_count=4)))


def residual(x):
  x = relu(conv(x, W[0]))
  x = relu(x + conv(relu(conv(x, W[1])), W[2]))
  y = conv(relu(conv(x, W[2], (2, 2))), W[1])
  return relu(y + conv(x, W[3], (2, 2))).reshape(-1) @ FLAT


def preactivated(x):
  x = conv(x, W[0])
  x = x + conv(relu(2 * x - 1), W[1])
  return mean(relu(x + conv(relu(x), W[2])))


def normalized(x):
  scale, shift = jnp.asarray([0.5, 2.0, 1.0, 0.1], FLOAT), jnp.arange(4, dtype=FLOAT)
  x = jnp.tanh(conv(x, W[0]) * scale + shift)
  return mean(jax.nn.leaky_relu(conv(x, W[1]) * scale, 0.2) * -3)


def channels_first(x):
  x = jnp.transpose(x, (0, 3, 1, 2))
  order = ("NCHW", "HWIO", "NCHW")
  x = relu(lax.conv_general_dilated(x, W[0], (1, 1), "SAME", dimension_numbers=order))
  x = relu(lax.conv_general_dilated(x, W[1], (2, 2), "SAME", dimension_numbers=order))
  return x.mean((2, 3)) @ HEAD


def with_dense_layers(x):
  x = relu(conv(relu(conv(x, W[0], (2, 2))), W[1])).reshape(-1)
  return relu(x @ FLAT @ HEAD[:3]) @ HEAD[:3]


def pieces(x):
  a, b = jnp.split(conv(x, W[0]), 2, axis=-1)
  x = jnp.concatenate([relu(a), jnp.tanh(b[..., 1:]), relu(-a)[..., :1]], -1)
  return mean(relu(jnp.concatenate([conv(x, W[1])[..., ::2], a], -1)))


def pooled(x):
  x = nn.max_pool(relu(conv(x, W[0])), (2, 2), (2, 2))
  x = nn.max_pool(relu(conv(x, W[1])), (3, 3), (2, 1), "SAME")
  return mean(relu(conv(nn.avg_pool(x, (1, 2), (1, 2)), W[2])))


def averaged(x):
  x = nn.avg_pool(relu(conv(x, W[0])), (2, 2), (2, 2))
  return mean(relu(conv(nn.avg_pool(relu(x - 1), (3, 3), padding="SAME"), W[1], padding="VALID")))


def valid_twice(x):
  return mean(relu(conv(conv(x, W[0]), W[1], (2, 1), padding="VALID")))


def of_one_example(x):
  return plain(3 * x[0][None])


def in_one_dimension(x):
  of = lambda x, w, s: lax.conv_general_dilated(
    x, w, (s,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
  )
  x = relu(of(x[:, 0], W[0][0], 1))
  return relu(of(x, W[1][0], 2)).mean(1) @ HEAD


QUICK = [strided, grouped, channels_first]
SLOW = [
  plain, averaged, residual, preactivated, valid, dilated, normalized, with_dense_layers, pieces,
  valid_twice, of_one_example, in_one_dimension,
]  # fmt: skip
X = normal(6, (1, 8, 8, 2))


def steepest(fn, x, n=12, sizes=(1.0, 10.0, 100.0)):
  """The largest norm of Jacobians at points that are so far from one."""
  of, found = jax.jit(jax.jacobian(lambda x: fn(x).ravel())), 0.0
  for k in range(n):
    step = normal(k, x.shape, FLOAT)
    at = x + sizes[k % len(sizes)] * step / jnp.linalg.norm(step)
    found = max(found, top_sigma(np.asarray(of(at), np.float64).reshape(-1, x.size)))
  return found


@pytest.mark.first(1)
@pytest.mark.parametrize(
  "fn",
  [
    pytest.param(fn, id=fn.__name__, marks=[pytest.mark.slow] * (fn in SLOW)) for fn in QUICK + SLOW
  ],
)
def test_above_every_slope_and_no_better_than_dense(fn):
  dense = bounds_by_engine(fn, 0, (X,))["ellipsoid"]
  with as_images():
    found = bounds_by_engine(fn, 0, (X,))
  tied = found.pop("ellipsoid")
  assert steepest(fn, X) <= tied < min(found.values())
  # Multipliers are tied, and there is more room on the torus.
  assert 0.97 * dense <= tied <= 2.5 * dense


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(
  ("fn", "radius"),
  [*((fn, None) for fn in (*QUICK, *SLOW, pooled)), (residual, 0.1), (strided, 0.1)],
)
def test_never_below_a_slope_that_is_searched_for(fn, radius, only_images):
  found = bounds_by_engine(fn, 0, (X,), radius)
  slope = lipjax.lipschitz_lower_bound(fn, radius=radius, n_starts=16)(X)
  assert float(slope) <= min(found.values())


@pytest.mark.thorough
@pytest.mark.parametrize(
  "fn",
  [
    lambda x: conv(relu(conv(x, W[0])), W[1]),
    lambda x: x + conv(relu(conv(x, W[0])), W[1][..., :2]),
    pytest.param(lambda x: relu(conv(relu(conv(x, W[0])), W[1], (2, 2))), marks=pytest.mark.slow),
    pytest.param(
      lambda x: jnp.tanh(conv(x, W[0])).mean((1, 2), keepdims=True), marks=pytest.mark.slow
    ),
  ],
  ids=["chain", "residual", "strided", "mean"],
)
def test_results_that_are_images(fn):
  """As of denoisers: frequencies of the result move independently of one another."""
  dense = bounds_by_engine(fn, 0, (X,))["ellipsoid"]
  with as_images():
    found = bounds_by_engine(fn, 0, (X,))
    slope = jax.grad(lambda s: lipjax.lipschitz_upper_bound(lambda x: s * fn(x))(X))(1.0)
  assert steepest(fn, X) <= found["ellipsoid"]
  assert 0.97 * dense <= found["ellipsoid"] <= 2.5 * dense
  np.testing.assert_allclose(slope, min(found.values()), rtol=0.05)


@pytest.mark.thorough
def test_several_results_that_are_images():
  def fn(x):
    y = relu(conv(x, W[0]))
    return y, conv(y, W[1])

  joined = lambda x: jnp.concatenate(fn(x), axis=-1)
  with as_images():
    found = bounds_by_engine(fn, 0, (X,))["ellipsoid"]
  assert steepest(joined, X) <= found <= 2.5 * bounds_by_engine(joined, 0, (X,))["ellipsoid"]


@pytest.mark.thorough
def test_residual_convolutions_of_norm_1(only_images):
  def fn(x):
    inner, outer = lipjax.sll_kernels(W[0])
    return x - conv(relu(conv(x, inner)), outer)

  assert 0.9 < bounds_by_engine(fn, 0, (X,))["ellipsoid"] <= 1.1


@pytest.mark.thorough
def test_pools_by_the_maximum(only_images):
  found = bounds_by_engine(pooled, 0, (X,))
  assert "ellipsoid" in found
  assert steepest(pooled, X) <= min(found.values())


# As many rows as channels, and not.
@pytest.mark.thorough
@pytest.mark.parametrize("side", [8, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
  "between",
  [
    lambda x: x[:, 2:],
    lambda x: jnp.concatenate([x[:, :3], 2 * x], axis=1),
    pytest.param(lambda x: jnp.split(x, 2, axis=1)[1], marks=pytest.mark.slow),
    pytest.param(lambda x: jnp.concatenate([x, x], axis=0), marks=pytest.mark.slow),
  ],
)
def test_rows_are_not_channels(between, side, only_images):
  """What cuts rows off, or puts them together, does not commute with shifts."""
  w = [kernel(0, 3, 3, 2, 8), kernel(1, 3, 3, 8, 4)]
  fn = lambda x: mean(relu(conv(between(relu(conv(x, w[0]))), w[1])))
  x = X[:, :side]
  found = bounds_by_engine(fn, 0, (x,))
  assert "ellipsoid" not in found
  assert steepest(fn, x, 6) <= min(found.values())


def test_images_that_are_left_alone(only_images):
  gated = lambda x: mean(relu(conv(x, W[0])) * jnp.arange(8.0, dtype=FLOAT)[None, :, None, None])
  twice = lambda x: mean(relu(conv(conv(x, W[0]), W[1])))
  softmax = lambda x: mean(conv(jax.nn.softmax(conv(x, W[0])), W[1]))
  for fn in (gated, twice, softmax):
    found = bounds_by_engine(fn, 0, (X,))
    assert steepest(fn, X) <= min(found.values())


@pytest.mark.thorough
@pytest.mark.parametrize("fn", [strided, pytest.param(residual, marks=pytest.mark.slow)])
def test_on_a_ball(fn, only_images):
  everywhere = bounds_by_engine(fn, 0, (X,))["ellipsoid"]
  found = bounds_by_engine(fn, 0, (X,), 0.1)["ellipsoid"]
  assert steepest(fn, X, sizes=(0.1,)) <= found <= 1.01 * everywhere


@pytest.mark.thorough
@pytest.mark.parametrize(
  "gains", [(1e-12, 1e12), pytest.param((1e10, 1e-14), marks=pytest.mark.slow)]
)
def test_scales(gains, only_images):
  one, other = gains
  fn = lambda x: mean(relu(conv(relu(conv(x, one * W[0])), other * W[1])))
  found = bounds_by_engine(fn, 0, (X,))["ellipsoid"]
  np.testing.assert_allclose(
    found, one * other * bounds_by_engine(plain, 0, (X,))["ellipsoid"], 5e-3
  )


@pytest.mark.thorough
def test_pairs_derivatives_and_jit(only_images):
  def fn(params, x):
    return (relu(conv(relu(conv(x, params[0])), params[1])).mean((1, 2)) @ params[2])[0]

  params = [W[0], W[1], HEAD]
  pairs = jax.jit(lipjax.margin_upper_bounds(fn, 1))(params, X)
  j = jacobian(lambda x: fn(params, x), X)
  assert np.all(pairs >= np.linalg.norm(j[:, None] - j[None], axis=-1))
  bound = lambda params: bounds_by_engine(fn, 1, (params, X))["ellipsoid"]
  value, slopes = jax.jit(jax.value_and_grad(bound))(params)
  for w, slope in zip(params, slopes, strict=True):
    np.testing.assert_allclose(jnp.vdot(w, slope), value, rtol=0.05)


@pytest.mark.thorough
def test_no_factor_is_found_again_for_derivatives(only_images):
  """It would run beside the first, and batches of both can wait for each other for ever."""
  layers = prepared(layers_of(strided))
  objective = lambda m: jnp.trace(ellipsoid(layers, m, is_certified=False))
  first = first_multipliers(layers)
  programs, count = [jax.make_jaxpr(jax.grad(objective))(first).jaxpr], 0
  while programs:
    for eqn in programs.pop().eqns:
      count += eqn.primitive.name == "cholesky"
      inner = [getattr(p, "jaxpr", p) for p in jax.tree.leaves(list(eqn.params.values()))]
      programs += [p for p in inner if hasattr(p, "eqns")]
  assert count == len(layers) - 1


def layers_of(fn):
  found = on_arrays(engines("default"), fn, 0, (X,), None, None)
  return found[1]["ellipsoid"].layers


@pytest.mark.thorough
def test_real_and_imaginary_parts_are_in_one_unit():
  # Sums in another order differ by a rounding, and here on two sides of a power of two.
  low, one = np.nextafter(FLOAT(0.5), FLOAT(0)), np.ones(4, np.int32)
  real, imaginary = np.array([[1, 0], [low, 0]], FLOAT), np.zeros((2, 2), FLOAT)
  matrix = np.array(np.block([[real, -imaginary], [imaginary, real]]), FLOAT)
  matrix[3, 2] = 0.5
  slopes = np.tile(np.array([[1.0], [0.0], [1.0]], FLOAT), (1, 4))
  blocks = np.zeros((1, 1), int)
  rest = (0 * one, 0 * one, 0 * one, np.array([0, 1, 0, 1]), blocks, blocks.astype(bool))
  raw = RawLayer(jnp.asarray(matrix)[None, None], jnp.zeros((), FLOAT), jnp.asarray(slopes), *rest)
  scales = np.sum(prepared([raw, raw])[0].matrix[0, 0], axis=1) / np.sum(matrix, axis=1)
  np.testing.assert_array_equal(scales[:2], scales[2:])


@pytest.mark.thorough
@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 2)])
def test_symbols_are_those_of_the_convolution(strides):
  torus, w = Torus((6, 4)), normal(0, (3, 3, 2, 3))
  x = np.asarray(normal(1, (6, 4, 2)), np.float64)
  wrapped = jnp.pad(jnp.asarray(x, FLOAT)[None], ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
  y = np.asarray(conv(wrapped, w, strides, "VALID")[0], np.float64)
  coarse = torus.over(strides)
  frequencies = aliases(coarse.frequencies[None], torus, strides)
  taps = jnp.transpose(w.reshape((9, 2, 3)), (0, 2, 1))
  offsets = np.stack(np.unravel_index(np.arange(9), (3, 3)), -1) - 1
  found, lost = symbols(taps, offsets, frequencies, torus, np.prod(strides) ** -0.5)
  expected = _coefficients(y, coarse.frequencies)
  total = sum(
    np.einsum("fij,fj->fi", g, _coefficients(x, f))
    for g, f in zip(np.asarray(found, np.float64), frequencies, strict=True)
  )
  np.testing.assert_allclose(total, expected, atol=float(lost) * np.linalg.norm(x))
  places, flips = torus.places(frequencies)
  kept = torus.frequencies[places]
  np.testing.assert_array_equal(np.where(flips[..., None], -kept % (6, 4), kept), frequencies)


@pytest.mark.thorough
def test_spectra_are_those_of_linear_functions():
  torus, rows = Torus((7, 4)), normal(0, (5, 2, 4, 3))
  x = np.zeros((7, 4, 2))
  x[:4, :3] = normal(1, (4, 3, 2))
  found, lost = spectra(rows, torus)
  parts = _coefficients(x, torus.frequencies) * np.sqrt(torus.counts)[:, None]
  values = np.einsum("frc,fc->r", np.asarray(found, np.float64), parts)
  expected = np.einsum("rcij,ijc->r", np.asarray(rows, np.float64), x[:4, :3])
  np.testing.assert_allclose(values, expected, atol=float(lost) * np.linalg.norm(x))


def _coefficients(x, frequencies):
  """Unitary Fourier coefficients, real parts before imaginary ones."""
  all_of = np.fft.fft2(x, axes=(0, 1), norm="ortho")
  found = all_of[tuple(np.moveaxis(frequencies, -1, 0))]
  return np.concatenate([found.real, found.imag], -1)


@pytest.mark.thorough
def test_a_network_too_large_for_a_matrix():
  fn = functools.partial(_deep, [kernel(k, 3, 3, 6, 6) for k in range(4)])
  x = normal(0, (1, 19, 19, 6))
  found = bounds_by_engine(fn, 0, (x,))
  assert steepest(fn, x, 3) <= found["ellipsoid"]
  assert found["ellipsoid"] < 0.5 * found["product"]


def _deep(kernels, x):
  for w in kernels:
    x = relu(conv(x, w))
  return x.mean((1, 2))
