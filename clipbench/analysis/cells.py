"""The cells that are compared, with their arms, their workloads and their number.

Shared by all questions. It knows none of them, and neither figures nor pages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clipbench import selection
from clipbench.cell import Part
from clipbench.schema import Outcome, Status
from clipbench.skill import LOSS, Scale
from clipbench.store import Store
from clipbench.task import ARM, TASK

WORDS = frozenset(
    (
        *TASK,
        "arm",
        "reading",
        "statistic",
        "baseline",
        "note",
        "basis",
        "lrs",
        "tried",
        "edge",
        "optimizer",
        "clip",
        "optimizer_label",
        "clip_label",
        "partner",
        "environment",
    )
) | {"implementation", "ended", "cell"}
DEFAULTS: dict[str, Any] = {
    "metric": "metric",
    "higher_is_better": True,
    "optimum": None,
    "success": None,
    "target": None,
    "reference_loss": None,
    "deterministic": False,
    "chance": None,
    "target_metric": None,
    "margin": None,
}

Components = Mapping[str, Any]


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Arrow columns as numpy's: numbers as floats with NaN for null, words as objects with None
    for null.
    """
    columns: dict[str, Any] = {}
    for name in frame.columns:
        kind = str(frame[name].dtype)
        if kind.startswith("int") and not frame[name].isna().any():
            columns[name] = frame[name].to_numpy(dtype=np.int64)
        elif kind.startswith(("double", "int", "float")):
            columns[name] = frame[name].to_numpy(dtype=float, na_value=np.nan)
        elif kind.startswith("bool"):
            columns[name] = frame[name].to_numpy(dtype=bool, na_value=False)
        else:
            words = frame[name].to_numpy(dtype=object).copy()
            words[frame[name].isna().to_numpy(dtype=bool)] = None
            # pandas would make strings of it, and NaN of None
            columns[name] = pd.Series(words, index=frame.index, dtype=object)
    return pd.DataFrame(columns, index=frame.index)


def table_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """A frame with these columns; without rows, columns of numbers still have the dtype of
    numbers.
    """
    if rows:
        return pd.DataFrame(rows, columns=list(columns))
    return pd.DataFrame(
        {name: pd.Series(dtype=object if name in WORDS else float) for name in columns}
    )


def current(store: Store) -> tuple[pd.DataFrame, dict[str, int]]:
    """The cells that the study's plan asks for, and how many others are stored but not compared,
    by reason.
    """
    cells = store.read("cells")
    phases = store.page("plan").get("cells", {})
    asked = {cell for ids in phases.values() for cell in ids}
    inside = cells["cell"].isin(asked).to_numpy(dtype=bool)
    components, kept = store.page("components"), dict[str, int]()
    for settings in cells["settings"][~inside]:
        reason = _why_not_compared(json.loads(settings), components)
        kept[reason] = kept.get(reason, 0) + 1
    planned = selection.planned(cells, phases)
    rules = planned["rules"].fillna(1)
    for old in sorted(set(rules) - {newest := rules.max()}):
        kept[f"judged by rules {old} (now {newest})"] = int((rules == old).sum())
    return planned[rules == newest].reset_index(drop=True), dict(sorted(kept.items()))


def _why_not_compared(document: Mapping[str, Any], components: Components) -> str:
    known = {
        "workload": {entry["name"]: entry for entry in components.get("workloads", {}).values()},
        "optimizer": {entry["name"]: entry for entry in components.get("optimizers", {}).values()},
        "clip": components.get("clips", {}),
    }
    for kind, entries in known.items():
        component = document[kind]
        now = entries.get(component["name"], {}).get("version", component["version"])
        if now != component["version"]:
            return f'written by version {component["version"]} of "{component["name"]}" (now {now})'
    return "no longer asked for by the study"


def workload(components: Components, problem: str) -> dict[str, Any]:
    """What the store's components page says of a problem, with neutral words if it says nothing,
    and whether its runs are ``judged_by_metric`` or by their loss.
    """
    about = {**DEFAULTS, **components.get("workloads", {}).get(problem, {})}
    scale = Scale.of(about)
    return {**about, "judged_by_metric": scale is not None and scale.metric != LOSS}


def arms(cells: pd.DataFrame, components: Components) -> pd.DataFrame:
    """A row per arm: ``ARM``, ``optimizer`` and ``clip`` (registered names), their labels, and
    ``partner``, the unclipped arm.

    ``setting`` is the name of the clip's threshold.
    """
    rows, unclipped = [], dict[tuple[Any, ...], str]()
    for row in cells.drop_duplicates(ARM).sort_values(ARM).to_dict("records"):
        document = json.loads(row["settings"])
        threshold = threshold_setting(components, row["clip"])
        task = tuple(row[name] for name in TASK)
        optimizer = Part(**document["optimizer"]).label
        if row["clip"] == "none":
            unclipped[(*task, optimizer)] = row["arm"]
        labels = {
            "momentum": _setting(document["optimizer"], ("momentum", "nesterov"), "momentum", 0.9),
            "alpha": _setting(document["optimizer"], ("rmsprop",), "alpha", 0.99),
            "optimizer_label": optimizer,
            "clip_label": Part(**document["clip"], threshold=threshold).label,
            "setting": threshold,
        }
        rows.append(
            {
                **{name: row[name] for name in ARM},
                "optimizer": row["optimizer"],
                "clip": row["clip"],
                **labels,
            }
        )
    for row in rows:
        partner = unclipped.get((*(row[name] for name in TASK), row["optimizer_label"]))
        row["partner"] = None if row["clip"] == "none" else partner
    return table_of(
        rows,
        [
            *ARM,
            "optimizer",
            "clip",
            "optimizer_label",
            "clip_label",
            "setting",
            "momentum",
            "alpha",
            "partner",
        ],
    )


def threshold_setting(components: Components, clip: str) -> str | None:
    """The name of a clip's threshold, such as ``max_norm``; the page files clips by label, and
    one name may have several labels.
    """
    entries = (
        entry
        for label, entry in components.get("clips", {}).items()
        if label.partition("(")[0] == clip
    )
    return next((entry.get("threshold") for entry in entries), None)


def _setting(
    optimizer: Mapping[str, Any], rules: Sequence[str], name: str, default: float
) -> float:
    """A setting of an optimizer of these rules, NaN for others; a stored document leaves a
    default out.
    """
    return (
        float(optimizer["settings"].get(name, default)) if optimizer["name"] in rules else math.nan
    )


def of_task(frame: pd.DataFrame, task: Sequence[Any]) -> pd.DataFrame:
    """The rows of one task."""
    mask = np.ones(len(frame), dtype=bool)
    for name, value in zip(TASK, task, strict=True):
        mask &= (frame[name] == value).to_numpy(dtype=bool, na_value=False)
    return frame[mask]


def counts(cells: pd.DataFrame) -> dict[str, int]:
    """How many cells there are, and how they ended; failed cells have no outcome."""
    outcomes = cells["outcome"].value_counts()
    ended = {str(name): int(outcomes.get(name, 0)) for name in Outcome}
    return {"cells": len(cells), **ended, "failed": int((cells["status"] == Status.FAILED).sum())}
