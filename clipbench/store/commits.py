"""Commits: the ``cells`` files, each of which names the other files of its shard, and holds the
context of its rows.

If a commit is damaged, none of its files counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipbench import schema
from clipbench.errors import UsageError
from clipbench.store.files import Damaged, table_of

COMMITS = b"clipbench.commits"  # table → name of the file that belongs to the shard, or names
CONTEXT = b"clipbench.context"  # what the pages say of these rows
REPLACES = b"clipbench.replaces"  # names of the files whose rows this one holds
PACKED = b"clipbench.packed"  # whose curves its folder kept when it was made of all others
SHARD_TABLES = ("curves", "evals", "events")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.parquet")


@dataclass(frozen=True)
class Commit:
    """One sound ``cells`` file: its rows, its companions by table (several of the curve of a loop
    that was watched block by block), what it replaces, and its part of the pages.

    ``context`` is empty in a file from before it was written: it has ``schema``, ``study``,
    ``environments``, ``components``, ``pilots`` and ``curves``.
    """

    path: Path
    rows: pa.Table
    companions: Mapping[str, Sequence[Path]]
    replaces: frozenset[str] = frozenset()
    context: Mapping[str, Any] = field(default_factory=dict)

    @property
    def beside(self) -> list[Path]:
        """The companions' files."""
        return [path for paths in self.companions.values() for path in paths]

    @property
    def shard(self) -> str:
        """The name that the shard's files share."""
        return shard_of(self.path)


def shard_of(path: Path) -> str:
    """The name of a file's shard: what stands before its hash."""
    return path.stem.rpartition("-")[0]


def read(path: Path, study: str | None) -> Commit:
    """The commit in a ``cells`` file.

    :param study: the name of the folder's study, None if nobody knows it.
    :raises Damaged: the file is not sound, or belongs to another study.
    :raises UsageError: a newer clipbench wrote it.
    """
    rows = table_of(path, "cells")
    metadata = rows.schema.metadata or {}
    context = _object(metadata.get(CONTEXT, b"{}"), "its context")
    refuse_newer(path, context.get("schema"))
    if not all(
        _is_map_of_maps(context.get(name, {})) for name in ("environments", "components", "pilots")
    ):
        raise Damaged("has its context in no form we know")
    if study is not None and context.get("study", study) != study:
        raise Damaged(f'belongs to the study "{context["study"]}"')
    if COMMITS not in metadata:
        raise Damaged("is no commit: it names no files")
    return Commit(
        path, rows, _companions(path.parent.parent, metadata[COMMITS]), replaced_by(rows), context
    )


def _is_map_of_maps(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, dict) for one in value.values())


def replaced_by(rows: pa.Table) -> frozenset[str]:
    """The names of the files that a file replaces.

    :raises Damaged: its metadata have no list of names.
    """
    names = _json((rows.schema.metadata or {}).get(REPLACES, b"[]"), "what it replaces")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Damaged("has a list of replaced files that is none")
    return frozenset(names)


def refuse_newer(path: Path, version: Any) -> None:
    """Stop at a file whose format this version may not understand.

    :raises UsageError: its major version is above ours.
    """
    known = re.fullmatch(r"(\d{1,9})\.\d{1,9}", version) if isinstance(version, str) else None
    if known and int(known[1]) > int(schema.VERSION.partition(".")[0]):
        raise UsageError(
            f"{path}: this was written by a newer clipbench (format {version}, here "
            f"{schema.VERSION}); install that one."
        )


def _companions(folder: Path, text: bytes) -> dict[str, list[Path]]:
    named = {
        table: names if isinstance(names, list) else [names]
        for table, names in sorted(_object(text, "the list of its files").items())
    }
    for table, names in named.items():
        for name in names:
            if table not in SHARD_TABLES or not isinstance(name, str) or not NAME.fullmatch(name):
                raise Damaged(f"names a file that is none of its shard ({table}: {name!r})"[:200])
    return {table: [folder / table / name for name in names] for table, names in named.items()}


def _object(text: bytes, what: str) -> dict[str, Any]:
    value = _json(text, what)
    if not isinstance(value, dict):
        raise Damaged(f"has {what} in no form we know")
    return value


def _json(text: bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Damaged(f"has {what} in no form we know") from None
