"""The options that every experiment has."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from lipjax.commands.demo import at_least


class Budget(NamedTuple):
  """How much to train.

  Attributes:
    seeds: networks of each method, at least 2 for a standard error.
    steps: of training.
  """

  seeds: int
  steps: int


def add_common(parser: argparse.ArgumentParser, *, full: Budget, quick: Budget) -> None:
  """Adds ``--quick``, ``--seeds``, ``--steps`` and ``--out``."""
  shown = lambda name: f"default {getattr(full, name)}, quick {getattr(quick, name)}"
  parser.add_argument("--quick", action="store_true", help="a run of seconds, to see that it works")
  parser.add_argument("--seeds", type=at_least(2), metavar="N", help=shown("seeds"))
  parser.add_argument("--steps", type=at_least(1), metavar="N", help=shown("steps"))
  parser.add_argument(
    "--out",
    type=Path,
    default=Path("lipjax-experiments"),
    metavar="FOLDER",
    help="where the PNG and the JSON go (default: %(default)s)",
  )


def budget(args: argparse.Namespace, *, full: Budget, quick: Budget) -> Budget:
  """What the options of `add_common` ask for."""
  default = quick if args.quick else full
  return Budget(args.seeds or default.seeds, args.steps or default.steps)
