"""What a shell completes: studies, results folders, and the names of what there is.

It reads folders and imports nothing of weight: a shell waits for it at every key.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

PAGES = Path(__file__).parents[1] / "studies"


def studies(_context: click.Context, _option: click.Parameter, begun: str) -> list[CompletionItem]:
    """Packaged studies, and pages in the folder that is named so far."""
    packaged = (path.stem for path in PAGES.glob("*.toml"))
    pages = (str(path) for path in _beside(begun) if path.suffix == ".toml")
    return _fitting([*packaged, *pages], begun, "file")


def folders(_context: click.Context, _option: click.Parameter, begun: str) -> list[CompletionItem]:
    """Results folders: in ``results``, and in the folder that is named so far."""
    places = [*Path("results").glob("*"), *_beside(begun)]
    found = dict.fromkeys(str(path) for path in places if (path / "study.toml").is_file())
    return _fitting(found, begun, "dir")


def devices(_context: click.Context, _option: click.Parameter, begun: str) -> list[CompletionItem]:
    """Where cells may run."""
    return [CompletionItem(word) for word in ("cpu", "cuda", "auto") if word.startswith(begun)]


def _beside(begun: str) -> list[Path]:
    """What lies in the folder of a path that is begun."""
    folder = Path(begun) if begun.endswith("/") else Path(begun).parent
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _fitting(names: Iterable[str], begun: str, otherwise: str) -> list[CompletionItem]:
    """The names that go on as begun; if there is none, the shell completes paths itself."""
    items = [CompletionItem(name) for name in sorted(names) if name.startswith(begun)]
    return items or [CompletionItem(begun, type=otherwise)]
