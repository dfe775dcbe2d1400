"""What the user is told: the one exception for it, the nearest name, and values in words. It
must not know what is registered.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal


class UsageError(Exception):
    """Something the user can mend, told in one sentence: where, what came, what was wanted, the
    nearest name.
    """


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`` Did you mean X?`` for the closest of ``known``, or nothing if none is as alike as
    ``cutoff`` asks (1: the same).
    """
    names = list(known)
    alike = [one for one in names if one.lower() == word.lower()]  # case is the likeliest slip
    close = alike or difflib.get_close_matches(word, names, n=1, cutoff=cutoff)
    return f" Did you mean {close[0]}?" if close else ""


def describe(annotation: Any) -> str:
    """What a setting wants, in words."""
    if typing.get_origin(annotation) is Annotated:
        for extra in typing.get_args(annotation)[1:]:
            if getattr(extra, "description", None):
                return str(extra.description)
        return describe(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(annotation))
    return {float: "number", int: "whole number", str: "text", bool: "true or false"}.get(
        annotation, str(annotation)
    )


def with_article(annotation: Any) -> str:
    """The same with its article: ``a positive number``, ``true or false``."""
    bare = annotation in (bool, str) or typing.get_origin(annotation) is Literal
    return describe(annotation) if bare else f"a {describe(annotation)}"


def one_of(words: Sequence[str]) -> str:
    """``a, b or c``.

    >>> one_of(["a", "b", "c"]), one_of(["a"])
    ('a, b or c', 'a')
    """
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def counted(number: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """``12 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
