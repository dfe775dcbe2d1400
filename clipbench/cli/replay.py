"""``clipbench replay``: one stored row, run again."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from clipbench.cli import completion
from clipbench.cli.leaving import FINDING, command


@click.command()
@click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path), shell_complete=completion.folders
)
@click.argument("cell", metavar="CELL")
@click.option(
    "--engine",
    type=click.Choice(["loop", "batched"]),
    default=None,
    help="The one that made the row if not given.",
)
@click.option(
    "--use",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="A file of components to run.",
)
@command
def replay(folder: Path, cell: str, engine: str | None, use: tuple[Path, ...]) -> None:
    """Run one stored row again, named by its identity or the first digits of it; exit 1 if it does
    not match.

    A file of components is run if it is named with --use, or if it is the very one that made the
    row.
    """
    from clipbench import replay as replay_
    from clipbench.store import Store

    outcome = replay_.replay(Store(folder).of_study(), cell, engine, use)
    click.echo(outcome.sentence)
    if not outcome.matches:
        sys.exit(FINDING)
