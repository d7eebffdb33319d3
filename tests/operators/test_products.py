"""Norms of products of two leaves: beside the SVD of the product, as a matrix in float64."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from reference import FLOAT, normal, rtol_of, top_sigma

import lipjax
from lipjax import Dense, Product

LORA = {
  "up": {"kernel": normal(0, (6, 9)), "lora_a": normal(1, (6, 2)), "lora_b": normal(2, (2, 9))},
  "down": {"kernel": normal(3, (9, 6)), "lora_a": normal(4, (9, 2)), "lora_b": normal(5, (2, 6))},
  "wide": {"lora_a": normal(6, (3, 7)), "lora_b": normal(7, (7, 4))},
}
NAMES = {layer: f"{layer}/lora_a*lora_b" for layer in LORA}


def dense(layer):
  a, b = (np.asarray(layer[name], np.float64) for name in ("lora_a", "lora_b"))
  return a @ b


def attention(heads=4, key_heads=4, width=5, inputs=8):
  """Kernels as MaxText's, of fewer heads of keys than of queries."""
  shapes = {"query": (inputs, heads, width), "key": (inputs, key_heads, width)}
  return {name: {"kernel": normal(len(name), shape)} for name, shape in shapes.items()}


OF_HEADS = {".*(query|key)/kernel": Dense((0,), (1, 2))}


def heads_of(layer):
  q, k = (np.asarray(layer[name]["kernel"], np.float64) for name in ("query", "key"))
  k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
  return np.einsum("ihd,jhd->hij", q, k)


@pytest.mark.first(1)
@pytest.mark.parametrize("dtype", [FLOAT, jnp.bfloat16, jnp.float16])
def test_lora_products_are_those_of_the_matrices(dtype):
  params = jax.tree.map(lambda x: x.astype(dtype), LORA)
  found = lipjax.spectral_norms(params, layout=lipjax.lora_products(params))
  assert set(found) == set(NAMES.values())
  for layer, name in NAMES.items():
    want = top_sigma(dense(params[layer]))
    np.testing.assert_allclose(found[name], want, rtol=rtol_of(params[layer]["lora_a"]))
    assert found[name].dtype == jnp.promote_types(dtype, jnp.float32)


def test_k_largest_and_power_iteration():
  layout = lipjax.lora_products(LORA)
  want = np.linalg.svd(dense(LORA["wide"]), compute_uv=False)
  found = lipjax.spectral_norms(LORA, layout=layout, k=4)[NAMES["wide"]]
  np.testing.assert_allclose(found, [*want, 0], rtol=2e-5, atol=1e-5)
  power = lipjax.spectral_norms(LORA, layout=layout, method="power_iteration")
  np.testing.assert_allclose(power[NAMES["up"]], top_sigma(dense(LORA["up"])), rtol=1e-3)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_queries_and_keys_have_a_norm_for_each_head(key_heads):
  params = {"block": {"attention": attention(key_heads=key_heads)}}
  layout = lipjax.qk_products(params, layout_overrides=OF_HEADS)
  found = lipjax.spectral_norms(params, layout=layout)
  want = top_sigma(heads_of(params["block"]["attention"]))
  np.testing.assert_allclose(
    found["block/attention/query*key/kernel"], want, rtol=rtol_of(normal(0, (1,)))
  )


def test_stacked_layers_of_linen_and_lora_of_nnx():
  stacked = {
    "query": {"kernel": normal(1, (3, 8, 2, 4))},
    "key": {"kernel": normal(2, (3, 8, 2, 4))},
  }
  overrides = {".*": Dense((1,), (2, 3), (0,))}
  layout = lipjax.qk_products(stacked, layout_overrides=overrides)
  found = lipjax.spectral_norms(stacked, layout=layout)["query*key/kernel"]
  q, k = (np.asarray(stacked[name]["kernel"], np.float64) for name in ("query", "key"))
  np.testing.assert_allclose(found, top_sigma(np.einsum("lihd,ljhd->lhij", q, k)), rtol=1e-5)

  model = nnx.LoRA(6, 2, 9, rngs=nnx.Rngs(0), dtype=FLOAT, param_dtype=FLOAT)
  params = nnx.state(model, nnx.Param)
  params = jax.tree.map(lambda x: x + 0.1, params)
  norms = lipjax.spectral_norms(params, layout=lipjax.lora_products(params))
  (found,) = norms.values()
  want = top_sigma(dense({name: params[name][...] for name in ("lora_a", "lora_b")}))
  np.testing.assert_allclose(found, want, rtol=rtol_of(found))


def test_products_stand_beside_operators_of_leaves():
  layout = lipjax.lora_products(LORA) | {"up/kernel": Dense()}
  found = lipjax.spectral_norms(LORA, layout=layout)
  assert set(found) == {*NAMES.values(), "up/kernel"}
  np.testing.assert_allclose(found["up/kernel"], top_sigma(LORA["up"]["kernel"]), rtol=1e-5)


