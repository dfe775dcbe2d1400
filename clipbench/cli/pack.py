"""``clipbench pack``: a results folder as small as its readers want it; and sizes as people
write them.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from clipbench.cli import completion
from clipbench.cli.leaving import WRONG_USE, command, leave

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", re.IGNORECASE)
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def in_bytes(_context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """``2GB`` as a number of bytes."""
    if text is None:
        return None
    match = SIZE.fullmatch(text.strip())
    size = float(match[1]) * UNITS[(match[2] or "B").upper()] if match else 0
    if size < 1:
        leave(
            f"{option.opts[0]} is {text!r}, and must be a positive size such as 2GB or 500MB.",
            WRONG_USE,
        )
    return int(size)


@click.command()
@click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path), shell_complete=completion.folders
)
@click.option(
    "--curves",
    type=click.Choice(["all", "report", "first", "none"]),
    default=None,
    help="Whose curves are kept; none are added.",
)
@click.option(
    "--formats",
    default=None,
    help="Comma-separated: what `report` writes here from now on, such as md,svg.",
)
@click.option(
    "--largest",
    default=None,
    callback=in_bytes,
    help="Size above which `report` leaves a figure or CSV out, such as 100kB.",
)
@command
def pack(folder: Path, curves: str | None, formats: str | None, largest: int | None) -> None:
    """Make a results folder small: one file a table, and on demand without curves and with a
    smaller report.
    """
    from clipbench.report import formats_named
    from clipbench.store import Store

    store = Store(folder).of_study()
    wanted = None if formats is None else formats_named(formats)
    before = _size(folder)
    with store.claim():
        for moved in store.sweep():
            click.echo(f"clipbench: set aside: {moved}", err=True)
        asked = {"formats": wanted, "largest": largest}
        descriptions = {name: value for name, value in asked.items() if value is not None}
        store.write_page("environment", {**store.page("environment"), **descriptions})
        store.compact(curves)
    click.echo(f"{folder}: {before / 1e6:.1f} MB became {_size(folder) / 1e6:.1f}.")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
