"""Choices of an engine that this machine has measured before, kept between runs in the user's cache
folder: a file each, named after all that its rates depend on.

A file that is missing, damaged or unreadable is no choice, and a folder that cannot be written
keeps none: then the rates are measured, as without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipbench import cache, execute
from clipbench.engines.rates import Choice

RATES = "CLIPBENCH_RATES"
ANEW = "anew"  # nothing is recalled, and what is measured is kept
MOST = 256  # files, of a kilobyte or two


def key(question: Mapping[str, Any]) -> str:
    """The name under which the choice that answers a question is kept: a hash of the question, this
    machine, its libraries and all of clipbench's files.
    """
    here = {**execute.environment("cpu"), "usable": execute.cores(), "files": cache.sources()}
    told = json.dumps({"question": question, "here": here}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def recall(name: str) -> Choice | None:
    """The choice kept under a key; None if there is none, or ``CLIPBENCH_RATES`` is ``anew``."""
    home = cache.folder()
    if home is None or os.environ.get(RATES) == ANEW:
        return None
    try:
        digest, _, text = (home / f"{name}.json").read_text(encoding="utf-8").partition("\n")
        if digest != hashlib.sha256(text.encode()).hexdigest():
            return None
        return Choice.of(json.loads(text))
    except (OSError, ValueError):
        return None


def keep(name: str, choice: Choice) -> None:
    """Keep a choice; of all that are kept the oldest go if they are too many."""
    home = cache.folder()
    if home is None:
        return
    text = json.dumps(choice.page(), sort_keys=True)
    with suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
        number, made = tempfile.mkstemp(dir=home, suffix=".json")
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        Path(made).replace(home / f"{name}.json")
        files = sorted(home.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in files[:-MOST]:
            path.unlink(missing_ok=True)
