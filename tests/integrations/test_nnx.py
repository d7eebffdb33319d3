"""`lipjax.integrations.nnx.SpectralNorm` and what is wrong with its peers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.test_util import check_grads
from reference import FLOAT, X64, jacobian, normal, top_sigma

import lipjax
from lipjax.integrations.nnx import SpectralNorm


def linear(n_in=6, n_out=5, seed=0, scale=1.0, **options):
  """A wrapped Linear whose kernel is Gaussian, measured after it was set."""
  layer = nnx.Linear(n_in, n_out, rngs=nnx.Rngs(seed), param_dtype=FLOAT)
  layer.kernel[...] = normal(seed, (n_in, n_out), scale=scale)
  return SpectralNorm(layer, rngs=nnx.Rngs(seed), **options)


def batch(*shape, seed=7):
  return normal(seed, shape)


def raw(model):
  """Copies of every param, to compare bit by bit."""
  return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def stats(model):
  return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def norm_of(model, x):
  """The true norm of the layer's own linear map in evaluation."""
  graph, state = nnx.split(model)
  return top_sigma(jacobian(evaluation(graph), x, state))


@functools.lru_cache(maxsize=16)
def evaluation(graph):
  """One function a model: `jacobian` compiles it once for all weights."""
  return lambda x, state: nnx.merge(graph, state)(x, update_stats=False)


class Reveal(nnx.Module):
  """Returns the params that it is called with."""

  def __init__(self, layer):
    self.layer = layer

  def __call__(self, x):
    return nnx.to_pure_dict(nnx.state(self.layer, nnx.Param))


# The weights belong to the optimizer


@pytest.mark.parametrize("mode", ["target", "cap", "gain"])
def test_no_forward_changes_a_weight(mode):
  model = linear(mode=mode)
  before = raw(model)
  for _ in range(3):
    model(batch(2, 6))
  model.eval()
  model(batch(2, 6))
  model(batch(2, 6), update_stats=True)
  assert_same(raw(model), before)


def test_a_step_of_rate_zero_changes_no_weight():
  """Flax nnx (flax#5576): such a step moved a norm from 10.8 to 1.0."""
  model = linear(40, 30)
  before = raw(model)
  optimizer = nnx.Optimizer(model, optax.sgd(0.0), wrt=nnx.Param)
  gradients = nnx.grad(lambda model: jnp.sum(model(batch(2, 40)) ** 2))(model)
  optimizer.update(model, gradients)
  assert_same(raw(model), before)


@pytest.mark.parametrize("mode", ["target", "cap", "gain"])
def test_gradient_reaches_the_raw_weight(mode):
  model = linear(mode=mode, target=0.7, update_stats=False, param_dtype=FLOAT)
  graph, params, rest = nnx.split(model, nnx.Param, ...)

  def loss(params):
    return jnp.sum(jnp.sin(nnx.merge(graph, params, rest)(batch(2, 6))))

  tol = 1e-6 if X64 else 2e-2
  check_grads(loss, (params,), order=1, modes=["fwd", "rev"], atol=tol, rtol=tol)


