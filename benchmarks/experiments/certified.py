"""Classifiers trained to be certified: clean, certified and attacked accuracy."""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lipjax
from benchmarks.experiments import options, report, supervised_data
from benchmarks.experiments.certified_methods import WIDTH, Method, methods
from benchmarks.experiments.supervised_data import Data
from benchmarks.experiments.supervised_network import ATTACK_STEPS, survives
from lipjax.certify.bounds.effort import Effort
from lipjax.commands.demo_data import Split
from lipjax.commands.demo_statistics import estimate

FULL = options.Budget(seeds=3, steps=2000)
QUICK = options.Budget(seeds=2, steps=20)
BATCH, RATE, CHUNK = 128, 2e-3, 50
#: Of l2 balls, in pixels of [0, 1]; strengths are chosen by the middle one.
RADII = {"digits": (0.1, 0.3, 0.5), "CIFAR-10": (18 / 255, 36 / 255, 72 / 255)}


class Result(NamedTuple):
  """Of the networks of one method, with the strength that was chosen: shares of test images.

  Attributes:
    strength: which.
    validation: for each strength the certified accuracy that it was chosen by, first seed.
    clean: accuracy, a seed each.
    certified: accuracy at each radius, (radii, seeds).
    attacked: likewise, how many images no attack has moved to another class.
  """

  strength: float
  validation: dict[float, float]
  clean: np.ndarray
  certified: np.ndarray
  attacked: np.ndarray


EFFORTS: tuple[Effort, ...] = ("default", "tight")


@functools.cache
def _pairs(logits: Any, effort: Effort) -> Callable[..., jax.Array]:
  """Compiled once for the networks of one kind."""
  return jax.jit(lipjax.margin_upper_bounds(logits, argnums=1, effort=effort))


@functools.cache
def _survives(logits: Any) -> Callable[..., jax.Array]:
  """Likewise."""
  return jax.jit(
    lambda params, data, radius: survives(functools.partial(logits, params), data, radius)
  )


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_common(parser, full=FULL, quick=QUICK)
  supervised_data.add_argument(parser)


def run(args: argparse.Namespace) -> None:
  """Trains, chooses strengths, certifies, attacks, prints and writes."""
  data = supervised_data.asked_for(args)
  seeds, steps = options.budget(args, full=FULL, quick=QUICK)
  results, effort = {}, EFFORTS[not args.quick]
  with report.progress() as bar:
    for name, method in methods(data.train.images.shape[1]).items():
      n = len(method.strengths) + seeds - 1
      task = bar.add_task(f"{name}: {n} networks", total=n * steps)
      advance = lambda n, task=task: bar.advance(task, n)
      results[name] = _result(method, data, seeds, steps, effort, advance)
  notes = _notes(results, data, seeds, steps, effort)
  report.show(_table(results, data), [], notes)
  settings = {"data": data.name, "seeds": seeds, "steps": steps, "quick": args.quick}
  contents = {"settings": settings, "radii": RADII[data.name], "notes": notes}
  contents |= {"methods": {name: result._asdict() for name, result in results.items()}}
  report.write(args.out, "certified", _figure(results, data), contents)


