"""Order in a results folder: before a run, pages are mended and damage is set aside; after it, many
files become one.

Only files of clipbench that no longer count are removed; everything else that is in the way moves
to ``aside``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipbench import measures, summary
from clipbench.schema import Status
from clipbench.store.commits import (
    COMMITS,
    CONTEXT,
    PACKED,
    REPLACES,
    SHARD_TABLES,
    Commit,
    shard_of,
)
from clipbench.store.files import (
    DIGITS,
    TEMPORARY,
    Damaged,
    grouped,
    outer_damage,
    set_aside,
    table_of,
    write_groups,
)
from clipbench.store.pages import CURVES, LIST, STUDY, context, keeps_curve, merged, rebuilt
from clipbench.store.reading import Contents, timings

WHOLE = "whole"  # the shard that holds everything
OURS = re.compile(rf"[a-z]+(-\d+)?-[0-9a-f]{{{DIGITS}}}\.parquet")
TABLES = (*SHARD_TABLES, "cells", "throughput")


def sweep(store: Contents) -> list[str]:
    """A sentence on each thing that is moved or rebuilt here; afterwards every file of the
    folder is sound and committed.
    """
    told = [*store.mended, *mend(store)]
    store.mended = []
    _remove_unfinished(store.folder)
    told += _sweep_commits(store)
    told += _sweep_timings(store)
    return told


# -------------------------------------------------------------------------------------------- pages


def mend(store: Contents, study: str | None = None) -> list[str]:
    """A sentence on each damaged page, which is set aside and rebuilt from the commits;
    `Store.create` mends the study's page.

    :param study: the name of the folder's study, for a folder whose commits do not tell it.
    """
    broken = {file: why for file, why in store.pages.damage().items() if file != STUDY}
    known, rows = (
        merged([one.context for one in store.commits]),
        store.arrow("cells").select(["environment"]).to_pylist(),
    )
    if LIST in broken:
        store.pages.put_aside(LIST)
    broken |= {
        file: "does not agree with the commits"
        for file in store.pages.unlisted()
        if _disagrees(store, file, known, broken)
    }
    told = []
    for file, why in broken.items():
        how = "written anew"
        if file != LIST:
            store.pages.put_aside(file)
            page = rebuilt(file.removesuffix(".json"), known, rows)
            if file == "environment.json" and study is not None:
                page.setdefault("study", study)
            store.pages.write(file.removesuffix(".json"), page)
            how = _how(file, known, rows)
        told.append(f"{file} {why}; {how}")
    store.pages.adopt()
    return told


def _disagrees(
    store: Contents, file: str, known: Mapping[str, Any], broken: Mapping[str, str]
) -> bool:
    """Whether a page without a hash contradicts the commits."""
    if file in broken or file == STUDY:
        return False
    name = file.removesuffix(".json")
    page = store.pages.read(name)
    if name == "environment":
        return _differs(page.get("environments", {}), known["environments"])
    if name == "components":
        return any(_differs(page.get(kind, {}), one) for kind, one in known["components"].items())
    if name == "calibration":
        return any(
            _differs(page.get("pilots", {}).get(key, {}), sizes)
            for key, sizes in known["pilots"].items()
        )
    return False


def _differs(page: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    return any(page.get(key) != value for key, value in known.items())


def _how(file: str, known: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> str:
    if file == "plan.json":
        return "the run plans anew"
    if known["schema"] == "1.0" and list(rows):
        return "it is rebuilt, and what it told of cells from before format 2 is lost"
    return "rebuilt from the commits"


# -------------------------------------------------------------------------------------------- files


def _remove_unfinished(folder: Path) -> None:
    for path in [
        *folder.glob(f"{TEMPORARY}*"),
        *(path for table in TABLES for path in (folder / table).glob(f"{TEMPORARY}*")),
    ]:
        if path.is_dir() and not path.is_symlink():
            set_aside(path, folder / "aside")
        else:
            path.unlink()


def _sweep_commits(store: Contents) -> list[str]:
    reader, kept, shards = store.reader, set[Path](), set[str]()
    sound, bad = reader.all_commits(store.held)
    moved = dict(bad)
    for name in bad:
        shards.add(shard_of(Path(name)))
    damage = {path: why for one in sound for path in one.beside if (why := outer_damage(path))}
    whole = [one for one in sound if not damage.keys() & set(one.beside)]
    for one in sound:
        if one not in whole:
            moved |= {
                f"{path.parent.name}/{path.name}": damage[path]
                for path in one.beside
                if path in damage
            }
            shards.add(one.shard)
    counted = reader.counted(_once(whole))
    kept = {path for one in counted for path in (one.path, *one.beside)}
    for one in whole:
        if one not in counted:
            one.path.unlink()  # every row of it stands elsewhere
    # the commit last: if it goes first and we die, the rest looks left over
    for table in (*SHARD_TABLES, "cells"):
        for path in reader.files(table):
            name = f"{table}/{path.name}"
            if path in kept:
                continue
            if name in moved or shard_of(path) in shards:
                _put_aside(store, path)
            elif _is_left_over(path):
                path.unlink()
            else:
                moved[name] = "belongs to no shard"
                _put_aside(store, path)
    return [f"{name}: {why}" for name, why in moved.items()]


def _once(commits: Iterable[Commit]) -> list[Commit]:
    """The commits without copies, which have the same hash and may have other names."""
    return list(
        {one.path.stem.rpartition("-")[2]: one for one in reversed(list(commits))}.values()
    )[::-1]


def _is_left_over(path: Path) -> bool:
    """Whether a file is one of clipbench's that was written whole, and whose commit was never
    written.
    """
    return bool(OURS.fullmatch(path.name)) and not path.is_symlink() and outer_damage(path) is None


def _sweep_timings(store: Contents) -> list[str]:
    told, sound = [], []
    for path in store.reader.files("throughput"):
        try:
            sound.append((path, table_of(path, "throughput")))
        except Damaged as wrong:
            told.append(f"throughput/{path.name}: {wrong}")
            _put_aside(store, path)
    counted = {path.stem.rpartition("-")[2]: path for path, _ in reversed(timings(sound))}
    for path, _ in sound:
        if path not in counted.values():
            path.unlink()  # a copy, or replaced
    return told


def _put_aside(store: Contents, path: Path) -> None:
    set_aside(path, store.folder / "aside" / path.parent.name)


# --------------------------------------------------------------------------------------- compaction


def compact(store: Contents, curves: str | None = None) -> None:
    """Make one file a table. The new ``cells`` file is the commit and names what it replaces: the
    old files no longer count.

    :param curves: whose curves are kept from now on, of `CURVES`; those that are kept already if
        not given.
    """
    commits, before = store.commits, store.page("environment").get("curves", "all")
    kept = max(before, curves or before, key=CURVES.index)
    cells = store.arrow("cells")
    store.bad |= {
        f"{path.parent.name}/{path.name}": why
        for one in commits
        for path in one.beside
        if (why := outer_damage(path))
    }
    if store.bad:
        return
    if kept != before:  # first: a folder may hold more than it promises
        store.pages.write("environment", {**store.page("environment"), "curves": kept})
    with suppress(Damaged):  # in what no hash tells: then all stays as it is
        if (
            len(commits) > 1
            or not all(won.all() for won in store.reader.winners(commits))
            or not _is_packed(store, commits, cells, kept)
        ):
            _make_whole(store, commits, cells, kept)
    _compact_timings(store)


def _is_packed(store: Contents, commits: Sequence[Commit], cells: pa.Table, kept: str) -> bool:
    """Whether the curves of one commit at most are those that are kept, as they are kept; a commit
    that was made here says so, and files do not change.
    """
    if all((one.rows.schema.metadata or {}).get(PACKED) == kept.encode() for one in commits):
        return True
    curves = store.reader.pieces("curves", commits)
    return all(_alike(_of_kept(some, cells, kept), some) for some in curves)


def _of_kept(curves: pa.Table, of: pa.Table, kept: str) -> pa.Table:
    """Of some rows of ``curves`` those of the cells whose curve is kept, in the precision of their
    runs: older folders have them in float64.

    :param of: the rows of ``cells``.
    """
    own = pc.unique(curves["cell"].combine_chunks())
    mine = of.select(["cell", "role", "status", "seed", "dtype"])
    rows = mine.filter(pc.is_in(mine["cell"], value_set=own)).to_pylist()
    cells = [
        row["cell"]
        for row in rows
        if keeps_curve({"curves": kept}, row["role"], row["status"], row["seed"])
    ]
    exact = pa.array([row["cell"] for row in rows if row["dtype"] == "float64"], pa.string())
    # a million names are looked at only if some are of the others
    if len(cells) < len(own):
        curves = curves.filter(pc.is_in(curves["cell"], value_set=pa.array(cells, pa.string())))
    whole = pc.is_in(curves["cell"], value_set=exact) if len(exact) else pa.scalar(False)
    for number, name in enumerate(curves.column_names):
        if name in measures.COLUMNS:
            rounded = summary.as_stored(curves[name].to_numpy(), "float32")
            absent = curves[name].is_null().to_numpy()  # in rows that are older than the measure
            curves = curves.set_column(
                number, name, pc.if_else(whole, curves[name], pa.array(rounded, mask=absent))
            )
    return curves


def _alike(curves: pa.Table, others: pa.Table) -> bool:
    """Whether two tables of curves are equal; NaN equals NaN here, which it does not in Arrow."""
    if len(curves) != len(others):
        return False
    return all(
        np.array_equal(curves[name].to_numpy(), others[name].to_numpy(), equal_nan=True)
        for name in measures.COLUMNS
    )


def _make_whole(store: Contents, commits: list[Commit], cells: pa.Table, kept: str) -> None:
    companions = {}
    for name in SHARD_TABLES:
        pieces = store.reader.pieces(name, commits)
        if name == "curves":
            pieces = (_of_kept(some, cells, kept) for some in pieces)
        groups = grouped(pieces)
        if (first := next(groups, None)) is not None:
            companions[name] = _write(store, name, chain([first], groups), {}).name
    pages = {name: store.page(name) for name in ("environment", "components", "calibration")}
    about = context(pages, cells.select(["problem", "arm", "environment"]).to_pylist())
    # by whose rules the oldest rows were judged
    about["schema"] = merged([one.context for one in commits])["schema"]
    metadata = {
        COMMITS: json.dumps(companions).encode(),
        CONTEXT: json.dumps(about, sort_keys=True).encode(),
        REPLACES: json.dumps([one.path.name for one in commits]).encode(),
        PACKED: kept.encode(),
    }
    whole = _write(store, "cells", [cells], metadata)
    _drop(
        store, commits, {whole, *(store.folder / name / file for name, file in companions.items())}
    )


def _write(
    store: Contents, table: str, groups: Iterable[pa.Table], metadata: Mapping[bytes, bytes]
) -> Path:
    return write_groups(store.folder / table, table, WHOLE, groups, metadata)


def _drop(store: Contents, commits: list[Commit], new: set[Path]) -> None:
    """Remove what was replaced. If a commit has results that another one beat, its files are
    moved aside.
    """
    for one, won in zip(commits, store.reader.winners(commits), strict=True):
        lost = one.rows.filter(pa.array(~won))
        beaten = pc.any(pc.not_equal(lost["status"], Status.FAILED)).as_py()
        for path in (one.path, *one.beside):
            if path in new:
                continue
            if beaten:
                _put_aside(store, path)
            else:
                path.unlink(missing_ok=True)


def _compact_timings(store: Contents) -> None:
    rows, bad = store.reader.throughput()
    files = store.reader.files("throughput")
    if bad or len(files) < 2:
        return
    whole = _write(
        store, "throughput", [rows], {REPLACES: json.dumps([path.name for path in files]).encode()}
    )
    for path in files:
        if path != whole:
            path.unlink()
