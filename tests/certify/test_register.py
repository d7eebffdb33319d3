"""Rules that users write: what they say of slopes and ranges is used, and what is wrong raises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive

import lipjax


def primitive(name, fn, *, several=False):
  """One that stands for a kernel which lipjax cannot read."""
  new = Primitive(name)
  new.multiple_results = several
  shaped = lambda x: jax.core.ShapedArray(x.shape, x.dtype)
  new.def_abstract_eval(lambda *args: jax.tree.map(shaped, jax.eval_shape(fn, *args)))
  return new


def upper(fn, x=jnp.zeros(3), **domain):  # noqa: B008
  return float(lipjax.lipschitz_upper_bound(fn, **domain)(x))


@pytest.fixture
def squash():
  """tanh, as a kernel."""
  squash_p = primitive("squash", jnp.tanh)

  @lipjax.register_rule(squash_p, range=lambda eqn, x: (jnp.tanh(x[0]), jnp.tanh(x[1])))
  def rule(eqn, x):
    lower, upper = x.range or (-jnp.inf, jnp.inf)
    far = jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    return lipjax.scalar_node(eqn.outvars[0].aval, x, 1 - jnp.tanh(far) ** 2, 1.0)

  return lambda x: squash_p.bind(x)


@pytest.mark.first(1)
@pytest.mark.parametrize("domain", [{}, {"radius": 0.3}, {"box": (-1.0, 0.5)}])
def test_slopes_are_used_as_those_of_functions_that_are_known(squash, domain):
  w = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
  net = lambda activation: lambda x: activation(w @ activation(x)) - x.sum()
  expected = upper(net(jnp.tanh), **domain)
  assert upper(net(squash), **domain) == pytest.approx(expected, rel=0.1)


def test_ranges_are_used(squash):
  for fn in (lambda act, x: act(x) * x[::-1], lambda act, x: act(x) / (2 + act(3 * x))):
    ours, theirs = (upper(lambda x, act=act: fn(act, x), radius=0.3) for act in (squash, jnp.tanh))
    assert theirs * (1 - 1e-3) <= ours <= 1.5 * theirs
  with pytest.raises(lipjax.CertifyError, match="register_rule"):  # without a domain none is known
    upper(lambda x: squash(x) * x[::-1])


def test_several_results():
  both_p = primitive("both", lambda x, c: [2 * x, x + c], several=True)

  @lipjax.register_rule(both_p, range=lambda eqn, x, c: [(2 * x[0], 2 * x[1]), x + c])
  def rule(eqn, x, c):
    double = lipjax.linear_node(eqn.outvars[0].aval, lambda x: 2 * x, x, 2.0, terms=1)
    return [double, lipjax.lipschitz_node(eqn.outvars[1].aval, [x], [1.0])]

  both = lambda x: both_p.bind(x, jnp.ones(3))
  assert upper(lambda x: both(x)[0] - 2 * x) < 1e-5
  assert upper(lambda x: both(x)[0] * x, radius=0.5) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("wrong", [1.0, (1.0,), (jnp.ones(2), 1.0), ("a", "b")])
def test_a_wrong_range_says_what_was_expected(wrong):
  odd_p = primitive("odd", jnp.tanh)

  @lipjax.register_rule(odd_p, range=lambda eqn, x: wrong)
  def rule(eqn, x):
    return lipjax.lipschitz_node(eqn.outvars[0].aval, [x], [1.0])

  with pytest.raises(lipjax.CertifyError, match=r"range of odd .*smallest and its largest"):
    upper(lambda x: odd_p.bind(x) * x, radius=1.0)


def test_a_function_of_entries_keeps_the_shape():
  total_p = primitive("total", jnp.sum)

  @lipjax.register_rule(total_p)
  def rule(eqn, x):
    return lipjax.scalar_node(eqn.outvars[0].aval, x, 0.0, 1.0)

  with pytest.raises(ValueError, match=r"keeps the shape \(3,\)"):
    upper(lambda x: total_p.bind(x))


def test_slopes_and_ranges_in_the_wrong_order_pass_nowhere():
  odd_p = primitive("swapped", jnp.tanh)

  @lipjax.register_rule(odd_p, range=lambda eqn, x: (1.0, -1.0))
  def rule(eqn, x):
    return lipjax.lipschitz_node(eqn.outvars[0].aval, [x], [1.0])

  assert upper(lambda x: odd_p.bind(x) * x, radius=1.0) == np.inf

  @lipjax.register_rule(odd_p)
  def swapped(eqn, x):
    return lipjax.scalar_node(eqn.outvars[0].aval, x, 1.0, 0.0)

  with pytest.raises(ValueError, match="at most the largest"):
    upper(lambda x: odd_p.bind(x))

  @lipjax.register_rule(odd_p)
  def traced(eqn, x):
    return lipjax.scalar_node(eqn.outvars[0].aval, x, x.range[1], x.range[0])

  assert upper(lambda x: odd_p.bind(x), radius=1.0) == np.inf
