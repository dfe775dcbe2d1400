"""What the gate found, and how it is told: a line each on the terminal, a table for a pull request, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

PASS, REGRESSION, INCONCLUSIVE = "pass", "regression", "inconclusive"
CODES = {PASS: 0, REGRESSION: 1, INCONCLUSIVE: 3}
MARKS = {PASS: "passes", REGRESSION: "REGRESSION", INCONCLUSIVE: "inconclusive"}
SENTENCES = {
    PASS: "The gate passes.",
    REGRESSION: "The gate found a regression.",
    INCONCLUSIVE: "The gate found no regression, and could not look everywhere.",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: a benchmark, or a study against its baseline.

    :param part: ``speed`` or ``learning``.
    :param verdict: ``pass``, ``regression`` or ``inconclusive``.
    :param numbers: what the verdict was read from, by name.
    """

    part: str
    name: str
    verdict: str
    sentence: str
    numbers: dict[str, Any] = field(default_factory=dict)


def overall(findings: Sequence[Finding]) -> str:
    """One regression is one; and where there is none, one thing nobody can tell leaves the whole open."""
    found = {finding.verdict for finding in findings}
    return next((verdict for verdict in (REGRESSION, INCONCLUSIVE) if verdict in found), PASS)


def text(findings: Sequence[Finding]) -> str:
    """For a terminal: a line each."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = [f"{f.part:<8}  {MARKS[f.verdict]:<12}  {f.name:<{width}}  {f.sentence}" for f in findings]
    return "\n".join([*lines, SENTENCES[overall(findings)]])


def markdown(findings: Sequence[Finding], environment: dict[str, Any]) -> str:
    """For a comment on a pull request: the verdict, and a table of what it was read from."""
    rows = [f"| {f.part} | {_cell(f.name)} | {MARKS[f.verdict]} | {_cell(f.sentence)} |" for f in findings]
    where = f"{environment['processor']}, {environment['cores']} cores, torch {environment['libraries']['torch']}"
    return "\n".join([f"### {SENTENCES[overall(findings)]}", "", "| | | | |", "|---|---|---|---|", *rows, "", where, ""])


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


def document(findings: Sequence[Finding], environment: dict[str, Any]) -> str:
    """For machines: the verdict, its exit code, every finding with its numbers, and the machine."""
    verdict = overall(findings)
    page = {
        "verdict": verdict,
        "exit_code": CODES[verdict],
        "findings": [asdict(finding) for finding in findings],
        "environment": environment,
    }
    return json.dumps(page, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
