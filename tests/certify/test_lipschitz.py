"""The upper bound of functions whose constant is known, and of those that try to fool it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from reference import FLOAT, jacobian, normal, top_sigma

import lipjax


def upper(fn, *shapes, dtype=FLOAT):
  return float(lipjax.lipschitz_upper_bound(fn)(*(jnp.zeros(s, dtype) for s in shapes)))


def exact(value, rtol=1e-5):
  return pytest.approx(value, rel=rtol, abs=1e-30)


A, B, C = normal(0, (5, 6)), normal(1, (6, 7)), normal(2, (5, 7))
KERNEL, TAPS = normal(3, (3, 3, 2, 4)), normal(4, (4,))


def conv(x, kernel, strides=1, padding="SAME"):
  numbers = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(x, kernel, (strides,) * 2, padding, dimension_numbers=numbers)


def dense_norm(fn, shape):
  """Exact for a linear function."""
  return top_sigma(jacobian(fn, np.zeros(shape, FLOAT)))


LINEAR = {
  "two products": (lambda x: x @ A @ B, (5,)),
  "a batch of them": (lambda x: x @ A @ B, (3, 5)),
  "branches": (lambda x: x @ A @ B - 2 * (x @ C), (5,)),
  "a shared ancestor": (lambda x: (y := x @ A) @ B + y @ B / 3, (5,)),
  "convolution": (lambda x: conv(x, KERNEL), (1, 6, 6, 2)),
  "folded batch norm": (lambda x: (conv(x, KERNEL) - 0.3) * TAPS + 2, (1, 6, 6, 2)),
  "strided": (lambda x: conv(x, KERNEL, 2, "VALID"), (2, 7, 7, 2)),
  "mean": (lambda x: x.mean(axis=(1, 2)) @ KERNEL[0, 0], (1, 4, 4, 2)),
  "entries": (lambda x: jnp.roll(x[::-1], 2)[1:] * jnp.arange(4.0), (5,)),
  "twice the same": (lambda x: jnp.concatenate([x, x, x[:2]]), (5,)),
  "take": (lambda x: x[jnp.array([0, 0, 0, 2])], (5,)),
  "cumulative": (lambda x: jnp.cumsum(x), (9,)),
  "einsum": (lambda x: jnp.einsum("abc,cd->bad", x, A), (2, 3, 5)),
  "scan": (lambda x: lax.scan(lambda h, w: (h @ w, None), x, jnp.stack([A[:, :5]] * 3))[0], (5,)),
  "fori_loop": (lambda x: lax.fori_loop(0, 3, lambda _, h: h @ A[:, :5], x), (5,)),
  "cond": (lambda x: lax.cond(A[0, 0] > 9, lambda x: 9 * x @ A, lambda x: x @ A, x), (5,)),
  "pad and slice": (lambda x: jnp.pad(x, 3)[1:-2] * 2, (5,)),
}


@pytest.mark.first(8)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_functions_are_exact(name):
  fn, shape = LINEAR[name]
  truth = dense_norm(fn, shape)
  found = upper(fn, shape)
  assert found >= truth * (1 - 1e-12)
  # The matrices of small compositions are exact; a convolution's own norm is too.
  assert found == exact(truth, 1e-4)


def test_what_cancels_is_zero():
  assert upper(lambda x: x - x, (5,)) == 0
  assert upper(lambda x: x @ A - x @ A, (5,)) < 1e-4
  assert upper(lambda x: 3 * jnp.ones(2), (5,)) == 0
  big = normal(7, (3, 3, 8, 8))
  assert upper(lambda x: conv(x, big) - conv(x, big), (1, 32, 32, 8)) >= 0


SCALARS = {
  "relu": (jax.nn.relu, 1),
  "gelu": (functools.partial(jax.nn.gelu, approximate=False), 1.128904146),
  "gelu, tanh": (functools.partial(jax.nn.gelu, approximate=True), 1.128993069),
  "silu": (jax.nn.silu, 1.099839321),
  "mish": (jax.nn.mish, 1.088498162),
  "selu": (jax.nn.selu, 1.758099341),
  "hard_swish": (jax.nn.hard_swish, 1.5),
  "sigmoid": (jax.nn.sigmoid, 0.25),
  "leaky_relu": (lambda x: jax.nn.leaky_relu(x, -3.0), 3),
  "by hand": (lambda x: 0.5 * x * (1 + jnp.tanh(x / 2)), 1.099839321),
}


@pytest.mark.first(4)
@pytest.mark.parametrize("name", SCALARS)
def test_activations(name):
  fn, slope = SCALARS[name]
  assert upper(fn, (5,)) == exact(slope, 1e-3)
  assert upper(lambda x: fn(2 * x + 1) * 3, (5,)) == exact(6 * slope, 1e-3)


OTHERS = {
  "softmax": (jax.nn.softmax, (5,), 0.5),
  "softmax of an axis": (lambda x: jax.nn.softmax(x, axis=0), (5, 3), 0.5),
  "logsumexp": (jax.nn.logsumexp, (5,), 1),
  "log_softmax": (jax.nn.log_softmax, (2, 5), 5**0.5),
  "max": (lambda x: jnp.max(x, axis=0), (5, 2), 1),
  "sort": (jnp.sort, (5,), 1),
  "maximum": (lambda x: jnp.maximum(x, x[::-1]), (4,), 2**0.5),
  "max pool 2×2/2": (lambda x: pool(x, 2, 2), (1, 8, 8, 2), 1),
  "max pool 3×3/2": (lambda x: pool(x, 3, 2), (1, 8, 8, 2), 2),
  "max pool 3×3/1": (lambda x: pool(x, 3, 1), (1, 8, 8, 2), 3),
}


def pool(x, size, stride):
  window, strides = (1, size, size, 1), (1, stride, stride, 1)
  return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, "SAME")


@pytest.mark.parametrize("name", OTHERS)
def test_functions_of_several_entries(name):
  fn, shape, constant = OTHERS[name]
  assert constant <= upper(fn, shape) <= constant * (1 + 1e-4)


def test_a_softmax_that_is_none_is_not_taken_for_one():
  def transposed(x):
    e = jnp.exp(x)
    return e / e.sum(axis=1)[None, :]

  with pytest.raises(ValueError, match="exp"):
    upper(transposed, (3, 3))


def test_names_say_nothing():
  def silu(x):
    return 7 * x

  assert upper(jax.jit(silu), (5,)) == exact(7)


@pytest.mark.thorough
def test_derivative_rules_say_nothing():
  @jax.custom_vjp
  def identity(x):
    return x

  identity.defvjp(lambda x: (x, None), lambda _, g: (100 * g,))

  @jax.custom_jvp
  def triple(x):
    return 3 * x

  triple.defjvp(lambda primals, tangents: (3 * primals[0], 0 * tangents[0]))
  for fn, constant in ((identity, 1), (triple, 3), (lax.stop_gradient, 1)):
    bounds = lipjax.lipschitz_bounds(fn)(jnp.ones(4))
    assert float(bounds.lower) == exact(constant, 1e-4)
    assert float(bounds.upper) == exact(constant, 1e-4)


FAIL = {
  "exp": (lambda x: jnp.exp(x), "exp"),
  "square": (lambda x: x**2, "integer_pow|square|mul"),
  "product": (lambda x: x * x[::-1], "mul"),
  "attention": (lambda x: jax.nn.softmax(x @ x.T) @ x, "dot_general"),
  "division": (lambda x: x / jnp.linalg.norm(x), "div"),
  "argmax": (lambda x: jnp.argmax(x).astype(float), "argmax"),
  "step": (lambda x: jnp.where(x > 0, 1.0, 0.0), "jump"),
  "fft": (lambda x: jnp.exp(jnp.fft.fft(x)).real, "complex"),
}


@pytest.mark.parametrize("name", FAIL)
def test_what_has_no_bound_raises(name):
  fn, what = FAIL[name]
  with pytest.raises(ValueError, match=what):
    upper(fn, (4, 4) if name == "attention" else (4,))


def test_what_is_not_used_does_not_raise():
  assert upper(lambda x: (jnp.exp(x), x)[1], (4,)) == 1


@pytest.mark.thorough
def test_homogeneity():
  net = lambda scale: lambda x: jax.nn.relu(x @ (scale * A)) @ B
  one = upper(net(1.0), (5,))
  for scale in (1e-20, 1e-3, 1e6, 1e15):
    assert upper(net(scale), (5,)) == exact(scale * one, 1e-4)
  assert upper(net(0.0), (5,)) == 0


def test_pytrees_of_arguments_and_results():
  def fn(params, x):
    return {"a": x["u"] @ params, "b": [x["v"], 2 * x["v"]]}

  x = {"u": jnp.zeros(5), "v": jnp.zeros(3)}
  found = float(lipjax.lipschitz_upper_bound(fn, argnums=1)(A, x))
  truth = max(top_sigma(np.asarray(A, np.float64)), 5**0.5)
  assert truth <= found <= np.hypot(top_sigma(np.asarray(A, np.float64)), 5**0.5) * (1 + 1e-4)


def test_the_argument_must_be_floating():
  with pytest.raises(ValueError, match="int32"):
    lipjax.lipschitz_upper_bound(lambda i: i)(jnp.arange(3))
  with pytest.raises(ValueError, match="argnums"):
    lipjax.lipschitz_upper_bound(lambda x: x, argnums=2)(jnp.ones(3))


def test_jit_and_gradient_in_the_parameters():
  def net(params, x):
    return jax.nn.relu(x @ params["a"] + 1) @ params["b"]

  bound = lambda params: lipjax.lipschitz_upper_bound(net, argnums=1)(params, jnp.zeros(5))
  params = {"a": A, "b": B}
  value, gradient = jax.jit(jax.value_and_grad(bound))(params)
  assert float(value) == exact(float(bound(params)), 1e-4)
  # The bound is of degree 1 in each weight.
  for name, leaf in params.items():
    assert float(jnp.vdot(gradient[name], leaf)) == exact(float(value), 2e-2)
