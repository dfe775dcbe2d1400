"""What is wrong with a study page, in one sentence of clipbench's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from clipbench.errors import nearest
from clipbench.vocabulary import HOMES, PAGE, TABLE, TABLES, belongs, words_of

ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
)
# of another table's word, so alike is a slip of the pen only: `workloads` for `workload`
ALIKE = 0.9


class Place(NamedTuple):
    """The position of an error on a page: the name of its table for a sentence, the table, and
    the word in it.
    """

    where: str
    table: str
    name: str


def sentence(where: str, raw: Mapping[str, Any], error: ValidationError) -> str:
    """The first error of the validation library as a sentence of our own; an unknown word comes
    before a missing one.
    """
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    position = _place(where, first["loc"])
    known, name = words_of(position.table), position.name
    if first["type"] == "extra_forbidden":
        if name in HOMES and not nearest(name, known, ALIKE):
            return f"{position.where}: {belongs(name)}."
        return (
            f"{position.where}: there is no setting `{name}`. There are: "
            f"{', '.join(known)}.{nearest(name, known)}"
        )
    wanted = known[name].wanted
    if first["type"] == "missing":
        return (
            f"{position.where}: `{name}` is missing; it must be "
            f"{wanted}.{_written_for(name, raw, first)}"
        )
    return f"{position.where}: `{name}` is {_value_given(raw, first)}, and must be {wanted}."


def _place(where: str, path: tuple[int | str, ...]) -> Place:
    """The last word of a path that leads from the page through its tables; what follows is the
    word's own matter.
    """
    table, inner, name = PAGE, PAGE, ""
    for step in path:
        if isinstance(step, int):
            where = f"{where}, {ordinal(step)} [[{name}]]"
            continue
        if name in ("run", "protocol", "untuned") and table == PAGE:
            where = f"{where}, [{name}]"
        elif name == "seeds":
            where = f"{where} seeds"
        table, name = inner, step
        word = words_of(table).get(name)
        if word is None or word.type not in (TABLE, TABLES):
            break
        inner = name
    return Place(where, table, name)


def _written_for(name: str, raw: Mapping[str, Any], first: Any) -> str:
    """Part of a sentence: the word in a table that may have been meant for a missing word, if
    there is one.
    """
    table: Any = raw
    for step in first["loc"][:-1]:
        table = table[step]
    close = [word for word in table if word not in HOMES and nearest(word, [name])]
    return f" Did you mean it by `{close[0]}`?" if close else ""


def _value_given(raw: Mapping[str, Any], first: Any) -> str:
    value: Any = raw
    for step in first["loc"]:  # a union's own words are no step of the page
        inside = (
            step in value
            if isinstance(value, dict)
            else isinstance(value, list) and isinstance(step, int) and step < len(value)
        )
        value = value[step] if inside else value
    return repr(value)


def ordinal(number: int) -> str:
    """0 → first."""
    return ORDINALS[number] if number < len(ORDINALS) else f"{number + 1}th"
