"""Everything that is claimed about accelerators, by one command in a few minutes."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lipjax
from benchmarks.speed import gpu_gpt2, gpu_soundness
from benchmarks.speed.timing import Case, compare, compile_case
from benchmarks.speed.update import noise, pace_of, update_case

#: Seconds for all of it; the tests get what is left.
LIMIT = 450
#: Tests that an accelerator runs, from the root of the repository.
TESTS = ("tests/measure", "tests/regularize", "tests/constrain")


def run(*, quick: bool = False, tests: bool = True) -> dict[str, Any]:
  """All sections, each on its own: one that fails is a message in its place.

  Args:
    quick: toy sizes, to try the command on a CPU.
    tests: whether the test suite runs too.
  """
  begin = time.monotonic()
  size = gpu_gpt2.SMALL if quick else gpu_gpt2.Size()
  blocks = 2 if quick else 12
  sections: dict[str, Callable[[], Any]] = {
    "update": functools.partial(updates, size, blocks),
    "vectors_alone": functools.partial(vectors_alone, size, blocks),
    "large_matrix": functools.partial(large_matrix, 256 if quick else 16384, blocks),
    "training_step": functools.partial(training_steps, size, blocks),
    "cold": functools.partial(cold, (64, 128) if quick else (4096, 8192)),
    "soundness": functools.partial(gpu_soundness.run, 1 if quick else 4, 32 if quick else 256),
  }
  found: dict[str, Any] = {"benchmark": "gpu", "card": card()}
  for name, section in sections.items():
    try:
      found[name] = section()
    except Exception as error:  # the others are worth having
      found[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
    print(f"{time.monotonic() - begin:4.0f} s: {name}", file=sys.stderr, flush=True)
  if tests:
    found["tests"] = run_tests(LIMIT - (time.monotonic() - begin))
  found["seconds"] = time.monotonic() - begin
  return found


def card() -> str:
  """The device's name as a part of a file name."""
  return re.sub(r"[^a-z0-9]+", "_", jax.devices()[0].device_kind.lower()).strip("_")


def updates(size: gpu_gpt2.Size, blocks: int) -> dict[str, Any]:
  """AdamW on every kernel of GPT-2, with spectral decay before it."""
  params, decay = gpu_gpt2.tree(size), lipjax.add_spectral_decay
  mask = gpu_gpt2.blocks_only(params)
  chains = {
    "adamw": optax.identity(),
    "adamw_again": optax.identity(),
    "decay": decay(0.01),
    "decay_every_1": decay(0.01, every=1),
    "decay_every_10": decay(0.01, every=10),
    "decay_blocks": decay(0.01, mask=mask),
    "decay_blocks_every_10": decay(0.01, mask=mask, every=10),
  }
  gradients = noise(params)
  cases = {
    name: update_case(optax.chain(first, optax.adamw(3e-4)), params, gradients)
    for name, first in chains.items()
  }
  rows = compare(cases, baseline="adamw", blocks=blocks, steps=20, keep_carry=True)
  return {name: row | pace_of(cases[name].carry[1]) for name, row in rows.items()}


def vectors_alone(size: gpu_gpt2.Size, blocks: int) -> dict[str, Any]:
  """`update_singular_vectors` of the kernels of the blocks, beside a sum of them."""
  params = {name: leaf for name, leaf in gpu_gpt2.tree(size).items() if name != "wte"}

  def vectors(k):
    start = lipjax.init_singular_vectors(params, k=k)
    step = lambda v, params: lipjax.update_singular_vectors(params, v, tol=None)
    return compile_case(step, start, params)

  read = lambda total, params: sum(jnp.max(w + total) for w in jax.tree.leaves(params)) * 1e-30
  cases = {
    "one_read": compile_case(read, jnp.zeros(()), params),
    "k_default": vectors(None),
    "k_4": vectors(4),
    "k_1": vectors(1),
  }
  return compare(cases, baseline="one_read", blocks=blocks, steps=20, keep_carry=True)


