"""trace_layout on real layers: the operator's matrix is the layer's Jacobian."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import FLOAT, jacobian, normal, operator_matrices, top_sigma

import lipjax
from lipjax import Convolution, Dense, Diagonal, LayoutError, trace_layout
from lipjax.operators.paths import float_leaves

KEY = jax.random.key(0)
S = jax.ShapeDtypeStruct


def random_like(tree):
  """Random weights, so that no two of them agree by chance."""
  leaves, treedef = jax.tree.flatten(tree)
  new = [normal(i, x.shape, x.dtype) if hasattr(x, "shape") else x for i, x in enumerate(leaves)]
  return jax.tree.unflatten(treedef, new)


def linen(module, *shapes, **options):
  """Random params of a linen module and its function."""
  x = [jnp.zeros(shape, jnp.float32) for shape in shapes]
  variables = jax.eval_shape(lambda: module.init(KEY, *x, **options))
  apply = lambda params, *x: module.apply({"params": params}, *x, **options)
  return random_like(variables["params"]), apply


def traced(fn, params, *shapes, dtype=jnp.float32):
  return trace_layout(fn, params, *(S(shape, dtype) for shape in shapes))


def assert_is_layer(operator, w, fn, x):
  """The Jacobian of `fn`, a layer of one input, is the operator's matrix."""
  truth = jacobian(fn, x)
  found = operator_matrices(operator, w)
  np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-6 * np.abs(truth).max())


def check_one_layer(params, fn, shape, name="kernel"):
  """Of a layer without a batch axis, or with one of size 1."""
  layout = traced(fn, params, shape)
  leaves = float_leaves(params)
  (path,) = [p for p, op in layout.items() if op is not None]
  assert path.endswith(name)
  assert_is_layer(layout[path], leaves[path], lambda x: fn(params, x), jnp.zeros(shape))
  return layout[path]


class MLP(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.LayerNorm()(nn.gelu(nn.Dense(5)(x)))
    x = nn.BatchNorm(use_running_average=True)(x)
    x = nn.RMSNorm()(x)
    return nn.Dense(3)(nn.GroupNorm(5)(x))


def test_linen_mlp_is_what_flax_layout_says():
  module, x = MLP(), jnp.zeros((2, 4))
  variables = module.init(KEY, x)
  found = trace_layout(module.apply, variables, x)
  leaves = float_leaves(variables)
  assert found == {path: lipjax.flax_layout(path, leaf) for path, leaf in leaves.items()}
  assert list(found) == list(leaves)
  # The layout is one wherever a layout is asked for.
  assert "batch_stats/BatchNorm_0/var" in lipjax.describe(variables, layout=found)
  norms = lipjax.spectral_norms(variables, layout=found)
  np.testing.assert_allclose(
    norms["params/Dense_0/kernel"], top_sigma(leaves["params/Dense_0/kernel"]), rtol=1e-5
  )


CONVOLUTIONS = {
  "same": nn.Conv(3, (3, 2)),
  "strided": nn.Conv(4, (3, 3), strides=(2, 1)),
  "valid, dilated": nn.Conv(3, (2, 2), padding="VALID", kernel_dilation=2),
  "groups": nn.Conv(4, (3, 3), feature_group_count=2, padding=((2, 1), (0, 1))),
  "transposed": nn.ConvTranspose(3, (3, 3), strides=(2, 2)),
  "transposed, valid": nn.ConvTranspose(3, (2, 3), strides=(1, 3), padding="VALID"),
  "transposed, flipped": nn.ConvTranspose(3, (3, 2), strides=(2, 1), transpose_kernel=True),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_linen_convolutions(name):
  params, fn = linen(CONVOLUTIONS[name], (1, 5, 4, 2))
  operator = check_one_layer(params, fn, (1, 5, 4, 2))
  assert isinstance(operator, Convolution)
  assert operator.spatial_shape == (5, 4)


def test_bounds_contain_the_norm_of_a_convolution():
  params, fn = linen(nn.Conv(3, (3, 3), strides=(2, 1), use_bias=False), (1, 6, 5, 2))
  layout = traced(fn, params, (1, 6, 5, 2))
  truth = top_sigma(jacobian(lambda x: fn(params, x), jnp.zeros((1, 6, 5, 2))))
  bounds = lipjax.spectral_norm_bounds(params, layout=layout)["kernel"]
  assert bounds.lower <= truth * (1 + 1e-6)
  assert truth <= bounds.upper * (1 + 1e-6)
  np.testing.assert_allclose(bounds.upper, bounds.lower, rtol=1e-2)


def test_padding_by_hand_is_another_map():
  params, fn = linen(nn.Conv(3, (3,), padding="CIRCULAR"), (1, 5, 2))
  assert traced(fn, params, (1, 5, 2))["kernel"] == Convolution((7,), padding=0)


def test_dense_general():
  params, fn = linen(nn.DenseGeneral((3, 2), axis=(-2, -1)), (4, 5))
  assert check_one_layer(params, fn, (4, 5)) == Dense((0, 1), (2, 3))
  params, fn = linen(nn.DenseGeneral(3, batch_dims=(0,)), (2, 4))
  assert traced(fn, params, (2, 4))["kernel"] == Dense((1,), (2,), (0,))


def test_attention_is_what_flax_layout_says():
  module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8, normalize_qk=True)
  params, fn = linen(module, (1, 5, 8))
  found = traced(fn, params, (1, 5, 8))
  leaves = float_leaves(params)
  assert found == {path: lipjax.flax_layout(path, leaf) for path, leaf in leaves.items()}
  model = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
  found = trace_layout(lambda model, x: model(x), model, S((1, 5, 8), jnp.float32))
  leaves = float_leaves(nnx.state(model))
  assert found == {path: lipjax.flax_layout(path, leaf) for path, leaf in leaves.items()}


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell])
def test_recurrent_cells_in_a_scan(cell):
  params, fn = linen(nn.RNN(cell(4)), (2, 6, 3))
  found = traced(fn, params, (2, 6, 3))
  assert found == {path: Dense() if path.endswith("kernel") else None for path in found}
  assert found


