"""The ellipsoid engine: never below a slope, near the semidefinite program's optimum."""

import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from marks import thorough
from reference import FLOAT, X64, normal, top_sigma

import lipjax
from lipjax.certify.bounds import effort
from lipjax.certify.bounds.covariance import _seen
from lipjax.certify.bounds.ellipsoid import ellipsoid, first_multipliers
from lipjax.certify.bounds.layers import prepared
from lipjax.certify.compiled import on_arrays
from lipjax.certify.lipschitz import bounds_by_engine, engines

SLOW = pytest.mark.slow
DATA = Path(__file__).parents[3] / "shared" / "data" / "lipsdp"
WIDTHS = ((16, 16, 16, 16, 16), (3, 12, 9, 14, 2), (1, 1, 1, 1, 1), (13, 1, 16, 1, 9))


def network(seed, widths, scales=(1.0,) * 8):
  pairs = zip(widths[:-1], widths[1:], scales, strict=False)
  return [
    normal(seed + i, (n, m), FLOAT, scale / math.sqrt(m)) for i, (m, n, scale) in enumerate(pairs)
  ]


def leaky(low, high):
  """A function of slopes between two numbers, or vectors, that has both."""
  return lambda u: jnp.where(u > 0, high * u, low * u)


def apply(weights, functions, x):
  for w, function in zip(weights[:-1], functions, strict=True):
    x = function(w @ x)
  return weights[-1] @ x


def apply_relu(weights, x):
  return apply(weights, [jax.nn.relu] * (len(weights) - 1), x)


def relu_bound(weights, effort="default"):
  x = jnp.zeros(weights[0].shape[1], FLOAT)
  return float(bounds_by_engine(apply_relu, 1, (weights, x), effort=effort)["ellipsoid"])


def steepest(seed, weights, slopes, n=300):
  """The largest norm of Jacobians with slopes at random ends."""
  rng = np.random.default_rng(seed)
  weights = [np.asarray(w, np.float64) for w in weights]
  total = np.broadcast_to(weights[0], (n, *weights[0].shape))
  for w, (low, high) in zip(weights[1:], slopes, strict=True):
    low, high = (np.broadcast_to(np.asarray(x, np.float64), w.shape[1]) for x in (low, high))
    # The first one has all of the upper ends.
    at_top = rng.uniform(size=(n, w.shape[1])) < np.linspace(1, 0, n)[:, None]
    total = w @ (np.where(at_top, high, low)[..., None] * total)
  return top_sigma(total).max()


@pytest.mark.parametrize(
  ("effort", "widths"),
  [("default", widths) for widths in WIDTHS]
  + [pytest.param("tight", widths, marks=SLOW) for widths in WIDTHS],
)
def test_relu_networks(widths, effort):
  for seed in range(0, 30, 10):
    weights = network(seed, widths)
    found = relu_bound(weights, effort)
    truth = steepest(seed, weights, [(0.0, 1.0)] * 3)
    assert truth * (1 - 1e-12) <= found <= 2 * truth


@pytest.mark.first(2)
@pytest.mark.parametrize("low", [pytest.param(0.0, marks=SLOW), -0.5])
@pytest.mark.parametrize("widths", WIDTHS)
def test_slopes_of_every_neuron(widths, low):
  rng, weights, slopes = np.random.default_rng(1), network(1, widths), []
  for n in widths[1:-1]:
    ends = np.sort(rng.uniform(low, 1.5, (2, n)) * (rng.uniform(size=n) < 0.9), axis=0)
    slopes.append(tuple(map(jnp.asarray, ends.astype(np.float32))))
  fn = lambda x: apply(weights, [leaky(*ends) for ends in slopes], x)
  found = float(bounds_by_engine(fn, 0, (jnp.zeros(widths[0], FLOAT),))["ellipsoid"])
  assert found >= steepest(1, weights, slopes) * (1 - 1e-12)
  liplt = lipjax.lipschitz_upper_bound(fn, effort="fast")(jnp.zeros(widths[0], FLOAT))
  assert found <= 1.001 * liplt


