"""The parts of a page as lines for a terminal.

It knows no section, and not what the numbers mean.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from clipbench.report.parts import Heading, List, Part, Table, Text

WIDTH = 98


def lines(parts: Iterable[Part]) -> Iterator[str]:
    """Texts, lists, tables, code and headings, an empty line after each; pictures are left out."""
    for part in parts:
        if isinstance(part, Text) and part.kind == "code":
            yield from textwrap.indent(part.words, "    ").splitlines()
        elif isinstance(part, Text):
            yield from _filled(part)
        elif isinstance(part, List):
            for item in part.items:
                yield from _filled(item, "- ")
        elif isinstance(part, Heading):
            yield part.words
        elif isinstance(part, Table):
            yield from _table(part)
        else:
            continue
        yield ""


def _filled(text: Text, mark: str = "") -> list[str]:
    words = re.sub(r"\*\*(.+?)\*\*|`([^`]+)`", lambda found: found[1] or found[2], text.unlinked)
    return textwrap.wrap(
        words,
        WIDTH,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table(table: Table) -> Iterator[str]:
    yield from textwrap.wrap(table.caption, WIDTH)
    rows: list[Sequence[str]] = [table.head, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]
    for row in rows:
        cells = [
            cell.ljust(width) if column < table.words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"  {'   '.join(cells)}".rstrip()
