"""Convolution against the layers of Flax, Equinox and Haiku, and against what it says it reads."""

import itertools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, X64, check_operator, normal, operator_matrices

import lipjax
from lipjax import Convolution

KINDS = {
  "plain": {},
  "valid": {"padding": "VALID"},
  "strided": {"strides": 2},
  "strided_valid": {"strides": (3, 2), "padding": "VALID"},
  "same_lower": {"strides": 2, "padding": "SAME_LOWER"},
  "circular": {"padding": "CIRCULAR"},
  "circular_strided": {"padding": "CIRCULAR", "strides": 2},
  "reflect": {"padding": "REFLECT"},
  "dilated": {"kernel_dilation": 2},
  "dilated_circular": {"kernel_dilation": (1, 2), "padding": "CIRCULAR"},
  "asymmetric": {"padding": ((0, 2), (3, 1))},
  "integer": {"padding": 2},
  "input_dilation": {"input_dilation": 2, "padding": ((1, 2), (0, 1))},
  "both_dilations": {"input_dilation": 2, "kernel_dilation": 2, "strides": 2, "padding": 3},
  "groups": {"feature_group_count": 2},
}
KERNELS = [(3, 3), (2, 5)]


# The layers are compared in one precision; what the maps are, below, in both.
once = pytest.mark.skipif(X64, reason="compared in float32")


@pytest.mark.first(15)
@once
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_apply_is_flax_conv(kind, kernel_size):
  options = KINDS[kind]
  groups = options.get("feature_group_count", 1)
  layer = nn.Conv(4, kernel_size, use_bias=False, **options)
  x = normal(0, (6, 7, 2 * groups))
  w = normal(1, (*kernel_size, 2, 4))
  operator = Convolution((6, 7), **options)
  expected = layer.apply({"params": {"kernel": w}}, x)
  np.testing.assert_allclose(operator.apply(w, x), expected, atol=1e-5)


@pytest.mark.first(16)
@once
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
@pytest.mark.parametrize("transpose_kernel", [False, True])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", "pairs"])
@pytest.mark.parametrize("strides", [(1, 1), (3, 2)], ids=str)
def test_transposed_is_flax_conv_transpose(kernel_size, transpose_kernel, padding, strides):
  padding = ((1, 2), (2, 0)) if padding == "pairs" else padding
  options = {"strides": strides, "padding": padding, "transpose_kernel": transpose_kernel}
  layer = nn.ConvTranspose(3, kernel_size, use_bias=False, **options)
  x, w = normal(0, (4, 5, 2)), normal(1, (*kernel_size, *((3, 2) if transpose_kernel else (2, 3))))
  operator = Convolution.transposed((4, 5), kernel_size, **options)
  expected = layer.apply({"params": {"kernel": w}}, x)
  np.testing.assert_allclose(operator.apply(w, x), expected, atol=1e-5)


