"""Does clipping help Adam at all? The clips on optimizers that divide by the gradient's size."""

from __future__ import annotations

from functools import partial

from clipbench.figures.headline import draw
from clipbench.figures.style import arm_colours
from clipbench.report.evidence import Evidence
from clipbench.report.frames import foldable, gap_panels, picture
from clipbench.report.parts import Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import gap_places, metric_words, percent, signed_gap
from clipbench.schema import Verdict
from clipbench.task import Task

TITLE = "Does it help Adam at all?"
ADAPTIVE = ("adam", "rmsprop", "adagrad", "adadelta", "lamb", "adafactor")  # parts of their names


def section(evidence: Evidence) -> Section:
    """The clips on Adam's family."""
    names = evidence.arms.set_index("arm")["optimizer"].str.lower()
    adaptive = {arm for arm, name in names.items() if any(word in name for word in ADAPTIVE)}
    gaps = evidence.gaps[evidence.gaps["arm"].isin(adaptive)]
    others = set(evidence.gaps["arm"]) - adaptive
    if gaps.empty:
        return Section("adaptive", TITLE, [])
    verdicts = gaps["verdict"].astype(str)
    parts = paragraphs(
        "adaptive",
        rows=len(gaps),
        better=int(verdicts.isin([Verdict.BETTER, Verdict.PERHAPS_BETTER]).sum()),
        worse=int(verdicts.isin([Verdict.WORSE, Verdict.PERHAPS_WORSE]).sum()),
        same=int((verdicts == Verdict.SAME).sum()),
        open=int((verdicts == Verdict.UNDECIDED).sum()),
        fired=percent(
            float(evidence.answers.loc[evidence.answers["arm"].isin(adaptive), "fired"].median())
        ),
        seeds=int(gaps["n"].max()),
    )
    labelled = evidence.labelled(gaps)
    panels = gap_panels(evidence, gaps, "improvement in {} by the clip")
    cells = evidence.behind(gaps)
    shown = []
    if others:  # otherwise it is the headline's figure
        caption = (
            "Each clip against the same adaptive optimizer without it; the band is the margin."
        )
        figure = partial(draw, labelled, panels, arm_colours(evidence.arms), evidence.footer(cells))
        shown.append(picture(evidence, figure, caption, cells, "adaptive"))
    rows = [
        [
            evidence.labels[Task.of(row)],
            row["label"],
            str(row["verdict"]),
            signed_gap(row, gap_places(evidence.of(gaps, Task.of(row)))),
            metric_words(evidence.about(Task.of(row))),
            str(row["n"]),
        ]
        for row in labelled.to_dict("records")
    ]
    head = ["problem", "clip", "verdict", "gain [95 %]", "metric", "seeds"]
    caption = "The clips on Adam, AdamW, RMSprop and their like, at the same number of tries."
    table = Table(evidence.name("tables", "adaptive"), caption, head, rows, labelled, words=3)
    return Section("adaptive", TITLE, [*parts, *shown, foldable(table)])
