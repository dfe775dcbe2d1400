"""Whether what a page names is there, told from sources alone: nothing is imported, so that a slip
of the pen costs no time, and no code runs.

What a source does not show, such as a name that ``import *`` brings, is left to the measurement.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from clipbench.errors import nearest


def missing(name: str, files: Path) -> str | None:
    """What is wrong with ``package.module:function`` or ``file.py:function``, after "and"; None if
    nothing is seen.

    :param files: the folder of files, first on the path of packages.
    """
    module, _, function = name.rpartition(":")
    if module.endswith(".py"):
        path: Path | None = files / module
        if not (files / module).is_file():
            near = nearest(module, (one.name for one in files.glob("*.py")))
            return f"there is no file {files / module}.{near}"
    else:
        spec, at = _found(module, files)
        if spec is None:
            return f"there is no module {at}."
        path = Path(spec.origin) if spec.origin else None
    defined = _defined(path) if path and path.suffix == ".py" else None
    if defined is None or function in defined:
        return None
    return f"{module} has no {function}.{nearest(function, sorted(defined))}"


def _found(module: str, files: Path) -> tuple[ModuleSpec | None, str]:
    """The spec of a module, and the part of its name that was looked for last."""
    first, *parts = module.split(".")
    spec, at = PathFinder.find_spec(first, [str(files), *sys.path]), first
    if spec is None or spec.origin is None:  # a folder of this name hides no package
        if first in sys.modules:
            spec = sys.modules[first].__spec__
        elif spec is None and first.isidentifier():
            spec = importlib.util.find_spec(first)
    for part in parts:
        if spec is None:
            break
        at = f"{at}.{part}"
        spec = PathFinder.find_spec(at, list(spec.submodule_search_locations or []))
    return spec, at


def _defined(path: Path) -> set[str] | None:
    """The names that a source defines at its top; None if it may define others, or is none."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    names = set[str]()
    for node in ast.walk(tree):  # whole: a name may be defined under an `if`
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(one.asname or one.name).partition(".")[0] for one in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("globals", "setattr"):
            return None
    return None if names & {"*", "__getattr__"} else names
