"""Store → HTML, Markdown, SVG, PNG and CSV. A pure function of the store: the same store gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import jinja2

from clipbench.registry import UsageError, nearest
from clipbench.report import answer, sections
from clipbench.report.evidence import read
from clipbench.report.parts import Picture, Section, Table
from clipbench.store import Store

FORMATS = ("html", "md", "csv")

P = TypeVar("P", Picture, Table)


def write(store: Store, formats: Iterable[str] = FORMATS, folder: Path | None = None) -> list[Path]:
    """Render the report of ``store`` into ``folder`` (``DIR/report``), figures always; returns the files written, pages first.

    :raises UsageError: a format that is not one of ``FORMATS``.
    """
    wanted = list(dict.fromkeys(formats))
    for name in wanted:
        if name not in FORMATS:
            raise UsageError(f'--format: there is no format "{name}".{nearest(name, FORMATS)} There are: {", ".join(FORMATS)}.')
    folder = folder or store.folder / "report"
    evidence = read(store)
    opening, told = answer.told(evidence), sections.told(evidence)
    page = {
        "title": evidence.title,
        "subtitle": sections.subtitle(evidence),
        "answer": opening,
        "sections": told,
        "csv": "csv" in wanted,
    }
    files: dict[Path, bytes] = {}
    for name in ("html", "md"):
        if name in wanted:
            files[folder / f"report.{name}"] = render(f"report.{name}.j2", page).encode()
    for picture in _all(told, Picture):
        files[folder / "figures" / f"{picture.name}.svg"] = picture.svg.encode()
        files[folder / "figures" / f"{picture.name}.png"] = picture.png
    for table in _all(told, Table):
        if "csv" in wanted:
            files[folder / "tables" / f"{table.name}.csv"] = table.csv.encode()
        if "md" in wanted and table.rows:
            files[folder / "tables" / f"{table.name}.md"] = render("table.md.j2", {"table": table, "csv": False}).encode()
    _replace(folder, files, {".svg", ".png", *(f".{name}" for name in wanted)})
    return list(files)


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


def _all(told: Iterable[Section], kind: type[P]) -> list[P]:
    return [part for section in told for part in section.parts if isinstance(part, kind)]


def _replace(folder: Path, files: dict[Path, bytes], kinds: set[str]) -> None:
    """Write the files, and remove figures and tables of these ``kinds`` that an earlier report left and this one lacks."""
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        stale = [*(folder / "figures").glob("*.*"), *(folder / "tables").glob("*.*")]
        for path in stale:
            if path not in files and path.suffix in kinds:
                path.unlink()
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: the report cannot be written here ({error.strerror}).") from error
