"""DataFrame → DataFrame: from the cells of a study to what the report says about them.

Two rules hold everywhere. A diverged seed is an outcome: it is counted, and where it has no value it takes part as the worst possible
one. A failed or missing seed is unknown: nothing is concluded without it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clipbench import schema, selection, statistics
from clipbench.cell import Part
from clipbench.selection import FIRED, GROUP, POINT, READINGS, TASK
from clipbench.statistics import Interval
from clipbench.store import Store

COUNTS = ("learned", "stalled", "collapsed", "diverged", "failed", "missing")
CLAIMED = ("norm", "value")
TIMED = ["problem", "optimizer", "batch", "device", "dtype", "implementation"]
METHODS = ("plain SGD", "momentum", "RMSprop", "value clip", "norm clip")
CURVE_POINTS = 150
DEFAULTS: dict[str, Any] = {
    "metric": "metric",
    "higher_is_better": True,
    "optimum": None,
    "success": None,
    "target": None,
    "reference_loss": None,
}

Components = Mapping[str, Any]


# ---------------------------------------------------------------------------------------------------------------- the cells


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Arrow columns as numpy's: numbers as floats with NaN for null, words as objects with None for null."""
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
            columns[name] = frame[name].to_numpy(dtype=object, na_value=None)
    return pd.DataFrame(columns, index=frame.index)


def current(store: Store) -> tuple[pd.DataFrame, dict[str, int]]:
    """The cells that the study's plan asks for, and how many others are stored but not compared, by reason."""
    cells = store.read("cells")
    phases = store.page("plan").get("cells", {})
    asked = {cell for ids in phases.values() for cell in ids}
    inside = cells["cell"].isin(asked).to_numpy(dtype=bool)
    components, kept = store.page("components"), dict[str, int]()
    for settings in cells["settings"][~inside]:
        reason = _why_not_compared(json.loads(settings), components)
        kept[reason] = kept.get(reason, 0) + 1
    return cells[inside].reset_index(drop=True), dict(sorted(kept.items()))


def _why_not_compared(document: Mapping[str, Any], components: Components) -> str:
    known = {
        "workload": {entry["name"]: entry for entry in components.get("workloads", {}).values()},
        "optimizer": {entry["name"]: entry for entry in components.get("optimizers", {}).values()},
        "clip": components.get("clips", {}),
    }
    for kind, entries in known.items():
        part = document[kind]
        now = entries.get(part["name"], {}).get("version", part["version"])
        if now != part["version"]:
            return f'written by version {part["version"]} of "{part["name"]}" (now {now})'
    return "no longer asked for by the study"


def workload(components: Components, problem: str) -> dict[str, Any]:
    """What the store's components page says of a problem, with neutral words where it says nothing."""
    return {**DEFAULTS, **components.get("workloads", {}).get(problem, {})}


def arms(cells: pd.DataFrame, components: Components) -> pd.DataFrame:
    """A row per arm: ``GROUP``, ``optimizer``, ``clip`` (registered names), their labels, and ``partner``, the same optimizer unclipped."""
    rows, unclipped = [], dict[tuple[Any, ...], str]()
    for row in cells.drop_duplicates(GROUP).sort_values(GROUP).to_dict("records"):
        document = json.loads(row["settings"])
        threshold = components.get("clips", {}).get(row["clip"], {}).get("threshold")
        place = tuple(row[name] for name in TASK)
        optimizer = Part(**document["optimizer"]).label
        if row["clip"] == "none":
            unclipped[(*place, optimizer)] = row["arm"]
        momentum = _momentum(document["optimizer"])
        labels = {
            "momentum": momentum,
            "optimizer_label": optimizer,
            "clip_label": Part(**document["clip"], threshold=threshold).label,
        }
        rows.append({**{name: row[name] for name in GROUP}, "optimizer": row["optimizer"], "clip": row["clip"], **labels})
    for row in rows:
        partner = unclipped.get((*(row[name] for name in TASK), row["optimizer_label"]))
        row["partner"] = None if row["clip"] == "none" else partner
    return pd.DataFrame(rows, columns=[*GROUP, "optimizer", "clip", "optimizer_label", "clip_label", "momentum", "partner"])


