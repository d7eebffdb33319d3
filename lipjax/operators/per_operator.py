"""Numbers that depend on how many inputs and outputs an operator has."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import optax

from lipjax.operators.base import LinearOperator

#: From an operator and its leaf's shape to how many inputs and outputs count.
Sides = Callable[[LinearOperator, tuple[int, ...]], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class PerOperator:
  r"""A number for each operator, by its size: :math:`c\,(d_{out}/d_{in})^p`.

  With :math:`p = 1/2` as the radius of a spectral norm it is the spectral condition: inputs whose
  entries have root mean square 1 give outputs of at most :math:`c`, whatever the width. It takes
  the place of a radius or of a strength. :math:`d_{in}` and :math:`d_{out}` are those of the
  operator that the layout tells: all pixels of all channels for a `Convolution`, the vocabulary and
  the features for an embedding.

  Guarantee: exact, a description.

  Args:
    scale: :math:`c`, a positive number or a schedule of the update count.
    power: :math:`p`.

  Raises:
    ValueError: a scale that is not positive.

  Example:
    >>> import jax.numpy as jnp, lipjax, optax
    >>> params = {"kernel": 5 * jnp.ones((8, 2))}  # (inputs, outputs)
    >>> radius = lipjax.PerOperator(1.0)
    >>> projected = lipjax.project_spectral_ball(params, radius)  # √(2/8)
    >>> round(float(lipjax.spectral_norms(projected)["kernel"]), 4)
    0.5

  Reference:
    Yang, Simon & Bernstein (2023), arXiv:2310.17813.
  """

  scale: optax.ScalarOrSchedule = 1.0
  power: float = 0.5

  def __post_init__(self):
    if isinstance(self.scale, numbers.Real) and not float(self.scale) > 0:
      msg = f"scale is {self.scale}; expected a positive number."
      raise ValueError(msg)

  def value(self, inputs: int, outputs: int, count: Any = None) -> Any:
    """For a map of so many inputs and outputs, after `count` updates."""
    scale = self.scale(count) if callable(self.scale) else self.scale
    return scale * (outputs / max(inputs, 1)) ** self.power


def sides(operator: LinearOperator, shape: tuple[int, ...]) -> tuple[int, int]:
  """How many inputs and outputs one slice has."""
  stacked = max(math.prod(operator.batch_shape(shape)), 1)
  both = operator.input_shape(shape), operator.output_shape(shape)
  return math.prod(both[0]) // stacked, math.prod(both[1]) // stacked


def numbers_by_path(
  number: Any,
  operators: Mapping[str, LinearOperator],
  leaves: Mapping[str, Any],
  count: Any,
  of: Sides = sides,
) -> dict[str, Any]:
  """What a number, a schedule or a `PerOperator` is for each operator after `count` updates."""
  if isinstance(number, PerOperator):
    shapes = {path: tuple(leaves[path].shape) for path in operators}
    return {p: number.value(*of(op, shapes[p]), count) for p, op in operators.items()}
  return dict.fromkeys(operators, number(count) if callable(number) else number)
