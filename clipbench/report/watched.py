"""The page of a folder of watched loops: of each whether its clip does anything, and what other
thresholds would have done.

It knows nothing of studies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial

import pandas as pd

from clipbench.analysis.watched import (
    ALWAYS,
    HEAVY,
    MISPLACED,
    MOSTLY,
    RARE,
    USELESS,
    Finding,
    Run,
)
from clipbench.analysis.watched import runs as runs_of
from clipbench.analysis.whatif import what_if
from clipbench.figures.watched import draw
from clipbench.report.parts import Heading, Part, Picture, Section, Table, Text
from clipbench.report.prose import paragraphs
from clipbench.report.words import percent, plural, short
from clipbench.store import Store

QUESTION = "Does my clip do anything?"
CAVEAT = (
    "What a norm clip would have clipped of these steps. Their norms are those of this training: "
    "under another clip they would be others."
)


def told(store: Store) -> tuple[list[Part], list[Section]]:
    """What stands first, of the loop watched last; and a section for each loop, the last one
    first.
    """
    runs = runs_of(store)[::-1]
    if not runs:
        return [Text("No step is recorded here yet.")], []
    last = [run for run in runs if run.settings["started"] == runs[0].settings["started"]][::-1]
    opening: list[Part] = []
    for run in last:
        opening += [*([Text(f"**{name(run)}**")] if len(runs) > 1 else []), *diagnosis(run)]
    older = [run for run in runs if run not in last]
    return opening, [*(of_run(run, diagnosed=True) for run in last), *map(of_run, older)]


def name(run: Run) -> str:
    """What a loop is called: the number of its record, its optimizer and its length."""
    return f"Run {run.cell['attempt']}: {run.cell['arm']}, {plural(len(run.curve), 'step')}"


def subtitle(store: Store) -> str:
    """The line below the title."""
    runs = runs_of(store)
    steps = sum(len(run.curve) for run in runs)
    last = (
        f", the last begun {runs[-1].settings['started'][:16].replace('T', ' ')} UTC"
        if runs
        else ""
    )
    return f"{plural(len(runs), 'watched loop')}, {plural(steps, 'step')}{last}"


def diagnosis(run: Run) -> list[Part]:
    """What a loop's clip does, and what is wrong with it."""
    findings = run.findings()
    said = paragraphs(
        "watched",
        **run.facts(),
        clips=run.clips,
        clipped=run.is_clipped,
        useless={one.name for one in findings} & USELESS,
        rare=RARE,
    )
    return [*said, *(part for finding in findings for part in _told(finding))]


def _told(finding: Finding) -> Sequence[Part]:
    return paragraphs(
        "watched-findings",
        name=finding.name,
        steps=finding.steps,
        first=finding.first,
        evidence=finding.evidence,
        about=finding.about,
    )


def advice(run: Run) -> Sequence[Part]:
    """What to do about a loop's clip, and what its record cannot tell."""
    facts, names = run.facts(), {finding.name for finding in run.findings()}
    early = what_if(run.norms).tail(1).to_dict("records")
    return paragraphs(
        "watched-advice",
        **facts,
        names=names,
        clips=run.is_clipped,
        wrong=bool(names & {*MISPLACED}),
        adaptive=run.is_adaptive,
        spiky=facts["spikes"] > 0 or facts["norm_99"] > HEAVY * facts["norm_50"],
        always=ALWAYS,
        mostly=MOSTLY,
        lower=facts["lr_first"] * facts["kept"],
        at_90=facts["norm_90"],
        at_99=facts["norm_99"],
        first_90=early[0]["threshold"] if early else math.nan,
        first_share=early[0]["share"] if early else math.nan,
    )


def of_run(run: Run, diagnosed: bool = False) -> Section:
    """All that is told of one loop.

    :param diagnosed: whether its diagnosis stands above.
    """
    title = name(run)
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    parts: list[Part] = [] if diagnosed else diagnosis(run)
    if len(run.norms):
        caption = (
            "The loss; the length of the gradient before the clip, and the clip's threshold; the "
            "share of it that the clip left. Marks at the bottom are steps in which the clip "
            "changed the gradient."
        )
        figure = partial(draw, run.curve, run.fired)
        parts += [
            Picture(f"watched-{slug}", caption, caption, figure),
            norms(run, f"norms-{slug}"),
            Heading("Another threshold"),
            thresholds(run, f"what-if-{slug}"),
        ]
    return Section(slug, title, [*parts, Heading("What to do"), *advice(run)])


def norms(run: Run, name: str = "norms") -> Table:
    """How long a loop's raw gradients are."""
    facts = run.facts()
    columns = ["norm_1", "norm_50", "norm_90", "norm_99", "norm_max"]
    return Table(
        name,
        "Length (2-norm) of the gradient before the clip, over the steps.",
        ["1 %", "50 %", "90 %", "99 %", "largest"],
        [[short(facts[column]) for column in columns]],
        pd.DataFrame([{column: facts[column] for column in columns}]),
        words=0,
    )


def thresholds(run: Run, name: str = "what-if") -> Table:
    """The thresholds that could be chosen, and which share of the steps each would have
    clipped.
    """
    facts = run.facts()
    own = facts["threshold"] if run.by_whole_norm else math.nan
    rows = what_if(run.norms, own).sort_values("threshold", kind="stable")
    return Table(
        name,
        CAVEAT,
        ["max_norm", "where it comes from", "steps it clips"],
        [
            [short(row["threshold"]), row["why"], percent(row["share"])]
            for row in rows.to_dict("records")
        ],
        rows,
        words=2,
    )
