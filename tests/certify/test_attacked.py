"""Bounds that an attack has broken once, and what broke them, kind by kind."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from certify.jacobians import compiled
from jax import lax
from reference import FLOAT

import lipjax

pytestmark = pytest.mark.thorough

SPREAD = (4, 64)


def spread(t):
  """A gate of two functions of one entry, which stands for 64: JAX broadcasts axes of size 1."""
  return jax.nn.sigmoid(t + jnp.zeros(SPREAD)) * jnp.tanh(t * jnp.ones(SPREAD))


def silu_gate(t):
  return jax.nn.silu(t + jnp.zeros(SPREAD)) * jnp.tanh(t * jnp.ones(SPREAD))


def shifted_elsewhere(x):
  """Like logsumexp, but what is added is not what was taken away."""
  s = 10 * x[:, 0, 0]
  return jnp.log(jnp.sum(jnp.exp(x - s[:, None, None]), -1)) + jnp.broadcast_to(s[None], (2, 2))


def shared_denominator(x):
  """Like softmax, but for 64 copies of a row."""
  e = jnp.exp(x)
  return e / jnp.broadcast_to(e.sum(1, keepdims=True), (64, 4))


def permuted_log_softmax(x):
  """Like log_softmax, but the logarithms stand in other rows."""
  total = jnp.log(jnp.sum(jnp.exp(x), -1, keepdims=True))
  return x - lax.reshape(total, total.shape, dimensions=(1, 0, 2))


def scattered(places, f):
  return lambda x: x.at[places].apply(f)


# The function, the argument's shape, and a box where the bound is asked for on one.
CASES = {
  "copies under a gate": (lambda t: jnp.sort(spread(t), 1), (4, 1), None),
  "copies of a number": (lambda t: jnp.sort(spread(t), 1), (), None),
  "copies under silu": (lambda t: jnp.sort(silu_gate(t), 1), (), None),
  "copies in a chain": (silu_gate, (4, 1), None),
  "copies under a maximum": (
    lambda t: jnp.maximum(t + jnp.zeros(SPREAD), -t * jnp.ones(SPREAD)), (), None),
  "copies in a quotient": (
    lambda t: jnp.tanh(t + jnp.zeros(SPREAD)) / (2 + jnp.sin(t * jnp.ones(SPREAD))),
    (1, 1), (-1.0, 1.0)),
  "a function that is applied": (scattered(0, lambda v: 100 * v), (3,), None),
  "one that is not linear": (scattered(slice(None), lambda v: jnp.sin(100 * v)), (3,), None),
  "one that is applied twice": (
    scattered(np.array([0, 0, -1]), lambda v: jnp.tanh(3 * v)), (3,), None),
  "a square of an exponential": (lambda x: jnp.square(2.0**x), (1,), (2.4, 3.9)),
  "a cube of an exponential": (lambda x: jnp.power(2.0, x) ** 3, (1,), (2.4, 3.9)),
  "a shift elsewhere": (shifted_elsewhere, (2, 2, 3), (-1.0, 1.0)),
  "a shared denominator": (shared_denominator, (1, 4), (-1.0, 1.0)),
  "a permuted logarithm": (permuted_log_softmax, (2, 2, 3), (-1.0, 1.0)),
}  # fmt: skip


#: One of each kind in the default run.
QUICK = ("copies in a chain", "one that is not linear", "a cube of an exponential",
         "a shared denominator")  # fmt: skip


@pytest.mark.parametrize(
  "name", [pytest.param(x, marks=[] if x in QUICK else pytest.mark.slow) for x in CASES]
)
def test_no_slope_is_above(name):
  fn, shape, box = CASES[name]
  bound = lipjax.lipschitz_upper_bound(fn, box=box)
  upper = float(compiled(bound)(jnp.zeros(shape, FLOAT) + (np.mean(box) if box else 0)))
  assert steepest(fn, shape, box) <= upper * (1 + 1e-5)


def steepest(fn, shape, box):
  """The largest slope at equal entries and at random ones."""
  low, high = box or (-3.0, 3.0)
  rng = np.random.default_rng(0)
  equal = np.linspace(low, high, 41).reshape((-1,) + (1,) * len(shape)) * np.ones(shape)
  points = np.concatenate([equal, rng.uniform(low, high, (40, *shape))]).astype(FLOAT)
  slopes = jax.jit(jax.vmap(jax.jacfwd(lambda x: fn(x).ravel())))
  try:
    found = np.asarray(slopes(points), np.float64)
  except NotImplementedError:
    # Of a scatter with a function: differences, less what rounding makes of them.
    step = 1e-3
    values = jax.jit(jax.vmap(lambda x: fn(x).ravel()))
    units = np.eye(max(int(np.prod(shape)), 1)).reshape((-1, *shape)) * step
    columns = [(values(points + u) - values(points - u)) / (2 * step) for u in units]
    found = 0.9995 * np.stack(columns, -1).astype(np.float64)
  found = found.reshape((len(points), -1, max(int(np.prod(shape)), 1)))
  return np.linalg.norm(found, 2, axis=(1, 2)).max()


def test_a_radius_is_not_certified_where_the_class_flips():
  logits = lambda t: jnp.stack([silu_gate(t).sum(), jnp.asarray(100.0, FLOAT)])
  x = jnp.asarray(1.5, FLOAT)
  upper = lipjax.lipschitz_upper_bound(logits)
  radius = float(lipjax.certified_radius(logits(x), upper(x)))
  ts = np.linspace(1.5 - radius, 1.5 + radius, 101)
  assert len({int(jnp.argmax(logits(jnp.asarray(t, FLOAT)))) for t in ts}) == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_constants_are_not_rounded_to_the_functions_dtype(dtype):
  x = jnp.zeros(3, dtype)
  assert lipjax.lipschitz_upper_bound(lambda x: x / 7)(x) >= 1 / 7
  gain = jnp.asarray(np.full(3, 1.0078125), dtype)

  def normalized(x):
    mean, var = jnp.mean(x, 1, keepdims=True), jnp.var(x, 1, keepdims=True)
    return (x - mean) * (lax.rsqrt(var + 1) * gain * gain)

  upper = lipjax.lipschitz_upper_bound(normalized)(x[None])
  assert upper >= float(gain[0]) ** 2 * 0.999999


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_products_of_half_precision_on_a_ball(dtype):
  x = jnp.asarray([[0.7, -0.3, 0.2], [0.1, 0.9, -0.4]], dtype)
  upper = float(lipjax.lipschitz_upper_bound(lambda x: x @ x.T, radius=0.1)(x))
  wide = np.asarray(x, np.float64)
  slope = jax.jacobian(lambda x: (x @ x.T).ravel())(jnp.asarray(wide, FLOAT))
  found = np.linalg.norm(np.asarray(slope, np.float64).reshape((4, 6)), 2)
  assert found * (1 - 1e-6) <= upper <= found + 0.5


def test_ranges_are_computed_in_full_precision_whatever_was_asked_for():
  """On a GPU the default precision of a float32 product has 10 bits of mantissa."""
  low = lambda x: lax.dot(jnp.tanh(x), 1.1 * jnp.ones((4, 4)), precision=lax.Precision.DEFAULT)
  bound = lambda x: lipjax.lipschitz_upper_bound(lambda x: jnp.sin(low(x)) * x, radius=0.1)(x)
  text = str(jax.make_jaxpr(bound)(jnp.ones((4, 4), FLOAT)))
  assert "Precision.DEFAULT" not in text


@pytest.mark.parametrize(("exponent", "mantissa"), [(5, 5), (4, 10), (8, 3)])
def test_a_quantizer_has_no_slope(exponent, mantissa):
  with pytest.raises(lipjax.CertifyError, match="quantizer"):
    lipjax.lipschitz_upper_bound(lambda x: lax.reduce_precision(x, exponent, mantissa))(jnp.ones(3))


def test_casts_to_eight_bits_are_quantizers():
  with pytest.raises(lipjax.CertifyError, match="quantizer"):
    lipjax.lipschitz_upper_bound(lambda x: x.astype(jnp.float8_e4m3fn))(jnp.ones(3))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize(
  "fn",
  [
    lambda x, c: x + c,
    lambda x, c: jnp.tanh(c - x),
    lambda x, c: jax.nn.relu(x * c),
    lambda x, c: jnp.sin(jnp.outer(c, c) @ x),
  ],
)
def test_constants_that_are_no_numbers_have_no_finite_bound(fn, is_traced, value):
  c = jnp.asarray([1.0, value, 2.0], FLOAT)
  bound = lambda c, x: lipjax.lipschitz_upper_bound(fn)(x, c)
  bound = jax.jit(bound) if is_traced else bound
  try:
    found = bound(c, jnp.ones(3, FLOAT))
  except lipjax.CertifyError:
    return
  assert found == np.inf


def test_a_constant_is_looked_at_wherever_it_is_used():
  c = jnp.asarray(np.inf, FLOAT)
  assert lipjax.lipschitz_upper_bound(lambda x: jnp.minimum(x + c, c))(jnp.ones(3)) == np.inf


def test_a_mask_of_infinities_is_a_choice():
  mask = jnp.array([True, False, True])
  masked = lambda x: jax.nn.softmax(jnp.where(mask, x, -jnp.inf))
  assert lipjax.lipschitz_upper_bound(masked)(jnp.ones(3, FLOAT)) < 0.51


def test_a_number_alone_on_a_domain():
  x = jnp.asarray(2.0, FLOAT)
  found = lipjax.lipschitz_bounds(jnp.tanh, radius=1.0)(x)
  exact = 1 - np.tanh(1.0) ** 2
  assert found.lower <= exact * (1 + 1e-5)
  assert exact <= found.upper <= 1.05 * exact


def test_what_is_no_radius_is_said():
  with pytest.raises(lipjax.CertifyError, match="radius must be one number"):
    lipjax.lipschitz_upper_bound(jnp.tanh, radius="a")(jnp.ones(3))


def test_the_lower_end_follows_a_function_that_is_applied():
  fn = scattered(0, lambda v: 100 * v)
  assert 99.9 <= lipjax.lipschitz_lower_bound(fn)(jnp.zeros(3, FLOAT)) <= 100.001


def test_the_lower_end_follows_one_in_a_loop():
  turn = lambda x, _: (x.at[0].apply(lambda v: 2 * v), None)
  fn = lambda x: lax.scan(turn, x, None, length=3)[0]
  assert 7.99 <= lipjax.lipschitz_lower_bound(fn)(jnp.ones(3, FLOAT)) <= 8.001


def test_a_function_applied_at_many_places_is_said():
  places = jnp.arange(100) % 3
  with pytest.raises(lipjax.CertifyError, match=r"jnp.where"):
    lipjax.lipschitz_upper_bound(scattered(places, jnp.sin))(jnp.zeros(3))


# ---- broken in review, in the passes that took the place of the rules ----

MASK, FLOAT8 = jnp.array([True, True, False]), jnp.float8_e4m3fn
NAN = jnp.array([1.0, jnp.nan, 2.0])


def after_quantizer(x):
  return x.astype(FLOAT8).astype(x.dtype)


def filled_inverse(x):
  """Like softmax, but for a number that a gather fills in."""
  inverse = (1 / jnp.exp(x).sum()).reshape(1)
  return jnp.exp(x) * inverse.at[jnp.array([0, 0, 5])].get(mode="fill", fill_value=30.0)


def filled_logarithm(x):
  rows = jnp.log(jnp.exp(x).sum(1))
  return x - rows.at[jnp.array([0, 7])].get(mode="fill", fill_value=0.0)[:, None]


def imaginary_constant(x):
  z = jnp.concatenate([jnp.fft.fft(x), 5j * jnp.ones(3)])
  return jnp.imag(z)[2:5] * x


def gated(row):
  return lambda x: row(x) * jnp.tanh(x[::-1])


LATER = {
  "masked terms": (gated(lambda x: jax.nn.logsumexp(x, where=MASK)), (3,), (-9.0, -8.0)),
  "weighted terms": (
    gated(lambda x: jax.nn.logsumexp(x, b=jnp.array([1e-3, 2e-3, 1e-3]))), (3,), (-1.0, 1.0)),
  "a factor that is filled in": (filled_inverse, (3,), (-1.0, 1.0)),
  "a logarithm that is filled in": (filled_logarithm, (2, 3), (-1.0, 1.0)),
  "an imaginary constant": (imaginary_constant, (3,), (-1.0, 1.0)),
  "a complex padding": (
    lambda x: jnp.imag(lax.pad(jnp.fft.fft(x), jnp.complex64(3j), [(1, 1, 0)]))[:3] * x,
    (3,), (-1.0, 1.0)),
  "tiny complex numbers": (
    lambda x: 1e20 * jnp.fft.ifft(jnp.fft.fft(x) * (1e-25 + 1e-25j)).real, (3,), None),
  "a traced branch of two": (
    lambda x: jnp.abs(lax.cond(True, lambda z: z * 1j, lambda z: z, jnp.fft.fft(x))), (3,), None),
}  # fmt: skip


def interp(x, xp, fp):
  return 100 * x * xp[0] * fp[0]


LATER |= {
  "places out of bounds": (lambda x: (jnp.tanh(x) + x)[jnp.array([5, 5, 5, 5])], (2,), None),
  "complex places out of bounds": (
    lambda x: (z := jnp.fft.fft(x), (jnp.tanh(x) * z + z)[jnp.array([5, 5, 5, 5])].real)[1],
    (2,), (-0.1, 0.1)),
  "a function called interp": (
    lambda x: jax.jit(interp)(x, jnp.ones(2), jnp.ones(2)), (3,), None),
  "another one": (lambda x: jax.jit(interp)(x, jnp.ones((1, 2)), jnp.ones(3)).ravel(), (2,), None),
}  # fmt: skip


@pytest.mark.parametrize("name", LATER)
def test_no_slope_is_above_what_review_broke(name):
  fn, shape, box = LATER[name]
  upper = float(lipjax.lipschitz_upper_bound(fn, box=box)(jnp.full(shape, sum(box or (0, 0)) / 2)))
  low, high = box or (-2.0, 2.0)
  rng = np.random.default_rng(0)
  points = jnp.asarray(rng.uniform(low, high, (256, *shape)), jnp.float32)
  slopes = jax.jit(jax.vmap(jax.jacfwd(lambda x: jnp.ravel(fn(x)))))(points)
  matrices = np.asarray(slopes, np.float64).reshape((256, -1, math.prod(shape)))
  assert np.linalg.norm(matrices, 2, axis=(1, 2)).max() <= upper * (1 + 1e-4) < np.inf


NO_NUMBERS = {
  "a limit for each": lambda x: jnp.maximum(x, NAN),
  "a limit": lambda x: jnp.maximum(x, jnp.nan),
  "a slope for each": lambda x: jnp.where(x > 0, x, NAN * x),
  "under a maximum": lambda x: jnp.maximum(x + jnp.inf, -x),
  "a sum in a gate": lambda x: (x + jnp.inf) * jax.nn.sigmoid(x),
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_constants_inside_of_scalar_functions_are_looked_at(name):
  with contextlib.suppress(lipjax.CertifyError):
    assert lipjax.lipschitz_upper_bound(NO_NUMBERS[name])(jnp.zeros(3)) == np.inf


REFUSED = {
  "a quantizer in a gate": lambda x: after_quantizer(x) * jax.nn.sigmoid(x),
  "a quantizer under a maximum": lambda x: jnp.maximum(after_quantizer(x), x),
  "a quantizer in softmax": lambda x: (
    jnp.exp(x) / jnp.broadcast_to(after_quantizer(jnp.exp(x).sum()), x.shape)),
  "a complex kernel": lambda x: jnp.abs(
    lax.conv(jnp.fft.fft(x)[None, None], jnp.array([[[1 + 10j, 2j]]], jnp.complex64),
             (1,), "VALID")),
  "a complex function in a scatter": lambda x: (
    jnp.abs(jnp.fft.fft(x).at[0].apply(lambda z: z * z))),
  "complex rows of a loop": lambda x: jnp.abs(
    lax.scan(lambda c, _: (c * 1j, c), jnp.fft.fft(x), None, length=3)[1]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused(name):
  with pytest.raises(lipjax.CertifyError):
    lipjax.lipschitz_upper_bound(REFUSED[name], box=(-1.0, 1.0))(jnp.zeros(3))


def test_nothing_moves_without_entries():
  fn = lambda x: (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + 1)
  assert lipjax.lipschitz_upper_bound(fn)(jnp.zeros((0, 3))) == 0
  with pytest.raises(lipjax.CertifyError):  # and a failure is none of that
    lipjax.lipschitz_upper_bound(lambda x: jnp.argmax(x) + 0.0)(jnp.zeros(3))


def test_multiples_of_one_array_are_added_before_they_are_bounded():
  """In arrays that are too large for their matrices to be looked at."""
  big = lambda fn: float(lipjax.lipschitz_upper_bound(fn)(jnp.zeros(5000)))
  assert big(lambda x: x - (x + 1)) == 0
  assert big(lambda x: (1 - x) + (x + 2)) == 0
  assert big(lambda x: x - (-x)) == pytest.approx(2, rel=1e-5)


TWICE = jnp.array([0, 0])
CRASHED = {
  "sums in half precision": lambda x: jnp.tanh(x.at[TWICE].add(jnp.sin(x[:2]))),
  "minima in half precision": lambda x: jnp.tanh(x.at[TWICE].min(jnp.sin(x[:2]))),
  "factors in half precision": lambda x: x.at[TWICE].multiply(jnp.full(2, 1.5, x.dtype)),
  "complex numbers that are filled in": lambda x: (
    jnp.abs(jnp.take(jnp.fft.fft(x.astype(jnp.float32)), jnp.array([0, 7]), 0, mode="fill",
                     fill_value=1 + 2j)) * x[0]),
}  # fmt: skip


@pytest.mark.parametrize("box", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("name", CRASHED)
def test_what_crashed_has_a_bound_or_a_message(name, box):
  with contextlib.suppress(lipjax.CertifyError):
    upper = lipjax.lipschitz_upper_bound(CRASHED[name], box=box)
    assert 1 <= float(upper(jnp.zeros(3, jnp.bfloat16))) < 20
