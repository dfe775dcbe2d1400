"""DataFrame → DataFrame: from the cells of a study to what the report says about them.

Two rules hold everywhere. A diverged seed is an outcome: it is counted, and where it has no value it
takes part as the worst possible one. A failed or missing seed, or one without a metric, is unknown: nothing is
concluded without it.
"""

from clipbench.analysis.cells import Components, arms, counts, current, mixtures, of_task, plain, workload
from clipbench.analysis.implementations import DEFAULT, MACHINE, implementations, quickest
from clipbench.analysis.outcomes import (
    BASELINE,
    COUNTS,
    METHODS,
    claims,
    clip_pairs,
    compare,
    draws,
    headline_pairs,
    named,
    results,
    succeeded,
    valueless,
    without_value,
    worst_filled,
)
from clipbench.analysis.published import CLAIMS, published
from clipbench.analysis.records import cost, curves, event_counts, events, failures
from clipbench.analysis.settings import effective, fired, grid, notes, stable
from clipbench.analysis.transfer import bases, carried, pairs

__all__ = [
    "BASELINE",
    "CLAIMS",
    "COUNTS",
    "DEFAULT",
    "MACHINE",
    "METHODS",
    "Components",
    "arms",
    "bases",
    "carried",
    "claims",
    "clip_pairs",
    "compare",
    "cost",
    "counts",
    "current",
    "curves",
    "draws",
    "effective",
    "event_counts",
    "events",
    "failures",
    "fired",
    "grid",
    "headline_pairs",
    "implementations",
    "mixtures",
    "named",
    "notes",
    "of_task",
    "pairs",
    "plain",
    "published",
    "quickest",
    "results",
    "stable",
    "succeeded",
    "valueless",
    "without_value",
    "workload",
    "worst_filled",
]