@pytest.mark.parametrize(
  "scales", [(1e15, 1e-15, 1e10, 1e-10), (1e-15, 1e-5, 1e5, 1e15), (1e-8,) * 4, (1e8,) * 4]
)
def test_scales_change_nothing(scales):
  plain = relu_bound(network(3, WIDTHS[1]))
  found = relu_bound(network(3, WIDTHS[1], scales=scales))
  np.testing.assert_allclose(found, plain * math.prod(scales), rtol=5e-3)


def test_rescaled_neurons_change_nothing():
  weights = network(3, WIDTHS[1])
  factors = [2.0 ** normal(i, (n,), FLOAT, 4).round() for i, n in enumerate(WIDTHS[1][1:-1])]
  rescaled = list(weights)
  for i, by in enumerate(factors):
    rescaled[i], rescaled[i + 1] = by[:, None] * rescaled[i], rescaled[i + 1] / by
  np.testing.assert_allclose(relu_bound(rescaled), relu_bound(weights), rtol=0.02)


@pytest.mark.parametrize(
  "weights",
  [
    [jnp.ones((n, m), FLOAT) for m, n in itertools.pairwise(WIDTHS[1])],
    [jnp.eye(9, dtype=FLOAT)] * 4,
    [jnp.outer(normal(0, (9,)), normal(1, (9,)))] * 4,
    [jnp.tile(normal(0, (1, 9)), (9, 1))] * 4,
    [jnp.diag(10.0 ** jnp.linspace(-15, 0, 9).astype(FLOAT))] * 4,
  ],
  ids=["ones", "identities", "rank one", "rows alike", "ill-conditioned"],
)
def test_degenerate_weights(weights):
  found = bounds_by_engine(apply_relu, 1, (weights, jnp.zeros(weights[0].shape[1], FLOAT)))
  truth = steepest(0, weights, [(0.0, 1.0)] * (len(weights) - 1))
  assert truth * (1 - 1e-12) <= found["ellipsoid"] <= found["product"] * 1.01


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("widths", "cost"),
  [pytest.param((64, 64, 64, 64, 10), 5e-4, marks=SLOW), ((512, 512, 512, 3), 2e-3)],
)
def test_little_is_lost_to_rounding(widths, cost):
  weights = network(0, widths)
  layers = lambda found: prepared(found["ellipsoid"].layers)
  x = jnp.zeros(widths[0], FLOAT)
  layers = on_arrays(engines("default"), apply_relu, 1, (weights, x), None, None, layers)[1]
  multipliers = first_multipliers(layers)
  certified, plain = (
    top_sigma(np.asarray(ellipsoid(layers, multipliers, is_certified=is_certified)))
    for is_certified in (True, False)
  )
  assert plain < certified <= plain * (1 + 2 * (cost if not X64 else 1e-9))


def slanted(u):
  return jnp.where(u > 0, u, 0.9 * u)


@pytest.mark.parametrize(
  ("radius", "function"),
  [(None, jax.nn.relu), (0.3, slanted)]
  + [pytest.param(None, fn, marks=SLOW) for fn in (slanted, jax.nn.gelu)]
  + [pytest.param(0.3, fn, marks=SLOW) for fn in (jax.nn.relu, jax.nn.gelu)],
)
def test_liplt_is_no_better(function, radius):
  # Where layers follow one another it is left out.
  weights = [normal(i, (16, 16), FLOAT, 0.4) for i in range(4)]

  def fn(weights, x):
    for v, w in zip(weights[::2], weights[1::2], strict=True):
      x = v @ function(w @ x + 0.1)
    return x

  x = normal(9, (16,), FLOAT)
  found = bounds_by_engine(fn, 1, (weights, x), radius)
  assert list(found) == ["product", "ellipsoid"]
  liplt = bounds_by_engine(fn, 1, (weights, x), radius, effort="fast")["liplt"]
  assert found["ellipsoid"] <= 1.001 * liplt


