"""What the Flax modules share: options, the measurement, and the normalized params."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from lipjax.constrain.normalize import spectral_normalize
from lipjax.measure.singular_vectors import init_singular_vectors, update_singular_vectors
from lipjax.measure.triplet import SingularTriplet
from lipjax.operators.base import LinearOperator
from lipjax.operators.paths import map_float_leaves

Mode = Literal["target", "cap", "gain"]
ConvolutionMode = Literal["reshaped", "operator"]
Vectors = dict[str, SingularTriplet]


def check_options(mode: str, target: float, n_steps: int, convolution: str) -> None:
  """Raises a `ValueError` for an option that cannot be."""
  if mode not in get_args(Mode):
    msg = f"mode is {mode!r}; expected 'target', 'cap' or 'gain'."
    raise ValueError(msg)
  if not target > 0:
    msg = f"target is {target}; expected a positive number."
    raise ValueError(msg)
  if n_steps < 1:
    msg = f"n_steps is {n_steps}; expected at least 1."
    raise ValueError(msg)
  if convolution not in get_args(ConvolutionMode):
    msg = (
      f"convolution is {convolution!r}; expected 'reshaped' (the norm of the kernel as a matrix)"
      " or 'operator' (the norm of the convolution at its input's size)."
    )
    raise ValueError(msg)


def require_update_stats(update_stats: bool | None) -> bool:
  """The flag, or a `ValueError` where nobody gave one."""
  if update_stats is None:
    msg = (
      "SpectralNorm needs update_stats: True in training, where one step of power"
      " iteration follows the weights, False in evaluation, where nothing is written."
    )
    raise ValueError(msg)
  return update_stats


def measure(
  params: Any, operators: Mapping[str, LinearOperator], key: jax.Array | None = None
) -> Vectors:
  """Converged vectors, so that evaluation is right before any training step."""
  return init_singular_vectors(params, layout=operators, start="converged", key=key)


def advance(
  params: Any, vectors: Vectors, operators: Mapping[str, LinearOperator], n_steps: int
) -> Vectors:
  """The vectors after `n_steps` of power iteration."""
  return update_singular_vectors(params, vectors, n_steps=n_steps, layout=operators)[1]


def initial_gain(
  operator: LinearOperator, shape: tuple[int, ...], target: float, dtype: Any
) -> jax.Array:
  """A learned gain at `target`, one for every matrix that the leaf stacks."""
  return jnp.full(operator.batch_shape(shape), target, dtype)


def normalize(
  params: Any,
  vectors: Vectors | None,
  operators: Mapping[str, LinearOperator],
  *,
  target: float,
  mode: str,
  gains: Mapping[str, jax.Array],
  dtype: Any,
) -> Any:
  """The params that the wrapped layer computes with; the same in training and evaluation.

  Training does not reuse the sigma of its power iteration, although that would save a
  product: then its output would differ in the last bits from evaluation's.
  """
  if not operators:
    return params

  def widened(path, w):
    return w.astype(jnp.promote_types(w.dtype, dtype)) if path in operators else w

  def as_asked(path, w):
    return w.astype(dtype) if path in operators else w

  # Normalized before it is rounded: bfloat16 params give float32 weights of full precision.
  params = params if dtype is None else map_float_leaves(widened, params)
  params = spectral_normalize(
    params,
    vectors,
    target=gains if mode == "gain" else target,
    mode="cap" if mode == "cap" else "target",
    layout=operators,
  )
  return params if dtype is None else map_float_leaves(as_asked, params)
