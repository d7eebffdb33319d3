"""Layers of norm 1 by construction: from any raw weights, by float64 SVDs and by our certifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import thorough
from reference import dense_convolution, normal, top_sigma

import lipjax
from lipjax import Convolution, Dense

EPS = 2.0**-23
KINDS = ("normal", "huge", "tiny", "zero", "rank one", "large")
MAPS = ("cayley", "exponential")


def draw(kind, seed, shape):
  """Raw weights that a parametrization could fail on."""
  w = normal(seed, shape)
  return {
    "normal": w,
    "huge": 1e30 * w,
    "tiny": 1e-30 * w,
    "zero": 0 * w,
    "rank one": jnp.ones_like(w),
    "large": 100 * w,
  }[kind]


def sigmas(matrix):
  return np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)


def slopes(layer, shape, n=50):
  """The largest norms of float64 Jacobians, activations at random sides."""
  with jax.enable_x64(True):
    jacobian = jax.jit(jax.jacobian(layer))
    points = np.random.default_rng(0).normal(size=(n, *shape)) * np.linspace(0.01, 9, n)[:, None]
    return max(sigmas(jacobian(jnp.asarray(x))).max() for x in points.reshape(n, *shape))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", MAPS)
def test_mapped_weights_are_orthogonal(method, kind):
  layout = {"square": Dense(), "tall": Dense(), "wide": Dense(), "heads": Dense((0,), (1, 2))}
  layout |= {"stack": Dense((1,), (2,), (0,))}
  shapes = {
    "square": (6, 6),
    "tall": (4, 9),
    "wide": (9, 4),
    "heads": (8, 2, 2),
    "stack": (3, 5, 4),
  }
  raw = {name: draw(kind, i, shape) for i, (name, shape) in enumerate(shapes.items())}
  found = lipjax.orthogonal_map(raw, method=method, layout=layout)
  for name, w in found.items():
    assert w.shape == raw[name].shape
    matrices = np.asarray(w).reshape((-1, *w.shape[-2:]) if name == "stack" else (1, len(w), -1))
    rank = min(matrices.shape[-2:])
    found = np.linalg.svd(np.asarray(matrices, np.float64), compute_uv=False)
    np.testing.assert_allclose(found, 1, rtol=0, atol=4 * EPS * rank**0.5)


@pytest.mark.parametrize("shape", [(256, 256), (300, 64)])
@pytest.mark.parametrize("method", MAPS)
def test_large_mapped_weights_are_orthogonal(method, shape):
  for scale in (0.1, 1, 30):
    found = lipjax.orthogonal_map({"kernel": scale * normal(0, shape)}, method=method)["kernel"]
    np.testing.assert_allclose(sigmas(found), 1, rtol=0, atol=4 * EPS * min(shape) ** 0.5)


@pytest.mark.parametrize("method", MAPS)
def test_maps_are_what_they_say(method):
  raw = normal(0, (5, 3))
  found = lipjax.orthogonal_map({"w": raw}, method=method, layout={"w": Dense((1,), (0,))})["w"]
  with jax.enable_x64(True):
    u, v = jnp.asarray(raw[:3], float), jnp.asarray(raw[3:], float)
    a = u - u.T + v.T @ v
    inverse = jnp.linalg.inv(jnp.eye(3) + a)
    expected = jnp.concatenate([(jnp.eye(3) - a) @ inverse, -2 * v @ inverse])
    if method == "exponential":
      full = jnp.zeros((5, 5)).at[:, :3].set(jnp.asarray(raw, float))
      expected = jax.scipy.linalg.expm(full - full.T)[:, :3]
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("method", MAPS)
def test_derivatives_of_maps(method):
  total = lambda w: jnp.sum(jnp.sin(lipjax.orthogonal_map({"kernel": w}, method=method)["kernel"]))
  raw, direction, step = normal(0, (4, 6)), normal(1, (4, 6)), 1e-2
  slope = jnp.vdot(jax.grad(total)(raw), direction)
  moved = [total(raw + sign * step * direction) for sign in (1, -1)]
  assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(float(slope), rel=1e-2)
  for kind in KINDS:
    assert jnp.isfinite(jax.grad(total)(draw(kind, 0, (4, 6)))).all(), kind


def test_maps_of_other_leaves_and_errors():
  raw = {"scale": jnp.array([0.5, -3.0]), "bias": jnp.ones(2), "kernel": jnp.full((2, 2), jnp.nan)}
  found = lipjax.orthogonal_map(raw)
  np.testing.assert_array_equal(found["scale"], [1, -1])
  np.testing.assert_array_equal(found["bias"], raw["bias"])
  assert np.isnan(found["kernel"]).all()
  for method in MAPS:
    raw_half = {"kernel": normal(0, (4, 4)).astype(jnp.bfloat16)}
    half = lipjax.orthogonal_map(raw_half, method=method)["kernel"]
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(sigmas(half), 1, rtol=0, atol=4 * 2**-7 * 2)
  with pytest.raises(ValueError, match="method is 'qr'; expected one of 'cayley', 'exponential'"):
    lipjax.orthogonal_map(raw, method="qr")
  with pytest.raises(ValueError, match="is no matrix"):
    lipjax.orthogonal_map({"w": jnp.ones((3, 3, 1, 1))}, layout={"w": Convolution((4, 4))})


def sll(raw):
  return lipjax.sll_kernels(raw[0], raw[1])


def cpl(raw):
  return lipjax.cpl_kernels(raw[0])


def sandwich(raw):
  return lipjax.sandwich_kernels(jnp.concatenate([raw[2], raw[0]]), raw[1])


def layer_of(kernels, raw, activation=jax.nn.relu):
  inner, outer = kernels(raw)
  is_residual = kernels is not sandwich

  def layer(x):
    y = activation(x @ inner.astype(x.dtype) + 0.1) @ outer.astype(x.dtype)
    return x - y if is_residual else y

  return layer


def raw_of(kind, inputs, hidden):
  shapes = (inputs, hidden), (hidden,), (hidden, hidden)
  return [draw(kind, i, shape) for i, shape in enumerate(shapes)]


LAYERS = (sll, cpl, sandwich)


@pytest.mark.first(12)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", LAYERS)
def test_layers_have_slopes_of_at_most_one(kernels, kind):
  for inputs, hidden in ((6, 9), (5, 3), (1, 1)):
    raw = raw_of(kind, inputs, hidden)
    assert slopes(layer_of(kernels, raw), (inputs,)) <= 1 + 4 * EPS * hidden**0.5


@pytest.mark.first(2)
@pytest.mark.parametrize(
  "activation", [jax.nn.relu, pytest.param(jnp.tanh, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kernels", LAYERS)
def test_our_certifier_proves_layers(kernels, activation):
  layer = layer_of(kernels, raw_of("normal", 8, 12), activation)
  bound = lambda effort: float(lipjax.lipschitz_upper_bound(layer, effort=effort)(jnp.zeros(8)))
  assert 0.9 <= bound("default") <= (1.1 if kernels is sandwich else 1.02)
  assert bound("tight") <= (1.005 if kernels is sandwich else 1.001)


@pytest.mark.first(1)
@pytest.mark.parametrize("kernels", LAYERS)
def test_half_precision_and_derivatives_of_layers(kernels):
  raw = raw_of("normal", 6, 9)
  half = [x.astype(jnp.bfloat16) for x in raw]
  inner, outer = kernels(half)
  assert inner.dtype == outer.dtype == jnp.bfloat16
  assert slopes(layer_of(kernels, half), (6,)) <= 1 + 4 * 3 * 2**-7
  for kind in KINDS:
    total = lambda raw: sum(jnp.sum(jnp.sin(x)) for x in kernels(raw))
    for slope in jax.grad(total)(raw_of(kind, 6, 9)):
      assert jnp.isfinite(slope).all(), kind
  assert np.isnan(kernels([x * jnp.nan for x in raw])[1]).all()


def test_scales_are_those_of_the_papers():
  kernel, log_scale = normal(0, (4, 6)), normal(1, (6,))
  q = np.exp(np.asarray(log_scale))
  t = np.abs(np.asarray(kernel.T @ kernel)) @ q / q
  _, outer = lipjax.sll_kernels(kernel, log_scale)
  np.testing.assert_allclose(outer, 2 * kernel.T / t[:, None], rtol=1e-4)
  _, outer = lipjax.cpl_kernels(kernel)
  exact = 2 * np.asarray(kernel.T, np.float64) / top_sigma(kernel) ** 2
  np.testing.assert_array_less(outer / exact, 1)  # never by less than the norm
  np.testing.assert_array_less(1 / 1.01**2 - 1e-5, outer / exact)
  raw = normal(2, (10, 6))
  q = lipjax.orthogonal_map({"w": raw}, layout={"w": Dense((1,), (0,))})["w"]
  scale = jnp.exp(log_scale)
  inner, outer = lipjax.sandwich_kernels(raw, log_scale)
  np.testing.assert_allclose(inner, 2**0.5 * q[6:] / scale, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(outer, 2**0.5 * scale[:, None] * q[:6].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
@pytest.mark.parametrize("kind", ["normal", "huge", "alternating", "zero"])
def test_residual_convolutions(kind, padding):
  w = normal(0, (3, 3, 2, 4))
  signs = (-1.0) ** jnp.arange(w.size).reshape(w.shape)
  w = jnp.abs(w) * signs if kind == "alternating" else draw(kind, 0, w.shape)
  inner, outer = lipjax.sll_kernels(w, normal(1, (4,)))
  matrices = [
    dense_convolution(Convolution((5, 4), padding=padding), np.asarray(x, np.float64))[0]
    for x in (inner, outer)
  ]
  # The second one is the adjoint of the first one, but for its scales.
  for seed in range(20):
    on = np.random.default_rng(seed).integers(0, 2, len(matrices[0]))
    jacobian = np.eye(matrices[0].shape[1]) - matrices[1] @ (on[:, None] * matrices[0])
    assert top_sigma(jacobian) <= 1 + 4 * EPS * 4**0.5


@pytest.mark.first(6)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  "shape",
  [(3, 3, 4, 4), (3, 3, 2, 5), *map(thorough, [(2, 5, 3, 3), (3, 3, 5, 2), (4, 1, 1)])],
)
def test_orthogonal_convolutions(shape, kind):
  *taps, inputs, outputs = shape
  channels, size = max(inputs, outputs), (6, 6)[: len(taps)]
  raw = draw(kind, 0, (1 + sum(n - 1 for n in taps), channels, channels))
  kernel = lipjax.orthogonal_convolution(raw, shape)
  assert kernel.shape == shape
  circle = dense_convolution(Convolution(size, padding="CIRCULAR"), kernel)[0]
  found, margin = sigmas(circle), 4 * EPS * channels**0.5 * len(raw)
  assert found.max() <= 1 + margin
  if inputs <= outputs:
    np.testing.assert_allclose(found, 1, rtol=0, atol=margin)
  assert top_sigma(dense_convolution(Convolution(size), kernel)) <= 1 + margin
  total = lambda raw: jnp.sum(jnp.sin(lipjax.orthogonal_convolution(raw, shape)))
  assert jnp.isfinite(jax.grad(total)(raw)).all()


def test_our_certifier_proves_orthogonal_convolutions():
  raw = normal(0, (5, 4, 4))
  half = lipjax.orthogonal_convolution(raw.astype(jnp.bfloat16), (3, 3, 4, 4))
  assert half.dtype == jnp.bfloat16
  circle = dense_convolution(Convolution((6, 6), padding="CIRCULAR"), half)
  np.testing.assert_allclose(sigmas(circle), 1, rtol=0, atol=4 * 2**-7 * 2 * 5)
  kernel = lipjax.orthogonal_convolution(raw, (3, 3, 4, 4))

  def layer(x):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims)

  assert lipjax.lipschitz_upper_bound(layer)(jnp.zeros((1, 6, 6, 4))) <= 1.001


def test_errors():
  whole = jnp.ones((3, 2), jnp.int32)
  for kernels in (lipjax.sll_kernels, lipjax.cpl_kernels, lipjax.sandwich_kernels):
    with pytest.raises(ValueError, match="has dtype int32; expected floating-point numbers"):
      kernels(whole)
  for shape in ((3,), (3, 3), (0, 3, 3)):
    with pytest.raises(ValueError, match=r"expected \(\*taps, inputs, outputs\), each at least 1"):
      lipjax.orthogonal_convolution(jnp.ones((1, 3, 3)), shape)
  with pytest.raises(ValueError, match=r"kernel has shape \(2, 3, 3\); expected \(\*taps, inputs"):
    lipjax.sll_kernels(jnp.ones((2, 3, 3)))
  with pytest.raises(ValueError, match=r"log_scale has shape \(2,\); expected \(3,\)"):
    lipjax.sll_kernels(jnp.ones((2, 3)), jnp.ones(2))
  with pytest.raises(ValueError, match="Convolutions: sll_kernels"):
    lipjax.cpl_kernels(jnp.ones((3, 3, 3)))
  for raw in (jnp.ones((3, 3)), jnp.ones(3)):
    with pytest.raises(ValueError, match=r"expected \(hidden \+ inputs, hidden\)"):
      lipjax.sandwich_kernels(raw)
  with pytest.raises(ValueError, match=r"log_scale has shape \(2,\)"):
    lipjax.sandwich_kernels(jnp.ones((5, 3)), jnp.ones(2))
  with pytest.raises(
    ValueError, match=r"expected \(5, 4, 4\) for a kernel of shape \(3, 3, 2, 4\)"
  ):
    lipjax.orthogonal_convolution(jnp.ones((5, 2, 4)), (3, 3, 2, 4))


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_derivatives_of_the_cayley_map_are_those_of_its_formula(shape):
  """Of first and second order: the steps against rounding count as the identity."""

  def formula(w):
    tall = w if shape[0] >= shape[1] else w.T
    m = tall.shape[1]
    a = tall[:m] - tall[:m].T + tall[m:].T @ tall[m:]
    inverse = jnp.linalg.solve(jnp.eye(m) + a, jnp.eye(m))
    q = jnp.concatenate([2 * inverse - jnp.eye(m), -2 * tall[m:] @ inverse])
    return q if shape[0] >= shape[1] else q.T

  ours = lambda w: lipjax.orthogonal_map({"kernel": w})["kernel"]
  w, by = normal(0, shape), normal(1, shape)
  of = lambda fn: lambda w: jnp.sum(jnp.sin(fn(w) * by))
  np.testing.assert_allclose(ours(w), formula(w), atol=1e-6)
  for derivative in (jax.grad, jax.hessian):
    np.testing.assert_allclose(derivative(of(ours))(w), derivative(of(formula))(w), atol=2e-5)
