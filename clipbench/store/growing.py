"""A cell whose curve grows while its run goes on, block by block.

It must not know what is recorded of a loop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from clipbench import schema
from clipbench.store.commits import COMMITS, CONTEXT, REPLACES
from clipbench.store.files import Damaged, Row, table_of, write_table
from clipbench.store.pages import context
from clipbench.store.reading import Contents


class _Part(NamedTuple):
    """A file of the curve, and how many blocks it holds."""

    path: Path
    blocks: int


class Growing:
    """One cell of a store. Each block is a commit that replaces the one before, so that a process
    that dies loses the steps since its last block and nothing else.

    Blocks are joined as the digits of a binary counter carry: of n blocks there are at most log₂ n
    files, and a step is written log₂ n times.
    """

    def __init__(self, store: Contents, shard: str) -> None:
        self._store, self._shard = store, shard
        self._parts: list[_Part] = []
        self._replaced: list[Path] = []  # the commit before, and its events

    def add(self, row: Row, curve: Mapping[str, Any], events: Sequence[Row]) -> None:
        """Commit one more block.

        :param row: of ``cells``, about the whole run until now.
        :param curve: the block's columns of ``curves``; not one step if it is empty.
        :param events: of the whole run until now.
        :raises OSError: it cannot be written; what was committed before stays, and the block may be
            handed over again.
        """
        parts, left = self._joined(curve)
        beside = {"curves": [part.path.name for part in parts]}
        written = []
        if events:
            written.append(self._written("events", list(events), {}))
            beside["events"] = [written[0].name]
        pages = {
            name: self._store.page(name) for name in ("environment", "components", "calibration")
        }
        metadata = {
            COMMITS: json.dumps(beside).encode(),
            CONTEXT: json.dumps(context(pages, [row]), sort_keys=True).encode(),
            REPLACES: json.dumps([path.name for path in self._replaced]).encode(),
        }
        written.append(self._written("cells", [row], metadata))
        for path in {*left, *self._replaced} - {*written}:
            with suppress(OSError):  # the next sweep removes it
                path.unlink()
        self._parts, self._replaced = parts, written

    def _joined(self, curve: Mapping[str, Any]) -> tuple[list[_Part], list[Path]]:
        """The parts with one more block, and the files that are part of another one now."""
        if not len(curve.get("step", ())):
            return self._parts, []
        rows = pa.Table.from_pydict(dict(curve), schema.arrow("curves"))
        parts, left, blocks = [*self._parts], [], 1
        while parts and parts[-1].blocks == blocks:
            try:
                before = table_of(parts[-1].path, "curves")
            except Damaged:  # it stays beside, and is named as damaged by whoever reads it
                break
            rows = pa.concat_tables([_bare(before), _bare(rows)])
            left.append(parts.pop().path)
            blocks *= 2
        return [*parts, _Part(self._written("curves", rows, {}), blocks)], left

    def _written(
        self, table: str, rows: Sequence[Row] | pa.Table, metadata: Mapping[bytes, bytes]
    ) -> Path:
        return write_table(self._store.folder / table, table, self._shard, rows, metadata)


def _bare(rows: pa.Table) -> pa.Table:
    return rows.replace_schema_metadata(None)
