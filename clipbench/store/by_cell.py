"""The rows that belong to a cell, one cell after the other, of files that are read piece by piece.

It must not know what the rows mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipbench.store.files import Damaged, pieces_of

Columns = dict[str, np.ndarray]


class ByCell:
    """The rows of one table in a commit's files. Held are the rows that were read and not yet
    taken: those of a piece or two, if cells are taken in the order in which they are stored.

    ``bad`` is path → what is wrong with a file; its rows count no more from where that was met.
    """

    def __init__(self, table: str, paths: Sequence[Path], cells: Collection[str]) -> None:
        """:param cells: those that are going to be taken."""
        self.bad: dict[Path, str] = {}
        self._table, self._cells = table, cells
        self._held: dict[str, list[Columns]] = {}
        pieces = self._read(paths)
        begun = [*islice(pieces, 2)]
        self._pieces, self._next = chain(begun, pieces), 0
        # cell → its last piece; of one piece nobody need know it
        self._ends = self._last(paths) if len(begun) > 1 else dict.fromkeys(cells, 0)

    def take(self, cell: str) -> Columns | None:
        """The rows of a cell in the order of their steps, by column; None if there are none."""
        while self._next <= self._ends.get(cell, -1):
            self._hold()
        parts = self._held.pop(cell, [])
        if not parts:
            return None
        rows = parts[0]
        if len(parts) > 1:
            rows = {name: np.concatenate([one[name] for one in parts]) for name in rows}
        steps = rows["step"]
        if (steps[1:] >= steps[:-1]).all():
            return rows
        order = np.argsort(steps, kind="stable")
        return {name: column[order] for name, column in rows.items()}

    def finish(self) -> None:
        """Read what is left: afterwards ``bad`` is all that is wrong."""
        for _ in self._pieces:
            pass

    def _last(self, paths: Sequence[Path]) -> dict[str, int]:
        ends, count = dict[str, int](), 0
        for path in paths:
            with suppress(Damaged):  # told where its rows are read
                for rows in pieces_of(path, self._table, ["cell"]):
                    ends |= dict.fromkeys(rows["cell"].unique().to_pylist(), count)
                    count += 1
        return ends

    def _read(self, paths: Sequence[Path]) -> Iterator[pa.Table]:
        for path in paths:
            try:
                yield from pieces_of(path, self._table)
            except Damaged as wrong:
                self.bad[path] = str(wrong)

    def _hold(self) -> None:
        rows, self._next = next(self._pieces, None), self._next + 1
        if rows is None or not len(rows):
            return
        cells = rows["cell"].combine_chunks()
        turns = pc.not_equal(cells[1:], cells[:-1]).to_numpy(zero_copy_only=False)
        edges = [0, *(np.flatnonzero(turns) + 1).tolist(), len(cells)]
        columns = {
            name: rows[name].to_numpy(zero_copy_only=False)
            for name in rows.column_names
            if name != "cell"
        }
        for cell, (first, last) in zip(
            cells.take(edges[:-1]).to_pylist(), pairwise(edges), strict=True
        ):
            if cell in self._cells:
                part = {name: column[first:last] for name, column in columns.items()}
                self._held.setdefault(cell, []).append(part)
