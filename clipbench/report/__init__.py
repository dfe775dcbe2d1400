"""Store → HTML, Markdown, LaTeX, CSV, SVG, PNG and PDF. A pure function of the store: the same
store gives the same bytes.

A file makes the section of one question, and has the name of the question's file in ``analysis/``
and ``figures/``; the order of the page is in ``sections``. Nothing here draws: figures come from
``figures/``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from clipbench.errors import UsageError, nearest
from clipbench.figures.style import COLUMN, COLUMNS, PAGE, looking
from clipbench.report import advice, answer, latex, sections, viewer, watched
from clipbench.report.drawing import Drawers, rarely_collecting
from clipbench.report.evidence import Evidence, part, read
from clipbench.report.folder import replace
from clipbench.report.parts import Part, Picture, Table, flattened
from clipbench.report.prose import environment
from clipbench.store import Store

PAGES = ("html", "md")
FIGURES = ("svg", "png", "pdf")
FORMATS = (*PAGES, "csv", "tex", *FIGURES)
USUAL = ("html", "md", "csv", "svg", "png")
STYLES = {"page": PAGE, "paper": COLUMNS, "column": COLUMN}

P = TypeVar("P", Picture, Table)


def write(
    store: Store,
    formats: Iterable[str] | None = None,
    folder: Path | None = None,
    style: str = "page",
    only: Mapping[str, Collection[str]] | None = None,
    processes: int = 1,
) -> list[Path]:
    """The files written, pages first: the report of ``store`` is rendered into ``folder``
    (``DIR/report``).

    :param formats: some of `FORMATS`; those that the folder's environment page names if not given,
        `USUAL` if it names none. If no format of figures is among them, figures are written as
        SVG. That page may also name a size above which a figure or a table's CSV is left out;
        the pages say so.
    :param style: one of `STYLES`: ``page``, or ``paper`` and ``column``, of figures without a
        footer, with embedded fonts, as wide as two columns or one of a paper at most.
    :param only: what is shown of the whole, as `evidence.part` takes it.
    :param processes: how many draw at most. A script that names more than one needs a guard
        ``if __name__ == "__main__"``.
    :raises UsageError: a format or a style that there is not, or a folder that cannot be written.
    """
    kept = {} if formats is not None else store.page("environment")
    wanted = _checked(kept.get("formats", USUAL) if formats is None else formats, FORMATS, "format")
    _checked([style], STYLES, "style")
    folder = folder or store.folder / "report"
    largest = kept.get("largest", math.inf)
    look = STYLES[style]
    with rarely_collecting(), looking(look):
        if store.watched:
            with Drawers(look, 0) as drawers:
                files = _files(_of_loops(store), wanted, largest, drawers)
        else:
            seen = read(store) if only is None else part(read(store), only)
            with Drawers(look, _helpers(seen, processes)) as drawers:
                files = _files(_of_study(seen), wanted, largest, drawers, seen)
    return replace(folder, files)


def _helpers(evidence: Evidence, processes: int) -> int:
    """How many processes draw beside this one: none for a single task, whose five figures are drawn
    before another process has loaded what it needs.
    """
    return max(0, min(processes - 1, len(evidence.tasks) // 2))


def _of_study(evidence: Evidence) -> dict[str, Any]:
    """What the page of a study tells."""
    return {
        "title": evidence.title,
        "subtitle": sections.subtitle(evidence),
        "question": "Should I clip?",
        "answer": [*answer.told(evidence), *advice.told(evidence)],
        "sections": sections.told(evidence),
    }


def _of_loops(store: Store) -> dict[str, Any]:
    """What the page of a folder of watched loops tells."""
    opening, told = watched.told(store)
    return {
        "title": store.name,
        "subtitle": watched.subtitle(store),
        "question": watched.QUESTION,
        "answer": opening,
        "sections": told,
    }


def _files(
    told: Mapping[str, Any],
    wanted: list[str],
    largest: float,
    drawers: Drawers,
    evidence: Evidence | None = None,
) -> dict[str, bytes]:
    """Name → content, pages first.

    :param told: what the page tells.
    :param evidence: of the study whose runs the page shows one by one.
    """
    parts = [
        *flattened(told["answer"]),
        *(part for one in told["sections"] for part in flattened(one.parts)),
    ]
    files = dict(_beside(parts, wanted, drawers))
    left_out = {name for name, content in files.items() if len(content) > largest}
    page = {**told, "csv": "csv" in wanted, "left_out": left_out}
    pages = {}
    if "html" in wanted:
        pages["report.html"] = viewer.page(page, evidence).encode()
    if "md" in wanted:
        pages["report.md"] = render("report.md.j2", page).encode()
    return pages | {name: content for name, content in files.items() if name not in left_out}


def _beside(
    parts: Sequence[Part], wanted: list[str], drawers: Drawers
) -> Iterator[tuple[str, bytes]]:
    """The files beside the pages: figures and tables."""
    forms = [form for form in FIGURES if form in wanted] or ["svg"]
    pictures = _of_kind(parts, Picture)
    for picture, made in zip(pictures, drawers.files(pictures, forms), strict=True):
        for form, content in made.items():
            yield f"figures/{picture.name}.{form}", content
    for table in _of_kind(parts, Table):
        if "csv" in wanted:
            yield f"tables/{table.name}.csv", table.csv.encode()
        if "tex" in wanted and table.rows:
            blocks = latex.blocks(table)
            long = sum(block.lines for block in blocks) > latex.LINES
            told = {"table": table, "blocks": blocks, "long": long}
            yield f"tables/{table.name}.tex", render("table.tex.j2", told).encode()
        if {"md", "csv"} <= set(wanted) and table.rows:
            told = {"table": table, "csv": False, "left_out": ()}
            yield f"tables/{table.name}.md", render("table.md.j2", told).encode()


def formats_named(text: str) -> list[str]:
    """The formats of a list with commas.

    :raises UsageError: one is not of `FORMATS`.
    """
    names = (name.strip() for name in text.split(",") if name.strip())
    return _checked(names, FORMATS, "format")


def _checked(names: Iterable[str], known: Iterable[str], option: str) -> list[str]:
    wanted, known = list(dict.fromkeys(names)), list(known)
    for name in wanted:
        if name not in known:
            raise UsageError(
                f'--{option}: there is no {option} "{name}".{nearest(name, known)} There are: '
                f"{', '.join(known)}."
            )
    return wanted


def render(template: str, page: dict[str, object]) -> str:
    """One template; HTML is escaped, an undefined name is an error."""
    return environment().get_template(template).render(page)


def _of_kind(parts: Iterable[Part], kind: type[P]) -> list[P]:
    return [part for part in parts if isinstance(part, kind)]