def test_params_keep_their_dtype_and_vectors_are_float32():
  layer = nnx.Linear(6, 5, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
  model = SpectralNorm(layer, rngs=nnx.Rngs(0))
  model(batch(2, 6).astype(jnp.bfloat16))
  assert {w.dtype for w in jax.tree.leaves(raw(model))} == {jnp.dtype(jnp.bfloat16)}
  assert {x.dtype for x in jax.tree.leaves(stats(model))} == {jnp.dtype(jnp.float32)}
  seen = SpectralNorm(Reveal(layer), rngs=nnx.Rngs(0))(None)
  assert seen["kernel"].dtype == jnp.bfloat16


def test_dtype_is_that_of_the_kernels_the_layer_sees():
  layer = nnx.Linear(40, 30, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
  seen = SpectralNorm(Reveal(layer), dtype=jnp.float32, rngs=nnx.Rngs(0))(None)
  assert seen["kernel"].dtype == jnp.float32
  assert seen["bias"].dtype == jnp.bfloat16
  # Normalized before rounding: bfloat16 would be 1e-3 off.
  np.testing.assert_allclose(top_sigma(seen["kernel"]), 1, rtol=1e-5)


def test_biases_and_scales_are_left_alone():
  """Flax takes an attention bias (H, dh) for a matrix."""
  attention = nnx.MultiHeadAttention(4, 32, rngs=nnx.Rngs(0), normalize_qk=True)
  for name in ("query", "key", "value"):
    bias = getattr(attention, name).bias
    bias[...] = batch(*bias.shape).astype(bias.dtype)
  wrapped = SpectralNorm(Reveal(attention), rngs=nnx.Rngs(0))
  seen, given = wrapped(None), raw(attention)
  for name in given:
    for kind in set(given[name]) - {"kernel"}:
      np.testing.assert_array_equal(seen[name][kind], given[name][kind])
  assert sorted(wrapped.batch_stats) == [
    f"layer/{name}/kernel" for name in ("key", "out", "query", "value")
  ]


# The norm is the true operator's

LAYERS = {
  "linear": (lambda r: nnx.Linear(32, 8, rngs=r), (32,)),
  # Flax's reads 0.646 here.
  "one_to_two": (lambda r: nnx.LinearGeneral(32, (8, 4), rngs=r), (32,)),
  "two_to_one": (lambda r: nnx.LinearGeneral((4, 6), 5, axis=(-2, -1), rngs=r), (4, 6)),
  "two_to_two": (lambda r: nnx.LinearGeneral((4, 6), (3, 5), axis=(-2, -1), rngs=r), (4, 6)),
}


@pytest.mark.first(2)
@pytest.mark.parametrize("case", LAYERS)
def test_norm_is_the_target(case):
  make, shape = LAYERS[case]
  model = SpectralNorm(make(nnx.Rngs(0)), target=0.7, rngs=nnx.Rngs(0))
  np.testing.assert_allclose(norm_of(model, batch(*shape)), 0.7, rtol=1e-5)
  model(batch(*shape))
  np.testing.assert_allclose(norm_of(model, batch(*shape)), 0.7, rtol=1e-5)


@pytest.mark.thorough
def test_every_projection_of_attention_has_the_target():
  attention = nnx.MultiHeadAttention(4, 16, 32, 24, rngs=nnx.Rngs(0), decode=False)
  wrapped = SpectralNorm(Reveal(attention), rngs=nnx.Rngs(0))
  seen = wrapped(None)
  for name in ("query", "key", "value"):
    np.testing.assert_allclose(top_sigma(seen[name]["kernel"].reshape(16, 32)), 1, rtol=1e-3)
  np.testing.assert_allclose(top_sigma(seen["out"]["kernel"].reshape(32, 24)), 1, rtol=1e-3)
  y = SpectralNorm(attention, rngs=nnx.Rngs(0))(batch(2, 5, 16), mask=jnp.ones((2, 4, 5, 5)))
  assert y.shape == (2, 5, 24)


def test_batch_axes_stack_matrices():
  layer = nnx.LinearGeneral(6, 5, batch_axis={0: 3}, rngs=nnx.Rngs(0))
  seen = SpectralNorm(Reveal(layer), rngs=nnx.Rngs(0))(None)
  np.testing.assert_allclose(top_sigma(seen["kernel"]), np.ones(3), rtol=1e-3)


def test_embedding_maps_tokens_to_features():
  model = SpectralNorm(nnx.Embed(11, 5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
  np.testing.assert_allclose(top_sigma(model(jnp.arange(11))), 1, rtol=1e-3)


@pytest.mark.first(2)
@pytest.mark.parametrize(
  ("make", "out_axis"),
  [
    (lambda r: nnx.Conv(3, 8, (3, 3), rngs=r), 3),
    (lambda r: nnx.Conv(4, 8, (3,), feature_group_count=2, rngs=r), 2),
    (lambda r: nnx.ConvTranspose(3, 8, (3, 3), rngs=r), 3),
    (lambda r: nnx.ConvTranspose(3, 8, (3, 3), transpose_kernel=True, rngs=r), 2),
  ],
  ids=["conv", "groups", "transposed", "transposed_kernel"],
)
def test_convolution_is_the_reshaped_kernel(make, out_axis):
  wrapped = SpectralNorm(Reveal(make(nnx.Rngs(0))), rngs=nnx.Rngs(0))
  ((_, operator),) = wrapped.operators
  assert isinstance(operator, lipjax.ReshapedKernel)
  kernel = np.moveaxis(wrapped(None)["kernel"], out_axis, -1)
  np.testing.assert_allclose(top_sigma(kernel.reshape(-1, kernel.shape[-1])), 1, rtol=1e-3)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda r: nnx.Einsum("abc,cde->abde", (4, 2, 3), rngs=r), r"nnx\.Einsum\('abc,cde->abde'\)"),
    (lambda r: nnx.LoRA(4, 2, 3, rngs=r), "norm of the sum"),
    (lambda r: nnx.Conv(2, 2, (3,), mask=jnp.ones((3, 2, 2)), rngs=r), "masks the kernel"),
    (
      lambda r: nnx.vmap(lambda r: nnx.Linear(3, 2, rngs=r))(r.split(4)),
      r"Dense\(in_axes=\(1,\), out_axes=\(2,\), batch_axes=\(0,\)\)",
    ),
  ],
  ids=["einsum", "lora", "masked", "stacked"],
)
def test_what_cannot_be_told_raises_with_the_override(make, message):
  with pytest.raises(lipjax.LayoutError, match=message) as raised:
    SpectralNorm(make(nnx.Rngs(0)), rngs=nnx.Rngs(0))
  assert "Write layout_overrides={r'" in str(raised.value)


def test_override_decides_before_the_module():
  layer = nnx.Einsum("abc,cde->abde", (4, 2, 3), rngs=nnx.Rngs(0))
  overrides = {"kernel": lipjax.Dense((0,), (1, 2))}
  model = SpectralNorm(layer, layout_overrides=overrides, rngs=nnx.Rngs(0))
  np.testing.assert_allclose(norm_of(model, batch(1, 1, 4)), 1, rtol=1e-3)
  attention = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0))
  overrides = {"(query|key)/kernel": None}
  model = SpectralNorm(attention, layout_overrides=overrides, rngs=nnx.Rngs(0))
  assert sorted(model.batch_stats) == ["out/kernel", "value/kernel"]


