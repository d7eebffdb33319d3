"""Sphinx configuration. Nothing is fetched while the pages are built."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the pages say the same on every machine
sys.path.append(str(HERE.parent / "tests"))
# Pages are executed side by side (-j), in a thread each.
os.environ.setdefault("NPROC", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# The page about rules imports `rules_table` where it is executed, which is elsewhere.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])

import fast_compile  # noqa: E402
import public_names  # noqa: E402

# Cells run once or twice. So compiled, pages take a half to a quarter of the time.
os.environ.setdefault("XLA_FLAGS", fast_compile.XLA_FLAGS)

project = "lipjax"
author = "The lipjax developers"
project_copyright = author
release = version = importlib.metadata.version("lipjax")

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.mathjax",  # rendered in the reader's browser …
  "sphinx-mathjax-offline",  # … by a copy that lies beside the pages: no network is needed
  "sphinx.ext.napoleon",
  "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute"]
default_role = "py:obj"  # `name` in a docstring links to the name where it is documented

html_theme = "sphinx_book_theme"
html_title = "lipjax"
html_static_path = ["_static"]
html_css_files = ["lipjax.css"]
html_theme_options = {"show_navbar_depth": 2, "home_page_in_toc": True}

# Every page is run at every build, and an error in a cell is an error of the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 400
nb_execution_in_temp = True
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

napoleon_numpy_docstring = False
napoleon_custom_sections = [("Reference", "notes_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
ALIASES = ("Layout", "Mask", "Overrides", "Penalty", "Vectors", "optax.ScalarOrSchedule")
autodoc_type_aliases = {name: name for name in ALIASES}
autodoc_preserve_defaults = True
maximum_signature_line_length = 88


def _keep_colons(app, what, name, obj, options, lines):
  """Breaks the first line of what is returned before its colon: napoleon would see a type there."""
  del app, what, name, obj, options
  for i in range(len(lines) - 1, 0, -1):
    text = re.sub(r"``.*?``|`[^`]*`", lambda code: "x" * len(code[0]), lines[i])
    if lines[i - 1].strip() == "Returns:" and ":" in text:
      place = text.rindex(" ", 0, text.index(":"))
      indent = " " * (len(text) - len(text.lstrip()))
      lines[i : i + 1] = [lines[i][:place], indent + lines[i][place + 1 :]]


def _show_guarantee(app, what, name, obj, options, lines):
  """Makes the word Guarantee, which opens a paragraph of a docstring, bold."""
  del app, what, name, obj, options
  lines[:] = [re.sub(r"^Guarantee: ", "**Guarantee:** ", line) for line in lines]


def _short_aliases(app, what, name, obj, options, signature, returns):
  """Writes an alias as itself in a signature, not as the forward reference to it."""
  del app, what, name, obj, options
  return tuple(
    text and re.sub(r"TypeAliasForwardRef\('([\w.]+)'\)", r"\1", text)
    for text in (signature, returns)
  )


def setup(app):
  """Stops the build where the API page and the package's public names differ."""
  public_names.check(HERE / "api.md")
  # It only copies files in the end, and does not say so.
  app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True
  # Before napoleon's own, which has 500.
  app.connect("autodoc-process-docstring", _keep_colons, priority=400)
  app.connect("autodoc-process-docstring", _show_guarantee)
  app.connect("autodoc-process-signature", _short_aliases)
