"""The operator of a Flax convolution, linen's or nnx's, for the input that it is called with.

Both frameworks give their convolutions the same attributes, so one reader does for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.measure.block import SingularBlock, block_shapes
from lipjax.operators.base import LinearOperator
from lipjax.operators.convolution import Convolution
from lipjax.operators.layouts import AmbiguousLeafError

#: The spatial sizes that each convolution was called with, by the path of its module.
Sizes = Mapping[str, set[tuple[int, ...]]]


def spatial_shape(module: Any, args: tuple, kwargs: dict) -> tuple[int, ...]:
  """Spatial size of the input in a call of a convolution: ``batch + spatial + (features,)``."""
  x = next(iter((*args, *kwargs.values())))
  return jnp.shape(x)[-1 - len(_kernel_size(module)) : -1]


def convolution_operator(module: Any, shape: tuple[int, ...]) -> Convolution:
  """The operator that the attributes of a ``Conv`` or ``ConvTranspose`` say.

  Args:
    module: the convolution.
    shape: spatial size of its input.
  """
  if hasattr(module, "transpose_kernel"):
    return Convolution.transposed(
      shape,
      _kernel_size(module),
      strides=module.strides,
      padding=module.padding,
      kernel_dilation=module.kernel_dilation,
      transpose_kernel=module.transpose_kernel,
    )
  return Convolution(
    shape,
    strides=module.strides,
    padding=module.padding,
    input_dilation=module.input_dilation,
    kernel_dilation=module.kernel_dilation,
    feature_group_count=module.feature_group_count,
  )


def sized_operator(path: str, shape: tuple[int, ...], module: Any, sizes: Sizes) -> Convolution:
  """The operator of the kernel at `path` for the one size that its module was called with.

  Args:
    path: the kernel's path.
    shape: its shape.
    module: its module.
    sizes: what the modules were called with.

  Raises:
    AmbiguousLeafError: the module was called with no or with several sizes.
  """
  found = sorted(sizes.get(path.rpartition("/")[0], ()))
  if len(found) == 1:
    return convolution_operator(module, found[0])
  if found:
    reason = f"its convolution is called with inputs of {len(found)} spatial sizes: {found}"
    choices = tuple(f"{convolution_operator(module, size)!r}" for size in found)
    raise AmbiguousLeafError(path, shape, reason, (*choices, "None  # leave it out"))
  raise unmet_convolution(path, shape, "the layer never calls its convolution")


def unmet_convolution(path: str, shape: tuple[int, ...], reason: str) -> AmbiguousLeafError:
  """The error for a convolution whose input has a size that cannot be known."""
  reason += ", so with convolution='operator' the size of its input is not known"
  choices = (
    "lipjax.Convolution(spatial_shape, …)  # of its input, with the strides, padding, …",
    "None  # leave it out",
  )
  return AmbiguousLeafError(path, shape, reason, choices)


def check_size(path: str, called: tuple[int, ...], made: tuple[int, ...], advice: str) -> None:
  """Raises where a convolution is called at another size than its vectors were made for.

  Args:
    path: of its module or kernel.
    called: spatial size of the input.
    made: spatial size of the vectors.
    advice: what to write to measure at the new size.

  Raises:
    ValueError: the sizes differ.
  """
  if called != made:
    msg = (
      f"The convolution {path!r} is called with an input of spatial size {called}, but its"
      f" vectors were made for {made}, and its norm depends on the size. Call it with inputs"
      f" of spatial size {made}, or {advice}."
    )
    raise ValueError(msg)


def check_stored(
  operators: Mapping[str, LinearOperator],
  vectors: Mapping[str, SingularBlock],
  shapes: Mapping[str, tuple[int, ...]],
) -> None:
  """Raises where stored vectors are not those of the operators of a linen forward.

  Args:
    operators: by path.
    vectors: those that are stored.
    shapes: of the kernels.

  Raises:
    ValueError: some convolution has another size now, or vectors were stored by a version of
      lipjax that kept one a kernel.
  """
  remeasure = "measure anew with lipjax.integrations.linen.remeasure(model, variables, x)"
  advice = f"{remeasure} (as also for vectors that were made with convolution='reshaped')"
  for path, block in vectors.items():
    operator = operators[path]
    n_batch = len(operator.batch_shape(shapes[path]))
    needed = block_shapes(
      operator, shapes[path], jnp.shape(block.sigma)[-1:][0] if block.sigma.ndim else 1
    )
    if block.sigma.ndim != n_batch + 1 or block.v.ndim != len(needed.v):
      msg = (
        f"The stored vectors of {path!r} have shapes {jax.tree.map(jnp.shape, tuple(block))}, and"
        f" {tuple(needed)} are expected: they are those of another layer, or of a version of"
        f" lipjax that kept one vector a kernel. If so, {remeasure}."
      )
      raise ValueError(msg)
    if isinstance(operator, Convolution):
      check_size(path, operator.spatial_shape, block.v.shape[n_batch + 1 : -1], advice)


def _kernel_size(module: Any) -> tuple[int, ...]:
  size = module.kernel_size
  return (size,) if isinstance(size, int) else tuple(size)
