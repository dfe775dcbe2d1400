"""Clips on several processes: each mistake beside the same clip as it should be."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from clipbench.analysis.cells import table_of
from clipbench.analysis.form import COLUMNS, beside
from clipbench.analysis.headline import Axis
from clipbench.task import TASK, Task

LABEL = re.compile(r"(?P<name>[^(]+)\((?P<settings>.*)\)")
MISTAKE = re.compile(r"on=(?P<on>rank|shard)")
RANKS = re.compile(r"ranks=(?P<ranks>\d+)")


def mistaken(
    found: Mapping[tuple[Task, str, str], Axis], arms_table: pd.DataFrame, grade: str
) -> pd.DataFrame:
    """A row per arm whose clip is applied to a ``rank`` or to a ``shard``: its difference from
    ``partner``, the same clip of the whole gradient, negative if the mistake costs something, with
    a 95 % interval; ``on`` and ``ranks`` say which mistake it is.
    """
    rows = []
    for values, arms in arms_table.groupby([*TASK, "optimizer_label"], sort=True):
        named = dict(zip(arms["clip_label"], arms["arm"], strict=True))
        for label, arm in named.items():
            on, ranks, right = read(label)
            if on and right in named:
                both = beside(found, Task(*values[:-1]), arm, named[right], grade)
                rows += [{**row, "on": on, "ranks": ranks} for row in both]
    return table_of(rows, [*COLUMNS, "on", "ranks"])


def read(label: str) -> tuple[str, int, str]:
    """The mistake in a clip's label, its number of processes, and the label without both; an
    empty word and 1 if there is none.

    >>> read("norm(on=rank, ranks=4)")
    ('rank', 4, 'norm')
    """
    written = LABEL.fullmatch(label)
    settings = written["settings"].split(", ") if written else []
    on, ranks = (
        next((found[name] for one in settings if (found := form.fullmatch(one))), "")
        for form, name in ((MISTAKE, "on"), (RANKS, "ranks"))
    )
    if not (written and on and ranks):
        return "", 1, label
    rest = [one for one in settings if not (MISTAKE.fullmatch(one) or RANKS.fullmatch(one))]
    return on, int(ranks), f"{written['name']}({', '.join(rest)})" if rest else written["name"]
