"""Which promises of a results folder hold: for its files, its pages, its rows, and its rows
compared with each other.

A promise is broken if no run of clipbench could have left the folder so. What an interrupted run
has not finished is missing, and no broken promise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from clipbench import events, measures, schema, skill, summary
from clipbench.cell import Part, identity
from clipbench.events import Evaluation
from clipbench.schema import Outcome, Role, Status
from clipbench.store import watched
from clipbench.store.by_cell import ByCell, Columns
from clipbench.store.commits import SHARD_TABLES, Commit
from clipbench.store.files import TEMPORARY, damage_of
from clipbench.store.pages import PAGES, keeps_curve, merged
from clipbench.store.reading import Contents, Reader, winners
from clipbench.task import ARM
from clipbench.vocabulary import ACCUMULATE, DEFAULTS, PERCENTILE, RELATIVE

CLOSE = 1e-6  # relative: older columns were worked out before their curve was rounded to float32
LATER = {column.name for column in schema.CELLS if column.later}  # of older rows they are null
VERDICT = ("status", "reason", "diverged_at")
AT_ONCE = 4096  # rows
BETWEEN = [*ARM, "relative", "percentile", "lr", "threshold", "seed", "role", "environment"]
BETWEEN += ["settings", "status"]


def problems(store: Contents) -> list[str]:
    """Every broken promise, a sentence each."""
    pages = [
        f"{store.folder}/{file}: this page is damaged ({why})"
        for file, why in store.pages.damage().items()
    ]
    if pages:
        return pages
    reader = store.reader
    reader.forget()  # somebody asks whether files are sound: each is hashed again
    commits, bad = reader.all_commits(store.held)
    counted = reader.counted(commits)
    damage, of_rows = _row_problems(store, counted)
    others = [one for one in commits if not any(one is other for other in counted)]
    damage |= {path: why for one in others for path in one.beside if (why := damage_of(path))}
    told = [f"{name} {why}" for name, why in bad.items()]
    told += [f"{path.parent.name}/{path.name} {why}" for path, why in damage.items()]
    told += _copies([one.path for one in commits])
    return [*told, *_timing_problems(reader), *_doubles(counted), *of_rows]


def missing(store: Contents) -> list[str]:
    """What the study asks for and the folder lacks, a sentence each."""
    # folders from before there was a preregistration have none
    wanted = [name for name in PAGES if name != "preregistered"]
    sentences = [f"{name}.json is not written yet" for name in wanted if not store.page(name)]
    cells, plan = store.read("cells"), store.page("plan")
    stored = set(cells.loc[cells["status"] != Status.FAILED, "cell"])
    sentences += [
        f"the {phase} phase has not run"
        for phase in plan.get("phases", ())
        if phase not in plan.get("cells", {})
    ]
    for phase, asked in plan.get("cells", {}).items():
        absent = [cell for cell in asked if cell not in stored]
        if absent:
            sentences.append(
                f"{len(absent)} of the {len(asked)} {phase} cells are missing, {absent[0]} first"
            )
    for row in cells[cells["status"] == Status.FAILED].itertuples():
        sentences.append(f"cell {row.cell} failed ({row.reason}); the next run tries it again")
    left = [
        path for table in schema.TABLES for path in (store.folder / table).glob(f"{TEMPORARY}*")
    ]
    return (
        sentences
        + [f"{path.parent.name}/{path.name} is an unfinished write" for path in sorted(left)]
        + _left_over(store)
    )


# -------------------------------------------------------------------------------------------- files


def _copies(paths: Sequence[Path]) -> list[str]:
    again = pd.Series([path.stem.rpartition("-")[2] for path in paths], dtype=object).duplicated()
    return [
        f"{paths[number].parent.name}/{paths[number].name} is a copy of another file"
        for number in np.flatnonzero(again).tolist()
    ]


def _timing_problems(reader: Reader) -> list[str]:
    _, bad = reader.throughput()
    files = [path for path in reader.files("throughput") if f"throughput/{path.name}" not in bad]
    return [*(f"{name} {why}" for name, why in bad.items()), *_copies(files)]


def _doubles(commits: Sequence[Any]) -> list[str]:
    """Cells that several commits hold as finished: only one of them counts. A copy of a file is
    told as such.
    """
    once = {one.path.stem.rpartition("-")[2]: one for one in commits}.values()
    rows = [one.rows.select(["cell", "status"]).to_pandas() for one in once]
    if not rows:
        return []
    every = pd.concat(rows)
    finished = every[every["status"] != Status.FAILED]
    twice = finished.loc[finished["cell"].duplicated(), "cell"]
    return (
        [f"{len(twice)} cells are stored twice, {twice.iloc[0]} first; `clipbench run` tidies them"]
        if len(twice)
        else []
    )


def _left_over(store: Contents) -> list[str]:
    reader = store.reader
    commits, _ = reader.all_commits(store.held)
    named = {path for one in commits for path in one.beside}
    files = [path for table in SHARD_TABLES for path in reader.files(table) if path not in named]
    return [f"{path.parent.name}/{path.name} belongs to no shard" for path in files]


# --------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class _Context:
    """What a row is held to: the pages, and whether it was judged by today's rules, which the
    format of its commit counts.
    """

    environment: Mapping[str, Any]
    components: Mapping[str, Any]
    pilots: Mapping[str, Any]
    current: bool


def _row_problems(store: Contents, commits: Sequence[Commit]) -> tuple[dict[Path, str], list[str]]:
    """The damaged files beside these commits, each with what is wrong with it, and what is wrong
    with the rows that count, a sentence each.

    One commit after the other: of its files no more than a few pieces are held.
    """
    environment, components = store.page("environment"), store.page("components")
    pilots = store.page("calibration").get("pilots", {})
    damage, told, rows = dict[Path, str](), list[str](), list[pa.Table]()
    for one, won in zip(commits, winners(commits), strict=True):
        current = merged([one.context])["schema"] == schema.VERSION
        context = _Context(environment, components, pilots, current)
        cells = one.rows.filter(pa.array(won))
        ids = set(cells["cell"].to_pylist())
        beside = {name: ByCell(name, one.companions.get(name, ()), ids) for name in SHARD_TABLES}
        for row in _each(cells):
            mine = {name: rows_of.take(row.cell) for name, rows_of in beside.items()}
            told += [f"cell {row.cell}: {broken}" for broken in _broken(row, context, mine)]
        for rows_of in beside.values():
            rows_of.finish()
            damage |= rows_of.bad
        rows.append(cells.filter(pc.not_equal(cells["role"], Role.WATCHED)).select(BETWEEN))
    return damage, told + _between(rows)


def _each(rows: pa.Table) -> Iterator[Any]:
    """The rows one by one, None for null; a few are objects of Python at the same time."""
    for batch in rows.to_batches(max_chunksize=AT_ONCE):
        frame = pa.Table.from_batches([batch]).to_pandas(types_mapper=pd.ArrowDtype)
        # pandas' NA cannot be asked whether it is a word
        yield from frame.astype(object).where(frame.notna(), None).itertuples()


def _broken(row: Any, context: _Context, tables: Mapping[str, Columns | None]) -> Iterator[str]:
    """What is wrong with one row of ``cells`` and the rows of other tables that belong to it."""
    if identity(row.settings or "") != row.cell:
        yield f"its settings hash to {identity(row.settings or '')}"
        return
    if row.role == Role.WATCHED:
        yield from watched.broken(row, tables["curves"])
        return
    document = json.loads(row.settings)
    yield from _columns(row, document, context)
    ended = row.status in [*Status] and (row.status != Status.FAILED) == (row.outcome in [*Outcome])
    if not ended or (row.status == Status.DIVERGED) != (row.outcome == Outcome.DIVERGED):
        yield f"status {row.status} and outcome {row.outcome} do not go together"
    if row.environment not in context.environment.get("environments", {}):
        yield f"its environment {row.environment} is not in environment.json"
    if row.status == Status.FAILED:
        return
    if row.status == Status.DIVERGED and row.diverged_at is None:
        yield "it diverged, and nothing says at which step"
    about = context.components.get("workloads", {}).get(row.problem, {})
    yield from _evaluated(row, document["steps"], tables["evals"], about)
    yield from _recorded(row, document, tables, about, context)


def _columns(row: Any, document: Mapping[str, Any], context: _Context) -> Iterator[str]:
    """Columns that do not say what ``settings`` says."""
    parts = {kind: Part(**document[kind]) for kind in ("workload", "optimizer")}
    wanted = {
        **{kind: component.name for kind, component in parts.items()},
        "clip": document["clip"]["name"],
        "problem": parts["workload"].label,
        **{name: document[name] for name in ("lr", "seed", "batch", "device", "dtype")},
        "relative": document["clip"]["settings"].get(RELATIVE),
    }
    label = (row.arm or "").partition(" + ")[2] or "none"
    first = context.components.get("clips", {}).get(label, {}).get("threshold")
    clip = Part(**document["clip"], threshold=first)
    percentile = None if first == PERCENTILE else clip.settings.get(PERCENTILE)
    wanted["percentile"] = percentile
    wanted["arm"] = parts["optimizer"].label + (f" + {clip.label}" if clip.name != "none" else "")
    if first in clip.settings:
        wanted["threshold"] = clip.settings[first]
    for name, value in wanted.items():
        if not _same(getattr(row, name), value):
            yield f"its column {name} is {getattr(row, name)!r}, and its settings say {value!r}"
    if row.role not in [*Role]:
        yield f"its role {row.role!r} is none"
    if row.steps is not None and row.steps > document["steps"]:
        yield f"it has {row.steps} steps of {document['steps']}"
    if row.relative is None and percentile is None:
        return
    told = "" if percentile is None else f", percentile {percentile:g}"
    size = context.pilots.get(_pilot(row, document), {}).get(
        f"{label}, version {document['clip']['version']}{told}"
    )
    if size is None or row.status == Status.FAILED:
        return
    multiple = 1.0 if row.relative is None else row.relative
    resolved = float(f"{multiple * size:.3g}")
    if not _same(row.threshold, resolved):
        yield (
            f"its threshold is {row.threshold!r}, and {multiple:g} times the pilot's "
            f"{size:g} is {resolved:g}"
        )


def _pilot(row: Any, document: Mapping[str, Any]) -> str:
    return (
        f"{row.problem}, batch {row.batch}, {row.device}, {row.dtype}, version "
        f"{document['workload']['version']}"
    )


def _evaluated(
    row: Any, steps: int, evals: Columns | None, about: Mapping[str, Any]
) -> Iterator[str]:
    if evals is None:
        yield "no evaluation is stored"
        return
    evaluations = _evaluations(evals)
    if len({one[:3] for one in evaluations}) < len(evaluations):
        yield "an evaluation is stored twice"
    columns = summary.of_evaluations(evaluations, row.metric, about, steps, row.diverged_at)
    yield from _differing(row, columns, "its evaluations")
    losses = np.array([one.value for one in evaluations if one.metric == skill.LOSS], dtype=float)
    yield from _too_good(losses, about, "an evaluation")


def _recorded(
    row: Any,
    document: Mapping[str, Any],
    tables: Mapping[str, Columns | None],
    about: Mapping[str, Any],
    context: _Context,
) -> Iterator[str]:
    """What is wrong with a row's curve: it must be there if it is kept, be whole, and give the
    columns, events and verdict.
    """
    curve = tables["curves"]
    if curve is None:
        if keeps_curve(context.environment, row.role, row.status, row.seed):
            yield "its curve is missing"
        return
    steps = curve["step"]
    if not np.array_equal(steps, np.arange(row.steps or 0)):
        yield (
            f"its curve has {len(steps)} steps from {steps.min()} to {steps.max()}, not {row.steps}"
        )
        return
    rows = np.stack([curve[name] for name in measures.COLUMNS], axis=1).astype(float)
    yield from _differing(row, summary.of_curve(rows), "its curve")
    optimum, reference, unbounded = (
        about.get("optimum"),
        about.get("reference_loss"),
        bool(about.get("unbounded")),
    )
    yield from _too_good(rows[:, measures.LOSS], about, "its curve")
    if not about or not context.current:
        return
    rules, evaluations = events.rules_from(document["events"]), _evaluations(tables["evals"])
    dtype = "float64" if row.dtype == "float64" else "float32"
    derived = events.derive(rows, reference, optimum, unbounded, rules, dtype)
    judged = None
    if (row.rules or 1) > 1 and evaluations:  # without any, that is told already
        judged = skill.judge(about, evaluations, rows[:, measures.LOSS])
    derived = events.ordered(
        [*derived, *events.evaluated(evaluations), *(judged.events if judged else ())]
    )
    told = _rows(tables["events"], ("step", "kind"))
    if sorted(told) != sorted((one.step, one.kind) for one in derived):
        yield (
            f"its curve and its evaluations have {len(derived)} events, and {len(told)} are "
            f"stored, or others"
        )
    verdict = events.judge(derived, judged.outcome if judged else row.outcome)
    yield from _differing(row, {name: getattr(verdict, name) for name in VERDICT}, "its curve")
    yield from _differing(row, {"outcome": verdict.outcome}, "its evaluations")


def _evaluations(evals: Columns | None) -> list[Evaluation]:
    return [Evaluation(*row) for row in _rows(evals, Evaluation._fields)]


def _rows(columns: Columns | None, names: Sequence[str]) -> list[tuple[Any, ...]]:
    return (
        []
        if columns is None
        else list(zip(*(columns[name].tolist() for name in names), strict=True))
    )


def _differing(row: Any, wanted: Mapping[str, Any], what: str) -> Iterator[str]:
    for name, value in wanted.items():
        stored = getattr(row, name)
        if not _same(stored, value) and not (stored is None and name in LATER):
            yield (
                f"its column {name} is {stored!r}, and {what} "
                f"{'say' if what.endswith('s') else 'says'} {value!r}"
            )


def _too_good(losses: np.ndarray, about: Mapping[str, Any], what: str) -> Iterator[str]:
    optimum = about.get("optimum")
    if optimum is None:
        return
    least = np.nanmin(losses) if len(losses) and not np.isnan(losses).all() else math.inf
    # float32 rounds a sum of terms at its least
    if least < optimum - 1e-5 * max(1.0, abs(optimum)):
        yield f"{what} has a loss of {least:g}, below the least there is, {optimum:g}"


def _between(tables: Sequence[pa.Table]) -> list[str]:
    """What is wrong between rows: a seed must be of one phase, and a multiple must have one
    threshold.

    :param tables: the rows of every commit, their columns `BETWEEN`.
    """
    roles: dict[tuple[Any, ...], set[str]] = {}
    thresholds: dict[tuple[Any, ...], set[float]] = {}
    for row in (row for cells in tables for row in _each(cells)):
        if row.status == Status.FAILED:
            continue
        arm = (*row[1 : 1 + len(ARM)], row.relative, row.percentile, _versions(row.settings))
        roles.setdefault((*arm, row.lr, row.threshold, row.seed), set()).add(row.role)
        if row.relative is not None or row.percentile is not None:
            thresholds.setdefault((*arm, row.environment), set()).add(row.threshold)
    problems = [
        f"{key[4]} at lr {key[-3]:g}: seed {key[-1]} is used to select and to report"
        for key, used in roles.items()
        if len(used) > 1
    ]
    for key, several in thresholds.items():
        if len(several) > 1:
            told = ", ".join(f"{value:g}" for value in sorted(several))
            problems.append(f"{key[4]}: {_of_pilot(*key[5:7])} has several thresholds, {told}")
    return problems


def _of_pilot(relative: float | None, percentile: float | None) -> str:
    return (
        f"{relative:g} times the pilot's size"
        if relative is not None
        else f"percentile {percentile:g} of the pilot's sizes"
    )


def _versions(settings: str) -> str:
    try:
        document = json.loads(settings)
        versions = [document[kind]["version"] for kind in ("workload", "optimizer", "clip")]
        accumulate = document["workload"]["settings"].get(ACCUMULATE, DEFAULTS[ACCUMULATE])
        return f"{versions} {accumulate} {document['steps']} {document['events']}"
    except (ValueError, KeyError, TypeError):
        return ""


def _same(stored: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(stored, int | float):
        return math.isclose(stored, wanted, rel_tol=CLOSE) or (
            math.isnan(stored) and math.isnan(wanted)
        )
    return bool(stored == wanted) or (stored is None and wanted is None)
