"""The section on loss curves."""

from __future__ import annotations

from functools import partial

from clipbench.analysis.curves import curves
from clipbench.figures.curves import draw
from clipbench.report.evidence import Evidence
from clipbench.report.frames import drawable, headed, picture
from clipbench.report.parts import Part, Section, Text


def section(evidence: Evidence) -> Section:
    """Loss curves of the report seeds."""
    kept = evidence.environment.get("curves")
    if kept in ("first", "none"):
        some = "no curves" if kept == "none" else "the curves of few seeds"
        lacking = (
            f"This copy of the results keeps {some}, and so lacks these figures: the median loss "
            "of every method, step by step."
        )
        return Section(
            "curves",
            "Loss curves",
            [Text(f"{lacking} `clipbench run` with `--curves report` in a new folder draws them.")],
        )
    recorded = evidence.chosen_curves
    lines = curves(recorded, evidence.drawn, evidence.components)
    parts: list[Part] = []
    for task in evidence.tasks:
        mine, arms = evidence.of(lines, task), drawable(evidence, task)
        mine = mine[mine["arm"].isin(arms["arm"])]
        if mine.empty:
            continue
        about = evidence.about(task)
        known = about["optimum"] is not None
        label = "training loss above the optimum" if known else "training loss"
        reference = about["reference_loss"]
        line = reference - (about["optimum"] or 0.0) if reference is not None else None
        chosen = evidence.of(evidence.choices, task)
        cells = evidence.cells[evidence.cells["cell"].isin(set(mine["cell"]))]
        figure = partial(
            draw, mine, evidence.shown(arms), chosen, label, line, evidence.footer(cells)
        )
        caption = (
            f"{evidence.labels[task]}: {label} of every report seed (thin) at each method's "
            "chosen setting, and their median (thick; a diverged seed counts as infinite). A "
            "cross marks where a run diverged; the dotted line is the loss of the best constant "
            "prediction. Each point is the median of a stretch of steps."
        )
        parts += headed(
            evidence,
            task,
            [picture(evidence, figure, caption, cells, "curves", evidence.labels[task])],
        )
    return Section("curves", "Loss curves", parts)
