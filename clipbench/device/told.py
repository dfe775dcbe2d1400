"""What a step said of itself, in one line, from its log or from the file that it made."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

from clipbench.device.folder import TESTS
from clipbench.device.steps import STUDIES, Step

LONGEST = 160  # letters
US = "clipbench: "  # how our sentences to a user begin
NAMED = 3  # failed tests


def said(step: Step, folder: Path, log: Path, first: int) -> str:
    """The line: of the tests how many passed; else the last that begins with the name of the
    folder or of clipbench, as results and errors do, or the last of all. Empty if it said nothing.

    :param first: the byte of the log at which its output begins.
    """
    if step.makes == TESTS and (counted := tests(folder / TESTS)):
        return counted
    text = log.read_bytes()[first:].decode(errors="replace")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if line != KeyboardInterrupt.__name__]
    results = [line for line in lines if line.startswith((*(f"{name}:" for name in STUDIES), US))]
    line = (results or lines or [""])[-1]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def tests(file: Path) -> str:
    """How many tests passed, failed and were skipped, from what pytest wrote; empty if it wrote
    nothing.
    """
    try:
        suites = list(ET.parse(file).iter("testsuite"))  # noqa: S314 - ours
    except (OSError, ET.ParseError):
        return ""
    number = {
        name: sum(int(suite.get(name, 0)) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    }
    failed = number["failures"] + number["errors"]
    passed = number["tests"] - failed - number["skipped"]
    names = [
        case.get("name", "")
        for suite in suites
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    more = f": {', '.join(names[:NAMED])}{'…' * (len(names) > NAMED)}" if names else ""
    return f"{passed} passed, {failed} failed, {number['skipped']} skipped{more}"
