"""What is wrong with a study page, in one sentence of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from clipbench import registry
from clipbench.errors import nearest
from clipbench.study.page import Document, Page, Run, Seeds, Untuned

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")

WANTED = {
    "steps": "a whole number of at least 1",
    "batch": "a whole number of at least 1, or a list of them",
    "evaluations": "a whole number of at least 1",
    "lr": "a positive number, a list of them, or a table of lists by name",
    "run.lr": "a positive number, or a list of them",
    "untuned.lr": "a positive number",
    "relative": "a positive number, or a list of them",
    "seeds": "a table such as { select = 3, report = 10 }",
    "select": "a whole number of at least 1",
    "report": "a whole number of at least 0",
    "device": '"cpu", "cuda", or a list of them',
    "dtype": '"float32", "float64", "bfloat16-mixed", or a list of them',
    "schedule": 'text such as "cosine" or "step(factor=0.3)", or a list of such',
    "accumulate": "a whole number of at least 1, or a list of them",
    "on": '"gradient", "update", "example", or a list of them',
    "workloads": "a list of names of the study's workloads",
    "engine": '"auto", "loop" or "batched"',
    "threshold": "a positive number",
    "arms": 'a list of arms such as "momentum + value"',
    "name": "text",
    "title": "text",
    "use": "a list of file names",
    "extend": "true or false",
    "events": "a table of numbers",
    "run": "a table with at least `steps`",
    "untuned": "a table with `lr` and `threshold`",
    "workload": "at least one [[workload]] table",
    "optimizer": "at least one [[optimizer]] table",
    "clip": "at least one [[clip]] table",
}


def sentence(where: str, raw: Mapping[str, Any], error: ValidationError) -> str:
    """The first error of the validation library, as a sentence of ours; a word that is not known before one that is missing."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    place = [step for step in first["loc"] if isinstance(step, int) or step in WANTED or first["type"] == "extra_forbidden"]
    section = str(place[0])
    if section in registry.KINDS and len(place) > 1 and isinstance(place[1], int):
        where, path = f"{where}, {ordinal(place[1])} [[{section}]]", place[2:]
    elif section in ("run", "untuned") and len(place) > 1:
        where, path = f"{where}, [{section}]", place[1:]
    else:
        path = place
    names = [str(step) for step in path if not isinstance(step, int)]
    name = names[-1] if names else section
    if first["type"] == "extra_forbidden":
        pages: dict[str, type[Page]] = {"run": Run, "untuned": Untuned}
        known = (Seeds if "seeds" in names else pages.get(section, Document)).model_fields
        hint = nearest(name, known)
        return f"{where}: there is no setting `{name}`. There are: {', '.join(known)}.{hint}"
    wanted = WANTED.get(f"{section}.{name}") or WANTED.get(name, "something else")
    if first["type"] == "missing":
        return f"{where}: `{name}` is missing; it must be {wanted}.{_written_for(name, raw, first)}"
    return f"{where}: `{name}` is {_given(raw, first)}, and must be {wanted}."


def _written_for(name: str, raw: Mapping[str, Any], first: Any) -> str:
    """What stands in a table that may have words of its own, where a missing word may have been meant."""
    table: Any = raw
    for step in first["loc"][:-1]:
        table = table[step]
    close = [word for word in table if nearest(word, [name])]
    return f" Did you mean it by `{close[0]}`?" if close else ""


def _given(raw: Mapping[str, Any], first: Any) -> str:
    value: Any = raw
    for step in first["loc"]:  # a union's own words are no step of the page
        inside = (
            step in value if isinstance(value, dict) else isinstance(value, list) and isinstance(step, int) and step < len(value)
        )
        value = value[step] if inside else value
    return repr(value)


def ordinal(number: int) -> str:
    """0 → first."""
    return ORDINALS[number] if number < len(ORDINALS) else f"{number + 1}th"
