r"""A function's own derivatives: traced, and evaluated without anybody's rules.

``custom_jvp``, ``custom_vjp`` and ``stop_gradient`` say what JAX shall take for a derivative,
and need not tell the truth: a gradient scaled by 100 is a common trick. `evaluate` runs a traced
function with each of them replaced by what it computes, inside jit, remat, scan, while and
cond as well, so that the derivative is that of the arithmetic.

What is left is JAX's convention at kinks (0 for ``abs`` at 0, one half each for ``max`` of
equal numbers) and the rare primitive with its own derivative (`jax.lax.custom_linear_solve`,
`jax.lax.custom_root`), which stays.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from lipjax.certify.reading.scatter_apply import has_function, written_out
from lipjax.jaxprs.inline import Program, bind, inline
from lipjax.measure.scaling import nonzero

#: Comparisons, with the sign of ``x - y`` that makes them true.
_COMPARISONS = {primitives.gt_p: 1, primitives.ge_p: 1, primitives.lt_p: -1, primitives.le_p: -1}

#: What only moves entries around: done to a decision's margin too.
_MOVES = {
  primitives.broadcast_in_dim_p,
  primitives.reshape_p,
  primitives.squeeze_p,
  primitives.transpose_p,
}


class _Decision(NamedTuple):
  """A comparison's result, and by how much it is true: positive where it is."""

  value: jax.Array
  margin: jax.Array


def evaluate(program: Program, args: Sequence[Any], *, soften: bool = False) -> list[Any]:
  """A traced function at `args`, without custom derivative rules and ``stop_gradient``.

  Args:
    program: what `inline` makes of it.
    args: its flat inputs.
    soften: keep values and first derivatives, but let the slope of max, min, abs, clamp and
      of ``where(x > y, …)`` change over a neighbourhood of the kink, as reverse mode over
      the derivative sees it. JAX's second derivative of a piecewise linear function is 0
      and does not say where the first one is larger; this one does, roughly. The tangents of
      forward mode say how far inputs may move: beyond that, kinks are out of reach.

  Returns:
    The flat outputs.
  """
  apply = functools.partial(_apply, soften=soften)
  return [_plain(value) for value in program.run(args, apply)]


def float_dtypes(closed: Any) -> set[Any]:
  """The floating-point dtypes that a traced function computes with."""
  avals = (variable.aval for eqn in _equations(closed) for variable in eqn.outvars)
  dtypes = {aval.dtype for aval in avals if hasattr(aval, "dtype")}
  return {dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}


def n_numbers(closed: Any) -> int:
  """How many numbers the traced function reads and computes; a loop's body counts once."""
  computed = (getattr(v.aval, "size", 0) for eqn in _equations(closed) for v in eqn.outvars)
  return sum(computed) + sum(jnp.size(x) for x in closed.consts)


def _apply(eqn: Any, inputs: list[Any], soften: bool) -> list[Any]:
  if eqn.primitive is primitives.stop_gradient_p:
    return inputs
  plain = list(map(_plain, inputs))
  if _is_applied(eqn):
    return [written_out(eqn, functools.partial(_apply, soften=soften))(*plain)]
  softened = _softened(eqn, inputs) if soften else None
  if softened is not None:
    return [softened]
  params = jax.tree.map(
    lambda param: _rewritten(param, soften), eqn.params, is_leaf=lambda param: _is_closed(param)
  )
  return bind(eqn._replace(params=params), plain)


def _is_applied(eqn: Any) -> bool:
  """Whether it is a scatter with a function, of which JAX has no derivative."""
  return eqn.primitive is primitives.scatter_p and has_function(eqn)


def _is_closed(param: Any) -> bool:
  return hasattr(param, "eqns") and hasattr(param, "consts")


def _rewritten(param: Any, soften: bool) -> Any:
  """A body of scan, while, cond, … without rules; anything else as it is."""
  if not _is_closed(param) or not (_holds_rules(param) or soften):
    return param
  body = lambda *args: evaluate(inline(param), args, soften=soften)
  like = lambda aval: jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
  return jax.make_jaxpr(body)(*map(like, param.in_avals))


