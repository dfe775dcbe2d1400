"""``clipbench export``: the tables of a results folder for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from clipbench.cli import completion
from clipbench.cli.leaving import command
from clipbench.errors import counted


@click.command()
@click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path), shell_complete=completion.folders
)
@click.option(
    "--to",
    "kind",
    type=click.Choice(["csv", "json", "tensorboard"]),
    required=True,
    help=(
        "csv: a file a table; json: the same as lines, NaN and infinity as null; tensorboard: "
        "event files, a run a cell."
    ),
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="A new folder for the files; DIR/export-csv and so on if not given.",
)
@click.option("--anew", is_flag=True, help="Rename a folder that is there already.")
@command
def export(folder: Path, kind: str, out: Path | None, anew: bool) -> None:
    """Write the tables of a results folder as files for other programs; all of them, or none."""
    from clipbench import export as export_
    from clipbench.store import Store, set_old_aside

    store, into = Store(folder), out or folder / f"export-{kind}"
    export_.refuse_missing(kind)
    if anew and (renamed := set_old_aside(into)) is not None:
        click.echo(f"{into}: the old files are now in {renamed}.")
    written = export_.export(store, kind, into)
    for file, damage in sorted(store.bad.items()):
        click.echo(
            f"clipbench: warning: {folder}/{file} {damage}; its rows are left out.", err=True
        )
    click.echo(f"{into}: {counted(len(written), 'file')}.")
