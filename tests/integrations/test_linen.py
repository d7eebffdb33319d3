"""`lipjax.integrations.linen.SpectralNorm` and what is wrong with its peers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.test_util import check_grads
from reference import FLOAT, X64, jacobian, normal, top_sigma

import lipjax
from lipjax.integrations.linen import SpectralNorm, remeasure

KEY = jax.random.key(0)


def batch(*shape, seed=7):
  return normal(seed, shape)


def start(model, x, **call):
  return model.init(KEY, x, update_stats=False, **call)


def train(model, variables, x):
  """Output and variables after a training forward."""
  y, new = model.apply(variables, x, update_stats=True, mutable=["batch_stats"])
  return y, variables | new


def evaluate(model, variables, x):
  return model.apply(variables, x, update_stats=False)


def norm_of(model, variables, x):
  """The true norm of the layer's own linear map in evaluation."""
  return top_sigma(jacobian(evaluation(model), x, variables))


@functools.lru_cache(maxsize=16)
def evaluation(model):
  """One function a model: `jacobian` compiles it once for all variables."""
  return lambda x, variables: evaluate(model, variables, x)


def call_and_init(model, x):
  """Output and variables, in one program instead of one for each operation."""
  call = functools.partial(model.init_with_output, update_stats=False)
  return jax.jit(call)(KEY, x)


def dense(scale=1.0, n_in=6, n_out=5, **options):
  """A wrapped Dense of Gaussian kernel, and its variables."""
  init = lambda key, shape, dtype: normal(0, shape, dtype, scale)
  model = SpectralNorm(nn.Dense(n_out, kernel_init=init, param_dtype=FLOAT), **options)
  return model, start(model, batch(2, n_in))


def with_kernel(variables, kernel):
  params = variables["params"]["layer_instance"] | {"kernel": kernel}
  return variables | {"params": {"layer_instance": params}}


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


class Reveal(nn.Module):
  """Returns the params that its layer computes with."""

  layer: nn.Module

  def __call__(self, x):
    self.layer(x)
    return self.layer.variables["params"]


# The weights belong to the optimizer


def test_init_stores_what_the_initializer_made():
  """Flax stores the weight divided by its norm."""
  kernel = normal(3, (6, 5), jnp.float32)
  model = SpectralNorm(nn.Dense(5, kernel_init=lambda key, shape, dtype: kernel))
  for update_stats in (False, True):
    y, variables = model.init_with_output(KEY, batch(6), update_stats=update_stats)
    np.testing.assert_array_equal(variables["params"]["layer_instance"]["kernel"], kernel)
    np.testing.assert_allclose(y, batch(6) @ kernel / top_sigma(kernel), rtol=1e-4, atol=1e-6)


class Model(nn.Module):
  """As in Flax's documentation: wrapped layers made in a compact method."""

  wrapper: type = SpectralNorm

  @nn.compact
  def __call__(self, x, train):
    x = self.wrapper(nn.DenseGeneral((4, 2)))(x, update_stats=train)
    x = self.wrapper(nn.MultiHeadDotProductAttention(2, qkv_features=8))(x, update_stats=train)
    return self.wrapper(nn.Conv(3, (2,)))(x, update_stats=train)


def test_params_have_the_paths_of_flax():
  def shapes(wrapper):
    init = functools.partial(Model(wrapper).init, train=False)
    return jax.tree.map(jnp.shape, jax.eval_shape(init, KEY, batch(3, 6))["params"])

  assert shapes(SpectralNorm) == shapes(nn.SpectralNorm)


@pytest.mark.parametrize("mode", ["target", "cap", "gain"])
def test_no_forward_writes_params_and_evaluation_writes_nothing(mode):
  model, variables = dense(mode=mode)
  _, new = model.apply(variables, batch(2, 6), update_stats=True, mutable=True)
  assert_same(new["params"], variables["params"])
  _, new = model.apply(variables, batch(2, 6), update_stats=False, mutable=True)
  assert_same(new, variables)


def test_a_step_of_rate_zero_changes_no_weight():
  model, variables = dense(scale=10.0)

  def loss(params):
    y, _ = train(model, variables | {"params": params}, batch(2, 6))
    return jnp.sum(y**2)

  params = variables["params"]
  updates, _ = optax.sgd(0.0).update(jax.grad(loss)(params), optax.sgd(0.0).init(params))
  assert_same(optax.apply_updates(params, updates), params)


