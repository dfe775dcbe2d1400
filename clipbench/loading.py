"""A results folder in Python and in a notebook: its tables as frames, and what it says of clips.

It shows what is stored, and must not know how cells are run.
"""

from __future__ import annotations

import html
import re
import tomllib
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from clipbench import schema
from clipbench.analysis import headline
from clipbench.analysis.answer import of_median
from clipbench.analysis.cells import counts
from clipbench.errors import UsageError, nearest
from clipbench.schema import Kind, Outcome, Role, Status
from clipbench.store import Store
from clipbench.task import ARM

if TYPE_CHECKING:
    from clipbench.figures import Figure
    from clipbench.report.evidence import Evidence
    from clipbench.report.parts import Picture

ROWS = {
    "cells": "a run of the study, with its settings and how it ended",
    "curves": "a training step of a run: its loss, its gradient and what the clip did",
    "evals": "a value of an evaluation of a run",
    "events": "something that happened in a run, such as a divergence",
    "throughput": "a timed block of training steps, of no cell",
}
TERMS = {"status": Status, "outcome": Outcome, "role": Role, "kind": Kind}  # by column
LISTED = 8  # values in a sentence
HEADLINE = {  # column → what it is
    "problem": "the workload with its settings",
    "optimizer": "the optimizer's name",
    "clip": "the clip's name",
    "verdict": "the verdict, in the words of the report",
    "difference": "what the clip gains, in the unit of the metric, above zero if it is better",
    "low": "the lower end of its 95 % interval",
    "high": "the upper end",
    "family_low": (
        "the lower end of what holds for all of its family together: at 95 %, or at 97.5 % if the "
        "study asks two families first"
    ),
    "family_high": "the upper end, by which the verdict is said",
    "n": "the seeds that both know",
    "margin": "a difference inside ± this does not matter",
    "estimate": "what somebody reaches who tunes on three seeds",
    "estimate_partner": "the same without the clip",
    "lr": "the learning rate that is chosen most often",
    "lr_partner": "the same without the clip",
    "threshold": "the threshold as a number",
    "relative": "the threshold as a multiple of the pilot's median size, if the study says so",
    "percentile": "the threshold as a percentile of the pilot's sizes, if the study says so",
    "of_median": "the threshold as a multiple of the pilot's median size, however it was given",
    "fired": "the share of steps that the clip altered",
    "smallest": 'the smallest margin at which "no difference" would hold',
    "needed": "the seeds that would decide",
    "grade": "by which checkpoint runs are graded, best or last",
    "arm": "the optimizer and the clip with their settings",
    "partner": "the arm without the clip",
    "optimizer_label": "the optimizer with its settings",
    "clip_label": "the clip with its settings other than the threshold",
    "family": "the comparisons that are corrected together",
    "batch": "the examples in a batch",
    "device": "where it ran",
    "dtype": "the type of the weights",
}


def _table(name: str) -> property:
    """A table as an attribute, with its columns as docstring."""
    said = {
        f"``{column.name}``{f' [{column.unit}]' if column.unit else ''}": column.meaning
        for column in schema.TABLES[name]
    }
    about = _with_columns(f"A frame of the table ``{name}``. A row is {ROWS[name]}.", said)
    return property(partial(Results.read, table=name), doc=about)


def _with_columns(opening: str | None, said: Mapping[str, str]) -> str:
    """A docstring with a line per column."""
    lines = [cleandoc(opening or ""), ""]
    for column, meaning in said.items():
        escaped = re.sub(r"_(?!\w)", r"\_", meaning)  # else it would be a link
        lines.append(f"- {column}: {escaped}.")
    return "\n".join(lines)


