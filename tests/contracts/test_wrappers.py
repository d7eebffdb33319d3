"""Inside optax's wrappers: points 3, 5, 7, 13, 14, 15, 19."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from contracts.registry import (
  assert_close,
  assert_same_bits,
  params,
  run,
  step,
  targets,
  types,
  updates,
)

import lipjax

SGD = optax.sgd(0.1)


def test_map_params_with_identity_is_a_no_op(case):
  """Point 3: structure and every bit of the state stay, alone and in a chain."""
  for tx in (case.build(), optax.chain(case.build(), optax.adam(1e-3))):
    state = tx.init(params())
    same = lambda leaf: leaf
    assert_same_bits(optax.tree.map_params(tx, same, state), state)
    assert_same_bits(optax.tree.map_params(tx, same, state, transform_non_params=same), state)


def test_map_params_reaches_only_params_shaped_state(case):
  """Point 3: with the params as companion (their shardings, usually), as Flax calls it."""
  tx = optax.chain(case.build(), optax.trace(0.9))
  state = tx.init(params())
  seen = []

  def visit(leaf, param):
    assert leaf.shape == param.shape
    seen.append(leaf.shape)
    return leaf

  mapped = optax.tree.map_params(tx, visit, state, params(), transform_non_params=lambda x: x)
  assert_same_bits(mapped, state)
  assert sorted(seen) == sorted(leaf.shape for leaf in jax.tree.leaves(params()))


def test_inject_hyperparams_equals_the_direct_version(case):
  """Point 5: numbers, ints included, become traced arrays and mean the same."""
  tx = optax.inject_hyperparams(case.factory)(**case.kwargs)
  u, p, state = run(tx, params())
  direct = run(case.build(), params())
  assert_close((u, p, state.inner_state), direct)
  assert types(state) == types(tx.init(params()))


def test_injected_value_can_be_changed_between_steps(case):
  """Point 5: what injecting is for: twice the strength or radius without a new compilation."""
  doubled = case.build_with(2 * case.value)
  tx = optax.inject_hyperparams(case.factory)(**case.kwargs)
  p, zeros = params(), jax.tree.map(jnp.zeros_like, params())
  state, update = tx.init(p), jax.jit(tx.update)
  update(zeros, state, p)
  state.hyperparams[case.hyperparameter] = 2 * state.hyperparams[case.hyperparameter]
  second, _ = update(zeros, state, p)
  assert_close(second, step(doubled, zeros, doubled.init(p), p)[0])
  assert update._cache_size() == 1


def test_injected_schedule_equals_the_direct_schedule(case):
  """Point 5: a schedule is called by `inject_hyperparams` with the same count."""
  schedule = optax.linear_schedule(case.value, 0.1 * case.value, 3)
  kwargs = {**case.kwargs, case.hyperparameter: schedule}
  injected = optax.inject_hyperparams(case.factory)(**kwargs)
  u, p, state = run(injected, params())
  direct = run(case.build_with(schedule), params())
  assert_close((u, p, state.inner_state), direct)


def kernels_only(tree):
  return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in str(path), tree)


def test_injected_callable_mask_needs_static_args(case):
  """Point 5: a trap that raises (the mask is called as a schedule), and the way out."""
  if not case.takes("mask"):
    pytest.skip("has no mask")
  kwargs = {**case.kwargs, "mask": kernels_only}
  trapped = optax.inject_hyperparams(case.factory)(**kwargs)
  with pytest.raises((ValueError, TypeError, AttributeError)):
    trapped.init(params())
  tx = optax.inject_hyperparams(case.factory, static_args=("mask",))(**kwargs)
  assert_close(run(tx, params())[:2], run(case.build(mask=kernels_only), params())[:2])


def test_injected_callable_layout_needs_static_args(case):
  """Point 5: the same for a layout function."""
  if not case.takes("layout"):
    pytest.skip("has no layout")

  def layout(path, leaf):
    return lipjax.Dense() if leaf.ndim == 2 and path.startswith("Dense_0") else None

  kwargs = {**case.kwargs, "layout": layout}
  with pytest.raises((ValueError, TypeError)):
    optax.inject_hyperparams(case.factory)(**kwargs).init(params())
  tx = optax.inject_hyperparams(case.factory, static_args=("layout",))(**kwargs)
  assert_close(run(tx, params())[:2], run(case.build(layout=layout), params())[:2])


def test_multi_steps_equals_one_step_with_the_mean(case):
  """Point 7: nothing on the first of two mini-steps, the mean gradient's step on the second."""
  tx = case.chain(SGD)
  multi = optax.MultiSteps(tx, every_k_schedule=2)
  p, g, h = params(), updates(), updates(seed=2)
  state, update = multi.init(p), jax.jit(multi.update)
  for _ in range(2):
    u, state = update(g, state, p)
    assert not any(leaf.any() for leaf in jax.tree.leaves(u))
    u, state = update(h, state, p)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, g, h)
  expected = tx.init(p)
  for _ in range(2):
    v, expected = step(tx, mean, expected, p)
  assert_close((u, state.inner_opt_state), (v, expected))
  assert update._cache_size() == 1


