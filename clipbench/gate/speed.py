"""The speed part: every benchmark beside its reference, and an alarm only where fresh processes repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipbench.errors import UsageError
from clipbench.gate import decision
from clipbench.gate.decision import Samples
from clipbench.gate.limits import Bench, Limits, Machine
from clipbench.gate.sampling import Broken, Measurement, measure
from clipbench.gate.verdict import INCONCLUSIVE, PASS, REGRESSION, Finding

CONFIRMATIONS = 3

Decided = tuple[str, list[Samples | Broken]]  # the decision, and what it was made from: the first process, then fresh ones


def findings(limits: Limits, here: Machine) -> list[Finding]:
    """A finding for each benchmark.

    :param here: this machine; a ratio other than 1 that was measured on another proves nothing.
    :raises UsageError: a reference is not there.
    """
    results = decisions([Measurement(bench) for bench in limits.benches], limits.files)
    return [_finding(bench, *result, limits.machine, here) for bench, result in zip(limits.benches, results, strict=True)]


def decisions(measurements: Sequence[Measurement], files: Path) -> list[Decided]:
    """``pass``, ``alarm`` or ``inconclusive`` for each, after every alarm has been looked at in fresh processes."""
    results = measure(measurements, files)
    firsts = [_decided(one, result) for one, result in zip(measurements, results, strict=True)]
    taken = [[result] for result in results]
    # What is broken is so at once: to run it again would mend nothing.
    repeats: dict[int, list[str]] = {
        number: []
        for number, (first, result) in enumerate(zip(firsts, results, strict=True))
        if first == decision.ALARM and isinstance(result, Samples)
    }
    for _ in range(CONFIRMATIONS):
        left = [number for number, others in repeats.items() if decision.PASS not in others]
        for number, result in zip(left, measure([measurements[number] for number in left], files), strict=True):
            repeats[number].append(_decided(measurements[number], result))
            taken[number].append(result)
    return [
        (decision.confirmed(first, repeats[number]) if number in repeats else first, taken[number])
        for number, first in enumerate(firsts)
    ]


def _decided(measurement: Measurement, result: Samples | Broken) -> str:
    if isinstance(result, Broken):
        if result.fault == "page":
            raise UsageError(f'"{measurement.bench.name}": its reference {result.reason}.')
        return decision.INCONCLUSIVE if result.fault == "machine" else decision.ALARM
    return decision.decide(result, *measurement.limits)


def _finding(bench: Bench, decided: str, measured: list[Samples | Broken], machine: Machine | None, here: Machine) -> Finding:
    first = measured[0]
    if isinstance(first, Broken):
        slow = first.fault == "machine"
        return Finding("speed", bench.name, INCONCLUSIVE if slow else REGRESSION, f"{first.reason}.")
    least, paired = first.ratios
    numbers = {
        "expected_ratio": bench.ratio,
        "least_ratio": least,
        "paired_median": paired,
        "of_the_reference_to_itself": first.ratios_again,
        "rounds": len(first.ours),
        "processes": len(measured),
    }
    ratios = f"least ratio {least:.3f}, paired median {paired:.3f}"
    if bench.ratio != 1 and machine != here:
        there = f"{machine.processor}, torch {machine.torch}" if machine else "another machine"
        sentence = f"{ratios}, and the {bench.ratio:g} expected was measured on {there}."
        return Finding("speed", bench.name, INCONCLUSIVE, sentence, numbers)
    expected = "" if bench.ratio == 1 else f", {bench.ratio:g} expected"
    finding = Finding("speed", bench.name, PASS, f"{ratios}{expected}.", numbers)
    if decided == decision.PASS:
        unconfirmed = f"{ratios}{expected}; fresh processes did not repeat it." if len(measured) > 1 else finding.sentence
        return replace(finding, sentence=unconfirmed)
    if decided == decision.INCONCLUSIVE:
        noise = f"this machine is too noisy now: the reference takes {first.ratios_again[1]:.3f} × its own time"
        if first.agrees:
            noise = f"{ratios}{expected}; in a fresh process the machine was too noisy to tell"
        return replace(finding, verdict=INCONCLUSIVE, sentence=f"{noise}.")
    processes = f"in {len(measured)} of {len(measured)} processes"
    return replace(finding, verdict=REGRESSION, sentence=f"slower {processes}: {ratios}{expected}.")