class Results:
    """The results of one study, of the folder in which they lie.

    ``cells``, ``curves``, ``evals``, ``events`` and ``throughput`` are whole tables; `read` takes
    some rows and columns of one, and `headline` is the study's answer. Columns of tables are in
    Arrow types, and an absent value is ``<NA>``.
    """

    cells: Any
    curves: Any
    evals: Any
    events: Any
    throughput: Any

    def __init__(self, folder: Path | str) -> None:
        self.store = Store(folder)

    @property
    def folder(self) -> Path:
        """Where the results lie."""
        return self.store.folder

    @property
    def title(self) -> str:
        """The study's title; its name if it has none."""
        try:
            return str(tomllib.loads(self.store.study).get("title") or self.store.name)
        except tomllib.TOMLDecodeError:
            return self.store.name

    def read(
        self, table: str, *, columns: Iterable[str] | None = None, **where: Any
    ) -> pd.DataFrame:
        """A frame of one table, of some rows and columns; of the other rows of large tables
        nothing is taken apart.

        >>> results.read("curves", problem="digits", optimizer="adam",
        ...              lr=[0.01, 0.1], columns=["cell", "step", "loss"])  # doctest: +SKIP

        :param table: cells, curves, evals, events or throughput.
        :param columns: those that are wanted; all if not given.
        :param where: column → the value, or the values, that it must have; None for an absent one.
            The column is one of the table, or one of ``cells``.
        :raises UsageError: a table, a column or a value that there is not.
        """
        if table not in schema.TABLES:
            raise UsageError(
                f'there is no table "{table}".{nearest(table, schema.TABLES)} There are: '
                f"{', '.join(schema.TABLES)}."
            )
        own = _names(table)
        wanted = own if columns is None else [columns] if isinstance(columns, str) else [*columns]
        for name in wanted:
            if name not in own:
                raise UsageError(f'"{table}" has no column "{name}".{nearest(name, own)}')
        of_cells = set() if table == "throughput" else {*_names("cells")} - {*own} | {"cell"}
        for name in where:
            if name not in own and name not in of_cells:
                raise UsageError(
                    f'"{table}" has no column "{name}"{", nor have the cells" * bool(of_cells)}.'
                    f"{nearest(name, [*own, *sorted(of_cells)])}"
                )
        cells = None
        if chosen := {name: value for name, value in where.items() if name in of_cells}:
            cells = _matching(self.store.read("cells"), chosen, "cells")["cell"].to_list()
        rest = {name: value for name, value in where.items() if name not in of_cells}
        read = list(dict.fromkeys([*wanted, *rest]))
        frame = _matching(self.store.read(table, read, cells), rest, table)
        self._warn()
        return frame[wanted].reset_index(drop=True)

    def headline(self) -> pd.DataFrame:
        """A frame with a row per clip and task: what it gains over the same optimizer without it,
        at the same number of tries, and the verdict.
        """
        compared = headline.of_store(self.store.of_study())
        self._warn()
        levels = compared.levels.drop(columns=["n", "low", "high"])
        partners = levels[[*ARM, "grade", "estimate", "lr"]].rename(columns={"arm": "partner"})
        names = compared.arms[[*ARM, "optimizer", "clip", "optimizer_label", "clip_label"]]
        task = [name for name in ARM if name != "arm"]
        joined = (
            compared.gaps.merge(names, on=ARM, how="left")
            .merge(levels, on=[*ARM, "grade"], how="left")
            .merge(partners, on=[*task, "partner", "grade"], how="left", suffixes=("", "_partner"))
        )
        pilots = self.store.page("calibration").get("pilots", {})
        components = self.store.page("components")
        joined["of_median"] = [
            of_median(row, pilots, compared.arms, components) for row in joined.to_dict("records")
        ]
        return joined[[*HEADLINE]].astype({"verdict": str, "of_median": float})

    def figure(self, name: str, problem: str | None = None) -> Figure:
        """A figure of the report: a matplotlib ``Figure``, which a notebook shows.

        >>> results.figure("grid", problem="digits")  # doctest: +SKIP

        :param name: a section's name (``grid``, ``robust``, ``headline``, …) or a figure's.
        :param problem: which one, if there is a figure for each.
        :raises UsageError: there is no such figure, or several.
        """
        self.store.of_study()
        pictures = self._pictures(name)
        found = [one for one, (anchor, _) in pictures.items() if name in (anchor, one)]
        if problem is None and name in pictures:
            found = [name]  # a figure's own name goes before its section's
        if problem is not None:
            slug = re.sub(r"[^a-z0-9]+", "-", problem.lower()).strip("-")
            found = [one for one in found if f"-{slug}-" in f"{one}-"]
        if len(found) != 1:
            known = found or sorted({anchor for anchor, _ in pictures.values()} | {*pictures})
            raise UsageError(
                f'there {"are several figures" if found else "is no figure"} "{name}"'
                f"{f' of {problem}' if problem else ''}."
                f"{nearest(name, [one for one in known if one != name])} There are: "
                f"{', '.join(known)}."
            )
        return pictures[found[0]][1].draw()

    def _pictures(self, name: str) -> dict[str, tuple[str, Picture]]:
        """Figure → its section, and what draws it: of the section of this name alone, if there is
        one.
        """
        from clipbench.report import sections
        from clipbench.report.parts import Picture, flattened

        self._evidence.names.clear()  # a name is free again
        return {
            picture.name: (section.anchor, picture)
            for section in sections.told(self._evidence, name)
            for picture in flattened(section.parts)
            if isinstance(picture, Picture)
        }

    @cached_property
    def _evidence(self) -> Evidence:
        from clipbench.report.evidence import read

        self._warn()
        return read(self.store)

    def _warn(self) -> None:
        """Name what is damaged: its rows are in no frame."""
        for file, damage in sorted(self.store.bad.items()):
            warnings.warn(f"{self.folder}/{file} {damage}; its rows are left out.", stacklevel=3)

    def _ended(self) -> dict[str, int]:
        return counts(self.store.read("cells", ["outcome", "status"]))

    def __repr__(self) -> str:
        ended = self._ended()
        cells = ended.pop("cells")
        how = ", ".join(f"{number} {word}" for word, number in ended.items() if number)
        return f"<Results of {self.store.name} in {self.folder}: {cells} cells{how and ': '}{how}>"

    def _repr_html_(self) -> str:
        """A summary for a notebook: title, folder, cells by how they ended, tables."""
        numbers = self._ended()
        ended = "".join(f"<td>{number:,}</td>" for number in numbers.values())
        heads = "".join(f"<th>{html.escape(word)}</th>" for word in numbers)
        tables = "".join(
            f"<li><code>.{name}</code>: a row is {html.escape(row)}</li>"
            for name, row in ROWS.items()
        )
        return (
            f"<div><b>{html.escape(self.title)}</b><br><code>{html.escape(str(self.folder))}</code>"
            f"<table><thead><tr>{heads}</tr></thead><tbody><tr>{ended}</tr></tbody></table>"
            f"<ul>{tables}<li><code>.headline()</code>: what each clip gains over the same "
            f"optimizer without it</li><li><code>.figure(name, problem=…)</code>: a figure of the "
            f"report</li></ul></div>"
        )