def _holds_rules(closed: Any) -> bool:
  rules = {primitives.custom_jvp_call_p, primitives.custom_vjp_call_p, primitives.stop_gradient_p}
  return any(eqn.primitive in rules or _is_applied(eqn) for eqn in _equations(closed))


def _equations(jaxpr: Any) -> Iterator[Any]:
  for eqn in jaxpr.eqns:
    yield eqn
    for param in jax.tree.leaves(eqn.params, is_leaf=lambda param: hasattr(param, "eqns")):
      if hasattr(param, "eqns"):
        yield from _equations(param)


def _plain(value: Any) -> Any:
  return value.value if isinstance(value, _Decision) else value


# ---- softened kinks ----


def _softened(eqn: Any, inputs: list[Any]) -> Any:
  """The output with a slope that varies near the kink, or None where there is none."""
  primitive, plain = eqn.primitive, list(map(_plain, inputs))
  if not plain or not jnp.issubdtype(jnp.result_type(plain[-1]), jnp.floating):
    if primitive in _MOVES and isinstance(inputs[0], _Decision):
      move = lambda x: primitive.bind(x, **primitive.get_bind_params(eqn.params))
      return _Decision(*map(move, inputs[0]))
    return None
  if primitive in _COMPARISONS:
    margin = _COMPARISONS[primitive] * (plain[0] - plain[1])
    return _Decision(primitive.bind(*plain, **eqn.params), margin)
  if primitive is primitives.max_p:
    return _choose(plain[0] - plain[1], *plain)
  if primitive is primitives.min_p:
    return _choose(plain[1] - plain[0], *plain)
  if primitive is primitives.abs_p:
    return _choose(plain[0], plain[0], -plain[0])
  if primitive is primitives.clamp_p:
    low, x, high = jnp.broadcast_arrays(*plain)
    above = _choose(x - low, x, low)
    return _choose(high - above, above, high)
  if primitive is primitives.select_n_p and len(inputs) == 3 and isinstance(inputs[0], _Decision):
    return _choose(inputs[0].margin, plain[2], plain[1])
  return None


@jax.custom_jvp
def _choose(margin: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
  return jnp.where(margin >= 0, yes, no)


@_choose.defjvp
def _(primals, tangents):
  margin, yes, no = primals
  d_margin, d_yes, d_no = tangents
  step = _step(margin, jnp.minimum(_rms(margin), _rms(lax.stop_gradient(d_margin))))
  # Not `_choose`: reverse mode would take this rule for it once more.
  return jnp.where(margin >= 0, yes, no), step * d_yes + (1 - step) * d_no


@jax.custom_vjp
def _step(margin: jax.Array, width: jax.Array) -> jax.Array:
  """1 where the margin is positive and 0 where it is not; `_pull` is its derivative."""
  return jnp.heaviside(margin, 0.5)


def _pull(given: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, None]:
  """Pulls at the margins whose side is wrong: a step there would be a gain.

  A margin on its right side, and not close to the kink, is left alone: in a sum over many
  units those would outweigh the few that are still wrong, as in a least-squares fit of a
  classifier; this is the perceptron's rule instead. Square roots, so that units of little
  influence are heard; tails, so that far ones are reached. The width is that of all
  margins, and at most that of how far they move: in a small ball most are out of reach.
  """
  (margin, width), typical = given, _rms(cotangent)
  wrong = jnp.sign(cotangent) * margin <= 0.1 * width
  pull = jnp.sign(cotangent) * jnp.sqrt(jnp.abs(cotangent) / typical) * typical
  return jnp.where(wrong, pull / (width * (1 + jnp.square(margin / width))), 0), None


_step.defvjp(lambda *given: (_step(*given), given), _pull)


def _rms(x: jax.Array) -> jax.Array:
  return nonzero(jnp.sqrt(jnp.mean(jnp.square(x))))
