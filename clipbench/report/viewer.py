"""The page: sections and answer as HTML, and in it the runs themselves, to look at one by one.

The plotting library is Vega: its script ships inside a wheel (vl-convert-python), is the smallest
of those that do (0.9 MB; Bokeh's has 1.3 MB, Plotly's 4.8 MB), draws SVG that a screen reader can
read, and needs no `eval`, so that the page may forbid all scripts but its own two, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
import vl_convert

from clipbench.analysis.cells import plain
from clipbench.analysis.curves import extremes
from clipbench.report.evidence import Evidence
from clipbench.report.glossary import Marks
from clipbench.report.prose import environment
from clipbench.report.words import metric_words, percent, short, threshold_words
from clipbench.schema import Role, Status
from clipbench.task import Task, Threshold, arm_of

BYTES = 1_800_000  # of points in one page
AT_ONCE = 1000  # runs whose curves are read together; a page has room for some 700
BUCKETS = 16  # stretches of a curve, of each of which the extremes are kept
# A run at a setting that its arm chose is shown first: by the headline, else among all settings.
HEADLINE, TUNED = 2, 1
NORM = "norm"  # the clip whose threshold is one for the gradient's norm, its settings at defaults
MEASURES = ("loss", "grad_norm", "kept", "cosine", "changed", "update_norm")


def page(told: Mapping[str, Any], evidence: Evidence | None = None) -> str:
    """The page as one HTML file that loads nothing.

    :param told: what the template names beside the runs.
    :param evidence: of the study whose runs can be looked at; None if there are none.
    """
    shown = {"cells": [], "left": 0} if evidence is None else runs(evidence)
    scripts = [*([_library()] if shown["cells"] else []), _script("page.js")]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            told,
            marks=Marks(),
            runs=_data(shown["cells"]) if shown["cells"] else "",
            plot=_data(json.loads(_file("viewer.vl.json"))),
            left=shown["left"],
            study="" if evidence is None else evidence.store.name,
            first="" if evidence is None else _first(evidence),
            scripts=scripts,
            hashes=" ".join(map(_hash, scripts)),
        )
    )


def _first(evidence: Evidence) -> str:
    """The run that is shown first: of the first row of the answer, at the setting that is chosen
    there; empty if there is none.
    """
    for row in evidence.answers.head(1).to_dict("records"):
        cells = plain(evidence.of(evidence.cells, Task.of(row)))
        mine = cells[(cells["arm"] == row["arm"]) & (cells["lr"] == row["lr"])]
        mine = mine[(mine["role"] == Role.REPORT) & (mine["threshold"] == row["threshold"])]
        return str(mine.sort_values("seed")["cell"].iloc[0]) if len(mine) else ""
    return ""


def runs(evidence: Evidence) -> dict[str, Any]:
    """The runs whose curves are shown: those of report seeds, and those that diverged, each curve
    thinned to its extremes, up to `BYTES`.

    The first seed of every setting comes first, then what diverged, then the other seeds.
    """
    cells = plain(evidence.cells)
    cells = cells[(cells["role"] == Role.REPORT) | (cells["status"] == Status.DIVERGED)]
    if evidence.environment.get("curves") == "none" or cells.empty:
        return {"cells": [], "left": 0}
    ranked = cells.assign(
        turn=cells.groupby(["problem", "arm"], sort=False)["seed"].rank(method="dense"),
        diverged=cells["status"] == Status.DIVERGED,
    )
    ranked["turn"] = ranked["turn"].where((ranked["turn"] == 1) | ~ranked["diverged"], 1.5)
    ranked = ranked.sort_values(["turn", "problem", "arm", "lr", "seed", "cell"], kind="stable")
    events = dict(iter(plain(evidence.events).groupby("cell", sort=False)))
    settings = _chosen(evidence)
    shown, size = [], 0
    for row, curve in _with_curves(evidence, ranked):
        one = _run(evidence, row, curve, events.get(row["cell"]))
        if rank := settings.get((*arm_of(row), row["lr"], Threshold.of(row).setting)):
            one["chosen"] = rank
        size += len(json.dumps(one, separators=(",", ":")))
        if size > BYTES:
            break
        shown.append(one)
    return {"cells": shown, "left": len(evidence.cells) - len(shown)}


def _with_curves(
    evidence: Evidence, ranked: pd.DataFrame
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The runs whose curves are kept, in their order, each with its curve; `AT_ONCE` are held."""
    for start in range(0, len(ranked), AT_ONCE):
        some = ranked.iloc[start : start + AT_ONCE]
        recorded = evidence.curves_of(some["cell"], MEASURES)
        curves = dict(iter(recorded.groupby("cell", sort=False)))
        for row in some.to_dict("records"):
            if (curve := curves.get(row["cell"])) is not None:
                yield row, curve


def _chosen(evidence: Evidence) -> dict[tuple[Any, ...], int]:
    """Arm of a task, lr and threshold → how its selection seeds chose it."""
    levels = evidence.levels[evidence.levels["grade"] == evidence.grade]
    return {
        (*arm_of(row), row["lr"], Threshold.of(row).setting): rank
        for rank, rows in ((TUNED, evidence.choices), (HEADLINE, levels))
        for row in rows.to_dict("records")
    }


def _run(
    evidence: Evidence, row: Mapping[str, Any], curve: pd.DataFrame, events: pd.DataFrame | None
) -> dict[str, Any]:
    task, threshold = Task.of(row), Threshold.of(row)
    about = evidence.about(task)
    values = {name: curve[name].to_numpy(dtype=float, na_value=np.nan) for name in MEASURES}
    kept = extremes(values["loss"], values["grad_norm"], stretches=BUCKETS)
    steps = curve["step"].to_numpy()[kept]
    metric, clip = row["metric_value"], str(row["arm"]).partition(" + ")[2] or "none"
    return {
        "id": row["cell"],
        "problem": evidence.labels[task],
        "optimizer": evidence.short(str(row["arm"]).partition(" + ")[0]),
        "clip": clip,
        "at": "" if threshold.absent else threshold_words(threshold),
        "limit": _rounded(threshold.value) if clip == NORM else None,
        "lr": short(row["lr"]),
        "seed": int(row["seed"]),
        "ended": str(row["outcome"] or row["status"]),
        "metric": "" if math.isnan(metric) else f"{metric_words(about)} {short(metric)}",
        "fired": percent(row["clipped_fraction"]) if not threshold.absent else "",
        "events": []
        if events is None
        else [[int(one.step), str(one.kind).replace("_", " ")] for one in events.itertuples()][:20],
        "step": steps.tolist(),
        **{name: [_rounded(value) for value in values[name][kept]] for name in MEASURES},
    }


def _rounded(value: float) -> float | None:
    """Three digits; what is not finite has no place on an axis."""
    return float(f"{value:.3g}") if math.isfinite(value) else None


def _data(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed, as vl-convert bundles them."""
    whole: Any = None  # a snippet would be bundled instead; its stubs ask for one
    return _inside(vl_convert.javascript_bundle(whole))


@cache
def _script(name: str) -> str:
    return _inside(_file(name))


def _file(name: str) -> str:
    return files("clipbench").joinpath("templates", name).read_text(encoding="utf-8")


def _inside(script: str) -> str:
    """A script that may stand inside a script element: it must not end that."""
    return script.replace("</script", "<\\/script")


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"
