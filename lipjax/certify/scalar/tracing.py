"""The graph of a scalar function that is given as JAX code, or as its jaxpr."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from lipjax.certify.errors import CertifyError
from lipjax.certify.reading.reader import read_jaxpr
from lipjax.certify.scalar.graph import Graph, Node, build, constant_of
from lipjax.jaxprs.inline import bind, inline
from lipjax.jaxprs.versions import opened


def graph_of(fn: Callable[..., Any], dtype: DTypeLike) -> Graph:
  """Of a function from an array to an array of the same shape, each entry to its own."""
  return graph_of_jaxpr(jax.make_jaxpr(fn)(jax.ShapeDtypeStruct((), np.dtype(dtype))))


def graph_of_jaxpr(closed: Any) -> Graph:
  """Of a jaxpr of one input and one output, scalars or arrays of one shape."""
  jaxpr = opened(closed)
  if len(jaxpr.invars) != 1 or len(jaxpr.outvars) != 1:
    msg = "A scalar function has one input and one output."
    raise CertifyError(msg)
  graph, arrays = read_jaxpr(closed)
  if not graph.outputs:  # the same number for all inputs
    zero = np.zeros(jaxpr.invars[0].aval.shape, jaxpr.invars[0].aval.dtype)
    (value,) = inline(closed).run([zero], bind)
    return Graph((Node("input"), constant_of(np.asarray(value).flat[0])))
  base = next(i for i, node in enumerate(graph.nodes) if node.name == "input")
  return build(graph, arrays, base, graph.outputs[0])
