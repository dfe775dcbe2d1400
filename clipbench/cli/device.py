"""``clipbench device``: what somebody runs who has a GPU for a few minutes."""

from __future__ import annotations

import signal
import sys
import time
from functools import partial
from pathlib import Path

import click

from clipbench.cli.leaving import FINDING, command
from clipbench.errors import UsageError, counted


@click.command()
@click.option(
    "--minutes",
    type=click.FloatRange(0, 1440, min_open=True),
    required=True,
    help="The time for all of it; the last steps have a share that the others do not get.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="A new folder, or one of this command, which then goes on with what is not done.",
)
@click.option(
    "--device",
    "on",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="cuda",
    help="cuda if not given; cpu is a trial, in which no bound is judged.",
)
@partial(
    command,
    kept="what ended is kept, and the same command goes on from there",
    needs="clipbench.device",
)
def device(minutes: float, out: Path, on: str) -> None:
    """Tests, studies, timings and bounds of a device within so many minutes, each step under its
    own limit, in a folder to keep.

    DIR/device.md says which device it was, how each step ended and which bounds hold. A step that
    ends at its limit is no failure. Exit code 1: a step failed, or a bound does not hold on CUDA.
    """
    begun = time.monotonic()
    import torch

    from clipbench import device as device_

    there = torch.cuda.is_available()
    kind = ("cuda" if there else "cpu") if on == "auto" else on
    if kind == "cuda" and not there:
        raise UsageError(
            "--device cuda: this machine has no CUDA device; `--device cpu` is a trial of the "
            "command, in which no bound is judged."
        )
    # A line that breaks must not leave a process on a lent device; under nohup it does nothing.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    ending = device_.run(kind, out, 60 * minutes, click.echo, begun)
    click.echo(
        f"{ending.page}: {counted(len(ending.failed), 'step')} failed; of "
        f"{counted(ending.judged, 'judged bound')} {len(ending.broken)} did not hold."
    )
    if ending.failed or ending.broken:
        sys.exit(FINDING)
