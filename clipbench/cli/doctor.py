"""``clipbench doctor`` and ``advise``: what the clip of a watched loop does, and what to do about
it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipbench.cli import completion
from clipbench.cli.leaving import FINDING, command
from clipbench.errors import UsageError

if TYPE_CHECKING:
    from clipbench.analysis.watched import Run
    from clipbench.report.parts import Part

FOLDER = click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path), shell_complete=completion.folders
)


@click.command()
@FOLDER
@command
def doctor(folder: Path) -> None:
    """Say whether the clip of a watched training does anything, and stands where it should; of the
    loop watched last. Exit code 1 if there is a finding.

    The training may still be running.
    """
    if examined(folder):
        sys.exit(FINDING)


def examined(folder: Path) -> int:
    """How many findings were printed of what was watched last in a folder."""
    from clipbench.report import watched

    findings = 0
    for place in _folders(folder):
        for run in _last(place):
            if place != folder:
                click.echo(f"{place.name}:")
            if (number := run.cell["attempt"]) > 1:
                click.echo(f"Run {number} in this folder; `clipbench report` shows all.\n")
            _print(watched.diagnosis(run))
            if len(run.norms):
                _print([watched.norms(run), watched.thresholds(run)])
            findings += len(run.findings())
    return findings


@click.command()
@FOLDER
@command
def advise(folder: Path) -> None:
    """Say what to do about the clip of a watched training, and what its record cannot tell; it
    trains nothing.
    """
    from clipbench.report import watched

    for place in _folders(folder):
        for run in _last(place):
            _print(watched.advice(run))


def _folders(folder: Path) -> list[Path]:
    """The folder; of a distributed training those of its processes."""
    ranks = sorted(folder.glob("rank-*"), key=lambda path: (len(path.name), path.name))
    return ranks or [folder]


def _last(folder: Path) -> list[Run]:
    """The loops of the training that was watched last."""
    from clipbench.analysis.watched import runs
    from clipbench.store import Store

    store = Store(folder)
    if not store.watched:
        raise UsageError(
            f"{folder}: this folder holds a study, and no watched training; `clipbench report` "
            "draws what it says, and `clipbench watch` records a training."
        )
    found = runs(store)
    if not found:
        raise UsageError(f"{folder}: no step is recorded here yet.")
    started = found[-1].settings["started"]
    return [run for run in found if run.settings["started"] == started]


def _print(parts: Iterable[Part]) -> None:
    from clipbench.report.terminal import lines

    for line in lines(parts):
        click.echo(line)
