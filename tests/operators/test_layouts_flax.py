"""flax_layout on real linen and nnx modules: the norm it leads to is the module's."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import jacobian, operator_matrices, rtol_of, slice_sigmas, top_sigma

import lipjax
from lipjax import Dense, Diagonal, LayoutError, ReshapedKernel
from lipjax.operators.resolve import resolve_operators

KEY = jax.random.key(0)
STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}


def norms_of(params, **options):
  # The layout is what is tested here; an SVD compiles faster than Lanczos.
  return slice_sigmas(lipjax.spectral_norms(params, method="svd", **options))


def linen_params(module, x):
  return module.init(KEY, x)["params"]


def assert_norm(sigma, matrix, rtol=1e-5):
  """Flax computes in float32 whatever the run's precision, so 1e-5 throughout."""
  np.testing.assert_allclose(sigma, top_sigma(matrix), rtol=rtol)


def test_linen_dense():
  module, x = nn.Dense(3), jnp.ones(8)
  params = linen_params(module, x)
  norms = norms_of(params)
  assert list(norms) == ["kernel"]
  assert_norm(norms["kernel"], jacobian(lambda x: module.apply({"params": params}, x), x))


def test_linen_dense_general_raises_and_its_override_is_the_truth():
  # PEERS: Flax claims 1.0 for a true 0.646 here, from reading (32, 8, 4) as 4 columns.
  module, x = nn.DenseGeneral((8, 4)), jnp.ones(32)
  params = linen_params(module, x)
  with pytest.raises(LayoutError, match=r"DenseGeneral"):
    norms_of(params)
  norms = norms_of(params, layout_overrides={"kernel": Dense((0,), (1, 2))})
  truth = jacobian(lambda x: module.apply({"params": params}, x), x)
  assert_norm(norms["kernel"], truth)
  flattened = top_sigma(np.asarray(params["kernel"], np.float64).reshape(-1, 4))
  assert abs(flattened / norms["kernel"] - 1) > 0.1  # what Flax divides by


def test_linen_dense_general_on_two_axes():
  module, x = nn.DenseGeneral(5, axis=(-2, -1)), jnp.ones((3, 4))
  params = linen_params(module, x)
  norms = norms_of(params, layout_overrides={"kernel": Dense((0, 1), (2,))})
  assert_norm(norms["kernel"], jacobian(lambda x: module.apply({"params": params}, x), x))


def attention_truths(params, attend, dense_general):
  """The projections of one token, alone and inside the real attention."""
  token, heads = jnp.ones(8), jnp.ones((2, 4))
  into = {
    n: jacobian(lambda x: dense_general(params[n], x, False), token)
    for n in ("query", "key", "value")
  }
  out = jacobian(lambda h: dense_general(params["out"], h, True), heads)
  # With one token the softmax is 1, so attention is the product of value and out.
  whole = jacobian(lambda x: attend(x[None]).ravel(), token)
  np.testing.assert_allclose(out @ into["value"], whole, atol=1e-5)
  return into | {"out": out}


def test_linen_attention():
  module = nn.MultiHeadDotProductAttention(num_heads=2)
  params = linen_params(module, jnp.ones((1, 8)))

  def dense_general(p, x, out):
    general = nn.DenseGeneral(8, axis=(-2, -1)) if out else nn.DenseGeneral((2, 4))
    return general.apply({"params": p}, x)

  truths = attention_truths(params, lambda x: module.apply({"params": params}, x), dense_general)
  norms = norms_of(params)
  assert set(norms) == {f"{n}/kernel" for n in truths}  # biases (H, dh) are no matrices
  for name, matrix in truths.items():
    assert_norm(norms[f"{name}/kernel"], matrix)


def test_attention_of_another_width_raises():
  module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=12)
  with pytest.raises(LayoutError) as caught:
    norms_of(linen_params(module, jnp.ones((1, 8))))
  assert str(caught.value).count("\n  - ") == 4


