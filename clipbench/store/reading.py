"""The tables as readers see them: the rows that count, of the files that are sound."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from clipbench import schema
from clipbench.errors import UsageError
from clipbench.schema import Status
from clipbench.store import commits as commits_
from clipbench.store import files
from clipbench.store.commits import Commit, replaced_by
from clipbench.store.files import Damaged, State, pieces_of, table_of
from clipbench.store.pages import STUDY, Pages, merged, watched_page

Content = TypeVar("Content")
Bad = dict[str, str]  # TABLE/FILE → what is wrong with it


class Reader:
    """Reads the files of one folder. A ``cells`` file that has not changed since it was read is
    not read again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[Path, Any], tuple[State, Any]] = {}
        self._winners: tuple[list[Commit], list[np.ndarray]] = [], []

    def forget(self) -> None:
        """Take no file for sound because it was so before."""
        self._known.clear()
        files.forget()

    def commits(self, study: str | None) -> tuple[list[Commit], Bad]:
        """The sound commits of the folder without those that another one replaces, and the
        damaged ones.
        """
        commits, bad = self.all_commits(study)
        return self.counted(commits), bad

    def all_commits(self, study: str | None) -> tuple[list[Commit], Bad]:
        """The sound commits, and the damaged ones."""
        return self._each("cells", partial(commits_.read, study=study), study)

    def counted(self, commits: Sequence[Commit]) -> list[Commit]:
        """The commits without those that another one replaces: it names them, and has all their
        cells.
        """
        named = [(one.replaces, one) for one in commits if one.replaces]
        return [
            one
            for one in commits
            if not any(one.path.name in names and _holds(other, one) for names, other in named)
        ]

    def table(
        self,
        name: str,
        commits: Sequence[Commit],
        columns: Sequence[str] | None = None,
        cells: Sequence[str] | None = None,
    ) -> tuple[pa.Table, Bad]:
        """The rows of the cells that each commit won, and the damaged companions; ``columns`` and
        ``cells`` as `Contents.read` takes them, the column ``cell`` among them.
        """
        tables, bad = [schema.arrow(name).empty_table()], Bad()
        for commit, won in zip(commits, self.winners(commits), strict=True):
            mine = commit.rows.filter(pa.array(won))
            if cells is not None:
                mine = mine.filter(pc.is_in(mine["cell"], value_set=pa.array(cells, pa.string())))
            if name == "cells":
                tables.append(mine)
                continue
            own = mine["cell"].combine_chunks()
            for path in commit.companions.get(name, ()) if len(mine) else ():
                try:
                    rows = table_of(path, name, columns, None if cells is None else own.to_pylist())
                except Damaged as wrong:
                    bad[f"{name}/{path.name}"] = str(wrong)
                    continue
                counted = pc.is_in(rows["cell"], value_set=own)
                tables.append(rows if pc.all(counted).as_py() else rows.filter(counted))
        if columns is not None:
            tables = [table.select([*columns]) for table in tables]
        return pa.concat_tables([table.replace_schema_metadata(None) for table in tables]), bad

    def pieces(self, name: str, commits: Sequence[Commit]) -> Iterator[pa.Table]:
        """The rows of `table`, some of them at a time.

        :raises Damaged: a companion is.
        """
        for commit, won in zip(commits, self.winners(commits), strict=True):
            own = commit.rows.filter(pa.array(won))["cell"].combine_chunks()
            for path in commit.companions.get(name, ()) if len(own) else ():
                for rows in pieces_of(path, name):
                    counted = rows.filter(pc.is_in(rows["cell"], value_set=own))
                    yield counted.replace_schema_metadata(None)

    def winners(self, commits: Sequence[Commit]) -> list[np.ndarray]:
        """`winners` of these commits, worked out once for the same ones."""
        known, won = self._winners
        if len(known) != len(commits) or any(
            one is not other for one, other in zip(known, commits, strict=True)
        ):
            won = winners(commits)
            self._winners = list(commits), won
        return won

    def throughput(self) -> tuple[pa.Table, Bad]:
        """The timings, each file once under whatever name it lies there, and the damaged files."""
        tables, bad = self._each(
            "throughput", lambda path: (path, table_of(path, "throughput")), None
        )
        kept = {
            path.stem.rpartition("-")[2]: rows.replace_schema_metadata(None)
            for path, rows in timings(tables)
        }
        return pa.concat_tables(
            [schema.arrow("throughput").empty_table().replace_schema_metadata(None), *kept.values()]
        ), bad

    def files(self, table: str) -> list[Path]:
        """Everything in a table's folder with the name of one of its files, a pipe and a
        dangling link included.
        """
        return sorted((self.folder / table).glob("[!.]*.parquet"))

    def _each(
        self, table: str, read: Callable[[Path], Content], key: Any
    ) -> tuple[list[Content], Bad]:
        """What ``read`` makes of each file of a table, and the damaged ones; ``key`` is what a
        result also depends on.
        """
        contents, bad = [], Bad()
        for path in self.files(table):
            try:
                contents.append(self._once(path, read, key))
            except Damaged as wrong:
                bad[f"{table}/{path.name}"] = str(wrong)
        return contents, bad

    def _once(self, path: Path, read: Callable[[Path], Content], key: Any) -> Content:
        try:
            state = State.of(path.stat())
        except OSError:
            return read(path)  # which says what is wrong
        known = self._known.get((path, key))
        if known is None or known[0] != state or not state.settled:
            known = state, read(path)
            self._known[path, key] = known
        return known[1]


