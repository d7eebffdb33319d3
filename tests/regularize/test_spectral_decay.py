"""add_spectral_decay: its update is the gradient of the penalty, wherever it stands."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from reference import FLOAT, normal, operator_matrices, top_sigma

import lipjax
from lipjax import Dense, Diagonal, ReshapedKernel

OPERATORS = {
  "attention_out": (Dense((0, 1), (2,)), (2, 4, 8)),
  "attention_query": (Dense((0,), (1, 2)), (8, 2, 4)),
  "conv": (ReshapedKernel(), (3, 2, 2, 4)),
  "dense": (Dense(), (6, 4)),
  "embedding": (Dense(), (9, 4)),
  "scale": (Diagonal(), (5,)),
  "stacked": (Dense((1,), (2,), (0,)), (3, 6, 4)),
  "twin": (Dense(), (6, 4)),
}
LAYOUT = {name: operator for name, (operator, _) in OPERATORS.items()}
PARAMS = {name: normal(i, shape) for i, (name, (_, shape)) in enumerate(OPERATORS.items())}
PARAMS["bias"] = normal(20, (4,))
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
KERNEL = {"kernel": PARAMS["dense"]}
STEPS = 30  # to convergence


def slope_of(penalty, sigma, target=None):
  return {
    "squared": sigma,
    "norm": np.ones_like(sigma),
    "hinge": np.maximum(sigma - (target or 0), 0),
    "power": 6 * (sigma**3 - 1) * sigma**2,
  }[penalty]


def svd_term(operator, w, penalty="squared", target=None):
  """The gradient of the penalty on one leaf, from float64 SVDs."""
  matrices = operator_matrices(operator, w)
  u, s, vt = np.linalg.svd(matrices, full_matrices=False)
  slope = slope_of(penalty, s[..., :1], target)
  x = (slope * vt[..., 0, :]).reshape(operator.input_shape(w.shape))
  y = u[..., :, 0].reshape(operator.output_shape(w.shape))
  return np.asarray(operator.weight_gradient(w.shape, jnp.asarray(x), jnp.asarray(y)), np.float64)


def assert_close(actual, expected, rtol=1e-4):
  """Relative to the array's norm."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  assert np.linalg.norm(actual - expected) <= rtol * np.linalg.norm(expected)


def run(tx, updates=ZEROS, params=PARAMS, state=None):
  state = tx.init(params) if state is None else state
  return jax.jit(tx.update)(updates, state, params)


@pytest.mark.parametrize(
  ("penalty", "target", "exponent"),
  [("squared", None, None), ("norm", None, None), ("hinge", 2.5, None), ("power", None, 3)],
)
def test_the_update_is_the_gradient_of_the_penalty(penalty, target, exponent):
  options = {"penalty": penalty, "target": target, "exponent": exponent}
  tx = lipjax.add_spectral_decay(0.3, layout=LAYOUT, n_steps=STEPS, **options)
  updates, state = run(tx)
  for name, operator in LAYOUT.items():
    assert_close(updates[name], 0.3 * svd_term(operator, PARAMS[name], penalty, target))
  assert not updates["bias"].any()
  norms = lipjax.read_spectral_norms(state)
  assert list(norms) == sorted(LAYOUT)
  for name, operator in LAYOUT.items():
    truth = top_sigma(operator_matrices(operator, PARAMS[name]))
    np.testing.assert_allclose(norms[name], truth, rtol=1e-5, err_msg=name)


@pytest.mark.thorough
def test_the_update_is_the_gradient_of_spectral_penalty():
  tx = lipjax.add_spectral_decay(1.0, layout=LAYOUT, n_steps=STEPS)
  updates, _ = run(tx)
  gradient = jax.grad(lambda p: lipjax.spectral_penalty(p, layout=LAYOUT))(PARAMS)
  for name in LAYOUT:
    assert_close(updates[name], gradient[name], rtol=2e-3)  # Lanczos vectors: sqrt of 8 eps


def test_it_adds_to_what_it_is_given():
  given = jax.tree.map(lambda w: 0.01 * w + 1, PARAMS)
  tx = lipjax.add_spectral_decay(0.3, layout=LAYOUT, n_steps=STEPS)
  (with_given, _), (alone, _) = run(tx, given), run(tx)
  for name in PARAMS:
    np.testing.assert_allclose(with_given[name], given[name] + alone[name], atol=1e-5)