def test_linen_convolutions_are_reshaped_kernels():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(4, (3, 3))(x)
      x = nn.ConvTranspose(5, (3, 3))(x)
      return nn.Conv(6, (3,))(x)

  params = jax.eval_shape(Net().init, KEY, jnp.ones((6, 6, 3)))["params"]
  filled = jax.tree.map(lambda s: jax.random.normal(KEY, s.shape), params)
  norms = norms_of(filled)
  for name in ("Conv_0", "ConvTranspose_0", "Conv_1"):
    assert isinstance(resolve_operators(filled)[f"{name}/kernel"], ReshapedKernel)
    kernel = np.asarray(filled[name]["kernel"], np.float64)
    assert_norm(norms[f"{name}/kernel"], kernel.reshape(-1, kernel.shape[-1]).T)


def test_a_dense_general_inside_a_convolutional_block_is_not_a_kernel():
  # Only the module that owns a kernel says what it is; the blocks around it do not.
  class ConvBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.DenseGeneral((4, 2))(nn.Conv(8, (3,))(x))

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return ConvBlock()(x)

  params = linen_params(Net(), jnp.ones((5, 3)))
  with pytest.raises(LayoutError, match=r"ConvBlock_0/DenseGeneral_0/kernel"):
    norms_of(params)


@pytest.mark.xfail(strict=True, reason="path and shape are those of a 2-D convolution")
def test_a_named_scan_of_1d_convolutions_is_not_one_2d_convolution():
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      return nn.Conv(4, (3,))(x), None

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.scan(Block, length=2, **STACKED)(name="layers")(x, None)

  params = linen_params(Net(), jnp.ones((5, 4)))
  assert params["layers"]["Conv_0"]["kernel"].shape == (2, 3, 4, 4)
  with pytest.raises(LayoutError, match=r"layers/Conv_0/kernel"):
    norms_of(params)


def test_linen_embedding():
  module = nn.Embed(7, 4)
  params = linen_params(module, jnp.zeros((), jnp.int32))
  # attend() is the transposed map, which has the same norm.
  truth = jacobian(lambda q: module.apply({"params": params}, q, method="attend"), jnp.ones(4))
  assert_norm(norms_of(params)["embedding"], truth)


def test_linen_batch_norm_scale():
  module, x = nn.BatchNorm(use_running_average=True, epsilon=0.0), jnp.ones(5)
  variables = module.init(KEY, x)
  params = {"scale": jnp.array([0.5, -2.0, 1.0, 0.0, 1.5]), "bias": jnp.ones(5)}
  truth = jacobian(lambda x: module.apply({**variables, "params": params}, x), x)
  norms = norms_of(variables | {"params": params})
  assert list(norms) == ["params/scale"]  # running statistics are no operators
  assert_norm(norms["params/scale"], truth)


@pytest.mark.parametrize("module", [nn.LayerNorm(), nn.GroupNorm(2), nn.RMSNorm()])
def test_linen_norm_scales_are_diagonal(module):
  params = linen_params(module, jnp.ones((2, 6)))
  assert resolve_operators(params) == {"scale": Diagonal()}
  assert norms_of(params)["scale"] == 1.0


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell])
def test_linen_recurrent_cells(cell):
  module = cell(4)
  carry = module.initialize_carry(KEY, (3,))
  params = module.init(KEY, carry, jnp.ones(3))["params"]
  norms = norms_of(params)
  assert len(norms) == {"GRUCell": 6}.get(cell.__name__, 8)
  for path, sigma in norms.items():
    name = path.removesuffix("/kernel")
    kernel = params[name]["kernel"]
    assert_norm(sigma, kernel)  # each gate is an nn.Dense, see above


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    return nn.Dense(4)(x), nn.LayerNorm()(x)


class Tower(nn.Module):
  lift: str

  @nn.compact
  def __call__(self, x):
    if self.lift == "vmap":
      return nn.vmap(Layer, in_axes=None, axis_size=3, **STACKED)()(x)[0]
    layer = nn.remat(Layer) if self.lift == "scan+remat" else Layer
    return nn.scan(layer, length=3, **STACKED)()(x, None)[0]


