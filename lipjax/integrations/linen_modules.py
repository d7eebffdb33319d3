"""Which linen module owns a param, and what its class says of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax

from lipjax.integrations.convolutions import spatial_shape
from lipjax.integrations.module_layout import convolution, dense
from lipjax.operators.base import LinearOperator

#: Modules whose params are all their own, so that no abstract forward need look for more.
_LEAVES = (nn.Dense, nn.DenseGeneral, nn.Embed, nn.Conv, nn.ConvTranspose)
_CONVOLUTIONS = (nn.Conv, nn.ConvTranspose)


def modules_by_path(
  layer: nn.Module, rngs: Iterable[str], args: tuple, kwargs: dict
) -> tuple[dict[str, nn.Module], dict[str, set[tuple[int, ...]]]]:
  """A bound layer's modules, and the spatial sizes that its convolutions are called with.

  Both by path, ``""`` for the layer itself.

  A module made in a compact method exists only while that runs, so a layer that may have
  such is run once more, abstractly: no cost in a compiled function.

  Args:
    layer: the layer, with its params.
    rngs: names of the random streams that it may ask for.
    args: of the layer.
    kwargs: of the layer.
  """
  met, sizes = {}, {}

  def meet(path, module, args, kwargs):
    met[path] = module
    if isinstance(module, _CONVOLUTIONS):
      sizes.setdefault(path, set()).add(spatial_shape(module, args, kwargs))

  def note(call, args, kwargs, context):
    if context.method_name == "__call__":
      meet("/".join(context.module.path), context.module, args, kwargs)
    else:
      met["/".join(context.module.path)] = context.module
    return call(*args, **kwargs)

  if type(layer) in _LEAVES:
    meet("", layer, args, kwargs)
    return met, sizes

  def run():
    copy, variables = layer.unbind()
    keys = dict.fromkeys(rngs, jax.random.key(0))
    with nn.intercept_methods(note):
      copy.apply(variables, *args, rngs=keys, mutable=True, **kwargs)

  jax.eval_shape(run)
  return met, sizes


def read_module(module: Any, name: str) -> LinearOperator | str | None:
  """What a module says of its own param; see `module_layout.ReadModule`."""
  size = lambda value: 1 if isinstance(value, int) else len(value)
  match module:
    case nn.Dense() if name == "kernel":
      return dense(0, 1, 1)
    case nn.DenseGeneral() if name == "kernel":
      return dense(size(module.batch_dims), size(module.axis), size(module.features))
    case nn.Embed() if name == "embedding":
      return dense(0, 1, 1)
    case nn.Conv() | nn.ConvTranspose() if name == "kernel":
      if module.mask is not None:
        return "its module masks the kernel, and the norm of the masked kernel is another"
      transposed = getattr(module, "transpose_kernel", False)
      return convolution(size(module.kernel_size), transpose_kernel=transposed)
    case nn.ConvLocal() if name == "kernel":
      return "nn.ConvLocal has a kernel of its own at every position of the output"
    case nn.Einsum() if name == "kernel":
      return f"the axes of the kernel of nn.Einsum({module.einsum_str!r}) are for you to name"
    case nn.BatchNorm() | nn.LayerNorm() | nn.RMSNorm() | nn.GroupNorm() | nn.InstanceNorm():
      return None
  return NotImplemented
