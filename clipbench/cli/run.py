"""``clipbench run``: what is missing of a study, or of a part of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipbench.cli.leaving import FINDING, command
from clipbench.cli.options import CHANGES, DEVICE, ENGINE, ONLY, OUT, STUDY
from clipbench.cli.pack import in_bytes
from clipbench.errors import UsageError, counted
from clipbench.progress import Bars, waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipbench.protocol import Counts, Options, Reason
    from clipbench.protocol.part import Part
    from clipbench.study import Study

SHOWN, WIDEST = 5, 200  # reasons of failed cells, and letters of each


def _wake_workers(study: str, out: Path | None, executor: str, dry_run: bool, **_: Any) -> None:
    """Let the workers' server load while this process does; a folder that was filled before may
    need no worker.
    """
    folder = out or Path("results", Path(study).stem)
    if executor == "local" and not dry_run and not (folder / "study.toml").exists():
        from clipbench import forkserver

        forkserver.wake()


@click.command()
@STUDY
@OUT
@DEVICE
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=None,
    help="Worker processes; one per core, and one per CUDA device, if not given.",
)
@ENGINE
@click.option(
    "--memory",
    default=None,
    callback=in_bytes,
    help=(
        "What the lanes of one worker may take, such as 500MB; 2GB on the CPU and most of a CUDA "
        "device if not given."
    ),
)
@click.option(
    "--limit",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="Seconds a shard may take before it is ended.",
)
@click.option(
    "--curves",
    type=click.Choice(["all", "report", "first", "none"]),
    default="all",
    help="Curves to keep: all; those of report and diverged cells; of the first report seed and "
    "diverged cells; or none.",
)
@click.option(
    "--anew", is_flag=True, help="Start from nothing; the old folder is renamed, not deleted."
)
@click.option("--no-throughput", is_flag=True, help="Leave out the timing of the methods.")
@click.option(
    "--replica",
    type=click.IntRange(1),
    default=None,
    help=(
        "Run a stored study once more, from weights that differ in their last digits, into the "
        "folder replica-N inside its own; its report then tells whether the answers hold."
    ),
)
@click.option(
    "--executor",
    metavar="NAME",
    default="local",
    help=(
        "Who runs the cells: local, processes of this machine; slurm, jobs of a cluster; ray, a "
        "cluster; or one of an installed package."
    ),
)
@click.option(
    "--executor-option",
    "executor_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the executor, such as partition=NAME. May be given again.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what the executor would submit, and how many jobs; nothing is run.",
)
@click.option(
    "--part",
    metavar="K/N",
    default=None,
    help=(
        "One of N parts of the study, for a machine of its own; part 0/N makes what all share. "
        "`clipbench merge` brings them together."
    ),
)
@click.option(
    "--after",
    type=click.Path(path_type=Path),
    default=None,
    help="The folder of part 0, or of the parts that were merged: pilots, engines and cells.",
)
@CHANGES
@ONLY
@partial(
    command,
    kept="every cell that ended is kept, and `run` goes on from there",
    needs="clipbench.protocol",
    first=_wake_workers,
)
def run(  # noqa: PLR0913, PLR0917 - an option each
    study: str,
    out: Path | None,
    device: str | None,
    workers: int | None,
    engine: str | None,
    memory: int | None,
    limit: float | None,
    curves: str,
    anew: bool,
    no_throughput: bool,
    replica: int | None,
    executor: str,
    executor_options: Sequence[str],
    dry_run: bool,
    part: str | None,
    after: Path | None,
    changes: Sequence[str],
    parts: Sequence[str],
) -> None:
    """Run what is missing of a study; a second run says that everything is stored."""
    with waiting(f"reading {study}"):
        from clipbench import execute, protocol
        from clipbench import study as study_
        from clipbench.protocol import place
        from clipbench.study.changes import changed
        from clipbench.study.only import Only, only

        page = changed(study_.read(study), changes)
        one_of = None if part is None else protocol.part_named(part)
        told = execute.options_named(executor_options)
        asked_of = (device or "study", engine, memory, limit, workers, curves, not no_throughput)
        options = protocol.Options(*asked_of, Only(), one_of, after, executor, told)
        # whatever is wrong is said before a folder is touched
        options = replace(options, only=only(parts, protocol.check(page, options).templates))
    folder = shown = out or _own_folder(page, study, anew, one_of)
    if replica is not None:
        if place.opened(folder, page) is None:
            raise UsageError(f"{folder}: there is no study to repeat; run it without --replica.")
        page, folder = study_.replica(page, replica), folder / f"replica-{replica}"
        options = replace(options, throughput=False)  # its report is the study's, which has some
    if dry_run:
        click.echo(protocol.rehearse(page, options, folder))
        return
    if anew and (renamed := place.moved_aside(folder, page)) is not None:
        click.echo(f"{folder}: the old results are now {renamed}.")
    with place.claimed(folder, page) as store, Bars() as bars:
        counts = protocol.run(page, store, options, bars)
    _say_counts(folder, counts, options)
    for entry in store.page("plan")["not_run"]:
        click.echo(not_run(entry))
    _say_next(shown, one_of)
    _say_why(counts.reasons)
    if counts.failed:
        sys.exit(FINDING)


def _own_folder(page: Study, named: str, anew: bool, one_of: Part | None) -> Path:
    """The folder of a study, or of a part of it, if ``--out`` names none."""
    from clipbench.protocol import place

    folder = place.own_folder(page, not named.endswith(".toml"), anew)
    if one_of is None:
        return folder
    return folder.with_name(f"{page.name}-part-{one_of.number}-of-{one_of.of}")


def _say_counts(folder: Path, counts: Counts, options: Options) -> None:
    """What was run, and how it ended."""
    total = counted(counts.kept + counts.ran, "cell")
    spoiled = f"{counts.diverged} diverged, {counts.collapsed} collapsed, {counts.failed} failed"
    if counts.ran:
        click.echo(f"{folder}: {total}, {counts.kept} kept, {counts.ran} run; {spoiled}.")
    elif options.part is not None and not options.part.number:
        click.echo(f"{folder}: the pilots and the choice of engines are made, for `--after`.")
    else:
        click.echo(f"{folder}: everything is stored, all {total} kept; {spoiled}.")
    if counts.timed:
        were = "was timed on its workload" if counts.timed == 1 else "were timed on their workloads"
        click.echo(f"{counted(counts.timed, 'optimizer')} {were}, with every clip.")
    if options.only:
        click.echo(
            f"only {options.only}: without --only, `clipbench run` runs the rest of the study."
        )


def _say_next(folder: Path, one_of: Part | None) -> None:
    """What to do with what was run."""
    if one_of is None:
        click.echo(f"`clipbench report {folder}` draws the figures and tables.")
    elif one_of.number:
        click.echo(
            f"part {one_of}: `clipbench merge` brings the parts together, and says what is next."
        )


def _say_why(reasons: Sequence[Reason]) -> None:
    """The first reasons why cells failed: how many, of what, where, and where the traceback
    lies.
    """
    for reason in reasons[:SHOWN]:
        position = f" at {reason.place}" if reason.place else ""
        trace = f" (traceback: {reason.file})" if reason.file is not None else ""
        click.echo(
            f"{counted(reason.cells, 'cell')} failed{position}: {_printable(reason.words)}{trace}."
        )
    if len(reasons) > SHOWN:
        click.echo(
            f"{counted(len(reasons) - SHOWN, 'other reason')}: the column `reason` of the cells "
            f"table has them all."
        )


def _printable(words: str) -> str:
    """An exception's words, which may be long and hold anything, for a terminal."""
    shown = "".join(letter if letter.isprintable() else " " for letter in words)
    return shown if len(shown) <= WIDEST else f"{shown[:WIDEST]}…"


def not_run(entry: dict[str, Any]) -> str:
    """The sentence on cells that have no device here."""
    return (
        f"not run: {counted(entry['cells'], entry['device'] + ' cell')}, because {entry['reason']}."
    )
