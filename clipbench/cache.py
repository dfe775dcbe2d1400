"""Where clipbench keeps what can be made again: what was compiled, and what was measured."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

PLACE = "CLIPBENCH_CACHE"


def folder() -> Path | None:
    """``CLIPBENCH_CACHE`` if it is set, else the user's cache folder; it need not exist. None if
    the user has no home.
    """
    if path := os.environ.get(PLACE, "").strip():
        return Path(path)
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipbench"
    return None


@lru_cache(maxsize=1)
def sources() -> str:
    """A hash of all of clipbench's files: what one version has kept serves no other."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.suffix in (".py", ".cpp", ".hpp"):
            digest.update(path.read_bytes())
    return digest.hexdigest()
