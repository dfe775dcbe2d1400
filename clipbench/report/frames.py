"""What every section needs: a captioned figure, a heading where there are several tasks."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from clipbench import analysis, figures
from clipbench.report.evidence import Evidence
from clipbench.report.parts import Heading, Part, Picture
from clipbench.report.words import census
from clipbench.task import Task


def picture(evidence: Evidence, figure: figures.Figure, caption: str, cells: pd.DataFrame, *name: str) -> Picture:
    """A figure with its caption, which counts the cells it draws and how they ended."""
    counted = f"{caption} Drawn from {census(analysis.counts(cells))}; study {evidence.store.study_hash}."
    return Picture(evidence.name("figures", *name), counted, caption, *figures.render(figure))


def headed(evidence: Evidence, task: Task, parts: Sequence[Part]) -> list[Part]:
    """The parts of one task, under its name where the study has several."""
    return [Heading(evidence.labels[task]), *parts] if len(evidence.tasks) > 1 and parts else list(parts)


def report_cells(evidence: Evidence, drawn: pd.DataFrame) -> pd.DataFrame:
    """The cells behind the drawn rows."""
    return evidence.cells[evidence.cells["cell"].isin(set(drawn["cell"].dropna()))]