@pytest.mark.first(1)
@pytest.mark.parametrize("n_layers", [2, 4, pytest.param(8, marks=SLOW)])
def test_liplt_is_no_better_without_a_step(n_layers, monkeypatch):
  monkeypatch.setattr(effort, "OPERATIONS", 0)
  for seed, slope in enumerate((0.0, 0.5, -1.0)):
    weights = [normal(10 * seed + i, (24, 24), FLOAT, 0.2) for i in range(n_layers)]
    function = leaky(jnp.full(24, slope, FLOAT), 1.0)
    fn = lambda weights, x, function=function: apply(weights, [function] * (n_layers - 1), x)
    args = weights, jnp.zeros(24, FLOAT)
    liplt = bounds_by_engine(fn, 1, args, effort="fast")["liplt"]
    assert bounds_by_engine(fn, 1, args)["ellipsoid"] <= 1.001 * liplt


@pytest.mark.slow
def test_liplt_is_no_better_after_a_single_step():
  weights = network(0, (600, 600, 600, 10))
  x = jnp.zeros(600, FLOAT)
  liplt = bounds_by_engine(apply_relu, 1, (weights, x), effort="fast")["liplt"]
  assert relu_bound(weights) <= liplt


@pytest.mark.parametrize("where", range(4))
def test_zero_weights(where):
  weights = network(6, WIDTHS[1])
  weights[where] = 0 * weights[where]
  assert relu_bound(weights) < 1e-5
  fn = lambda x: apply(weights, [jax.nn.relu] * 3, x)
  assert lipjax.lipschitz_upper_bound(fn)(jnp.ones(3, FLOAT)) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(bad):
  weights = network(6, WIDTHS[1])
  weights[2] = weights[2].at[0, 0].set(bad)
  assert relu_bound(weights) == np.inf


def test_results_out_of_range():
  huge = relu_bound(network(3, WIDTHS[0], (1e30,) * 4 if not X64 else (1e300,) * 4))
  small = relu_bound(network(3, WIDTHS[0], (1e-30,) * 4 if not X64 else (1e-300,) * 4))
  # An upper bound must not be 0.
  assert huge == np.inf
  assert 0 < small < 1e-37


@pytest.mark.parametrize(
  ("file", "lower", "default", "tight"),
  [
    pytest.param("random_weights.mat", 36.4822, 36.56, 36.49, marks=SLOW),
    ("mnist_weights.mat", 24.2992, 24.6, 24.45),
  ],
)
def test_published_networks(file, lower, default, tight):
  # Fazlyab et al. (2019), LipSDP: 36.482 and 24.366 are the program's optima.
  loadmat = pytest.importorskip("scipy.io").loadmat
  if not (DATA / file).exists():
    pytest.skip(f"needs {DATA / file}")
  weights = [jnp.asarray(w, FLOAT) for w in loadmat(DATA / file)["weights"].ravel()]
  assert lower <= relu_bound(weights) <= default
  assert lower <= relu_bound(weights, "tight") <= tight


def orthogonal(seed, n):
  return jnp.asarray(np.linalg.qr(np.asarray(normal(seed, (n, n), FLOAT)))[0], FLOAT)


SORTS = {
  "halves": lambda a, b: jnp.concatenate([jnp.maximum(a, b), jnp.minimum(a, b)]),
  "axis": lambda a, b: jnp.stack([jnp.stack([a, b]).max(0), jnp.stack([a, b]).min(0)], 1).ravel(),
  "sort": lambda a, b: jnp.sort(jnp.stack([a, b], 1), axis=1).ravel(),
  "difference": lambda a, b: jnp.concatenate([a + b + jnp.abs(a - b), a + b - jnp.abs(a - b)]) / 2,
}


@pytest.mark.thorough
@pytest.mark.parametrize(
  "name", [pytest.param(name, marks=[SLOW] * (name != "halves")) for name in SORTS]
)
def test_maxmin_networks(name):
  # The larger and the lesser together are 1-Lipschitz; one by one they would be √2 a layer.
  weights = [orthogonal(i, 16) for i in range(3)]
  fn = lambda x: apply(weights, [lambda u: SORTS[name](*jnp.split(u, 2))] * 2, x)
  x = normal(9, (16,), FLOAT)
  assert 1 - 1e-6 <= lipjax.lipschitz_upper_bound(fn)(x) <= 1.02
  # Near a point at which nothing is sorted it is a linear map.
  assert 1 - 1e-6 <= lipjax.lipschitz_upper_bound(fn, radius=1e-3)(x) <= 1.02


