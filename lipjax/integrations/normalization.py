"""What the Flax modules share: options, the measurement, and the normalized params."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from lipjax.constrain.normalize import normalize_at
from lipjax.measure.block import SingularBlock
from lipjax.measure.groups import group_leaves
from lipjax.measure.norms import top_triplets
from lipjax.measure.refresh import best_vectors, refresh
from lipjax.measure.singular_vectors import converged_blocks
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
      "SpectralNorm needs update_stats: True in training, where the vectors follow the"
      " weights, False in evaluation, where nothing is written."
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
  return converged_blocks(operators, float_leaves(params), k, key)


def advance(
  params: Any,
  vectors: Vectors,
  operators: Mapping[str, LinearOperator],
  n_steps: int,
  tol: float | None,
) -> Vectors:
  """The vectors after at least `n_steps` steps, and as many as the tolerance takes."""
  groups, weights = _groups(params, operators)
  return _advance(groups, weights, vectors, n_steps, jnp.inf if tol is None else tol)


@functools.partial(jax.jit, static_argnames="groups")
def _advance(groups, weights, vectors, n_steps, tol) -> Vectors:
  packed = pack_by_path(groups, vectors, jnp.zeros((), jnp.int32))
  packed, _ = refresh(groups, weights, packed, n_steps=n_steps, tol=tol)
  return unpack_by_path(packed, groups)


@functools.partial(jax.jit, static_argnames="groups")
def _best(groups, weights, vectors) -> dict[str, jax.Array]:
  packed = pack_by_path(groups, vectors, jnp.zeros((), jnp.int32))
  return best_vectors(groups, weights, packed)


def _groups(params: Any, operators: Mapping[str, LinearOperator]):
  """The groups of the operators, and their weights by path."""
  leaves = float_leaves(params)
  weights = {path: jnp.asarray(leaves[path]) for path in operators}
  return tuple(group_leaves(operators, leaves)), weights


def top_vectors(
  params: Any, vectors: Vectors | None, operators: Mapping[str, LinearOperator]
) -> dict[str, jax.Array]:
  """The right vectors at which norms are taken, by path: the best of each stored block.

  The same in training and evaluation. Training does not take the vector that its steps have
  just found, although that would save a product: evaluation, which has to look for the best
  one for weights that may have moved since, would compute another function.

  Args:
    params: the layer's.
    vectors: those that are stored; measured anew when None.
    operators: by path.
  """
  if vectors is None:
    triplets = top_triplets(operators, float_leaves(params))
    return {path: triplet.v for path, triplet in triplets.items()}
  return _best(*_groups(params, operators), vectors)


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