@pytest.mark.parametrize("lift", ["scan", "scan+remat", "vmap"])
def test_linen_stacks_have_one_norm_a_slice(lift):
  module, x = Tower(lift), jnp.ones(4)
  params = linen_params(module, x)
  norms = norms_of(params)
  operators = resolve_operators(params)
  ((path, operator),) = [(p, o) for p, o in operators.items() if isinstance(o, Dense)]
  ((scale, diagonal),) = [(p, o) for p, o in operators.items() if isinstance(o, Diagonal)]
  assert len(operators) == 2
  leaf = jax.tree.leaves(params, is_leaf=lambda a: getattr(a, "ndim", 0) == 3)
  (kernel,) = [a for a in leaf if a.ndim == 3]
  matrices = operator_matrices(operator, kernel)
  whole = jacobian(lambda x: module.apply({"params": params}, x), x)
  composed = matrices.reshape(12, 4) if lift == "vmap" else matrices[2] @ matrices[1] @ matrices[0]
  np.testing.assert_allclose(composed, whole, atol=1e-5)  # the slices are the layers
  np.testing.assert_allclose(norms[path], top_sigma(matrices), rtol=1e-5)
  assert diagonal.batch_shape((3, 4)) == (3,)
  assert norms[scale].tolist() == [1, 1, 1]


def test_linen_stacks_with_a_name_of_their_own_raise():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.scan(Layer, length=3, **STACKED)(name="layers")(x, None)[0]

  params = linen_params(Net(), jnp.ones(4))
  with pytest.raises(LayoutError) as caught:
    norms_of(params)
  assert "layers/Dense_0/kernel" in str(caught.value)
  assert "layers/LayerNorm_0/scale" in str(caught.value)
  overrides = {"layers/.*kernel": Dense((1,), (2,), (0,)), "layers/.*scale": Diagonal((0,))}
  assert norms_of(params, layout_overrides=overrides)["layers/Dense_0/kernel"].shape == (3,)


def test_linen_partitioned_boxes():
  init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
  module, x = nn.Dense(3, kernel_init=init), jnp.ones(8)
  boxed = linen_params(module, x)
  assert isinstance(boxed["kernel"], nn.Partitioned)
  assert norms_of(boxed) == norms_of(nn.unbox(boxed))


@pytest.mark.xfail(strict=True, reason="nothing in the leaf says which axis is stacked")
def test_a_scan_stacked_on_another_axis_has_one_norm_a_layer():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      stacked = STACKED | {"variable_axes": {"params": 1}}
      return nn.scan(Layer, length=3, **stacked)()(x, None)[0]

  params = linen_params(Net(), jnp.ones(4))
  (sigma,) = (s for path, s in norms_of(params).items() if path.endswith("kernel"))
  assert sigma.shape == (3,)


# nnx


def rngs():
  return nnx.Rngs(0)


def test_nnx_linear_by_state_and_by_module():
  module, x = nnx.Linear(8, 3, rngs=rngs()), jnp.ones(8)
  norms = norms_of(nnx.state(module, nnx.Param))
  assert list(norms) == ["kernel"]
  assert_norm(norms["kernel"], jacobian(module, x))


def test_nnx_linear_general_raises_and_its_override_is_the_truth():
  module, x = nnx.LinearGeneral(32, (8, 4), rngs=rngs()), jnp.ones(32)
  state = nnx.state(module, nnx.Param)
  with pytest.raises(LayoutError, match="DenseGeneral"):
    norms_of(state)
  norms = norms_of(state, layout_overrides={"kernel": Dense((0,), (1, 2))})
  assert_norm(norms["kernel"], jacobian(module, x))


def test_nnx_attention():
  module = nnx.MultiHeadAttention(2, 8, rngs=rngs(), decode=False)
  params = {name: name for name in ("query", "key", "value", "out")}
  truths = attention_truths(params, module, lambda name, x, out: getattr(module, name)(x))
  norms = norms_of(nnx.state(module, nnx.Param))
  assert set(norms) == {f"{n}/kernel" for n in truths}
  for name, matrix in truths.items():
    assert_norm(norms[f"{name}/kernel"], matrix)


