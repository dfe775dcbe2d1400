"""The gate: is this tree slower, or does it learn worse, than it did? Exit 0 no, 1 yes, 3 nobody
can tell here and now.

*Speed* is a ratio to frozen references, taken in one process and confirmed in others; *learning* is
a comparison with committed results. Both are declared in a page of limits, ours or anybody's.
`self_test` measures how often the gate itself is wrong.
"""

from __future__ import annotations

from typing import Any

from clipbench import execute
from clipbench.gate import learning, limits, speed
from clipbench.gate.limits import Limits, Machine
from clipbench.gate.verdict import Finding
from clipbench.protocol.watcher import Watcher

__all__ = ["Finding", "Limits", "environment", "read", "run"]

read = limits.read


def environment() -> dict[str, Any]:
    """The machine and its libraries, as results record them."""
    return execute.environment("cpu")


def run(page: Limits, workers: int | None, watcher: Watcher) -> list[Finding]:
    """Everything the page asks for, speed first: nothing else of ours must run beside it.

    :param workers: processes of the learning part; one per core if not given.
    :raises UsageError: the page names a reference that is not there.
    """
    here = environment()
    watcher.phase("speed", 0)
    findings = speed.findings(page, Machine(here["processor"], here["libraries"]["torch"]))
    return [*findings, *learning.findings(page, workers, watcher)]