for _name in schema.TABLES:
    setattr(Results, _name, _table(_name))
Results.headline.__doc__ = _with_columns(
    Results.headline.__doc__, {f"``{name}``": meaning for name, meaning in HEADLINE.items()}
)


def load(folder: Path | str) -> Results:
    """The `Results` of a folder, such as ``results/quick``.

    :raises UsageError: it is no results folder.
    """
    return Results(folder)


def _names(table: str) -> list[str]:
    return [column.name for column in schema.TABLES[table]]


def _matching(frame: pd.DataFrame, where: Mapping[str, Any], table: str) -> pd.DataFrame:
    """The rows that have these values.

    :raises UsageError: no row has one of them, and it is no word that the column may take.
    """
    mask = pd.Series(True, index=frame.index)
    for name, given in where.items():
        several = isinstance(given, Iterable) and not isinstance(given, str)
        there = pd.Series(False, index=frame.index)
        for value in given if several else [given]:
            rows = frame[name].isna() if value is None else _equal(frame[name], value)
            # no run need have come to a step; but whoever misspells a word should hear of it
            asked = len(frame) > 0 and (table == "cells" or isinstance(value, str))
            if asked and not rows.any() and value is not None and name != "cell":
                _refuse_unknown(frame[name], value, table)
            there |= rows
        mask &= there
    return frame[mask.to_numpy(dtype=bool)]


def _equal(column: pd.Series, value: Any) -> pd.Series:
    """Whether each value is the one asked for; of another type none is."""
    try:
        return (column == value).fillna(False).astype(bool)
    except (TypeError, ValueError, NotImplementedError):  # Arrow's, where types have no comparison
        return pd.Series(False, index=column.index)


def _refuse_unknown(column: pd.Series, value: Any, table: str) -> None:
    """Refuse a value that is in no row, unless it is a word that the column may take."""
    known = [str(one) for one in sorted(column.dropna().drop_duplicates())]
    words = [str(term) for term in TERMS.get(str(column.name), ())]
    if value in words:
        return
    row = "cell" if table == "cells" else f'row of "{table}"'
    met = list(dict.fromkeys([*words, *known]))
    listed = ", ".join(met[:LISTED]) + (", …" if len(met) > LISTED else "")
    raise UsageError(
        f"no {row} has the {column.name} {value!r}.{nearest(str(value), met)} There "
        f"{'are' if len(met) > 1 else 'is'}: {listed or 'none'}."
    )