def test_masked_touches_the_selected_leaves_only(case):
  """Point 13: `optax.masked`: the rest passes bit for bit, the selected as without it."""
  mask = jax.tree.map(lambda _: False, params())
  mask["Dense_1"]["kernel"] = True
  p, g = params(), updates()
  tx = optax.masked(case.build(), mask)
  u, _ = step(tx, g, tx.init(p), p)
  alone = case.build()
  only = lambda tree: {"Dense_1": {"kernel": tree["Dense_1"]["kernel"]}}
  expected, _ = step(alone, only(g), alone.init(only(p)), only(p))
  assert_close(only(u), expected)
  u["Dense_1"]["kernel"] = g["Dense_1"]["kernel"]
  assert_same_bits(u, g)


def test_own_mask_is_that_of_optax(case):
  """Point 13: ``mask=`` as a tree, a prefix and a function equals `optax.masked`."""
  if not case.takes("mask"):
    pytest.skip("has no mask")
  p, g = params(), updates()
  prefix = {"Dense_0": True, "Dense_1": False, "Dense_2": True, "LayerNorm_0": False}
  for mask in (kernels_only(p), kernels_only, prefix):
    ours, theirs = case.build(mask=mask), optax.masked(case.build(), mask)
    actual = step(ours, g, ours.init(p), p)
    assert_same_bits(actual, step(theirs, g, theirs.init(p), p))


def test_partition(case):
  """Point 13: `optax.partition` with us for kernels and another for the rest."""
  labels = jax.tree.map(lambda is_kernel: "us" if is_kernel else "rest", kernels_only(params()))
  tx = optax.partition({"us": case.build(), "rest": optax.scale(3.0)}, labels)
  p, g = params(), updates()
  u, _ = step(tx, g, tx.init(p), p)
  masked = optax.masked(case.build(), kernels_only(p))
  expected, _ = step(masked, g, masked.init(p), p)
  triple = lambda is_kernel, x: x if is_kernel else 3.0 * x
  assert_close(u, jax.tree.map(triple, kernels_only(p), expected))


def test_named_chain(case):
  """Point 13: `optax.named_chain` equals `optax.chain`, its state under our name."""
  named = optax.named_chain(*case.ordered(("ours", case.build()), ("sgd", SGD)))
  u, p, state = run(named, params())
  v, q, expected = run(case.chain(SGD), params())
  assert_close((u, p, state["ours"]), (v, q, expected[-1 if case.last else 0]))


def test_apply_if_finite(case):
  """Point 14: a NaN gradient changes nothing, our state included; the next one works."""
  tx = case.chain(SGD)
  guarded = optax.apply_if_finite(tx, max_consecutive_errors=3)
  p, g = params(), updates()
  bad = jax.tree.map(lambda x: x * jnp.nan, g)
  state, update = guarded.init(p), jax.jit(guarded.update)
  u, after = update(bad, state, p)
  assert not any(leaf.any() for leaf in jax.tree.leaves(u))
  assert_same_bits(after.inner_state, state.inner_state)
  u, after = update(g, after, p)
  assert_close((u, after.inner_state), step(tx, g, tx.init(p), p))
  assert update._cache_size() == 1


def test_conditionally_transform(case):
  """Point 14: every second update passes untouched and leaves our state."""
  tx = optax.conditionally_transform(case.build(), lambda count: count % 2 == 0)
  p, g = params(), updates()
  state, update = tx.init(p), jax.jit(tx.update)
  u, first = update(g, state, p)
  assert_close((u, first.inner_state), step(case.build(), g, case.build().init(p), p))
  u, second = update(g, first, p)
  assert_same_bits(u, g)
  assert_same_bits(second.inner_state, first.inner_state)
  assert update._cache_size() == 1


def test_schedule_free(case):
  """Point 15: inside `schedule_free` the averaged params approach the known minimizer."""
  tx = optax.contrib.schedule_free(case.chain(optax.sgd(0.2)), 0.2, b1=0.9)
  goal = targets()
  start = jax.tree.map(jnp.zeros_like, goal)

  @jax.jit
  def train(p):
    def body(carry, _):
      p, state = carry
      u, state = tx.update(jax.tree.map(jnp.subtract, p, goal), state, p)
      return (optax.apply_updates(p, u), state), None

    (p, state), _ = jax.lax.scan(body, (p, tx.init(p)), length=400)
    return optax.contrib.schedule_free_eval_params(state, p)

  p, solution = train(start), case.solution(goal)
  for actual, expected in zip(jax.tree.leaves(p), jax.tree.leaves(solution), strict=True):
    # The average forgets its start as 1/n.
    assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


def test_flatten(case):
  """Point 19: `optax.flatten` raises, or is right for an elementwise transformation."""
  tx, p, g = case.build(), params(), updates()
  flat = optax.flatten(tx)
  if case.flatten == "raises":
    with pytest.raises(ValueError, match=r"optax\.flatten"):
      flat.init(p)
    return
  actual, _ = step(flat, g, flat.init(p), p)
  assert_close(actual, step(tx, g, tx.init(p), p)[0])
