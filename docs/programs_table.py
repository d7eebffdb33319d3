"""Programs as people write them, with their bounds, as Markdown for the page `rules`.

Each with its steepest slope, known from calculus or found by a long search; the tests look for
slopes above a bound and for bounds that have become looser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import lipjax

W = jnp.array([[1.0, -2.0, 0.5], [0.5, 1.0, -1.0], [0.0, 1.5, 1.0]])
STEPS = jnp.array([0.1, 1.0, 2.0])
MASK = jnp.array([True, True, False])
LOWER = jnp.tril(W) + jnp.eye(3)
SPECTRUM = jnp.array([1.0 + 1.0j, 0.5])


class Program(NamedTuple):
  """A program and what is known of its slope.

  Attributes:
    text: as it is written.
    fn: of one array.
    shape: of that.
    slope: the steepest there is, or that a long search found.
    box: where the input lies; None for everywhere.
  """

  text: str
  fn: Callable[[jax.Array], jax.Array]
  shape: tuple[int, ...]
  slope: float
  box: tuple[float, float] | None = None


def _layer_norm(x: jax.Array) -> jax.Array:
  return (x - x.mean()) / jnp.sqrt(x.var() + 0.01)


def _interp(x: jax.Array) -> jax.Array:
  return jnp.interp(x, jnp.arange(3.0), jnp.array([0.0, 3.0, 1.0]))


def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 0.01)


def _energy(x: jax.Array) -> jax.Array:
  return jax.nn.softplus(W @ x).sum()


PROGRAMS = [
  Program("(x - x.mean()) / sqrt(x.var() + 0.01)", _layer_norm, (3,), 10),
  Program("x * rsqrt(mean(x**2) + 0.01)", lambda x: x * lax.rsqrt(jnp.mean(x**2) + 0.01), (3,), 10),
  Program("jnp.linalg.norm(x)", jnp.linalg.norm, (3,), 1),
  Program("jnp.linalg.norm(x, axis=1)", lambda x: jnp.linalg.norm(x, axis=1), (2, 3), 1),
  Program("jnp.linalg.norm(x, 1)", lambda x: jnp.linalg.norm(x, 1), (3,), 3**0.5),
  Program("jnp.linalg.norm(x, inf)", lambda x: jnp.linalg.norm(x, jnp.inf), (3,), 1),
  Program("jnp.hypot(x[:2], x[2:])", lambda x: jnp.hypot(x[:2], x[2:]), (4,), 1),
  Program("x.std()", jnp.std, (3,), 3**-0.5),
  Program("norm(x - steps)", lambda x: jnp.linalg.norm(x - STEPS), (3,), 1),
  Program("sqrt(sum(x**2) + 0.01)", lambda x: jnp.sqrt(jnp.sum(x**2) + 0.01), (3,), 1),
  Program("x / maximum(norm(x), 0.5)", lambda x: x / jnp.maximum(jnp.linalg.norm(x), 0.5), (3,), 2),
  Program("x / (norm(x) + 0.5)", lambda x: x / (jnp.linalg.norm(x) + 0.5), (3,), 2),
  Program("unit(x) @ unit(W).T", lambda x: _unit(x) @ _unit(W).T, (3,), 13.898),
  Program("exp(clip(x, -10, 2))", lambda x: jnp.exp(jnp.clip(x, -10, 2)), (3,), 7.3891),
  Program("sqrt(x**2 + 0.01)", lambda x: jnp.sqrt(x**2 + 0.01), (3,), 1),
  Program("grad(softplus energy)", jax.grad(_energy), (3,), 1.912),
  Program(
    "grad(logsumexp)(x)", jax.grad(lambda x: jax.nn.logsumexp(x)), (3,), 0.5
  ),
  Program("clip(x, -steps, steps)", lambda x: jnp.clip(x, -STEPS, STEPS), (3,), 1),
  Program("maximum(x, steps)", lambda x: jnp.maximum(x, STEPS), (3,), 1),
  Program("where(x > 0, x, steps * x)", lambda x: jnp.where(x > 0, x, STEPS * x), (3,), 2),
  Program(
    "clamp(-|y|, x, |y|)", lambda x: lax.clamp(-abs(x[1:]), x[:-1], abs(x[1:])), (3,), 2**0.5
  ),
  Program("jnp.interp(x, [0, 1, 2], [0, 3, 1])", _interp, (4,), 3.0),
  Program("jnp.median(x)", jnp.median, (4,), 2**-0.5),
  Program("jnp.quantile(x, 0.3)", lambda x: jnp.quantile(x, 0.3), (3,), 0.72112),
  Program("jnp.logaddexp(x[:2], x[2:])", lambda x: jnp.logaddexp(x[:2], x[2:]), (4,), 1),
  Program("softmax(x, where=mask)", lambda x: jax.nn.softmax(x, where=MASK), (3,), 0.5),
  Program("logsumexp(x, where=mask)", lambda x: jax.nn.logsumexp(x, where=MASK), (3,), 1),
  Program("logsumexp(x, b=steps)", lambda x: jax.nn.logsumexp(x, b=STEPS), (3,), 1),
  Program("exp(x) / exp(x).sum()", lambda x: jnp.exp(x) / jnp.exp(x).sum(), (3,), 0.5),
  Program("fft(x).real", lambda x: jnp.fft.fft(x).real, (4,), 2),
  Program("abs(rfft(x))", lambda x: jnp.abs(jnp.fft.rfft(x)), (4,), 2),
  Program(
    "irfft(rfft(x) * spectrum)",
    lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * SPECTRUM, n=3), (3,), 1,
  ),
  Program("ifft2(fft2(x)).real", lambda x: jnp.fft.ifft2(jnp.fft.fft2(x)).real, (2, 3), 1),
  Program("jnp.linalg.solve(L, x)", lambda x: jnp.linalg.solve(LOWER, x), (3,), 0.74875),
  Program(
    "solve_triangular(L, x)",
    lambda x: jax.scipy.linalg.solve_triangular(LOWER, x, lower=True), (3,), 0.74875,
  ),
  Program("jnp.prod(x)", jnp.prod, (3,), 3**0.5, (-1.0, 1.0)),
  Program("jnp.cumprod(x)", jnp.cumprod, (3,), 2.247, (-1.0, 1.0)),
  Program("erfinv(x)", jax.scipy.special.erfinv, (3,), 1.1126, (-0.5, 0.5)),
  Program("arctan2(y, x)", lambda x: jnp.arctan2(x[:1], x[1:]), (2,), 2**0.5, (0.5, 1.0)),
  Program("arcsin(x)", jnp.arcsin, (3,), 1.1547, (-0.5, 0.5)),
  Program("arctanh(x)", jnp.arctanh, (3,), 1.3333, (-0.5, 0.5)),
  Program("x.at[0].multiply(3)", lambda x: x.at[0].multiply(3.0), (3,), 3),
  Program("x.at[:2].apply(f)", lambda x: x.at[:2].apply(lambda v: jnp.tanh(3 * v)), (3,), 3),
]  # fmt: skip


def bound(program: Program) -> float:
  """The upper bound of a program."""
  middle = 0.0 if program.box is None else sum(program.box) / 2
  upper = lipjax.lipschitz_upper_bound(program.fn, box=program.box)
  return float(upper(jnp.full(program.shape, middle)))


def programs() -> str:
  """A row for each: what is written, its bound, and the steepest slope."""
  lines: list[tuple[Any, ...]] = [("program", "on", "bound", "steepest slope")]
  lines.append(("---",) * 4)
  for program in PROGRAMS:
    where = "everywhere" if program.box is None else f"[{program.box[0]:g}, {program.box[1]:g}]"
    text = program.text.replace("|", "\\|")
    lines.append((f"`{text}`", where, f"{bound(program):.4g}", f"{program.slope:.4g}"))
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
