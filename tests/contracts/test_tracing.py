"""A transformation under jit, cond and abstract values: points 2, 8, 10."""

import jax
import jax.numpy as jnp
import optax
import pytest
from contracts.registry import assert_close, assert_same_bits, params, run, step, types, updates


@pytest.mark.parametrize("donate", [(), (1, 2)], ids=["kept", "donated"])
def test_second_call_does_not_recompile(case, donate):
  """Point 2: one trace and one executable for `init`'s state and for all later ones."""
  tx = case.chain(optax.sgd(0.1))
  n_traces = 0

  def train(g, p, state):
    nonlocal n_traces
    n_traces += 1
    u, state = tx.update(g, state, p)
    return optax.apply_updates(p, u), state

  train = jax.jit(train, donate_argnums=donate)
  p, g = params(), updates()
  state = tx.init(p)
  for _ in range(4):
    p, state = train(g, p, state)
  assert n_traces == 1
  assert train._cache_size() == 1
  expected = run(tx, params(), 4, updates())
  assert_close((p, state), expected[1:])


def test_state_can_be_donated_when_nothing_is_selected(case):
  """Point 2: a state without leaves to work on holds no buffer twice."""
  tx = optax.masked(case.build(), mask=jax.tree.map(lambda _: False, params()))
  p, g = params(), updates()
  update = jax.jit(tx.update, donate_argnums=1)
  state = tx.init(p)
  for _ in range(2):
    u, state = update(g, state, p)
  assert_same_bits(u, g)
  assert update._cache_size() == 1


def test_jitted_init_equals_init(case):
  """Point 2: `jax.jit(tx.init)` gives the same state but for rounding."""
  tx = case.build()
  assert_close(jax.jit(tx.init)(params()), tx.init(params()))
  assert types(jax.jit(tx.init)(params())) == types(tx.init(params()))


def test_state_is_stable_under_cond(case):
  """Point 8: updating in one branch and not in the other type-checks and is right."""
  tx, p, g = case.build(), params(), updates()

  @jax.jit
  def maybe(flag, state):
    return jax.lax.cond(
      flag, lambda s: tx.update(g, s, p), lambda s: (jax.tree.map(jnp.zeros_like, g), s), state
    )

  state = tx.init(p)
  skipped, same = maybe(False, state)
  assert_same_bits(same, state)
  assert not any(leaf.any() for leaf in jax.tree.leaves(skipped))
  assert_close(maybe(True, state), step(tx, g, state, p))


def test_state_is_a_carry(case):
  """Point 8: as the carry of `lax.while_loop`, from `init` on."""
  tx, p, g = case.build(), params(), updates()

  def body(carry):
    i, state = carry
    return i + 1, tx.update(g, state, p)[1]

  _, state = jax.lax.while_loop(lambda c: c[0] < 3, body, (0, tx.init(p)))
  expected, update = tx.init(p), jax.jit(tx.update)
  for _ in range(3):
    _, expected = update(g, expected, p)
  assert_close(state, expected)


def test_init_on_abstract_params(case):
  """Point 10: shapes alone are enough, and give the state that the arrays give."""
  tx = case.build()
  abstract = jax.eval_shape(lambda: params())
  assert_same_bits(tx.init(abstract), tx.init(params()))


def test_eval_shape_of_init_and_update(case):
  """Point 10: a whole abstract step, as a checkpoint restorer takes it."""
  tx, abstract = case.build(), jax.eval_shape(lambda: params())
  state = jax.eval_shape(tx.init, abstract)
  assert jax.tree.structure(state) == jax.tree.structure(tx.init(params()))
  _, after = jax.eval_shape(tx.update, abstract, state, abstract)
  assert types(after) == types(state)


def test_vmap_over_models(case):
  """Point 8: an ensemble, stacked by vmap, equals its members."""
  tx, p, g = case.build(), params(), updates()
  both = lambda tree: jax.tree.map(lambda x: jnp.stack([x, 2 * x]), tree)
  state = jax.vmap(tx.init)(both(p))
  u, _ = jax.jit(jax.vmap(tx.update))(both(g), state, both(p))
  double = lambda tree: jax.tree.map(lambda x: 2 * x, tree)
  first, _ = step(tx, g, tx.init(p), p)
  second, _ = step(tx, double(g), tx.init(double(p)), double(p))
  assert_close(u, jax.tree.map(lambda *xs: jnp.stack(xs), first, second))