@pytest.mark.parametrize("mode", ["target", "cap", "gain"])
def test_gradient_reaches_the_raw_weight(mode):
  model, variables = dense(mode=mode, target=0.7, param_dtype=FLOAT)

  def loss(params):
    return jnp.sum(jnp.sin(evaluate(model, variables | {"params": params}, batch(2, 6))))

  tol = 1e-6 if X64 else 2e-2
  check_grads(loss, (variables["params"],), order=1, modes=["fwd", "rev"], atol=tol, rtol=tol)


def test_dtypes():
  """Flax turns bfloat16 weights into float32."""
  model = SpectralNorm(Reveal(nn.Dense(30, param_dtype=jnp.bfloat16)))
  seen, variables = model.init_with_output(KEY, batch(40), update_stats=False)
  assert {w.dtype for w in jax.tree.leaves((seen, variables["params"]))} == {
    jnp.dtype(jnp.bfloat16)
  }
  assert {x.dtype for x in jax.tree.leaves(variables["batch_stats"])} == {jnp.dtype(jnp.float32)}
  wide = SpectralNorm(Reveal(nn.Dense(30, param_dtype=jnp.bfloat16)), dtype=jnp.float32)
  seen = evaluate(wide, variables, batch(40))
  assert (seen["kernel"].dtype, seen["bias"].dtype) == (jnp.float32, jnp.bfloat16)
  np.testing.assert_allclose(top_sigma(seen["kernel"]), 1, rtol=1e-5)


def test_attention_has_normalized_projections_and_its_own_biases():
  """Flax takes a bias (H, dh) for a matrix."""
  init = nn.initializers.normal(1.0)
  layer = nn.MultiHeadDotProductAttention(4, qkv_features=32, out_features=24, bias_init=init)
  model = SpectralNorm(Reveal(layer))
  seen, variables = call_and_init(model, batch(3, 16))
  given = variables["params"]["layer_instance"]["layer"]
  for name, rows in (("query", 16), ("key", 16), ("value", 16), ("out", 32)):
    np.testing.assert_array_equal(seen[name]["bias"], given[name]["bias"])
    matrix = seen[name]["kernel"].reshape(rows, -1)
    np.testing.assert_allclose(top_sigma(matrix), 1, rtol=1e-5)
  assert len(variables["batch_stats"]) == 4 * 3


# The norm is the true operator's

