"""The command line: list, plan, run, report, verify, throughput, replay, conform, gate, data,
compare, export, device.

Exit codes: 0 done, 1 a finding, 2 wrong use, 70 a bug of ours, 130 interrupted and 143 terminated,
with everything finished kept. Commands import what they need when they are called, so that help,
report and verify never wait for torch.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipbench import __version__
from clipbench.cli import completion
from clipbench.cli.compare import compare
from clipbench.cli.components import conform, list_
from clipbench.cli.data import data
from clipbench.cli.device import device
from clipbench.cli.doctor import advise, doctor
from clipbench.cli.export import export
from clipbench.cli.gate import gate
from clipbench.cli.leaving import FINDING, command, heed_signals, leave
from clipbench.cli.pack import in_bytes, pack
from clipbench.cli.replay import replay
from clipbench.cli.report import report
from clipbench.cli.watch import watch
from clipbench.errors import UsageError, counted, duration
from clipbench.progress import Bars, waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipbench.protocol import Reason

SHOWN, WIDEST = 5, 200  # reasons of failed cells, and letters of each


def main() -> None:
    """The entry point of the ``clipbench`` command."""
    heed_signals()
    warnings.showwarning = _warn  # type: ignore[assignment]
    cli(prog_name="clipbench")


def _warn(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if issubclass(category, UserWarning):
        click.echo(f"clipbench: warning: {' '.join(str(message).split())}", err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="clipbench")
def cli() -> None:
    """What gradient clipping does, compared with another optimizer or another learning rate."""


STUDY = click.argument("study", metavar="STUDY", shell_complete=completion.studies)
FOLDER = click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path), shell_complete=completion.folders
)
DEVICE = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default=None,
    help="Run every cell there, whatever the page says.",
)
ENGINE = click.option(
    "--engine",
    type=click.Choice(["auto", "loop", "batched"]),
    default=None,
    help=(
        "One cell at a time, many as lanes of one program, or whichever is faster here; what the "
        "study says if not given."
    ),
)
CHANGES = click.option(
    "-o",
    "--set",
    "changes",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help=(
        "Change a value of the page, which the results folder then holds as it was run: "
        "run.steps=100, 'clip.norm.relative=[1]' (all tables of that clip), "
        "workload.digits.seeds.report=5. A value is TOML, or a bare word. May be given again."
    ),
)
ONLY = click.option(
    "--only",
    "parts",
    multiple=True,
    metavar="KEY=NAME,…",
    help=(
        "A part of the study: problem=wdbc,optimizer=adam; names of the same key add up. Keys are "
        "problem, optimizer and clip, for an arm is compared and tuned on all its learning rates, "
        "thresholds and seeds; an optimizer without a clip stays beside those with one. The rest "
        "of the study is left for another run."
    ),
)
OUT = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Results folder; results/NAME if not given.",
)


@cli.command()
@STUDY
@OUT
@DEVICE
@ENGINE
@CHANGES
@ONLY
@partial(command, needs="clipbench.protocol")
def plan(
    study: str,
    out: Path | None,
    device: str | None,
    engine: str | None,
    changes: Sequence[str],
    parts: Sequence[str],
) -> None:
    """Cells, what is stored already, and the predicted time; runs no cell."""
    from clipbench import protocol
    from clipbench.execute import cores
    from clipbench.protocol import place
    from clipbench.study import read
    from clipbench.study.changes import changed
    from clipbench.study.only import only

    page = changed(read(study), changes)
    asked = protocol.plan(page, device or "study")
    asked = asked.part(only(parts, asked.templates))
    folder = out or place.RESULTS / page.name
    store = place.opened(folder, page)
    outlook = protocol.predict(page, asked, store, engine)
    click.echo(f"{page.name}: {page.document.title}")
    width = max((len(row["task"]) for row in outlook), default=0)
    click.echo(f"  {'':<{width}}   select  stored   report at most  µs a step  engine")
    for row in outlook:
        counts = f"{row['select']:>7} {row['stored']:>7}  {row['report']:>15}"
        click.echo(
            f"  {row['task']:<{width}}  {counts} {1e6 * row['step_seconds']:>10.3g}  "
            f"{row['engine']}"
        )
    cells = sum(row["select"] for row in outlook)
    files = counted(protocol.shards(cells), "shard")
    click.echo(
        f"  selection: {counted(cells, 'cell')} in about {files}; report settings: to be chosen."
    )
    for entry in asked.not_run:
        click.echo(f"  {_not_run(entry)}")
    workers = cores()
    time, longest = (
        duration(sum(row[name] for row in outlook) / workers) for name in ("seconds", "at_most")
    )
    on = counted(workers, "worker")
    click.echo(
        f"  predicted: about {time} on {on} for what is missing, besides timings and extended axes."
    )
    most = sum(row["select"] + row["extended"] + row["report"] for row in outlook)
    click.echo(
        f"  at most: {counted(most, 'cell')} with extended axes and the report, about {longest} "
        f"for what is missing of them."
    )


def _not_run(entry: dict[str, Any]) -> str:
    return (
        f"not run: {counted(entry['cells'], entry['device'] + ' cell')}, because {entry['reason']}."
    )


@cli.command()
@STUDY
@OUT
@DEVICE
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=None,
    help="Worker processes; one per core if not given.",
)
@ENGINE
@click.option(
    "--memory",
    default="2GB",
    callback=in_bytes,
    help="What the lanes of one worker may take, such as 2GB or 500MB.",
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
@CHANGES
@ONLY
@partial(
    command,
    kept="every cell that ended is kept, and `run` goes on from there",
    needs="clipbench.protocol",
)
def run(  # noqa: PLR0913, PLR0917 - an option each
    study: str,
    out: Path | None,
    device: str | None,
    workers: int | None,
    engine: str | None,
    memory: int,
    limit: float | None,
    curves: str,
    anew: bool,
    no_throughput: bool,
    replica: int | None,
    changes: Sequence[str],
    parts: Sequence[str],
) -> None:
    """Run what is missing of a study; a second run says that everything is stored."""
    with waiting(f"reading {study}"):
        from clipbench import protocol
        from clipbench import study as study_
        from clipbench.protocol import place
        from clipbench.study.changes import changed
        from clipbench.study.only import only

        page = changed(study_.read(study), changes)
        # whatever is wrong with the page is said before a folder is touched
        part = only(parts, protocol.runnable(page, device or "study").templates)
    folder = shown = out or place.own_folder(page, not study.endswith(".toml"), anew)
    if replica is not None:
        if place.opened(folder, page) is None:
            raise UsageError(f"{folder}: there is no study to repeat; run it without --replica.")
        page, folder = study_.replica(page, replica), folder / f"replica-{replica}"
        no_throughput = True  # its report is that of the study, which has timings
    if anew and (renamed := place.moved_aside(folder, page)) is not None:
        click.echo(f"{folder}: the old results are now {renamed}.")
    options = protocol.Options(
        device or "study", engine, memory, limit, workers, curves, not no_throughput, part
    )
    with place.claimed(folder, page) as store, Bars() as bars:
        counts = protocol.run(page, store, options, bars)
    total = counts.kept + counts.ran
    spoiled = f"{counts.diverged} diverged, {counts.collapsed} collapsed, {counts.failed} failed"
    if counts.ran:
        click.echo(
            f"{folder}: {counted(total, 'cell')}, {counts.kept} kept, {counts.ran} run; {spoiled}."
        )
    else:
        click.echo(f"{folder}: everything is stored, all {counted(total, 'cell')} kept; {spoiled}.")
    if counts.timed:
        were = "was timed on its workload" if counts.timed == 1 else "were timed on their workloads"
        click.echo(f"{counted(counts.timed, 'optimizer')} {were}, with every clip.")
    for entry in store.page("plan")["not_run"]:
        click.echo(_not_run(entry))
    if part:
        click.echo(f"only {part}: without --only, `clipbench run` runs the rest of the study.")
    click.echo(f"`clipbench report {shown}` draws the figures and tables.")
    _say_why(counts.reasons)
    if counts.failed:
        sys.exit(FINDING)


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


@cli.command()
@FOLDER
@command
def verify(folder: Path) -> None:
    """Check every file and every promise of a results folder; exit 1 with a list of what is broken.

    A folder that is not finished holds its promises: what it lacks is listed, and the exit code is
    0.
    """
    from clipbench.store import Store

    stores = [Store(folder)]
    stores += [Store(replica) for replica in stores[0].replicas.values()]
    problems = [
        f"{store.folder.name}/ {sentence}" if store is not stores[0] else sentence
        for store in stores
        for sentence in store.problems()
    ]
    for sentence in problems:
        click.echo(sentence)
    if problems:
        leave(f"{folder}: {counted(len(problems), 'broken promise')}.", FINDING)
    for store in stores:
        missing = store.missing()
        for sentence in [*missing, *(f"remark: {remark}" for remark in store.remarks())]:
            click.echo(sentence)
        unfinished = (
            "; the study is not finished, and `clipbench run` goes on with it" if missing else ""
        )
        click.echo(
            f"{store.folder}: {len(store.read('cells'))} cells, every file and every promise "
            f"holds{unfinished}."
        )


@cli.command()
@STUDY
@OUT
@DEVICE
@click.option(
    "--sizes",
    default=None,
    help="Model sizes beside the study's workloads, such as 1k,11.7M, or none; all if not given.",
)
@click.option(
    "--implementation", default=None, help="Comma-separated, such as torch,fused; all if not given."
)
@command
def throughput(
    study: str, out: Path | None, device: str | None, sizes: str | None, implementation: str | None
) -> None:
    """Time every implementation of a study's clips and steps, alone on the machine, beside the
    timings stored.
    """
    from clipbench import protocol
    from clipbench.protocol import place
    from clipbench.store import Store
    from clipbench.study import read
    from clipbench.throughput import implementations_named, sizes_named

    page = read(study)
    protocol.runnable(page, device or "study")
    asked = sizes_named(sizes), implementations_named(implementation)
    folder = out or place.own_folder(page, not study.endswith(".toml"))
    store = Store.create(folder, page.name, page.text)
    with store.claim(), Bars() as bars:
        blocks = protocol.survey(page, store, device or "study", *asked, bars)
    click.echo(
        f"{folder}: {blocks:,} blocks timed; `clipbench report {folder}` draws what they say."
    )


cli.add_command(report)
cli.add_command(list_)
cli.add_command(conform)
cli.add_command(replay)
cli.add_command(gate)
cli.add_command(pack)
cli.add_command(data)
cli.add_command(compare)
cli.add_command(export)
cli.add_command(watch)
cli.add_command(doctor)
cli.add_command(advise)
cli.add_command(device)
