"""The steps of the command, and each one's share of the time.

A step may take its share of the time that is left, among the shares of those that are still to
come: what an early step does not need goes to all later ones. So the share of an early step is a
limit and costs nothing if the step is quick; only the last ones are a promise of time, and they are
what turns everything before into something that can be read. If the whole is short, the first steps
have the seconds without which they would only start and end (``least``), except what is the last
ones'. Of eight minutes:

- ``facts`` need seconds and have `FACTS_LIMIT`, whatever the whole is: a cold disk may take long to
  load torch, and nothing else can begin without them.
- ``tests`` come first, since no number is worth anything if they fail: a minute.
- ``smoke`` is every code path in seconds, ``quick`` the study that the README shows.
- ``throughput`` has the most: two of five bounds are about what it times, the compiler is in it,
  and it keeps the timings of an optimizer once it has all of them.
- ``bounds`` are measured for half a minute.
- ``full`` cannot end in minutes; it has what the others leave, and is the same study later.
- ``verify`` and ``report`` take 3 and 15 seconds of ``quick`` on an idle core, and twice that on a
  busy one: a sixth is theirs.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clipbench.device.folder import BOUNDS, FACTS, TESTS

ROOT = Path(__file__).resolve().parents[2]
OUT = "DIR"  # stands for the folder in a step's words: a page must name no path of a machine
NEEDED = ("pytest", "hypothesis")  # by the tests
ON_A_DEVICE = ("tests/test_cuda.py", "tests/test_fast.py")
STUDIES = ("smoke", "quick", "full")
FACTS_LIMIT = 60.0  # seconds


@dataclass(frozen=True)
class Step:
    """One process with a limit of time.

    :param words: the command, ``DIR`` for the folder.
    :param share: of the time that is left, among the shares of the steps that are still to come.
    :param least: seconds that it has all the same, if the time of the looks allows it.
    :param after: names of steps that make what it looks at: once one of them has begun again, so
        must this one.
    :param absent: why it is left out, empty if it is not; asked right before it would begin.
    :param makes: a file in the folder that is its result, if it is not a results folder.
    :param in_tree: whether it runs in the source tree, and not in the folder.
    """

    name: str
    words: tuple[str, ...]
    share: float
    least: float = 0.0
    after: tuple[str, ...] = ()
    absent: Callable[[], str] = str
    makes: str = ""
    in_tree: bool = False

    def command(self, folder: Path) -> list[str]:
        """Its words as a process is started with them."""
        start = {"clipbench": ["-m", "clipbench"], "python": []}
        words = [word.replace(f"{OUT}/", f"{folder}/") for word in self.words[1:]]
        return [sys.executable, *start[self.words[0]], *words]


def facts(device: str) -> Step:
    """The step that says what machine this is, before any other."""
    return Step("facts", _own("facts", device, FACTS), 0, makes=FACTS)


def planned(device: str, folder: Path) -> list[Step]:
    """The steps after the facts, in their order."""
    on = ("--device", device)

    def study(name: str, share: float, least: float, *more: str) -> Step:
        return Step(name, ("clipbench", "run", name, *on, *more, "--out", name), share, least)

    def look(command: str, name: str, share: float) -> Step:
        made_by = (name, "throughput") if name == "quick" else (name,)
        return Step(
            f"{command} {name}",
            ("clipbench", command, name),
            share,
            after=made_by,
            absent=lambda: "" if has_cells(folder / name) else f"{name} has no cell yet",
        )

    unmeasured, small = "--no-throughput", ("--curves", "report")
    sizes = ("--sizes", "250k,11.7M", "--out", "quick")
    return [
        Step("tests", _tests(), 12, 10, absent=_no_tests, makes=TESTS, in_tree=True),
        study("smoke", 8, 15),
        study("quick", 20, 15, unmeasured, *small),
        Step("throughput", ("clipbench", "throughput", "quick", *on, *sizes), 26, 15),
        Step("bounds", _own("bounds", device, BOUNDS), 8, 10, makes=BOUNDS),
        study("full", 16, 0, unmeasured, *small),
        *(look("verify", name, 2) for name in STUDIES),
        *(look("report", name, share) for name, share in zip(STUDIES, (4, 5, 5), strict=True)),
    ]


def _own(what: str, device: str, file: str) -> tuple[str, ...]:
    return ("python", "-m", "clipbench.device", what, device, f"{OUT}/{file}")


def _tests() -> tuple[str, ...]:
    """The tests that need a device; without one all of them are skipped. The tree stays as it
    is.
    """
    quiet = ("-q", "-p", "no:cacheprovider", "-k", "test_cuda or on_a_device")
    return ("python", "-m", "pytest", *quiet, f"--junitxml={OUT}/{TESTS}", *ON_A_DEVICE)


def _no_tests() -> str:
    if not in_tree():
        return "the source tree with its tests does not lie beside the package"
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"{' and '.join(lacking)} cannot be imported" if lacking else ""


def in_tree() -> bool:
    """Whether the package lies in its source tree, with the tests beside it."""
    return all((ROOT / file).is_file() for file in ON_A_DEVICE)


def has_cells(study: Path) -> bool:
    """Whether a results folder has a cell to show."""
    return any(study.glob("cells/*.parquet"))
