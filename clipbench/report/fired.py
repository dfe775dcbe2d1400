"""The section on how often a clip fires."""

from __future__ import annotations

from functools import partial

from clipbench.analysis.fired import fired
from clipbench.figures.fired import draw
from clipbench.report.evidence import Evidence
from clipbench.report.frames import headed, picture
from clipbench.report.parts import Part, Section, Table
from clipbench.schema import Role


def section(evidence: Evidence) -> Section:
    """Share of steps clipped."""
    shares = fired(evidence.cells)
    parts: list[Part] = []
    for task in evidence.tasks:
        mine, arms = evidence.of(shares, task), evidence.of(evidence.arms, task)
        if mine.empty:
            continue
        cells = evidence.of(evidence.cells, task)
        cells = cells[(cells["role"] == Role.SELECT) & (cells["clip"] != "none")]
        figure = partial(draw, mine, arms, evidence.footer(cells))
        caption = (
            f"{evidence.labels[task]}: share of steps in which the clip altered at least one "
            "element, by threshold: the median over learning rates and selection seeds; the band "
            "is the whole range. At 0 the clip does nothing, at 1 it sets the length of every "
            "step."
        )
        table = Table(
            evidence.name("tables", "fired", evidence.labels[task]),
            "",
            [],
            [],
            mine.reset_index(drop=True),
        )
        parts += headed(
            evidence,
            task,
            [picture(evidence, figure, caption, cells, "fired", evidence.labels[task]), table],
        )
    return Section("fired", "How often a clip fires", parts)