@once
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("padding", [1, ((2, 0), (1, 3)), "SAME"], ids=str)
def test_apply_is_equinox_conv(mode, padding):
  layer = eqx.nn.Conv2d(
    2,
    3,
    (3, 2),
    stride=(1, 2),
    padding=padding,
    padding_mode=mode.upper(),
    use_bias=False,
    key=jax.random.key(0),
  )
  x = normal(0, (2, 5, 6))
  operator = Convolution(
    (5, 6), strides=(1, 2), padding=padding, padding_mode=mode, in_axis=1, out_axis=0
  )
  y = operator.apply(layer.weight, x.transpose(1, 2, 0)).transpose(2, 0, 1)
  np.testing.assert_allclose(y, layer(x), atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_apply_is_haiku_conv(rank):
  x = normal(0, (*(5, 6, 4)[:rank], 2))
  layer = hk.without_apply_rng(
    hk.transform(lambda x: hk.ConvND(rank, 3, 3, stride=2, with_bias=False)(x[None])[0])
  )
  params = layer.init(jax.random.key(0), x)
  operator = Convolution(x.shape[:-1], strides=2)
  np.testing.assert_allclose(
    operator.apply(params["conv_nd"]["w"], x), layer.apply(params, x), atol=1e-5
  )


def test_causal():
  x, w = normal(0, (6, 2)), normal(1, (3, 2, 3))
  layer = nn.Conv(3, (3,), padding="CAUSAL", kernel_dilation=2, use_bias=False)
  operator = Convolution((6,), padding="CAUSAL", kernel_dilation=2)
  np.testing.assert_allclose(
    operator.apply(w, x), layer.apply({"params": {"kernel": w}}, x), atol=1e-5
  )


OPERATORS = {
  **{name: (Convolution((5, 4), **KINDS[name]), (3, 2, 2, 4)) for name in KINDS},
  "one_axis": (Convolution((7,)), (3, 2, 2)),
  "three_axes": (Convolution((3, 4, 2), padding="CIRCULAR"), (2, 3, 2, 1, 2)),
  "replicate": (Convolution((3, 4), padding=2, padding_mode="replicate"), (3, 3, 1, 2)),
  "reflect_far": (Convolution((3, 1), padding=4, padding_mode="reflect"), (3, 3, 1, 2)),
  "equinox": (Convolution((4, 4), in_axis=1, out_axis=0), (3, 2, 3, 3)),
  "depthwise": (Convolution((4, 4), feature_group_count=3), (3, 3, 1, 6)),
  "smaller_than_kernel": (Convolution((2, 3), padding="SAME"), (5, 5, 1, 2)),
  "circle_smaller_than_kernel": (Convolution((2, 3), padding="CIRCULAR"), (5, 5, 1, 2)),
  "stacked": (Convolution((4, 3), batch_axes=(0,)), (2, 3, 3, 2, 2)),
  "stacked_twice": (
    Convolution((3,), in_axis=2, out_axis=4, batch_axes=(3, 0)),
    (2, 3, 1, 4, 2),
  ),
  "transposed": (Convolution.transposed((3, 3), (3, 3), strides=2), (3, 3, 2, 1)),
  "transposed_flipped": (
    Convolution.transposed((3, 3), (2, 3), strides=2, padding="CIRCULAR", transpose_kernel=True),
    (2, 3, 1, 2),
  ),
  "no_output": (Convolution((2, 2), padding="VALID"), (3, 3, 2, 2)),
}


@pytest.mark.first(14)
@pytest.mark.parametrize("name", OPERATORS)
def test_maps_agree(name):
  operator, shape = OPERATORS[name]
  check_operator(operator, normal(3, shape))


@pytest.mark.parametrize("name", OPERATORS)
def test_reads_says_where_every_weight_stands(name):
  operator, shape = OPERATORS[name]
  operator = operator.slice_operator()
  w = normal(3, tuple(n for a, n in enumerate(shape) if a not in OPERATORS[name][0].batch_axes))
  windows = operator.windows(w.shape)
  kernel = np.asarray(operator.kernel(w), np.float64)
  groups = operator.feature_group_count
  c_in, c_out = kernel.shape[-2:]
  sizes = [window.outputs for window in windows]
  matrix = np.zeros((*sizes, c_out, *operator.spatial_shape, c_in * groups))
  reads = [window.reads() for window in windows]
  for out in itertools.product(*map(range, sizes)):
    for tap in itertools.product(*map(range, kernel.shape[:-2])):
      source = tuple(int(r[i, t]) for r, i, t in zip(reads, out, tap, strict=True))
      if min(source) < 0:
        continue
      for g in range(groups):
        outs, ins = (
          slice(g * c_out // groups, (g + 1) * c_out // groups),
          slice(g * c_in, (g + 1) * c_in),
        )
        matrix[(*out, outs, *source, ins)] += kernel[tap][:, outs].T
  np.testing.assert_allclose(
    operator_matrices(operator, w).ravel(), matrix.ravel(), atol=1e-6, err_msg=repr(operator)
  )


def test_all_ones_kernel_is_almost_nine():
  # PEERS.md: its reshaped kernel reads 3.
  operator = Convolution((32, 32))
  triplet = lipjax.spectral_norms(
    {"kernel": jnp.ones((3, 3, 1, 1), FLOAT)}, layout={"kernel": operator}
  )
  expected = (1 + 2 * np.cos(np.pi / 33)) ** 2
  np.testing.assert_allclose(triplet["kernel"], expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("make", "said"),
  [
    (lambda: Convolution((4, 4), padding="ANY"), "expected 'SAME'"),
    (lambda: Convolution((4, 4), padding=((1, 1),)), "for each of 2 axes"),
    (lambda: Convolution((4, 4), padding="CAUSAL"), "one spatial axis"),
    (lambda: Convolution((4, 4), strides=(1, 2, 3)), "strides is"),
    (lambda: Convolution((4, 4), strides=0), "strides is"),
    (lambda: Convolution((4, 4), padding_mode="mirror"), "padding_mode is"),
    (lambda: Convolution((4, 4), in_axis=-1), "lists an axis twice"),
    (lambda: Convolution((4, 4), feature_group_count=0), "feature_group_count"),
    (lambda: Convolution((4, 4), input_dilation=2), "Convolution.transposed"),
    (lambda: Convolution((4,), input_dilation=2, padding="REFLECT"), "not defined"),
    (lambda: Convolution((4, 4)).validate((3, 3, 2)), "kernel of 4 axes"),
    (lambda: Convolution((4, 4), feature_group_count=3).validate((3, 3, 2, 4)), "divide"),
    (lambda: Convolution.transposed((4,), (3,), padding="ANY"), "expected 'SAME'"),
  ],
)
def test_errors_say_what_was_expected(make, said):
  with pytest.raises(ValueError, match=said):
    make()


@pytest.mark.first(14)
@pytest.mark.parametrize("name", OPERATORS)
def test_the_sum_of_taps_is_the_convolution(name):
  """What bounds are made of on a GPU, whose convolutions may be Winograd's."""
  operator, shape = OPERATORS[name]
  w = normal(3, shape)
  x = normal(4, operator.input_shape(shape))
  found, expected = operator._sum_of_taps(w, x), operator.apply(w, x)
  size = float(jnp.max(operator.apply(jnp.abs(w), jnp.abs(x)), initial=0))
  np.testing.assert_allclose(found, expected, atol=64 * float(jnp.finfo(FLOAT).eps) * size)
  np.testing.assert_array_equal(operator.apply_by_products(w, x), expected)