LAYERS = {
  "one_to_two": (lambda: nn.DenseGeneral((8, 4)), (32,)),  # Flax's reads 0.646
  "two_to_one": (lambda: nn.DenseGeneral(5, axis=(-2, -1)), (4, 6)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_norm_is_the_target(case):
  make, shape = LAYERS[case]
  model = SpectralNorm(make(), target=0.7)
  _, variables = call_and_init(model, batch(*shape))
  np.testing.assert_allclose(norm_of(model, variables, batch(*shape)), 0.7, rtol=1e-5)
  _, variables = train(model, variables, batch(*shape))
  np.testing.assert_allclose(norm_of(model, variables, batch(*shape)), 0.7, rtol=1e-5)


def test_every_layer_of_a_block_is_read_off_its_own_module():
  block = nn.Sequential([nn.Dense(8), nn.DenseGeneral((2, 3)), nn.LayerNorm()])
  seen, _ = call_and_init(SpectralNorm(Reveal(block)), batch(5))
  np.testing.assert_allclose(top_sigma(seen["layers_0"]["kernel"]), 1, rtol=1e-5)
  np.testing.assert_allclose(top_sigma(seen["layers_1"]["kernel"].reshape(8, 6)), 1, rtol=1e-5)
  np.testing.assert_array_equal(seen["layers_2"]["scale"], 1)


def test_batch_dims_embeddings_and_scans_inside_the_layer():
  class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
      scan = nn.scan(Plain, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
      return scan()(x, None)[0]

  for layer, x in (
    (nn.DenseGeneral(5, batch_dims=(0,)), batch(3, 6)),
    (Stack(), batch(6)),
  ):
    init = functools.partial(start, SpectralNorm(layer))
    stats = jax.eval_shape(init, x)["batch_stats"]
    (sigma,) = (s for n, s in stats.items() if "sigma" in n)
    assert sigma.shape == (3, 4)
  model = SpectralNorm(nn.Embed(11, 5))
  variables = start(model, jnp.arange(11))
  np.testing.assert_allclose(top_sigma(evaluate(model, variables, jnp.arange(11))), 1, rtol=1e-5)


class Plain(nn.Module):
  """A scanned body without normalization."""

  @nn.compact
  def __call__(self, x, _):
    return nn.Dense(6)(x), None


@pytest.mark.parametrize(
  ("layer", "out_axis"),
  [
    (nn.Conv(8, (3, 3)), 3),
    (nn.ConvTranspose(8, (3, 3), transpose_kernel=True), 2),
  ],
  ids=["conv", "transposed_kernel"],
)
def test_convolution_is_the_reshaped_kernel(layer, out_axis):
  model = SpectralNorm(Reveal(layer))
  seen, _ = call_and_init(model, batch(1, 4, 4, 2))
  kernel = np.moveaxis(seen["kernel"], out_axis, -1)
  np.testing.assert_allclose(top_sigma(kernel.reshape(-1, 8)), 1, rtol=1e-5)


@pytest.mark.parametrize(
  ("layer", "shape", "message"),
  [
    (nn.Einsum((4, 2, 3), "ac,cde->ade"), (5, 4), r"nn\.Einsum\('ac,cde->ade'\)"),
    (nn.ConvLocal(2, (3,)), (5, 2), r"nn\.ConvLocal has a kernel of its own"),
    (nn.Conv(2, (3,), mask=jnp.ones((3, 2, 2))), (5, 2), "masks the kernel"),
  ],
  ids=["einsum", "local", "masked"],
)
def test_what_cannot_be_told_raises_with_the_override(layer, shape, message):
  with pytest.raises(lipjax.LayoutError, match=message) as raised:
    start(SpectralNorm(layer), batch(*shape))
  assert "Write layout_overrides={r'kernel'" in str(raised.value)


def test_override_decides_before_the_module():
  overrides = {"kernel": lipjax.Dense((0,), (1, 2))}
  model = SpectralNorm(nn.Einsum((4, 2, 3), "ac,cde->ade"), layout_overrides=overrides)
  variables = start(model, batch(1, 4))
  own = jacobian(lambda x: evaluate(model, variables, x), batch(1, 4))
  np.testing.assert_allclose(top_sigma(own), 1, rtol=1e-5)


def test_error_on_non_matrix():
  with pytest.raises(ValueError, match="error_on_non_matrix is True"):
    start(SpectralNorm(nn.DenseGeneral((2, 3)), error_on_non_matrix=True), batch(4))


def test_modules_made_outside_of_the_layer_raise():
  class Outer(nn.Module):
    parent_of: object = None

    @nn.compact
    def __call__(self, x):
      layers = [nn.Dense(4, **(self.parent_of or {})), nn.relu]
      return SpectralNorm(nn.Sequential(layers))(x, update_stats=False)

  with pytest.raises(ValueError, match="Make them with parent=None"):
    Outer().init(KEY, batch(3))
  variables = Outer({"parent": None}).init(KEY, batch(3))
  assert len(variables["batch_stats"]["SpectralNorm_0"]) == 3


# Scales


def test_zero_weight_gives_the_layer_with_zero_weight():
  model = SpectralNorm(nn.Dense(5, kernel_init=nn.initializers.zeros))
  variables = start(model, batch(2, 6))
  y, variables = train(model, variables, batch(2, 6))
  assert not np.any(y)
  loss = lambda params: jnp.sum(
    (evaluate(model, variables | {"params": params}, batch(2, 6)) - 1) ** 2
  )
  gradient = jax.grad(loss)(variables["params"])["layer_instance"]["kernel"]
  assert np.isfinite(gradient).all()
  assert np.any(gradient)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e-2, 1e30])
def test_400_training_forwards_stay_right_at_any_scale(scale):
  """haiku "normalizes" a true norm of 1e-2 to 3e16 in 400 steps; Flax is wrong below 1e-6."""
  model, variables = dense(scale=scale)

  @jax.jit
  def forwards(variables):
    return jax.lax.fori_loop(0, 400, lambda _, v: train(model, v, batch(2, 6))[1], variables)

  np.testing.assert_allclose(norm_of(model, forwards(variables), batch(6)), 1, rtol=1e-5)


# Evaluation


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_evaluation_equals_the_training_forward_before(wrap):
  """torch's eval() changes the function."""
  model, variables = dense(n_in=40, n_out=30)
  variables = with_kernel(variables, batch(40, 30))  # so that the vectors have far to go
  trained, variables = wrap(lambda v, x: train(model, v, x))(variables, batch(2, 40))
  for _ in range(2):
    again = wrap(lambda v, x: evaluate(model, v, x))(variables, batch(2, 40))
    np.testing.assert_array_equal(again, trained)


def test_remeasure_after_weights_were_replaced():
  """equinox#810: stale vectors claim 2.15 for a true 4.22."""
  model, variables = dense(n_in=40, n_out=30, k=4)
  variables = with_kernel(variables, batch(40, 30, seed=11))
  assert norm_of(model, variables, batch(40)) > 1.5
  new = remeasure(model, variables, batch(40), update_stats=False)
  assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, variables)
  np.testing.assert_allclose(norm_of(model, new, batch(40)), 1, rtol=1e-5)
  with pytest.raises(ValueError, match="hold no vectors"):
    remeasure(nn.Dense(3), {"params": {}}, batch(40))


