"""Certified bounds of chains: never below the truth, the exact recursion plus rounding only."""

import functools
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, X64, normal, top_sigma

from lipjax.certify.bounds.chain import chain_upper_bounds
from lipjax.certify.bounds.chain_products import (
  exponent_of,
  product,
  product_lost,
  product_of_scalars,
  times_power_of_two,
)
from lipjax.certify.lipschitz import bounds_by_engine

DATA = Path(__file__).parents[3] / "shared" / "data" / "lipsdp"
ENGINES = {"magnitude", "eclipse"}
#: All widths up to 16 and of this depth are one compiled program.
DEPTH, WIDTH = 4, 16
WIDTHS = ((16, 16, 16, 16, 16), (3, 12, 9, 14, 2), (1, 1, 1, 1, 1), (13, 1, 16, 1, 9))
RELU = [(0.0, 1.0)] * (DEPTH - 1)


def network(seed, widths, dtype=FLOAT, scales=(1.0,) * DEPTH):
  return [
    normal(seed + i, (n_out, n_in), dtype, scale / math.sqrt(n_in))
    for i, (n_in, n_out, scale) in enumerate(zip(widths[:-1], widths[1:], scales, strict=True))
  ]


def random_slopes(seed, widths, low):
  """Per neuron, some 0, of which each end is exact in float32."""
  rng, slopes = np.random.default_rng(seed), []
  for n in widths[1:-1]:
    ends = np.sort(rng.uniform(low, 1.5, (2, n)) * (rng.uniform(size=n) < 0.9), axis=0)
    alpha, beta = ends.astype(np.float32)
    slopes.append((jnp.asarray(alpha), beta))
  return slopes


def exact(weights, slopes):
  """The engines' recursions in float64 numpy, with norms from the SVD."""
  ws = [np.asarray(w.astype(jnp.promote_types(w.dtype, jnp.float32)), np.float64) for w in weights]
  slopes = [
    tuple(np.broadcast_to(np.asarray(end, np.float64), w.shape[0]) for end in ends)
    for ends, w in zip(slopes, ws[:-1], strict=True)
  ]
  sizes = [np.maximum(abs(alpha), abs(beta)) for alpha, beta in slopes]
  us = [ws[0], *(w * size for w, size in zip(ws[1:], sizes, strict=True))]
  found = {"product": math.prod(top_sigma(u) for u in us)}

  magnitudes = abs(us[0])
  for u in us[1:]:
    magnitudes = abs(u) @ magnitudes
  found["magnitude"] = top_sigma(magnitudes)

  row, constants = [ws[0]], [top_sigma(ws[0])]
  for (alpha, beta), w, u in zip(slopes, ws[1:], us[1:], strict=True):
    row = [(w * (alpha + beta) / 2) @ a for a in row]
    row.append(w * (beta - alpha) / 2)
    total = sum(top_sigma(a) * c for a, c in zip(row, [1, *constants], strict=True))
    constants.append(min(total, top_sigma(u) * constants[-1]))
  found["liplt"] = constants[-1]

  if all(np.all(alpha >= 0) for alpha, _ in slopes):
    inverse, square = np.eye(us[0].shape[1]), 1.0
    for u in us:
      f = u @ inverse @ u.T
      t = top_sigma(f)
      square = square * t
      inverse = np.linalg.inv(2 * np.eye(len(f)) - f / (t if t else 1))
    found["eclipse"] = math.sqrt(square)
  return found


def jacobians(seed, weights, slopes, n=300):
  """The largest norm of Jacobians with slopes at random ends."""
  rng = np.random.default_rng(seed)
  weights = [np.asarray(w.astype(FLOAT), np.float64) for w in weights]
  total = np.broadcast_to(weights[0], (n, *weights[0].shape))
  for w, (alpha, beta) in zip(weights[1:], slopes, strict=True):
    alpha, beta = (
      np.broadcast_to(np.asarray(end, np.float64), w.shape[1]) for end in (alpha, beta)
    )
    # The first one has all of the upper ends.
    at_top = rng.uniform(size=(n, w.shape[1])) < np.linspace(1, 0, n)[:, None]
    total = w @ (np.where(at_top, beta, alpha)[..., None] * total)
  return top_sigma(total).max()


