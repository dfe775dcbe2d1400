"""The size of the suite, and the page it writes: promise, test, times tried, lost."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

HEAD = """# How reliable a results folder is

`tox -e faults` breaks things on purpose and looks at what is left. This page is written by it: what
is promised, which test tries to break it, how many times it was tried, and how many times something
was lost. `tox -e tests` tries a few of each.

| promise | test | tried | lost |
| --- | --- | ---: | ---: |
"""


def pytest_addoption(parser):
    parser.addoption(
        "--faults", action="store_true", help="Try every fault, and write docs/reliability.md."
    )


class Tally:
    """Counts what was tried and what was lost, by promise and test."""

    def __init__(self) -> None:
        self.tried, self.lost = defaultdict(int), defaultdict(int)

    def __call__(self, promise: str, test: str, *, lost: bool) -> None:
        self.tried[promise, test] += 1
        self.lost[promise, test] += lost


tallies = pytest.StashKey[Tally]()


def pytest_configure(config):
    config.stash[tallies] = Tally()


@pytest.fixture
def tally(request):
    """``tally(promise, lost=…)``: one more try of this test."""

    def count(promise, *, lost):
        request.config.stash[tallies](promise, request.node.originalname, lost=lost)
        return lost

    return count


@pytest.fixture
def every(request):
    """``every(count, few)``: all numbers below ``count`` in the whole suite, ``few`` of them,
    evenly spaced, in the small one.
    """
    whole = request.config.getoption("--faults", default=False)

    def chosen(count, few, most=10**9):
        number = min(count, most if whole else few)
        return sorted({round(index * (count - 1) / max(1, number - 1)) for index in range(number)})

    return chosen


def pytest_sessionfinish(session):
    tally, config = session.config.stash[tallies], session.config
    if hasattr(config, "workeroutput"):  # one of several processes: the first one writes
        config.workeroutput["tally"] = [
            [*key, tally.tried[key], tally.lost[key]] for key in tally.tried
        ]
    elif config.getoption("--faults", default=False) and tally.tried:
        page = Path(config.rootpath) / "docs" / "reliability.md"
        page.parent.mkdir(exist_ok=True)
        new = [
            (
                f"| {promise} | `{test}` | {tally.tried[promise, test]:,} | "
                f"{tally.lost[promise, test]:,} |"
            )
            for promise, test in tally.tried
        ]
        ran = {test for _, test in tally.tried}
        page.write_text(
            HEAD + "\n".join(sorted([*new, *_others(page, ran)])) + "\n", encoding="utf-8"
        )


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Add what another process has tried."""
    tally = node.config.stash[tallies]
    for promise, test, tried, lost in getattr(node, "workeroutput", {}).get("tally", []):
        tally.tried[promise, test] += tried
        tally.lost[promise, test] += lost


def _others(page, ran):
    """The rows of tests that this session did not run: a part of the suite renews its own."""
    lines = page.read_text(encoding="utf-8").splitlines() if page.is_file() else []
    rows = [line for line in lines if line.startswith("| ") and "`" in line]
    return [row for row in rows if row.split("`")[1] not in ran]