def _momentum(optimizer: Mapping[str, Any]) -> float:
    """μ of a momentum rule; at its default (.9) a stored document leaves it out."""
    if optimizer["name"] not in ("momentum", "nesterov"):
        return math.nan
    return float(optimizer["settings"].get("momentum", 0.9))


def counts(cells: pd.DataFrame) -> dict[str, int]:
    """How many cells there are, and how they ended; failed cells have no outcome."""
    found = cells["outcome"].value_counts()
    ended = {name: int(found.get(name, 0)) for name in schema.OUTCOMES}
    return {"cells": len(cells), **ended, "failed": int((cells["status"] == "failed").sum())}


def mixtures(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Where one comparison holds cells of several engines, environments or thread counts: task, column, values and their cell counts."""
    found = []
    for task, rows in plain(cells).groupby([*TASK, "role"], sort=True):
        for column in ("environment", "engine", "threads"):
            values = rows[column].value_counts().sort_index()
            if len(values) > 1:
                shown = {_text(value): int(number) for value, number in values.items()}
                found.append({**dict(zip([*TASK, "role"], task, strict=True)), "column": column, "values": shown})
    return found


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# -------------------------------------------------------------------------------------------------- the report phase's results


def draws(cells: pd.DataFrame, protocol: Mapping[str, Any]) -> pd.DataFrame:
    """A row per task, arm, reading and report seed: the setting that stands for the arm, and how its run ended.

    ``ended`` is an outcome, ``failed`` or ``missing``; ``value`` is NaN for both, and also where a diverged run has none.
    """
    asked = _asked(cells, protocol)
    keys = [*GROUP, "seed", "lr", "relative", "absolute"]
    runs = plain(cells[cells["role"] == "report"])
    # A relative threshold identifies the setting by itself: a cell that failed early has no resolved one.
    for frame in (asked, runs):
        frame["absolute"] = np.where(frame["relative"].isna(), frame["threshold"], np.nan).astype(float)
    taken = [
        *("cell", "status", "outcome", "reason", "diverged_at", "steps", "metric_value", "validation_value"),
        *("steps_to_target", "clipped_fraction", "grad_norm_median", "engine", "environment"),
    ]
    merged = asked.merge(runs[[*keys, *taken]], on=keys, how="left", sort=False).drop(columns="absolute")
    absent, broken = merged["cell"].isna(), (merged["status"] == "failed").fillna(False)
    merged["ended"] = np.where(absent, "missing", np.where(broken, "failed", merged["outcome"].astype(object)))
    value = merged["metric_value"].astype(float)
    merged["value"] = np.where(np.isfinite(value) & (merged["ended"] != "diverged"), value, np.nan)
    return merged


def _asked(cells: pd.DataFrame, protocol: Mapping[str, Any]) -> pd.DataFrame:
    seeds = {problem: 0 for problem in cells["problem"].unique()}
    seeds |= {problem: int(phases["report"]) for problem, phases in protocol.get("seeds", {}).items()}
    headline = list(named(protocol.get("headline", {})).values())
    scores = selection.score(cells)
    asked = selection.readings(scores, seeds, protocol.get("untuned"), headline)
    asked = asked.astype({"batch": np.int64, "seed": np.int64, **dict.fromkeys(POINT, float)})
    edges = selection.choose(scores)[[*GROUP, "edge"]]
    return asked.merge(edges, on=GROUP, how="left", sort=False)


def results(drawn: pd.DataFrame, components: Components) -> pd.DataFrame:
    """A row per task, arm and reading: how its seeds ended, and its metric with an interval.

    ``statistic`` says what ``estimate`` is: ``mean``; ``median`` where a seed diverged, which counts as the worst possible value; ``share``
    of successes where the workload's outcome is bimodal; ``incomplete`` where a seed failed or is missing: then there is no interval.
    """
    rows = []
    for key, seeds in drawn.groupby([*GROUP, "reading"], sort=True):
        place = dict(zip([*GROUP, "reading"], key, strict=True))
        about = workload(components, place["problem"])
        ended = seeds["ended"].value_counts()
        statistic, interval, successes = _estimate(seeds, about)
        fired = seeds["clipped_fraction"].astype(float)
        target = seeds["steps_to_target"].astype(float)
        known = ~seeds["ended"].isin(["failed", "missing"])
        points = seeds.drop_duplicates(POINT)
        one = points.iloc[0] if len(points) == 1 else dict.fromkeys(POINT, math.nan)
        rows.append(
            {
                **place,
                "n": len(seeds),
                **{name: int(ended.get(name, 0)) for name in COUNTS},
                "statistic": statistic,
                "estimate": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "successes": successes,
                "clipped_fraction": float(fired.mean()),
                "never_fired": bool(seeds["threshold"].notna().any() and fired.notna().any() and fired.mean() < FIRED),
                "lr": one["lr"],
                "threshold": one["threshold"],
                "relative": one["relative"],
                "settings": len(points),
                "budget": int(seeds["budget"].iloc[0]),
                "edge": (seeds["edge"].iloc[0] or "") if place["reading"] == "all" else "",
                "steps_to_target": statistics.median_interval(target[known].fillna(math.inf)).estimate,
                "reached": int(target.notna().sum()),
            }
        )
    columns = [
        *GROUP,
        "reading",
        "n",
        *COUNTS,
        "statistic",
        "estimate",
        "low",
        "high",
        "successes",
        "clipped_fraction",
        "never_fired",
    ]
    columns += [*POINT, "settings", "budget", "edge", "steps_to_target", "reached"]
    return pd.DataFrame(rows, columns=columns)


def _estimate(seeds: pd.DataFrame, about: Mapping[str, Any]) -> tuple[str, Interval, float]:
    complete = not seeds["ended"].isin(["failed", "missing"]).any()
    values = worst_filled(seeds, about)
    if about["success"] is not None:
        known = ~seeds["ended"].isin(["failed", "missing"])
        successes = int(succeeded(seeds, about).sum())
        share = statistics.share_interval(successes, int(known.sum()))
        return ("share", share, successes) if complete else ("incomplete", Interval(share.estimate, np.nan, np.nan), successes)
    if not complete:
        known_values = values[~np.isnan(values)]
        return "incomplete", Interval(statistics.median_interval(known_values).estimate, np.nan, np.nan), math.nan
    if np.isfinite(values).all():
        return "mean", statistics.mean_interval(values), math.nan
    return "median", statistics.median_interval(values), math.nan


def worst_filled(seeds: pd.DataFrame, about: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The metric of every seed; the worst possible one where a run ended without a value, NaN where the run failed or is missing."""
    worst = -math.inf if about["higher_is_better"] else math.inf
    values = seeds["value"].to_numpy(dtype=float)
    unknown = seeds["ended"].isin(["failed", "missing"]).to_numpy(dtype=bool)
    return np.where(unknown, np.nan, np.where(np.isnan(values), worst, values))


def succeeded(seeds: pd.DataFrame, about: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which seeds met the workload's criterion of success; a run without a value did not."""
    values = worst_filled(seeds, about)
    met = values >= about["success"] if about["higher_is_better"] else values <= about["success"]
    return np.asarray(met & ~np.isnan(values), dtype=bool)


def compare(drawn: pd.DataFrame, pairs: pd.DataFrame, components: Components) -> pd.DataFrame:
    """Paired differences, arm minus baseline, on the same report seeds; positive is better, whatever the metric's direction.

    ``pairs`` has ``GROUP`` and ``baseline``. ``note`` says why there is no difference to give: ``never fired``, ``incomplete``.
    """
    sides = {key: group for key, group in drawn.groupby([*GROUP, "reading"], sort=True)}
    rows = []
    for pair in pairs.to_dict("records"):
        task, about = [pair[name] for name in TASK], workload(components, pair["problem"])
        for reading in READINGS:
            arm, baseline = sides.get((*task, pair["arm"], reading)), sides.get((*task, pair["baseline"], reading))
            if arm is None or baseline is None:
                continue
            place = {**{name: pair[name] for name in GROUP}, "baseline": pair["baseline"], "reading": reading}
            rows.append({**place, **_difference(arm, baseline, about)})
    columns = [*GROUP, "baseline", "reading", "n", "statistic", "estimate", "low", "high", "p", "note"]
    return pd.DataFrame(rows, columns=columns)


def _difference(arm: pd.DataFrame, baseline: pd.DataFrame, about: Mapping[str, Any]) -> dict[str, Any]:
    both = arm.merge(baseline, on="seed", suffixes=("", "_baseline"), sort=True)
    first, second = (both[arm.columns], both[["seed", *(f"{name}_baseline" for name in baseline.columns if name != "seed")]])
    second = second.rename(columns=lambda name: name.removesuffix("_baseline"))
    nothing = {"n": len(both), "statistic": "", "estimate": np.nan, "low": np.nan, "high": np.nan, "p": np.nan}
    a, b = worst_filled(first, about), worst_filled(second, about)
    if np.isnan(a).any() or np.isnan(b).any() or len(both) < len(arm):
        return {**nothing, "note": "incomplete"}
    fired = first["clipped_fraction"].astype(float)
    if first["threshold"].notna().any() and fired.notna().any() and fired.mean() < FIRED:
        return {**nothing, "p": 1.0, "note": "never fired"}
    if about["success"] is not None:
        won, lost = succeeded(first, about), succeeded(second, about)
        interval = statistics.share_difference(int(won.sum()), int(lost.sum()), len(both))
        return {**nothing, "statistic": "share", **interval._asdict(), "p": statistics.discordant_p(won, lost), "note": ""}
    gaps = statistics.differences(a, b) * (1 if about["higher_is_better"] else -1)
    interval = statistics.paired_difference(gaps, np.zeros_like(gaps))
    statistic = "mean" if np.isfinite(gaps).all() else "median"
    return {**nothing, "statistic": statistic, **interval._asdict(), "p": statistics.paired_p(gaps), "note": ""}


def named(headline: Mapping[str, str]) -> dict[str, str]:
    """The protocol's named methods, method → arm, in the order people name them (a JSON page knows no order)."""
    rank = {name: number for number, name in enumerate(METHODS)}
    return dict(sorted(headline.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))


def headline_pairs(arms_table: pd.DataFrame, headline: Mapping[str, str]) -> pd.DataFrame:
    """The named methods, each against the first of them, plain SGD."""
    if not headline:
        return pd.DataFrame(columns=[*GROUP, "baseline"])
    first, *others = named(headline).values()
    return arms_table[arms_table["arm"].isin(others)][GROUP].assign(baseline=first)


def clip_pairs(arms_table: pd.DataFrame) -> pd.DataFrame:
    """Every clipped arm against the same optimizer unclipped."""
    clipped = arms_table[arms_table["partner"].notna()]
    return clipped[GROUP].assign(baseline=clipped["partner"])


def claims(drawn: pd.DataFrame, arms_table: pd.DataFrame, components: Components) -> pd.DataFrame:
    """The declared family, {norm, value} × optimizer × workload at all settings, with Holm-corrected p (``holm``).

    A clip that never fired stays in the family with p = 1: it was declared. What is incomplete is not testable.
    """
    family = clip_pairs(arms_table[arms_table["clip"].isin(CLAIMED)])
    table = compare(drawn[drawn["reading"] == "all"], family, components)
    table["holm"] = statistics.holm(table["p"].to_numpy(dtype=float))
    return table


# --------------------------------------------------------------------------------------------------------- the whole grid


def grid(cells: pd.DataFrame, components: Components) -> pd.DataFrame:
    """A row per task, arm and setting on the selection seeds: how they ended, and the mean metric of those that have one (``valued``)."""
    frame = plain(cells[cells["role"] == "select"])
    frame["ended"] = np.where(frame["status"] == "failed", "failed", frame["outcome"].astype(object))
    frame["value"] = np.where(np.isfinite(frame["metric_value"]) & (frame["ended"] != "diverged"), frame["metric_value"], np.nan)
    for name in COUNTS[:-1]:
        frame[name] = (frame["ended"] == name).astype(int)
    wanted = {name: (name, "sum") for name in COUNTS[:-1]}
    table = frame.groupby([*GROUP, *POINT], dropna=False, sort=True).agg(
        seeds=("cell", "size"),
        **wanted,
        value=("value", "mean"),
        valued=("value", "count"),
        clipped_fraction=("clipped_fraction", "mean"),
        extended=("extended", "any"),
    )
    return table.reset_index()


def stable(cells: pd.DataFrame) -> pd.DataFrame:
    """Which learning rates are stable: every selection seed learned.

    A row per task, arm and ``basis``: ``no clip``; ``best threshold`` (at each lr some threshold is stable); ``one threshold`` (the one with
    the widest range). ``low`` and ``high`` bound the longest unbroken stretch of the tried axis, ``below`` and ``above`` say that it
    reaches the axis's end, so that the true range may go on; ``lrs`` lists every stable lr, ``tried`` the axis.
    """
    rows = []
    for key, arm in grid(cells, {}).groupby(GROUP, sort=True):
        place = dict(zip(GROUP, key, strict=True))
        axis = sorted(arm["lr"].unique())
        arm = arm.assign(stable=(arm["learned"] == arm["seeds"]) & (arm["seeds"] > 0))
        if arm["threshold"].isna().all() and arm["relative"].isna().all():
            rows.append({**place, "basis": "no clip", **_blank(), **_stretch(axis, arm.loc[arm["stable"], "lr"])})
            continue
        rows.append({**place, "basis": "best threshold", **_blank(), **_stretch(axis, arm.loc[arm["stable"], "lr"])})
        fixed = []
        for (threshold, relative), one in arm.groupby(["threshold", "relative"], dropna=False, sort=True):
            fixed.append({"threshold": threshold, "relative": relative, **_stretch(axis, one.loc[one["stable"], "lr"])})
        rows.append({**place, "basis": "one threshold", **max(fixed, key=lambda row: (row["decades"], len(row["lrs"])))})
    columns = [*GROUP, "basis", "threshold", "relative", "low", "high", "decades", "below", "above", "lrs", "tried"]
    return pd.DataFrame(rows, columns=columns)


def _blank() -> dict[str, float]:
    return {"threshold": math.nan, "relative": math.nan}


def _stretch(axis: Sequence[float], stable_lrs: Iterable[float]) -> dict[str, Any]:
    """The longest unbroken stretch of ``axis`` inside ``stable_lrs``; of equal ones the hottest."""
    found = set(stable_lrs)
    best: list[float] = []
    run: list[float] = []
    for lr in axis:
        run = [*run, lr] if lr in found else []
        if run and (not best or run[-1] / run[0] >= best[-1] / best[0]):
            best = run
    low, high = (best[0], best[-1]) if best else (math.nan, math.nan)
    return {
        "low": low,
        "high": high,
        "decades": math.log10(high / low) if best else -1.0,
        "below": bool(best) and low == axis[0],
        "above": bool(best) and high == axis[-1],
        "lrs": tuple(sorted(found)),
        "tried": tuple(axis),
    }


def effective(ranges: pd.DataFrame, arms_table: pd.DataFrame) -> pd.DataFrame:
    """The ranges of momentum arms with ``factor`` = 1/(1 − μ): a steady gradient moves them by lr times that a step."""
    factors = arms_table.loc[arms_table["momentum"].notna(), [*GROUP, "momentum"]]
    found = ranges[ranges["basis"] != "one threshold"].merge(factors, on=GROUP, how="inner", sort=False)
    return found.assign(factor=1 / (1 - found["momentum"].astype(float)))


def notes(arms_table: pd.DataFrame) -> list[str]:
    """What a reader of learning rates must know of the optimizers compared."""
    told = []
    for value in sorted(arms_table["momentum"].dropna().unique()):
        told.append(
            f"Momentum with μ = {value:g} moves by lr/(1 − μ) = {1 / (1 - value):.3g} × lr a step in a steady direction, so that its learning rates sit lower than those "
            f"of plain SGD by about that factor; its ranges are drawn against lr/(1 − μ) as well."
        )
    if (arms_table["optimizer"] == "rmsprop").any():
        told.append(
            "RMSprop has no bias correction: its running mean of squares starts at zero, so that with α = 0.99 its first step is ten times lr for every weight. "
            "Clipping before that division cannot shorten it."
        )
    return told


def fired(cells: pd.DataFrame) -> pd.DataFrame:
    """Share of steps clipped against the threshold: a row per task, arm and threshold, over the selection cells of all learning rates."""
    frame = plain(cells[(cells["role"] == "select") & (cells["clip"] != "none")])
    frame = frame[frame["clipped_fraction"].notna()]
    table = frame.groupby([*GROUP, "threshold", "relative"], dropna=False, sort=True)["clipped_fraction"]
    shares = table.agg(cells="size", median="median", low="min", high="max").reset_index()
    return shares.assign(place=shares["relative"].where(shares["relative"].notna(), shares["threshold"]))


# ------------------------------------------------------------------------------------------------------------ cost and events


def cost(throughput: pd.DataFrame) -> pd.DataFrame:
    """What each clip costs: the median over blocks of its step time over the unclipped one's beside it, with the order-statistic interval.

    Invalid blocks are counted (``invalid``) and left out. Also step time quantiles, samples per second and peak memory.
    """
    frame = plain(throughput)
    timed = [*TIMED, "clip", "threshold"]
    frame["step_seconds"] = frame["seconds"] / frame["steps"]
    # Timings taken twice number their blocks from the start again: the n-th occurrence of a block pairs with the n-th.
    frame = frame.sort_values("created", kind="stable")
    frame["repeat"] = frame.groupby([*timed, "block"], dropna=False, sort=False).cumcount()
    pairing = [*TIMED, "block", "repeat", "environment"]
    usable = frame[frame["valid"] & (frame["step_seconds"] > 0)]
    base = usable[usable["clip"] == "none"].drop_duplicates(pairing)[[*pairing, "step_seconds"]]
    paired = usable.merge(base.rename(columns={"step_seconds": "base_seconds"}), on=pairing, how="left", sort=False)
    rows = []
    for key, blocks in frame.groupby(timed, dropna=False, sort=True):
        place = dict(zip(timed, key, strict=True))
        mask = pd.Series(True, index=paired.index)
        for name in timed:
            mask &= paired[name].isna() if name == "threshold" and math.isnan(place[name]) else paired[name] == place[name]
        here = paired[mask]
        ratio = here["step_seconds"] / here["base_seconds"]
        interval = statistics.median_interval(ratio.dropna()) if place["clip"] != "none" else statistics.NOTHING
        quantiles = here["step_seconds"].quantile([0.05, 0.5, 0.95]).to_numpy() if len(here) else np.full(3, np.nan)
        rows.append(
            {
                **place,
                "blocks": len(here),
                "invalid": int(len(blocks) - len(here)),
                "ratio": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "step_5": quantiles[0],
                "step_50": quantiles[1],
                "step_95": quantiles[2],
                "samples_per_second": place["batch"] / quantiles[1],
                "peak_bytes": float(here["peak_bytes"].median()) if len(here) else np.nan,
            }
        )
    measures = ["blocks", "invalid", "ratio", "low", "high", "step_5", "step_50", "step_95", "samples_per_second", "peak_bytes"]
    return pd.DataFrame(rows, columns=[*timed, *measures])


def events(store_events: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Every event of the compared cells, with the cell's place, worst kinds first."""
    found = plain(store_events).merge(
        plain(cells)[["cell", *GROUP, "role", "seed", *POINT, "status", "outcome"]], on="cell", how="inner", sort=False
    )
    found["rank"] = found["kind"].map({kind: rank for rank, kind in enumerate(schema.KINDS)}).fillna(len(schema.KINDS))
    order = ["rank", *GROUP, "role", "lr", "threshold", "seed", "step"]
    columns = [*GROUP, "role", "seed", *POINT, "step", "kind", "value", "detail", "outcome", "cell"]
    return found.sort_values(order, kind="stable")[columns].reset_index(drop=True)


def event_counts(found: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Cells with at least one event of each kind, by task and arm; ``cells`` is how many the arm has in all phases, with their outcomes."""
    keys = plain(cells)[[*GROUP, "outcome", "status", "cell"]]
    rows = []
    for key, arm in keys.groupby(GROUP, sort=True):
        mine = found[found["cell"].isin(arm["cell"])]
        touched = mine.groupby("kind")["cell"].nunique()
        ended = counts(arm)
        rows.append({**dict(zip(GROUP, key, strict=True)), **ended, **{kind: int(touched.get(kind, 0)) for kind in schema.KINDS}})
    return pd.DataFrame(rows, columns=[*GROUP, "cells", *schema.OUTCOMES, "failed", *schema.KINDS])


def failures(cells: pd.DataFrame) -> pd.DataFrame:
    """Every failed cell with its reason."""
    frame = plain(cells[cells["status"] == "failed"])
    return frame.sort_values([*GROUP, "role", "lr", "threshold", "seed"])[
        [*GROUP, "role", *POINT, "seed", "attempt", "reason", "cell"]
    ]


# --------------------------------------------------------------------------------------------------------------------- curves


def curves(recorded: pd.DataFrame, drawn: pd.DataFrame, components: Components, points: int = CURVE_POINTS) -> pd.DataFrame:
    """Loss curves of the chosen settings' report seeds, thinned by block medians; loss above the optimum where that is known.

    Columns ``GROUP``, ``seed``, ``cell``, ``ended``, ``step``, ``gap``. Values that are not finite are kept, as ∞.
    """
    chosen = drawn[(drawn["reading"] == "all") & drawn["cell"].notna()].drop_duplicates("cell")
    wanted = recorded[recorded["cell"].isin(chosen["cell"])][["cell", "step", "loss"]]
    lines = dict(iter(plain(wanted).sort_values(["cell", "step"]).groupby("cell", sort=True)))
    parts = []
    for row in chosen.sort_values([*GROUP, "seed"]).to_dict("records"):
        line = lines.get(row["cell"])
        if line is None:
            continue
        optimum = workload(components, row["problem"])["optimum"]
        position, gap = statistics.block_medians(line["loss"].to_numpy(dtype=float) - (optimum or 0.0), points)
        place = {name: row[name] for name in [*GROUP, "seed", "cell", "ended"]}
        parts.append(pd.DataFrame({**{name: [value] * len(gap) for name, value in place.items()}, "step": position, "gap": gap}))
    columns = [*GROUP, "seed", "cell", "ended", "step", "gap"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({name: [] for name in columns})
