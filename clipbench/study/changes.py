"""A study with single values changed from outside: what ``-o TABLE.KEY=VALUE`` says."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from clipbench import registry
from clipbench.errors import UsageError, nearest
from clipbench.study import Study, parse
from clipbench.study.writing import as_toml
from clipbench.vocabulary import KINDS, OF_PILOT

SINGLE = ("run", "protocol", "untuned")
FORM = "write TABLE.KEY=VALUE, such as run.steps=100 or 'clip.norm.relative=[1]'"


def changed(study: Study, options: Sequence[str]) -> Study:
    """The study whose page has these values in place of its own; comments of the page are lost.

    :param options: each ``TABLE.KEY=VALUE`` of [run], [protocol] or [untuned], or
        ``KIND.NAME.KEY=VALUE`` of all tables of that component. A value is TOML, or a bare word.
    :raises UsageError: a table, a key or a value that there is not; or a change that changes
        nothing of what is run, because another table of the page says it more closely.
    """
    if not options:
        return study
    before = tomllib.loads(study.text)
    page = _with(before, options)
    if page == before:
        return study
    found = _parsed(study, page, options)
    asked = _asked(found)
    for number, option in enumerate(options):
        others = [*options[:number], *options[number + 1 :]]
        without = _with(before, others)
        try:
            same = without != page and _asked(_parsed(study, without, others)) == asked
        except UsageError:  # without it the others make no study
            continue
        if same:
            raise UsageError(
                f"-o {option}: this changes nothing that is run, because another table of "
                f"{study.where} says it more closely; name that table."
            )
    return found


def _with(page: Mapping[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """The page with all the changes."""
    result = copy.deepcopy(dict(page))
    for option in options:
        path, equals, text = option.partition("=")
        words = path.strip().split(".")
        if not equals or len(words) < 2 or not all(words):
            raise UsageError(f"-o {option}: {FORM}.")
        value = _value(option, text.strip())
        if words[0] in SINGLE:
            _set(result.setdefault(words[0], {}), words[1:], value, option)
        elif words[0] in KINDS:
            kind: Any = words[0]
            tables, key = _tables(result.get(kind, []), kind, words[1:], option)
            for table in tables:
                _make_way(kind, table, key[0])
                if key[0] == "seeds" and len(key) > 1:  # the other number stays as it is
                    table.setdefault("seeds", dict(result.get("run", {}).get("seeds", {})))
                _set(table, key, value, option)
        else:
            known = (*SINGLE, *KINDS)
            raise UsageError(
                f"-o {option}: a page has no table `{words[0]}`.{nearest(words[0], known)} There "
                f"are: {', '.join(known)}."
            )
    return result


def _value(option: str, text: str) -> Any:
    """What is said: TOML, or a bare word, which is text."""
    try:
        said = tomllib.loads(f"value = {text}")
        if list(said) == ["value"]:
            return said["value"]
    except tomllib.TOMLDecodeError:
        if text and text[0] not in "[{\"'" and text.isprintable():
            return text
    raise UsageError(f"-o {option}: the value is neither TOML nor a bare word.")


def _tables(
    tables: Sequence[Any], kind: str, words: Sequence[str], option: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """The tables of the component that is named, and the rest of the words. A name may have dots
    in it, as torch's classes have.
    """
    names = [str(table.get("name", table.get("torch"))) for table in tables]
    for length in range(len(words) - 1, 0, -1):
        name = ".".join(words[:length])
        if name in names:
            named = [table for table, one in zip(tables, names, strict=True) if one == name]
            return named, list(words[length:])
    if ".".join(words) in names:
        raise UsageError(f"-o {option}: {FORM}.")
    raise UsageError(
        f'-o {option}: the study has no {kind} "{words[0]}".{nearest(words[0], names)} There are: '
        f"{', '.join(dict.fromkeys(names))}."
    )


def _make_way(kind: Any, table: dict[str, Any], key: str) -> None:
    """Remove the words that give a threshold another way than the one that is given now."""
    if kind != "clip":
        return
    ways = {*OF_PILOT}
    name = str(table.get("name"))
    if name in registry.names(kind):
        ways.add(str(registry.threshold_field(registry.find(kind, name))))
    if key in ways:
        for word in ways - {key}:
            table.pop(word, None)


def _set(table: dict[str, Any], key: Sequence[str], value: Any, option: str) -> None:
    *outer, last = key
    for word in outer:
        table = table.setdefault(word, {})
        if not isinstance(table, dict):
            raise UsageError(f"-o {option}: `{word}` of the page is no table.")
    table[last] = value


def _parsed(study: Study, page: Mapping[str, Any], options: Sequence[str]) -> Study:
    """The study of a changed page, which says in its first line what was changed."""
    said = " ".join(f"-o {option}" for option in options)
    try:
        text = f"# changed by {' '.join(said.split())}\n{as_toml(page, study.where)}"
        found = parse(study.name, text, study.folder)
        found.templates()
    except UsageError as error:
        raise UsageError(f"{said}: {error}") from None
    return found


def _asked(study: Study) -> Any:
    """All that a page asks for, in a form that can be compared."""
    document = study.document
    cells = {cell.id: study.seeds(cell.workload.name) for cell in study.templates()}
    run = document.run.model_copy(
        update={
            name: None
            for name in type(document.run).model_fields
            if name not in ("engine", "extend", "replica")
        }
    )
    return cells, run, document.protocol, document.untuned, document.title, document.use
