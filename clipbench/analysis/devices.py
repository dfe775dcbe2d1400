"""The same cells on the CPU and on a CUDA device: how far their losses part, how they end, what is
said of each clip, and how long they take.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench import statistics
from clipbench.analysis import cost, replicas
from clipbench.analysis.cells import plain, table_of
from clipbench.schema import Status
from clipbench.selection import POINT
from clipbench.task import ARM, TASK
from clipbench.tolerance import TOLERANCE, along

DEVICES = ("cpu", "cuda")
BOTH = "both"  # the device of what is compared across devices
EXACT = "float64"  # the dtype in which rounding can be told from a fault
# Two devices add up in another order. From equal weights that parts the first losses by no more
# than `ROUNDING`, and later ones step by step. Runs at learning rates up to those that diverge
# show how quickly (`test_rounding_made_on_purpose_parts_no_run_at_once`): only a loss that had
# risen to more than `CALM` times the first went from `ROUNDING` beyond the bound in `SUDDEN` steps.
ROUNDING, SUDDEN, CALM = 1e-12, 2, 2.0

SIDES = ["cell", "ended", "steps", "seconds", "engine", "environment", "threshold"]
JUDGED = ["first", "largest", "parted", "at_once", "bound"]
FASTER = ["n", "seconds_cpu", "seconds_cuda", "ratio", "low", "high"]
WHERE = ["environment_cpu", "environment_cuda"]


def pairs(cells: pd.DataFrame) -> pd.DataFrame:
    """A row per two cells that are alike in everything but the device, which reads ``both``.

    Columns that the two may differ in end in ``_cpu`` and ``_cuda``; ``ended`` is an outcome, or
    ``failed``. ``same_threshold`` is False if each device's pilot made another number of it.
    """
    frame = plain(cells)
    failed = frame["status"] == Status.FAILED
    frame["ended"] = np.where(failed, Status.FAILED, frame["outcome"].astype(object))
    frame["alike"] = [_without_device(settings) for settings in frame["settings"]]
    here, there = (frame[frame["device"] == device] for device in DEVICES)
    kept = ["alike", *ARM, *(name for name in POINT if name != "threshold"), "seed", "role"]
    both = here[[*kept, *SIDES]].merge(
        there[["alike", *SIDES]], on="alike", suffixes=[f"_{device}" for device in DEVICES]
    )
    thresholds = [both[f"threshold_{device}"].astype(float) for device in DEVICES]
    same = (thresholds[0] == thresholds[1]) | (thresholds[0].isna() & thresholds[1].isna())
    unknown = (both[["ended_cpu", "ended_cuda"]] == Status.FAILED).any(axis=1)
    both = both.drop(columns="alike")
    return both.assign(device=BOTH, threshold=thresholds[0], same_threshold=same | unknown)


def _without_device(settings: str) -> str:
    return json.dumps({**json.loads(settings), "device": BOTH}, sort_keys=True)


def across(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of the CPU and those of CUDA, the device of each reading ``both``."""
    return [rows[rows["device"] == device].assign(device=BOTH) for device in DEVICES]


def comparable(both: pd.DataFrame) -> pd.DataFrame:
    """The pairs whose losses can be compared: neither run failed, and the thresholds are equal."""
    ran = (both[["ended_cpu", "ended_cuda"]] != Status.FAILED).all(axis=1)
    return both[ran & both["same_threshold"]]


