"""How a command ends: its exit code, and one sentence for whatever a user can mend."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from clipbench.registry import UsageError

FINDING, WRONG_USE, INTERRUPTED = 1, 2, 130
FULL = (errno.ENOSPC, errno.EDQUOT)


def command(function: Callable[..., Any], kept: str = "nothing that was stored is lost") -> Callable[..., Any]:
    """Every error a user can cause is one sentence and exit code 2.

    :param kept: what is told of an interruption.
    """

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except UsageError as error:
            leave(str(error), WRONG_USE)
        except OSError as error:
            if error.filename is None and error.errno not in (*FULL, errno.EROFS):
                raise
            reason = "the disk is full" if error.errno in FULL else (error.strerror or str(error)).lower()
            place = f"{error.filename}: " if error.filename else ""
            leave(f"{place}{reason}; nothing that was stored is lost.", WRONG_USE)
        except KeyboardInterrupt:
            leave(f"interrupted; {kept}.", INTERRUPTED)

    return wrapped


def leave(sentence: str, code: int) -> None:
    """End the process with a sentence and a code."""
    click.echo(f"clipbench: {' '.join(sentence.split())}", err=True)  # a name or an exception's text may hold line breaks
    sys.exit(code)
