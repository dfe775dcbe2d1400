"""Store → HTML, Markdown, SVG, PNG and CSV. A pure function of the store: the same store gives the
same bytes.

A file makes the section of one question, and has the name of the question's file in ``analysis/``
and ``figures/``; the order of the page is in ``sections``. Nothing here draws: figures come from
``figures/``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import jinja2

from clipbench.errors import UsageError, nearest
from clipbench.report import answer, sections
from clipbench.report.evidence import read
from clipbench.report.folder import replace
from clipbench.report.parts import Picture, Section, Table
from clipbench.store import Store

PAGES = ("html", "md")
FORMATS = (*PAGES, "csv", "svg", "png")

P = TypeVar("P", Picture, Table)


def write(
    store: Store, formats: Iterable[str] | None = None, folder: Path | None = None
) -> list[Path]:
    """The files written, pages first: the report of ``store`` is rendered into ``folder``
    (``DIR/report``).

    :param formats: some of `FORMATS`; those that the folder's environment page names if not given,
        all if it names none. If neither svg nor png is among them, figures are written as both.
        That page may also name a size above which a figure or a table's CSV is left out; the pages
        say so.
    :raises UsageError: a format that is not one of `FORMATS`, or a folder that cannot be written.
    """
    kept = {} if formats is not None else store.page("environment")
    wanted, largest = (
        _checked_formats(kept.get("formats", FORMATS) if formats is None else formats),
        kept.get("largest", math.inf),
    )
    folder = folder or store.folder / "report"
    kinds = [kind for kind in ("svg", "png") if kind in wanted] or ("svg", "png")
    evidence = read(store, png="png" in kinds)
    opening, told = answer.told(evidence), sections.told(evidence)
    page = {
        "title": evidence.title,
        "subtitle": sections.subtitle(evidence),
        "answer": opening,
        "sections": told,
        "csv": "csv" in wanted,
    }
    files: dict[str, bytes] = {}
    for picture in _parts_of_kind(told, Picture):
        drawn = {"svg": picture.svg.encode(), "png": picture.png}
        files |= {f"figures/{picture.name}.{kind}": drawn[kind] for kind in kinds}
    for table in _parts_of_kind(told, Table):
        if "csv" in wanted:
            files[f"tables/{table.name}.csv"] = table.csv.encode()
        if {"md", "csv"} <= set(wanted) and table.rows:
            files[f"tables/{table.name}.md"] = render(
                "table.md.j2", {"table": table, "csv": False, "left_out": ()}
            ).encode()
    left_out = {name for name, content in files.items() if len(content) > largest}
    pages = {
        f"report.{name}": render(f"report.{name}.j2", page | {"left_out": left_out}).encode()
        for name in PAGES
        if name in wanted
    }
    return replace(
        folder, pages | {name: content for name, content in files.items() if name not in left_out}
    )


def formats_named(text: str) -> list[str]:
    """The formats of a list with commas.

    :raises UsageError: one is not of `FORMATS`.
    """
    return _checked_formats(name.strip() for name in text.split(",") if name.strip())


def _checked_formats(formats: Iterable[str]) -> list[str]:
    wanted = list(dict.fromkeys(formats))
    for name in wanted:
        if name not in FORMATS:
            raise UsageError(
                f'--format: there is no format "{name}".{nearest(name, FORMATS)} There are: '
                f"{', '.join(FORMATS)}."
            )
    return wanted


def render(template: str, page: dict[str, object]) -> str:
    """One template; HTML is escaped, an undefined name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clipbench"),
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: (
        str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    )
    environment.filters["flat"] = lambda text: " ".join(str(text).split()).replace("<", "&lt;")
    return environment.get_template(template).render(page)


def _parts_of_kind(told: Iterable[Section], kind: type[P]) -> list[P]:
    return [piece for section in told for piece in section.parts if isinstance(piece, kind)]
