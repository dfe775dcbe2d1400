"""The words of a study page, in one table: where each may stand, its type and default, and what is
wanted of it.

The page model, the names that a component's setting may not take, the sentences about a wrong page
and "belongs elsewhere" follow from `WORDS`. A new word is one row here, and what the study does
with it. This module must not know what is registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from clipbench.errors import one_of

Finite = Annotated[float, Field(gt=0, allow_inf_nan=False, description="positive, finite number")]
Percent = Annotated[float, Field(ge=0, le=100, description="number from 0 to 100")]
Count = Annotated[int, Field(ge=1, description="whole number of at least 1")]

Kind = Literal["workload", "optimizer", "clip"]
KINDS: tuple[Kind, ...] = ("workload", "optimizer", "clip")

# Words that are kept among a component's settings, left out at their default: so labels and
# identities know them, and a component is built without them.
RELATIVE, PERCENTILE, ON, RANKS = "relative", "percentile", "on", "ranks"
SCHEDULE, ACCUMULATE = "schedule", "accumulate"
KEPT = (RELATIVE, PERCENTILE, ON, RANKS, SCHEDULE, ACCUMULATE)
# Words that give a threshold in the pilot's terms, and what they give. A clip may call its own
# threshold a percentile.
OF_PILOT = {RELATIVE: "multiple", PERCENTILE: "percentile"}
# What a clip is applied to. The last two are mistakes of training on several processes: each clips
# its own part of the batch's gradient, or takes the norm of its own shard of it.
GRADIENT, UPDATE, EXAMPLE, RANK, SHARD = "gradient", "update", "example", "rank", "shard"
APART = (EXAMPLE, RANK)  # what has a gradient for each piece of the batch
CONSTANT = "constant"  # the schedule that changes nothing

REQUIRED: Any = ...  # in place of a default: the word must be given
TABLE, TABLES = "table", "tables"  # types: the table with the word's name; at least one such table

PAGE = "page"  # the home of words above all tables
PLACES = {
    PAGE: "the top of the page, before its first table",
    "run": "[run]",
    "protocol": "[protocol]",
    "untuned": "[untuned]",
    "seeds": "the table `seeds`",
    "workload": "a [[workload]]",
    "optimizer": "an [[optimizer]]",
    "clip": "a [[clip]]",
}


@dataclass(frozen=True)
class Word:
    """One word of a page.

    ``homes`` maps each table that the word may stand in to its default there; None leaves a
    component's table without one, and what [run] says holds. ``wanted`` says in words what ``type``
    demands.
    """

    name: str
    type: Any
    wanted: str
    homes: Mapping[str, Any]


_OPTIONAL: dict[str, Any] = {"workload": None, "optimizer": None, "clip": None}
_DEVICE = Literal["cpu", "cuda"]
_DTYPE = Literal["float32", "tf32", "float64", "bfloat16-mixed"]
_ON: Any = Literal[GRADIENT, UPDATE, EXAMPLE, RANK, SHARD]
_RATES = Finite | list[Finite]
_GIVEN = Finite | dict[str, Finite]
_NONE, _NONES = Annotated[int, Field(ge=0)], "a whole number of at least 0"
_COUNT, _COUNTS = "a whole number of at least 1", "a whole number of at least 1, or a list of them"

WORDS = (
    Word("title", str, "text", {PAGE: ""}),
    Word("use", list[str], "a list of file names", {PAGE: []}),
    Word("run", TABLE, "a table with at least `steps`", {PAGE: REQUIRED}),
    Word("protocol", TABLE, "a table with `grade` or `percentile`", {PAGE: {}}),
    Word("untuned", TABLE, "a table with `lr` and `threshold`", {PAGE: {}}),
    Word("workload", TABLES, "at least one [[workload]] table", {PAGE: REQUIRED}),
    Word("optimizer", TABLES, "at least one [[optimizer]] table", {PAGE: REQUIRED}),
    Word("clip", TABLES, "at least one [[clip]] table", {PAGE: REQUIRED}),
    # a component's table
    Word("torch", str, 'text such as "torch.optim.NAdam"', {"optimizer": None}),
    Word("name", str, "text", {"workload": REQUIRED, "optimizer": REQUIRED, "clip": REQUIRED}),
    # [run], and a component's table
    Word("steps", Count, _COUNT, {"run": REQUIRED, **_OPTIONAL}),
    Word("batch", Count | list[Count], _COUNTS, {"run": 32, **_OPTIONAL}),
    Word("device", _DEVICE | list[_DEVICE], '"cpu", "cuda", or a list of them', {"run": "cpu"}),
    Word(
        "dtype",
        _DTYPE | list[_DTYPE],
        '"float32", "tf32", "float64", "bfloat16-mixed", or a list of them',
        {"run": "float32"},
    ),
    Word("lr", _RATES, "a positive number, or a list of them", {"run": None}),
    Word(
        "lr",
        _RATES | dict[str, _RATES],
        "a positive number, a list of them, or a table of lists by name",
        _OPTIONAL,
    ),
    Word(
        SCHEDULE,
        str | list[str],
        'text such as "cosine" or "step(factor=0.3)", or a list of such',
        {"run": CONSTANT, "workload": None, "optimizer": None},
    ),
    Word(ACCUMULATE, Count | list[Count], _COUNTS, {"run": 1, "workload": None}),
    Word(
        "seeds", TABLE, "a table such as { select = 3, report = 10 }", {"run": {}, "workload": None}
    ),
    Word(
        "engine", Literal["auto", "loop", "batched"], '"auto", "loop" or "batched"', {"run": "auto"}
    ),
    Word("evaluations", Count, _COUNT, {"run": 20}),
    # The same study once more, from weights that differ in their last digits.
    Word("replica", _NONE, _NONES, {"run": 0}),
    Word("extend", bool, "true or false", {"run": True}),
    Word("events", dict[str, float], "a table of numbers", {"run": {}}),
    Word(RELATIVE, _RATES, "a positive number, or a list of them", {"clip": None}),
    Word(
        PERCENTILE,
        Percent | list[Percent],
        "a number from 0 to 100, or a list of them",
        {"clip": None},
    ),
    Word(
        ON,
        _ON | list[_ON],
        '"gradient", "update", "example", "rank", "shard", or a list of them',
        {"clip": GRADIENT},
    ),
    Word(RANKS, Count | list[Count], _COUNTS, {"clip": 1}),
    Word(
        "workloads",
        Annotated[list[str], Field(min_length=1)],
        "a list of names of the study's workloads",
        {"optimizer": None, "clip": None},
    ),
    Word(
        "optimizers",
        Annotated[list[str], Field(min_length=1)],
        "a list of names of the study's optimizers",
        {"clip": None},
    ),
    # a table of seeds: how many each phase runs
    Word("select", Count, _COUNT, {"seeds": 3}),
    Word("report", _NONE, _NONES, {"seeds": 10}),
    # How runs are graded and compared: what is read of them, and no part of what they are.
    Word("grade", Literal["best", "last"], '"best" or "last"', {"protocol": "best"}),
    Word(PERCENTILE, Percent, "a number from 0 to 100", {"protocol": 90.0}),
    # Report seeds on which clips of several thresholds run all of them, for the budget curve.
    Word("budget", _NONE, _NONES, {"protocol": 0}),
    # The row nobody tuned: one lr and one threshold for every workload; run for the headline's
    # methods and the `arms` named here.
    Word("lr", _GIVEN, "a positive number, or a table of them by optimizer", {"untuned": 0.01}),
    Word("threshold", _GIVEN, "a positive number, or a table of them by clip", {"untuned": 1.0}),
    Word("arms", list[str], 'a list of arms such as "momentum + value"', {"untuned": []}),
)

HOMES = {
    name: tuple(home for word in WORDS if word.name == name for home in word.homes)
    for name in {word.name for word in WORDS}
}


def words_of(table: str) -> dict[str, Word]:
    """Name → word: those that may stand in a table, in the order of `WORDS`."""
    return {word.name: word for word in WORDS if table in word.homes}


# The names that a setting of a component may not take: a study could never reach it, or a reader
# would take it for [run]'s word.
RESERVED = tuple(dict.fromkeys(name for table in (*KINDS, "run") for name in words_of(table)))
# Word that is kept among a component's settings → what holds if the page says nothing: [run]'s
# default, or that of its only home.
DEFAULTS = {word.name: next(iter(word.homes.values())) for word in WORDS if word.name in KEPT}


def belongs(name: str) -> str:
    """Where a word belongs that stands elsewhere.

    >>> belongs("seeds")
    '`seeds` belongs in [run] or a [[workload]], not here'
    """
    places = [PLACES[home] for home in HOMES[name]]
    return f"`{name}` belongs {'at' if HOMES[name] == (PAGE,) else 'in'} {one_of(places)}, not here"