class ConvNet(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
    self.stem = nnx.Conv(3, 4, (3, 3), rngs=rngs)


def test_nnx_convolutions_by_name():
  state = nnx.state(ConvNet(rngs()), nnx.Param)
  with pytest.raises(LayoutError, match="'stem/kernel'") as caught:
    norms_of(state)
  assert "'conv/kernel'" not in str(caught.value)
  norms = norms_of(state, layout_overrides={"stem/kernel": ReshapedKernel()})
  for name, sigma in norms.items():
    kernel = np.asarray(state[name.split("/")[0]]["kernel"][...], np.float64)
    assert_norm(sigma, kernel.reshape(-1, 4).T)


def test_nnx_embedding():
  module = nnx.Embed(7, 4, rngs=rngs())
  assert_norm(
    norms_of(nnx.state(module, nnx.Param))["embedding"], jacobian(module.attend, jnp.ones(4))
  )


@pytest.mark.parametrize("make", [nnx.LayerNorm, nnx.BatchNorm, nnx.RMSNorm])
def test_nnx_norm_scales_are_diagonal(make):
  state = nnx.state(make(6, rngs=rngs()))
  assert resolve_operators(state) == {"scale": Diagonal()}


def test_nnx_lora_factors():
  module, x = nnx.LoRA(8, 2, 3, rngs=rngs()), jnp.ones(8)
  state = nnx.state(module)
  norms = norms_of(state)
  assert sorted(norms) == ["lora_a", "lora_b"]
  a, b = (np.asarray(state[n][...], np.float64) for n in ("lora_a", "lora_b"))
  np.testing.assert_allclose((a @ b).T, jacobian(module, x), atol=1e-6)
  assert_norm(norms["lora_a"], a)
  assert_norm(norms["lora_b"], b)


def test_nnx_lora_linear():
  module = nnx.LoRALinear(8, 3, lora_rank=2, rngs=rngs())
  assert sorted(resolve_operators(nnx.state(module))) == ["kernel", "lora/lora_a", "lora/lora_b"]


def test_nnx_gru_cell():
  module = nnx.GRUCell(8, 4, rngs=rngs())
  norms = norms_of(nnx.state(module, nnx.Param))
  assert sorted(norms) == ["dense_h/kernel", "dense_i/kernel"]
  assert_norm(norms["dense_i/kernel"], jacobian(module.dense_i, jnp.ones(8)))
  assert_norm(norms["dense_h/kernel"], jacobian(module.dense_h, jnp.ones(4)))


class Block(nnx.Module):
  def __init__(self, rngs):
    self.linear = nnx.Linear(4, 4, rngs=rngs)
    self.norm = nnx.LayerNorm(4, rngs=rngs)


def test_nnx_vmapped_stacks_raise_and_their_override_is_the_truth():
  @nnx.split_rngs(splits=3)
  @nnx.vmap
  def make(rngs):
    return Block(rngs)

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Flax's own, about its own transformations
    stack = make(nnx.Rngs(0))
  state = nnx.state(stack, nnx.Param)
  with pytest.raises(LayoutError) as caught:
    norms_of(state)
  assert "'linear/kernel'" in str(caught.value)
  assert "'norm/scale'" in str(caught.value)
  overrides = {"linear/kernel": Dense((1,), (2,), (0,)), "norm/scale": Diagonal((0,))}
  norms = norms_of(state, layout_overrides=overrides)
  for i in range(3):
    one = nnx.Linear(4, 4, rngs=rngs())
    one.kernel[...] = state["linear"]["kernel"][...][i]
    assert_norm(norms["linear/kernel"][i], jacobian(one, jnp.ones(4)))


def test_half_precision_params_are_measured_in_float32():
  module = nn.Dense(3, param_dtype=jnp.bfloat16)
  params = linen_params(module, jnp.ones(8))
  sigma = lipjax.spectral_norms(params)["kernel"]
  assert sigma.dtype == jnp.float32
  np.testing.assert_allclose(sigma, top_sigma(params["kernel"]), rtol=rtol_of(sigma))