@pytest.mark.parametrize(
  "scales", [(0.0, 1.0), (1.0, 0.0), (1e30, 1e-30), (1e-30, 1e30), (1e18, 1e18), (1e-16, 1e-16)]
)
def test_norms_and_derivatives_at_any_scale(scales):
  layer = {"lora_a": LORA["up"]["lora_a"] * scales[0], "lora_b": LORA["up"]["lora_b"] * scales[1]}
  norm = lambda p: lipjax.spectral_norms(p, layout=lipjax.lora_products(p))["lora_a*lora_b"]
  found, slopes = jax.value_and_grad(norm)(layer)
  want = top_sigma(dense(LORA["up"])) * float(np.float64(scales[0]) * scales[1])
  np.testing.assert_allclose(found, want, rtol=1e-5)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_what_is_not_finite_is_nan_for_itself_alone():
  params = LORA | {"up": {**LORA["up"], "lora_b": LORA["up"]["lora_b"].at[0, 0].set(jnp.inf)}}
  found = lipjax.spectral_norms(params, layout=lipjax.lora_products(params))
  assert np.isnan(found[NAMES["up"]])
  assert np.isfinite([found[NAMES["down"]], found[NAMES["wide"]]]).all()


def of_svd(layer):
  return jnp.linalg.svd(layer["lora_a"] @ layer["lora_b"], compute_uv=False)[0]


@pytest.mark.thorough
def test_derivatives_are_those_of_the_svd():
  layer = {name: LORA["up"][name] for name in ("lora_a", "lora_b")}
  layout = lipjax.lora_products(layer)
  ours = lambda p: lipjax.spectral_norms(p, layout=layout)["lora_a*lora_b"]
  for fn in (jax.grad, lambda f: jax.jacfwd(jax.grad(f))):
    found, want = fn(ours)(layer), fn(of_svd)(layer)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(b).max(initial=1))


@pytest.mark.parametrize("penalty", ["squared", "norm"])
def test_decay_adds_the_penaltys_gradient_in_both_factors(penalty):
  layout = lipjax.lora_products(LORA)
  power = {"squared": lambda s: s**2 / 2, "norm": lambda s: s}[penalty]
  want = jax.grad(lambda p: 0.1 * sum(power(of_svd(layer)) for layer in p.values()))(LORA)
  tx = lipjax.add_spectral_decay(0.1, penalty=penalty, layout=layout, n_steps=40)
  zeros = jax.tree.map(jnp.zeros_like, LORA)
  updates, state = jax.jit(tx.update)(zeros, tx.init(LORA), LORA)
  for (path, a), b in zip(jax.tree.leaves_with_path(updates), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4, err_msg=str(path))
  read = lipjax.read_spectral_norms(state)
  np.testing.assert_allclose(read[NAMES["up"]], top_sigma(dense(LORA["up"])), rtol=1e-4)


def test_a_leaf_of_several_products_gets_all_their_terms():
  """A shared kernel of keys, penalized by itself too."""
  params = {name: normal(i, (4, 3)) for i, name in enumerate(("q", "r", "k"))}
  layout = {
    "q k": Product("q", "k", Dense(), Dense()),
    "r k": Product("r", "k", Dense(), Dense()),
    "k": Dense(),
  }

  def penalty(p):
    matrices = (p["q"] @ p["k"].T, p["r"] @ p["k"].T, p["k"])
    return 0.05 * sum(jnp.linalg.svd(m, compute_uv=False)[0] ** 2 for m in matrices)

  tx = lipjax.add_spectral_decay(0.1, layout=layout, n_steps=40)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  want = jax.grad(penalty)(params)
  for name, update in updates.items():
    np.testing.assert_allclose(update, want[name], atol=1e-4, err_msg=name)


def test_a_leaf_times_itself():
  """Both parts of the derivative count."""
  params = {"w": normal(0, (4, 4))}
  layout = {"w w": Product("w", "w", Dense(), Dense((1,), (0,)))}
  tx = lipjax.add_spectral_decay(0.1, penalty="norm", layout=layout, n_steps=60)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  want = jax.grad(lambda w: 0.1 * jnp.linalg.svd(w @ w, compute_uv=False)[0])(params["w"])
  np.testing.assert_allclose(updates["w"], want, atol=1e-4)