def test_a_checkpoint_without_vectors_is_evaluated_right():
  model, variables = dense()
  y = evaluate(model, {"params": variables["params"]}, batch(2, 6))
  np.testing.assert_allclose(y, evaluate(model, variables, batch(2, 6)), rtol=1e-5)


# Modes and options


def test_cap_and_gain():
  model, variables = dense(scale=0.01, mode="cap")
  np.testing.assert_allclose(
    evaluate(model, variables, batch(6)),
    batch(6) @ variables["params"]["layer_instance"]["kernel"],
    rtol=1e-5,
  )
  model, variables = dense(mode="gain", target=2.0, param_dtype=jnp.bfloat16)
  gain = variables["params"]["layer_instance/kernel/gain"]
  assert (gain.dtype, gain.shape, float(gain)) == (jnp.bfloat16, (), 2.0)
  variables["params"]["layer_instance/kernel/gain"] = jnp.asarray(0.5)
  np.testing.assert_allclose(norm_of(model, variables, batch(6)), 0.5, rtol=1e-5)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"mode": "clip"}, "mode is 'clip'; expected 'target', 'cap' or 'gain'"),
    ({"target": -1.0}, r"target is -1\.0; expected a positive number"),
    ({"n_steps": 0}, "n_steps is 0; expected an integer of at least 1"),
    ({"k": 0}, "k is 0; expected an integer of at least 1"),
    ({"tol": 0.0}, "tol is 0.0; expected a positive number"),
    ({"layout_overrides": {"kernal": None}}, "matches no leaf"),
  ],
)
def test_options_that_cannot_be(options, message):
  with pytest.raises(ValueError, match=message):
    dense(**options)


def test_missing_update_stats():
  with pytest.raises(ValueError, match="needs update_stats"):
    SpectralNorm(nn.Dense(3)).init(KEY, batch(2))


def test_collection_name():
  model, _ = dense()
  variables = model.clone(collection_name="vectors").init(KEY, batch(6), update_stats=False)
  assert set(variables) == {"params", "vectors"}


# Under linen's transformations


class Block(nn.Module):
  """Convolution, batch norm, dropout: a layer with state and random numbers of its own."""

  train: bool

  @nn.compact
  def __call__(self, x):
    x = nn.BatchNorm(use_running_average=not self.train)(nn.Conv(4, (3,))(x))
    return nn.Dropout(0.5, deterministic=not self.train)(x)


def test_state_and_random_numbers_of_the_layer_keep_working():
  model = SpectralNorm(Block(train=True))
  variables = model.init({"params": KEY, "dropout": KEY}, batch(2, 6, 2), update_stats=False)
  call = lambda model, rngs: model.apply(
    variables, batch(2, 6, 2), update_stats=True, mutable=["batch_stats"], rngs=rngs
  )
  (a, new), (b, _) = (call(model, {"dropout": jax.random.key(i)}) for i in range(2))
  assert np.any(a != b)
  mean = new["batch_stats"]["layer_instance"]["BatchNorm_0"]["mean"]
  assert np.any(mean != 0)
  frozen = SpectralNorm(Block(train=False))
  measured = remeasure(frozen, variables | new, batch(2, 6, 2), update_stats=False)
  np.testing.assert_array_equal(
    measured["batch_stats"]["layer_instance"]["BatchNorm_0"]["mean"], mean
  )


