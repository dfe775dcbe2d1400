"""The section on published results, run again."""

from __future__ import annotations

from clipbench.analysis.published import published
from clipbench.figures.published import draw
from clipbench.report.evidence import Evidence
from clipbench.report.frames import picture
from clipbench.report.parts import Section, Table, Text
from clipbench.report.words import plural
from clipbench.schema import Role


def section(evidence: Evidence) -> Section:
    """What papers say, beside what the same settings gave here."""
    rows, title = published(evidence.cells, evidence.components), "Published results, run again"
    if rows.empty:
        return Section("published", title, [])
    claims = rows.drop_duplicates("claim")
    held, complete = int(claims["holds"].sum()), int(claims["complete"].sum())
    rest = len(claims) - complete
    words = (
        f"**{held} of {plural(complete, 'claim')}** hold "
        f"here{f'; {rest} more lack runs, and are not judged' if rest else ''}. Each is judged by "
        "bounds set before. What must hold is a range where a count is chaotic: which unclipped "
        "starts survive a cliff depends on rounding. The rows on which clipping loses, or gains "
        "nothing, belong to the claims as the others do. Not all of this is the papers' own "
        "experiment: the step counts on cosh are ours, of the function they prove their theorem "
        "for, and so is its row near the minimum; temporal order is their task at a small size, "
        "with 1,500 updates where they took millions, and their Figure 7 is not repeated. On "
        "wrong labels, the huberised loss clips the loss's slope by the score. Clipping the norm "
        "of each example's gradient is something else where examples differ in length, as they "
        "do in this mixture seventeenfold: it is shown beside, and it does mend these labels "
        "where its threshold is small."
    )
    cells = evidence.cells[evidence.cells["role"] == Role.SELECT]
    figure = draw(rows, evidence.footer(cells))
    caption = (
        "What was seen (bars, with their value), and where it must lie (grey); some claims ask "
        "for a relation between their bars instead. A share is of the seeds; steps are the "
        "fewest of any run; a peak is the largest loss of the last half of the steps over the "
        "median there, of the worst seed; an accuracy is the mean over the seeds."
    )
    shown = picture(evidence, figure, caption, cells, "published")
    sides = {claim: one.to_dict("records") for claim, one in rows.groupby("claim")}
    table = [
        [
            str(row["claim"]),
            str(row["source"]),
            str(row["says"]),
            str(row["wanted"]),
            "; ".join(
                f"{side['side']}: {side['seen']:.4g} ({side['n']})" for side in sides[row["claim"]]
            ),
            "yes" if row["holds"] else "NO" if row["complete"] else "lacks runs",
        ]
        for row in claims.to_dict("records")
    ]
    head = ["claim", "source", "what the paper says", "what must hold here", "seen (runs)", "holds"]
    told = Table(
        evidence.name("tables", "published"),
        "Every claim with its source.",
        head,
        table,
        rows,
        words=6,
    )
    return Section("published", title, [Text(words), shown, told])
