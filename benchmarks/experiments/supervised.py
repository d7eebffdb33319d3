"""Stub."""
from benchmarks.experiments import options


def add_arguments(parser):
  options.add_common(parser, full=options.Budget(5, 4000), quick=options.Budget(2, 30))


def run(args):
  raise NotImplementedError
