"""``clipbench merge``: the parts of a study that several machines ran, as one results folder."""

from __future__ import annotations

from pathlib import Path

import click

from clipbench.cli import completion
from clipbench.cli.leaving import command
from clipbench.errors import UsageError, counted


@click.command()
@click.argument(
    "folders",
    metavar="DIR…",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    shell_complete=completion.folders,
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Results folder; what it holds of the study stays.",
)
@command
def merge(folders: tuple[Path, ...], out: Path) -> None:
    """Bring parts of a study together, each cell once; it says what is missing, and what is next.

    Parts are made by `clipbench run STUDY --part 3/20`. The folders stay as they are.
    """
    from clipbench.store import Store, merging

    parts = [Store(folder) for folder in folders]
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise UsageError(f"--out {out}: this is one of the folders to merge; choose another.")
    merging.refuse_others([*parts, *([Store(out)] if (out / "study.toml").is_file() else [])])
    store = Store.create(out, parts[0].name, parts[0].study)
    with store.claim():
        store.sweep()
        merging.merge(store.folder, store.write_page, parts)
        store.sweep()  # what a later folder of a part has replaced
    store = Store(out)
    missing = store.missing()
    cells, plan = len(store.read("cells", ["cell"])), store.page("plan")
    click.echo(f"{out}: {counted(cells, 'cell')} of {counted(len(parts), 'folder')}.")
    for sentence in [*merging.absent(plan.get("parts", [])), *missing]:
        click.echo(sentence)
    click.echo(
        f"Next: run the parts again with `--after {out}`, and merge them."
        if missing
        else f"Complete: `clipbench run {store.name} --out {out}` times the methods, and "
        f"`clipbench report {out}` draws the figures and tables."
    )
