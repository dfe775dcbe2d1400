"""A results folder without a training run: rows as plausible as the first grid of FACTS, made by
arithmetic and seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbench import schema, selection
from clipbench.cell import Cell, Part
from clipbench.selection import METHODS
from clipbench.store import Store
from clipbench.task import FIRST_REPORT_SEED

ENVIRONMENT = {
    "python": "3.11.9",
    "torch": "2.13.0",
    "numpy": "2.3.0",
    "platform": "Linux-x86_64",
    "cpu": "Some CPU @ 2.5 GHz",
    "cores": 2,
    "clipbench": "0.1.0",
}
PERCENTILE = 90.0
RELATIVE = (0.01, 0.1, 0.3, 1.0, 3.0)
LRS = {
    "sgd": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "momentum": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "rmsprop": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
    "adam": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
}
LIMIT = {"sgd": 0.5, "momentum": 0.08, "rmsprop": 0.05, "adam": 0.05}
WORKLOADS: dict[str, dict[str, Any]] = {
    "wdbc": {
        "metric": "roc_auc",
        "higher_is_better": True,
        "reference_loss": 0.66,
        "optimum": None,
        "size": 0.5,
        "steps": 60,
        "best": 0.985,
        "chance": 0.5,
    },
    "digits": {
        "metric": "accuracy",
        "higher_is_better": True,
        "reference_loss": 2.303,
        "optimum": None,
        "size": 0.3,
        "steps": 60,
        "best": 0.93,
        "chance": 0.1,
        "margin": 0.02,
    },
    "temporal-order": {
        "metric": "accuracy",
        "higher_is_better": True,
        "reference_loss": 1.386,
        "optimum": None,
        "size": 0.05,
        "steps": 80,
        "best": 1.0,
        "success": 0.99,
        "chance": 0.25,
        "margin": 0.1,
    },
    "cosh": {
        "metric": "gap",
        "higher_is_better": False,
        "reference_loss": 800.0,
        "optimum": 10.0,
        "size": 90.0,
        "steps": 50,
        "best": 1e-3,
    },
}


def components(
    problems: Sequence[str], clips: Sequence[str] = ("none", "value", "norm")
) -> dict[str, Any]:
    """The components page, as a run writes it."""
    return {
        "workloads": {
            problem: {
                "name": problem,
                "version": 1,
                "settings": {},
                "about": f"The synthetic {problem}.",
                "metric": WORKLOADS[problem]["metric"],
                "higher_is_better": WORKLOADS[problem]["higher_is_better"],
                "other_metrics": {},
                "target": WORKLOADS[problem]["reference_loss"] / 4,
                "reference_loss": WORKLOADS[problem]["reference_loss"],
                "optimum": WORKLOADS[problem]["optimum"],
                "success": WORKLOADS[problem].get("success"),
                "margin": WORKLOADS[problem].get("margin"),
                "chance": WORKLOADS[problem].get("chance"),
                "target_metric": WORKLOADS[problem]["best"]
                if "chance" in WORKLOADS[problem]
                else None,
            }
            for problem in problems
        },
        "optimizers": {
            name: {"name": name, "version": 1, "about": f"The rule {name}."} for name in LRS
        },
        "clips": {
            name: {
                "version": 1,
                "threshold": {"none": None, "value": "max_value", "norm": "max_norm"}.get(
                    name, "ratio"
                ),
                "about": f"The clip {name}.",
            }
            for name in clips
        },
    }


def cell(
    problem: str,
    optimizer: str,
    clip: str,
    lr: float,
    seed: int,
    relative: float | None = None,
    percentile: float | None = None,
    **others: Any,
) -> Cell:
    """A cell with its identity; ``threshold=`` gives an absolute threshold."""
    field = {"none": None, "value": "max_value", "norm": "max_norm"}.get(clip, "ratio")
    settings = (
        {}
        if field is None
        else {"relative": relative}
        if relative is not None
        else {"percentile": percentile}
        if percentile is not None
        else {field: others.pop("threshold", 1.0)}
    )
    others.pop("threshold", None)
    role = "report" if seed >= FIRST_REPORT_SEED else "select"
    return Cell(
        workload=Part(problem, 1),
        optimizer=Part(optimizer, 1),
        clip=Part(clip, 1, settings, field),
        lr=lr,
        seed=seed,
        **{"steps": WORKLOADS[problem]["steps"], "batch": 32, "role": role, **others},
    )


def resolved(one: Cell) -> float | None:
    """The threshold as a number."""
    if one.clip.threshold is None:
        return None
    return float(one.clip_settings(WORKLOADS[one.workload.name]["size"])[one.clip.threshold])


def outcome(one: Cell, threshold: float | None) -> str:
    """Hot learning rates spoil a run unless the clip is tight; a tight clip with a low learning
    rate stalls it.
    """
    luck = np.random.default_rng([int(one.id[:8], 16), 1]).normal() * 0.25
    size = WORKLOADS[one.workload.name]["size"]
    tight = 1.0 if threshold is None else max(1.0, (size / threshold) ** 0.7)
    if one.optimizer.name in ("rmsprop", "adam"):
        tight = tight**0.2
    heat = math.log10(one.lr / (LIMIT[one.optimizer.name] * tight)) + luck
    if heat > 0.9 or (heat > 0 and one.workload.name == "cosh"):
        return "diverged"
    if heat > 0:
        return "collapsed"
    return "stalled" if heat < -1.9 else "learned"


def rows(one: Cell, kind: str | None = None, **overrides: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows of one finished cell for every table; ``kind`` fixes its outcome, ``overrides``
    columns of its ``cells`` row.
    """
    name = one.id  # worked out anew whenever it is asked for
    problem, threshold = WORKLOADS[one.workload.name], resolved(one)
    kind = kind or outcome(one, threshold)
    random = np.random.default_rng([int(name[:8], 16), 2])
    steps = one.steps if kind != "diverged" else max(2, int(one.steps * random.uniform(0.1, 0.9)))
    step, floor = np.arange(steps), problem["optimum"] or 0.0
    rate = {"learned": 8.0, "stalled": 0.6, "collapsed": 3.0, "diverged": -4.0}[
        kind
    ] * random.uniform(0.8, 1.2)
    loss = floor + (problem["reference_loss"] - floor) * np.exp(
        -rate * step / one.steps + random.normal(0, 0.1, steps)
    )
    if kind == "collapsed":
        loss[steps // 2 :] = problem["reference_loss"] * (
            1 + random.normal(0, 0.01, steps - steps // 2)
        )
    if kind == "diverged":
        loss[-1] = np.inf
    norm = problem["size"] * random.lognormal(0, 0.5, steps)
    kept = np.ones(steps) if threshold is None else np.minimum(1.0, threshold / norm)
    fraction = float((kept < 1).mean())
    quality = {"learned": 0.0, "stalled": 0.12, "collapsed": 0.6, "diverged": np.nan}[kind]
    best = problem["best"] - (
        0.02 if one.clip.name == "none" and problem["higher_is_better"] else 0.0
    )
    noise = abs(random.normal(0, 0.006)) + 0.01 * abs(
        math.log10(one.lr / LIMIT[one.optimizer.name])
    )
    metric = (
        best - quality - noise
        if problem["higher_is_better"]
        else best * 10 ** (4 * quality + 20 * noise)
    )
    finite = kind != "diverged"
    validation = float(np.min(loss) * (1 + noise)) if finite else None
    # a run that diverged had got half as far; validation is another sample than test
    reached = float(metric if finite else best / 2)
    seen = reached + float(np.random.default_rng(int(name, 16)).normal(0, 0.01))
    row = {
        "cell": name,
        "workload": one.workload.name,
        "optimizer": one.optimizer.name,
        "clip": one.clip.name,
        "threshold": threshold,
        "relative": one.relative,
        "percentile": one.percentile,
        "lr": one.lr,
        "seed": one.seed,
        "role": one.role,
        "extended": one.extended,
        "problem": one.problem,
        "arm": one.arm,
        "batch": one.batch,
        "device": one.device,
        "dtype": one.dtype,
        "engine": "loop",
        "status": "completed" if finite else "diverged",
        "outcome": kind,
        "rules": schema.RULES,
        "reason": {"diverged": "nonfinite_loss", "collapsed": "blow_up"}.get(kind),
        "diverged_at": None if finite else steps - 1,
        "steps": steps,
        "initial_loss": float(loss[0]),
        "final_loss": float(loss[-1]),
        "best_loss": float(loss.min()),
        "metric": problem["metric"],
        "metric_value": float(metric) if finite else None,
        "validation_value": validation,
        "validation_metric": seen if finite else None,
        "best_step": steps - 1,
        "best_validation": seen + 0.001,
        "best_metric": reached,
        "steps_to_target": int(one.steps * random.uniform(0.2, 0.6)) if kind == "learned" else None,
        "clipped_fraction": fraction,
        "grad_norm_median": float(np.median(norm)),
        "kept_median": float(np.median(kept)),
        "cosine_median": 1.0,
        "seconds": 0.1,
        "settings": one.canonical,
        "attempt": 1,
        "threads": 1,
        "worker": 0,
        "environment": "e1",
        "created": "2026-01-01T00:00:00Z",
        **overrides,
    }
    curves = [
        {
            "cell": name,
            "step": int(i),
            "loss": float(loss[i]),
            "grad_norm": float(norm[i]),
            "kept": float(kept[i]),
            "cosine": 1.0,
            "changed": float(kept[i] < 1),
            "update_norm": float(one.lr * norm[i] * kept[i]),
        }
        for i in step
    ]
    evals = [
        {
            "cell": name,
            "step": steps,
            "split": "validation",
            "metric": "loss",
            "value": validation,
        }
    ]
    events = []
    if not finite:
        events = [
            {
                "cell": name,
                "step": steps - 1,
                "kind": "nonfinite_loss",
                "value": float("inf"),
                "detail": "the loss is not finite",
            }
        ]
    elif kind == "collapsed":
        events = [
            {
                "cell": name,
                "step": steps // 2,
                "kind": "blow_up",
                "value": 50.0,
                "detail": "above 10 × the reference",
            }
        ]
    return {"cells": [row], "curves": curves, "evals": evals, "events": events}


def failed(one: Cell, reason: str = "out of memory") -> dict[str, list[dict[str, Any]]]:
    """The row of a cell that never finished."""
    row = {
        **rows(one, "learned")["cells"][0],
        "status": "failed",
        "outcome": None,
        "reason": reason,
    }
    blank = (
        "final_loss",
        "best_loss",
        "metric_value",
        "validation_value",
        "validation_metric",
        "best_step",
        "best_validation",
        "best_metric",
        "steps_to_target",
        "clipped_fraction",
        "grad_norm_median",
        "kept_median",
        "cosine_median",
    )
    return {
        "cells": [{**row, **dict.fromkeys(blank), "steps": 0}],
        "curves": [],
        "evals": [],
        "events": [],
    }


def commit(store: Store, shard: str, parts: Sequence[Mapping[str, Any]]) -> None:
    """Write many cells' rows as one shard."""
    store.commit(
        shard,
        {
            table: [row for part in parts for row in part[table]]
            for table in ("cells", "curves", "evals", "events")
        },
    )


NUMBERS = (
    "batch",
    "parameters",
    "tensors",
    "threads",
    "floor_bytes",
    "floor_seconds",
    "kernels",
    "synchronisations",
)


def timing(
    problem: str, optimizer: str, clips: Mapping[str, float], blocks: int = 20, **overrides: Any
) -> list[dict[str, Any]]:
    """Timed blocks, every clip beside ``none`` in each; ``clips`` maps a clip to its cost
    relative to none.
    """
    random = np.random.default_rng([7, *problem.encode(), *optimizer.encode()])
    rows = []
    for block in range(blocks):
        load = 1 + abs(random.normal(0, 0.05))
        for clip, cost in clips.items():
            rows.append(
                {
                    "workload": problem,
                    "problem": problem,
                    "optimizer": optimizer,
                    "clip": clip,
                    "threshold": None if clip == "none" else 1.0,
                    "implementation": "torch",
                    "device": "cpu",
                    "dtype": "float32",
                    "batch": 32,
                    "block": block,
                    "seconds": 0.02 * load * cost * (1 + random.normal(0, 0.01)),
                    "steps": 50,
                    "peak_bytes": 1_500_000 + int(50_000 * cost),
                    "valid": block != 3,
                    **dict.fromkeys(
                        ("part", "parameters", "tensors", "threads", "floor_bytes", "floor_seconds")
                    ),
                    **dict.fromkeys(("kernels", "synchronisations")),
                    "environment": "e1",
                    "created": "2026-01-01T00:00:00Z",
                    **overrides,
                }
            )
    return rows


def surveyed(
    costs: Mapping[str, Mapping[str, float]],
    parameters: int = 2_000_000,
    optimizer: str = "momentum",
    **overrides: Any,
) -> list[dict[str, Any]]:
    """Blocks of the long form: implementation → clip → what it takes, in units of what the floor
    takes.
    """
    problem = f"{parameters} in 6 tensors"
    own = {
        "workload": None,
        "batch": None,
        "part": "update",
        "parameters": parameters,
        "tensors": 6,
        "threads": 1,
    }
    own |= {"floor_bytes": 20 * parameters, "floor_seconds": 1e-4}
    return [
        {
            **row,
            "seconds": row["steps"]
            * 1e-4
            * costs[implementation][row["clip"]]
            * (1 + row["block"] / 1000),
        }
        for implementation in costs
        for row in timing(
            problem,
            optimizer,
            costs[implementation],
            implementation=implementation,
            **{**own, **overrides},
        )
    ]


def build(  # noqa: PLR0913, PLR0917
    folder: Path,
    problems: Sequence[str] = ("digits",),
    optimizers: Sequence[str] = ("sgd", "momentum", "rmsprop"),
    clips: Sequence[str] = ("none", "value", "norm"),
    relative: Sequence[float] = RELATIVE,
    percentile: float | None = None,
    select: int = 3,
    report: int = 10,
    untuned: Mapping[str, Any] | None = None,
    curves: str = "all",
    change: Callable[[Cell], dict[str, list[dict[str, Any]]] | None] = lambda _: None,
    with_throughput: bool = True,
    variants: Sequence[Mapping[str, Any]] = ({},),
    budget: int = 0,
) -> Store:
    """A finished study.

    ``change`` may return other rows for a cell; ``variants`` repeat the matrix with other batches
    or devices.
    """
    store = Store.create(
        folder,
        folder.name,
        (
            'title = "Does clipping widen the range of learning rates that '
            'work?"\n\n[run]\nsteps = 60\n'
        ),
    )
    store.write_page(
        "environment", {"study": folder.name, "curves": curves, "environments": {"e1": ENVIRONMENT}}
    )
    store.write_page("components", components(problems, clips))
    store.write_page(
        "calibration", {problem: {"2": WORKLOADS[problem]["size"]} for problem in problems}
    )

    thresholds = [(multiple, None) for multiple in relative]
    thresholds += [(None, percentile)] if percentile is not None else []

    def grid(seeds: range) -> list[Cell]:
        return [
            cell(problem, optimizer, clip, lr, seed, multiple, share, **variant)
            for variant in variants
            for problem in problems
            for optimizer in optimizers
            for clip in clips
            for multiple, share in ([(None, None)] if clip == "none" else thresholds)
            for lr in LRS[optimizer]
            for seed in seeds
        ]

    def made(one: Cell) -> dict[str, list[dict[str, Any]]]:
        parts = change(one) or rows(one)
        return parts if curves == "all" or one.role == "report" else {**parts, "curves": []}

    asked = {"select": [one.id for one in grid(range(select))]}
    commit(store, "select", [made(one) for one in grid(range(select))])
    if report:
        scores = selection.score(store.read("cells"))
        wanted = selection.readings(
            selection.choose(scores),
            dict.fromkeys(problems, report),
            untuned,
            (untuned or {}).get("arms", METHODS.values()),
        )
        parts: dict[str, Any] = {}
        kinds = {one.arm: (one.optimizer.name, one.clip.name) for one in grid(range(1))}
        same = selection.same_tries(scores, PERCENTILE)
        fresh = range(FIRST_REPORT_SEED, FIRST_REPORT_SEED + report)
        rows_wanted = wanted.to_dict("records") + [
            {**row, "seed": seed} for row in same.to_dict("records") for seed in fresh
        ]
        rows_wanted += [
            {**row, "seed": seed}
            for row in selection.several(scores, {}).to_dict("records")
            for seed in fresh[:budget]
        ]
        for row in rows_wanted:
            optimizer, clip = kinds[row["arm"]]
            given = [
                None if math.isnan(row[name]) else row[name] for name in ("relative", "percentile")
            ]
            place = {
                "batch": row["batch"],
                "device": row["device"],
                "dtype": row["dtype"],
                "threshold": row["threshold"],
            }
            one = cell(row["problem"], optimizer, clip, row["lr"], row["seed"], *given, **place)
            parts.setdefault(one.id, made(one))
        commit(store, "report", list(parts.values()))
        asked["report"] = list(parts)
    protocol = {
        "seeds": {problem: {"select": select, "report": report} for problem in problems},
        "untuned": dict(untuned) if untuned else None,
        "headline": METHODS,
        "grade": "best",
        "percentile": PERCENTILE,
        "budget": budget,
    }
    not_run = [{"device": "cuda", "cells": 300, "reason": "no CUDA device here"}]
    store.write_page("plan", {"cells": asked, "protocol": protocol, "not_run": not_run})
    if with_throughput:
        costs = {"none": 1.0, "value": 1.06, "norm": 1.12, "ema": 1.3}
        store.add_throughput(
            [
                row
                for problem in problems
                for name in optimizers
                for row in timing(problem, name, {clip: costs[clip] for clip in clips})
            ]
        )
    return store


def settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A stored row's settings."""
    return dict(json.loads(row["settings"]))
