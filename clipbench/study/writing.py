"""A study page from plain values: what a program says, as the TOML that a folder keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from clipbench.errors import UsageError

BARE = re.compile(r"[A-Za-z0-9_-]+")


def as_toml(document: Mapping[str, Any], where: str) -> str:
    """The text of a page: plain values first, then its tables and lists of tables.

    :param where: how an error names the page.
    :raises UsageError: a value that TOML does not have, such as None.
    """
    plain, tables = list[str](), list[str]()
    for name, value in document.items():
        what = f"{where}: `{name}`"
        if isinstance(value, Mapping):
            tables += ["", f"[{_key(name, where)}]", *_lines(value, what)]
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            for table in value:
                if not isinstance(table, Mapping):
                    raise UsageError(f"{what} has {table!r} among its tables.")
                tables += ["", f"[[{_key(name, where)}]]", *_lines(table, what)]
        else:
            plain += _lines({name: value}, where)
    return "\n".join([*plain, *tables]).lstrip("\n") + "\n"


def _lines(table: Mapping[str, Any], where: str) -> list[str]:
    return [f"{_key(name, where)} = {_value(value, where)}" for name, value in table.items()]


def _key(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise UsageError(f"{where} has the name {name!r}, and a name must be text.")
    return name if BARE.fullmatch(name) else _text(name)


def _value(value: Any, where: str) -> str:
    # an array of NumPy or torch, and one number of theirs
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_lines(value, where))} }}" if value else "{}"
    if isinstance(value, list | tuple | range):
        return f"[{', '.join(_value(one, where) for one in value)}]"
    raise UsageError(
        f"{where} has the value {value!r}, and must have text, numbers, true or false, lists or "
        f"tables of them."
    )


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