class Body(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return nn.LayerNorm()(nn.Dense(4)(x)), None


@pytest.mark.parametrize("body", [Body, nn.remat(Body)])
@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_layers_have_a_batch_axis(body, axis):
  class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
      scan = nn.scan(body, {"params": axis}, split_rngs={"params": True}, length=3)
      return scan(name="layers")(x, None)[0]

  params, fn = linen(Stack(), (2, 4))
  layout_overrides = {".*scale": None} if axis else None
  x = S((2, 4), jnp.float32)
  found = trace_layout(fn, params, x, layout_overrides=layout_overrides)
  assert found["layers/Dense_0/kernel"] == Dense((1 - axis,), (2,), (axis,))
  assert found["layers/LayerNorm_0/scale"] == (None if axis else Diagonal((0,)))
  if axis:
    with pytest.raises(LayoutError, match=r"LayerNorm_0/scale.*leading"):
      trace_layout(fn, params, x)


class CNN(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(2, 3, (3, 3), strides=2, rngs=rngs)
    self.norm = nnx.BatchNorm(3, use_running_average=False, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.dense = nnx.Linear(3, 2, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv(x)))
    return self.dense(self.dropout(x).mean((1, 2)))


def test_nnx_model_and_state():
  model, x = CNN(nnx.Rngs(0)), S((2, 7, 7, 2), jnp.float32)
  found = trace_layout(lambda model, x: model(x), model, x)
  graph, state = nnx.split(model)
  assert found == trace_layout(lambda state, x: nnx.merge(graph, state)(x), state, x)
  operators = {path: op for path, op in found.items() if op is not None}
  convolution = operators.pop("conv/kernel")
  assert operators == {"norm/scale": Diagonal(), "dense/kernel": Dense()}
  one = lambda x: model.conv(x[None])
  assert_is_layer(convolution, model.conv.kernel[...], one, jnp.zeros((7, 7, 2)))
  assert {"norm/mean", "norm/var", "conv/bias"} <= set(found)


def test_equinox():
  module = eqx.nn.MLP(4, 3, 5, 2, key=KEY)
  found = traced(lambda m, x: jax.vmap(m)(x), module, (6, 4), dtype=FLOAT)
  leaves = float_leaves(module)
  assert found == {path: lipjax.equinox_layout(path, leaf) for path, leaf in leaves.items()}
  for make, options in (
    (eqx.nn.Conv2d, {"padding": 1, "groups": 2, "stride": 2}),
    (eqx.nn.ConvTranspose2d, {"padding": 1, "stride": 2}),
    (eqx.nn.ConvTranspose2d, {"groups": 2, "dilation": 2, "output_padding": 0}),
  ):
    module = random_like(make(2, 4, 3, key=KEY, **options))
    operator = traced(lambda m, x: jax.vmap(m)(x), module, (2, 2, 5, 4), dtype=FLOAT)["weight"]
    # An operator's features are last, Equinox's first.
    fn = lambda x, module=module: jnp.moveaxis(module(jnp.moveaxis(x, -1, 0)), 0, -1)
    assert_is_layer(operator, module.weight, fn, jnp.zeros((5, 4, 2)))
  embedding = eqx.nn.Embedding(5, 4, key=KEY)
  found = trace_layout(lambda m, i: jax.vmap(m)(i), embedding, S((3,), jnp.int32))
  assert found == {"weight": Dense()}


@pytest.mark.parametrize(
  ("make", "shape"),
  [(eqx.nn.Linear, (4,)), (lambda *a, key: eqx.nn.Conv1d(*a, 3, key=key), (4, 6))],
)
def test_equinox_ensembles(make, shape):
  stack = eqx.filter_vmap(lambda key: make(4, 3, key=key))(jax.random.split(KEY, 2))
  each = traced(
    lambda m, x: eqx.filter_vmap(lambda m, x: m(x))(m, x), stack, (2, *shape), dtype=FLOAT
  )
  w = stack.weight
  for i in range(2):
    one = jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, stack)
    if len(shape) == 1:
      fn, x = one, jnp.zeros(shape)
    else:
      fn, x = (lambda x: one(x.T).T), jnp.zeros(shape[::-1])
    np.testing.assert_allclose(operator_matrices(each["weight"], w)[i], jacobian(fn, x), atol=1e-6)


def test_haiku():
  def net(x):
    x = hk.Conv2D(4, 3, stride=2)(x)
    x = hk.BatchNorm(True, True, 0.9)(x, is_training=True)
    x = hk.LayerNorm(-1, True, True)(hk.Conv2DTranspose(3, 3)(x))
    x = hk.GroupNorm(3)(hk.DepthwiseConv2D(1, 3)(x))
    layers = hk.experimental.layer_stack(3)(lambda h: jnp.tanh(hk.Linear(3)(h)))
    return layers(x.mean((1, 2)))

  init, apply = hk.without_apply_rng(hk.transform_with_state(net))
  params, state = jax.eval_shape(init, KEY, jnp.zeros((2, 8, 8, 2)))
  found = trace_layout(lambda p, s, x: apply(p, s, x)[0], params, state, S((2, 8, 8, 2), FLOAT))
  for path, leaf in float_leaves(params).items():
    operator = lipjax.haiku_layout(path, leaf)
    if isinstance(found[path], Convolution):
      assert found[path].out_axis == operator.out_axes[0]
    else:
      assert found[path] == operator
  assert sum(isinstance(op, Convolution) for op in found.values()) == 3


MATRIX, SQUARE, STACK = S((4, 3), FLOAT), S((4, 4), FLOAT), S((3, 4, 4), FLOAT)
VECTOR, ROWS = S((4,), FLOAT), S((3, 4), FLOAT)
NUMBER = S((), FLOAT)

#: Function of a leaf and an input of four features, the leaf, its operator.
USES = {
  "shared": (lambda w, x: jnp.tanh(x @ w) @ w, SQUARE, Dense()),
  "tied": (lambda w, x: jnp.tanh(x @ w) @ w.T, MATRIX, Dense()),
  "merged axes": (lambda w, x: x @ w.reshape(4, 6), S((4, 2, 3), FLOAT), Dense((0,), (1, 2))),
  "slice of a split axis": (lambda w, x: x @ w.reshape(4, 2, 3)[:, 1], S((4, 6), FLOAT), Dense()),
  "heads": (
    lambda w, x: jnp.einsum("d,dhk->hk", x, w.reshape(4, 2, 3)),
    S((4, 6), FLOAT),
    Dense(),
  ),
  "slices": (lambda w, x: jnp.split(x @ w[:, :2], 2)[0] + x @ w[:, 2:3], MATRIX, Dense()),
  "number": (lambda w, x: x @ (-0.5 * w), MATRIX, Dense()),
  "half": (lambda w, x: x @ w.astype(jnp.bfloat16), MATRIX, Dense()),
  "fori": (
    lambda w, x: jax.lax.fori_loop(0, 3, lambda i, x: x @ w[i], x),
    STACK,
    Dense((1,), (2,), (0,)),
  ),
  "unrolled": (lambda w, x: x @ w[0] @ w[-1], STACK, Dense((1,), (2,), (0,))),
  "scan": (
    lambda w, x: jax.lax.scan(lambda h, v: (jnp.tanh(v @ h), h), x, w)[0],
    STACK,
    Dense((2,), (1,), (0,)),
  ),
  "while": (
    lambda w, x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] @ w), (0, x)),
    SQUARE,
    Dense(),
  ),
  "cond": (lambda w, x: jax.lax.cond(x[0] > 0, lambda x: x @ w, jnp.negative, x), SQUARE, Dense()),
  "custom": (jax.custom_vjp(lambda w, x: x @ w), MATRIX, Dense()),
  "per head": (
    lambda w, x: jnp.einsum("hd,hdk->hk", x.reshape(2, 2), w),
    S((2, 2, 3), FLOAT),
    Dense((1,), (2,), (0,)),
  ),
  "scale": (lambda w, x: x * w, VECTOR, Diagonal()),
  "scale of several axes": (
    lambda w, x: w * (x[:, None] + jnp.ones((4, 3)) * x[:3]),
    MATRIX,
    Diagonal(),
  ),
  "scales one by one": (lambda w, x: x * w[0] * w[1], ROWS, Diagonal((0,))),
  "scale of a norm": (
    lambda w, x: x * (jax.lax.rsqrt((x**2).mean(-1, keepdims=True)) * w),
    VECTOR,
    Diagonal(),
  ),
  "slope": (lambda w, x: jnp.where(x > 0, x, w * x), NUMBER, Diagonal()),
  "bias": (lambda w, x: jnp.tanh(x + w), VECTOR, None),
  "class token": (lambda w, x: jnp.concatenate([x, w]), VECTOR, None),
  "variance": (lambda w, x: x * jax.lax.rsqrt(w + 1e-5), VECTOR, None),
  "divisor": (lambda w, x: x / w, VECTOR, None),
  "unused": (lambda w, x: x, VECTOR, None),
}
USES["custom"][0].defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (r[0], r[1]))


