"""The API page lists every public name of lipjax, once, and no other.

Sphinx's configuration calls `check`, and so does a test: neither a new name
without documentation nor a page about a removed one gets through.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

DIRECTIVE = re.compile(
  r"^\.\. auto(?:class|data|exception|function):: (?:lipjax\.)?(\S+)\s*$", re.M
)


#: Modules that are imported by their own names.
INTEGRATIONS = ("integrations.nnx", "integrations.linen", "integrations.plot")


def public_names() -> set[str]:
  """Every public name of `lipjax`, submodules apart, and of its integrations."""
  import lipjax

  names = {name for name in vars(lipjax) if not name.startswith("_")}
  names = {name for name in names if not isinstance(getattr(lipjax, name), ModuleType)}
  for part in INTEGRATIONS:
    module = importlib.import_module(f"lipjax.{part}")
    for name, value in vars(module).items():
      if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__:
        names.add(f"{part}.{name}")
  return names


def documented_names(page: Path) -> list[str]:
  """The names that the page documents, in its order."""
  return DIRECTIVE.findall(page.read_text(encoding="utf-8"))


def check(page: Path) -> None:
  """Raises a `ValueError` that lists what is missing, unknown or there twice."""
  listed, public = documented_names(page), public_names()
  problems = {
    "public but not on the page": sorted(public - set(listed)),
    "on the page but not public": sorted(set(listed) - public),
    "on the page more than once": sorted({name for name in listed if listed.count(name) > 1}),
  }
  found = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
  if found:
    msg = f"{page.name} does not match the public names of lipjax. {found}."
    raise ValueError(msg)