def test_error_on_non_matrix():
  layer = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="error_on_non_matrix is True"):
    SpectralNorm(layer, error_on_non_matrix=True, rngs=nnx.Rngs(0))
  SpectralNorm(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), error_on_non_matrix=True, rngs=nnx.Rngs(0))


# Scales


def test_zero_weight_gives_the_layer_with_zero_weight():
  model = linear(scale=0.0)
  model.layer_instance.bias[...] = batch(5)
  np.testing.assert_array_equal(model(batch(6)), batch(5))
  gradients = nnx.grad(lambda model: jnp.sum(model(batch(2, 6)) ** 2))(model)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(raw(gradients)))
  assert np.any(gradients.layer_instance.kernel[...] != 0)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(stats(model)))


@pytest.mark.first(2)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e-2, 1e6, 1e30])
def test_400_training_forwards_stay_right_at_any_scale(scale):
  """haiku "normalizes" a true norm of 1e-2 to 3e16 in 400 steps; Flax is wrong below 1e-6."""
  model = linear(scale=scale)

  @nnx.jit
  def train(model):
    for _ in range(4):
      model(batch(2, 6))

  for _ in range(100):
    train(model)
  np.testing.assert_allclose(norm_of(model, batch(6)), 1, rtol=1e-5)


# Evaluation


