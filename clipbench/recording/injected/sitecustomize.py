"""Every Python that `clipbench watch` starts loads this file before anything else: it waits for
torch, and has the optimizers that are made watched.

It imports nothing of clipbench until then, so that a Python without torch is not slowed down; and
whatever is missing, the command goes on.
"""
# ruff: noqa: PTH100, PTH120 - pathlib takes longer to import than all of this

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from types import ModuleType
from typing import Any

OPTIMIZER = "torch.optim.optimizer"
HERE = os.path.dirname(os.path.abspath(__file__))


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads the module in which torch's optimizers begin, and hooks into them."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.Optimizer.__init__ = _met(module.Optimizer.__init__)


class _Finder(importlib.abc.MetaPathFinder):
    """Looks at that module only."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del target
        if fullname != OPTIMIZER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.origin is None:
            return spec
        return importlib.util.spec_from_loader(fullname, _Loader(fullname, spec.origin))


def _met(own: Callable[..., None]) -> Callable[..., None]:
    told: list[bool] = []

    @wraps(own)
    def met(self: Any, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        try:
            from clipbench.recording import unedited
        except ImportError as error:
            if not told:
                told.append(True)
                warnings.warn(
                    f"this Python cannot import clipbench ({error}), so that its training is not "
                    "watched",
                    stacklevel=2,
                )
            return
        unedited.meet(self)

    return met


def _load_hidden() -> None:
    """Load the ``sitecustomize`` that this one hides, if there is one."""
    others = [path for path in sys.path if os.path.abspath(path or ".") != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, _Finder())
_load_hidden()
