"""The folder that holds what the cells did: atomic, checksummed, resumable.

``study.toml``, ``environment.json``, ``components.json``, ``calibration.json`` and ``plan.json``, then a folder per table with one
immutable Parquet file per shard. A file's name ends in a prefix of its own SHA-256. The shard's ``cells`` file is written last and
names its companions: it is the commit. What no commit names does not exist, for a reader.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipbench import schema
from clipbench.cell import identity
from clipbench.registry import UsageError

COMMITS = b"clipbench.commits"
PAGES = ("environment", "components", "calibration", "plan")
SHARD_TABLES = ("curves", "evals", "events")
TEMPORARY = ".writing-"
DIGITS = 12

Row = Mapping[str, Any]
Rows = Sequence[Row] | Mapping[str, Any]


class Store:
    """One study's results. Open an existing folder with ``Store(folder)``, make one with ``Store.create``."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / "study.toml").is_file():
            raise UsageError(f"{self.folder}: this is no results folder (it has no study.toml); `clipbench run` makes one.")
        self.bad: dict[str, str] = {}

    @classmethod
    def create(cls, folder: Path | str, name: str, study: str) -> Store:
        """The store of the study ``name`` in ``folder``, made where it is absent; an edited study replaces the stored page.

        :raises UsageError: the folder holds another study, or is no results folder.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: this is a file; `--out` names a folder.")
        if (folder / "study.toml").is_file():
            held = cls(folder).page("environment").get("study")
            if held is not None and held != name:
                raise UsageError(f'{folder}: this folder holds the study "{held}", not "{name}"; choose another with --out.')
        elif folder.is_dir() and any(not path.name.startswith(TEMPORARY) for path in folder.iterdir()):
            raise UsageError(f"{folder}: this folder is not empty and holds no study; choose an empty one with --out.")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "study.toml").is_file():  # first of all: with it a folder that was begun and not finished is known as ours
            _replace_text(folder / "study.toml", study)
        store = cls(folder)
        for table in schema.TABLES:
            (folder / table).mkdir(exist_ok=True)
        if not (folder / "environment.json").exists():
            store.write_page("environment", {"study": name, "environments": {}})
        if store.study != study:
            with store.claim():  # not under the hands of a run of the page as it was
                _replace_text(folder / "study.toml", study)
        return store

    # ------------------------------------------------------------------------------------------------------------- pages

    def page(self, name: str) -> dict[str, Any]:
        """One of the JSON pages, empty where it was never written.

        :raises UsageError: the page is not JSON.
        """
        path = self.folder / f"{name}.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path}: this page is damaged ({error}); restore it, or run with --anew.") from None

    def write_page(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace one of the JSON pages, atomically, where it changed."""
        path, text = self.folder / f"{name}.json", _json(content)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            _replace_text(path, text)

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.page("environment").get("study", self.folder.name))

    @property
    def study(self) -> str:
        """The study's page, as it was last run."""
        return (self.folder / "study.toml").read_text(encoding="utf-8")

    @property
    def study_hash(self) -> str:
        """The first 8 hex digits of SHA-256 over the study's page, as every figure names it."""
        return hashlib.sha256(self.study.encode()).hexdigest()[:8]

    # ----------------------------------------------------------------------------------------------------------- writing

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the folder for writing. The claim dies with its process, however that ends.

        :raises UsageError: a live process holds it.
        """
        path = self.folder / ".claim"
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{self.folder}: another run is filling this folder; wait for it, or choose another with --out."
                ) from None
            yield

    def commit(self, shard: str, tables: Mapping[str, Rows]) -> None:
        """Write one shard, its tables as rows or as columns. ``cells`` come last: until then nothing of the shard counts."""
        companions = {table: self._write(table, shard, tables[table]) for table in SHARD_TABLES if tables.get(table)}
        self._write("cells", shard, tables["cells"], {COMMITS: json.dumps(companions).encode()})

    def add_throughput(self, rows: Sequence[Row]) -> None:
        """Write one file of timings; they belong to no cell, so that the file is its own commit."""
        self._write("throughput", "timing", rows)

    def _write(self, table: str, shard: str, rows: Rows, extra: Mapping[bytes, bytes] | None = None) -> str:
        fields = schema.arrow(table)
        arrow = pa.Table.from_pydict(dict(rows), fields) if isinstance(rows, Mapping) else pa.Table.from_pylist(list(rows), fields)
        arrow = arrow.replace_schema_metadata(dict(extra or {}))
        folder = self.folder / table
        temporary = folder / f"{TEMPORARY}{shard}-{os.getpid()}"
        floats = [column.name for column in schema.TABLES[table] if column.type == schema.FLOAT] if table == "curves" else []
        try:
            with temporary.open("wb") as file:
                pq.write_table(
                    arrow,
                    file,
                    compression="zstd",
                    write_page_checksum=True,
                    use_dictionary=[column.name for column in schema.TABLES[table] if column.name not in floats],
                    use_byte_stream_split=floats or False,
                )
                file.flush()
                os.fsync(file.fileno())
            if pq.read_metadata(temporary).num_rows != arrow.num_rows:
                raise OSError(f"{temporary}: the file written does not read back")
            final = folder / f"{shard}-{_digest(temporary)}.parquet"
            os.replace(temporary, final)
            _sync_folder(folder)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        return final.name

    def sweep(self) -> list[str]:
        """Under a claim: remove what no commit names, and move shards with a damaged file to ``aside``; says what was moved."""
        named: set[Path] = set()
        moved: list[str] = []
        broken: list[str] = []
        for file in self._files("cells"):
            companions = self._companions(file)
            shard = [file, *companions]
            damaged = [path for path in shard if self._damage(path)]
            if damaged:
                broken.append(file.stem.rpartition("-")[0])
                moved += [f"{path.parent.name}/{path.name}: {self._damage(path)}" for path in damaged]
                self._set_aside(path for path in shard if path.exists())
            else:
                named.update(companions)
        for table in (*SHARD_TABLES, "cells", "throughput"):
            for path in (self.folder / table).glob(f"{TEMPORARY}*"):
                path.unlink()
        for table in SHARD_TABLES:
            for path in self._files(table):
                if path not in named and path.stem.rpartition("-")[0] in broken:
                    self._set_aside([path])  # its commit was there, and can no longer say so
                elif path not in named:
                    path.unlink()
        for path in self._files("throughput"):
            if self._damage(path):
                moved.append(f"throughput/{path.name}: {self._damage(path)}")
                self._set_aside([path])
        return moved

    def _set_aside(self, paths: Iterator[Path] | Sequence[Path]) -> None:
        for path in paths:
            target = self.folder / "aside" / path.parent.name
            target.mkdir(parents=True, exist_ok=True)
            os.replace(path, target / path.name)

    # ----------------------------------------------------------------------------------------------------------- reading

    def read(self, table: str) -> pd.DataFrame:
        """One table, in Arrow types (null and NaN stay apart). Damaged files are left out and named in ``bad``.

        A cell that was tried again is there once, with its highest attempt.
        """
        if table == "throughput":
            return self._frame(table, self._files(table))
        commits = self._files("cells")
        if table == "cells":
            cells = self._frame(table, commits)
            return (
                cells.sort_values("attempt", kind="stable").drop_duplicates("cell", keep="last").sort_index().reset_index(drop=True)
            )
        paths: list[Path] = []
        for file in commits:
            if damage := self._damage(file):
                self.bad[f"cells/{file.name}"] = damage  # what commits nothing has no companions either
            else:
                paths += [path for path in self._companions(file) if path.parent.name == table]
        return self._frame(table, paths)

    def _frame(self, table: str, paths: Sequence[Path]) -> pd.DataFrame:
        tables = [schema.arrow(table).empty_table()]
        for path in paths:
            damage = self._damage(path)
            if damage:
                self.bad[f"{table}/{path.name}"] = damage
            else:
                tables.append(_fitted(path, table))
        return pa.concat_tables(tables).to_pandas(types_mapper=pd.ArrowDtype)

    def _files(self, table: str) -> list[Path]:
        return sorted((self.folder / table).glob("[!.]*.parquet"))

    def _companions(self, commit: Path) -> list[Path]:
        try:
            metadata = pq.read_schema(commit).metadata or {}
            named = json.loads(metadata[COMMITS])
            return [self.folder / table / Path(name).name for table, name in sorted(named.items()) if table in SHARD_TABLES]
        except (OSError, pa.ArrowException, KeyError, ValueError):
            return []  # the commit itself is damaged; who reads it finds out

    def _damage(self, path: Path) -> str | None:
        """What is wrong with a file, or None. Its hash covers every byte, the footer too."""
        if not path.is_file():
            return "is missing"
        if _digest(path) != path.stem.rpartition("-")[2]:
            return "does not match the hash in its name"
        try:
            _read(path)
        except (OSError, pa.ArrowException) as error:
            return f"cannot be read ({error})"
        return None

    # --------------------------------------------------------------------------------------------------------- verifying

    def problems(self) -> list[str]:
        """Every broken promise of the store, a sentence each; empty where all is well."""
        found: list[str] = []
        for name in PAGES:
            try:
                if not self.page(name):
                    found.append(f"{name}.json is missing or empty")
            except UsageError as error:
                found.append(str(error))
        if found:
            return found
        named: set[Path] = set()
        for file in self._files("cells"):
            damage = self._damage(file)
            if damage:
                found.append(f"cells/{file.name} {damage}")
                continue
            companions = self._companions(file)
            named.update(companions)
            found += [f"{path.parent.name}/{path.name} {damage}" for path in companions if (damage := self._damage(path))]
        for file in self._files("throughput"):
            if damage := self._damage(file):
                found.append(f"throughput/{file.name} {damage}")
        for table in (*SHARD_TABLES, "cells", "throughput"):
            found += [f"{table}/{path.name} is an unfinished write" for path in sorted((self.folder / table).glob(f"{TEMPORARY}*"))]
        for table in SHARD_TABLES:
            found += [f"{table}/{path.name} belongs to no shard" for path in self._files(table) if path not in named]
        return found + self._row_problems()

    def _row_problems(self) -> list[str]:
        cells, environment, plan = self.read("cells"), self.page("environment"), self.page("plan")
        found: list[str] = []
        stored = set(cells["cell"])
        found += [f"the {phase} phase has not run" for phase in plan.get("phases", ()) if phase not in plan.get("cells", {})]
        for phase, asked in plan.get("cells", {}).items():
            missing = [cell for cell in asked if cell not in stored]
            if missing:
                found.append(f"{len(missing)} of the {len(asked)} {phase} cells are missing, {missing[0]} first")
        evaluated = set(self.read("evals")["cell"])
        curves = self.read("curves").groupby("cell")["step"].agg(["size", "min", "max"])
        spans = dict(zip(curves.index, curves.itertuples(index=False, name=None), strict=True))
        for row in cells.astype(object).where(cells.notna(), None).itertuples():  # pandas' NA cannot be asked whether it is a word
            found += [
                f"cell {row.cell}: {broken}" for broken in _broken(row, environment, row.cell in evaluated, spans.get(row.cell))
            ]
        return found


def _broken(row: Any, environment: Mapping[str, Any], evaluated: bool, span: tuple[int, int, int] | None) -> Iterator[str]:
    """What is wrong with one row of ``cells``; ``span`` is its curve's size, first and last step, None where it has none."""
    if identity(row.settings) != row.cell:
        yield f"its settings hash to {identity(row.settings)}"
    if row.status not in schema.STATUSES or (row.status != "failed") != (row.outcome in schema.OUTCOMES):
        yield f"status {row.status} and outcome {row.outcome} do not go together"
    if row.environment not in environment["environments"]:
        yield f"its environment {row.environment} is not in environment.json"
    if row.status == "failed":
        yield f"it failed: {row.reason}"
        return
    if row.status == "diverged" and pd.isna(row.diverged_at):
        yield "it diverged, and nothing says at which step"
    if not evaluated:
        yield "no evaluation is stored"
    if span is not None and span != (row.steps, 0, row.steps - 1):
        yield f"its curve has {span[0]} steps from {span[1]} to {span[2]}, not {row.steps}"
    if span is None and keeps_curve(environment, row.role, row.status):
        yield "its curve is missing"