def test_evaluation_is_right_before_the_first_step():
  """edward2 evaluates to 18.5 under a cap of 0.95."""
  model = linear(40, 30, mode="cap", target=0.95)
  model.eval()
  np.testing.assert_allclose(norm_of(model, batch(40)), 0.95, rtol=1e-4)


@pytest.mark.parametrize("wrap", [lambda f: f, nnx.jit], ids=["eager", "jit"])
def test_evaluation_is_frozen_and_equals_the_forward_before(wrap):
  """torch's eval() changes the function."""
  model = linear(40, 30)
  model.layer_instance.kernel[...] = batch(40, 30)  # so that the vectors have far to go
  forward = wrap(lambda model, x: model(x))
  trained = forward(model, batch(2, 40))
  model.eval()
  before = stats(model)
  np.testing.assert_array_equal(forward(model, batch(2, 40)), trained)
  np.testing.assert_array_equal(forward(model, batch(2, 40)), trained)
  assert_same(stats(model), before)


def test_remeasure_after_weights_were_replaced():
  """equinox#810: stale vectors claim 2.15 for a true 4.22."""
  model = linear(40, 30, update_stats=False, k=4)
  model.layer_instance.kernel[...] = batch(40, 30, seed=11)
  assert norm_of(model, batch(40)) > 1.5
  model.remeasure()
  np.testing.assert_allclose(norm_of(model, batch(40)), 1, rtol=1e-5)


def test_train_and_eval_set_the_default():
  model = linear(update_stats=None)
  with pytest.raises(ValueError, match="needs update_stats"):
    model(batch(6))
  model.layer_instance.kernel[...] = batch(6, 5)
  before = stats(model)
  model.eval()
  model(batch(6))
  assert_same(stats(model), before)
  model.train()
  model(batch(6))
  assert np.any(stats(model)["batch_stats"]["kernel"]["v"] != before["batch_stats"]["kernel"]["v"])
  after = stats(model)
  model(batch(6), update_stats=False)
  assert_same(stats(model), after)


# Modes


def test_cap_leaves_small_weights_alone():
  model = linear(scale=0.01, mode="cap")
  expected = batch(6) @ model.layer_instance.kernel[...] + model.layer_instance.bias[...]
  np.testing.assert_allclose(model(batch(6)), expected, rtol=1e-5)


def test_gain_is_learned():
  model = linear(mode="gain", target=2.0, param_dtype=jnp.bfloat16)
  gain = model.gains["kernel"]
  assert isinstance(gain, nnx.Param)
  assert (gain.dtype, gain.shape, float(gain[...])) == (jnp.bfloat16, (), 2.0)
  np.testing.assert_allclose(norm_of(model, batch(6)), 2, rtol=1e-3)
  optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
  gradients = nnx.grad(lambda model: jnp.sum(model(batch(2, 6)) ** 2))(model)
  optimizer.update(model, gradients)
  assert float(model.gains["kernel"][...]) < 1.9
  model.remeasure()
  np.testing.assert_allclose(norm_of(model, batch(6)), float(gain[...]), rtol=1e-5)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"mode": "clip"}, "mode is 'clip'; expected 'target', 'cap' or 'gain'"),
    ({"target": 0.0}, r"target is 0\.0; expected a positive number"),
    ({"target": float("nan")}, "target is nan"),
    ({"n_steps": 0}, "n_steps is 0; expected an integer of at least 1"),
    ({"k": 0}, "k is 0; expected an integer of at least 1"),
    ({"tol": 0.0}, "tol is 0.0; expected a positive number"),
    ({"layout_overrides": {"kernal": None}}, "matches no leaf"),
  ],
)
def test_options_that_cannot_be(options, message):
  with pytest.raises(ValueError, match=message):
    linear(**options)


