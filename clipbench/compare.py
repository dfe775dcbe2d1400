"""Two folders of one study beside each other: two revisions, two devices or two machines.

It must know neither how cells are run nor how a table is printed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from clipbench import tuning
from clipbench.analysis import cost, headline, replicas
from clipbench.analysis.cells import plain, table_of
from clipbench.analysis.devices import BOTH
from clipbench.analysis.headline import Axis, Comparisons
from clipbench.cell import unversioned
from clipbench.errors import UsageError
from clipbench.store import Store
from clipbench.task import ARM, Task, Threshold

RESULT = ["status", "outcome", "steps", "final_loss", "best_loss", "metric_value", "best_metric"]
ESTIMATES = [*ARM, "grade", "estimate", "estimate_b", "difference", "low", "high", "n", "paired"]
TIMES = [*cost.METHOD, "step", "step_b", "ratio", "cost", "cost_b"]


@dataclass(frozen=True)
class Beside:
    """What two folders have in common, and in what they differ.

    ``cells``: how many are ``equal`` (same settings, same result to the last digit),
    ``different``, ``only_a`` and ``only_b``. ``estimates``: a row per task and arm, what tuning on
    three seeds reaches in each, and the ``difference`` of the second from the first, above zero if
    it is better. ``verdicts``: a row per clip and task, and whether the two ``turned`` against each
    other. ``settings``: what the pages say otherwise, as (what, in the first, in the second).
    ``times``: a row per method, its median seconds a step and the ratio of the second to the first.
    """

    cells: Mapping[str, int]
    estimates: pd.DataFrame
    verdicts: pd.DataFrame
    settings: list[tuple[str, str, str]]
    times: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """The estimates with the verdicts of their clips, a row per task and arm."""
        said = self.verdicts[[*ARM, "verdict", "verdict_again", "turned"]]
        return self.estimates.merge(
            said.rename(columns={"verdict_again": "verdict_b"}), on=ARM, how="left"
        )


def beside(first: Store, second: Store) -> Beside:
    """The two folders beside each other.

    A folder on one device is compared with a folder on another one, cell by cell and arm by arm.

    :raises UsageError: they have no cell with the same settings in common.
    """
    across = _across(first, second)
    cells = _cells(first, second, across)
    if not cells["equal"] + cells["different"]:
        raise UsageError(
            f"{first.folder} and {second.folder}: no cell of one has the settings of a cell of the "
            f"other; compare two folders of the same study."
        )
    one, other = (_on(headline.of_store(store), across) for store in (first, second))
    protocol = first.page("plan").get("protocol", {})
    return Beside(
        cells,
        _estimates(one, other, str(protocol.get("grade", "best"))),
        replicas.beside(one.gaps, other.gaps),
        [*_settings(first, second)],
        _times(first, second),
    )


def _across(first: Store, second: Store) -> bool:
    """Whether each folder has one device, and the two are not the same."""
    devices = [set(store.read("cells", ["device"])["device"]) for store in (first, second)]
    return all(len(one) == 1 for one in devices) and devices[0] != devices[1]


def _on(compared: Comparisons, across: bool) -> Comparisons:
    """The comparisons, without the name of their device if another device is beside it."""
    if not across:
        return compared
    return Comparisons(
        compared.arms.assign(device=BOTH),
        {
            (task._replace(device=BOTH), arm, grade): axis
            for (task, arm, grade), axis in compared.axes.items()
        },
        compared.levels.assign(device=BOTH),
        compared.gaps.assign(device=BOTH),
    )


# -------------------------------------------------------------------------------------------- cells


def _cells(first: Store, second: Store, across: bool) -> dict[str, int]:
    one, other = (_results(store, across) for store in (first, second))
    shared = one.keys() & other.keys()
    equal = sum(one[key] == other[key] for key in shared)
    return {
        "equal": equal,
        "different": len(shared) - equal,
        "only_a": len(one) - len(shared),
        "only_b": len(other) - len(shared),
    }


def _results(store: Store, across: bool) -> dict[str, tuple[Any, ...]]:
    """What cells came to, by their settings; versions are no settings: revisions differ in them.
    Nor is the number of a replica, whose every cell would differ.
    """
    frame = plain(store.read("cells", [*RESULT, "settings"]))
    found = {}
    for settings, *result in frame[["settings", *RESULT]].itertuples(index=False, name=None):
        document = json.loads(settings)
        document.pop("replica", None)
        if across:
            document["device"] = BOTH
        # a NaN is not equal to itself, and two runs that both have one are
        found[unversioned(json.dumps(document))] = tuple(
            None if isinstance(value, float) and math.isnan(value) else value for value in result
        )
    return found


# ---------------------------------------------------------------------------------------- estimates


def _estimates(one: Comparisons, other: Comparisons, grade: str) -> pd.DataFrame:
    """A row per task and arm that both have, graded as the study grades; functions by their last
    step.
    """
    levels = [
        {(Task.of(row), row["arm"], row["grade"]): row for row in found.levels.to_dict("records")}
        for found in (one, other)
    ]
    arms = dict.fromkeys((task, arm) for task, arm, _ in levels[0])
    keys = [(task, arm, grade if (task, arm, grade) in levels[0] else "last") for task, arm in arms]
    rows = []
    for key in keys:
        if key not in levels[1]:
            continue
        task, arm, shown = key
        difference, error, seeds, paired = _difference(one.axes[key], other.axes[key])
        bounds = tuning.interval(difference, error, seeds)
        rows.append(
            {
                **task._asdict(),
                "arm": arm,
                "grade": shown,
                "estimate": levels[0][key].get("estimate", math.nan),
                "estimate_b": levels[1][key].get("estimate", math.nan),
                "difference": difference,
                "low": bounds.low,
                "high": bounds.high,
                "n": seeds,
                "paired": paired,
            }
        )
    return table_of(rows, ESTIMATES)


def _difference(one: Axis, other: Axis) -> tuple[float, float, int, bool]:
    """The second axis minus the first, its standard error, the seeds, and whether they are paired:
    they are where both have the same settings, for then both met the same luck.
    """
    shared = [seed for seed in one.seeds if seed in set(other.seeds)]
    if shared and _points(one) == _points(other):
        return *headline.gap_of([_at(other, shared), _at(one, shared)]), True
    seeds = min(int(axis.known.sum()) for axis in (one, other))
    if not seeds:
        return math.nan, math.nan, 0, False
    first, second = (
        tuning.expected(axis.validation[:, axis.known], axis.test[:, axis.known])
        for axis in (one, other)
    )
    error = math.hypot(*(tuning.standard_error(side.without) for side in (first, second)))
    return second.estimate - first.estimate, error, seeds, False


def _points(axis: Axis) -> list[tuple[Any, ...]]:
    return [(row["lr"], *Threshold.of(row).setting) for row in axis.points.to_dict("records")]


def _at(axis: Axis, seeds: list[int]) -> Axis:
    """The axis on some of its seeds."""
    places = [list(axis.seeds).index(seed) for seed in seeds]
    tables = {
        name: value[:, places]
        for name, value in vars(axis).items()
        if isinstance(value, np.ndarray)
    }
    return replace(axis, seeds=seeds, **tables)


# ------------------------------------------------------------------------------- pages and timings


def _settings(first: Store, second: Store) -> Iterator[tuple[str, str, str]]:
    """What the two folders say otherwise: of the study, of machines and libraries, of versions."""
    if first.study_hash != second.study_hash:
        yield "hash of the study's page", first.study_hash, second.study_hash
    said = [
        {**_environments(store), **_versions(store), **_runs(store)} for store in (first, second)
    ]
    for name in sorted(said[0].keys() | said[1].keys()):
        one, other = (", ".join(sorted(side.get(name, ()))) or "none" for side in said)
        if one != other:
            yield name, one, other


def _environments(store: Store) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for page in store.page("environment").get("environments", {}).values():
        for name, value in _flat(page):
            found.setdefault(name, set()).add(value)
    return found


def _flat(page: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in page.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} ")
        else:
            yield f"{before}{name}".removeprefix("libraries "), str(value)


def _versions(store: Store) -> dict[str, set[str]]:
    return {
        f"version of {label}": {str(about["version"])}
        for entries in store.page("components").values()
        for label, about in entries.items()
        if "version" in about
    }


def _runs(store: Store) -> dict[str, set[str]]:
    cells = store.read("cells", ["device", "engine", "rules", "settings"])
    replicas = {str(json.loads(settings).get("replica", 0)) for settings in cells.pop("settings")}
    said = {name: {str(value) for value in cells[name].dropna().unique()} for name in cells.columns}
    return {**said, "replica": replicas}


def _times(first: Store, second: Store) -> pd.DataFrame:
    """The methods that both have timed."""
    sides = [cost.cost(store.read("throughput")) for store in (first, second)]
    return cost.side_by_side(*sides)[TIMES]