def quotients(seed, weights, slopes, n=300):
  """The largest slope found between random pairs, for functions with a kink at 0."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((weights[0].shape[1], n))
  out = (x, x + rng.standard_normal(x.shape) * 10.0 ** rng.uniform(-3, 1, n))
  length = np.linalg.norm(out[1] - out[0], axis=0)
  for w, ends in itertools.zip_longest(weights, slopes):
    out = [np.asarray(w.astype(FLOAT), np.float64) @ z for z in out]
    if ends is not None:
      low, high = (np.asarray(end, np.float64).reshape((-1, 1)) for end in ends)
      out = [np.where(z > 0, high, low) * z for z in out]
  return (np.linalg.norm(out[1] - out[0], axis=0) / length).max()


def check(weights, slopes, seed=0):
  bounds = chain_upper_bounds(weights, slopes)
  expected = exact(weights, slopes)
  assert set(bounds) == set(expected) - {"product", "liplt"}
  for name, bound in bounds.items():
    assert bound.shape == ()
    assert bound.dtype == FLOAT or not X64
    assert float(bound) >= expected[name] * (1 - 1e-12), name
    assert float(bound) <= expected[name] * (1 + (1e-3 if not X64 else 2e-4)) + 1e-30, name
  smallest = min(map(float, bounds.values()))
  assert smallest >= jacobians(seed, weights, slopes) * (1 - 1e-12)
  assert smallest >= quotients(seed, weights, slopes) * (1 - 1e-9)
  return bounds


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("seed", range(3))
def test_relu_networks(seed, widths):
  weights = network(10 * seed, widths)
  assert set(check(weights, RELU, seed)) == ENGINES


@pytest.mark.parametrize("low", [0.0, -0.5])
@pytest.mark.parametrize("widths", WIDTHS)
def test_slopes_of_every_neuron(widths, low):
  slopes = random_slopes(1, widths, low)
  bounds = check(network(1, widths), slopes)
  assert ("eclipse" in bounds) == all(np.all(np.asarray(alpha) >= 0) for alpha, _ in slopes)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes(dtype):
  weights = network(2, WIDTHS[1], dtype)
  if X64:
    weights[1] = weights[1].astype(jnp.float64)
  check(weights, RELU)


@pytest.mark.parametrize(
  "scales", [(1e30, 1e-30, 1e15, 1e-15), (1e-30, 1e-5, 1e5, 1e30), (1e-8,) * 4, (1e8,) * 4]
)
def test_scales(scales):
  check(network(3, WIDTHS[1], scales=scales), RELU)
  check(network(3, WIDTHS[1]), [(0.0, scale) for scale in scales[:3]])


def test_results_out_of_range():
  huge = chain_upper_bounds(network(3, WIDTHS[0], jnp.float32, (1e30,) * 4), RELU)
  tiny = chain_upper_bounds(network(3, WIDTHS[0], jnp.float32, (1e-30,) * 4), RELU)
  for name in ENGINES:
    # 1e120, 1e-120: an upper bound must not be 0.
    assert huge[name] == np.inf
    assert 0 < tiny[name] < 1e-37


@pytest.mark.parametrize("widths", WIDTHS)
def test_linear_chains_are_exact(widths):
  weights = network(4, widths)
  bounds = check(weights, [(1.0, 1.0)] * (DEPTH - 1))
  truth = top_sigma(np.linalg.multi_dot([np.asarray(w, np.float64) for w in weights[::-1]]))
  assert truth <= min(bounds.values())
  linear = lambda x: functools.reduce(lambda x, w: w @ x, weights, x)
  found = bounds_by_engine(linear, 0, (jnp.zeros(widths[0], FLOAT),))
  np.testing.assert_allclose(found["liplt"], truth, rtol=1e-4)


@pytest.mark.parametrize("widths", WIDTHS[:2])
def test_engines_of_any_graph(widths):
  """The product of the norms and LipLT, on a chain of which the recursion is known."""
  weights = network(11, widths)
  expected = exact(weights, RELU)

  def net(x):
    for w in weights[:-1]:
      x = jax.nn.relu(w @ x)
    return weights[-1] @ x

  found = bounds_by_engine(net, 0, (jnp.zeros(widths[0], FLOAT),))
  assert set(found) == set(expected)
  for name, bound in found.items():
    assert expected[name] * (1 - 1e-12) <= float(bound) <= expected[name] * (1 + 1e-3), name


def test_positive_relu_networks_are_exact():
  weights = [jnp.abs(w) for w in network(5, WIDTHS[1])]
  truth = top_sigma(np.linalg.multi_dot([np.asarray(w, np.float64) for w in weights[::-1]]))
  np.testing.assert_allclose(check(weights, RELU)["magnitude"], truth, rtol=1e-4)


def test_degenerate_weights():
  ones = [jnp.ones((n, m), FLOAT) for m, n in itertools.pairwise(WIDTHS[1])]
  check(ones, RELU)
  identities = [jnp.eye(9, dtype=FLOAT)] * DEPTH
  for bound in check(identities, RELU).values():
    np.testing.assert_allclose(bound, 1, rtol=1e-4)
  # Nothing of the first matrix reaches the second: only `magnitude` sees that.
  half = jnp.arange(9) < 4
  blind = [jnp.diag(half).astype(FLOAT), jnp.diag(~half).astype(FLOAT), *identities[:2]]
  bounds = check(blind, RELU)
  assert bounds["magnitude"] < 1e-30


@pytest.mark.parametrize("where", range(DEPTH))
def test_zero_weights_and_slopes_give_zero(where):
  weights = network(6, WIDTHS[1])
  zero = [*weights[:where], 0 * weights[where], *weights[where + 1 :]]
  assert all(x == 0 for x in chain_upper_bounds(zero, RELU).values())
  if where < DEPTH - 1:
    slopes = [*RELU[:where], (0.0, 0.0), *RELU[where + 1 :]]
    assert all(x == 0 for x in chain_upper_bounds(weights, slopes).values())
  # Only neurons that the next layer does not read.
  if where == 0:
    weights[1] = weights[1].at[:, 1:].set(0)
    slopes = [(0.0, np.arange(WIDTHS[1][1]) > 0), *RELU[1:]]
    assert all(x == 0 for x in chain_upper_bounds(weights, slopes).values())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_is_known_of_weights_that_are_not_finite(bad):
  weights = network(6, WIDTHS[1])
  weights[2] = weights[2].at[0, 0].set(bad)
  assert all(np.isnan(bound) for bound in chain_upper_bounds(weights, RELU).values())


def test_one_layer_and_empty_layers():
  w = normal(7, (5, 9))
  bounds = check([w], [])
  np.testing.assert_allclose(bounds["eclipse"], top_sigma(w), rtol=1e-4)
  empty = chain_upper_bounds([jnp.ones((0, 3)), jnp.ones((2, 0))], [(0.0, 1.0)])
  assert dict.fromkeys(ENGINES, 0) == empty


def test_gradients_are_directional_derivatives():
  # Of numpy's recursion; at zero weights they are 0.
  weights, slopes = network(8, WIDTHS[1]), [(0.1, 1.0)] * (DEPTH - 1)
  directions = network(9, WIDTHS[1])
  moved = lambda t: [
    np.asarray(w, np.float64) + t * np.asarray(d, np.float64)
    for w, d in zip(weights, directions, strict=True)
  ]
  above, below = exact(moved(1e-5), slopes), exact(moved(-1e-5), slopes)
  slope_ends = [tuple(map(FLOAT, ends)) for ends in slopes]

  @jax.jit
  def gradients(weights, slopes):
    # Traced slopes too, as of a learned leaky ReLU.
    bounds, back = jax.vjp(lambda w: chain_upper_bounds(w, slopes), weights)
    basis = dict(zip(bounds, jnp.eye(len(bounds), dtype=FLOAT), strict=True))
    (rows,) = jax.vmap(back)(basis)
    return {name: [row[i] for row in rows] for i, name in enumerate(bounds)}

  found = gradients(weights, slope_ends)
  for name, gradient in found.items():
    along = sum(float(jnp.vdot(g, d)) for g, d in zip(gradient, directions, strict=True))
    lengths = [
      jnp.linalg.norm(g) * jnp.linalg.norm(d) for g, d in zip(gradient, directions, strict=True)
    ]
    difference = (above[name] - below[name]) / 2e-5
    assert abs(along - difference) <= 5e-3 * float(sum(lengths)), name
  for name, gradient in gradients([0 * w for w in weights], slope_ends).items():
    assert all(not g.any() for g in gradient), name
  negative = [(-0.1 * ends[0], ends[1]) for ends in slope_ends]
  for gradient in gradients(weights, negative).values():
    assert all(np.isfinite(g).all() for g in gradient)


def test_vmap_inside_a_loop():
  nets = [network(seed, (4, 4, 4), scales=(1, 1)) for seed in range(4)]
  stacks = [jnp.stack(ws).reshape((2, 2, 4, 4)) for ws in zip(*nets, strict=True)]
  found = jax.lax.map(jax.vmap(lambda ws: chain_upper_bounds(ws, [(0.0, 1.0)])), stacks)
  for i, weights in enumerate(nets):
    expected = exact(weights, [(0.0, 1.0)])
    for name, value in ((name, expected[name]) for name in ENGINES):
      np.testing.assert_allclose(found[name].ravel()[i], value, rtol=2e-4)
      assert found[name].ravel()[i] >= value


@pytest.mark.parametrize(
  ("file", "lower", "upper", "engines"),
  [
    (
      "random_weights.mat",
      36.4822,
      39.9,
      {"magnitude": 36.4823, "eclipse": 39.901},
    ),
    ("mnist_weights.mat", 24.29, 26.9, {"eclipse": 26.809}),
  ],
)
def test_published_networks(file, lower, upper, engines):
  # Fazlyab et al. (2019), LipSDP: trained ReLU networks. The lower ends were reached.
  loadmat = pytest.importorskip("scipy.io").loadmat
  if not (DATA / file).exists():
    pytest.skip(f"needs {DATA / file}")
  weights = [jnp.asarray(w, FLOAT) for w in loadmat(DATA / file)["weights"].ravel()]
  bounds = chain_upper_bounds(weights, [(0.0, 1.0)] * (len(weights) - 1))
  assert lower <= min(bounds.values()) <= upper
  for name, value in engines.items():
    np.testing.assert_allclose(bounds[name], value, rtol=1e-4)


def test_slopes_are_rounded_outwards():
  w = jnp.ones((1, 1), jnp.float32)
  for beta in (1.1, 1 + 2**-30, 1e-50):
    assert all(float(x) >= beta for x in chain_upper_bounds([w, w], [(beta, beta)]).values())


def test_shapes_that_do_not_fit():
  w = jnp.ones((2, 3))
  with pytest.raises(ValueError, match="one pair of slopes between"):
    chain_upper_bounds([w, w.T], [])
  with pytest.raises(ValueError, match="weight 1 has shape"):
    chain_upper_bounds([w, w], [(0, 1)])
  with pytest.raises(ValueError, match="weight 0 has shape"):
    chain_upper_bounds([w[0]], [])
  with pytest.raises(ValueError, match=r"Slopes 0 must be scalars or of shape \(2,\)"):
    chain_upper_bounds([w, w.T], [(np.zeros(3), 1)])
  with pytest.raises(ValueError, match="above the upper end"):
    chain_upper_bounds([w, w.T], [(1, 0)])


def test_powers_of_two_are_exact():
  info = jnp.finfo(FLOAT)
  x = jnp.asarray([info.tiny, info.max, 1.0, 0.75, 0.0], FLOAT)
  k = exponent_of(x)
  np.testing.assert_array_equal(k, [info.minexp + 1, info.maxexp, 1, 0, 0])
  scaled = times_power_of_two(x, -k)
  np.testing.assert_array_equal(scaled, np.ldexp(np.asarray(x), -np.asarray(k)))
  np.testing.assert_array_equal(times_power_of_two(scaled, k), x)
  np.testing.assert_array_equal(times_power_of_two(x[2:4], jnp.int32(10**6)), np.inf)


def test_products_of_many_scalars():
  factors = np.random.default_rng(0).uniform(0.1, 1, 500)
  factor, exponent = product_of_scalars(jnp.asarray(factors, FLOAT))
  truth = np.sum(np.log2(np.asarray(jnp.asarray(factors, FLOAT), np.float64)))
  assert truth <= math.log2(factor) + int(exponent) <= truth + 1e-3


def test_products_lose_no_more_than_said():
  a, b = normal(0, (20, 70), jnp.float32), normal(1, (70, 33), jnp.float32)
  error = np.asarray(product(a, b), np.float64) - np.asarray(a, np.float64) @ np.asarray(
    b, np.float64
  )
  assert top_sigma(error) <= product_lost(a, b) <= 2e-3
