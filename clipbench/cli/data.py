"""``clipbench data``: the only commands that know where image sets lie, and the only one that
uses the network.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from clipbench.cli.leaving import INTERRUPTED, command, leave


@click.group()
def data() -> None:
    """The medical image sets that the workload medmnist reads."""


@data.command("list")
@command
def data_list() -> None:
    """The sets of MedMNIST, and the image sizes of each that lie in the data folder."""
    from clipbench import datasets

    folder = datasets.folder()
    for name, family in datasets.FAMILIES.items():
        there = [
            str(one.size)
            for size in datasets.SIZES
            if (folder / f"{(one := datasets.Dataset(name, size)).stem}.npz").is_file()
        ]
        about = f"{family.task}, {family.classes} labels, {family.licence}"
        click.echo(f"  {name:<14}  {about:<43}  {', '.join(there) or '-'}")
    click.echo(f"  in {folder}")


@data.command()
@click.argument("name")
@click.option(
    "--size", type=click.Choice(["28", "64", "128", "224"]), default="28", help="Pixels a side."
)
@click.option(
    "--to",
    "into",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder; the data folder if not given.",
)
@click.option(
    "--accept-licence", is_flag=True, help="Fetch a set whose licence forbids commercial use."
)
@command
def fetch(name: str, size: str, into: Path | None, accept_licence: bool) -> None:
    """Download a set, check it against its published MD5, and keep it only if that is right."""
    from clipbench import datasets

    dataset = datasets.named(name if size == "28" else f"{name}_{size}")
    folder = into or datasets.folder()
    bar: tqdm[Any] = tqdm(
        desc=dataset.stem,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
        leave=False,
    )

    def watch(come: int, whole: int | None) -> None:
        bar.total = whole
        bar.update(come)

    with bar:
        try:
            fetched = datasets.fetch(dataset, folder, accept_licence=accept_licence, watch=watch)
        except KeyboardInterrupt:
            leave("interrupted; nothing was kept.", INTERRUPTED)
    file = folder / f"{dataset.stem}.npz"
    click.echo(
        f"{file}: {dataset.family.licence}, its MD5 is right."
        if fetched
        else f"{file}: it is there already, its MD5 is right."
    )