def _result(
  method: Method, data: Data, seeds: int, steps: int, effort: Effort, advance: Any
) -> Result:
  radii, train = RADII[data.name], _trainer(method, data.train, steps, advance)
  found = {strength: train(strength, 0) for strength in method.strengths}
  proved = functools.partial(_certified, method.logits)
  of = lambda params: float(proved(params, data.validation, radii, "default")[len(radii) // 2])
  validation = {strength: of(params) for strength, params in found.items()}
  best = max(validation, key=validation.__getitem__)
  networks = [found[best], *(train(best, seed) for seed in range(1, seeds))]
  shares = [_measured(method.logits, params, data.test, radii, effort) for params in networks]
  clean, certified, attacked = (np.stack(x, axis=-1) for x in zip(*shares, strict=True))
  return Result(best, validation, clean, certified, attacked)


def _trainer(
  method: Method, data: Split, steps: int, advance: Callable[[int], None]
) -> Callable[[float, int], Any]:
  """From a strength and a seed to the weights that the trained network is applied with."""
  optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

  def step(strength, key, data, carry, i):
    params, state, kept = carry
    rows = jax.random.randint(jax.random.fold_in(key, i), (BATCH,), 0, len(data.labels))
    batch = Split(data.images[rows], data.labels[rows])
    gradients, kept = jax.grad(method.loss, has_aux=True)(params, kept, batch, strength)
    updates, state = optimizer.update(gradients, state)
    return (optax.apply_updates(params, updates), state, kept), None

  @jax.jit
  def run(strength, key, data, carry, steps):
    return jax.lax.scan(functools.partial(step, strength, key, data), carry, steps)[0]

  def train(strength: float, seed: int) -> Any:
    key = jax.random.key(seed)
    params = method.params(key, data.images.shape[1])
    carry = params, optimizer.init(params), method.init(params)
    for begin in range(0, steps, CHUNK):
      some = np.arange(begin, min(begin + CHUNK, steps))
      carry = jax.block_until_ready(run(strength, key, data, carry, some))
      advance(len(some))
    params, _, kept = carry
    return method.weights(params, kept, strength)

  return train


def _certified(
  logits: Any, params: Any, data: Split, radii: tuple[float, ...], effort: Effort
) -> np.ndarray:
  bounds = _pairs(logits, effort)(params, jnp.zeros(data.images.shape[1]))
  radius = lipjax.certified_radius(logits(params, data.images), bounds, labels=data.labels)
  return np.stack([np.mean(radius > r) for r in radii])


def _measured(
  logits: Any, params: Any, data: Split, radii: tuple[float, ...], effort: Effort
) -> tuple[Any, ...]:
  attacked = _survives(logits)
  found = np.stack([jnp.mean(attacked(params, data, radius)) for radius in (0.0, *radii)])
  return found[0], _certified(logits, params, data, radii, effort), found[1:]


def _table(results: dict[str, Result], data: Data) -> Any:
  radii, rows = RADII[data.name], {}
  for name, result in results.items():
    pairs = zip(result.certified, result.attacked, strict=True)
    shares = [result.clean, *itertools.chain(*pairs)]
    chosen = f"{result.strength:g}" if len(result.validation) > 1 else ""
    rows[name] = [chosen, *(report.cell(estimate(share, 100), 1) for share in shares)]
  names = (f"{what}\n{radius:.3g}" for radius in radii for what in ("certified", "attacked"))
  title = f"{data.name}, {len(data.test.labels)} test images, % ± standard error over seeds"
  return report.table(title, ("strength", "clean", *names), rows)


def _notes(
  results: dict[str, Result], data: Data, seeds: int, steps: int, effort: Effort
) -> list[str]:
  chosen = [
    f"{name} {', '.join(f'{s:g}: {100 * share:.1f}' for s, share in result.validation.items())}"
    for name, result in results.items()
    if len(result.validation) > 1
  ]
  return [
    f"{data.train.images.shape[1]}-{WIDTH}-{WIDTH}-10 network of ReLU where no other activation is"
    f" named, {len(data.train.labels)}"
    f" training images, Adam {RATE:g} with a cosine schedule, {steps} steps of {BATCH},"
    f" {seeds} seeds of initialization and batches.",
    f"Strengths chosen by certified accuracy at {RADII[data.name][1]:.3g} on"
    f" {len(data.validation.labels)} validation images, first seed ({'; '.join(chosen)}).",
    f"Certified: pairs of classes, ellipsoids, effort={effort!r}, for all inputs at once."
    f" Attacked: {ATTACK_STEPS} steps of PGD in the ball, pixels in [0, 1], from the image itself.",
    "'through norms' and 'through ellipsoids': cross entropy of radii, margin over bound, times a"
    " strength, the bound by products of norms and LipLT, or by multipliers carried on."
    " 'orthogonal' and 'almost orthogonal': weights of norm 1 by construction, cross entropy of"
    f" logits times a strength; 'residual': two layers of {2 * WIDTH} on {WIDTH} between orthogonal"
    " ones, likewise.",
  ]


def _figure(results: dict[str, Result], data: Data) -> Any:
  figure, (axes,) = report.new_figure(1)
  colors = "#555555", "#E69F00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#D55E00"
  radii = (0.0, *RADII[data.name])
  for color, (name, result) in zip(colors, results.items(), strict=True):
    for style, shares in (("-", result.certified), ("--", result.attacked)):
      mean = 100 * np.concatenate([result.clean[None], shares]).mean(-1)
      label = name if style == "-" else None
      axes.plot(radii, mean, style, color=color, marker="o", ms=4, lw=1.8, label=label)
  axes.set(title=f"{data.name}: certified (lines) and under attack (dashed)", ylim=(0, 100))
  axes.set(xlabel="l2 radius (pixels in [0, 1])", ylabel="test accuracy (%)")
  report.legend_below(axes)
  return figure
