"""Queries and keys scaled by the logits that they made."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from reference import normal

import lipjax
from lipjax import Dense

X = normal(0, (5, 8))
#: As `Dense` kernels of (features, heads · width), under names of others.
FLAT = {"q_proj": {"kernel": normal(1, (8, 12))}, "k_proj": {"kernel": normal(2, (8, 6))}}


def logits(layer, heads, names=("query", "key")):
  """Of every head all pairs of tokens, from kernels and biases of any shape."""

  def tokens(name):
    module = layer[name]
    flat = X @ module["kernel"].reshape((8, -1)) + module.get("bias", jnp.zeros(1)).ravel()
    return flat.reshape((5, -1, width))

  width = layer[names[0]]["kernel"].size // 8 // heads
  q, k = (tokens(name) for name in names)
  k = jnp.repeat(k, heads // k.shape[1], axis=1)
  return np.asarray(jnp.einsum("qhd,khd->hqk", q, k)) / width**0.5


def largest(*args):
  return logits(*args).max(axis=(1, 2))


def clip(tx, params, max_logits, updates=None):
  updates = jax.tree.map(jnp.zeros_like, params) if updates is None else updates
  update = jax.jit(lambda u, p, m: tx.update(u, tx.init(p), p, max_logits=m)[0])
  return optax.apply_updates(params, update(updates, params, max_logits))


def attention(heads=4, key=0):
  model = nn.MultiHeadDotProductAttention(heads)
  params = model.init(jax.random.key(key), X[None])["params"]
  biases = {name: 0.3 * normal(i, params[name]["bias"].shape) for i, name in enumerate(params)}
  return {name: {"kernel": 3 * m["kernel"], "bias": biases[name]} for name, m in params.items()}


def test_logits_of_each_head_come_down_to_the_threshold():
  params = {"block": {"attention": attention()}, "head": {"kernel": normal(3, (8, 2))}}
  before = largest(params["block"]["attention"], 4)
  threshold = float(np.sort(before)[1] + 1e-3)  # two heads are above it
  after = clip(lipjax.qk_clip(threshold), params, {"block/attention": before})
  found = largest(after["block"]["attention"], 4)
  np.testing.assert_allclose(found, np.minimum(before, threshold), rtol=1e-4)
  for name in ("value", "out"):
    before, now = params["block"]["attention"][name], after["block"]["attention"][name]
    jax.tree.map(np.testing.assert_array_equal, before, now)
  np.testing.assert_array_equal(after["head"]["kernel"], params["head"]["kernel"])


def test_heads_that_share_keys():
  before = largest(FLAT, 4, ("q_proj", "k_proj"))
  threshold = float(np.sort(before)[1] + 1e-3)
  tx = lipjax.qk_clip(threshold, names=("q_proj", "k_proj"))
  after = clip(tx, FLAT, {"": before})
  found = largest(after, 4, ("q_proj", "k_proj"))
  np.testing.assert_allclose(found, np.minimum(before, threshold), rtol=1e-4)


def test_stacked_layers_torch_axes_and_nnx():
  layers = [attention(key=i) for i in range(3)]
  stacked = {"attention": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
  query = Dense((1,), (2, 3), (0,))
  overrides = {".*/(query|key|value)/kernel": query, ".*/out/kernel": Dense((1, 2), (3,), (0,))}
  before = np.stack([largest(layer, 4) for layer in layers])
  after = clip(lipjax.qk_clip(1.5, layout_overrides=overrides), stacked, {"attention": before})
  for i in range(3):
    found = largest(jax.tree.map(lambda x, i=i: x[i], after["attention"]), 4)
    np.testing.assert_allclose(found, np.minimum(before[i], 1.5), rtol=1e-4)

  torch = {name: {"weight": module["kernel"].T} for name, module in FLAT.items()}
  layout = {f"{name}/weight": Dense((1,), (0,)) for name in FLAT}
  before = largest(FLAT, 2, ("q_proj", "k_proj"))[:1].repeat(2) + 10
  tx = lipjax.qk_clip(1.0, names=("q_proj", "k_proj"), layout=layout)
  # Two heads of six queries, and one of six keys.
  after = clip(tx, torch, {"": before})
  root = (1 / before[0]) ** 0.5
  for name in FLAT:
    np.testing.assert_allclose(after[name]["weight"], root * torch[name]["weight"], rtol=1e-5)

  model = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0), decode=False)
  state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  after = clip(lipjax.qk_clip(1.0), state, {"": jnp.array([4.0, 0.5])})
  ratio = np.asarray(after["query"]["kernel"] / state["query"]["kernel"])
  np.testing.assert_allclose(ratio, np.broadcast_to([[[0.5**0.5 * 0.5**0.5], [1.0]]], ratio.shape))


def test_in_a_training_step():
  """With momentum before it, updates of another dtype, NaNs and attentions that say nothing."""
  params = {"a": attention(), "b": attention(key=1)}
  tx = optax.chain(optax.sgd(0.1, momentum=0.9), lipjax.qk_clip(1.0))
  gradients = jax.tree.map(jnp.ones_like, params)
  free = jax.tree.map(lambda w, g: w - 0.1 * g, params, gradients)
  seen = {"a": jnp.array([16.0, jnp.nan, jnp.inf, -3.0])}
  updates, _ = tx.update(gradients, tx.init(params), params, max_logits=seen)
  after = optax.apply_updates(params, updates)
  ratio = np.asarray(after["a"]["key"]["kernel"] / free["a"]["key"]["kernel"])
  np.testing.assert_allclose(ratio[..., 0], np.broadcast_to([0.25, 1, 1, 1], (8, 4)), atol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), after["b"], free["b"])
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  updates, _ = tx.update(half, tx.init(half), half, max_logits=seen)
  assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
  ("max_logits", "message"),
  [
    (None, r"max_logits=\{path: \(heads,\)\}.*\['attention'\]; got None"),
    ({"other": jnp.ones(4)}, r"has \['other'\], and the attentions are \['attention'\]"),
    ({"attention": jnp.ones(3)}, "heads that divide the 8 outputs"),
    ({"attention": jnp.ones((2, 4))}, r"expected \('heads',\)|expected \('heads'"),
    ({"attention": jnp.ones(())}, r"has shape \(\)"),
  ],
)
def test_wrong_logits_raise(max_logits, message):
  params = {"attention": attention()}
  tx = lipjax.qk_clip(1.0)
  with pytest.raises(ValueError, match=message):
    tx.update(params, tx.init(params), params, max_logits=max_logits)


def test_other_wrong_calls_raise():
  with pytest.raises(ValueError, match="threshold is 0"):
    lipjax.qk_clip(0)
  with pytest.raises(ValueError, match="expected a positive number"):
    lipjax.qk_clip(lambda count: 1.0)
  with pytest.raises(ValueError, match="no pair of kernels under 'query' and 'key'"):
    lipjax.qk_clip(1.0).init({"dense": {"kernel": jnp.ones((2, 2))}})
  params = {"attention": attention()}
  with pytest.raises(ValueError, match="params"):
    lipjax.qk_clip(1.0).update(params, optax.EmptyState(), max_logits={})
