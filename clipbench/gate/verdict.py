"""The gate's findings as data: a verdict, its reason, and the numbers behind it.

The words are in `sentences`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any

from clipbench.schema import Term


class Verdict(Term):
    """What the gate says of a benchmark, of a study, or of all."""

    PASS = "pass", "no slower, and learns no worse, than it did"
    REGRESSION = "regression", "slower, or learns worse, than it did"
    INCONCLUSIVE = "inconclusive", "nobody can tell here and now"


class State(Term):
    """What became of a cell's numbers since the baseline."""

    SAME = "same_bits", "every number has the same bits"
    NEAR = "within_a_tolerance", "numbers differ by no more than rounding explains"
    MOVED = "moved", "a number differs by more, or a word is another"


PASS, REGRESSION, INCONCLUSIVE = Verdict
CODES = {PASS: 0, REGRESSION: 1, INCONCLUSIVE: 3}
SAME, NEAR, MOVED = State


class Reason(StrEnum):
    """The reason for a verdict."""

    # speed
    NO_SAMPLES = auto()
    AS_FAST = auto()
    NOT_REPEATED = auto()  # an alarm, by a fresh process
    SLOWER = auto()
    NOISY = auto()
    NOISY_AGAIN = auto()  # not in the first process, but in a fresh one
    RATIO_FROM_ELSEWHERE = auto()
    # learning: the baseline says nothing here
    NO_BASELINE = auto()
    UNREADABLE = auto()
    DAMAGED = auto()
    OTHER_STUDY = auto()
    OTHER_MACHINE = auto()
    OTHER_VERSIONS = auto()
    OTHER_RULES = auto()
    OTHER_DEVICE = auto()
    OTHER_PAGE = auto()
    # learning: cells beside those of the baseline
    NOT_RUN = auto()
    FAILED = auto()
    OTHER_CELLS = auto()
    WORSE = auto()
    BEGAN_OTHERWISE = auto()
    UNDECLARED = auto()
    TOO_FEW_SEEDS = auto()
    NO_WORSE = auto()


@dataclass(frozen=True)
class Finding:
    """The result for one benchmark, or for one study against its baseline.

    :param part: ``speed`` or ``learning``.
    :param numbers: the numbers behind the verdict, by name.
    :param details: other values for its sentence, by name.
    """

    part: str
    name: str
    verdict: Verdict
    reason: Reason
    numbers: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def overall(findings: Sequence[Finding]) -> Verdict:
    """The verdict on all findings: a regression if one is; else inconclusive if one is; else a
    pass.
    """
    verdicts = {finding.verdict for finding in findings}
    return next((verdict for verdict in (REGRESSION, INCONCLUSIVE) if verdict in verdicts), PASS)
