"""How a command ends: its exit code, and one sentence for whatever a user can mend."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from clipbench.errors import UsageError

FINDING, WRONG_USE, BUG, INTERRUPTED = 1, 2, 70, 130
FULL = (errno.ENOSPC, errno.EDQUOT)
# what a system may say without the name of a file
DISK = (*FULL, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE)


_importing: list[str] = []  # what is being imported, while nothing has been touched


def command(
    function: Callable[..., Any],
    kept: str = "nothing that was stored is lost",
    needs: str = "",
    first: Callable[..., object] | None = None,
) -> Callable[..., Any]:
    """A command in which an error that a user can cause ends as one sentence and exit code 2; any
    other is a bug, with traceback.

    :param kept: what an interrupted command says has been kept.
    :param needs: a module that takes long to import: an interruption meanwhile ends the process at
        once.
    :param first: is called with the command's options before that.
    """

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            if first is not None:
                first(**kwargs)
            _import(needs)
            function(*args, **kwargs)
        except UsageError as error:
            leave(str(error), WRONG_USE)
        except KeyboardInterrupt as interrupt:
            leave(f"interrupted; {kept}.", _code(interrupt))
        # of these click knows
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except OSError as error:
            if error.filename is None and error.errno not in DISK:
                leave_with_traceback()
            reason = (
                "the disk is full"
                if error.errno in FULL
                else (error.strerror or str(error)).lower()
            )
            file = f"{error.filename}: " if error.filename else ""
            leave(f"{file}{reason}; nothing that was stored is lost.", WRONG_USE)
        except Exception:  # noqa: BLE001 - a bug, whatever it is
            leave_with_traceback()

    return wrapped


def leave(sentence: str, code: int) -> None:
    """End the process with a sentence and a code."""
    # a name or an exception's text may hold line breaks
    click.echo(f"clipbench: {' '.join(sentence.split())}", err=True)
    sys.exit(code)


def leave_with_traceback() -> None:
    """End the process with the traceback of the exception in hand: a bug of ours."""
    click.echo(traceback.format_exc(), err=True, nl=False)
    sys.exit(BUG)


def heed_signals() -> None:
    """Let SIGTERM end a command as Ctrl+C does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: object) -> None:
    if _importing:  # an exception in an import half done may come out as any other
        os.write(2, b"clipbench: interrupted; nothing that was stored is lost.\n")
        os._exit(128 + number)
    raise KeyboardInterrupt(number)


def _import(module: str) -> None:
    if module:
        _importing.append(module)
        try:
            importlib.import_module(module)
        finally:
            _importing.clear()


def _code(interrupt: KeyboardInterrupt) -> int:
    """128 and the signal's number, as a shell counts: 130 of Ctrl+C, 143 of SIGTERM."""
    return 128 + interrupt.args[0] if interrupt.args else INTERRUPTED


def writable(option: str, path: Path | None) -> None:
    """Refuse now the file of an option that could not be written after minutes of work."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder.")
    if not path.parent.is_dir():
        raise UsageError(f"{option}: there is no folder {path.parent}.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option}: {path} cannot be written.")
