"""Slopes of scalar functions hold every slope that is sampled, and no more than that."""

import functools
import math

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from slope_samples import sampled

from lipjax.certify.errors import CertifyError
from lipjax.certify.scalar.errors import NotLipschitzError, UnknownPrimitiveError
from lipjax.certify.scalar.search import graph_slopes, slope_interval
from lipjax.certify.scalar.tracing import graph_of_jaxpr
from lipjax.jaxprs.inline import CALLS, inline

partial = functools.partial

PARAMETERLESS = [
  "relu", "relu6", "softplus", "tanh", "sigmoid", "silu", "swish", "gelu", "selu", "elu", "celu",
  "leaky_relu", "hard_tanh", "hard_silu", "hard_swish", "hard_sigmoid", "mish", "soft_sign",
  "log_sigmoid", "squareplus", "identity", "sparse_plus", "sparse_sigmoid",
]  # fmt: skip
ACTIVATIONS = {
  **{name: getattr(jax.nn, name) for name in PARAMETERLESS},
  "gelu exact": partial(jax.nn.gelu, approximate=False),
  "elu 2.5": partial(jax.nn.elu, alpha=2.5),
  "elu 0.3": partial(jax.nn.elu, alpha=0.3),
  "elu 0": partial(jax.nn.elu, alpha=0.0),
  "elu -0.5": partial(jax.nn.elu, alpha=-0.5),
  "celu 3": partial(jax.nn.celu, alpha=3.0),
  "leaky_relu 0.2": partial(jax.nn.leaky_relu, negative_slope=0.2),
  "leaky_relu -2": partial(jax.nn.leaky_relu, negative_slope=-2.0),
  "leaky_relu 0": partial(jax.nn.leaky_relu, negative_slope=0.0),
  "squareplus 1": partial(jax.nn.squareplus, b=1.0),
  "erf": lax.erf,
  "sin": jnp.sin,
  "cos": jnp.cos,
  "atan": jnp.arctan,
}
BY_HAND = {
  "quick gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": lambda x: 0.5 * x * (1 + lax.erf(x / jnp.sqrt(2.0))),
  "scaled gelu": lambda x: 5 * jax.nn.gelu(3 * x + 1) - x,
  "silu": lambda x: x / (1 + jnp.exp(-x)),
  "softplus": lambda x: jnp.log(1 + jnp.exp(x)),
  "relu": lambda x: x * (x > 0),
  "prelu": lambda x: x * jnp.where(x > 0, 1.0, 0.25),
  "soft shrink": lambda x: jnp.where(x > 0.5, x - 0.5, jnp.where(x < -0.5, x + 0.5, 0.0)),
  "tanh shrink": lambda x: x - jnp.tanh(x),
  "huber": lambda x: jnp.where(jnp.abs(x) < 1, 0.5 * x * x, jnp.abs(x) - 0.5),
  "pseudo-huber": lambda x: jnp.sqrt(1 + x * x) - 1,
  "snake": lambda x: x + jnp.sin(x) ** 2,
  "gaussian": lambda x: jnp.exp(-(x**2)),
  "cauchy": lambda x: jnp.log1p(x * x),
  "rational": lambda x: 1 / (1 + x * x),
  "x tanh x": lambda x: x * jnp.tanh(x),
  "x atan x": lambda x: x * jnp.arctan(x),
  "serf": lambda x: x * lax.erf(jax.nn.softplus(x)),
  "clip": lambda x: 3 * jnp.clip(x, -1, 2),
  "nan to num": jnp.nan_to_num,
  "asinh": jnp.arcsinh,
  "hard tanh of silu": lambda x: jax.nn.hard_tanh(jax.nn.silu(x)),
  "band": lambda x: jnp.where((x > -1) & (x < 1), x**3, jnp.clip(x, -1, 1)),
}


