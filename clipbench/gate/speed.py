"""The speed part of the gate: every benchmark beside its reference; an alarm counts only if
fresh processes repeat it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipbench.errors import UsageError
from clipbench.gate import decision, sentences
from clipbench.gate.decision import Decision, Samples
from clipbench.gate.limits import Bench, Limits, Machine
from clipbench.gate.sampling import Broken, Failure, Measurement, measure
from clipbench.gate.verdict import INCONCLUSIVE, PASS, REGRESSION, Finding, Reason

CONFIRMATIONS = 3

# The decision, and the results behind it: that of the first process, then those of fresh ones.
DecisionWithResults = tuple[Decision, list[Samples | Broken]]


def findings(limits: Limits, here: Machine) -> list[Finding]:
    """A finding for each benchmark.

    :param here: this machine; an expected ratio other than 1 that was measured on another machine
        proves nothing.
    :raises UsageError: a reference gives no samples because the page names it wrongly, or because
        it fails.
    """
    results = decisions([Measurement(bench) for bench in limits.benches], limits.files)
    return [
        _finding(bench, *result, limits.machine, here)
        for bench, result in zip(limits.benches, results, strict=True)
    ]


def decisions(measurements: Sequence[Measurement], files: Path) -> list[DecisionWithResults]:
    """The decision on each measurement, after every alarm was measured again in fresh processes."""
    results = measure(measurements, files)
    firsts = [_decision(one, result) for one, result in zip(measurements, results, strict=True)]
    taken = [[result] for result in results]
    # A benchmark that gave no samples is not measured again: it would fail again.
    repeats: dict[int, list[Decision]] = {
        number: []
        for number, (first, result) in enumerate(zip(firsts, results, strict=True))
        if first == decision.ALARM and isinstance(result, Samples)
    }
    for _ in range(CONFIRMATIONS):
        left = [number for number, others in repeats.items() if decision.PASS not in others]
        for number, result in zip(
            left, measure([measurements[number] for number in left], files), strict=True
        ):
            repeats[number].append(_decision(measurements[number], result))
            taken[number].append(result)
    return [
        (decision.confirmed(first, repeats[number]) if number in repeats else first, taken[number])
        for number, first in enumerate(firsts)
    ]


def _decision(measurement: Measurement, result: Samples | Broken) -> Decision:
    if isinstance(result, Broken):
        if result.fault == "page":
            # a name that is not there is its own subject
            whose = "" if result.failure == Failure.NO_FACTORY else "its reference "
            raise UsageError(f'"{measurement.bench.name}": {whose}{sentences.why(result)}.')
        return decision.INCONCLUSIVE if result.fault == "machine" else decision.ALARM
    return decision.decide(result, *measurement.limits)


def _finding(
    bench: Bench,
    decided: Decision,
    measured: list[Samples | Broken],
    machine: Machine | None,
    here: Machine,
) -> Finding:
    first = measured[0]
    if isinstance(first, Broken):
        verdict = INCONCLUSIVE if first.fault == "machine" else REGRESSION
        return Finding("speed", bench.name, verdict, Reason.NO_SAMPLES, details={"broken": first})
    least, paired = first.ratios
    numbers = {
        "expected_ratio": bench.ratio,
        "least_ratio": least,
        "paired_median": paired,
        "of_the_reference_to_itself": first.ratios_again,
        "rounds": len(first.ours),
        "processes": len(measured),
    }
    details = {"machine": machine, "here": here, "measured": _measured(measured)}
    if bench.ratio != 1 and machine != here:
        verdict, reason = INCONCLUSIVE, Reason.RATIO_FROM_ELSEWHERE
    elif decided == decision.PASS:
        verdict, reason = PASS, Reason.NOT_REPEATED if len(measured) > 1 else Reason.AS_FAST
    elif decided == decision.INCONCLUSIVE:
        verdict, reason = INCONCLUSIVE, Reason.NOISY_AGAIN if first.agrees else Reason.NOISY
    else:
        verdict, reason = REGRESSION, Reason.SLOWER
    return Finding("speed", bench.name, verdict, reason, numbers, details)


def _measured(results: Sequence[Samples | Broken]) -> float:
    """The ratio to write down for this machine: by whichever statistic is the higher, the middle
    one of the processes, rounded up.
    """
    ratios = np.array([result.ratios for result in results if isinstance(result, Samples)])
    return float(np.ceil(100 * np.median(ratios, axis=0).max()) / 100)
