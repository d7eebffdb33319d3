"""Bounds compile fast: programs stay small, and options count where nothing is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import normal

import lipjax
from lipjax.certify.fast import fast_jit


@fast_jit(static_argnums=(0,))
def power(n, x):
  return x**n


def test_values_are_the_same_traced_or_not():
  two = jnp.float32(2)
  assert power(3, two) == 8
  assert jax.jit(lambda x: power(3, x))(two) == 8
  assert jax.jit(lambda x: x + power(3, two))(two) == 10  # nothing of it is traced, but all around
  assert jax.grad(lambda x: power(3, x))(two) == 12
  np.testing.assert_array_equal(jax.vmap(lambda x: power(2, x))(jnp.arange(3.0)), [0, 1, 4])


def recurrent(x, n_steps, w=normal(0, (2, 8, 8), np.float32) / 4):  # noqa: B008
  h = jnp.zeros(8)
  for row in x.reshape((n_steps, -1)):
    h = jnp.tanh(row + h @ w[0]) * jax.nn.sigmoid(h @ w[1]) + h
  return h


@pytest.mark.parametrize(("n_steps", "most"), [(1, 4000), (2, 9000), (4, 22000)])
def test_programs_do_not_explode(n_steps, most):
  """By their number of operations, which compile time follows."""
  upper = lipjax.lipschitz_upper_bound(recurrent, radius=0.5)
  bound = lambda x: upper(x, n_steps)
  assert n_operations(jax.make_jaxpr(bound)(jnp.zeros(8 * n_steps)).jaxpr) <= most


def n_operations(jaxpr):
  total = 0
  for eqn in jaxpr.eqns:
    is_program = lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    leaves = jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program)
    inner = [getattr(x, "jaxpr", x) for x in leaves if is_program(x)]
    total += sum(map(n_operations, inner)) if inner else 1
  return total