def check(found, g, tolerance, **domain):
  lower, upper = sampled(g, **domain)
  scale = max(abs(lower), abs(upper))
  # The samples round, in float64, and their constants do in float32.
  assert found.lower <= lower + 1e-7 * scale + 1e-12
  assert upper <= found.upper + 1e-7 * scale + 1e-12
  assert found.lower >= lower - tolerance * scale
  assert found.upper <= upper + tolerance * scale


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
  g = ACTIVATIONS[name]
  found = slope_interval(g)
  check(found, g, 2e-5)
  assert slope_interval(jax.jit(g)) == found
  assert slope_interval(jax.checkpoint(lambda x: g(x))) == found


@pytest.mark.parametrize("library", [flax.linen, flax.nnx])
def test_flax(library):
  for name in PARAMETERLESS:
    if hasattr(library, name):
      assert slope_interval(getattr(library, name)) == slope_interval(getattr(jax.nn, name))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["relu", "gelu", "gelu exact", "silu", "selu"])
def test_narrow_floats_round_the_constants(name, dtype):
  # The real function of the rounded constants is not quite the one of float64.
  narrow, wide = slope_interval(ACTIVATIONS[name], dtype=dtype), slope_interval(ACTIVATIONS[name])
  assert narrow == pytest.approx(wide, abs=1e-2)


@pytest.mark.parametrize("name", BY_HAND)
def test_functions_by_hand(name):
  check(slope_interval(BY_HAND[name]), BY_HAND[name], 2e-4)


@pytest.mark.first(60)
@pytest.mark.parametrize("name", [*ACTIVATIONS, *BY_HAND])
@pytest.mark.parametrize("domain", [{"lo": -0.75, "hi": 0.5}, {"lo": 1, "hi": 4}])
def test_bounded_domains(name, domain):
  g = {**ACTIVATIONS, **BY_HAND}[name]
  check(slope_interval(g, **domain), g, 1e-3, **domain)


BOUNDED = [
  (jnp.exp, -1, 2, math.exp(-1), math.exp(2)),
  (jnp.log, 0.5, 2, 0.5, 2),
  (jnp.sqrt, 0.25, 4, 0.25, 1),
  (lambda x: x**2, -1, 3, -2, 6),
  (lambda x: x**2.5, 0, 2, 0, 2.5 * 2**1.5),
  (lambda x: 2.0**x, -1, 3, math.log(2) / 2, math.log(2) * 8),
  (lambda x: 1 / x, 0.5, 2, -4, -0.25),
  (lambda x: x**-2, 0.5, 1, -16, -2),
  (lax.rsqrt, 1, 4, -0.5, -1 / 16),
  (jnp.cbrt, 1, 8, 1 / 12, 1 / 3),
  (jnp.tan, -1, 1, 1, 1 + math.tan(1) ** 2),
  (jnp.cosh, -1, 2, -math.sinh(1), math.sinh(2)),
  (jnp.floor, 0.25, 0.75, 0, 0),
  (jnp.exp, -math.inf, 0, 0, 1),
  (lambda x: 1 / x, 1, math.inf, -1, 0),
]


@pytest.mark.parametrize(("g", "lo", "hi", "lower", "upper"), BOUNDED)
def test_what_is_lipschitz_on_its_domain_only(g, lo, hi, lower, upper):
  found = slope_interval(g, lo=lo, hi=hi)
  scale = max(abs(lower), abs(upper))
  assert lower - 2e-4 * scale <= found.lower <= lower
  assert upper <= found.upper <= upper + 2e-4 * scale
  with pytest.raises(NotLipschitzError, match="slope_interval"):
    slope_interval(g)


def test_choices_at_irrational_points():
  # At x = π the condition changes; that both branches agree there is seen where sin x = 0.
  g = lambda x: jax.nn.elu(jnp.sin(x))
  for domain in ({}, {"lo": 3, "hi": 4}):
    lower, upper = slope_interval(g, **domain)
    assert -1.001 <= lower <= -1 + 1e-7
    assert sampled(g, **domain).upper <= upper <= 1.001
    assert domain or upper >= 1


def jumping(x):
  return jnp.where(x > 1, x + 0.25, x)