@pytest.mark.parametrize(
  ("pair", "norm"),
  [
    (lambda x: (jax.nn.relu(x), jax.nn.relu(-x)), 1),
    (lambda x: (jnp.abs(x), jnp.where(-x < 0, 2 * x, 0)), 5**0.5),
    pytest.param(lambda x: (jnp.maximum(x, 0), jnp.minimum(x, 0)), 1, marks=SLOW),
    pytest.param(lambda x: (x - jax.nn.leaky_relu(x), jax.nn.leaky_relu(x)), 1, marks=SLOW),
    # Both between the kinks.
    pytest.param(lambda x: (jax.nn.relu(x), jax.nn.relu(1 - x)), 2**0.5, marks=SLOW),
  ],
)
def test_functions_with_one_kink_are_seen_together(pair, norm):
  x = normal(9, (8,), FLOAT)
  found = lipjax.lipschitz_upper_bound(lambda x: jnp.concatenate(pair(x)))(x)
  assert norm * (1 - 1e-6) <= found <= 1.02 * norm
  weights = [orthogonal(0, 8), orthogonal(1, 16), orthogonal(2, 16)]
  fn = lambda x: weights[1] @ jnp.concatenate(pair(weights[0] @ x))
  assert norm * (1 - 1e-6) <= lipjax.lipschitz_upper_bound(fn, effort="tight")(x) <= 1.01 * norm
  # On one side of the kinks there is one slope.
  local = lipjax.lipschitz_upper_bound(lambda x: jnp.stack(pair(x)), radius=1e-3)(x)
  slopes = jax.vmap(jax.grad(lambda t, k: pair(t)[k]), (0, None))
  at = np.hypot(*(np.asarray(slopes(x, k), np.float64) for k in (0, 1))).max()
  assert at * (1 - 1e-6) <= local <= 1.02 * at


V = np.asarray([0.6, 0.0, -0.8, 0.0], FLOAT)
R = V[::2]


def rows(x):
  return x.reshape((2, 2))


@pytest.mark.parametrize(
  "fn",
  [
    lambda x: jnp.where(V @ x > 0, x, x - 2 * V * (V @ x)),
    lambda x: jnp.where(V @ x <= 0, x - jnp.dot(V, x) * V / 0.5, x),
    lambda x: jnp.where(
      (rows(x) @ R)[:, None] < 0, rows(x) - 2 * jnp.outer(rows(x) @ R, R), rows(x)
    ),
    lambda x: jnp.where(-(V @ x) < 0, x + 2 * V * -(V @ x), x),
  ],
)
def test_householder_activations(fn):
  x = normal(9, (4,), FLOAT)
  for word in ("default", "tight"):
    assert 1 - 1e-6 <= lipjax.lipschitz_upper_bound(fn, effort=word)(x) <= 1.001
  jumps = jax.jit(jax.vmap(fn))(np.stack([x - V * (V @ x) + t * V for t in (-1e-4, 1e-4)]))
  assert np.linalg.norm(jumps[0] - jumps[1]) <= 2.1e-4


@pytest.mark.parametrize(
  "fn",
  [
    lambda x: jnp.where(V @ x > 1, x, x - 2 * V * (V @ x)),  # elsewhere
    lambda x: jnp.where(V @ x > 0, x, x - 2 * V * (x @ V[::-1])),  # of another number
    lambda x: jnp.where((rows(x) @ R)[:, None] > 0, rows(x), rows(x) - (rows(x) @ R)[::-1, None]),
    lambda x: jnp.where((rows(x) @ R)[:, None] > 0, rows(x), rows(x) - (rows(x) @ R)[None]),
    lambda x: jnp.where(V @ x > 0, x, x - 2 * V * (V @ x) - 1),  # and a constant
    lambda x: jnp.where(V @ x > 0, x, 2 * x),
  ],
)
def test_choices_that_jump(fn):
  with pytest.raises(lipjax.CertifyError, match="jumps"):
    lipjax.lipschitz_upper_bound(fn)(normal(9, (4,), FLOAT))