def keeps_curve(environment: Mapping[str, Any], role: str, status: str) -> bool:
    """Whether the store keeps the curve of such a cell: all of them, or of report and diverged cells only (``--curves report``)."""
    return environment.get("curves", "all") == "all" or role == "report" or status == "diverged"


def set_old_aside(folder: Path) -> Path | None:
    """Rename an existing results folder to ``NAME.old-N``, for ``--anew``; the new name, or None where there was none."""
    if not folder.exists():
        return None
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    shutil.move(folder, target)
    return target


def _read(path: Path) -> pa.Table:
    return pq.read_table(path, page_checksum_verification=True, memory_map=False, partitioning=None)


def _fitted(path: Path, table: str) -> pa.Table:
    """The file's rows in the table's own columns and types.

    :raises UsageError: they cannot be had from it.
    """
    wanted = schema.arrow(table)
    try:
        return _complete(_read(path), table).select(wanted.names).cast(wanted)
    except (pa.ArrowException, KeyError) as error:
        reason = str(error).strip("'\"")
        raise UsageError(f"{path}: this file is of another schema ({reason}).") from None


def _complete(found: pa.Table, table: str) -> pa.Table:
    """A file's rows with the columns that came later than the file."""
    for column in schema.TABLES[table]:
        if column.later and column.name not in found.column_names:
            found = found.append_column(column.name, pa.nulls(len(found), column.type))
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