class Contents:
    """The contents of a results folder, to be read; `Store` writes them."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / STUDY).is_file():
            raise UsageError(
                f"{self.folder}: this is no results folder (it has no study.toml); `clipbench run` "
                f"makes one."
            )
        self.pages, self.reader = Pages(self.folder), Reader(self.folder)
        self.bad: Bad = {}
        self.mended: list[str] = []  # sentences on pages that were mended before the first sweep

    def page(self, name: str) -> dict[str, Any]:
        """One of the JSON pages, empty if it was never written.

        :raises UsageError: the page is damaged.
        """
        try:
            return self.pages.read(name)
        except Damaged as wrong:
            raise UsageError(
                f"{self.folder}/{name}.json: this page is damaged ({wrong}); `clipbench run` "
                f"mends it."
            ) from None

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.page("environment").get("study", self.folder.name))

    @property
    def held(self) -> str | None:
        """The name of the study that the folder holds, from the commits if the page is damaged;
        None if neither has it.
        """
        try:
            name = self.pages.read("environment").get("study")
        except Damaged:
            name = None
        return (
            name if name is not None else merged([one.context for one in self.commits]).get("study")
        )

    @property
    def watched(self) -> bool:
        """Whether it holds watched training loops, and no study."""
        return self.study == watched_page(self.name)

    def of_study(self) -> Self:
        """The same contents, if they are a study.

        :raises UsageError: it holds watched training loops.
        """
        if self.watched:
            raise UsageError(
                f"{self.folder}: this folder holds watched training loops, and no study; "
                f"`clipbench doctor` says what they show."
            )
        return self

    @property
    def replicas(self) -> dict[int, Path]:
        """Number → folder of the study's replicas, which lie in its own folder."""
        found = {}
        for folder in sorted(self.folder.glob("replica-*")):
            number = folder.name.removeprefix("replica-")
            if number.isdecimal() and (folder / STUDY).is_file():
                found[int(number)] = folder
        return found

    @property
    def files(self) -> frozenset[str]:
        """The names of the files by which rows come to count; anything stored since changes
        them.
        """
        tables = ("cells", "throughput")
        return frozenset(path.name for table in tables for path in self.reader.files(table))

    @property
    def format(self) -> str:
        """The oldest format of the folder's commits: some rows were measured and judged by its
        rules.
        """
        return str(merged([one.context for one in self.commits])["schema"])

    @property
    def study(self) -> str:
        """The study's page, as it was last run.

        :raises UsageError: the page is damaged.
        """
        try:
            return self.pages.study()
        except Damaged as wrong:
            raise UsageError(
                f"{self.folder}/study.toml: this page is damaged ({wrong}); `clipbench run STUDY` "
                f"mends it."
            ) from None

    @property
    def study_hash(self) -> str:
        """The first 8 hex digits of SHA-256 over the study's page, as every figure names it."""
        return hashlib.sha256(self.study.encode()).hexdigest()[:8]

    @property
    def commits(self) -> list[Commit]:
        """The sound commits, in the order of their names; what is damaged is named in ``bad``."""
        commits, bad = self.reader.commits(self._study_of_pages())
        self.bad |= bad
        return commits

    def _study_of_pages(self) -> str | None:
        try:
            return self.pages.read("environment").get("study")
        except Damaged:
            return None

    def read(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        cells: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """One table, in Arrow types (null and NaN stay apart). Damaged files are left out and named
        in ``bad``.

        A cell that was tried again is there once, with its highest attempt.

        :param columns: those that are wanted, in their order; all if not given.
        :param cells: the cells whose rows are wanted, of a table that has cells; all if not given.
            Of the large tables nothing else is taken apart.
        """
        return self.arrow(table, columns, cells).to_pandas(types_mapper=pd.ArrowDtype)

    def arrow(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        cells: Sequence[str] | None = None,
    ) -> pa.Table:
        """The same rows as `read` gives, as an Arrow table."""
        if table == "throughput":
            rows, bad = self.reader.throughput()
        else:
            needed = None if columns is None else list(dict.fromkeys([*columns, "cell"]))
            rows, bad = self.reader.table(table, self.commits, needed, cells)
        self.bad |= bad
        return rows if columns is None else rows.select([*columns])


def cells_of(stores: Sequence[Contents]) -> pd.DataFrame:
    """The stored cells of several folders, each cell once: the first folder that has it counts."""
    found = pd.concat([store.read("cells") for store in stores], ignore_index=True)
    return found.drop_duplicates("cell", ignore_index=True) if len(stores) > 1 else found


def winners(commits: Sequence[Commit]) -> list[np.ndarray]:
    """For each commit, which of its rows count: a cell's last attempt; of two such rows one that
    did not fail, else the newest.
    """
    if not commits:
        return []
    names = ["cell", "attempt", "status", "created"]
    every = pd.concat(
        [
            one.rows.select(names).to_pandas().assign(commit=number)
            for number, one in enumerate(commits)
        ]
    )
    every["row"] = np.arange(len(every))
    every["fine"] = every["status"] != Status.FAILED
    last = every.sort_values(["attempt", "fine", "created", "row"], kind="stable").drop_duplicates(
        "cell", keep="last"
    )
    won = np.zeros(len(every), dtype=bool)
    won[last["row"]] = True
    return np.split(won, np.cumsum([len(one.rows) for one in commits])[:-1])


def _holds(other: Commit, one: Commit) -> bool:
    return other is not one and bool(
        pc.all(pc.is_in(one.rows["cell"], value_set=other.rows["cell"].combine_chunks())).as_py()
    )


def timings(tables: Sequence[tuple[Path, pa.Table]]) -> list[tuple[Path, pa.Table]]:
    """The files of timings without those that another one replaces: it names them, and has no
    fewer rows.
    """
    named = [(replaced_by(rows), path, len(rows)) for path, rows in tables]
    return [
        (path, rows)
        for path, rows in tables
        if not any(
            path.name in names and path != other and len(rows) <= size
            for names, other, size in named
        )
    ]
