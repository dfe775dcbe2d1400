"""A table for LaTeX: no wider than a line of text, with letters of one size in every table.

It knows what a table holds, and not what it means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from clipbench.report.parts import Table

LETTERS = 74  # of footnotesize in a line of an article; wider text has room to spare
KEYS = 0.6  # of a line, at most, for the columns that name the rows
GAP = 1.5  # letters between two columns
WIDE = 16  # letters after which a cell is broken into lines, if its words allow it
LINES = 42  # of a page: a longer table must break


class Block(NamedTuple):
    """Some columns of a table, the first of which name its rows: ``columns`` is their LaTeX."""

    columns: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    lines: int


class Column(NamedTuple):
    """How many letters a column has: in one line, and if it is broken into lines."""

    place: int
    words: bool
    whole: int
    broken: int

    @classmethod
    def of(cls, table: Table, place: int) -> Column:
        """The column at a place of a table."""
        cells = [str(row[place]) for row in (table.head, *table.rows)]
        whole = max(map(len, cells))
        least = max((len(word) for cell in cells for word in cell.split()), default=1)
        return cls(place, place < table.words, whole, min(whole, max(least, WIDE)))


def blocks(table: Table) -> list[Block]:
    """The table in as many blocks under each other as it needs, so that none is wider than a line;
    each begins with the columns that name the rows.
    """
    columns = [Column.of(table, place) for place in range(len(table.head))]
    number = _naming(table, columns)
    keys, rest = columns[:number], columns[number:]
    sets = _filled(keys, rest, LETTERS)
    for limit in range(LETTERS - 1, 0, -1):  # as even as may be
        narrower = _filled(keys, rest, limit)
        if len(narrower) > len(sets):
            break
        sets = narrower
    return [_block(table, one) for one in sets]


def _naming(table: Table, columns: Sequence[Column]) -> int:
    """How many of the first columns name a row, unless they take too much of a line."""
    for number in range(1, table.words):
        names = {tuple(row[:number]) for row in table.rows}
        if len(names) == len(table.rows) or _room(columns[: number + 1]) > LETTERS * KEYS:
            return number
    return max(1, min(table.words, len(columns) - 1))


def _filled(keys: Sequence[Column], rest: Sequence[Column], limit: float) -> list[list[Column]]:
    """The other columns in sets no wider than the limit, each behind the ``keys``."""
    sets = [list(keys)]
    for column in rest:
        if _room([*sets[-1], column]) > limit and len(sets[-1]) > len(keys):
            sets.append(list(keys))
        sets[-1].append(column)
    return sets


def _room(columns: Sequence[Column]) -> float:
    return sum(column.broken for column in columns) + GAP * len(columns)


def _block(table: Table, columns: Sequence[Column]) -> Block:
    """The columns; those that are broken share what room is left."""
    left = LETTERS - _room(columns)
    lacking = sum(column.whole - column.broken for column in columns)
    share = min(1.0, max(left, 0.0) / lacking) if lacking else 0.0
    widths = [
        math.floor(column.broken + share * (column.whole - column.broken)) for column in columns
    ]
    rows = [[row[column.place] for column in columns] for row in table.rows]
    lines = sum(
        max(math.ceil(len(cell) / width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    specs = [_spec(*one) for one in zip(columns, widths, strict=True)]
    return Block("".join(specs), [table.head[one.place] for one in columns], rows, lines)


def _spec(column: Column, width: int) -> str:
    if width >= column.whole:
        return "l" if column.words else "r"
    side = "right" if column.words else "left"
    return rf">{{\ragged{side}\arraybackslash}}p{{{width / LETTERS:.3f}\linewidth}}"
