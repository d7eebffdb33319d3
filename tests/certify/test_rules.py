"""Primitives that move entries, sum, choose or jump, and where they say that they are."""

import jax
import jax.numpy as jnp
import pytest
from certify.jacobians import compiled, steepest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from reference import FLOAT

import lipjax

KEYS = jax.random.split(jax.random.key(0), 8)
VECTOR = (6,)
AT, TWICE, ONES = jnp.array([1, 4]), jnp.array([2, 2]), jnp.ones(6)
LINEAR_RULES = {
  "scatter": lambda x: jnp.zeros(8).at[AT].set(3 * x[:2]) + jnp.pad(x, 1),
  "scatter over the input": lambda x: x.at[AT].set(3 * x[:2]),
  "scatter onto one place": lambda x: x.at[TWICE].set(3 * x[:2]),
  "scatter out of bounds": lambda x: x.at[AT + 4].set(3 * x[:2]),
  "scatter-add": lambda x: x.at[TWICE].add(3 * x[:2]),
  "scatter-sub": lambda x: ONES.at[TWICE].subtract(x[:2]),
  "segment_sum": lambda x: jax.ops.segment_sum(x, jnp.array([0, 0, 1, 0, 1, 2]), 3),
  "gather out of bounds": lambda x: x.at[AT + 4].get(mode="fill", fill_value=9),
  "pad with an entry": lambda x: lax.pad(x, 2 * x[0], [(1, 2, 0)]),
  "tile and stack": lambda x: jnp.stack([jnp.tile(x, 2), jnp.arange(12.0)]),
  "unstack": lambda x: jnp.unstack(x.reshape(2, 3))[1],
  "permutation": lambda x: jax.random.permutation(KEYS[0], x),
  "names and barriers": lambda x: 2 * lax.optimization_barrier((checkpoint_name(x, "x"), 1))[0],
  "device_put": lambda x: 2 * jax.device_put(x),
  "half precision": lambda x: x.astype(jnp.bfloat16).at[AT].set(1).astype(FLOAT) @ ONES,
  "no turns": lambda x: x + lax.scan(lambda c, _: (c, c), x, None, length=0)[1].sum(),
}
MAXIMA = {
  "top_k": lambda x: lax.top_k(x, 2)[0],
  "sort": lambda x: lax.sort_key_val(x, -x)[0],
  "segment_max": lambda x: jax.ops.segment_max(x, jnp.array([0, 0, 1, 0, 1, 2]), 3),
  "scatter-min": lambda x: x.at[TWICE].min(3 * x[1:3]),
  "cumlogsumexp": lambda x: lax.cumlogsumexp(x),
}


@pytest.mark.first(11)
@pytest.mark.parametrize("name", [*LINEAR_RULES, *MAXIMA])
def test_rules(name):
  fn = LINEAR_RULES.get(name) or MAXIMA[name]
  upper = float(compiled(lipjax.lipschitz_upper_bound(fn))(jnp.zeros(VECTOR, FLOAT)))
  # Forward: not all of these have a transpose.
  found = steepest(fn, VECTOR, jax.jacfwd)
  assert found <= upper * (1 + 1e-6)
  assert upper <= found * (1 + 1e-3 if name in LINEAR_RULES else 3**0.5)


@pytest.mark.first(1)
@pytest.mark.parametrize("is_small", [False, True])
def test_what_is_traced_may_choose(is_small):
  """A branch, and places: the bound is that of those which are chosen when it is computed."""

  def net(which, places, x):
    x = lax.switch(which, [lambda x: 5 * x, lambda x: jnp.tanh(x), lambda x: ONES], x)
    return x.at[places].add(x[places])

  bound = lambda *args: lipjax.lipschitz_upper_bound(net, argnums=2)(*args, jnp.zeros(6))
  args = (jnp.int32(is_small), AT if is_small else TWICE)
  assert float(compiled(bound)(*args)) == pytest.approx(float(bound(*args)), rel=1e-4)
  assert float(compiled(bound)(2, AT)) == 0


JUMPS = {
  "branches": lambda x: lax.cond(x[0] > 0, lambda x: x, lambda x: -x, x),
  "argmax": lambda x: 1.0 * jnp.argmax(x),
  "argsort": lambda x: 1.0 * jnp.argsort(x),
  "top_k": lambda x: 1.0 * lax.top_k(x, 2)[1],
  "scatter": lambda x: x.at[jnp.argmax(x)].set(0),
}


@pytest.mark.parametrize("name", JUMPS)
def test_what_jumps_raises(name):
  with pytest.raises(lipjax.CertifyError, match="jump"):
    lipjax.lipschitz_upper_bound(JUMPS[name])(jnp.zeros(VECTOR))


def my_exponential(x):
  return jnp.exp(x)


MESSAGES = {
  "argmax": (lambda x: 1.0 * jnp.argmax(x), r"test_rules.py:\d+ \(<lambda>\)"),
  "inside JAX": (
    lambda x: jnp.exp(jnp.fft.fft(x)).real,
    r"complex numbers \(\S*test_rules.py:\d+ \(<lambda>\)",
  ),
  "searched for slopes": (lambda x: 2 * my_exponential(x), r"test_rules.py:\d+ \(my_exp"),
  "searched inside JAX": (lambda x: jax.nn.softplus(x) ** 2, r"test_rules.py:\d+ \(<lambda>\)"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_name_the_line(name):
  fn, expected = MESSAGES[name]
  with pytest.raises(lipjax.CertifyError, match=expected):
    lipjax.lipschitz_upper_bound(fn)(jnp.zeros(VECTOR, jnp.float32))


@pytest.mark.parametrize("fn", [jnp.exp, jnp.argmax])
def test_messages_without_a_line_have_no_empty_brackets(fn):
  with pytest.raises(lipjax.CertifyError) as error:
    lipjax.lipschitz_upper_bound(fn)(jnp.zeros(VECTOR))
  assert "()" not in str(error.value)
  assert "certify/rules" not in str(error.value)