@pytest.mark.parametrize("domain", [{}, {"lo": 0, "hi": 1}, {"lo": 1, "hi": 2}, {"lo": 0, "hi": 2}])
def test_jumps(domain):
  if domain == {"lo": 0, "hi": 1}:  # x > 1 fails on all of it, but only a point is left
    assert slope_interval(jumping, **domain) == (1, 1)
    return
  with pytest.raises(NotLipschitzError, match="may jump"):
    slope_interval(jumping, **domain)


@pytest.mark.parametrize(
  "g",
  [
    jnp.sign,
    jnp.round,
    lambda x: x - jnp.floor(x),
    lambda x: jnp.where(x == 0, 1.0, x),
    lambda x: jnp.where(jnp.abs(x) > 0.5, x, 0.0),
    lambda x: jnp.where((x > 0) & (x < 1), x, 0.0),
    lambda x: (x > 0).astype(jnp.float32),
    lambda x: jnp.where(jnp.sin(x) > 0, x, 0.0),
  ],
)
def test_more_jumps(g):
  with pytest.raises(NotLipschitzError):
    slope_interval(g)


def test_names_say_nothing():
  @jax.jit
  def silu(x):
    return 7 * x

  assert slope_interval(silu) == (7, 7)
  assert slope_interval(lambda x: jax.jit(jax.nn.silu)(x)) == slope_interval(jax.nn.silu)


def test_derivative_rules_say_nothing():
  @jax.custom_jvp
  def wrong(x):
    return 3 * x

  wrong.defjvp(lambda primals, tangents: (wrong(*primals), 0 * tangents[0]))

  @jax.custom_vjp
  def reversed_(x):
    return 3 * x

  reversed_.defvjp(lambda x: (3 * x, None), lambda _, cotangent: (-cotangent,))
  assert slope_interval(wrong) == (3, 3)
  assert slope_interval(reversed_) == (3, 3)
  assert slope_interval(lax.stop_gradient) == (1, 1)


def test_calls_are_written_out():
  g = jax.jit(lambda x: jax.checkpoint(jax.nn.mish)(jax.nn.relu(x)))
  program = inline(jax.make_jaxpr(g)(1.0))
  assert not {equation.primitive for equation in program.equations} & CALLS
  assert program.equations[0].inputs[0] is program.inputs[0]
  assert program.outputs[0] is program.equations[-1].outputs[0]


def test_arrays_and_constants():
  scale = jnp.full((2, 3), 4.0)
  closed = jax.make_jaxpr(lambda x: jnp.tanh(scale * x) + jnp.exp(2.0))(jnp.ones((2, 3)))
  assert graph_slopes(graph_of_jaxpr(closed)).upper == pytest.approx(4, rel=2e-4)
  # Constants that differ from entry to entry: the slopes of all of them.
  of_each = jax.make_jaxpr(lambda x: jnp.tanh(x * jnp.arange(3.0)))(jnp.ones(3))
  assert graph_slopes(graph_of_jaxpr(of_each)) == pytest.approx((0, 2), rel=2e-4)
  assert slope_interval(lambda x: 0 * x + 1) == (0, 0)
  assert slope_interval(lambda x: jnp.float32(1)) == (0, 0)


def test_inside_jit():
  seen = []

  @jax.jit
  def f(x, traced):
    seen.append(slope_interval(lambda y: jnp.sqrt(4.0) * jnp.tanh(y)))
    with pytest.raises(CertifyError, match="must be concrete"):
      slope_interval(lambda y: traced * y)
    return x

  f(1.0, 2.0)
  assert seen[0].upper == pytest.approx(2, rel=2e-4)


def test_errors_tell_what_and_where():
  with pytest.raises(
    NotLipschitzError, match=r"exp \(.*test_slopes.py.*unbounded slope.*\[.*inf\]"
  ):
    slope_interval(lambda x: jnp.exp(x) + x)
  with pytest.raises(UnknownPrimitiveError, match=r"lgamma.*lipjax.register_rule"):
    slope_interval(lambda x: lax.lgamma(x))
  with pytest.raises(ValueError, match="lo < hi"):
    slope_interval(jnp.tanh, lo=1, hi=1)