@pytest.mark.parametrize("name", USES)
def test_uses(name):
  fn, leaf, operator = USES[name]
  assert trace_layout(lambda p, x: fn(p["w"], x), {"w": leaf}, VECTOR) == {"w": operator}


def test_embedding():
  table = {"w": jnp.ones((7, 4))}
  tokens = S((3,), jnp.int32)
  assert trace_layout(lambda p, i: p["w"][i], table, tokens) == {"w": Dense()}
  assert trace_layout(lambda p, i: jax.nn.one_hot(i, 7) @ p["w"], table, tokens) == {"w": Dense()}


def conv(x, w):
  return jax.lax.conv(x, w, (1, 1), "SAME")


#: Function, the leaf, the shape of the input, what the message says.
PROBLEMS = {
  "two operators": (
    lambda w, x: (conv(x, w), conv(x[..., :3], w)),
    (2, 2, 3, 3),
    (1, 2, 4, 4),
    r"(?s)test_trace_layout.py:\d+.*and as Conv.*test_trace_layout.py:\d+.*with one of: Conv",
  ),
  "two matrices": (
    lambda w, x: (x @ w[:, 0], x @ w[0]),
    (4, 4, 4),
    (4,),
    r"Dense\(in_axes=\(0,\), out_axes=\(2,\), batch_axes=\(1,\)\).* and as ",
  ),
  "outer product": (lambda w, x: x[:, None] * w, (3,), (4,), "outer product"),
  "dense in disguise": (lambda w, x: (x[:, None] * w).sum(0), (4, 3), (4,), "'reduce_sum'"),
  "vector": (lambda w, x: x @ w, (4,), (4,), "axis of size 1"),
  "power": (lambda w, x: x**w, (4,), (4,), "'pow'"),
  "mask": (lambda w, x: x @ (w * np.tri(4, 3)), (4, 3), (4,), "multiplied by an array"),
  "drop-connect": (lambda w, x: x @ (w * (x[:, None] > x[:3]) / 0.5), (4, 3), (4,), "a weight"),
  "noisy": (lambda w, x: x @ (w + jnp.outer(x, x[:3])), (4, 3), (4,), "one by one"),
  "normalized": (lambda w, x: x @ (w / jnp.linalg.norm(w)), (4, 3), (4,), "by other leaves"),
  "shifted": (lambda w, x: x * (1 + w), (4,), (4,), "added.*Diagonal.*by itself"),
  "computed": (lambda w, x: x @ jnp.exp(w), (4, 3), (4,), "computed from"),
  "mixed axes": (lambda w, x: x @ w.T.reshape(4, 3), (4, 3), (4,), "computed from"),
  "parts of an axis": (
    lambda w, x: jnp.einsum("b,abc->ac", x, w.reshape(3, 4, 2)),
    (3, 8),
    (4,),
    "part is contracted",
  ),
  "chosen stack": (lambda w, x: x @ w[x[0].astype(int)], (2, 4, 3), (4,), "embedding"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_name_the_leaf_and_an_override_helps(name):
  fn, leaf, shape, message = PROBLEMS[name]
  params, x = {"w": S(leaf, FLOAT)}, S(shape, FLOAT)
  traced = lambda **options: trace_layout(lambda p, x: fn(p["w"], x), params, x, **options)
  with pytest.raises(ValueError, match=message) as caught:
    traced()
  assert "'w'" in str(caught.value)
  assert "layout_overrides={r'w': …}" in str(caught.value)
  assert traced(layout_overrides={"w": None}) == {"w": None}


def test_low_rank_updates_raise_for_every_part():
  params = {"a": S((4, 2), FLOAT), "b": S((2, 3), FLOAT), "w": MATRIX}
  with pytest.raises(LayoutError, match=r"\(3\)"):
    trace_layout(lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), params, VECTOR)
  apart = trace_layout(lambda p, x: x @ p["w"] + x @ p["a"] @ p["b"], params, VECTOR)
  assert set(apart.values()) == {Dense()}
  params, fn = linen(nn.WeightNorm(nn.Dense(3)), (2, 4))
  with pytest.raises(LayoutError, match="layer_instance/kernel"):
    traced(fn, params, (2, 4))


def test_leaves_side_by_side():
  params = {"a": SQUARE, "b": SQUARE}
  for fn in (
    lambda p, x: jax.lax.scan(lambda h, w: (h @ w, None), x, jnp.stack([p["a"], p["b"]]))[0],
    lambda p, x: x @ jnp.concatenate([p["a"], p["b"]], 1),
  ):
    assert trace_layout(fn, params, VECTOR) == {"a": Dense(), "b": Dense()}


def test_names_say_nothing():
  @jax.jit
  def transpose(w):  # a user's own function of that name
    return w * w

  with pytest.raises(LayoutError, match="computed from"):
    trace_layout(lambda p, x: x @ transpose(p["w"]), {"w": MATRIX}, VECTOR)


def test_an_override_that_matches_nothing_raises():
  with pytest.raises(LayoutError, match="matches no leaf"):
    trace_layout(lambda p, x: x @ p["w"], {"w": MATRIX}, VECTOR, layout_overrides={"v": None})