def test_some_papers_write_the_penalty_without_the_half():
  # lambda sigma^2 is twice our (lambda/2) sigma^2: METHODS section 3.
  w64 = np.asarray(PARAMS["dense"], np.float64)
  d, step = np.random.default_rng(0).standard_normal(w64.shape), 1e-6
  slope = (np.linalg.norm(w64 + step * d, 2) ** 2 - np.linalg.norm(w64 - step * d, 2) ** 2) / (
    2 * step
  )
  tx = lipjax.add_spectral_decay(2 * 0.1, n_steps=STEPS)
  updates, _ = run(tx, {"kernel": jnp.zeros((6, 4))}, KERNEL)
  np.testing.assert_allclose(np.vdot(updates["kernel"], d), 0.1 * slope, rtol=1e-4)


def test_decoupled_after_adam():
  lr, strength, gradient = 1e-2, 0.1, {"kernel": normal(9, (6, 4))}
  tx = optax.chain(
    optax.scale_by_adam(),
    lipjax.add_spectral_decay(strength, n_steps=STEPS),
    optax.scale_by_learning_rate(lr),
  )
  updates, _ = run(tx, gradient, KERNEL)
  g = np.asarray(gradient["kernel"], np.float64)
  expected = -lr * (g / (np.abs(g) + 1e-8) + strength * svd_term(Dense(), KERNEL["kernel"]))
  assert_close(updates["kernel"], expected)


def test_before_sgd_it_is_a_penalty_in_the_loss():
  loss = lambda p: jnp.sum(jnp.square(p["kernel"] - 1))
  gradient = jax.grad(loss)(KERNEL)
  updates, _ = run(
    optax.chain(lipjax.add_spectral_decay(0.2, n_steps=STEPS), optax.sgd(0.1)), gradient, KERNEL
  )
  penalized = jax.grad(lambda p: loss(p) + 0.2 * lipjax.spectral_penalty(p))(KERNEL)
  assert_close(updates["kernel"], -0.1 * penalized["kernel"], rtol=2e-3)


def test_one_warm_step_a_step_is_enough_to_bring_the_norm_down():
  tx = optax.chain(lipjax.add_spectral_decay(0.5), optax.sgd(0.1))
  step = jax.jit(tx.update)
  params, state = KERNEL, tx.init(KERNEL)
  before = np.linalg.svd(np.asarray(params["kernel"], np.float64), compute_uv=False)
  for _ in range(60):
    updates, state = step({"kernel": jnp.zeros((6, 4), FLOAT)}, state, params)
    params = optax.apply_updates(params, updates)
  after = np.linalg.svd(np.asarray(params["kernel"], np.float64), compute_uv=False)
  assert after[0] < 0.6 * before[0]
  # The smallest value is not what is pulled on, in contrast to L2 decay.
  np.testing.assert_allclose(after[-1], before[-1], rtol=0.05)


def test_schedules_see_the_update_count():
  tx = lipjax.add_spectral_decay(lambda count: jnp.where(count < 2, 0.0, 0.5), n_steps=STEPS)
  given = {"kernel": normal(1, (6, 4)).at[0, 0].set(-0.0)}
  state, step = tx.init(KERNEL), jax.jit(tx.update)
  for _ in range(2):
    updates, state = step(given, state, KERNEL)
    np.testing.assert_array_equal(updates["kernel"], given["kernel"])
    assert np.signbit(updates["kernel"][0, 0])
  updates, state = step(given, state, KERNEL)
  expected = given["kernel"] + 0.5 * svd_term(Dense(), KERNEL["kernel"])
  assert_close(updates["kernel"], expected)
  assert int(state.count) == 3


def test_every_refreshes_rarely_and_acts_always():
  tx = lipjax.add_spectral_decay(1.0, every=3, n_steps=STEPS)
  state, step, zero = tx.init(KERNEL), jax.jit(tx.update), {"kernel": jnp.zeros((6, 4), FLOAT)}
  first = KERNEL["kernel"]
  for i in range(5):
    params = {"kernel": first * (i + 1)}
    updates, state = step(zero, state, params)
    seen = first * (1 if i < 3 else 4)  # refreshed at counts 0 and 3
    assert_close(updates["kernel"], svd_term(Dense(), seen))
    np.testing.assert_allclose(
      lipjax.read_spectral_norms(state)["kernel"], top_sigma(np.asarray(seen).T), rtol=1e-5
    )


