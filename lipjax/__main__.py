"""The command line: ``python -m lipjax``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lipjax.commands import demo, report


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: the arguments after ``python -m lipjax``; those of the process when None.

  Returns:
    The exit code. Without a command the help is printed.
  """
  parser = argparse.ArgumentParser(
    prog="python -m lipjax", description=sys.modules["lipjax"].__doc__
  )
  commands = parser.add_subparsers(title="commands", metavar="COMMAND")
  demo.add_parser(commands)
  report.add_parser(commands)
  args = parser.parse_args(argv)
  if "run" not in args:
    parser.print_help()
    return 0
  return args.run(args)


if __name__ == "__main__":
  sys.exit(main())
