"""What a transformation does to the numbers it is given: points 1, 6, 9, 18, 20, 21."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts.registry import (
  assert_close,
  assert_same_bits,
  normal,
  params,
  run,
  step,
  targets,
  types,
  updates,
)
from marks import thorough
from optax._src.base import NO_PARAMS_MSG


def test_extra_arguments_are_ignored(case):
  """Point 1: ``update(…, loss=…)`` is accepted and changes nothing."""
  tx, p, g = case.build(), params(), updates()
  state = tx.init(p)
  assert isinstance(tx, optax.GradientTransformationExtraArgs)
  actual = step(tx, g, state, p, loss=1.0, value_fn=lambda _: 0.0)
  assert_same_bits(actual, step(tx, g, state, p))


def test_extra_arguments_pass_through_a_chain(case):
  """Point 1: a chain with a transformation that needs them (a line search's `value`)."""

  def init(p):
    del p
    return optax.EmptyState()

  def update(u, state, p=None, *, value):
    del p
    return jax.tree.map(lambda x: x * value, u), state

  scale = optax.GradientTransformationExtraArgs(init, update)
  tx, p, g = case.build(), params(), updates()
  chained = optax.chain(tx, scale)
  # Traced, so that both values run one program: another one may round otherwise.
  run = jax.jit(lambda value: chained.update(g, chained.init(p), p, value=value)[0])
  assert_same_bits(run(2.0), jax.tree.map(lambda x: x * 2.0, run(1.0)))
  assert_close(run(1.0), step(tx, g, tx.init(p), p)[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtype_is_kept(case, dtype):
  """Point 6: updates and params keep their dtype, the state its types, over three steps."""
  with jax.enable_x64(dtype == "float64" or jax.config.jax_enable_x64):
    tx, p = case.chain(optax.sgd(0.1)), params(dtype)
    start = tx.init(p)
    u, p, state = run(tx, p)
    assert {leaf.dtype for leaf in jax.tree.leaves((u, p))} == {jnp.dtype(dtype)}
    assert types(state) == types(start)


@pytest.mark.parametrize("dtype", ["bfloat16", *map(thorough, ("float16", "float64"))])
def test_values_do_not_depend_on_dtype(case, dtype):
  """Point 6: the numbers in another dtype are those in float32 but for rounding."""
  with jax.enable_x64(dtype == "float64" or jax.config.jax_enable_x64):
    # Weights that both dtypes hold exactly, and zeros to add to.
    p = params("bfloat16") if dtype == "bfloat16" else params("float16")
    results = {}
    # Starting vectors depend on the dtype, so let them converge.
    tx = case.build(**({"n_steps": 100} if case.takes("n_steps") else {}))
    for d in (dtype, "float32"):
      q = jax.tree.map(lambda x: x.astype(d), p)
      results[d], _ = step(tx, jax.tree.map(jnp.zeros_like, q), tx.init(q), q)
    coarse = max((dtype, "float32"), key=lambda d: float(jnp.finfo(d).eps))
    cast = lambda tree: jax.tree.map(lambda x: x.astype(coarse), tree)
    assert_close(cast(results[dtype]), cast(results["float32"]), 256 if coarse == "float32" else 2)


@pytest.mark.parametrize(
  ("of_params", "of_updates"), [("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_updates_keep_their_own_dtype(case, of_params, of_updates):
  """Point 6: master gradients in another dtype than the weights."""
  p, g = params(of_params), updates(of_updates)
  u, _ = step(case.build(), g, case.build().init(p), p)
  assert {leaf.dtype for leaf in jax.tree.leaves(u)} == {jnp.dtype(of_updates)}


def test_constant_schedule_equals_float(case):
  """Point 9: ``optax.constant_schedule(s)`` gives the numbers of ``s``."""
  schedule = optax.constant_schedule(case.value)
  scheduled = run(case.build_with(schedule), params(), grads=updates())
  assert_close(scheduled, run(case.build(), params(), grads=updates()))


@pytest.mark.first(6)
def test_schedule_counts_updates_from_zero(case):
  """Point 9: the n-th update uses ``schedule(n)``, n from 0."""
  p, zeros = params(), jax.tree.map(jnp.zeros_like, params())
  schedule = optax.piecewise_constant_schedule(case.value, {1: 0.5, 2: 4.0})
  scheduled = case.build_with(schedule)
  s = t = scheduled.init(p)
  update = jax.jit(scheduled.update)
  for factor in (1.0, 0.5, 2.0):
    u, s = update(zeros, s, p)
    v, t = step(case.build_with(case.value * factor), zeros, t, p)
    assert_close(u, v)


def test_missing_params_raise(case):
  """Point 18: optax's own message, whether params is left out or None."""
  tx = case.build()
  state = tx.init(params())
  with pytest.raises(ValueError, match=re.escape(NO_PARAMS_MSG)):
    tx.update(updates(), state)
  with pytest.raises(ValueError, match=re.escape(NO_PARAMS_MSG)):
    optax.chain(tx, optax.sgd(0.1)).update(updates(), (state, optax.EmptyState()), None)


def special_updates():
  """Updates with both zeros, NaN, infinities and the smallest numbers."""
  tiny = float(jnp.finfo(float).tiny)
  special = np.array([-0.0, 0.0, np.nan, -np.nan, np.inf, -np.inf, tiny, -tiny])
  return jax.tree.map(lambda u: jnp.asarray(np.resize(special, u.shape), u.dtype), updates())


KINDS = {
  "float": float,
  "int": lambda off: int(off) if off == 0 else pytest.skip("infinity is no int"),
  "numpy": np.float32,
  "array": jnp.float32,
  "schedule": optax.constant_schedule,
  "array_schedule": lambda off: lambda count: off + 0.0 * count,
}


@pytest.mark.first(30)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_off_leaves_every_bit(case, kind, jitted):
  """Point 20: with strength 0 or an infinite radius −0.0, NaN and infinities stay as they are."""
  tx, g = case.build_with(kind(case.off)), special_updates()
  p = params()
  p["Dense_1"]["kernel"] = p["Dense_1"]["kernel"].at[0, 0].set(jnp.nan)
  p["Dense_2"]["kernel"] = jnp.zeros_like(p["Dense_2"]["kernel"])
  update = jax.jit(tx.update) if jitted else tx.update
  u, _ = update(g, tx.init(p), p)
  assert_same_bits(u, g)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_off_leaves_every_bit_in_half_precision(case, dtype):
  """Point 20: no detour through float32 either."""
  g = jax.tree.map(lambda u: u.astype(dtype), special_updates())
  tx, p = case.build_with(optax.constant_schedule(case.off)), params(dtype)
  assert_same_bits(step(tx, g, tx.init(p), p)[0], g)


def test_none_leaves_pass(case):
  """Point 21: None in params and updates, as `equinox.partition` leaves them."""
  tx = case.build()
  p = params() | {"frozen": None, "Dense_9": {"kernel": None, "bias": None}}
  g = updates() | {"frozen": None, "Dense_9": {"kernel": None, "bias": None}}
  u, state = step(tx, g, tx.init(p), p)
  assert types(state) == types(tx.init(p))
  assert jax.tree.structure(u) == jax.tree.structure(g)
  expected, _ = step(tx, updates(), tx.init(params()), params())
  assert_same_bits({key: u[key] for key in expected}, expected)


def test_none_updates_of_real_params_pass(case):
  """Point 21: a leaf without a gradient stays None; the others do not notice."""
  tx, p, g = case.build(), params(), updates()
  g["Dense_1"]["kernel"] = g["Dense_0"]["bias"] = None
  u, _ = step(tx, g, tx.init(p), p)
  expected, _ = step(tx, updates(), tx.init(p), p)
  expected["Dense_1"]["kernel"] = expected["Dense_0"]["bias"] = None
  assert_same_bits(u, expected)


def test_converges_to_the_proximal_point(case):
  """Point 4: gradient descent inside `lax.scan` ends at the known minimizer."""
  tx, goal = case.chain(optax.sgd(0.2)), targets()
  p = jax.tree.map(lambda t, r: t + 0.1 * r, goal, normal(3, goal))

  def descend(carry, _):
    p, state = carry
    u, state = tx.update(jax.tree.map(jnp.subtract, p, goal), state, p)
    return (optax.apply_updates(p, u), state), None

  (p, _), _ = jax.jit(lambda c: jax.lax.scan(descend, c, length=300))((p, tx.init(p)))
  # The distance shrinks to a few roundings, times 1 / (1 − σ₂/σ₁) of the vectors.
  expected = jax.tree.map(lambda x: jnp.asarray(x, float), case.solution(goal))
  assert_close(p, expected, 128)