def potential(w, x):
  return x - 2 / jnp.linalg.norm(w, 2) ** 2 * w.T @ jax.nn.relu(w @ x)


def reflected(w, x):
  v = w[0] / jnp.linalg.norm(w[0])
  return x - 2 * v * jnp.minimum(v @ x, 0)


def rescaled(w, x):
  q = jnp.exp(w[:, 0])
  t = jnp.abs(w @ w.T) @ q / q
  return x - 2 * w.T @ (jnp.tanh(w @ x) / t)


@pytest.mark.parametrize("n_layers", [1, thorough(3), pytest.param(6, marks=SLOW)])
@pytest.mark.parametrize("layer", [potential, reflected, rescaled])
def test_layers_that_are_1_lipschitz(layer, n_layers):
  # Their multipliers are at the limit, where what grows without bound is what nobody sees.
  def fn(x):
    for seed in range(n_layers):
      x = layer(normal(seed, (24, 16), FLOAT), x)
    return x

  bound = lambda effort: lipjax.lipschitz_upper_bound(fn, effort=effort)(jnp.zeros(16, FLOAT))
  assert 0.95 <= bound("tight") <= (1.001 if n_layers == 1 else 1.005)
  if n_layers == 1:
    assert bound("default") <= (1.02 if layer is rescaled else 1.001)


@pytest.mark.thorough
def test_a_residual_network_of_orthogonal_weights():
  weights = [orthogonal(i, 16) for i in range(3)]

  def fn(x):
    for w in weights:
      x = x - 2 * w.T @ jax.nn.relu(w @ x)
    return x

  assert lipjax.lipschitz_upper_bound(fn)(jnp.zeros(16, FLOAT)) <= 1.01


def residual(weights, x):
  for v, w in zip(weights[::2], weights[1::2], strict=True):
    x = x + v @ jnp.tanh(w @ x)
  return x


def gated(weights, x):
  u = weights[0] @ x
  return weights[1] @ (jnp.tanh(u) * jax.nn.sigmoid(weights[2] @ x)) + u


def attention(weights, x):
  x = x.reshape((4, 4))
  q, k, v = (x @ w[:4, :4] for w in weights[:3])
  return x + jax.nn.softmax(q @ k.T / 2, axis=-1) @ v


def two_ends(weights, x):
  u = jax.nn.relu(weights[0] @ x)
  return u, jax.nn.softplus(weights[1] @ u) - x


def shared(weights, x):
  u = jnp.maximum(weights[0] @ x, weights[1] @ x)
  return jnp.sort(weights[2] @ u) + jnp.sin(u[::-1])


@pytest.mark.first(1)
@pytest.mark.parametrize(
  ("fn", "radius"),
  [
    (shared, None),
    (gated, 0.3),
    (residual, 0.1),
    *(pytest.param(fn, None, marks=SLOW) for fn in (residual, two_ends)),
    *(pytest.param(*case, marks=SLOW) for case in ((attention, 0.3), (two_ends, 0.1))),
  ],
)
def test_graphs_with_branches(fn, radius):
  weights = [normal(i, (16, 16), FLOAT, 1.5 / 4) for i in range(4)]
  x = normal(9, (16,), FLOAT, 0.5)
  found = bounds_by_engine(fn, 1, (weights, x), radius, effort="tight")["ellipsoid"]
  lower = lipjax.lipschitz_lower_bound(fn, 1, radius=radius)(weights, x)
  assert lower <= found <= 6 * lower


def test_a_ball_in_which_no_neuron_switches():
  weights = network(4, WIDTHS[0])
  fn = lambda x: apply(weights, [lambda u: jax.nn.relu(u + 100) - 100] * 3, x)
  truth = top_sigma(np.linalg.multi_dot([np.asarray(w, np.float64) for w in weights[::-1]]))
  found = bounds_by_engine(fn, 0, (jnp.zeros(16, FLOAT),), 0.1)["ellipsoid"]
  np.testing.assert_allclose(found, truth, rtol=1e-3)
  assert found >= truth


