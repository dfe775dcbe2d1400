"""A results folder in forms that other programs read: CSV, lines of JSON, event files of
TensorBoard.

It changes nothing in the folder's tables, and must know neither what they mean nor how they are
drawn.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipbench import schema
from clipbench.errors import UsageError
from clipbench.store import Store
from clipbench.task import Task, Threshold, labels

ROWS = 50_000  # at a time: all curves of a study need not fit into memory twice
CURVES = [column.name for column in schema.TABLES["curves"] if column.name not in ("cell", "step")]
UNFIT = re.compile(r"[^\w.,=+()-]+")  # in the name of a folder


def export(store: Store, kind: str, folder: Path) -> list[Path]:
    """The files written: every table of a store, as one of `KINDS`, into a new folder.

    :raises UsageError: the folder is there already, or TensorBoard is wanted and not installed.
    """
    refuse_missing(kind)
    if os.path.lexists(folder):
        raise UsageError(
            f"{folder}: this is there already; choose another folder with --out, or rename this "
            f"one with --anew."
        )
    with _whole(folder) as new:
        KINDS[kind](store, new)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refuse_missing(kind: str) -> None:
    """Refuse a form that needs a package which is not installed.

    :raises UsageError: it does.
    """
    if kind == "tensorboard" and find_spec("tensorboard") is None:
        raise UsageError(
            "--to tensorboard needs the package tensorboard, which is not installed; "
            "`pip install 'clipbench[tensorboard]'` installs it."
        )


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one, which takes its name if all has been written, and else
    goes.
    """
    new = folder.with_name(f".{folder.name}-{os.getpid()}")
    new.mkdir(parents=True)
    try:
        yield new
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _csv(store: Store, folder: Path) -> None:
    """A file a table; nothing stands for an absent value, NaN and inf are written out."""
    for table in schema.TABLES:
        rows = store.arrow(table)
        with (folder / f"{table}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(rows.column_names)
            for some in rows.to_batches(max_chunksize=ROWS):
                writer.writerows(zip(*some.to_pydict().values(), strict=True))


def _json(store: Store, folder: Path) -> None:
    """A file a table, an object a line. JSON has no NaN and no infinity: they are null, as is an
    absent value.
    """
    for table in schema.TABLES:
        with (folder / f"{table}.jsonl").open("w", encoding="utf-8") as file:
            for some in store.arrow(table).to_batches(max_chunksize=ROWS):
                for row in some.to_pylist():
                    clean = {name: _finite(value) for name, value in row.items()}
                    file.write(f"{json.dumps(clean, ensure_ascii=False, allow_nan=False)}\n")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tensorboard(store: Store, folder: Path) -> None:
    """A run a cell that has a curve or an evaluation: its curve, its evaluations by split, and its
    events as text.
    """
    from torch.utils.tensorboard import SummaryWriter

    cells = store.read("cells")
    tasks = labels({Task.of(row): None for row in cells.to_dict("records")})
    tables = {
        name: dict(iter(store.read(name).groupby("cell"))) for name in ("curves", "evals", "events")
    }
    for row in cells.to_dict("records"):
        mine = {
            name: frames[row["cell"]] for name, frames in tables.items() if row["cell"] in frames
        }
        if not {"curves", "evals"} & mine.keys():
            continue
        when = datetime.fromisoformat(str(row["created"])).replace(tzinfo=UTC).timestamp()
        with SummaryWriter(str(folder / _run(row, tasks[Task.of(row)]))) as writer:
            for tag, value, step in _scalars(mine):
                writer.add_scalar(tag, value, step, walltime=when)
            for event in _records(mine, "events"):
                writer.add_text(
                    f"events/{event['kind']}", str(event["detail"]), event["step"], walltime=when
                )


def _scalars(mine: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    for row in _records(mine, "curves"):
        for name in CURVES:
            if isinstance(row[name], float):
                yield f"training/{name}", row[name], row["step"]
    for row in _records(mine, "evals"):
        if isinstance(row["value"], float):
            yield f"{row['split']}/{row['metric']}", row["value"], row["step"]


def _records(mine: Mapping[str, Any], table: str) -> list[dict[str, Any]]:
    return mine[table].to_dict("records") if table in mine else []


def _run(row: Mapping[str, Any], task: str) -> str:
    """The name of a cell's run: problem, arm, setting and seed as folders, so that they can be
    filtered by; the identity is part of it.
    """
    threshold = Threshold(*(_number(row[name]) for name in ("threshold", "relative", "percentile")))
    setting = f"lr={row['lr']:g}"
    if not threshold.absent:
        setting += f",{threshold.word or 'threshold'}={threshold.given:g}"
    parts = (task, str(row["arm"]), setting, f"seed={row['seed']},{row['cell']}")
    return "/".join(UNFIT.sub("_", part) for part in parts)


def _number(value: Any) -> float:
    return value if isinstance(value, float) else math.nan


KINDS: dict[str, Callable[[Store, Path], None]] = {
    "csv": _csv,
    "json": _json,
    "tensorboard": _tensorboard,
}
