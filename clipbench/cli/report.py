"""``clipbench report``: the figures and tables of a results folder, once or as long as it grows."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipbench.cli import completion
from clipbench.cli.leaving import command
from clipbench.cores import cores
from clipbench.errors import UsageError
from clipbench.progress import waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECONDS = 5.0  # at least, from one look at a folder that is followed to the next


@click.command()
@click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path), shell_complete=completion.folders
)
@click.option(
    "--format",
    "formats",
    default=None,
    help="Comma-separated: html, md, csv, svg, png, tex, pdf; the first five if not given.",
)
@click.option(
    "--style",
    type=click.Choice(["page", "paper", "column"]),
    default="page",
    help=(
        "How figures look: as the page has them; or for a paper, at most two columns or one wide, "
        "without a footer, with embedded fonts."
    ),
)
@click.option(
    "--only",
    "parts",
    metavar="KEY=NAME",
    multiple=True,
    help=(
        "Show only these, such as problem=wdbc,optimizer=adam; verdicts stay those of the whole. "
        "It needs --out."
    ),
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the report; DIR/report if not given.",
)
@click.option(
    "--follow",
    is_flag=True,
    help=(
        "Draw it again whenever the run that is filling the folder has stored more, until that "
        "run has ended or Ctrl+C."
    ),
)
@command
def report(
    folder: Path,
    formats: str | None,
    style: str,
    parts: tuple[str, ...],
    out: Path | None,
    follow: bool,
) -> None:
    """Draw the figures and tables of a results folder; the same store gives the same bytes."""
    from clipbench import report as report_

    if parts and out is None:
        raise UsageError(
            "--only: a part must not replace the whole report; name a folder for it with --out."
        )
    wanted = None if formats is None else report_.formats_named(formats)
    # of a folder that a run is filling, the cores are the run's
    draw = partial(_drawn, folder, wanted, style, parts, out, 1 if follow else cores())
    if follow:
        _follow(folder, draw)
    else:
        click.echo(draw())


def _drawn(
    folder: Path,
    formats: Sequence[str] | None,
    style: str,
    parts: Sequence[str],
    out: Path | None,
    processes: int,
) -> str:
    """What was written, in a sentence; what is damaged is a warning."""
    with waiting(f"drawing the report of {folder}"):
        from clipbench import report as report_
        from clipbench.report import evidence
        from clipbench.store import Store
        from clipbench.study.only import chosen_of

        store = Store(folder)
        only = chosen_of(parts, evidence.names(evidence.read(store))) if parts else None
        written = report_.write(store, formats, out, style, only, processes)
    for file, damage in sorted(store.bad.items()):
        click.echo(
            f"clipbench: warning: {folder}/{file} {damage}; its rows are left out.", err=True
        )
    page = next((path for path in written if path.name.startswith("report.")), written[0])
    return f"{page} and {len(written) - 1} files beside it."


def _follow(folder: Path, draw: Callable[[], str]) -> None:
    """Draw, and draw again if more is stored. Drawing takes half of a core at most; a report is put
    in place as a whole, so that its page can be read meanwhile.
    """
    from clipbench.store import Store

    store, drawn = Store(folder), None
    while True:
        began, running = time.monotonic(), store.claimed  # what is stored before its end is drawn
        if (files := store.files) != drawn:
            try:
                click.echo(draw())
                drawn = files
            except UsageError as error:  # a file may be gone that was there a moment ago
                if not running:
                    raise
                click.echo(f"clipbench: {error} It is tried again.", err=True)
        if not running:
            click.echo(f"{folder}: no run is filling this folder; the report is of all it holds.")
            return
        time.sleep(max(SECONDS, time.monotonic() - began))