def test_strength_zero_monitors_and_changes_no_bit():
  given = jax.tree.map(lambda w: jnp.where(w > 1, -0.0, w), PARAMS)
  updates, state = run(lipjax.add_spectral_decay(0.0, layout=LAYOUT, n_steps=STEPS), given)
  for name in PARAMS:
    np.testing.assert_array_equal(updates[name], given[name])
    np.testing.assert_array_equal(np.signbit(updates[name]), np.signbit(given[name]))
  np.testing.assert_allclose(
    lipjax.read_spectral_norms(state)["dense"], top_sigma(PARAMS["dense"]), rtol=1e-5
  )


@pytest.mark.first(3)
@pytest.mark.parametrize("penalty", ["squared", "norm", "hinge"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_leaf_poisons_nobody_else(bad, penalty):
  target = 0.1 if penalty == "hinge" else None
  tx = lipjax.add_spectral_decay(0.3, penalty=penalty, target=target, layout=LAYOUT, n_steps=20)
  poisoned = PARAMS | {
    "dense": PARAMS["dense"].at[1, 1].set(bad),
    "stacked": PARAMS["stacked"].at[2, 0, 0].set(bad),
  }
  clean, _ = run(tx)
  updates, state = run(tx, params=poisoned)
  for name in set(PARAMS) - {"dense", "stacked"}:
    np.testing.assert_allclose(updates[name], clean[name], rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(updates["stacked"][:2], clean["stacked"][:2], rtol=1e-5)
  norms = lipjax.read_spectral_norms(state)
  assert np.isnan(norms["dense"])
  assert np.isnan(norms["stacked"]).tolist() == [False, False, True]
  # And once the weights are finite again, so is everything.
  updates, state = run(tx, state=state)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state.vectors.sigma)))


def test_zero_and_subnormal_weights_add_nothing_and_no_nan():
  for penalty in ("squared", "norm"):
    tx = lipjax.add_spectral_decay(0.3, penalty=penalty, layout=LAYOUT, n_steps=2, every=1)
    updates, state = run(tx, params=ZEROS)
    assert not any(np.any(x) for x in jax.tree.leaves(updates))
    updates, _ = run(tx, state=state)  # and back from zero
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))
    assert updates["dense"].any()
    tiny = jax.tree.map(lambda w: jnp.full(w.shape, 1e-40, jnp.float32), PARAMS)
    updates, _ = run(tx, tiny, tiny)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_updates_keep_their_dtype(dtype):
  params = {"kernel": PARAMS["dense"].astype(dtype)}
  tx = lipjax.add_spectral_decay(0.3, n_steps=STEPS)
  updates, state = run(tx, jax.tree.map(jnp.zeros_like, params), params)
  assert updates["kernel"].dtype == dtype
  assert state.vectors.u.dtype == jnp.float32
  assert_close(
    updates["kernel"], 0.3 * svd_term(Dense(), params["kernel"]), rtol=float(jnp.finfo(dtype).eps)
  )


# Where the norms can be read.

DECAY = functools.partial(lipjax.add_spectral_decay, 0.1, n_steps=STEPS)
PLACES = {
  "alone": lambda: DECAY(),
  "chain": lambda: optax.chain(DECAY(), optax.adam(1e-3)),
  "masked": lambda: optax.masked(DECAY(), {"kernel": True}),
  "own mask": lambda: DECAY(mask=lambda params: jax.tree.map(lambda w: w.ndim == 2, params)),
  "MultiSteps": lambda: optax.MultiSteps(optax.chain(DECAY(), optax.sgd(0.1)), 1),
  "inject_hyperparams": lambda: optax.inject_hyperparams(
    lipjax.add_spectral_decay, static_args=("n_steps", "penalty", "every", "seed", "k")
  )(strength=0.1, n_steps=STEPS, k=3),
}


@pytest.mark.parametrize("place", PLACES)
def test_norms_are_read_wherever_the_state_is(place):
  tx = PLACES[place]()
  _, state = jax.jit(tx.update)({"kernel": jnp.zeros((6, 4), FLOAT)}, tx.init(KERNEL), KERNEL)
  norms = lipjax.read_spectral_norms(state)
  assert list(norms) == ["kernel"]
  np.testing.assert_allclose(norms["kernel"], top_sigma(KERNEL["kernel"]), rtol=1e-5)


