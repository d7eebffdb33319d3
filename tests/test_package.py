"""The package as a whole: imports, public names, and which way its arrows point."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lipjax

ROOT = Path(lipjax.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
PUBLIC = sorted(name for name in vars(lipjax) if not name.startswith("_"))
NAMES = [name for name in PUBLIC if not inspect.ismodule(getattr(lipjax, name))]

#: What each part of the package may import from lipjax, besides itself.
ALLOWED = {
  "jaxprs": set(),
  "operators": {"jaxprs"},
  "rounding": {"operators"},
  "measure": {"operators", "rounding"},
  "regularize": {"operators", "measure", "rounding"},
  "constrain": {"operators", "measure", "rounding"},
  "certify": {"jaxprs", "operators", "rounding", "measure"},
  "integrations": {"operators", "measure", "regularize", "constrain", "certify", "rounding"},
  "checkpoints": {"operators"},
}
ENDS = {"__init__", "__main__", "commands"}  # these may import everything


def part_of(path):
  first = path.relative_to(ROOT).parts[0]
  return first.removesuffix(".py")


def imported_parts(tree):
  """The parts of lipjax that a module imports, wherever in it."""
  for node in ast.walk(tree):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative imports hide which way an arrow points"
      names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
      parts = name.split(".")
      if parts[0] == "lipjax" and len(parts) > 1:
        yield parts[1]


def test_import_does_not_import_flax_or_what_only_commands_need():
  code = (
    "import sys, lipjax; "
    "print([m for m in ('flax', 'haiku', 'equinox', 'orbax', 'rich', 'sklearn', 'matplotlib')"
    " if m in sys.modules])"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way_and_nothing_is_asserted(path):
  tree = ast.parse(path.read_text())
  part = part_of(path)
  if part not in ENDS:
    allowed = ALLOWED[part] | {part}
    assert set(imported_parts(tree)) <= allowed
  # python -O takes assertions away; errors are raised.
  assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
  assert ast.get_docstring(tree), "every module says what it is for"


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_documented(name):
  value = getattr(lipjax, name)
  doc = inspect.getdoc(value)
  assert doc
  # Results, states, errors and the abstract base are made by the library, not by users.
  made_by_us = isinstance(value, type) and (
    issubclass(value, (tuple, Exception)) or inspect.isabstract(value)
  )
  if not made_by_us:
    assert "Example:" in doc
    assert ">>> " in doc
    assert (
      "Guarantee:" in doc
      or name.endswith("layout")
      or name in ("describe", "ReshapedKernel", "init_singular_vectors", "l1_penalty")
    )


def test_public_names_come_from_the_package_and_are_sorted_by_verb():
  assert {"spectral_norms", "add_spectral_decay", "Dense", "describe"} <= set(NAMES)
  for name in NAMES:
    assert getattr(lipjax, name).__module__.startswith("lipjax."), name
  modules = {n for n in PUBLIC if inspect.ismodule(getattr(lipjax, n))}
  assert modules <= {
    "jaxprs",
    "operators",
    "rounding",
    "measure",
    "regularize",
    "constrain",
    "certify",
    "integrations",
    "checkpoints",
    "commands",
  }


def test_it_is_typed():
  assert (ROOT / "py.typed").exists()