def parting(both: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """The comparable pairs of which both curves are stored, with how far their losses part.

    ``first`` and ``largest`` are the differences at step 0 and at the worst step, as shares of the
    largest loss of the CPU's run up to that step, ∞ if only one is finite or has ended;
    ``parted`` is the first step at which it exceeds ``bound``, NaN if none does. ``at_once`` says,
    in float64, that rounding does not explain it: see `_at_once`.
    """
    asked = comparable(both)
    wanted = recorded["cell"].isin({*asked["cell_cpu"], *asked["cell_cuda"]})
    lines = plain(recorded[wanted][["cell", "step", "loss"]]).sort_values(["cell", "step"])
    losses = {
        cell: line["loss"].to_numpy(dtype=float) for cell, line in lines.groupby("cell", sort=False)
    }
    rows = []
    for row in asked.to_dict("records"):
        here, there = (losses.get(row[f"cell_{device}"]) for device in DEVICES)
        if here is not None and there is not None:
            rows.append({**row, **_judged(here, there, str(row["dtype"]))})
    return table_of(rows, [*asked.columns, *JUDGED]).astype({"at_once": bool})


def _judged(here: np.ndarray, there: np.ndarray, dtype: str) -> dict[str, Any]:
    apart, bound = along(here, there), TOLERANCE[dtype]
    beyond = np.flatnonzero(apart > bound)
    step = int(beyond[0]) if len(beyond) else None
    return {
        "first": float(apart[0]),
        "largest": float(apart.max()),
        "parted": np.nan if step is None else step,
        "at_once": step is not None and dtype == EXACT and _at_once(here, apart, step),
        "bound": bound,
    }


def _at_once(loss: np.ndarray, apart: np.ndarray, step: int) -> bool:
    """Whether a loss parts too early or too quickly for rounding that grows: the first step is
    apart already, or it comes from rounding to beyond the bound in `SUDDEN` steps though the
    CPU's run is calm.
    """
    if apart[0] > ROUNDING:
        return True
    close = int(np.flatnonzero(apart[:step] <= ROUNDING)[-1])
    seen = np.abs(loss[: step + 1])
    calm = np.where(np.isfinite(seen), seen, 0.0).max() <= CALM * seen[0]
    return bool(step - close <= SUDDEN and calm)


def summary(parted: pd.DataFrame) -> pd.DataFrame:
    """A row per task and environments of `parting`: ``n`` pairs, how many are ``within`` the bound
    at all steps, have ``grown`` apart and parted ``at_once``; the median and largest difference at
    the first step, the largest of those within, and the least and the median step of parting.
    """
    rows = []
    for key, mine in parted.groupby([*TASK, *WHERE], sort=True):
        within, gone = mine[mine["parted"].isna()], mine[mine["parted"].notna()]
        rows.append(
            {
                **dict(zip([*TASK, *WHERE], key, strict=True)),
                "n": len(mine),
                "within": len(within),
                "grown": int((~gone["at_once"]).sum()),
                "at_once": int(gone["at_once"].sum()),
                "bound": float(mine["bound"].iloc[0]),
                "first_median": float(mine["first"].median()),
                "first_largest": float(mine["first"].max()),
                "largest_within": float(within["largest"].max()),
                "parted_least": float(gone["parted"].min()),
                "parted_median": float(gone["parted"].median()),
            }
        )
    columns = [*TASK, *WHERE, "n", "within", "grown", "at_once", "bound", "first_median"]
    columns += ["first_largest", "largest_within", "parted_least", "parted_median"]
    return table_of(rows, columns)


def outcomes(both: pd.DataFrame) -> pd.DataFrame:
    """How many pairs ended so on the CPU (rows) and so on CUDA (columns)."""
    return pd.crosstab(both["ended_cpu"], both["ended_cuda"])


def verdicts(gaps: pd.DataFrame) -> pd.DataFrame:
    """`replicas.beside` of the comparisons on the CPU and on CUDA, the latter with ``_again``."""
    return replicas.beside(*across(gaps))


def times(both: pd.DataFrame) -> pd.DataFrame:
    """A row per task, engines and environments: of the ``n`` pairs that took equally many steps the
    median seconds of a cell, and the median ratio of CUDA's to the CPU's, with its interval.
    """
    ran = comparable(both)
    seconds = ran[["seconds_cpu", "seconds_cuda"]].astype(float)
    ran = ran[(seconds > 0).all(axis=1) & (ran["steps_cpu"] == ran["steps_cuda"])]
    keys, rows = [*TASK, *(f"engine_{device}" for device in DEVICES), *WHERE], []
    for key, mine in ran.groupby(keys, sort=True):
        ratio = statistics.median_interval(mine["seconds_cuda"] / mine["seconds_cpu"])
        medians = [float(mine[f"seconds_{device}"].median()) for device in DEVICES]
        values = dict(zip(FASTER, [len(mine), *medians, *ratio], strict=True))
        rows.append({**dict(zip(keys, key, strict=True)), **values})
    return table_of(rows, [*keys, *FASTER])


def timings(throughput: pd.DataFrame) -> pd.DataFrame:
    """`cost.side_by_side` of the CPU and CUDA, for each two ``environments`` that timed them."""
    costs = cost.cost(throughput)
    here, there = (
        dict(iter(costs[costs["device"] == device].groupby("environment", sort=True)))
        for device in DEVICES
    )
    frames = [
        cost.side_by_side(here[one], there[other]).assign(
            environment_cpu=one, environment_cuda=other
        )
        for one, other in itertools.product(here, there)
    ]
    return pd.concat(frames, ignore_index=True) if frames else table_of([], [*cost.BESIDE, *WHERE])


def alone(cells: pd.DataFrame, both: pd.DataFrame) -> Mapping[str, int]:
    """Device → how many cells have none like them on the other one."""
    counts = cells["device"].value_counts()
    return {device: int(counts.get(device, 0)) - len(both) for device in DEVICES}
