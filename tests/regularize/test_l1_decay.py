"""add_l1_decay: lambda sign(w), with the subgradient 0 at 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import normal

import lipjax

PARAMS = {"kernel": normal(0, (3, 2)).at[0, 0].set(0.0), "bias": jnp.array([1.0, -1.0])}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def run(tx, updates=ZEROS, params=PARAMS):
  return jax.jit(tx.update)(updates, tx.init(params), params)


def test_the_update_is_the_gradient_of_the_penalty():
  updates, state = run(lipjax.add_l1_decay(0.5))
  gradient = jax.grad(lambda p: 0.5 * lipjax.l1_penalty(p))(PARAMS)
  jax.tree.map(np.testing.assert_array_equal, updates, gradient)
  for name, w in PARAMS.items():
    np.testing.assert_array_equal(updates[name], 0.5 * np.sign(w))
  assert int(state.count) == 1


def test_it_adds_to_what_it_is_given():
  given = jax.tree.map(lambda w: w + 3, PARAMS)
  updates, _ = run(lipjax.add_l1_decay(0.5), given)
  for name, w in PARAMS.items():
    np.testing.assert_allclose(updates[name], given[name] + 0.5 * np.sign(w), rtol=1e-6)


def test_decoupled_after_adam():
  tx = optax.chain(
    optax.scale_by_adam(), lipjax.add_l1_decay(0.1), optax.scale_by_learning_rate(0.01)
  )
  gradient = jax.tree.map(jnp.ones_like, PARAMS)
  updates, _ = run(tx, gradient)
  for name, w in PARAMS.items():
    np.testing.assert_allclose(updates[name], -0.01 * (1 + 0.1 * np.sign(w)), rtol=1e-5)


def test_schedules_see_the_count_and_zero_changes_no_bit():
  tx = lipjax.add_l1_decay(lambda count: 0.25 * count)
  given = jax.tree.map(lambda w: jnp.full_like(w, -0.0), PARAMS)
  state, step = tx.init(PARAMS), jax.jit(tx.update)
  updates, state = step(given, state, PARAMS)
  assert all(np.signbit(x).all() for x in jax.tree.leaves(updates))
  updates, state = step(given, state, PARAMS)
  np.testing.assert_array_equal(updates["bias"], [0.25, -0.25])
  updates, _ = run(lipjax.add_l1_decay(0.0), given)
  assert all(np.signbit(x).all() for x in jax.tree.leaves(updates))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes_stay(dtype):
  params = jax.tree.map(lambda w: w.astype(dtype), PARAMS)
  updates, _ = run(lipjax.add_l1_decay(0.5), jax.tree.map(jnp.zeros_like, params), params)
  assert {str(x.dtype) for x in jax.tree.leaves(updates)} == {dtype}


def test_masks_and_what_is_no_float():
  params = PARAMS | {"steps": jnp.asarray(3), "none": None}
  updates = ZEROS | {"steps": jnp.asarray(0), "none": None}
  tx = lipjax.add_l1_decay(0.5, mask={"kernel": True, "bias": False, "steps": True, "none": True})
  result, _ = tx.update(updates, tx.init(params), params)
  assert result["kernel"].any()
  assert not result["bias"].any()
  assert int(result["steps"]) == 0
  with pytest.raises(ValueError, match="bools"):
    lipjax.add_l1_decay(0.5, mask={"kernel": 0.5, "bias": 0.5}).init(PARAMS)


def test_missing_params_raise():
  tx = lipjax.add_l1_decay(0.5)
  with pytest.raises(ValueError, match="params"):
    tx.update(ZEROS, tx.init(PARAMS))
