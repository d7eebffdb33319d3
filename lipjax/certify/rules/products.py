"""Products with weights."""

from __future__ import annotations

from typing import Any

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Node
from lipjax.certify.interpreter import rule_for
from lipjax.certify.jaxprs import source_line
from lipjax.certify.linear_parts import convolution_part, dot_part


@rule_for("dot_general")
def dot_general(eqn: Any, left: Any, right: Any) -> Any:
  """With a constant: the norm of its matrix, the largest of a batch."""
  if isinstance(left, Node) and isinstance(right, Node):
    raise CertifyError(_two(eqn))
  is_left = isinstance(right, Node)
  weight: Any = left if is_left else right
  x: Any = right if is_left else left
  part = dot_part(weight, eqn.params["dimension_numbers"], len(x.shape), is_left=is_left)
  return Node(eqn.outvars[0].aval, part, (x,))


@rule_for("conv_general_dilated")
def conv_general_dilated(eqn: Any, x: Any, kernel: Any) -> Any:
  """With a constant kernel: the norm of the convolution itself."""
  if not isinstance(x, Node) or isinstance(kernel, Node):
    raise CertifyError(_two(eqn))
  if eqn.params["batch_group_count"] != 1:
    msg = f"A convolution with batch_group_count > 1{source_line(eqn)} has no rule."
    raise CertifyError(msg)
  part = convolution_part(kernel, x_shape=x.shape, params=eqn.params)
  return Node(eqn.outvars[0].aval, part, (x,))


def _two(eqn: Any) -> str:
  return (
    f"{eqn.primitive.name!r} of two arrays that depend on the input{source_line(eqn)} is not "
    "Lipschitz: its slope grows with them. Self-attention is of this kind."
  )
