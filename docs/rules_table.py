"""What lipjax knows of primitives and activations, as Markdown for the page `rules`.

Read from the records that the bounds themselves use, so that the page cannot go stale.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import jax
import jax.numpy as jnp

from lipjax.certify.primitives import RECORDS
from lipjax.certify.scalar.graph import NAMES
from lipjax.certify.scalar.search import slope_interval

_OF_JAX = (
  "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "identity", "leaky_relu",
  "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softplus",
  "sparse_plus", "sparse_sigmoid", "squareplus", "tanh",
)  # fmt: skip
ACTIVATIONS = {
  **{name: getattr(jax.nn, name) for name in _OF_JAX},
  "gelu(approximate=False)": lambda x: jax.nn.gelu(x, approximate=False),
  "elu(alpha=2)": lambda x: jax.nn.elu(x, 2.0),
  "leaky_relu(negative_slope=-3)": lambda x: jax.nn.leaky_relu(x, -3.0),
  "sin": jnp.sin,
  "x * sin(x) / (1 + x**2)": lambda x: x * jnp.sin(x) / (1 + x**2),
}


def _in_a_line(text: str | None) -> str:
  return " ".join((text or "").split()).replace("|", "\\|")


def _code(names) -> str:
  return ", ".join(f"`{name}`" for name in sorted(names))


def _table(heads: tuple[str, ...], rows) -> str:
  lines = [heads, ("---",) * len(heads), *rows]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def modules() -> dict[str, dict]:
  """For each module of records their rules, each with the primitives that it is for."""
  found: dict[str, dict] = defaultdict(lambda: defaultdict(list))
  for name, record in RECORDS.items():
    found[record.transfer.__module__][record.transfer].append(name)
  return dict(found)


def primitives() -> str:
  """A table for each module of rules, under the module's own first line."""
  parts = []
  for module, rules in sorted(modules().items()):
    rows = sorted((_code(names), _in_a_line(rule.__doc__)) for rule, names in rules.items())
    summary = (sys.modules[module].__doc__ or "").split("\n\n")[0]
    parts.append(f"**{_in_a_line(summary)}** (`{module}`)\n")
    parts.append(_table(("primitives", "constant"), rows))
  return "\n".join(parts)


def activations() -> str:
  """The slopes that are found of JAX's activations."""
  rows = []
  for name, fn in ACTIVATIONS.items():
    slopes = slope_interval(fn)
    lower, upper, largest = (f"{x:.6g}" for x in (*slopes, max(map(abs, slopes))))
    rows.append((f"`{name}`", lower, upper, largest))
  return _table(("function", "smallest slope", "largest slope", "constant"), rows)


def scalar_primitives() -> str:
  """What the search for slopes can look through."""
  return _code(NAMES) + "."
