"""Which axes of each weight are its matrix, as optax's Muon asks for them."""

from __future__ import annotations

from typing import Any

import jax
import optax

from lipjax.operators.base import LinearOperator
from lipjax.operators.convolution import Convolution
from lipjax.operators.dense import Dense
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import is_float_array, path_string
from lipjax.operators.resolve import Overrides, resolve_operators


def muon_dimension_numbers(
  params: Any, layout: Layout | None = None, layout_overrides: Overrides | None = None
) -> Any:
  r"""For `optax.contrib.muon`, which axes of a weight are its matrix's rows and columns.

  Muon orthogonalizes updates of matrices, and takes every leaf of two axes for one and hands
  all others to Adam: kernels of attention, of ``DenseGeneral`` and of convolutions, and stacks
  of layers. A layout knows them:

  ==================  ================================================================
  operator            `optax.contrib.MuonDimensionNumbers`
  ==================  ================================================================
  `Dense`             its input and output axes; batch axes are left to Muon's ``vmap``
  `ReshapedKernel`    likewise: the flattened kernel
  `Convolution`       the flattened kernel; of groups each by itself is not possible
  anything else       None: Adam
  ==================  ================================================================

  Guarantee: none on norms. Muon's five polynomial steps leave singular values of an update
  up to 1.2; see `keep_params_orthogonal` where exactness matters.

  Args:
    params: a pytree of arrays, or of `jax.ShapeDtypeStruct`.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``; None hands a leaf to Adam, as is usual for
      embeddings and the last layer.

  Returns:
    A tree like `params` with `MuonDimensionNumbers` or None at its leaves.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: a `Convolution` of several groups.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax, optax
    >>> from flax import linen as nn
    >>> model = nn.MultiHeadDotProductAttention(num_heads=2)
    >>> params = model.init(jax.random.key(0), jnp.ones((1, 3, 8)))["params"]
    >>> numbers = lipjax.muon_dimension_numbers(params)
    >>> numbers["query"]["kernel"]  # (8, 2, 4)
    MuonDimensionNumbers(reduction_axis=(0,), output_axis=(1, 2))
    >>> tx = optax.contrib.muon(1e-3, muon_weight_dimension_numbers=numbers)

  Reference:
    Jordan et al. (2024), Muon; for the axes of attention kernels Liu et al. (2025),
    arXiv:2502.16982.
  """
  operators = resolve_operators(params, layout, layout_overrides)

  def numbers(key_path: Any, leaf: Any) -> Any:
    path = path_string(key_path)
    return _numbers(path, operators.get(path), leaf) if is_float_array(leaf, path) else None

  return jax.tree_util.tree_map_with_path(numbers, params)


def _numbers(path: str, operator: LinearOperator | None, leaf: Any) -> Any:
  of = optax.contrib.MuonDimensionNumbers
  if isinstance(operator, Dense):
    return of(tuple(operator.in_axes), tuple(operator.out_axes))
  if not isinstance(operator, Convolution):
    return None
  if operator.feature_group_count != 1:
    msg = (
      f"{path!r} is a convolution of {operator.feature_group_count} groups, whose matrices share no"
      " axis of their own; hand it to Adam with layout_overrides={…: None}."
    )
    raise ValueError(msg)
  apart = (operator.out_axis, *operator.batch_axes)
  return of(
    tuple(axis for axis in range(len(leaf.shape)) if axis not in apart), (operator.out_axis,)
  )
