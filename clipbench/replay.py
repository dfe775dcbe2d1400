"""Replay: run one stored row again, and say whether it matches what is stored."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipbench import engines, execute, measures, registry, schema
from clipbench.cell import Cell, from_json
from clipbench.engines import Job, Record, lanes
from clipbench.errors import UsageError
from clipbench.schema import Status
from clipbench.store import Store
from clipbench.tolerance import TOLERANCE, apart

Pair = tuple[str, np.ndarray, np.ndarray]  # what is compared, as it is stored and as it came now
CURVE = "the curve"
ENGINES = ("loop", lanes.EAGER, lanes.NATIVE)


@dataclass(frozen=True)
class Finding:
    """Whether a row matches, and the sentence that says so."""

    matches: bool
    sentence: str


def replay(store: Store, cell: str, engine: str | None = None, use: Sequence[Path] = ()) -> Finding:
    """Whether the cell whose identity begins with ``cell`` comes out as it is stored when it is run
    again.

    The same engine on the CPU, in one thread, with the same torch on the same processor, must give
    the same bits of the curve. Otherwise status and outcome must be the same, and the curve within
    a tolerance, except ``changed``, which counts elements.

    :param engine: ``loop`` or ``batched``; the one that made the row if not given.
    :param use: plug-ins that the user trusts. A plug-in that only the folder's own page names is
        run if its hash is the version that the row has.
    :raises UsageError: there is no such cell, or more than one; it failed; or its components are
        not here in its versions.
    """
    row = _row(store, cell)
    registry.load_packaged()
    used = _used_files(store, row, use)
    for path, digest in used:
        registry.load_file(path, digest=digest)
    asked = from_json(row["settings"], row["role"])
    job = _job(asked, row, store)
    made_by = str(row["engine"])
    with_engine = (
        made_by
        if engine in (None, made_by) or (engine == "batched" and made_by != "loop")
        else str(engine)
    )
    if with_engine not in ENGINES:
        raise UsageError(
            f'{store.folder}: the engine "{with_engine}" is not known here; give --engine loop or '
            f"batched."
        )
    work = execute.Call(_train, (job, with_engine), f"the replay of {asked.id}")
    with execute.Local(1) as executor:
        setting = execute.Setting(tuple(used)).of(asked)
        record = execute.call(
            executor, work, setting, max(execute.LIMIT, execute.SLACK * row["seconds"])
        )
    if record.failure is not None:
        return Finding(False, f"{asked.id}: it failed now: {record.failure}.")
    reasons = _reasons(store, row, with_engine)
    wanted = (
        "the same bits"
        if not reasons
        else f"no more than a tolerance, because {' and '.join(reasons)}"
    )
    pairs = _pairs(store, row, record, exact=not reasons)
    differences = _differences(row, record, pairs, exact=not reasons)
    what = (
        f"{asked.id} ({asked.problem}, {asked.arm}, lr {asked.lr:g}, seed {asked.seed}) by "
        f"{with_engine}"
    )
    if differences:
        return Finding(False, f"{what} differs: {'; '.join(differences)}. Asked for was {wanted}.")
    return Finding(True, f"{what} matches: {_what_matches(row, pairs)}. Asked for was {wanted}.")


def _row(store: Store, cell: str) -> dict[str, Any]:
    cells = store.read("cells")
    matches = cells[cells["cell"].str.startswith(cell)] if cell else cells[:0]
    if not len(matches):
        raise UsageError(
            f'{store.folder}: no cell begins with "{cell}"; the column `cell` of its cells table '
            f"has them all."
        )
    if len(matches) > 1:
        raise UsageError(
            f'{store.folder}: {len(matches)} cells begin with "{cell}"; give more of its digits.'
        )
    row: dict[str, Any] = {
        str(name): value for name, value in matches.to_dict("records")[0].items()
    }
    if row["status"] == Status.FAILED:
        raise UsageError(
            f"{store.folder}: {row['cell']} failed ({row['reason']}); `run` tries it again."
        )
    return row


def _used_files(store: Store, row: dict[str, Any], named: Sequence[Path]) -> list[execute.Used]:
    """The plug-ins that the row's components come from, each with its hash.

    :raises UsageError: one is not here.
    """
    document = json.loads(row["settings"])
    components = [
        (kind, document[kind]["name"], document[kind]["version"]) for kind in registry.KINDS
    ]
    wanted = {
        version: name
        for kind, name, version in components
        if isinstance(version, str) and not _is_here(kind, name, version)
    }
    used = [(path, registry.digest_of(path)) for path in named]
    try:
        files = tomllib.loads(store.study).get("use", []) if wanted else []
    except (ValueError, RecursionError):
        files = []
    files = (
        [file for file in files if isinstance(file, str) and "\0" not in file]
        if isinstance(files, list)
        else []
    )
    candidates = [folder / file for file in files for folder in (store.folder, Path.cwd())]
    for path in candidates:
        if (
            path.is_file()
            and (digest := registry.digest_of(path)) in wanted
            and digest not in [one for _, one in used]
        ):
            used.append((path, digest))
    for digest, name in wanted.items():
        if not named and digest not in [one for _, one in used]:
            raise UsageError(
                f'{store.folder}: "{name}" of {row["cell"]} comes from a file that is not here; '
                f"name it with --use."
            )
    return used


def _is_here(kind: registry.Kind, name: str, version: str) -> bool:
    """Whether an installed package has the component in this version, so that every worker has
    it, too.
    """
    if name not in registry.names(kind):
        return False
    component = registry.find(kind, name)
    return bool(component.version == version and not registry.is_used(component))


def _job(asked: Cell, row: dict[str, Any], store: Store) -> Job:
    for kind, component in (
        ("workload", asked.workload),
        ("optimizer", asked.optimizer),
        ("clip", asked.clip),
    ):
        version = registry.find(kind, component.name).version  # type: ignore[arg-type]
        if version != component.version:
            raise UsageError(
                f"{store.folder}: {row['cell']} was written by version {component.version} of "
                f'"{component.name}" (now {version}); '
                "`run` makes it anew."
            )
    registry.ready(asked.workload.name, asked.workload.own)
    settings = asked.clip.own
    if asked.needs_pilot:
        settings[str(asked.clip.threshold)] = float(row["threshold"])
    return Job(asked, settings)


def _train(job: Job, engine: str) -> Record:
    """The record of one cell, by one engine; called in a process of its own."""
    if engine == "loop":
        return engines.run(job)
    (record,) = lanes.run([job], native=engine == lanes.NATIVE)
    return record


def _reasons(store: Store, row: dict[str, Any], engine: str) -> list[str]:
    """Why the same bits cannot be asked for, a clause each; empty if they can."""
    there = store.page("environment")["environments"].get(row["environment"], {})
    here = execute.environment("cpu")
    reasons = []
    if engine != row["engine"]:
        reasons.append(f"the row was made by {row['engine']}")
    if row["device"] != "cpu":
        reasons.append(f"it was made on {row['device']}")
    if row["threads"] != 1:
        reasons.append(f"it was made with {row['threads']} threads")
    reasons += [
        f"it was made on another {name}"
        for name in ("processor", "machine")
        if there.get(name) != here[name]
    ]
    if there.get("libraries", {}).get("torch") != here["libraries"]["torch"]:
        reasons.append("it was made with another torch")
    if store.format != schema.VERSION:
        reasons.append(
            f"the folder has rows of format {store.format}, whose measures were taken otherwise"
        )
    return reasons


def _differences(
    row: dict[str, Any], record: Record, pairs: Sequence[Pair], *, exact: bool
) -> list[str]:
    differences: list[str] = []
    verdict = record.verdict
    for name, now in (
        ("status", verdict and verdict.status),
        *([("outcome", verdict and verdict.outcome)] if row["rules"] == schema.RULES else []),
        ("steps", len(record.rows)),
    ):
        if now != row[name]:
            differences.append(f"{name} was {row[name]} and is {now}")
    for what, before, after in pairs:
        if len(before) != len(after):
            differences.append(f"{what} had {len(before)} values and has {len(after)}")
        elif exact and not np.array_equal(before, after, equal_nan=True):
            differences.append(
                f"{what} has other bits, {apart(before, after):.2g} away relative to its "
                f"largest value"
            )
        elif not exact and (gap := apart(before, after)) > TOLERANCE[str(row["dtype"])]:
            differences.append(f"{what} is {gap:.2g} away relative to its largest value")
    return differences


def _pairs(store: Store, row: dict[str, Any], record: Record, *, exact: bool) -> list[Pair]:
    """What is compared: the first and last loss, the curve if it is stored, and the validation
    losses.
    """
    losses = record.rows[:, measures.LOSS]
    ends = np.array([row["initial_loss"], row["final_loss"]], dtype=float)
    pairs = [("first and last loss", ends, losses[[0, -1]])]
    curve = (
        store.read("curves")
        .query("cell == @cell", local_dict={"cell": row["cell"]})
        .sort_values("step")
    )
    if len(curve):
        pairs += [
            (
                f"{CURVE}'s {measure.name}",
                curve[measure.name].to_numpy(float, na_value=np.nan),
                record.rows[:, number],
            )
            for number, measure in enumerate(measures.MEASURES)
            if _is_stored(curve, measure.name) and (exact or not measure.counts)
        ]
    evals = store.read("evals").query(
        "cell == @cell and split == 'validation' and metric == 'loss'",
        local_dict={"cell": row["cell"]},
    )
    now = [
        one.value for one in record.evaluations if (one.split, one.metric) == ("validation", "loss")
    ]
    pairs.append(
        (
            "the validation loss",
            evals.sort_values("step")["value"].to_numpy(float),
            np.array(now, dtype=float),
        )
    )
    return pairs


def _is_stored(curve: Any, name: str) -> bool:
    """Whether the curve has this column: one that came into the format later is null in older
    rows, or absent.
    """
    later = {column.name for column in schema.TABLES["curves"] if column.later}
    return name in curve and not (name in later and curve[name].isna().all())


def _what_matches(row: dict[str, Any], pairs: Sequence[Pair]) -> str:
    kept = next((len(stored) for what, stored, _ in pairs if what.startswith(CURVE)), 0)
    curve = (
        f"the {kept} steps of its curve"
        if kept
        else "its first and last loss (the curve was not kept)"
    )
    if row["rules"] == schema.RULES:
        return f"{curve}, its validation losses, its status and its outcome"
    return f"{curve}, its validation losses and its status (other rules judged its outcome)"
