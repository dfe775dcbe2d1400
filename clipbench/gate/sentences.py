"""The gate's words: a sentence for each reason; the findings for a terminal, a pull request,
machines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from clipbench.gate.sampling import Broken, Failure
from clipbench.gate.verdict import (
    CODES,
    INCONCLUSIVE,
    PASS,
    REGRESSION,
    Finding,
    Reason,
    State,
    overall,
)

MARKS = {PASS: "passes", REGRESSION: "REGRESSION", INCONCLUSIVE: "inconclusive"}
OVERALL = {
    PASS: "The gate passes.",
    REGRESSION: "The gate found a regression.",
    INCONCLUSIVE: "The gate found no regression, and could not look everywhere.",
}

# In braces: a finding's numbers and details, and the phrases made of them below.
_RUN = "`clipbench run {study} --engine {engine} --no-throughput"
_ANEW = f"{_RUN} --anew --out {{folder}}` makes it anew."
_MOVED = "{stable} cells of stable runs moved, {problem}, {arm}, lr {lr:g} first"
SENTENCES = {
    Reason.NO_SAMPLES: "{broken}.",
    Reason.AS_FAST: "{ratios}{expected}.",
    Reason.NOT_REPEATED: "{ratios}{expected}; fresh processes did not repeat it.",
    Reason.SLOWER: "slower in {processes} of {processes} processes: {ratios}{expected}{accept}.",
    Reason.NOISY: (
        "this machine is too noisy now: the reference takes "
        "{of_the_reference_to_itself[1]:.3f} × its own time."
    ),
    Reason.NOISY_AGAIN: "{ratios}{expected}; in a fresh process the machine was too noisy to tell.",
    Reason.RATIO_FROM_ELSEWHERE: (
        "{ratios}, and the {expected_ratio:g} expected was measured on {where}{accept}."
    ),
    Reason.NO_BASELINE: f"{{folder}}: there is no baseline; {_RUN} --out {{folder}}` makes one.",
    Reason.UNREADABLE: (
        f"{{folder}}: the baseline has another schema, or is damaged ({{error}}); {_ANEW}"
    ),
    Reason.DAMAGED: f"{{folder}}: {{files}} files of the baseline are damaged, {{file}} first, "
    f"which {{error}}; restore them, or {_ANEW}",
    Reason.OTHER_STUDY: (
        f'{{folder}}: the baseline is of the study "{{there}}", not "{{here}}"; {_ANEW}'
    ),
    Reason.OTHER_MACHINE: (
        f"{{folder}}: the baseline is of another {{what}} ({{there}}, here {{here}}); {_ANEW}"
    ),
    Reason.OTHER_VERSIONS: (
        f"{{folder}}: the baseline was made with another version of {{components}}; {_ANEW}"
    ),
    Reason.OTHER_RULES: (
        f"{{folder}}: the outcomes of the baseline were judged by rules {{there}} "
        f"(now {{here}}); {_ANEW}"
    ),
    Reason.OTHER_DEVICE: (
        f"{{folder}}: the baseline is of another device ({{there}}), and lacks cells of it; {_ANEW}"
    ),
    Reason.OTHER_PAGE: (
        f"{{folder}}: the baseline is of another page of this study, and lacks cells of it; {_ANEW}"
    ),
    Reason.NOT_RUN: "{lost} cells that the study asks for were not run.",
    Reason.FAILED: "{failed} cells fail now, {problem}, {arm} first ({error}). {counts}.",
    Reason.OTHER_CELLS: "the same numbers led to other cells. {counts}.",
    Reason.WORSE: "{worst}. {counts}.",
    Reason.BEGAN_OTHERWISE: "{worst}. {counts}; but runs began otherwise: "
    "this machine draws other data or weights than the baseline's.",
    Reason.UNDECLARED: f"{_MOVED}, and nobody said so: "
    "raise the version of what changed them, or make the baseline anew. {counts}.",
    Reason.TOO_FEW_SEEDS: (
        f"{_MOVED}, and {{seeds}} seeds are too few to tell worse from luck{{among}}. {{counts}}."
    ),
    Reason.NO_WORSE: "{counts}{tested}.",
}
FAILURES = {
    Failure.NOT_IMPORTED: "{work} is not there: {error}",
    Failure.NO_FACTORY: "{work} is not there{hint}",
    Failure.NOT_CALLABLE: "{work} returned {kind}, not a function to be timed",
    Failure.RAISED: "{it}raised {error}",
    Failure.NOT_FINITE: "{it}returned {number}",
    Failure.NOT_FINITE_IN: "{it}returned {number} in a {kind}",
    Failure.ENDED: "{it}ended its process, with code {code}",
    Failure.HUNG: "{it}took longer than {seconds:g} s",
    Failure.TOO_LONG: (
        "one call of its reference takes {milliseconds:.1f} ms here, and {most:g} ms is the most"
    ),
}


def sentence(finding: Finding) -> str:
    """A finding as a sentence."""
    phrases = (
        {"speed": _speed_phrases, "learning": _learning_phrases}[finding.part](finding)
        if finding.numbers
        else {}
    )
    if finding.reason == Reason.NO_SAMPLES:
        phrases["broken"] = why(finding.details["broken"])
    if finding.reason == Reason.OTHER_VERSIONS:
        versions = finding.details["versions"]
        phrases["components"] = ", ".join(
            f"{label} ({before}, now {now})" for label, before, now in versions
        )
    return SENTENCES[finding.reason].format(**{**finding.numbers, **finding.details, **phrases})


def why(broken: Broken) -> str:
    """Why a benchmark gave no samples. For our side the subject is "it"; for the reference the
    caller adds the subject.
    """
    it = "it " if broken.fault == "ours" else ""
    return FAILURES[broken.failure].format(it=it, **broken.details)


def _speed_phrases(finding: Finding) -> dict[str, str]:
    numbers, details = finding.numbers, finding.details
    machine, here = details.get("machine"), details["here"]
    return {
        "ratios": (
            f"least ratio {numbers['least_ratio']:.3f}, paired median "
            f"{numbers['paired_median']:.3f}"
        ),
        "expected": ""
        if numbers["expected_ratio"] == 1
        else f", {numbers['expected_ratio']:g} expected",
        "accept": (
            f"; if it is meant to be so, write ratio = {details['measured']:g} and [machine] "
            f"processor = {json.dumps(here.processor, ensure_ascii=False)}, torch = "
            f"{json.dumps(here.torch)}"
        ),
        "where": f"{machine.processor}, torch {machine.torch}" if machine else "another machine",
    }


def _learning_phrases(finding: Finding) -> dict[str, str]:
    numbers, better = finding.numbers, finding.numbers["better"]
    states = ", ".join(
        f"{numbers[state]} {state.replace('_', ' ')}" for state in State if numbers[state]
    )
    platform = (
        ""
        if finding.details["same_platform"]
        else " (another processor, torch or engine made the baseline)"
    )
    chosen = numbers["in_one_of_the_two_only"]
    tests = (
        f"{numbers['tests']} paired tests find "
        f"{f'{better} better and nothing' if better else 'nothing'} worse"
    )
    return {
        "counts": f"{numbers['cells']} cells, {states}{platform}"
        + (f"; {chosen} were chosen in one of the two runs only" if chosen else ""),
        "worst": _worst(numbers["worse"], numbers["tests"]) if numbers["worse"] else "",
        "among": f" in {numbers['tests']} tests" if numbers["tests"] > 1 else "",
        "tested": f"; {tests}" if numbers["moved"] else "",
    }


def _worst(worse: Sequence[dict[str, Any]], tests: int) -> str:
    first = min(worse, key=lambda test: test["p"])
    what = (
        f"{first['setting']}: {first['measure']} by {float(first['by']):.3g} (p {first['p']:.2g})"
    )
    return f"worse in {len(worse)} of {tests} paired tests, {what} first"


# ------------------------------------------------------------------------------ all findings


def text(findings: Sequence[Finding]) -> str:
    """The findings for a terminal, a line each, and the verdict on all."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = [
        f"{f.part:<8}  {MARKS[f.verdict]:<12}  {f.name:<{width}}  {sentence(f)}" for f in findings
    ]
    return "\n".join([*lines, OVERALL[overall(findings)]])


def markdown(findings: Sequence[Finding], environment: dict[str, Any]) -> str:
    """The findings for a comment on a pull request: the verdict, and a table of what it was read
    from.
    """
    rows = [
        f"| {f.part} | {_cell(f.name)} | {MARKS[f.verdict]} | {_cell(sentence(f))} |"
        for f in findings
    ]
    where = (
        f"{environment['processor']}, {environment['cores']} cores, torch "
        f"{environment['libraries']['torch']}"
    )
    return "\n".join(
        [
            f"### {OVERALL[overall(findings)]}",
            "",
            "| | | | |",
            "|---|---|---|---|",
            *rows,
            "",
            where,
            "",
        ]
    )


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


def document(findings: Sequence[Finding], environment: dict[str, Any]) -> str:
    """For machines: the verdict, its exit code, every finding with its numbers, and the machine."""
    verdict = overall(findings)
    page = {
        "verdict": verdict,
        "exit_code": CODES[verdict],
        "findings": [
            {
                "part": finding.part,
                "name": finding.name,
                "verdict": finding.verdict,
                "sentence": sentence(finding),
                "numbers": finding.numbers,
            }
            for finding in findings
        ],
        "environment": environment,
    }
    return json.dumps(page, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
