"""How long one update of each critic takes."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax

from benchmarks.experiments.wgan_data import Images
from benchmarks.experiments.wgan_methods import Method
from benchmarks.experiments.wgan_train import BATCH, Critic, critic_step
from benchmarks.speed.timing import compare, compile_case


def milliseconds(
  critics: Mapping[Method, Critic], images: Images, blocks: int
) -> dict[str, dict[str, float]]:
  """Rows of `benchmarks.speed.timing.compare`: one network, one jitted critic update.

  Every call starts from the same critic, so that no method's weights run away.

  Args:
    critics: by method, with the seeds as leading axis; the first is timed.
    images: for a batch.
    blocks: samples of each method.
  """
  real, key = images.train[:BATCH], jax.random.key(0)
  fake = jax.random.uniform(key, real.shape)
  cases = {}
  for method, stacked in critics.items():
    critic = jax.tree.map(lambda x: x[0], stacked)
    cases[method.name] = compile_case(
      functools.partial(critic_step, method), critic, real, fake, key
    )
  return compare(cases, baseline="none", blocks=blocks, steps=20, keep_carry=False)
