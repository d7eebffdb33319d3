"""The params trees that every optimizer benchmark runs on."""

from __future__ import annotations

import jax

SHAPES = {
  "tiny": [(64, 64)] * 64,
  "mlp": [(256, 256)] * 32,
  "transformer": ([(512, 512)] * 4 + [(512, 2048), (2048, 512)]) * 12,
}


def make_tree(name: str) -> dict[str, dict[str, jax.Array]]:
  """A tree of Dense kernels with variance 1/fan-in.

  ``tiny``: 64 leaves 64×64 (1 MB), where dispatch dominates; ``mlp``: 32 leaves
  256×256 (8 MB), in cache; ``transformer``: 12 blocks of width 512 (151 MB), where
  memory bandwidth does.
  """
  shapes = SHAPES[name]
  keys = jax.random.split(jax.random.key(0), len(shapes))
  return {
    f"layer_{i:02d}": {"kernel": jax.random.normal(key, shape) / shape[0] ** 0.5}
    for i, (key, shape) in enumerate(zip(keys, shapes, strict=True))
  }
