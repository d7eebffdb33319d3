"""What holds after `optax.apply_updates` with a constraint last in the chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import FLOAT, dense_convolution, normal, top_sigma

import lipjax
from lipjax import Convolution, Dense

EPS = float(jnp.finfo(FLOAT).eps)
PARAMS = {
  "a": {"kernel": normal(0, (12, 8)), "bias": normal(1, (8,))},
  "b": {"kernel": normal(2, (8, 3))},
}


def train(constraint, params=PARAMS, n_steps=20):
  """Params after steps of Adam that make them grow."""
  tx = optax.chain(optax.adam(0.1), constraint)

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.tree.map(jnp.negative, params), state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(n_steps):
    params, state = step(params, state)
  return params, state


def kernels(params):
  return [np.asarray(layer["kernel"], np.float64) for layer in params.values()]


@pytest.mark.parametrize("method", ["clip_svd", "clip_sign"])
def test_clipping_holds_the_exact_norm_after_every_update(method):
  params = PARAMS
  constraint = lipjax.keep_params_in_spectral_ball(2.0, method=method)
  for _ in range(5):
    params, _ = train(constraint, params, 1)
    for w in kernels(params):
      assert top_sigma(w) <= 2 * (1 + 6 * EPS * np.sqrt(min(w.shape)))


def test_tracked_norms_come_to_the_radius_and_can_be_read():
  params, state = train(lipjax.keep_params_in_spectral_ball(3.0))
  norms = lipjax.read_spectral_norms(state)
  assert list(norms) == ["a/kernel", "b/kernel"]
  for w in kernels(params):
    assert top_sigma(w) == pytest.approx(3.0, rel=1e-2)


WILD = {
  "small": (Dense(), (30, 20)),
  "thin": (Dense(), (20, 5)),
  "large": (Dense(), (160, 120)),
  "stacked": (Dense((1,), (2,), (0,)), (3, 80, 70)),
  "convolution": (Convolution((8, 8)), (3, 3, 3, 5)),
  "circular": (Convolution((6, 6), padding="CIRCULAR"), (3, 3, 4, 4)),
}


def exact_norms(name, w):
  operator, w = WILD[name][0], np.asarray(w, np.float64)
  return top_sigma(dense_convolution(operator, w) if isinstance(operator, Convolution) else w)


@pytest.mark.parametrize(
  "kind",
  [
    "normal",
    "tiny",
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("diagonal", "one_entry", "heavy")),
  ],
)
def test_the_spectral_ball_is_kept_after_every_update_of_any_size(kind):
  """Forty random updates; SGD 0.5 on N(0, 1) left 2.09 for 1.5 with one vector a leaf."""
  radius, tol = 1.5, 0.01
  params = {name: normal(i, shape) for i, (name, (_, shape)) in enumerate(WILD.items())}
  layout = {name: operator for name, (operator, _) in WILD.items()}
  ball = lipjax.keep_params_in_spectral_ball(radius, layout=layout)
  tx = optax.chain(optax.sgd(0.5), ball)
  state, update = tx.init(params), jax.jit(tx.update)
  rng = np.random.default_rng(0)
  if kind == "diagonal":  # nothing that mixes the directions
    params = jax.tree.map(_only_diagonal, params)
  for _ in range(40):
    gradients = {name: _wild_gradient(kind, rng, w.shape) for name, w in params.items()}
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    for name, w in params.items():
      assert np.max(exact_norms(name, w)) <= radius * (1 + tol + 1e-5), (kind, name)


def _only_diagonal(w):
  return w * jnp.eye(*w.shape[-2:], dtype=w.dtype)


def _wild_gradient(kind, rng, shape):
  g = rng.standard_normal(shape)
  if kind == "diagonal":
    g = g * np.eye(*shape[-2:])
  if kind == "one_entry":
    g = np.where(np.arange(g.size).reshape(shape) == rng.integers(g.size), 10 * g, 0)
  if kind == "tiny":
    g = g * 10.0 ** rng.uniform(-6, 0)
  if kind == "heavy":
    g = g * 10.0 ** rng.uniform(-3, 3)
  return jnp.asarray(g, FLOAT)


def test_frobenius_and_operator_norms_hold():
  after, _ = train(lipjax.keep_params_in_frobenius_ball(2.0))
  for w in kernels(after):
    assert np.linalg.norm(w) <= 2 * (1 + 6 * EPS)
  for order, axis in (("one", 1), ("infinity", 0)):  # kernels are (inputs, outputs)
    after, _ = train(lipjax.keep_params_in_operator_norm_ball(2.0, order=order))
    for w in kernels(after):
      assert np.abs(w).sum(axis).max() <= 2 * (1 + 6 * EPS * np.sqrt(w.size))


def test_orthogonal_params_stay_orthogonal():
  after, _ = train(lipjax.keep_params_orthogonal())
  for w in kernels(after):
    values = np.linalg.svd(w, compute_uv=False)
    np.testing.assert_allclose(values, 1, atol=6 * EPS * np.sqrt(min(w.shape)))


@pytest.mark.parametrize("of_params", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("of_updates", ["bfloat16", "float16", "float32"])
def test_the_box_is_exact_in_every_dtype(of_params, of_updates):
  # p + (c - p) can round past c, so the last place is looked at.
  rng = np.random.default_rng(0)
  draw = lambda: rng.standard_normal(20_000) * 10.0 ** rng.uniform(-4, 1, 20_000)
  params, updates = {"w": jnp.asarray(draw(), of_params)}, {"w": jnp.asarray(draw(), of_updates)}
  tx = lipjax.keep_params_in_box(0.1)
  changed, _ = jax.jit(tx.update)(updates, tx.init(params), params)
  after = optax.apply_updates(params, changed)["w"]
  limit = jnp.asarray(0.1, of_params)
  assert jnp.all(jnp.abs(after) <= limit)
  inside = jnp.abs(optax.apply_updates(params, updates)["w"]) < limit
  np.testing.assert_array_equal(changed["w"][inside], updates["w"][inside])
  assert 0.1 < inside.mean() < 0.9


def test_a_schedule_of_the_radius_is_followed():
  schedule = optax.piecewise_constant_schedule(2.0, {10: 0.5})
  constraint = lipjax.keep_params_in_spectral_ball(schedule, method="clip_svd")
  for n_steps, radius in ((10, 2.0), (11, 1.0)):
    for w in kernels(train(constraint, n_steps=n_steps)[0]):
      assert top_sigma(w) == pytest.approx(radius, rel=1e-5)


def test_other_leaves_and_masked_ones_are_not_touched():
  free, _ = train(optax.identity())
  kept, _ = train(lipjax.keep_params_in_frobenius_ball(1.0, mask={"a": True, "b": False}))
  np.testing.assert_array_equal(kept["a"]["bias"], free["a"]["bias"])
  np.testing.assert_array_equal(kept["b"]["kernel"], free["b"]["kernel"])
  assert np.linalg.norm(kept["a"]["kernel"]) == pytest.approx(1.0)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: lipjax.keep_params_in_spectral_ball(0), "radius is 0"),
    (lambda: lipjax.keep_params_in_spectral_ball(1.0, method="clip"), "'scale', 'clip_svd'"),
    (lambda: lipjax.keep_params_in_spectral_ball(1.0, n_steps=0), "n_steps is 0"),
    (lambda: lipjax.keep_params_in_frobenius_ball(-1.0), r"radius is -1\.0"),
    (lambda: lipjax.keep_params_in_operator_norm_ball(1.0, order=2), "'one', 'infinity'"),
    (lambda: lipjax.keep_params_in_box(0.0), "limit is 0"),
    (lambda: lipjax.keep_params_orthogonal(method="svd"), "'newton_schulz', 'bjorck'"),
  ],
)
def test_wrong_options_raise(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_params_without_operators_and_other_params_raise():
  tx = lipjax.keep_params_in_spectral_ball(1.0)
  with pytest.raises(ValueError, match="no operator among"):
    tx.init({"bias": jnp.ones(3)})
  with pytest.raises(ValueError, match="made for other params"):
    tx.update(PARAMS, tx.init({"other": {"kernel": jnp.ones((2, 2))}}), PARAMS)


@pytest.mark.first(1)
@pytest.mark.parametrize("method", ["scale", "clip_svd", "clip_sign", "clip_top"])
def test_initial_radii_are_those_of_each_slice(method):
  """As many slices as a slice has singular values: what is broadcast wrongly fits as well."""
  stack = normal(0, (4, 5, 4)) * jnp.arange(1.0, 5.0)[:, None, None]
  params = {"kernel": stack, "scale": normal(1, (4, 3))}
  layout = {"kernel": Dense((1,), (2,), (0,)), "scale": lipjax.Diagonal((0,))}
  tx = lipjax.keep_params_in_spectral_ball("initial", method=method, layout=layout)
  update = jax.jit(lambda state, params: tx.update(params, state, params))
  doubled, _ = update(tx.init(params), params)
  doubled = optax.apply_updates(params, doubled)
  for i in range(4):
    alone = {name: w[i] for name, w in params.items()}
    tx_alone = lipjax.keep_params_in_spectral_ball(
      "initial", method=method, layout={"kernel": Dense(), "scale": lipjax.Diagonal()}
    )
    want, _ = tx_alone.update(alone, tx_alone.init(alone), alone)
    for name, w in optax.apply_updates(alone, want).items():
      np.testing.assert_allclose(doubled[name][i], w, rtol=2e-3, atol=2e-3)
