"""What did the article claim, and what was seen? Its claims on clipping, each with what this study
says.
"""

from __future__ import annotations

import pandas as pd
from scipy import stats

from clipbench.analysis.distributed import mistaken
from clipbench.analysis.overfit import stopping
from clipbench.analysis.strict import by_threshold
from clipbench.analysis.vanishing import stalled
from clipbench.report.evidence import Evidence
from clipbench.report.parts import Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import percent
from clipbench.schema import Verdict

TITLE = "What did the article claim, and what was seen?"
UNTRIED = "not tried"
CHANCE = 0.025  # of a row whose true difference is none: the upper end of 95 %
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
        ["It goes with any optimizer (here: all but SGD)", *_combined(evidence)],
        ["It stabilises distributed training", *_distributed(evidence)],
    ]
    head = ["claim", "evidence", "seen"]
    data = pd.DataFrame(rows, columns=head)
    caption = (
        "Intervals at 95 %, not corrected for the rows; verdicts are those of the first table."
    )
    table = Table(evidence.name("tables", "article"), caption, head, rows, data, words=3)
    tried = sum(row[2] != UNTRIED for row in rows)
    return Section("article", TITLE, [*paragraphs("article", claims=len(rows), tried=tried), table])


def _word(rows: pd.DataFrame) -> str:
    """What rows with an interval at 95 % say: whether more are above zero than chance alone gives,
    which is one in forty.
    """
    above, below = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
    if rows.empty:
        return UNTRIED
    if stats.binom.sf(above - 1, len(rows), CHANCE) > CHANCE:
        return "no more than chance gives"
    return (
        "in part, and the contrary as well" if below else "yes" if above == len(rows) else "in part"
    )


def _distributed(evidence: Evidence) -> tuple[str, str]:
    """On several processes a right clip is that of one; a wrong one is compared with it."""
    pairs = mistaken(evidence.axes, evidence.arms, evidence.grade)
    if pairs.empty:
        return "nothing here runs on several machines", UNTRIED
    worse, better = int((pairs["high"] < 0).sum()), int((pairs["low"] > 0).sum())
    told = (
        f"clipped right, several processes train as one does; clipped before the all-reduce, or by "
        f"the norm of a shard, worse in {worse} and better in {better} of {len(pairs)} rows"
    )
    return told, "no more than on one process"


def _exploding(evidence: Evidence) -> tuple[str, str]:
    pairs = evidence.prevented
    if pairs.empty:
        return "no such row", UNTRIED
    diverged, without = float(pairs["diverged"].mean()), float(pairs["diverged_without"].mean())
    told = (
        f"{percent(without)} of runs diverge without a clip, {percent(diverged)} with; fewer are "
        f"lost in any way in {int((pairs['low'] > 0).sum())}, more in "
        f"{int((pairs['high'] < 0).sum())} of {len(pairs)} rows"
    )
    return told, _word(pairs)


def _vanishing(evidence: Evidence) -> tuple[str, str]:
    pairs = stalled(evidence.cells, evidence.arms, evidence.choices)
    fewer, more = int((pairs["low"] > 0).sum()), int((pairs["high"] < 0).sum())
    told = f"fewer runs stall in {fewer}, more in {more} of {len(pairs)} rows"
    return f"{told}; no clip lengthens a gradient", _word(pairs)


def _strict(evidence: Evidence) -> tuple[str, str]:
    rows = by_threshold(evidence.cells, evidence.arms, evidence.components)
    if rows.empty:
        return "every clip has one threshold", UNTRIED
    first = rows.groupby(["problem", "arm"], sort=False).first()
    behind = int((first["difference"] < 0).sum())
    told = f"the strictest threshold is behind no clip in {behind} of {len(first)} rows"
    return f"{told}, by the estimates", "yes" if behind == len(first) else "in part"


def _overfit(evidence: Evidence) -> tuple[str, str]:
    pairs = stopping(
        evidence.levels, evidence.gaps, evidence.components, evidence.cells, evidence.events
    )
    less = int((pairs["stopping"] < pairs["stopping_without"]).sum())
    told = f"an early stop gains less with a clip in {less} of {len(pairs)} rows, by the estimates"
    return told, "cannot be told: no interval" if len(pairs) else UNTRIED


def _recurrent(evidence: Evidence) -> tuple[str, str]:
    return _verdicts(evidence.answers[evidence.answers["problem"].str.startswith(RECURRENT)])


def _combined(evidence: Evidence) -> tuple[str, str]:
    plain = evidence.answers["partner"].str.match(r"sgd(\(|$)")
    return _verdicts(evidence.answers[~plain])


def _verdicts(rows: pd.DataFrame) -> tuple[str, str]:
    if rows.empty:
        return "no such row", UNTRIED
    better = int(rows["verdict"].isin([Verdict.BETTER, Verdict.PERHAPS_BETTER]).sum())
    worse = int(rows["verdict"].isin([Verdict.WORSE, Verdict.PERHAPS_WORSE]).sum())
    open_still = int((rows["verdict"] == Verdict.UNDECIDED).sum())
    told = f"better in {better}, worse in {worse}, undecided in {open_still} of {len(rows)} rows"
    if not better and not worse:
        return told, "undecided" if open_still else "no difference that matters"
    return told, "in part" if better and not worse else "no" if not better else "both are seen"
