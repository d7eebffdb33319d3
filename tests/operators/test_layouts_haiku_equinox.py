"""haiku_layout and equinox_layout on real modules: the norm is the module's."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import jacobian, operator_matrices, slice_sigmas, top_sigma

import lipjax
from lipjax import Dense, Diagonal, LayoutError, ReshapedKernel
from lipjax.operators.resolve import resolve_operators

KEY = jax.random.key(0)


# The layout is what is tested here; an SVD compiles faster than Lanczos.
def haiku_norms(params, **options):
  return slice_sigmas(
    lipjax.spectral_norms(params, layout=lipjax.haiku_layout, method="svd", **options)
  )


def equinox_norms(module, **options):
  return slice_sigmas(
    lipjax.spectral_norms(module, layout=lipjax.equinox_layout, method="svd", **options)
  )


def assert_norm(sigma, matrix):
  np.testing.assert_allclose(sigma, top_sigma(matrix), rtol=1e-5)  # modules in float32


def haiku(fn, *args):
  """Params of a Haiku function, and the function of params and arguments."""
  fn = hk.without_apply_rng(hk.transform(fn))
  return fn.init(KEY, *args), fn.apply


def haiku_shapes(fn, *args):
  """Params of a Haiku function, random, without running it."""
  fn = hk.transform_with_state(fn)
  shapes, _ = jax.eval_shape(fn.init, KEY, *args)
  return jax.tree.map(lambda s: jax.random.normal(KEY, s.shape, s.dtype), shapes)


def test_haiku_linear():
  params, apply = haiku(lambda x: hk.Linear(3)(x), jnp.ones(8))
  norms = haiku_norms(params)
  assert list(norms) == ["linear/w"]
  assert_norm(norms["linear/w"], jacobian(lambda x: apply(params, x), jnp.ones(8)))


def test_haiku_mlp_and_embedding():
  def net(token, x):
    return hk.Embed(7, 4)(token), hk.nets.MLP([5, 3])(x)

  params, apply = haiku(net, jnp.zeros((), jnp.int32), jnp.ones(4))
  norms = haiku_norms(params)
  assert sorted(norms) == ["embed/embeddings", "mlp/~/linear_0/w", "mlp/~/linear_1/w"]
  rows = np.stack([np.asarray(apply(params, i, jnp.ones(4))[0], np.float64) for i in range(7)])
  assert_norm(norms["embed/embeddings"], rows)


def test_haiku_attention_on_one_token():
  init = hk.initializers.RandomNormal()
  params, apply = haiku(
    lambda x: hk.MultiHeadAttention(2, 4, w_init=init)(x, x, x)[0], jnp.ones((1, 8))
  )
  operators = resolve_operators(params, lipjax.haiku_layout)
  assert len(operators) == 4
  matrix = {
    n: operator_matrices(Dense(), params[f"multi_head_attention/{n}"]["w"])
    for n in ("value", "linear")
  }
  whole = jacobian(lambda x: apply(params, x[None]), jnp.ones(8))
  np.testing.assert_allclose(matrix["linear"] @ matrix["value"], whole, atol=1e-4)
  norms = haiku_norms(params)
  assert_norm(norms["multi_head_attention/value/w"], matrix["value"])
  assert_norm(norms["multi_head_attention/linear/w"], matrix["linear"])


def test_haiku_convolutions_are_reshaped_kernels_with_the_right_output_axis():
  def net(image, line):
    hk.Conv2D(4, 3)(image)
    hk.Conv2DTranspose(5, 3)(image)
    hk.DepthwiseConv2D(1, 3)(image)
    hk.Conv1D(4, 3)(line)
    hk.Conv1DTranspose(5, 3)(line)
    return image

  params = haiku_shapes(net, jnp.ones((1, 6, 6, 3)), jnp.ones((1, 6, 3)))
  norms = haiku_norms(params)
  outputs = {
    "conv2_d": 4,
    "conv2_d_transpose": 5,
    "depthwise_conv2_d": 3,
    "conv1_d": 4,
    "conv1_d_transpose": 5,
  }
  assert set(norms) == {f"{name}/w" for name in outputs}
  for name, n_out in outputs.items():
    kernel = np.asarray(params[name]["w"], np.float64)
    axis = kernel.ndim - (2 if "transpose" in name else 1)
    assert kernel.shape[axis] == n_out
    assert_norm(norms[f"{name}/w"], np.moveaxis(kernel, axis, 0).reshape(n_out, -1))


def test_haiku_norm_scales_are_diagonal_at_any_rank():
  def net(x):
    hk.BatchNorm(True, True, 0.9)(x, is_training=True)
    hk.LayerNorm(-1, True, True)(x)
    return hk.GroupNorm(3)(x)

  params = haiku_shapes(net, jnp.ones((1, 6, 6, 3)))
  assert params["batch_norm"]["scale"].shape == (1, 1, 1, 3)
  operators = resolve_operators(params, lipjax.haiku_layout)
  assert set(operators.values()) == {Diagonal()}
  assert len(operators) == 3
  for path, sigma in haiku_norms(params).items():
    scale = params[path.split("/")[0]]["scale"]
    assert float(sigma) == float(jnp.max(jnp.abs(scale)))


def test_haiku_lstm():
  params = haiku_shapes(lambda x: hk.LSTM(4)(x, hk.LSTM(4).initial_state(None))[0], jnp.ones(3))
  ((path, sigma),) = haiku_norms(params).items()
  assert path.endswith("linear/w")
  (kernel,) = [a for a in jax.tree.leaves(params) if a.ndim == 2]
  assert_norm(sigma, kernel)


def test_haiku_layer_stack_has_one_norm_a_layer():
  def net(x):
    return hk.experimental.layer_stack(3)(lambda h: hk.Linear(4, name="inner")(h))(x)

  params, apply = haiku(net, jnp.ones(4))
  ((path, sigma),) = haiku_norms(params).items()
  operator = resolve_operators(params, lipjax.haiku_layout)[path]
  (kernel,) = [a for a in jax.tree.leaves(params) if a.ndim == 3]
  matrices = operator_matrices(operator, kernel)
  whole = jacobian(lambda x: apply(params, x), jnp.ones(4))
  np.testing.assert_allclose(matrices[2] @ matrices[1] @ matrices[0], whole, atol=1e-5)
  np.testing.assert_allclose(sigma, top_sigma(matrices), rtol=1e-5)


def test_equinox_linear():
  module = eqx.nn.Linear(8, 3, key=KEY)
  norms = equinox_norms(module)
  assert list(norms) == ["weight"]
  assert_norm(norms["weight"], jacobian(module, jnp.ones(8)))


def test_equinox_mlp_with_its_activation_leaves():
  module = eqx.nn.MLP(4, 3, 5, 2, key=KEY)
  assert any(callable(leaf) for leaf in jax.tree.leaves(module))
  norms = equinox_norms(module)
  assert list(norms) == [f"layers/{i}/weight" for i in range(3)]
  for i, layer in enumerate(module.layers):
    assert_norm(norms[f"layers/{i}/weight"], jacobian(layer, jnp.ones(layer.in_features)))


def test_equinox_attention():
  module = eqx.nn.MultiheadAttention(2, 8, key=KEY)
  norms = equinox_norms(module)
  assert len(norms) == 4
  for name in ("query_proj", "key_proj", "value_proj", "output_proj"):
    assert_norm(norms[f"{name}/weight"], jacobian(getattr(module, name), jnp.ones(8)))


def test_equinox_gru_cell():
  module = eqx.nn.GRUCell(5, 4, key=KEY)
  norms = equinox_norms(module)
  assert sorted(norms) == ["weight_hh", "weight_ih"]
  assert_norm(norms["weight_ih"], jacobian(lambda x: module.weight_ih @ x, jnp.ones(5)))
  assert_norm(norms["weight_hh"], jacobian(lambda x: module.weight_hh @ x, jnp.ones(4)))


def test_equinox_embedding():
  module = eqx.nn.Embedding(7, 4, key=KEY)
  rows = np.stack([np.asarray(module(i), np.float64) for i in range(7)])
  assert_norm(equinox_norms(module)["weight"], rows)


@pytest.mark.parametrize("module", [eqx.nn.LayerNorm(6), eqx.nn.GroupNorm(2, 6)])
def test_equinox_norm_scales_are_diagonal(module):
  assert resolve_operators(module, lipjax.equinox_layout) == {"weight": Diagonal()}


@pytest.mark.xfail(strict=True, reason="path and shape are those of a Linear's weight")
def test_equinox_layer_norm_over_two_axes_is_diagonal():
  assert equinox_norms(eqx.nn.LayerNorm((4, 8)))["weight"] == 1.0


@pytest.mark.parametrize(
  "make", [eqx.nn.Conv1d, eqx.nn.Conv2d, eqx.nn.ConvTranspose1d, eqx.nn.ConvTranspose2d]
)
def test_equinox_convolutions_by_attribute(make):
  module = make(3, 4, 3, key=KEY)
  norms = equinox_norms({"conv": module})
  assert list(norms) == ["conv/weight"]  # the bias (4, 1) is no matrix
  flat = np.asarray(module.weight, np.float64).reshape(4, -1)
  assert_norm(norms["conv/weight"], flat)
  with pytest.raises(LayoutError, match=r"'stem/weight'.*ReshapedKernel"):
    equinox_norms({"stem": module})
  rest = tuple(range(1, module.weight.ndim))
  overridden = equinox_norms(
    {"stem": module}, layout_overrides={"stem/weight": ReshapedKernel(rest, (0,))}
  )
  assert overridden["stem/weight"] == norms["conv/weight"]


def test_equinox_vmapped_stack_raises_and_its_override_is_the_truth():
  module = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))(jax.random.split(KEY, 2))
  with pytest.raises(LayoutError, match=r"Dense\(\(2,\), \(1,\), \(0,\)\)"):
    equinox_norms(module)
  norms = equinox_norms(module, layout_overrides={"weight": Dense((2,), (1,), (0,))})
  for i in range(2):
    one = jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, module)
    assert_norm(norms["weight"][i], jacobian(one, jnp.ones(4)))
