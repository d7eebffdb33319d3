"""What the Flax modules share: options, the measurement, and the normalized params."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.constrain.normalize import normalize_at
from lipjax.measure.block import SingularBlock
from lipjax.measure.groups import group_leaves
from lipjax.measure.norms import top_triplets
from lipjax.measure.refresh import best_vectors, refresh
from lipjax.measure.singular_vectors import init_singular_vectors
from lipjax.measure.vectors import pack_by_path, unpack_by_path
from lipjax.operators.base import LinearOperator
from lipjax.operators.paths import float_leaves, map_float_leaves

Mode = Literal["target", "cap", "gain"]
ConvolutionMode = Literal["reshaped", "operator"]
Vectors = dict[str, SingularBlock]


def check_options(mode: str, target: float, convolution: str) -> None:
  """Raises a `ValueError` for an option that cannot be."""
  if mode not in get_args(Mode):
    msg = f"mode is {mode!r}; expected 'target', 'cap' or 'gain'."
    raise ValueError(msg)
  if not target > 0:
    msg = f"target is {target}; expected a positive number."
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
  params: Any,
  operators: Mapping[str, LinearOperator],
  k: int | None,
  key: jax.Array | None = None,
) -> Vectors:
  """Converged vectors, so that evaluation is right before any training step."""
  vectors = init_singular_vectors(params, k=k, layout=operators, start="converged", key=key)
  return unpack_by_path(vectors, group_leaves(operators, float_leaves(params)))


def advance(
  params: Any,
  vectors: Vectors,
  operators: Mapping[str, LinearOperator],
  n_steps: int,
  tol: float | None,
) -> Vectors:
  """The vectors after at least `n_steps` steps, and as many as the tolerance takes."""
  leaves = float_leaves(params)
  groups = group_leaves(operators, leaves)
  packed = pack_by_path(groups, vectors, jnp.zeros((), jnp.int32))
  packed, _ = refresh(groups, leaves, packed, n_steps=n_steps, tol=tol)
  return unpack_by_path(packed, groups)


def top_vectors(
  params: Any,
  vectors: Vectors | None,
  operators: Mapping[str, LinearOperator],
  *,
  were_advanced: bool,
) -> dict[str, jax.Array]:
  """The right vectors at which norms are taken, by path.

  Args:
    params: the layer's.
    vectors: those that are stored; measured anew when None.
    operators: by path.
    were_advanced: whether these params are the ones that they were advanced for. Otherwise
      the weights may have moved since, and another vector of the block be the best.
  """
  leaves = float_leaves(params)
  if vectors is None:
    return {path: triplet.v for path, triplet in top_triplets(operators, leaves).items()}
  if were_advanced:
    first = lambda block: lax.index_in_dim(block.v, 0, axis=block.sigma.ndim - 1, keepdims=False)
    return {path: first(block) for path, block in vectors.items()}
  groups = group_leaves(operators, leaves)
  return best_vectors(groups, leaves, pack_by_path(groups, vectors, jnp.zeros((), jnp.int32)))


def initial_gain(
  operator: LinearOperator, shape: tuple[int, ...], target: float, dtype: Any
) -> jax.Array:
  """A learned gain at `target`, one for every matrix that the leaf stacks."""
  return jnp.full(operator.batch_shape(shape), target, dtype)


def normalize(
  params: Any,
  tops: Mapping[str, jax.Array],
  operators: Mapping[str, LinearOperator],
  *,
  target: float,
  mode: str,
  gains: Mapping[str, jax.Array],
  dtype: Any,
) -> Any:
  """The params that the wrapped layer computes with, from those of `top_vectors`."""
  if not operators:
    return params

  def widened(path, w):
    return w.astype(jnp.promote_types(w.dtype, dtype)) if path in operators else w

  def as_asked(path, w):
    return w.astype(dtype) if path in operators else w

  # Normalized before it is rounded: bfloat16 params give float32 weights of full precision.
  params = params if dtype is None else map_float_leaves(widened, params)
  params = normalize_at(
    params,
    operators,
    tops,
    target=gains if mode == "gain" else target,
    mode="cap" if mode == "cap" else "target",
  )
  return params if dtype is None else map_float_leaves(as_asked, params)