def large_matrix(n: int, blocks: int) -> dict[str, Any]:
  """One step on one large matrix, as a share of what its reads alone take."""
  params = {"kernel": jax.random.normal(jax.random.key(0), (n, n))}
  start = lipjax.init_singular_vectors(params)
  step = lambda v, params: lipjax.update_singular_vectors(params, v, tol=None)
  cases = {
    "one_read": compile_case(lambda t, p: jnp.max(p["kernel"] + t) * 1e-30, jnp.zeros(()), params),
    "step": compile_case(step, start, params),
  }
  rows = compare(cases, baseline="one_read", blocks=blocks, steps=5, keep_carry=True)
  for row in rows.values():
    row["gigabytes_per_s"] = 4e-9 * n * n / (row["median_ms"] * 1e-3)
  return rows


def training_steps(size: gpu_gpt2.Size, blocks: int) -> dict[str, Any]:
  """A training step of GPT-2 with its layers in a scan, bfloat16 inside."""
  params = gpu_gpt2.stacked(size)
  shape = (size.batch, size.length + 1)
  batches = [
    jax.random.randint(jax.random.key(seed), shape, 0, size.vocabulary) for seed in range(4)
  ]
  decay = functools.partial(lipjax.add_spectral_decay, 0.01, layout=gpu_gpt2.LAYOUT)
  chains = {
    "plain": optax.identity(),
    "plain_again": optax.identity(),
    "decay": decay(),
    "decay_every_1": decay(every=1),
    "decay_every_10": decay(every=10),
  }

  def case(first: optax.GradientTransformation) -> Case:
    tx = optax.chain(first, optax.adamw(3e-4))

    def step(carry, tokens):
      params, state = carry
      gradients = jax.grad(gpu_gpt2.loss)(params, tokens, size)
      updates, state = tx.update(gradients, state, params)
      return optax.apply_updates(params, updates), state

    own = jax.tree.map(jnp.copy, params)
    return compile_case(step, (own, tx.init(own)), turns=batches, donate=True)

  cases = {name: case(first) for name, first in chains.items()}
  rows = compare(cases, baseline="plain", blocks=blocks, steps=10, keep_carry=True)
  return {name: row | pace_of(cases[name].carry[1]) for name, row in rows.items()}


def cold(sizes: tuple[int, int]) -> dict[str, Any]:
  """Measurements of one matrix from cold, beside the SVD of the smaller one."""
  found = {}
  for n in sizes:
    w = jnp.asarray(np.random.default_rng(n).standard_normal((n, n)), jnp.float32)
    functions = {
      "spectral_norms": lambda w: lipjax.spectral_norms({"kernel": w})["kernel"],
      "spectral_norm_bounds": lambda w: lipjax.spectral_norm_bounds({"kernel": w})["kernel"].upper,
      "one_read": jnp.max,
    }
    if n == min(sizes):
      functions["svd"] = lambda w: jnp.linalg.svd(w, compute_uv=False)[0]
    cases = {name: compile_case(fn, w) for name, fn in functions.items()}
    found[str(n)] = compare(cases, baseline="one_read", blocks=5, steps=2, keep_carry=False)
  return found


def run_tests(seconds: float) -> dict[str, Any]:
  """The names of the tests that fail on this device, and how many ran in the time."""
  # Without flags the tests would be compiled fast instead of as users compile.
  flags = os.environ.get("XLA_FLAGS", "")
  environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": flags}
  workers = str(min(os.cpu_count() or 1, 12))
  command = [sys.executable, "-m", "pytest", "-q", "-n", workers, "-p", "no:cacheprovider", *TESTS]
  root = Path(__file__).parents[2]
  try:
    done = subprocess.run(
      command,
      cwd=root,
      env=environment,
      capture_output=True,
      text=True,
      timeout=max(seconds, 1),
      check=False,
    )
    text, finished = done.stdout, True
  except subprocess.TimeoutExpired as late:
    text, finished = (late.stdout or b"").decode(), False
  failed = re.findall(r"^FAILED (\S+)", text, re.MULTILINE)
  return {"finished": finished, "failed": failed, "last_lines": text.splitlines()[-5:]}
