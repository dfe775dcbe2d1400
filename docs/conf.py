"""How Sphinx makes the pages: `tox -e docs`. Nothing is fetched."""

import sys
from pathlib import Path

import clipbench

sys.path.insert(0, str(Path(__file__).parent))  # generated.py

project = "clipbench"
version = release = clipbench.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx-mathjax-offline",  # formulas without a script from elsewhere
    "generated",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"clipbench {version}"
html_show_copyright = False

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
nitpick_ignore_regex = [
    # what is not on these pages, for nothing is fetched: Python's own names, and others' libraries
    ("py:.*", r"\w+"),
    ("py:.*", r"(torch|pandas|matplotlib|collections|pathlib|typing)\..*"),
]
