"""The padding of a convolution, from the names that libraries use to numbers."""

from __future__ import annotations

import math
from typing import Any, get_args

from jax import lax

from lipjax.operators.window import PaddingMode, Window


def padding_pair(padding: Any, axis: int, window: Window) -> tuple[int, int]:
  """Padding before and after, for a window whose own is still 0."""
  if not isinstance(padding, str):
    return padding[axis]
  if padding == "VALID":
    return 0, 0
  if padding == "CAUSAL":
    return window.span - 1, 0
  if padding in ("CIRCULAR", "REFLECT"):
    return (window.span - 1) // 2, window.span // 2
  size = (window.size,), (window.span,), (window.stride,)
  return lax.padtype_to_pads(*size, padding)[0]


def transposed_padding(padding, size, taps, stride, dilation, *, transpose_kernel):
  """Padding of the dilated input, as `jax.lax.conv_transpose` and Flax define it."""
  span = (taps - 1) * dilation + 1
  if padding == "CIRCULAR":
    # Flax folds the VALID result onto a circle, after centering it by its own rule.
    circle = size * stride
    excess = -max(span - stride, 0) % (2 * circle)
    low = span - 1 + (excess // 2 if transpose_kernel else (excess + 1) // 2)
    return low, span - 1 - low
  total = span + stride - 2 + (max(span - stride, 0) if padding == "VALID" else 0)
  if padding == "SAME":
    low = span - 1 if stride > span - 1 else math.ceil(total / 2)
  elif padding == "VALID":
    low = span - 1
  else:
    msg = f"padding is {padding!r}; expected 'SAME', 'VALID', 'CIRCULAR', or numbers."
    raise ValueError(msg)
  return low, total - low


def canonical_padding(padding: Any, mode: str, n: int) -> tuple[Any, str]:
  """A string or a tuple of pairs, and the mode in lower case."""
  mode = mode.lower()
  if mode not in get_args(PaddingMode):
    msg = f"padding_mode is {mode!r}; expected one of {get_args(PaddingMode)}."
    raise ValueError(msg)
  if isinstance(padding, str):
    return _named_padding(padding.upper(), mode, n)
  if isinstance(padding, int):
    padding = (padding,) * n
  pairs = tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
  if len(pairs) != n or any(len(pair) != 2 for pair in pairs):
    msg = f"padding is {padding!r}; expected one integer or pair for each of {n} axes."
    raise ValueError(msg)
  return pairs, mode


def _named_padding(padding: str, mode: str, n: int) -> tuple[str, str]:
  if padding in ("CIRCULAR", "REFLECT"):
    return padding, padding.lower()
  if padding == "CAUSAL" and n != 1:
    msg = f"'CAUSAL' padding is for one spatial axis; this convolution has {n}."
    raise ValueError(msg)
  if padding not in ("SAME", "SAME_LOWER", "VALID", "CAUSAL"):
    msg = (
      f"padding is {padding!r}; expected 'SAME', 'SAME_LOWER', 'VALID', 'CIRCULAR', 'REFLECT',"
      " 'CAUSAL', an integer, or one integer or pair for each axis."
    )
    raise ValueError(msg)
  return padding, mode
