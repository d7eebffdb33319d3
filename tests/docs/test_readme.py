"""The README's example runs, and its commands are the ones that users and CI rely on."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def fenced_blocks(language: str) -> list[str]:
  return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)


def commands(block: str) -> list[str]:
  return [line for line in block.splitlines() if line and not line.startswith("#")]


def test_python_blocks_run_as_doctests():
  blocks = fenced_blocks("python")
  assert blocks
  runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
  for i, block in enumerate(blocks):
    test = doctest.DocTestParser().get_doctest(block, {}, f"README block {i}", str(README), 0)
    assert test.examples, "a python block without prompts is not tested"
    report: list[str] = []
    assert runner.run(test, out=report.append).failed == 0, "".join(report)


def test_example_is_about_fifteen_lines():
  first = fenced_blocks("python")[0].splitlines()
  assert len([line for line in first if line.startswith((">>>", "..."))]) <= 15


@pytest.mark.parametrize(
  ("block", "install", "job"),
  [
    (0, '.venv/bin/python -m pip install -e ".[demo]"', ".venv/bin/python -m lipjax demo"),
    (
      1,
      '.venv/bin/python -m pip install -e ".[demo]" --group test',
      ".venv/bin/python -m pytest -n auto",
    ),
  ],
)
def test_first_two_sh_blocks_are_the_two_commands(block, install, job):
  # pip reads dependency groups from 25.1 on, and a fresh venv has an older one.
  assert commands(fenced_blocks("sh")[block]) == [
    "python3 -m venv .venv",
    ".venv/bin/python -m pip install --upgrade pip",
    install,
    job,
  ]


def test_linked_files_exist():
  links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8"))
  assert links
  assert [link for link in links if not (ROOT / link).exists()] == []


def test_it_is_short():
  assert len(README.read_text(encoding="utf-8").split()) <= 600
