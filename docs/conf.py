"""How Sphinx makes the pages: `tox -e docs`. Nothing is fetched."""

import sys
from pathlib import Path

import clipbench

sys.path.insert(0, str(Path(__file__).parent))  # generated.py

project = "clipbench"
version = release = clipbench.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "generated"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"clipbench {version}"
html_show_copyright = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# what a docstring says is raised or returned by a name that is not on these pages
nitpick_ignore_regex = [
    ("py:exc", "UsageError"),
    ("py:.*", r"(torch|pandas|matplotlib)\..*"),  # their pages are not here, and nothing is fetched
]
