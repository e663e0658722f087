"""How the documentation is built: Markdown by MyST, the API from the docstrings, tables from the code itself."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate  # noqa: I001
import visionkit

project = "visionkit"
author = "the visionkit authors"
copyright = author
release = version = visionkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "conf.py", "generate.py", "reference/_generated"]
html_theme = "furo"
html_title = f"visionkit {version}"

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of a dataclass are listed once, in its docstring
napoleon_custom_sections = [("Class attributes", "Attributes"), ("Instance attributes", "Attributes")]

generate.everything(Path(__file__).parent / "reference" / "_generated")
