"""A function as the search takes it: from one vector to another, and told apart by what it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lipjax.certify.domain import domains, project, surroundings
from lipjax.certify.lower.arithmetic import evaluate, float_dtypes, n_numbers
from lipjax.jaxprs.inline import inline
from lipjax.jaxprs.key import Keyed, with_constants_as_inputs
from lipjax.operators.paths import path_string
from lipjax.operators.products import compute_dtype


class Function(NamedTuple):
  """A traced function of flat leaves without the arrays that it closes over.

  Two traces of one function are equal, so what is compiled for one serves the other.

  Attributes:
    keyed: its program, whose first inputs are those arrays.
    leaves: shapes and dtypes of the other inputs.
    dtype: of the vectors.
    eps: of the coarsest dtype in it.
    n_out: entries of its outputs.
    n_numbers: how many it reads and computes.
  """

  keyed: Keyed
  leaves: tuple[jax.ShapeDtypeStruct, ...]
  dtype: jnp.dtype
  eps: float
  n_out: int
  n_numbers: int

  @property
  def n_in(self) -> int:
    """Entries of the leaves together."""
    return sum(leaf.size for leaf in self.leaves)

  def flat(self, consts: Sequence[Any], soften: bool = False) -> Callable[[jax.Array], jax.Array]:
    """The function from one vector to another."""

    def f(x):
      outputs = evaluate(self.keyed.program, [*consts, *self.split(x)], soften=soften)
      return jnp.concatenate([jnp.ravel(y).astype(self.dtype) for y in outputs])

    return f

  def split(self, x: jax.Array) -> list[jax.Array]:
    """A vector as leaves, which may round it."""
    ends = [0]
    for leaf in self.leaves:
      ends.append(ends[-1] + leaf.size)
    pieces = zip(self.leaves, ends[:-1], ends[1:], strict=True)
    return [x[i:j].reshape(leaf.shape).astype(leaf.dtype) for leaf, i, j in pieces]

  def join(self, leaves: Sequence[jax.Array]) -> jax.Array:
    """Leaves as one vector, exactly."""
    flat = [jnp.ravel(leaf).astype(self.dtype) for leaf in leaves]
    return jnp.concatenate(flat) if flat else jnp.zeros(0, self.dtype)


class Values(NamedTuple):
  """What a call brings: arrays closed over, the argument, and the `surroundings` of a domain."""

  consts: list[Any]
  x: jax.Array
  around: tuple[jax.Array, jax.Array] | None


def traced(
  fn: Callable[..., Any], argnums: Any, args: tuple[Any, ...], kwargs: Any, radius: Any, box: Any
) -> tuple[Function, Values]:
  """The function in its arguments `argnums`, restricted to a domain, and the call's values.

  Raises:
    ValueError: an argument that is not there, or an argument or output that is not
      floating-point.
  """
  chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
  if any(not -len(args) <= i < len(args) for i in chosen):
    msg = (
      f"argnums is {argnums} and the function was called with {len(args)} positional"
      " arguments; the argument in question must be one of them."
    )
    raise ValueError(msg)
  given = [args[i] for i in chosen]
  leaves, structure = jax.tree.flatten(given)
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(given)[0]:
    _check_float(leaf, f"args[{chosen[key_path[0].idx]}]", path_string(key_path[1:]))
  leaves = [jnp.asarray(leaf) for leaf in leaves]
  domain = domains(leaves, radius, box)

  def of_leaves(*leaves):
    leaves = project(leaves, domain)
    replaced = list(args)
    for i, value in zip(chosen, jax.tree.unflatten(structure, leaves), strict=True):
      replaced[i] = value
    return fn(*replaced, **kwargs)

  # Matrix units would round float32 products to TF32 or bfloat16.
  with jax.default_matmul_precision("highest"):
    closed, outputs = jax.make_jaxpr(of_leaves, return_shape=True)(*leaves)
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(outputs)[0]:
    _check_float(leaf, "the output", path_string(key_path))
  program, consts = with_constants_as_inputs(inline(closed))
  dtypes = float_dtypes(closed) | {leaf.dtype for leaf in leaves}
  ends = (*leaves, *jax.tree.leaves(outputs))
  function = Function(
    keyed=Keyed(program),
    leaves=tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves),
    dtype=compute_dtype(jnp.result_type(*(x.dtype for x in ends))),
    eps=max(float(jnp.finfo(dtype).eps) for dtype in dtypes),
    n_out=sum(leaf.size for leaf in jax.tree.leaves(outputs)),
    n_numbers=n_numbers(closed),
  )
  return function, Values(consts, function.join(leaves), surroundings(domain, function.join))


def _check_float(leaf: Any, name: str, path: str) -> None:
  where = f"{name} (leaf {path!r})" if path else name
  dtype = getattr(leaf, "dtype", None)
  found = type(leaf).__name__ if dtype is None else str(dtype)
  if isinstance(leaf, float) or (dtype is not None and jnp.issubdtype(dtype, jnp.floating)):
    return
  msg = (
    f"{where} is {found}; a slope needs floating-point arrays. Cast it, or keep it out of the"
    " function: lambda x: fn(x, labels) for an input, lambda x: fn(x)[0] for an output."
  )
  raise ValueError(msg)
