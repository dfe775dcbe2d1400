"""The command line: list, plan, run, report, verify, throughput, replay, conform, gate, data,
compare, export, device.

Exit codes: 0 done, 1 a finding, 2 wrong use, 70 a bug of ours, 130 interrupted and 143 terminated,
with everything finished kept. Commands import what they need when they are called, so that help,
report and verify never wait for torch.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipbench import __version__
from clipbench.cli.compare import compare
from clipbench.cli.components import conform, list_
from clipbench.cli.data import data
from clipbench.cli.device import device
from clipbench.cli.doctor import advise, doctor
from clipbench.cli.export import export
from clipbench.cli.gate import gate
from clipbench.cli.leaving import FINDING, command, heed_signals, leave
from clipbench.cli.merge import merge
from clipbench.cli.options import CHANGES, DEVICE, ENGINE, FOLDER, ONLY, OUT, STUDY
from clipbench.cli.pack import pack
from clipbench.cli.replay import replay
from clipbench.cli.report import report
from clipbench.cli.run import not_run, run
from clipbench.cli.watch import watch
from clipbench.errors import counted, duration
from clipbench.progress import Bars

if TYPE_CHECKING:
    from collections.abc import Sequence


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
    from clipbench.protocol import place
    from clipbench.study import read
    from clipbench.study.changes import changed
    from clipbench.study.only import only

    page = changed(read(study), changes)
    asked = protocol.plan(page, device or "study")
    asked = asked.part(only(parts, asked.templates))
    spread = protocol.ready(asked, device or "study")
    folder = out or place.RESULTS / page.name
    store = place.opened(folder, page)
    outlook = protocol.predict(page, asked, store, engine, spread)
    click.echo(f"{page.name}: {page.document.title}")
    width = max((len(row["task"]) for row in outlook), default=0)
    click.echo(f"  {'':<{width}}   select  stored   report at most  µs a step  engine")
    for row in outlook:
        counts = f"{row['select']:>7} {row['stored']:>7}  {row['report']:>15}"
        click.echo(
            f"  {row['task']:<{width}}  {counts} {1e6 * row['step_seconds']:>10.3g}  "
            f"{row['engine']}"
        )
    if known := sum(row["remembered"] for row in outlook):
        click.echo(
            f"  {'rate' if known == 1 else 'rates'} of {counted(known, 'task')} remembered from "
            f"another run; with CLIPBENCH_RATES=anew they are measured."
        )
    cells = sum(row["select"] for row in outlook)
    files = counted(protocol.shards(cells), "shard")
    click.echo(
        f"  selection: {counted(cells, 'cell')} in about {files}; report settings: to be chosen."
    )
    for entry in asked.not_run:
        click.echo(f"  {not_run(entry)}")
    time, longest, on = _duration(outlook)
    click.echo(
        f"  predicted: about {time} on {on} for what is missing, besides timings and extended axes."
    )
    most = sum(row["select"] + row["extended"] + row["report"] for row in outlook)
    click.echo(
        f"  at most: {counted(most, 'cell')} with extended axes and the report, about {longest} "
        f"for what is missing of them."
    )


def _duration(outlook: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    """How long what is missing takes, as planned and at most, and on which workers: devices work
    side by side.
    """
    workers = {row["device"]: row["workers"] for row in outlook}
    seconds = {
        name: max(
            (
                sum(row[name] for row in outlook if row["device"] == device) / number
                for device, number in workers.items()
            ),
            default=0.0,
        )
        for name in ("seconds", "at_most")
    }
    names = {"cpu": "worker", "cuda": "CUDA worker"}
    on = " and ".join(counted(number, names[device]) for device, number in workers.items())
    return duration(seconds["seconds"]), duration(seconds["at_most"]), on or "no worker"


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
    protocol.ready(protocol.runnable(page, device or "study"), device or "study", 1)
    asked = sizes_named(sizes), implementations_named(implementation)
    folder = out or place.own_folder(page, not study.endswith(".toml"))
    store = Store.create(folder, page.name, page.text)
    with store.claim(), Bars() as bars:
        blocks = protocol.survey(page, store, device or "study", *asked, bars)
    click.echo(
        f"{folder}: {blocks:,} blocks timed; `clipbench report {folder}` draws what they say."
    )


cli.add_command(run)
cli.add_command(report)
cli.add_command(list_)
cli.add_command(conform)
cli.add_command(replay)
cli.add_command(gate)
cli.add_command(pack)
cli.add_command(merge)
cli.add_command(data)
cli.add_command(compare)
cli.add_command(export)
cli.add_command(watch)
cli.add_command(doctor)
cli.add_command(advise)
cli.add_command(device)
