"""What is put into the processes of a command that is watched. Nothing here imports torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

ASKED = "CLIPBENCH_WATCH"
"""The variable that tells them how they are watched: JSON of `Watch`'s arguments."""


def asked(out: Path, steps: int | None, exact: bool, mark: str) -> dict[str, str]:
    """The variables of the environment in which a command is watched; its records have ``mark``."""
    here, others = str(Path(__file__).parent), os.environ.get("PYTHONPATH")
    about = {"out": str(out.absolute()), "steps": steps, "exact": exact, "command": mark}
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [here, others])),
        ASKED: json.dumps(about),
    }
