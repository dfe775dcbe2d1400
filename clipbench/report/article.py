"""What did the article claim, and what was seen? Its claims on clipping, each with what this study
says.
"""

from __future__ import annotations

import pandas as pd

from clipbench.analysis.divergence import prevented
from clipbench.analysis.overfit import stopping
from clipbench.analysis.strict import by_threshold
from clipbench.analysis.vanishing import stalled
from clipbench.report.evidence import Evidence
from clipbench.report.parts import Section, Table
from clipbench.report.prose import paragraphs
from clipbench.schema import Verdict

TITLE = "What did the article claim, and what was seen?"
UNTRIED = "not tried"
RECURRENT = "temporal-order"


def section(evidence: Evidence) -> Section:
    """The article's claims; only a packaged study was made to ask them."""
    if not evidence.packaged or evidence.answers.empty:
        return Section("article", TITLE, [])
    rows = [
        ["It prevents exploding gradients", *_exploding(evidence)],
        ["It cures vanishing gradients", *_vanishing(evidence)],
        ["Too small a threshold slows learning", *_strict(evidence)],
        ["It prevents overfitting", *_overfit(evidence)],
        ["Recurrent networks need it", *_recurrent(evidence)],
        ["It goes with any optimizer", *_combined(evidence)],
        ["It stabilises distributed training", "nothing here runs on several machines", UNTRIED],
    ]
    head = ["claim", "evidence", "seen"]
    data = pd.DataFrame(rows, columns=head)
    caption = "The article measures none of its claims."
    table = Table(evidence.name("tables", "article"), caption, head, rows, data, words=3)
    tried = sum(row[2] != UNTRIED for row in rows)
    return Section("article", TITLE, [*paragraphs("article", claims=len(rows), tried=tried), table])


def _word(seen: int, of: int) -> str:
    return UNTRIED if not of else "no" if not seen else "yes" if seen == of else "in part"


def _exploding(evidence: Evidence) -> tuple[str, str]:
    pairs = prevented(evidence.axes, evidence.arms, evidence.components)
    fewer = int((pairs["low"] > 0).sum())
    return f"surely fewer runs are lost in {fewer} of {len(pairs)} rows", _word(fewer, len(pairs))


def _vanishing(evidence: Evidence) -> tuple[str, str]:
    pairs = stalled(evidence.cells, evidence.arms, evidence.choices)
    fewer = int((pairs["low"] > 0).sum())
    told = f"surely fewer runs stall in {fewer} of {len(pairs)} rows; no clip lengthens a gradient"
    return told, _word(fewer, len(pairs))


def _strict(evidence: Evidence) -> tuple[str, str]:
    rows = by_threshold(evidence.cells, evidence.arms, evidence.components)
    if rows.empty:
        return "every clip has one threshold", UNTRIED
    first = rows.groupby(["problem", "arm"], sort=False).first()
    behind = int((first["difference"] < 0).sum())
    told = f"the strictest threshold is behind no clip in {behind} of {len(first)} rows"
    return told, _word(behind, len(first))


def _overfit(evidence: Evidence) -> tuple[str, str]:
    pairs = stopping(
        evidence.levels, evidence.gaps, evidence.components, evidence.cells, evidence.events
    )
    less = int((pairs["stopping"] < pairs["stopping_without"]).sum())
    told = f"an early stop gains less with a clip in {less} of {len(pairs)} rows, by the estimates"
    return told, _word(less, len(pairs))


def _recurrent(evidence: Evidence) -> tuple[str, str]:
    return _verdicts(evidence.answers[evidence.answers["problem"].str.startswith(RECURRENT)])


def _combined(evidence: Evidence) -> tuple[str, str]:
    plain = evidence.answers["partner"].str.match(r"sgd(\(|$)")
    return _verdicts(evidence.answers[~plain])


def _verdicts(rows: pd.DataFrame) -> tuple[str, str]:
    better = rows["verdict"].isin([Verdict.BETTER, Verdict.PERHAPS_BETTER]).sum()
    worse = rows["verdict"].isin([Verdict.WORSE, Verdict.PERHAPS_WORSE]).sum()
    told = f"better in {better}, worse in {worse} of {len(rows)} rows"
    return (told, _word(int(better), len(rows))) if len(rows) else ("no such row", UNTRIED)
