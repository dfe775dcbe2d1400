"""The folder that holds the results of cells: atomic, checksummed, resumable.

``study.toml``, ``environment.json``, ``components.json``, ``calibration.json`` and ``plan.json``,
whose hashes lie in ``pages.json``; then a folder per table with immutable Parquet files. A file's
name ends in a prefix of its own SHA-256. The shard's ``cells`` file is written last and names its
companions: it is the commit. A reader ignores what no commit names; and if several commits hold a
cell, only the commit that won it counts, in every table.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipbench import schema
from clipbench.errors import UsageError
from clipbench.store import remarks, tidy, verify
from clipbench.store.commits import COMMITS, CONTEXT, SHARD_TABLES
from clipbench.store.files import TEMPORARY, Row, replace_text, write_table
from clipbench.store.pages import CURVES, LIST, PAGES, STUDY, context, keeps_curve, watched_page
from clipbench.store.reading import Contents, cells_of

__all__ = [
    "CURVES",
    "PAGES",
    "SHARD_TABLES",
    "STUDY",
    "TEMPORARY",
    "Store",
    "cells_of",
    "keeps_curve",
    "set_old_aside",
    "watched_page",
]


class Store(Contents):
    """One study's results. Open an existing folder with ``Store(folder)``, make one with
    ``Store.create``.
    """

    @classmethod
    def create(cls, folder: Path | str, name: str, study: str) -> Store:
        """The store of the study ``name`` in ``folder``, made if it is absent; an edited study
        replaces the stored page.

        :raises UsageError: the folder holds another study, or is no results folder.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: this is a file; `--out` names a folder.")
        ours = (folder / STUDY).is_file() or (folder / LIST).is_file()
        if (
            not ours
            and folder.is_dir()
            and any(not path.name.startswith(TEMPORARY) for path in folder.iterdir())
        ):
            raise UsageError(
                f"{folder}: this folder is not empty and holds no study; choose an empty one "
                f"with --out."
            )
        folder.mkdir(parents=True, exist_ok=True)
        # first of all: with it a folder that was begun and not finished is known as ours
        if not (folder / STUDY).is_file():
            replace_text(folder / STUDY, study)
        store = cls(folder)
        held = store.held
        if held is not None and held != name:
            raise UsageError(
                f'{folder}: this folder holds the study "{held}", not "{name}"; choose another '
                f"with --out."
            )
        for table in schema.TABLES:
            if (folder / table).is_symlink():
                raise UsageError(
                    f"{folder / table}: this is a link, and results are written into real "
                    f"folders only."
                )
            (folder / table).mkdir(exist_ok=True)
        if not (folder / "environment.json").exists() and held is None and not store.commits:
            store.write_page("environment", {"study": name, "environments": {}})
            store.pages.adopt()
        damage = store.pages.damage()
        if damage or store.study != study:
            with store.claim():  # not while another process runs the old page
                if STUDY in damage:
                    store.pages.put_aside(STUDY)
                    store.mended.append(f"{STUDY} {damage[STUDY]}; written anew")
                store.pages.write_text(STUDY, study)
                store.mended += tidy.mend(store, name)
        return store

    # ---------------------------------------------------------------------------------------- pages

    def write_page(self, name: str, page: Mapping[str, Any]) -> None:
        """Replace one of the JSON pages, atomically, if it changed."""
        self.pages.write(name, page)

    # -------------------------------------------------------------------------------------- writing

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the folder for writing. The claim dies with its process, however that ends.

        :raises UsageError: a live process holds it.
        """
        path = self.folder / ".claim"
        # A pipe or a link in its place is neither waited for nor followed.
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644
        )
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(f"{path}: this is no regular file; remove it.")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise UsageError(
                f"{self.folder}: another run is filling this folder; wait for it, or choose "
                f"another with --out."
            ) from None
        finally:
            os.close(descriptor)

    @property
    def claimed(self) -> bool:
        """Whether a live process holds the folder for writing."""
        try:
            descriptor = os.open(
                self.folder / ".claim", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except OSError:  # nobody ever held it
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def commit(self, shard: str, tables: Mapping[str, Any]) -> None:
        """Write one shard, its tables as `Rows`. The file of ``cells`` comes last: until then
        nothing of the shard counts.
        """
        pages = {name: self.page(name) for name in ("environment", "components", "calibration")}
        companions = {
            table: write_table(self.folder / table, table, shard, tables[table], {}).name
            for table in SHARD_TABLES
            if tables.get(table)
        }
        about = context(pages, list(tables["cells"]))
        metadata = {
            COMMITS: json.dumps(companions).encode(),
            CONTEXT: json.dumps(about, sort_keys=True).encode(),
        }
        write_table(self.folder / "cells", "cells", shard, tables["cells"], metadata)

    def add_throughput(self, rows: Sequence[Row]) -> None:
        """Write one file of timings; they belong to no cell, so that the file is its own commit."""
        write_table(self.folder / "throughput", "throughput", "timing", rows, {})

    def sweep(self) -> list[str]:
        """Sentences on what is moved here. Under a claim: mend pages, move damage to ``aside``,
        remove what no commit names.
        """
        return tidy.sweep(self)

    def compact(self, curves: str | None = None) -> None:
        """Under a claim: one file a table in place of many, with the rows that count.

        :param curves: whose curves are kept from now on: all, report, first, none; those kept
            already if not given.
        """
        tidy.compact(self, curves)

    # ------------------------------------------------------------------------------------ verifying

    def problems(self) -> list[str]:
        """Every broken promise of the store, a sentence each; empty if there is none."""
        return verify.problems(self)

    def missing(self) -> list[str]:
        """What the study asks for and the folder lacks, a sentence each; empty if it is
        finished.
        """
        return [] if self.watched else verify.missing(self)

    def remarks(self) -> list[str]:
        """What a reader should know although no promise is broken, a sentence each."""
        return [] if self.watched else remarks.remarks(self)


def set_old_aside(folder: Path) -> Path | None:
    """The path ``NAME.old-N`` that an existing results folder is renamed to, for ``--anew``; None
    if there is no such folder.

    :raises UsageError: it cannot be renamed, as a mounted folder cannot: then nothing of it is
        touched.
    """
    if not os.path.lexists(folder):
        return None
    number = 1
    while os.path.lexists(target := folder.with_name(f"{folder.name}.old-{number}")):
        number += 1
    try:
        os.rename(folder, target)
    except OSError as error:
        raise UsageError(
            f"{folder}: this folder cannot be renamed to {target.name} ({error.strerror}), and "
            "nothing in it was touched; move its content yourself, or choose another folder with "
            "--out."
        ) from None
    return target
