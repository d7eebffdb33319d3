"""``python -m benchmarks.experiments NAME``: one experiment, end to end."""

from __future__ import annotations

import argparse
import sys

from benchmarks.experiments import (
  certified,
  claims,
  plasticity,
  supervised,
  transformer,
  wasserstein,
  wgan,
)

#: Each has `add_arguments(parser)` and `run(args)`; its docstring is the help.
EXPERIMENTS = {
  "wasserstein": wasserstein, "supervised": supervised, "wgan": wgan, "certified": certified,
  "claims": claims, "transformer": transformer, "plasticity": plasticity,
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__)
  commands = parser.add_subparsers(dest="experiment", required=True)
  for name, module in EXPERIMENTS.items():
    module.add_arguments(commands.add_parser(name, help=module.__doc__, description=module.__doc__))
  args = parser.parse_args(argv)
  EXPERIMENTS[args.experiment].run(args)


if __name__ == "__main__":
  main(sys.argv[1:])