def test_nearly_linear_networks():
  weights = network(5, WIDTHS[0])
  truth = top_sigma(np.linalg.multi_dot([np.asarray(w, np.float64) for w in weights[::-1]]))
  fn = lambda x: apply(weights, [leaky(0.98, 1.0)] * 3, x)
  found = bounds_by_engine(fn, 0, (jnp.zeros(16, FLOAT),))["ellipsoid"]
  assert truth <= found <= 1.1 * truth


@pytest.mark.thorough
def test_jit_vmap_and_derivatives():
  nets = [network(seed, (4, 6, 4)) for seed in range(3)]
  stacks = [jnp.stack(ws) for ws in zip(*nets, strict=True)]
  fn = lambda weights, x: apply(weights, [jax.nn.relu], x)
  bound = lambda weights: lipjax.lipschitz_upper_bound(fn, 1)(weights, jnp.zeros(4, FLOAT))
  found = jax.jit(jax.vmap(bound))(stacks)
  np.testing.assert_allclose(found, [bound(net) for net in nets], rtol=1e-3)
  slopes = jax.grad(bound)(nets[0])
  # A bound of twice the weights in a layer is twice as large, whatever the multipliers are.
  for w, slope in zip(nets[0], slopes, strict=True):
    np.testing.assert_allclose(jnp.vdot(w, slope), found[0], rtol=1e-2)


@pytest.mark.thorough
def test_derivatives_of_a_step():
  seen = lambda a, d, m: _seen((a + a.T) / 2, d, m)
  root = normal(0, (5, 5), FLOAT)
  d = jnp.abs(normal(1, (5,), FLOAT, 0.1))
  args = root @ root.T, d, normal(2, (3, 5), FLOAT)
  check_grads(seen, args, order=1, atol=1e-2, rtol=1e-2, eps=1e-2)
  # Of second differences in float32 more is rounding.
  check_grads(seen, args, order=2, atol=2e-2, rtol=2e-2, eps=1e-2)


@pytest.mark.first(2)
@pytest.mark.parametrize(
  "of",
  [
    lipjax.lipschitz_upper_bound(apply_relu, 1, effort="fast"),
    lipjax.lipschitz_upper_bound(apply_relu, 1),
    lipjax.margin_upper_bounds(apply_relu, 1),
  ],
  ids=["norms", "ellipsoid", "pairs"],
)
def test_derivatives_at_zero_weights(of):
  slopes = jax.jit(jax.grad(lambda weights: jnp.sum(of(weights, jnp.zeros(4)))))
  for zeros in [(0, 1, 2), (1,), (2,)]:
    weights = network(6, (4, 6, 6, 4))
    weights = [w * (i not in zeros) for i, w in enumerate(weights)]
    assert all(jnp.isfinite(slope).all() for slope in slopes(weights))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_weights(dtype):
  weights = [w.astype(dtype) for w in network(2, WIDTHS[1])]
  found = lipjax.lipschitz_upper_bound(apply_relu, 1)(weights, jnp.zeros(3, dtype))
  assert found.dtype in (jnp.float32, FLOAT)
  assert steepest(2, weights, [(0.0, 1.0)] * 3) <= found <= 1.001 * relu_bound(weights)


def test_more_effort_is_tighter():
  weights = network(0, (8, 32, 32, 32, 4))
  fn = lambda x: apply(weights, [jax.nn.relu] * 3, x)
  x = jnp.zeros(8, FLOAT)
  fast, default, tight = (
    float(lipjax.lipschitz_upper_bound(fn, effort=effort)(x))
    for effort in ("fast", "default", "tight")
  )
  assert steepest(0, weights, [(0.0, 1.0)] * 3) <= tight <= default <= fast
  assert tight < 0.9 * fast
  with pytest.raises(ValueError, match="effort is 'most'; expected 'fast'"):
    lipjax.lipschitz_upper_bound(fn, effort="most")
  bounds = lipjax.lipschitz_bounds(fn, effort="tight")(x)
  assert bounds.names == "ellipsoid"
