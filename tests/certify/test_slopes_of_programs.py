"""Slopes of random programs hold every slope that is sampled."""

import math

import jax
import jax.numpy as jnp
from hypothesis import assume, given
from hypothesis import strategies as st
from jax import lax
from slope_samples import sampled

from lipjax.certify.scalar.errors import NotLipschitzError
from lipjax.certify.scalar.search import slope_interval

UNARY = [
  jnp.sin, jnp.cos, jnp.tanh, jax.nn.sigmoid, lax.erf, jnp.arctan, jnp.abs, jax.nn.relu,
  jax.nn.softplus, jax.nn.silu, jnp.arcsinh, lambda x: -x, lambda x: x * x, lambda x: x**3,
  lambda x: jnp.sqrt(1 + x * x), lambda x: 1 / (1 + x * x), lambda x: jnp.exp(-jnp.abs(x)),
  lambda x: jnp.expm1(jnp.minimum(x, 1)), lambda x: jnp.log1p(jnp.abs(x)), jax.nn.elu,
  lambda x: jnp.clip(x, -1, 1), lambda x: jnp.where(x > 0.5, 2 * x - 0.5, x),
]  # fmt: skip
BINARY = [
  jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, jnp.minimum,
  lambda x, y: x / (2 + jnp.sin(y)), lambda x, y: x / (1 + jnp.abs(y)),
]  # fmt: skip
constants = st.integers(-16, 16).map(lambda n: lambda x: 0 * x + n / 8)


def extend(children):
  one = st.tuples(st.sampled_from(UNARY), children).map(lambda t: lambda x: t[0](t[1](x)))
  two = st.tuples(st.sampled_from(BINARY), children, children)
  return one | two.map(lambda t: lambda x: t[0](t[1](x), t[2](x)))


programs = st.recursive(st.just(lambda x: x) | constants, extend, max_leaves=6)


def check_samples(g, found, lo, hi):
  sample = sampled(g, lo, hi)
  # Quotients of neighbours are inexact by the rounding of values over their distance.
  error = 1e-6 * max(1, abs(sample.lower), abs(sample.upper))
  assert found.lower <= sample.lower + error
  assert sample.upper <= found.upper + error


@given(programs, st.integers(-12, 12), st.integers(1, 16))
def test_random_programs_on_bounded_domains(g, start, length):
  lo, hi = start / 4, (start + length) / 4
  check_samples(g, slope_interval(g, lo=lo, hi=hi), lo, hi)


@given(programs)
def test_random_programs_on_the_line(g):
  try:
    found = slope_interval(g)
  except NotLipschitzError:
    assume(False)
  check_samples(g, found, -math.inf, math.inf)
