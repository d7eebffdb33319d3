"""``--override 'REGEX=Dense((0,), (1, 2))'``: an operator as it is written in Python."""

from __future__ import annotations

import argparse
import ast
import re
from typing import Any

import lipjax
from lipjax.operators.base import LinearOperator

OPERATORS = {
  name: getattr(lipjax, name) for name in ("Dense", "Diagonal", "ReshapedKernel", "Convolution")
}
EXPECTED = "expected REGEX=OPERATOR, with None or one of " + ", ".join(
  f"{name}(…)" for name in OPERATORS
)


def override(text: str) -> tuple[str, LinearOperator | None]:
  """An argparse type. Nothing is evaluated but literals."""
  regex, equals, written = text.rpartition("=")
  while equals and written.count("(") != written.count(")"):  # an = between brackets
    regex, equals, rest = regex.rpartition("=")
    written = f"{rest}={written}"
  try:
    re.compile(regex)
    if not equals:
      raise ValueError
    return regex, _operator(ast.parse(written.strip(), mode="eval").body)
  except (re.error, SyntaxError, ValueError, TypeError) as error:
    msg = f"{text!r}: {EXPECTED}" + (f"; {error}" if str(error) else "")
    raise argparse.ArgumentTypeError(msg) from error


def _operator(node: Any) -> LinearOperator | None:
  if isinstance(node, ast.Constant) and node.value is None:
    return None
  if not isinstance(node, ast.Call):
    raise ValueError
  # As it is shown elsewhere, lipjax.Dense(…) too.
  name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
  if name not in OPERATORS:
    raise ValueError
  args = [ast.literal_eval(x) for x in node.args]
  return OPERATORS[name](*args, **{str(x.arg): ast.literal_eval(x.value) for x in node.keywords})
