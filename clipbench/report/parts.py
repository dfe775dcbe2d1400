"""The parts of a page: texts, lists, tables, pictures, headings, sections; a template renders each
kind.

Shared by the sections. It knows none of them, and not what the numbers mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from clipbench.figures import Figure
from clipbench.figures.style import render

ROW, HERE = r"tables/[a-z0-9-]+\.csv#row=\d+", r"#[a-z-]+"  # a row of a table, a section
LINK = rf"\[(?P<a>[^\]]+)\]\((?P<to>{ROW}|{HERE})\)"
MARKED = re.compile(rf"\*\*(?P<strong>.+?)\*\*|`(?P<code>[^`]+)`|{LINK}")
FORMULA = ("=", "+", "-", "−", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one
# CSS pixels per point of a figure: its 8 point letters are as large as the page's small print
SCALE = 1.45


@dataclass(frozen=True)
class Text:
    """A paragraph; ``**strong**``, code in single backticks, and links to a row of a table or to a
    section of the page are the only markup it knows.
    """

    words: str
    kind: str = "text"

    @property
    def runs(self) -> Iterator[tuple[str, str, str]]:
        """The words as (HTML element, text, where a link leads); the element is empty if the text
        is not marked.
        """
        end = 0
        for mark in MARKED.finditer(self.words):
            yield "", self.words[end : mark.start()], ""
            element = "a" if mark["to"] else str(mark.lastgroup)
            yield element, mark[element], mark["to"] or ""
            end = mark.end()
        yield "", self.words[end:], ""

    @property
    def filed(self) -> str:
        """The words with their links to tables alone: where sections have no anchors."""
        return re.sub(rf"\[([^\]]+)\]\({HERE}\)", r"\g<1>", self.words)

    @property
    def unlinked(self) -> str:
        """The words without their links."""
        return re.sub(LINK, r"\g<a>", self.words)


@dataclass(frozen=True)
class List:
    """A bulleted list of paragraphs."""

    items: Sequence[Text]
    kind: str = "list"


@dataclass(frozen=True)
class Table:
    """A table as the page shows it, and the frame that its CSV holds."""

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: pd.DataFrame
    words: int = 1  # how many columns at the left hold words
    kind: str = "table"

    @property
    def grouped(self) -> bool:
        """Whether an empty first column continues the row above."""
        return any(not row[0] for row in self.rows)

    @property
    def csv(self) -> str:
        """The table's data as CSV, numbers to ten digits."""
        return self.data.map(_unread).to_csv(index=False, lineterminator="\n", float_format="%.10g")


def _unread(cell: Any) -> Any:
    """A cell of a CSV: words after a quotation mark if a spreadsheet would read them as a
    formula; numbers as they are.
    """
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in FORMULA else cell


@dataclass(frozen=True)
class Verdicts(Table):
    """The table of the answer: beside its words each row has marks, by which a page colours and
    draws what the words say.
    """

    marks: Sequence[Mapping[str, Any]] = ()
    columns: Sequence[str] = ()  # what each column is, by which a page draws it
    kind: str = "verdicts"


@dataclass(frozen=True)
class Picture:
    """A figure with its caption; ``draw`` makes it when a page or a file needs its bytes."""

    name: str
    caption: str
    alt: str
    draw: Callable[[], Figure]
    kind: str = "picture"

    @cached_property
    def svg(self) -> str:
        """The figure as SVG."""
        return self.files(["svg"])["svg"].decode()

    def files(self, forms: Sequence[str]) -> dict[str, bytes]:
        """The figure in each of ``forms``: ``svg``, ``png``, ``pdf``. It is drawn once for all."""
        return self.keep(render(self.draw(), forms))

    def keep(self, made: dict[str, bytes]) -> dict[str, bytes]:
        """The same files; the SVG among them is not drawn again."""
        if "svg" in made:
            self.__dict__["svg"] = made["svg"].decode()  # a page has it inside
        return made

    @property
    def inlined(self) -> str:
        """The SVG for the inside of a page: no prolog, no fixed size, ids that no other figure
        has.
        """
        body = self.svg[self.svg.index("<svg") :]
        body = re.sub(
            r'width="([\d.]+)pt" height="[\d.]+pt"',
            lambda size: f'width="{SCALE * float(size[1]):.0f}"',
            body,
            count=1,
        )
        # The rule for all elements would be one for the whole page; the others are told apart by
        # the figure's name.
        body = re.sub(r"(?<=<style type=\"text/css\">)\*\{.*?\}", "", body, flags=re.DOTALL)
        body = re.sub(r'(?<= id=")|(?<= class=")|(?<=\.)(?=s\d+\{)', f"{self.name}-", body)
        return re.sub(r'(url\(#|href="#)', rf"\g<1>{self.name}-", body)


@dataclass(frozen=True)
class Heading:
    """A heading below a section's."""

    words: str
    kind: str = "heading"


@dataclass(frozen=True)
class Fold:
    """Parts that a page shows when a reader asks for them."""

    words: str
    parts: Sequence[Part]
    kind: str = "fold"


Part = Text | List | Table | Picture | Heading | Fold


@dataclass(frozen=True)
class Section:
    """A part of the page with an anchor."""

    anchor: str
    title: str
    parts: Sequence[Part]


def flattened(parts: Sequence[Part]) -> Iterator[Part]:
    """All parts, those in folds as well, in their order."""
    for part in parts:
        yield part
        if isinstance(part, Fold):
            yield from flattened(part.parts)
