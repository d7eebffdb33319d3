"""The operator of a leaf, read off the module that owns it instead of its name.

A kernel of three axes can be a DenseGeneral, an attention projection or a convolution;
its path cannot tell, but the module that made it can.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from lipjax.integrations.convolutions import Sizes, sized_operator, unmet_convolution
from lipjax.operators.base import LinearOperator
from lipjax.operators.convolution import Convolution
from lipjax.operators.dense import Dense, ReshapedKernel
from lipjax.operators.layouts import AmbiguousLeafError, LayoutFn, flax_layout
from lipjax.operators.resolve import Overrides, resolve_operators

#: From a module and the name of one of its params to the operator; None for a leaf that
#: is no linear map, `NotImplemented` for a module that is not known, and a string that
#: says why no operator can be told.
ReadModule = Callable[[Any, str], Any]


def module_operators(
  params: Any,
  modules: Mapping[str, Any],
  read: ReadModule,
  layout_overrides: Overrides | None,
  *,
  error_on_non_matrix: bool,
  sizes: Sizes | None = None,
) -> dict[str, LinearOperator]:
  """The operator of every kernel of a wrapped layer, ``{path: operator}``.

  Args:
    params: the layer's params, arrays or `jax.ShapeDtypeStruct`.
    modules: the layer's modules by path, ``""`` for the layer itself.
    read: what a module of the framework says of its own param.
    layout_overrides: ``{regex of a path: operator or None}``, asked first.
    error_on_non_matrix: whether a kernel of more than two axes is refused.
    sizes: what the convolutions are called with, to take each for the operator that it is
      at this size; for its reshaped kernel when None.

  Raises:
    LayoutError: a leaf that cannot be told, a convolution of no or several sizes, or an
      override that matches none.
    ValueError: a kernel that `error_on_non_matrix` refuses.
  """
  layout = _layout(modules, read, sizes)
  if not error_on_non_matrix:
    return resolve_operators(params, layout, layout_overrides)
  refused = {}

  def matrices_only(path, leaf):
    operator = layout(path, leaf)
    if operator is not None and len(leaf.shape) > 2:
      refused[path] = leaf.shape
    return operator

  operators = resolve_operators(params, matrices_only, layout_overrides)
  if refused:
    msg = (
      f"error_on_non_matrix is True, but these kernels have more than two axes: {refused}."
      " Leave them out with layout_overrides={path: None}, or set error_on_non_matrix=False."
    )
    raise ValueError(msg)
  return operators


def dense(n_batch: int, n_in: int, n_out: int) -> Dense:
  """A kernel of batch, input and output axes, in this order."""
  first, last = n_batch + n_in, n_batch + n_in + n_out
  return Dense(tuple(range(n_batch, first)), tuple(range(first, last)), tuple(range(n_batch)))


def convolution(n_spatial: int, *, transpose_kernel: bool = False) -> ReshapedKernel:
  """A kernel of spatial, input and output axes; the last two swapped if transposed."""
  n = n_spatial
  source, to = (n + 1, n) if transpose_kernel else (n, n + 1)
  return ReshapedKernel((*range(n), source), (to,))


def _layout(modules: Mapping[str, Any], read: ReadModule, sizes: Sizes | None) -> LayoutFn:
  def layout(path: str, leaf: jax.ShapeDtypeStruct) -> LinearOperator | None:
    parent, _, name = path.rpartition("/")
    # As in Flax, a vector is never normalized: biases, scales, slopes.
    if name == "bias" or len(leaf.shape) <= 1:
      return None
    found = read(modules.get(parent), name)
    if found is NotImplemented:
      found = flax_layout(path, leaf)
      if sizes is not None and isinstance(found, ReshapedKernel):
        raise unmet_convolution(path, leaf.shape, "its module is no convolution of Flax's")
      return found
    if isinstance(found, str):
      raise _unreadable(path, leaf.shape, found)
    if sizes is not None and isinstance(found, ReshapedKernel):
      found = sized_operator(path, leaf.shape, modules[parent], sizes)
    return found if found is None else _fitted(path, leaf.shape, found)

  return layout


def _fitted(path: str, shape: tuple[int, ...], operator: Dense | Convolution) -> LinearOperator:
  """`operator`, stacked over axis 0 in a leaf that linen's scan or vmap has stacked."""
  if isinstance(operator, Convolution):
    rank = len(operator.spatial_shape) + 2
  else:
    rank = len(operator.batch_axes) + len(operator.in_axes) + len(operator.out_axes)
  if len(shape) == rank:
    return operator
  stacked = _stacked(operator)
  if len(shape) == rank + 1 and re.search(r"(^|/)(Scan|Vmap)[A-Z]", path):
    return stacked
  reason = f"its module makes a kernel of {rank} axes, so this one was stacked or replaced"
  choices = (f"{stacked!r}  # axis 0 stacks layers", "None  # leave it out")
  raise AmbiguousLeafError(path, shape, reason, choices)


def _stacked(operator: Dense | Convolution) -> LinearOperator:
  if isinstance(operator, Convolution):
    axes = {"in_axis": operator.in_axis + 1, "out_axis": operator.out_axis + 1}
    return dataclasses.replace(operator, **axes, batch_axes=(0,))
  shift = lambda axes: tuple(axis + 1 for axis in axes)
  batch = (0, *shift(operator.batch_axes))
  return type(operator)(shift(operator.in_axes), shift(operator.out_axes), batch)


def _unreadable(path: str, shape: tuple[int, ...], reason: str) -> AmbiguousLeafError:
  last = len(shape) - 1
  whole = Dense(tuple(range(last)), (last,))
  choices = (f"{whole!r}  # the axes summed over, then those of the output", "None  # leave it out")
  return AmbiguousLeafError(path, shape, reason, choices)
