"""The executors that a run can be given by name: those of the package, and those that an installed
package offers through the entry-point group ``clipbench.executors``.

One is made by a function ``(request) → context manager``; inside its ``with`` block it runs work,
and at the end of it nothing of it is left.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from clipbench.errors import UsageError, nearest, one_of
from clipbench.execute.cards import ONE_CARD, Cards
from clipbench.execute.executor import Executor

GROUP = "clipbench.executors"
LOCAL = "local"
# name → where it is, and the module that its extra installs
PACKAGED: dict[str, tuple[str, str | None]] = {
    LOCAL: ("clipbench.execute.local:local", None),
    "ray": ("clipbench.execute.ray_tasks:ray_tasks", "ray"),
    "slurm": ("clipbench.execute.slurm:slurm", None),
}


@dataclass(frozen=True)
class Request:
    """What a run asks of its executor.

    :param workers: how many pieces of work at a time; what there is room for if None.
    :param cards: the CUDA devices of this machine.
    :param device: ``cuda`` if any cell is for CUDA.
    :param options: ``--executor-option KEY=VALUE``, as text.
    :param folder: the results folder, held for this run; None if there is none yet.
    """

    workers: int | None = None
    cards: Cards = ONE_CARD
    device: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def known(self, name: str, options: Sequence[str]) -> None:
        """:raises UsageError: an option is none of the executor's."""
        for option in self.options:
            if option not in options:
                there = f"it has {one_of(options)}" if options else "it has none"
                raise UsageError(
                    f"--executor-option {option}: the executor {name} has no such option; {there}."
                    f"{nearest(option, options)}"
                )


Factory = Callable[[Request], AbstractContextManager[Executor]]


def offered(name: str) -> Factory:
    """The function that makes the executor of this name.

    :raises UsageError: there is none, what it needs is not installed, or it cannot be imported.
    """
    there = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)} | {
        known: path for known, (path, _) in PACKAGED.items()
    }
    if name not in there:
        raise UsageError(
            f'--executor "{name}": there is no such executor.{nearest(name, there)} There are: '
            f"{', '.join(sorted(there))}."
        )
    _, needs = PACKAGED.get(name, ("", None))
    if needs is not None and importlib.util.find_spec(needs) is None:
        raise UsageError(
            f"--executor {name}: {needs} is not installed; `pip install 'clipbench[{name}]'`."
        )
    module, _, attribute = there[name].partition(":")
    try:
        factory: Factory = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise UsageError(
            f"--executor {name}: {there[name]} cannot be imported "
            f"({type(error).__name__}: {error})."
        ) from error
    return factory


def options_named(texts: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts as a mapping.

    :raises UsageError: one is not of that form.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f'--executor-option "{text}": write KEY=VALUE.')
        found[key.strip()] = value.strip()
    return found
