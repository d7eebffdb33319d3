"""What a bound is made of: step by step, with the line of code and how much each step costs."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lipjax.certify.compiled import on_arrays
from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Facts
from lipjax.certify.graph import Graph, Node
from lipjax.certify.lipschitz import bounds_of, finished
from lipjax.certify.maps import Known, gains, live


class ExplanationStep(NamedTuple):
  """One array on the way from the input to the results.

  Attributes:
    place: its number.
    name: the primitive's, or that of the pattern that was told.
    shape: of the array.
    reads: the numbers of those that it depends on; constants are left out.
    gain: how far it moves at most when these do, the largest of several.
    bound: how far it moves at most for each unit that the input moves.
    width: the widest range of an entry's values, infinite where nothing is known.
    line: where it was written; empty inside of JAX.
  """

  place: int
  name: str
  shape: tuple[int, ...]
  reads: tuple[int, ...]
  gain: float
  bound: float
  width: float
  line: str


class Explanation(NamedTuple):
  """Steps of a bound, in order; as text it is a table.

  Attributes:
    steps: one for each array that the results depend on.
    engines: upper bounds of the whole function by the engine's name; the smallest counts.
  """

  steps: tuple[ExplanationStep, ...]
  engines: dict[str, float]

  def __str__(self) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in ("", "step", "shape", "reads", "gain", "bound", "width", "line"):
      table.add_column(head, overflow="fold")
    for step in self.steps:
      numbers = (f"{x:.4g}" if math.isfinite(x) else "" for x in step[4:7])
      reads = ", ".join(map(str, step.reads))
      table.add_row(str(step.place), step.name, str(step.shape), reads, *numbers, step.line)
    text = io.StringIO()
    Console(file=text, width=120, color_system=None).print(table, markup=False)
    lines = [line.rstrip() for line in text.getvalue().rstrip().splitlines()]
    found = ", ".join(f"{name} {value:.6g}" for name, value in self.engines.items())
    return "\n".join([*lines, "", f"upper bounds: {found}"])


def explain(
  fn: Callable[..., Any],
  argnums: int | Sequence[int] = 0,
  *,
  radius: Any | None = None,
  box: tuple[Any, Any] | None = None,
) -> Callable[..., Explanation]:
  """A function of the same arguments that says what `lipschitz_upper_bound` is made of.

  Every array between the input and the results is a step: by which primitive or pattern, how far
  it moves when those before it do, how far it moves for each unit that the input moves, and how
  wide the range of its values is. Where the bound jumps from one step to the next it is lost.

  Guarantee: the steps' bounds are upper bounds, as `lipschitz_upper_bound`'s.

  Args:
    fn: as in `lipschitz_upper_bound`.
    argnums: likewise.
    radius: likewise.
    box: likewise.

  Returns:
    A function of `fn`'s arguments, which must not be traced, with an `Explanation`: print it.

  Raises:
    CertifyError: as `lipschitz_upper_bound`.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> said = lipjax.explain(lambda x: jax.nn.softmax(3 * x))(jnp.zeros(4))
    >>> [(step.name, round(step.bound, 3)) for step in said.steps]
    [('input', 1.0), ('mul', 3.0), ('softmax', 1.5)]
  """

  def explained(*args: Any) -> Explanation:
    then = lambda found: (found[0], finished("default", found[1]))
    found = on_arrays(_numbers, fn, argnums, args, radius, box, then)
    if found is None:
      return Explanation((), {"product": 0.0})
    graph, result = found
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(result)):
      msg = "explain says numbers, which are not known inside of jit, grad or vmap."
      raise CertifyError(msg)
    (steps, by_engine), nodes = jax.device_get(result), graph.nodes
    numbers = {int(step["place"]): k for k, step in enumerate(steps)}
    rows = [_step(nodes[int(step["place"])], numbers, step) for step in steps]
    return Explanation(tuple(rows), {name: float(x) for name, x in by_engine.items()})

  return explained


def _numbers(graph: Graph, facts: list[Facts]) -> tuple[Any, dict[str, Any]]:
  """Of each step what is known; and the bounds of the whole."""
  known = Known(graph.nodes, facts)
  by_node, by_engine = bounds_of(graph, known, "default", has_liplt=True)
  bounds = by_node["liplt"]
  steps = [
    {
      "place": jnp.asarray(i),
      "reads": jnp.asarray(known.parents(i), int),
      "gain": functools.reduce(jnp.maximum, gains(known.part(i)), jnp.zeros(())),
      "bound": bounds[i],
      "width": _width(facts[i]),
    }
    for i in live(known, graph.outputs)
  ]
  return steps, by_engine


def _width(facts: Facts) -> Any:
  if facts.range is None:
    return jnp.asarray(jnp.inf)
  return jnp.max(facts.range.upper - facts.range.lower, initial=0)


def _step(node: Node, numbers: dict[int, int], found: dict[str, Any]) -> ExplanationStep:
  place, reads = numbers[int(found["place"])], tuple(numbers[int(k)] for k in found["reads"])
  gain = float(found["gain"]) if reads else 1.0
  what = (
    gain,
    float(found["bound"]),
    float(found["width"]),
    node.line.removeprefix(" (").removesuffix(")"),
  )
  return ExplanationStep(place, node.name or str(node.primitive), node.shape, reads, *what)
