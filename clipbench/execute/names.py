"""The functions and classes of torch, NumPy and this package by name; a component may replace
one of them.
"""

from __future__ import annotations

import builtins
import gc
import sys
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

MODULES = tuple(
    """
    builtins math random time numpy numpy.linalg numpy.random torch torch._tensor torch._C._nn
    torch._C._linalg torch.autograd torch.autograd.functional torch.autograd.grad_mode torch.fft
    torch.func torch.functional torch.linalg torch.random torch.special torch.nn torch.nn.functional
    torch.nn.init torch.nn.parameter
    """.split()  # noqa: SIM905 - thirty words read better without quotes
)
OURS = "clipbench."
PACKAGES = ("torch.nn.modules.", "torch.nn.utils.", "torch.optim", OURS)
CLASSES_ALONE = ("torch.nn.modules.",)
LEFT_OUT = (
    "__annotations__",
    "__annotate__",
    "__annotations_cache__",
    "__warningregistry__",
    "__doc__",
    "__abstractmethods__",
    "Storage",
)  # torch moves the last with its default dtype
WRAPPED = ("__wrapped__", "_torchdynamo_orig_callable")
ABSENT = object()


class Names:
    """The values of the functions and classes of torch and NumPy, and of every name of this
    package, as they were at the start.
    """

    def __init__(self) -> None:
        self.spaces = dict(_spaces())
        self._note()

    def _note(self) -> None:
        self.before = {where: _watched_values(where, space) for where, space in self.spaces.items()}
        self.known = {where: {*space} for where, space in self.spaces.items()}
        self.looks = [
            (itemgetter(*names), self.spaces[where])
            for where, names in self.before.items()
            if names
        ]
        self.values = self._now()

    def _now(self) -> tuple[list[Any], list[int]]:
        return [look(space) for look, space in self.looks], list(map(len, self.spaces.values()))

    def changed(self) -> list[str]:
        """The names whose value is another one than at the start."""
        try:
            if self._now() == self.values:  # by identity first, and nearly always by identity alone
                return []
        except Exception:  # noqa: BLE001, S110 - a name now has a value that cannot be compared
            pass
        names = [name for where in self.spaces for name in self._changes_in(where)]
        self._note()
        return names

    def _changes_in(self, where: str) -> Iterator[str]:
        space, before = self.spaces[where], self.before[where]
        for name, old in before.items():
            new = space.get(name, ABSENT)
            if new is not old and not _wrapped_by_torch(new, old):
                yield f"{where}.{name}"
        for name in space.keys() - self.known[where]:
            hidden = _hidden(where, name)
            # torch wraps the `step` that an optimizer class has from its base as one of its own
            if hidden is not ABSENT and not _wrapped_by_torch(space[name], hidden):
                yield f"{where}.{name}"


def _watched_values(where: str, space: Mapping[str, Any]) -> dict[str, Any]:
    """Name → value of what is compared: all of this package, and of a library only code, for it
    has too many constants.
    """
    return {
        name: value
        for name, value in space.items()
        if name not in LEFT_OUT and (where.startswith(OURS) or _is_code(value))
    }


def _is_code(value: Any) -> bool:
    """Whether a value can be called, or is a class's wrapper of something that can be."""
    return callable(value) or isinstance(value, classmethod | staticmethod | property)


def _spaces() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and (name in MODULES or name.startswith(PACKAGES)):
            if not name.startswith(CLASSES_ALONE):
                yield name, vars(module)
            if name.startswith((OURS, "torch")):
                yield from _classes(name, module)


def _classes(name: str, module: ModuleType) -> Iterator[tuple[str, dict[str, Any]]]:
    """The classes that are made in a module; their own dictionaries, which a class shows through
    a proxy only.
    """
    for key, value in list(vars(module).items()):
        if (
            isinstance(value, type)
            and value.__module__ == name
            and (name != "torch" or value is torch.Tensor)
        ):
            yield f"{name}.{key}", gc.get_referents(vars(value))[0]


def _wrapped_by_torch(new: Any, old: Any) -> bool:
    """Whether ``new`` is torch's wrapper of ``old``: it wraps ``step`` of an optimizer class
    when its first object is made.
    """
    code = getattr(new, "__code__", None)
    inner = any(getattr(new, name, ABSENT) is old for name in WRAPPED)
    return (
        inner and code is not None and code.co_filename.startswith(str(Path(torch.__file__).parent))
    )


def _hidden(where: str, name: str) -> Any:
    """What a new name hides, for Python found it elsewhere before: in a base class, or among the
    builtins; `ABSENT` if nothing.
    """
    module, _, cls = where.rpartition(".")
    owner = getattr(sys.modules.get(module), cls, None)
    if isinstance(owner, type):
        bases = (vars(base) for base in owner.__mro__[1:-1] if name not in LEFT_OUT)
        return next((base[name] for base in bases if name in base), ABSENT)
    hides = where != "builtins" and not name.startswith("__")
    return vars(builtins).get(name, ABSENT) if hides else ABSENT
