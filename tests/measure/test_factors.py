"""Factors of many matrices: the same ones, in stacks that no thread waits for others in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from lipjax.measure import factors
from lipjax.measure.factors import cholesky, solve_lower


def positive(*shape):
  x = jax.random.normal(jax.random.key(0), (*shape, shape[-1]))
  return x @ jnp.swapaxes(x, -1, -2) + jnp.eye(shape[-1])


def shapes_of(name, jaxpr):
  """Of the operands of a primitive, inside of loops and calls too."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == name:
      yield eqn.invars[0].aval.shape
    for inner in jaxprs_in_params(eqn.params):
      yield from shapes_of(name, inner)


@pytest.mark.parametrize("shape", [(5,), (7, 5), (300, 16), (3, 70), (2, 150, 9), (0, 4), (6, 0)])
def test_they_are_those_of_a_batch(shape):
  a, right = positive(*shape), jnp.ones((*shape, 2))
  factor, solved = cholesky, solve_lower
  for _ in shape[1:]:
    factor, solved = jax.vmap(factor), jax.vmap(solved)
  np.testing.assert_allclose(jax.jit(factor)(a), jnp.linalg.cholesky(a), rtol=1e-5, atol=1e-6)
  lower = jnp.linalg.cholesky(a)
  np.testing.assert_allclose(lower @ jax.jit(solved)(lower, right), right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  ("shape", "most"), [((514, 16), 64), ((802, 128), 1), ((40, 32), 8), ((20, 30, 32), 8)]
)
def test_stacks_are_small(shape, most):
  """Of more, LAPACK's calls can wait for each other for ever."""
  factor = cholesky
  for _ in shape[1:]:
    factor = jax.vmap(factor)
  program = jax.make_jaxpr(factor)(jnp.zeros((*shape, shape[-1])))
  (found,) = shapes_of("cholesky", program.jaxpr)
  assert most / 2 < np.prod(found[:-2]) <= most


def test_two_batches_of_one_program_end():
  """With jaxlib 0.10 on two cores this waited for ever."""
  a = [positive(4, 128) * scale for scale in (1.0, 2.0, 3.0, 4.0)]

  @jax.jit
  def many(a):
    step = lambda a, _: ([jax.vmap(cholesky)(x) @ x * 0 + x for x in a], None)
    return jax.lax.scan(step, a, length=20)[0]

  jax.block_until_ready(many(a))


def test_other_devices_have_batches(monkeypatch):
  monkeypatch.setattr(factors.jax, "default_backend", lambda: "gpu")
  program = jax.make_jaxpr(jax.vmap(cholesky))(jnp.zeros((20, 128, 128)))
  assert list(shapes_of("cholesky", program.jaxpr)) == [(20, 128, 128)]
