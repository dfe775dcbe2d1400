"""``clipbench watch``: run a training as it is, record it, and say what its clip does."""

from __future__ import annotations

import signal
import subprocess
import sys
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
    before = _loops(out)
    code = _run(words, asked(out, steps, exact))
    if _loops(out) > before:
        click.echo("")
        examined(out)
        click.echo(f"`clipbench report {out}` draws it; `clipbench advise {out}` says what to do.")
    else:
        click.echo(
            "clipbench: nothing was recorded: no optimizer of torch was made in it, or its Python "
            "has no clipbench.",
            err=True,
        )
    sys.exit(code)


def _loops(folder: Path) -> int:
    """How many loops are recorded in a folder."""
    return sum(1 for _ in folder.glob("**/cells/*.parquet"))


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