def test_decay_in_a_loop_keeps_the_norm_of_the_product_and_its_own_dtype():
  """bfloat16 factors, a schedule whose first strength is 0, tracked against the SVD."""
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), LORA)
  layout, schedule = lipjax.lora_products(params), lambda count: jnp.where(count < 1, 0.0, 0.3)
  tx = optax.chain(lipjax.add_spectral_decay(schedule, layout=layout, every=1), optax.scale(-0.05))
  state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)

  @jax.jit
  def step(params, state):
    updates, state = tx.update(zeros, state, params)
    return optax.apply_updates(params, updates), state, updates

  _, _, first = step(params, state)
  assert all((x == 0).all() and x.dtype == jnp.bfloat16 for x in jax.tree.leaves(first))
  before = top_sigma(dense(params["up"]))
  for _ in range(60):
    now = params
    params, state, _ = step(params, state)
  found = lipjax.read_spectral_norms(state[0])
  for layer, name in NAMES.items():
    np.testing.assert_allclose(found[name], top_sigma(dense(now[layer])), rtol=0.02)
  assert top_sigma(dense(params["up"])) < 0.8 * before


def test_strengths_per_operator_take_the_products_sizes():
  """Inputs and outputs of the product, not of what is stacked."""
  params = {"lora_a": normal(0, (8, 2)), "lora_b": normal(1, (2, 3))}
  layout = lipjax.lora_products(params)
  zeros = jax.tree.map(jnp.zeros_like, params)

  def updated(strength):
    tx = lipjax.add_spectral_decay(strength, layout=layout, n_steps=20)
    return tx.update(zeros, tx.init(params), params)[0]

  scale = (3 / 8) ** 0.5
  for a, b in zip(
    jax.tree.leaves(updated(lipjax.PerOperator(1.0))), jax.tree.leaves(updated(1.0)), strict=True
  ):
    np.testing.assert_allclose(a, scale * b, rtol=1e-4, atol=1e-5)


def test_shapes_alone_are_enough_to_begin():
  shapes = jax.eval_shape(lambda: LORA)
  layout = lipjax.lora_products(shapes)
  vectors = lipjax.init_singular_vectors(shapes, layout=layout)
  vectors = lipjax.update_singular_vectors(LORA, vectors, layout=layout, n_steps=50)
  triplet = lipjax.singular_triplets(LORA, vectors, layout=layout)[NAMES["up"]]
  product = dense(LORA["up"])
  np.testing.assert_allclose(product @ triplet.u, triplet.sigma * triplet.v, atol=1e-3)
  abstract = jax.eval_shape(functools.partial(lipjax.spectral_norms, layout=layout), LORA)
  assert abstract[NAMES["up"]].shape == ()


#: What a message says, of which layout.
ERRORS = {
  "none of the leaves": {"x": Product("nowhere", "up/lora_b", Dense(), Dense())},
  "must be equal": {"x": Product("up/lora_a", "wide/lora_b", Dense(), Dense())},
  "other names": {"up/kernel": Product("up/lora_a", "down/lora_a", Dense(), Dense())},
}


@pytest.mark.parametrize("message", ERRORS)
def test_what_is_no_product_raises(message):
  with pytest.raises(lipjax.LayoutError, match=message):
    lipjax.spectral_norms(LORA, layout=ERRORS[message])


@pytest.mark.parametrize(
  "fn",
  [
    lipjax.spectral_norm_bounds,
    lipjax.frobenius_norms,
    lipjax.stable_ranks,
    functools.partial(lipjax.project_spectral_ball, radius=1.0),
    lambda p, layout: lipjax.keep_params_in_spectral_ball(1.0, layout=layout).init(p),
  ],
)
def test_functions_of_single_leaves_refuse_products(fn):
  with pytest.raises(lipjax.LayoutError, match="product of two leaves"):
    fn(LORA, layout=lipjax.lora_products(LORA))


def test_pairs_that_are_not_there_or_have_no_heads_raise():
  with pytest.raises(ValueError, match="No two matrices"):
    lipjax.lora_products({"Dense_0": {"kernel": jnp.ones((2, 3))}})
  with pytest.raises(ValueError, match=re.escape("['down/lora_a'] have no partner")):
    lipjax.lora_products(LORA, layout_overrides={"down/lora_b": None})
  both = {"down/lora_.": None}
  assert set(lipjax.lora_products(LORA, layout_overrides=both)) == {NAMES["up"], NAMES["wide"]}
  flat = {name: {"kernel": jnp.ones((8, 6))} for name in ("query", "key")}
  with pytest.raises(ValueError, match=re.escape("(inputs, heads, size)")):
    lipjax.qk_products(flat)
  params = nn.MultiHeadDotProductAttention(2).init(jax.random.key(0), jnp.ones((1, 3, 8)))
  assert set(lipjax.qk_products(params)) == {"params/query*key/kernel"}


def test_describe_shows_products():
  text = lipjax.describe(LORA, layout=lipjax.lora_products(LORA))
  (line,) = (x for x in text.splitlines() if x.startswith(NAMES["up"]))
  assert "product" in line
  assert "UNUSED" not in text
