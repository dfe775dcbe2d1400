"""``clipbench doctor`` and ``advise``: what the clip of a watched loop does, and what to do about
it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
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
    for place in _folders(folder):
        _recorded(place)
    if examined(folder):
        sys.exit(FINDING)


def examined(folder: Path, command: str | None = None) -> int | None:
    """How many findings were printed of the training that was watched last in a folder; None if
    there is none.

    :param command: the mark of a command, whose records alone are looked at.
    """
    from clipbench.report import watched

    findings = None
    for place in _folders(folder):
        runs = _last(place, command)
        for run in runs:
            _name(run, place, folder, runs)
            _print(watched.diagnosis(run))
            if len(run.norms):
                _print([watched.norms(run), watched.thresholds(run)])
            findings = (findings or 0) + len(run.findings())
    return findings


def _name(run: Run, place: Path, folder: Path, runs: Sequence[Run]) -> None:
    """Say whose loop it is, if there are others."""
    from clipbench.report import watched

    if place != folder:
        click.echo(f"{place.name}:")
    if len(runs) > 1 or run.cell["attempt"] > 1:
        click.echo(f"{watched.name(run)}\n")


@click.command()
@FOLDER
@command
def advise(folder: Path) -> None:
    """Say what to do about the clip of a watched training, and what its record cannot tell; it
    trains nothing.
    """
    from clipbench.report import watched

    for place in _folders(folder):
        runs = _recorded(place)
        for run in runs:
            _name(run, place, folder, runs)
            _print(watched.advice(run))


def _folders(folder: Path) -> list[Path]:
    """The folder; of a distributed training those of its processes."""
    ranks = sorted(folder.glob("rank-*"), key=lambda path: (len(path.name), path.name))
    return ranks or [folder]


def _recorded(folder: Path) -> Sequence[Run]:
    """The loops of the training that was watched last.

    :raises UsageError: the folder holds something else, or nothing yet.
    """
    from clipbench.store import Store

    if not Store(folder).watched:
        raise UsageError(
            f"{folder}: this folder holds a study, and no watched training; `clipbench report` "
            "draws what it says, and `clipbench watch` records a training."
        )
    if not (runs := _last(folder)):
        raise UsageError(f"{folder}: no step is recorded here yet.")
    return runs


def _last(folder: Path, command: str | None = None) -> Sequence[Run]:
    """The loops of the training that was watched last, by a command if it is given."""
    from clipbench.analysis.watched import runs
    from clipbench.store import Store

    if not (folder / "study.toml").is_file():
        return []
    found = [run for run in runs(Store(folder)) if command in (None, run.settings.get("command"))]
    return [run for run in found if run.settings["started"] == found[-1].settings["started"]]


def _print(parts: Iterable[Part]) -> None:
    from clipbench.report.terminal import lines

    for line in lines(parts):
        click.echo(line)
