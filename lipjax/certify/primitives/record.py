"""What is known of a primitive, or of a pattern: one record each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, Range
from lipjax.certify.graph import Node

#: ``transfer(node, *operands)`` says how a node depends on its operands, or raises `CertifyError`.
Transfer = Callable[..., Depends]
#: ``rule(node, *ranges)``: from the operands' ranges to the node's, rounded outward.
RangeRule = Callable[..., Range | None]


class Record(NamedTuple):
  """What is known of one primitive.

  Attributes:
    transfer: how its result depends on operands that move. The docstring's first line is the
      row of the table in the documentation.
    range: between which numbers its result lies; None if that is not known.
    examples: functions of an array of shape (2, 3) in which it occurs, which the tests run.
  """

  transfer: Transfer
  range: RangeRule | None = None
  examples: Sequence[Callable[[Any], Any]] = ()


#: By the name of JAX's primitive, or of a pattern.
RECORDS: dict[str, Record] = {}


def record(
  *names: str, range: RangeRule | None = None, examples: Sequence[Callable[[Any], Any]] = ()
) -> Callable[[Transfer], Transfer]:
  """Registers what is known of primitives, or patterns."""

  def register(transfer: Transfer) -> Transfer:
    for name in names:
      RECORDS[name] = Record(transfer, range, examples)
    return transfer

  return register


def of_two_arrays(node: Node) -> CertifyError:
  """The error of a function of two arrays that move, of which no bound is known."""
  return CertifyError(
    f"{node.name!r} of two arrays that depend on the input{node.line} is no "
    "function of one array's entries, and its slope is not bounded: bound the function on a "
    "smaller domain, or write a rule with lipjax.register_rule for the part that has a bound."
  )