def test_norms_are_read_from_an_nnx_optimizer():
  model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.chain(DECAY(), optax.sgd(0.0)), wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer):
    gradient = nnx.grad(lambda m: jnp.sum(m(jnp.ones(6))))(model)
    optimizer.update(model, gradient)

  before = np.asarray(model.kernel[...])
  step(model, optimizer)
  norms = lipjax.read_spectral_norms(optimizer.opt_state)
  assert list(norms) == ["kernel"]
  np.testing.assert_allclose(norms["kernel"], top_sigma(before), rtol=1e-5)
  # PEERS: nnx.SpectralNorm let one sgd(0.0) step move a norm from 10.8 to 1.0.
  np.testing.assert_array_equal(model.kernel[...], before)


def test_several_states_are_merged_and_none_raises():
  labels = {"a": "one", "b": "two"}
  params = {"a": {"kernel": PARAMS["dense"]}, "b": {"kernel": PARAMS["embedding"]}}
  tx = optax.partition({"one": DECAY(), "two": DECAY()}, labels)
  assert sorted(lipjax.read_spectral_norms(tx.init(params))) == ["a/kernel", "b/kernel"]
  with pytest.raises(ValueError, match="tracks no norms"):
    lipjax.read_spectral_norms(optax.adam(1e-3).init(params))


def test_a_mask_leaves_out_what_the_layout_cannot_tell():
  params = {"general": {"kernel": normal(3, (32, 8, 4))}, "dense": KERNEL}
  with pytest.raises(lipjax.LayoutError, match="general/kernel"):
    lipjax.add_spectral_decay(0.1).init(params)
  tx = lipjax.add_spectral_decay(0.1, mask={"general": False, "dense": True}, n_steps=STEPS)
  updates, _ = run(tx, jax.tree.map(jnp.zeros_like, params), params)
  assert not updates["general"]["kernel"].any()
  assert_close(updates["dense"]["kernel"], 0.1 * svd_term(Dense(), KERNEL["kernel"]))


def test_real_attention_params():
  module = nn.MultiHeadDotProductAttention(num_heads=2)
  params = module.init(jax.random.key(0), jnp.ones((1, 8)))["params"]
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = run(lipjax.add_spectral_decay(0.5, n_steps=STEPS), zeros, params)
  for name in ("query", "key", "value", "out"):
    operator = lipjax.flax_layout(f"{name}/kernel", params[name]["kernel"])
    assert_close(updates[name]["kernel"], 0.5 * svd_term(operator, params[name]["kernel"]))
    assert not updates[name]["bias"].any()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"penalty": "cubed"}, "'squared', 'norm', 'hinge'"),
    ({"penalty": "hinge"}, "target"),
    ({"target": 1.0}, "hinge"),
    ({"n_steps": 0}, "n_steps is 0"),
    ({"tol": 0.0}, "tol is 0"),
    ({"k": 0}, "k is 0"),
    ({"exponent": 2}, "exponent=2 has no meaning"),
    ({"penalty": "power", "exponent": 0.5}, r"exponent is 0\.5"),
    ({"every": 0}, "every is 0"),
    ({"every": 1.5}, r"every is 1\.5"),
  ],
)
def test_wrong_options_raise(options, message):
  with pytest.raises(ValueError, match=message):
    lipjax.add_spectral_decay(0.1, **options)


def test_errors_at_init_and_update():
  tx = lipjax.add_spectral_decay(0.1)
  with pytest.raises(ValueError, match="no operator among"):
    tx.init({"bias": jnp.ones(3)})
  with pytest.raises(lipjax.LayoutError, match=r"optax\.flatten"):
    optax.flatten(tx).init(KERNEL)
  state = tx.init(KERNEL)
  with pytest.raises(ValueError, match="params"):
    tx.update(KERNEL, state)
  other = {"other": KERNEL}
  with pytest.raises(ValueError, match=r"made for other params.*other/kernel"):
    tx.update(other, state, other)
  smaller = {"kernel": jnp.ones((2, 2), FLOAT)}
  with pytest.raises(ValueError, match=r"other params|shape"):
    tx.update(smaller, state, smaller)
  with pytest.raises(ValueError, match="mask"):
    lipjax.add_spectral_decay(0.1, mask={"kernel": 1.0}).init(KERNEL)