# Under nnx's transformations


class Net(nnx.Module):
  """A normalized block that has state of its own, and a normalized head."""

  def __init__(self, rngs):
    self.body = SpectralNorm(Block(rngs), rngs=rngs)
    self.head = SpectralNorm(nnx.Linear(8, 3, rngs=rngs), mode="gain", rngs=rngs)

  def __call__(self, x):
    # Flax's batch norm keeps float32 statistics.
    return self.head(self.body(x.astype(jnp.float32)))


class Block(nnx.Module):
  """Convolution, batch norm, dropout, projection over two axes."""

  def __init__(self, rngs):
    self.conv = nnx.Conv(2, 4, (3,), rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.out = nnx.LinearGeneral((6, 4), 8, axis=(-2, -1), rngs=rngs)

  def __call__(self, x):
    return self.out(self.dropout(jax.nn.relu(self.norm(self.conv(x)))))


@pytest.mark.thorough
def test_state_of_the_layer_keeps_working():
  model = Net(nnx.Rngs(0))
  block = model.body.layer_instance
  mean, count = np.array(block.norm.mean[...]), int(block.dropout.rngs.count[...])
  a, b = model(batch(4, 6, 2)), model(batch(4, 6, 2))
  assert np.any(a != b)  # dropout drew anew
  assert np.any(block.norm.mean[...] != mean)
  assert int(block.dropout.rngs.count[...]) == count + 2
  model.eval()
  np.testing.assert_array_equal(model(batch(4, 6, 2)), model(batch(4, 6, 2)))


def test_what_the_layer_sows_is_captured():
  class Sow(nnx.Linear):
    def __call__(self, x):
      self.sow(nnx.Intermediate, "seen", x)
      return super().__call__(x)

  model = SpectralNorm(Sow(3, 2, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
  _, seen = nnx.capture(model, nnx.Intermediate)(batch(3))
  np.testing.assert_array_equal(seen["layer_instance"]["seen"][0], batch(3))


def make_step(traces=None):
  @nnx.jit
  def step(model, optimizer, x):
    if traces is not None:
      traces.append(1)
    loss = lambda model: jnp.mean((model(x) - 1.0) ** 2)
    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value

  return step


def test_training_follows_the_weights_and_traces_once():
  model, traces = Net(nnx.Rngs(0)), []
  optimizer, step = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param), make_step(traces)
  values = [float(step(model, optimizer, batch(16, 6, 2))) for _ in range(60)]
  assert np.mean(values[-10:]) < np.mean(values[:10])
  assert len(traces) == 1
  model.eval()
  kernel = nnx.state(model.body.layer_instance.out, nnx.Param)["kernel"][...].reshape(24, 8)
  claimed = model.body.batch_stats["out/kernel"]["sigma"][0]
  np.testing.assert_allclose(claimed, top_sigma(kernel), rtol=2e-2)


def test_checkpoint_continues_bit_for_bit(tmp_path):
  step, data = make_step(), [batch(16, 6, 2, seed=i) for i in range(6)]

  def start(seed):
    model = Net(nnx.Rngs(seed))
    return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

  straight = start(0)
  for x in data:
    step(*straight, x)
  half = start(0)
  for x in data[:3]:
    step(*half, x)
  saved = [nnx.state(node) for node in half]
  plain = [jax.tree.map(raw_keys, nnx.to_pure_dict(state)) for state in saved]
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "checkpoint", plain)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "checkpoint", plain)
  resumed = start(1)
  for node, pure, like in zip(resumed, restored, saved, strict=True):
    state = nnx.state(node)
    nnx.replace_by_pure_dict(state, jax.tree.map(typed_like, pure, nnx.to_pure_dict(like)))
    nnx.update(node, state)
  for x in data[3:]:
    step(*resumed, x)
  assert_same(raw(resumed[0]), raw(straight[0]))
  assert_same(stats(resumed[0]), stats(straight[0]))


