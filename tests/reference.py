"""The dense references that every test compares with, in float64 numpy.

A unit vector pushed through a map multiplies every weight by 1 or 0, so a Jacobian
made of them is exact in any dtype, and its float64 SVD is the truth.

Most of a test's time is compiling: here NumPy computes what it can (an eager `jnp` operation
compiles for each shape, `jnp.asarray` too), and a function is compiled once for all its weights.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

X64 = jax.config.jax_enable_x64
#: The widest dtype of this run.
FLOAT = jnp.float64 if X64 else jnp.float32


def rtol_of(*arrays):
  """Relative tolerance of a norm: the issue's 1e-5 in float32, as many eps in float64."""
  eps = max(float(jnp.finfo(jnp.promote_types(a.dtype, jnp.float32)).eps) for a in arrays)
  return 84 * eps if eps > 1e-10 else 4096 * eps  # 1.0e-5 and 9e-13


def normal(seed, shape, dtype=FLOAT, scale=1.0):
  """A Gaussian array from numpy, in the dtype asked for."""
  array = np.random.default_rng(seed).standard_normal(shape) * scale
  return jax.device_put(np.asarray(array, dtype))


def with_spectrum(seed, rows, columns, sigmas):
  """A float64 matrix of given singular values, and random singular vectors."""
  rng = np.random.default_rng(seed)
  k = len(sigmas)
  u = np.linalg.qr(rng.standard_normal((rows, k)))[0]
  v = np.linalg.qr(rng.standard_normal((columns, k)))[0]
  return (u * np.asarray(sigmas)) @ v.T


def top_sigma(matrix):
  """The largest singular value in float64; 0 for an empty matrix. Batched."""
  matrix = np.asarray(matrix, np.float64)
  if 0 in matrix.shape[-2:]:
    return np.zeros(matrix.shape[:-2])
  largest = np.abs(matrix).max(initial=0)
  scale = largest if largest > 0 else 1.0
  return np.linalg.svd(matrix / scale, compute_uv=False)[..., 0] * scale


def jacobian(fn, x, *args):
  """The matrix (outputs, inputs) of the Jacobian of `fn` in `x`, in float64.

  What differs between calls of one `fn`, as its weights do, goes to `args`: it is compiled once.
  """
  compiled = _jacobian(fn) if args else jax.jit(jax.jacobian(fn))
  dense = np.asarray(compiled(x, *args), np.float64)
  n_in = math.prod(x.shape)
  n_out = math.prod(dense.shape[: dense.ndim - len(x.shape)])
  return dense.reshape(n_out, n_in)


@functools.lru_cache(maxsize=64)
def _jacobian(fn):
  return jax.jit(jax.jacobian(fn))


@functools.lru_cache(maxsize=64)
def _product(operator):
  return lambda x, w: operator.apply(w, x)


def operator_matrices(operator, w):
  """The dense matrix of every slice, ``batch_shape + (outputs, inputs)``, in float64.

  Also checks that no slice sees another one's input.
  """
  x = np.zeros(operator.input_shape(w.shape), jnp.promote_types(w.dtype, jnp.float32))
  dense = jacobian(_product(operator), x, w)
  batch = operator.batch_shape(w.shape)
  n = math.prod(batch)
  blocks = dense.reshape(n, dense.shape[0] // n, n, dense.shape[1] // n)
  for i, j in itertools.permutations(range(n), 2):
    assert not blocks[i, :, j].any(), f"slice {i} sees the input of slice {j}"
  own = np.stack([blocks[i, :, i] for i in range(n)])
  return own.reshape((*batch, *own.shape[1:]))


def operator_sigma(operator, w):
  """The true norm of every slice of a leaf."""
  return top_sigma(operator_matrices(operator, w))


def check_operator(operator, w):
  """Shapes, the adjoint, the weight gradient and the slices of one operator.

  Returns the dense matrices, for what the caller knows about them.
  """
  operator.validate(w.shape)
  hash(operator)
  assert type(operator)(**vars(operator)) == operator
  n = len(operator.batch_shape(w.shape))
  x = normal(1, operator.input_shape(w.shape))
  y = normal(2, operator.output_shape(w.shape))
  out, back = (np.asarray(z) for z in _products(operator, w, x, y))
  assert out.shape == y.shape
  assert back.shape == x.shape
  assert x.shape[:n] == y.shape[:n] == operator.batch_shape(w.shape)
  assert tuple(w.shape[a] for a in operator.stack_axes) == operator.batch_shape(w.shape)

  # A sum of w.size rounded products: error below eps times the sum of magnitudes.
  eps = 8 * float(jnp.finfo(FLOAT).eps)
  magnitudes, _ = _products(operator, *(np.abs(z) for z in (w, x, y)))
  atol = eps * float(np.sum(np.abs(y) * magnitudes))
  dims_x, dims_y = tuple(range(n, x.ndim)), tuple(range(n, y.ndim))
  np.testing.assert_allclose(
    np.sum(y * out, axis=dims_y), np.sum(back * x, axis=dims_x), rtol=0, atol=atol
  )
  gradient, expected = _gradients(operator, w, x, y)
  assert gradient.shape == w.shape
  # Sums of terms of any size: entries near zero have no relative accuracy.
  largest = np.abs(expected).max(initial=0)
  np.testing.assert_allclose(gradient, expected, rtol=eps, atol=eps * largest)

  matrices = operator_matrices(operator, w)
  single = operator.slice_operator()
  assert single.stack_axes == ()
  axes = operator.stack_axes
  for index in np.ndindex(*operator.batch_shape(w.shape)):
    where = [slice(None)] * w.ndim
    for axis, i in zip(axes, index, strict=True):
      where[axis] = i
    np.testing.assert_array_equal(operator_matrices(single, w[tuple(where)]), matrices[index])
  return matrices


@functools.partial(jax.jit, static_argnums=0)
def _products(operator, w, x, y):
  return operator.apply(w, x), operator.adjoint(w, y)


@functools.partial(jax.jit, static_argnums=0)
def _gradients(operator, w, x, y):
  """What the operator says, and the derivative of its product."""
  product = lambda w: jnp.sum(y * operator.apply(w, x))
  return operator.weight_gradient(w.shape, x, y), jax.grad(product)(w.astype(FLOAT))


def slice_sigmas(norms):
  """``{path: numpy array}`` of norms, to compare with assert_allclose."""
  return {path: np.asarray(sigma, np.float64) for path, sigma in norms.items()}


def dense_convolution(operator, w):
  """The matrix in float64, from `Window.reads`, which test_convolution.py checks."""
  windows, groups = operator.windows(w.shape), operator.feature_group_count
  kernel = np.asarray(operator.kernel(w), np.float64)
  n, (c_in, c_out) = len(windows), kernel.shape[-2:]
  for i, window in enumerate(windows):
    reads = (window.reads()[:, :, None] == np.arange(window.size)).astype(np.float64)
    kernel = np.moveaxis(np.tensordot(reads, kernel, ((1,), (2 * i,))), (0, 1), (2 * i, 2 * i + 1))
  outputs, inputs = range(0, 2 * n, 2), range(1, 2 * n, 2)
  kernel = kernel.reshape((*kernel.shape[:-1], groups, c_out // groups))
  kernel = kernel.transpose((2 * n + 1, *outputs, 2 * n + 2, *inputs, 2 * n))
  n_in = c_in * int(np.prod([window.size for window in windows]))
  return kernel.reshape((groups, -1, n_in)) if n_in else np.zeros((groups, 0, 0))
