"""What an nnx module's class says of its params, and the inputs of its convolutions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lipjax.integrations.convolutions import Sizes, check_size, spatial_shape
from lipjax.integrations.module_layout import convolution, dense
from lipjax.operators.base import LinearOperator
from lipjax.operators.convolution import Convolution

_CONVOLUTIONS = (nnx.Conv, nnx.ConvTranspose)


def read_module(module: Any, name: str) -> LinearOperator | str | None:
  """What a module says of its own param; see `module_layout.ReadModule`."""
  match module:
    case nnx.Linear() if name == "kernel":
      return dense(0, 1, 1)
    case nnx.LinearGeneral() if name == "kernel":
      return dense(len(module.batch_axis), len(module.in_features), len(module.out_features))
    case nnx.Embed() if name == "embedding":
      return dense(0, 1, 1)
    case nnx.Conv() | nnx.ConvTranspose() if name == "kernel":
      if module.mask is not None:
        return "its module masks the kernel, and the norm of the masked kernel is another"
      transposed = getattr(module, "transpose_kernel", False)
      return convolution(len(module.kernel_size), transpose_kernel=transposed)
    case nnx.Einsum() if name == "kernel":
      return f"the axes of the kernel of nnx.Einsum({module.einsum_str!r}) are for you to name"
    case nnx.LoRA() if name in ("lora_a", "lora_b"):
      return "nnx.LoRA adds its product to a kernel, and the norm of the sum is another"
    case nnx.BatchNorm() | nnx.LayerNorm() | nnx.RMSNorm() | nnx.GroupNorm() | nnx.InstanceNorm():
      return None
  return NotImplemented


def modules_by_path(layer: nnx.Module) -> dict[str, nnx.Module]:
  """A layer's modules by path, ``""`` for itself."""
  return {"/".join(map(str, path)): module for path, module in nnx.iter_modules(layer)}


def input_sizes(layer: nnx.Module, example_input: Any) -> dict[str, set[tuple[int, ...]]]:
  """The spatial sizes that each convolution of a layer is called with, by path.

  A copy of the layer runs once, abstractly: nothing is computed and no state changes.

  Args:
    layer: the layer.
    example_input: its input, an array or a `jax.ShapeDtypeStruct`, or a tuple of its
      positional arguments.

  Raises:
    ValueError: there are convolutions and no example.
  """
  paths = [p for p, m in modules_by_path(layer).items() if isinstance(m, _CONVOLUTIONS)]
  if not paths:
    return {}
  if example_input is None:
    msg = (
      f"convolution='operator' needs the size of what the convolutions {paths} of"
      f" {type(layer).__name__} get; pass example_input=x, an input of the layer (an array or"
      " jax.ShapeDtypeStruct, or a tuple of its positional arguments)."
    )
    raise ValueError(msg)
  sizes = {path: set() for path in paths}
  args = example_input if isinstance(example_input, tuple) else (example_input,)
  graph, state = nnx.split(layer)

  def run(state):
    copy = nnx.merge(graph, state)
    watch(copy, {path: found.add for path, found in sizes.items()})
    copy(*jax.tree.map(_filled, args))  # pyright: ignore[reportCallIssue]

  jax.eval_shape(run, state)
  return sizes


def watch(layer: nnx.Module, watchers: Mapping[str, Callable[[tuple[int, ...]], Any]]) -> None:
  """Makes convolutions of a layer report the spatial size of each input, when traced.

  Changes the classes of these modules, so `layer` is to be a copy that nobody else has.
  """
  modules = modules_by_path(layer) if watchers else {}
  for path, watcher in watchers.items():
    module: Any = modules[path]
    object.__setattr__(module, "__class__", _watched(type(module)))
    module.spatial_shape_watcher = watcher


@dataclasses.dataclass(frozen=True)
class ExpectedSize:
  """A watcher that lets one size pass; hashable, so that compiled functions are found again."""

  path: str
  shape: tuple[int, ...]

  def __call__(self, called: tuple[int, ...]) -> None:
    """Raises a `ValueError` for another size."""
    advice = "wrap the layer in a new SpectralNorm with an example_input of the new size"
    check_size(self.path, called, self.shape, advice)


def expected_sizes(
  operators: Mapping[str, LinearOperator], sizes: Sizes
) -> tuple[ExpectedSize, ...]:
  """The one size of every convolution that is taken for its operator at this size."""
  expected = []
  for path, found in sizes.items():
    operator = operators.get(f"{path}/kernel".lstrip("/"))
    if isinstance(operator, Convolution) and found == {operator.spatial_shape}:
      expected.append(ExpectedSize(path, operator.spatial_shape))
  return tuple(expected)


@functools.cache
def _watched(kind: type) -> type:
  """A subclass of a convolution's class whose calls are watched."""

  def call(self, *args, **kwargs):
    self.spatial_shape_watcher(spatial_shape(self, args, kwargs))
    return kind.__call__(self, *args, **kwargs)

  return type(kind)(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def _filled(x: Any) -> Any:
  return jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x