class Step(nn.Module):
  """A body for scans."""

  train: bool

  @nn.compact
  def __call__(self, x, _):
    return SpectralNorm(nn.Dense(6, use_bias=False))(x, update_stats=self.train), None


class Lifted(nn.Module):
  """Three normalized layers by scan, an ensemble by vmap, under remat and jit."""

  train: bool = False

  @nn.compact
  def __call__(self, x):
    axes = {"params": 0, "batch_stats": 0}
    split = {"params": True}
    scan = nn.scan(nn.remat(Step), variable_axes=axes, split_rngs=split, length=3)
    x, _ = scan(self.train)(x, None)
    ensemble = nn.vmap(
      nn.jit(Step), variable_axes=axes, split_rngs=split, in_axes=None, axis_size=2
    )
    return ensemble(self.train)(x, None)[0]


def test_scan_vmap_remat_and_jit():
  x = batch(2, 6)
  variables = jax.jit(Lifted().init)(KEY, x)
  kernels = jax.tree.leaves(variables["params"])
  assert sorted(k.shape for k in kernels) == [(2, 6, 6), (3, 6, 6)]
  train = jax.jit(functools.partial(Lifted(train=True).apply, mutable=["batch_stats"]))
  y, new = train(variables, x)
  np.testing.assert_allclose(y, Lifted().apply(variables | new, x), rtol=1e-6)
  for path, sigma in jax.tree_util.tree_leaves_with_path(new["batch_stats"]):
    if "sigma" in str(path):
      kernel = next(k for k in kernels if k.shape[0] == sigma.shape[0])
      np.testing.assert_allclose(sigma[..., 0], top_sigma(kernel), rtol=1e-4)

  def loss(params):
    y, _ = train(variables | {"params": params}, x)
    return jnp.sum(y**2)

  gradient = jax.jit(jax.grad(loss))(variables["params"])
  assert all(np.any(g) for g in jax.tree.leaves(gradient))
  changed = variables | {"params": jax.tree.map(lambda w: w**3, variables["params"])}
  measured = remeasure(Lifted(), changed, x)
  assert jax.tree.map(jnp.shape, measured) == jax.tree.map(jnp.shape, variables)


def test_two_forwards_in_one_step():
  """torch: the second forward breaks the first one's backward."""
  model, variables = dense()

  def loss(params):
    y, state = train(model, variables | {"params": params}, batch(2, 6))
    z, state = train(model, state, batch(2, 6, seed=8))
    return jnp.sum(y**2) + jnp.sum(z**2)

  assert np.isfinite(jax.grad(loss)(variables["params"])["layer_instance"]["kernel"]).all()


def test_partitioned_params_stay_boxed():
  init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
  model = SpectralNorm(nn.Dense(5, kernel_init=init))
  variables = start(model, batch(6))
  assert isinstance(variables["params"]["layer_instance"]["kernel"], nn.Partitioned)
  unboxed = nn.unbox(variables)
  np.testing.assert_array_equal(
    evaluate(model, variables, batch(6)), evaluate(model, unboxed, batch(6))
  )


def test_checkpoint_continues_bit_for_bit(tmp_path):
  tx, x = optax.adam(1e-2), batch(3, 6)
  model = Model()

  @jax.jit
  def step(variables, state):
    def loss(params):
      y, new = model.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
      return jnp.mean((y - 1) ** 2), new

    gradients, new = jax.grad(loss, has_aux=True)(variables["params"])
    updates, state = tx.update(gradients, state)
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params} | new, state

  variables = jax.jit(functools.partial(model.init, train=False))(KEY, x)
  carry = variables, tx.init(variables["params"])
  for _ in range(3):
    carry = step(*carry)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "checkpoint", carry)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "checkpoint", carry)
  for _ in range(3):
    carry, restored = step(*carry), step(*restored)
  assert_same(restored, carry)
  assert step._cache_size() <= 2
