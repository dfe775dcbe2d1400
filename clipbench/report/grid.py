"""The section on the whole grid, learning rate × threshold."""

from __future__ import annotations

from functools import partial

from clipbench.analysis.grid import grid
from clipbench.figures.grid import draw
from clipbench.report.evidence import Evidence
from clipbench.report.frames import drawable, headed, picture
from clipbench.report.parts import Part, Section, Table, Text
from clipbench.report.words import metric_note, metric_words
from clipbench.schema import Role


def section(evidence: Evidence) -> Section:
    """The grid as heat maps."""
    settings = grid(evidence.cells, evidence.components)
    parts: list[Part] = []
    for task in evidence.tasks:
        mine, arms, about = (
            evidence.of(settings, task),
            drawable(evidence, task),
            evidence.about(task),
        )
        if mine.empty:
            continue
        cells = evidence.of(evidence.cells, task)
        clipped = arms[arms["clip"] != "none"]
        seen = {*clipped["arm"], *clipped["partner"]} if len(clipped) else {*arms["arm"]}
        cells = cells[(cells["role"] == Role.SELECT) & cells["arm"].isin(seen)]
        shares = about["success"] is not None
        measure = metric_note(about) if shares else f"{metric_words(about)}, mean over seeds"
        figure = partial(
            draw,
            mine,
            evidence.shown(arms),
            evidence.of(evidence.choices, task),
            f"gain in {'the share that succeeds' if shares else metric_words(about)}",
            about["higher_is_better"],
            evidence.footer(cells),
        )
        caption = (
            f"{evidence.labels[task]}: {measure} after the last step, on selection seeds, less the "
            "best that the optimizer has without a clip (blue and + are better, red and − worse), "
            "over learning rate × threshold (× is a multiple of the median size of the raw "
            "gradient). "
            "D, C, S, F: seeds that diverged, collapsed, stalled, failed, with their number "
            f"unless all did; ?: seeds that ran but have no value. {_grey(shares)} The red frame "
            "is the setting that was chosen, by validation loss."
        )
        table = Table(
            evidence.name("tables", "grid", evidence.labels[task]),
            "",
            [],
            [],
            mine.reset_index(drop=True),
        )  # too long for the page: its CSV is the table
        parts += headed(
            evidence,
            task,
            [picture(evidence, figure, caption, cells, "heat", evidence.labels[task]), table],
        )
    if parts:
        parts.insert(
            0,
            Text("Every setting of the selection phase: how good it was, and how its seeds ended."),
        )
    return Section("grid", "Learning rate × threshold", parts)


def _grey(shares: bool) -> str:
    if shares:
        return (
            "A diverged seed did not succeed; a failed one, or one with no value, is left out "
            "of the share."
        )
    return "Grey where one diverged: a mean over the survivors would flatter it."