def raw_keys(x):
  return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def typed_like(x, like):
  is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
  return jax.random.wrap_key_data(x) if is_key else x


def test_two_forwards_in_one_step():
  """torch: the second forward breaks the first one's backward."""
  model = linear()
  model.layer_instance.kernel[...] = batch(6, 5)

  def loss(model):
    return jnp.sum(model(batch(2, 6)) ** 2) + jnp.sum(model(batch(2, 6, seed=8)))

  gradients = nnx.grad(loss)(model)
  assert np.isfinite(gradients.layer_instance.kernel[...]).all()
  assert np.isfinite(stats(model)["batch_stats"]["kernel"]["v"]).all()


def test_an_ensemble_made_and_called_by_vmap():
  @nnx.vmap
  def make(rngs):
    return SpectralNorm(nnx.Linear(6, 5, rngs=rngs), mode="gain", rngs=rngs)

  models = make(nnx.Rngs(0).split(3))
  assert models.batch_stats["kernel"]["v"].shape == (3, 8, 6)
  call = nnx.vmap(lambda model, x: model(x), in_axes=(0, None))
  y = call(models, jnp.eye(6))
  bias = models.layer_instance.bias[...][:, None]
  np.testing.assert_allclose(top_sigma(y - bias), np.ones(3), rtol=1e-4)
  assert_same(raw(models), raw(make(nnx.Rngs(0).split(3))))


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_layers(remat):
  @nnx.vmap
  def make(rngs):
    return SpectralNorm(nnx.Linear(6, 6, use_bias=False, rngs=rngs), rngs=rngs)

  def apply(layer, x):
    return layer(x)

  def loop(layers, x):
    for i in range(3):
      kernel = layers.layer_instance.kernel[...][i]
      x = x @ (kernel / top_sigma(kernel))
    return x

  layers = make(nnx.Rngs(0).split(3))
  apply = nnx.remat(apply) if remat else apply
  scan = nnx.scan(lambda x, layer: apply(layer, x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
  forward = nnx.jit(lambda layers, x: scan(x, layers))
  np.testing.assert_allclose(forward(layers, batch(2, 6)), loop(layers, batch(2, 6)), rtol=1e-3)
  gradients = nnx.grad(lambda layers: jnp.sum(forward(layers, batch(2, 6)) ** 2))(layers)
  assert np.any(gradients.layer_instance.kernel[...] != 0)


def test_remat_keeps_the_update_and_the_gradient():
  plain, again = linear(), linear()
  for model in (plain, again):
    model.layer_instance.kernel[...] = batch(6, 5)
  loss = lambda model: jnp.sum(model(batch(2, 6)) ** 2)
  expected = nnx.grad(loss)(plain)
  actual = nnx.grad(nnx.remat(loss))(again)
  np.testing.assert_allclose(
    actual.layer_instance.kernel[...], expected.layer_instance.kernel[...], rtol=1e-5
  )
  np.testing.assert_allclose(again.batch_stats["kernel"]["v"], plain.batch_stats["kernel"]["v"])


def test_split_and_merge_outside_of_nnx():
  model = linear(update_stats=False)
  graph, state = nnx.split(model)
  forward = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
  np.testing.assert_allclose(forward(state, batch(6)), model(batch(6)), rtol=1e-6)
  hash(graph)


def test_abstract_construction():
  def make():
    return SpectralNorm(nnx.Linear(6, 5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))

  shapes = lambda model: jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(model)))
  assert shapes(nnx.eval_shape(make)) == shapes(make())


def test_tied_weights_stay_tied():
  embed = nnx.Embed(11, 5, rngs=nnx.Rngs(0))
  model = SpectralNorm(embed, rngs=nnx.Rngs(0))
  model(jnp.arange(3))
  assert model.layer_instance is embed
