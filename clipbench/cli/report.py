"""``clipbench report``: the figures and tables of a results folder, once or as long as it grows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipbench.cli import completion
from clipbench.cli.leaving import command
from clipbench.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS = 5.0  # at least, from one look at a folder that is followed to the next


@click.command()
@click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path), shell_complete=completion.folders
)
@click.option(
    "--format",
    "formats",
    default=None,
    help="Comma-separated: html, md, csv, svg, png; all if not given.",
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
def report(folder: Path, formats: str | None, follow: bool) -> None:
    """Draw the figures and tables of a results folder; the same store gives the same bytes."""
    from clipbench import report as report_

    wanted = None if formats is None else report_.formats_named(formats)
    if follow:
        _follow(folder, wanted)
    else:
        click.echo(_drawn(folder, wanted))


def _drawn(folder: Path, formats: Sequence[str] | None) -> str:
    """What was written, in a sentence; what is damaged is a warning."""
    from clipbench import report as report_
    from clipbench.store import Store

    store = Store(folder)
    written = report_.write(store, formats)
    for file, damage in sorted(store.bad.items()):
        click.echo(
            f"clipbench: warning: {folder}/{file} {damage}; its rows are left out.", err=True
        )
    page = next((path for path in written if path.name.startswith("report.")), written[0])
    return f"{page} and {len(written) - 1} files beside it."


def _follow(folder: Path, formats: Sequence[str] | None) -> None:
    """Draw, and draw again if more is stored. Drawing takes half of a core at most; a report is put
    in place as a whole, so that its page can be read meanwhile.
    """
    from clipbench.store import Store

    store, drawn = Store(folder), None
    while True:
        began, running = time.monotonic(), store.claimed  # what is stored before its end is drawn
        if (files := store.files) != drawn:
            try:
                click.echo(_drawn(folder, formats))
                drawn = files
            except UsageError as error:  # a file may be gone that was there a moment ago
                if not running:
                    raise
                click.echo(f"clipbench: {error} It is tried again.", err=True)
        if not running:
            click.echo(f"{folder}: no run is filling this folder; the report is of all it holds.")
            return
        time.sleep(max(SECONDS, time.monotonic() - began))
