"""What a report says of products of two leaves: LoRA pairs, queries with keys."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

import lipjax
from lipjax.checkpoints.checkpoint import Checkpoint, CheckpointError
from lipjax.commands.report_rows import Chosen, Row, at_largest
from lipjax.operators.factors import product_frobenius_norms
from lipjax.operators.product import Product

KINDS = {"lora": lipjax.lora_products, "qk": lipjax.qk_products}
DEFAULTS = {"lora": "lora_a,lora_b", "qk": "query,key"}


def add_arguments(add: Any) -> None:
  """``--lora`` and ``--qk``."""
  of = {"lora": "of LoRA pairs", "qk": "of each head's queries with its keys"}
  for kind, default in DEFAULTS.items():
    add(
      f"--{kind}",
      type=_names,
      nargs="?",
      const=_names(default),
      metavar="A,B",
      help=f"the products {of[kind]} too, by these parts of their paths (default: {default})",
    )


def _names(text: str) -> tuple[str, str]:
  names = tuple(text.split(","))
  if len(names) != 2 or not all(names):
    msg = f"{text!r}: expected two parts of paths with a comma between, as in lora_A,lora_B"
    raise argparse.ArgumentTypeError(msg)
  return names


def choose(
  checkpoint: Checkpoint, chosen: Chosen, asked: Mapping[str, tuple[str, str] | None]
) -> dict[str, Product]:
  """Products of what is reported, by name."""
  leaves = {path: checkpoint.leaves[path] for path in chosen.operators}
  found = {}
  try:
    for kind, names in asked.items():
      if names is not None:
        found |= KINDS[kind](leaves, names=names, layout=chosen.operators)
  except ValueError as error:
    raise CheckpointError(*error.args) from error
  return found


def measure(checkpoint: Checkpoint, products: Mapping[str, Product]) -> Iterator[Row]:
  """A row for each."""
  for name, product in products.items():
    both = checkpoint.read([product.first, product.second])
    is_wide = any(w.dtype == np.float64 for w in both.values())
    with jax.enable_x64(True) if is_wide else contextlib.nullcontext():
      yield _row(name, product, both)


def _row(name: str, product: Product, both: Mapping[str, np.ndarray]) -> Row:
  operator, w = product.stacked(name, both)
  # One name for all, as for leaves.
  sigma = np.ravel(lipjax.spectral_norms({"w": w}, layout={"w": operator})["w"])
  frobenius = np.ravel(product_frobenius_norms(w)).astype(np.float64)
  return Row(
    path=name,
    operator="Product",
    shape=(operator.inputs, operator.outputs),
    dtype=str(w.dtype),
    copies=sigma.size,
    lower=at_largest(sigma, sigma),
    upper=None,
    frobenius=float(np.sqrt(np.sum(np.square(frobenius)))),
    stable_rank=at_largest(sigma, np.square(frobenius / np.where(sigma == 0, 1, sigma))),
  )
