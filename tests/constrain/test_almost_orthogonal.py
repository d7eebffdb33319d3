"""Almost-orthogonal weights: norms of at most 1, by dense matrices and by our own certifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import dense_convolution, normal, top_sigma

import lipjax
from lipjax import Convolution, Dense

OPERATORS = {
  "tall": (Dense(), (6, 20)),
  "wide": (Dense(), (20, 6)),
  "attention": (Dense((0,), (1, 2)), (8, 2, 4)),
  "stacked": (Dense((1,), (2,), (0,)), (3, 5, 4)),
  "same": (Convolution((6, 5)), (3, 3, 2, 4)),
  "narrowing": (Convolution((6, 6)), (3, 3, 4, 2)),
  "valid": (Convolution((6, 6), padding="VALID"), (3, 2, 2, 2)),
  "circular": (Convolution((6, 6), padding="CIRCULAR"), (3, 3, 2, 3)),
  "wrapped": (Convolution((4,), padding="CIRCULAR"), (7, 2, 3)),
  "strided": (Convolution((8, 8), strides=2), (4, 4, 2, 5)),
  "dilated": (Convolution((9,), kernel_dilation=2, padding=3), (3, 2, 2)),
  "grouped": (Convolution((6, 6), feature_group_count=2), (3, 3, 2, 6)),
  "depthwise": (Convolution((6, 6), feature_group_count=4), (3, 3, 1, 4)),
  "transposed": (Convolution.transposed((4, 4), (3, 3), strides=2), (3, 3, 3, 2)),
  "torch": (Convolution((5, 5), in_axis=1, out_axis=0), (3, 2, 3, 3)),
  "layers": (Convolution((5,), batch_axes=(1,)), (3, 2, 2, 4)),
}
LAYOUT = {name: operator for name, (operator, _) in OPERATORS.items()}


def norms(name, w):
  """In float64, of all slices."""
  operator, w = LAYOUT[name], np.asarray(w, np.float64)
  if isinstance(operator, Dense):
    with jax.enable_x64(True):
      return np.linalg.norm(np.asarray(operator.matrix(jnp.asarray(w))), 2, axis=(-2, -1))
  if operator.batch_axes:
    slices = np.moveaxis(w, operator.batch_axes[0], 0)
    return [top_sigma(dense_convolution(operator.slice_operator(), x)) for x in slices]
  return top_sigma(dense_convolution(operator, w))


def draw(kind, seed, shape):
  """Raw weights that a bound could fail on."""
  w = normal(seed, shape)
  match kind:
    case "huge":
      return 1e30 * w
    case "tiny":
      return 1e-30 * w
    case "rank one":
      return jnp.ones_like(w)
    case "alternating":  # partial sums are larger than whole ones
      return w * (-1.0) ** jnp.arange(w.size).reshape(shape)
  return w


@pytest.mark.parametrize("kind", ["normal", "huge", "tiny", "rank one", "alternating"])
def test_norms_are_at_most_one(kind):
  raw = {name: draw(kind, i, shape) for i, (name, (_, shape)) in enumerate(OPERATORS.items())}
  for name, w in lipjax.almost_orthogonalize(raw, layout=LAYOUT).items():
    assert w.shape == raw[name].shape
    found = np.asarray(norms(name, w))
    assert np.all(found <= 1 + 1e-6), name
    assert np.all(found > 0.2), name


def test_orthogonal_weights_and_alone_taps_have_norm_one():
  q = lipjax.orthogonalize({"kernel": normal(0, (8, 5))})["kernel"]
  found = lipjax.almost_orthogonalize({"kernel": 7 * q})["kernel"]
  np.testing.assert_allclose(found, q, atol=1e-4)
  pixel = {"kernel": jnp.zeros((3, 3, 5, 8)).at[1, 1].set(3 * q.T)}
  layout = {"kernel": Convolution((6, 6))}
  found = lipjax.almost_orthogonalize(pixel, layout=layout)["kernel"]
  np.testing.assert_allclose(found[1, 1], q.T, atol=1e-4)
  assert not found[0].any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
  eps = float(jnp.finfo(dtype).eps)
  raw = {"same": normal(0, (3, 3, 2, 4)).astype(dtype), "tall": normal(1, (6, 20)).astype(dtype)}
  layout = {name: LAYOUT[name] for name in raw}
  for name, w in lipjax.almost_orthogonalize(raw, layout=layout).items():
    assert w.dtype == dtype
    assert norms(name, w) <= 1 + 4 * eps * 3


def test_our_certifier_proves_it():
  raw = {"dense": {"kernel": normal(0, (12, 12))}, "conv": {"kernel": normal(1, (3, 3, 3, 3))}}
  params = lipjax.almost_orthogonalize(
    raw, layout={"dense/kernel": Dense(), "conv/kernel": Convolution((4, 1))}
  )

  def layer(x):
    image = x.reshape((1, 4, 1, 3))
    kernel = params["conv"]["kernel"]
    image = jax.lax.conv_general_dilated(
      image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(image.ravel()) @ params["dense"]["kernel"]

  assert lipjax.lipschitz_upper_bound(layer)(jnp.zeros(12)) <= 1 + 1e-5


def test_derivatives_are_finite_and_right():
  raw = {"kernel": normal(0, (5, 4))}
  total = lambda raw: jnp.sum(jnp.sin(lipjax.almost_orthogonalize(raw)["kernel"]))
  slope = jax.grad(total)(raw)["kernel"]
  step = 1e-2
  moved = lambda sign: total({"kernel": raw["kernel"] + sign * step * slope})
  assert (moved(1) - moved(-1)) / (2 * step) == pytest.approx(float(jnp.sum(slope**2)), rel=1e-2)
  zeros = {"kernel": jnp.zeros((3, 3, 2, 2))}
  layout = {"kernel": Convolution((4, 4))}
  of = lambda raw: jnp.sum(lipjax.almost_orthogonalize(raw, layout=layout)["kernel"])
  assert of(zeros) == 0
  assert np.isfinite(jax.grad(of)(zeros)["kernel"]).all()


def test_scales_other_leaves_and_errors():
  raw = {"scale": jnp.array([0.5, -3.0, 0.0]), "bias": jnp.ones(2)}
  found = lipjax.almost_orthogonalize(raw)
  np.testing.assert_array_equal(found["scale"], [1, -1, 0])
  np.testing.assert_array_equal(found["bias"], raw["bias"])
  nan = {"kernel": jnp.ones((2, 2)).at[0, 0].set(jnp.nan)}
  assert np.isnan(lipjax.almost_orthogonalize(nan)["kernel"]).any()
  for options in ({"padding": "REFLECT"}, {"padding": 3, "padding_mode": "circular"}):
    layout = {"kernel": Convolution((6, 6), **options)}
    with pytest.raises(ValueError, match=r"'kernel' is .* can make inputs longer"):
      lipjax.almost_orthogonalize({"kernel": jnp.ones((3, 3, 1, 1))}, layout=layout)
