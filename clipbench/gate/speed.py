"""The speed part: every benchmark beside its reference, and an alarm only where fresh processes repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipbench.errors import UsageError
from clipbench.gate import rule
from clipbench.gate.arms import Broken, Task, measure
from clipbench.gate.limits import Bench, Limits, Machine
from clipbench.gate.rule import Samples
from clipbench.gate.verdict import INCONCLUSIVE, PASS, REGRESSION, Finding

CONFIRMATIONS = 3

Result = tuple[str, list[Samples | Broken]]  # a verdict, and the measurements it was made from


def findings(limits: Limits, here: Machine) -> list[Finding]:
    """A finding for each benchmark.

    :param here: this machine; a ratio other than 1 that was measured on another proves nothing.
    :raises UsageError: a reference is not there.
    """
    results = verdicts([Task(bench) for bench in limits.benches], limits.files)
    return [_finding(bench, *result, limits.machine, here) for bench, result in zip(limits.benches, results, strict=True)]


def verdicts(tasks: Sequence[Task], files: Path) -> list[Result]:
    """``pass``, ``alarm`` or ``inconclusive`` for each task, after every alarm has been looked at in fresh processes."""
    measured = measure(tasks, files)
    found = [(_judged(task, first), [first]) for task, first in zip(tasks, measured, strict=True)]
    # What is broken is so at once: to run it again would mend nothing.
    again = [number for number, (verdict, (first,)) in enumerate(found) if verdict == rule.ALARM and isinstance(first, Samples)]
    others: dict[int, list[str]] = {number: [] for number in again}
    for _ in range(CONFIRMATIONS):
        left = [number for number in again if rule.PASS not in others[number]]
        for number, samples in zip(left, measure([tasks[number] for number in left], files), strict=True):
            others[number].append(_judged(tasks[number], samples))
            found[number][1].append(samples)
    return [
        (rule.confirmed(verdict, others[number]) if number in others else verdict, measured)
        for number, (verdict, measured) in enumerate(found)
    ]


def _judged(task: Task, samples: Samples | Broken) -> str:
    if isinstance(samples, Broken):
        if samples.fault == "page":
            raise UsageError(f'"{task.bench.name}": its reference {samples.reason}.')
        return rule.INCONCLUSIVE if samples.fault == "machine" else rule.ALARM
    return rule.judge(samples, *task.limits)


def _finding(bench: Bench, verdict: str, measured: list[Samples | Broken], machine: Machine | None, here: Machine) -> Finding:
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
    if verdict == rule.PASS:
        unconfirmed = f"{ratios}{expected}; fresh processes did not repeat it." if len(measured) > 1 else finding.sentence
        return replace(finding, sentence=unconfirmed)
    if verdict == rule.INCONCLUSIVE:
        noise = f"this machine is too noisy now: the reference takes {first.ratios_again[1]:.3f} × its own time"
        if first.agrees:
            noise = f"{ratios}{expected}; in a fresh process the machine was too noisy to tell"
        return replace(finding, verdict=INCONCLUSIVE, sentence=f"{noise}.")
    processes = f"in {len(measured)} of {len(measured)} processes"
    return replace(finding, verdict=REGRESSION, sentence=f"slower {processes}: {ratios}{expected}.")
