"""``clipbench watch``: run a training as it is, record it, and say what its clip does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import click

from clipbench.cli import completion
from clipbench.cli.doctor import examined
from clipbench.cli.leaving import command
from clipbench.errors import UsageError

OUT = Path("runs/watched")
STUDY = "study.toml"


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=OUT,
    show_default=True,
    help="Folder of the record.",
    shell_complete=completion.folders,
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=None,
    help="Record so many steps; the training goes on.",
)
@click.option(
    "--exact",
    is_flag=True,
    help="Compare the gradient of every step element by element, which takes time and memory.",
)
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND", type=click.UNPROCESSED)
@command
def watch(out: Path, steps: int | None, exact: bool, words: tuple[str, ...]) -> None:
    """Run a training, such as `python train.py`, as it is; then say what its clip does. The exit
    code is the training's.
    """
    from clipbench.recording.injected import asked
    from clipbench.store import Store

    if out.is_file() or (_is_taken(out) and not _is_recorded(out)):
        raise UsageError(f"{out}: this holds something else; choose another folder with --out.")
    if (out / STUDY).is_file() and not Store(out).watched:
        raise UsageError(f"{out}: this folder holds a study; choose another with --out.")
    is_new = _made(out)
    mark = uuid.uuid4().hex
    code = _run(words, asked(out, steps, exact, mark))
    click.echo("")
    if examined(out, mark) is None:
        if is_new and out.is_dir() and not _is_taken(out):
            out.rmdir()
        click.echo(
            "clipbench: nothing was recorded: no optimizer of torch made a gradient in it, or it "
            "was killed before anything was written, or its Python has no clipbench.",
            err=True,
        )
    else:
        click.echo(f"`clipbench report {out}` draws it; `clipbench advise {out}` says what to do.")
    sys.exit(code)


def _made(folder: Path) -> bool:
    """Whether the folder was made now: that it can be is known before a training of hours begins.

    :raises UsageError: nothing can be written there.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: this folder cannot be made ({error.strerror}).") from None
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder}: nothing can be written here.")
    return is_new


def _is_taken(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _is_recorded(folder: Path) -> bool:
    return (folder / STUDY).is_file() or any(folder.glob("rank-*"))


def _run(words: tuple[str, ...], environment: dict[str, str]) -> int:
    """The exit code of a command, which gets the signals that end this one."""
    try:
        training = subprocess.Popen(words, env=environment)  # noqa: S603 - what the user asked
    except OSError as error:
        raise UsageError(f"{words[0]}: this cannot be run ({error.strerror}).") from None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the training as well
    signal.signal(signal.SIGTERM, lambda *_: training.terminate())
    code = training.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return 128 - code if code < 0 else code
