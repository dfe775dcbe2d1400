"""Everything that the sections of a report are made from, read once.

Shared by the sections. It knows none of them, and neither figures nor the parts of a page.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from importlib.resources import files
from typing import Any

import pandas as pd

from clipbench import selection
from clipbench.analysis import budget, headline
from clipbench.analysis.answer import answers
from clipbench.analysis.cells import arms, counts, current, of_task, workload
from clipbench.analysis.clips import against_lower_lr, clip_pairs
from clipbench.analysis.cost import cost
from clipbench.analysis.divergence import prevented
from clipbench.analysis.implementations import DEFAULT
from clipbench.analysis.outcomes import compare, draws, lower_lr, results
from clipbench.analysis.robust import robust
from clipbench.errors import UsageError
from clipbench.figures.style import ordered
from clipbench.report.words import census
from clipbench.schema import RULES, Reading, Role
from clipbench.store import Store
from clipbench.task import ARM, TASK, Task, labels, schedule_of, without_schedule
from clipbench.vocabulary import CONSTANT


@dataclass(frozen=True)
class Evidence:
    """The tables and pages of one store, as the sections need them."""

    store: Store
    cells: pd.DataFrame
    kept: Mapping[str, int]
    components: Mapping[str, Any]
    plan: Mapping[str, Any]
    environment: Mapping[str, Any]
    arms: pd.DataFrame
    drawn: pd.DataFrame
    lowered: pd.DataFrame  # like ``drawn``: clips' optimizers at a lower learning rate
    results: pd.DataFrame
    tasks: Sequence[Task]
    labels: Mapping[Task, str]
    choices: pd.DataFrame
    axes: Mapping[tuple[Task, str, str], headline.Axis]
    levels: pd.DataFrame
    gaps: pd.DataFrame
    rivals: pd.DataFrame
    robust: pd.DataFrame
    budget: pd.DataFrame
    at_median: pd.DataFrame
    replicas: Mapping[int, pd.DataFrame | str]  # number → its gaps, or why they are not here
    throughput: pd.DataFrame
    compared: pd.DataFrame  # the chosen settings of clips, each against its optimizer without one
    answers: pd.DataFrame
    names: dict[tuple[str, str], int] = field(default_factory=dict)

    def curves_of(self, cells: Iterable[str], columns: Sequence[str]) -> pd.DataFrame:
        """The recorded steps of these cells, ``cell``, ``step`` and ``columns``, in the order in
        which they are stored; empty if this copy of the results keeps none.
        """
        return self.store.read("curves", ["cell", "step", *columns], sorted(set(cells)))

    @cached_property
    def chosen_curves(self) -> pd.DataFrame:
        """Loss and norm at every step of the runs at the settings that were chosen."""
        chosen = self.drawn.loc[self.drawn["reading"] == Reading.ALL, "cell"]
        return self.curves_of(chosen.dropna(), ["loss", "grad_norm"])

    def evals_of(self, cells: Iterable[str]) -> pd.DataFrame:
        """Every evaluation of these cells."""
        return self.store.read("evals", cells=sorted(set(cells)))

    @cached_property
    def events(self) -> pd.DataFrame:
        """Every event."""
        return self.store.read("events")

    @cached_property
    def lower(self) -> pd.DataFrame:
        """Clips that fire in most steps, each against a lower learning rate without it."""
        return against_lower_lr(self.drawn, self.lowered, self.components)

    @cached_property
    def other_thresholds(self) -> pd.DataFrame:
        """The thresholds that ran beside those of the answer, a row per problem, arm and threshold;
        ``grid``: on selection seeds, at all learning rates, and not at a default alone.
        """
        keys = ["problem", "arm", "threshold"]
        ran = self.cells[[*keys, "role"]].dropna(subset=["threshold"])
        ran = ran.assign(grid=ran["role"].eq(Role.SELECT).astype(bool))
        points = ran.groupby(keys, as_index=False, sort=False)["grid"].any()
        compared = set(self.answers[keys].itertuples(index=False, name=None))
        other = [one not in compared for one in points[keys].itertuples(index=False, name=None)]
        return points[other]

    @cached_property
    def prevented(self) -> pd.DataFrame:
        """How many runs of a whole axis are lost with each clip and without."""
        return prevented(self.axes, self.arms, self.components)

    @property
    def packaged(self) -> bool:
        """Whether the study is one of the package's own."""
        page = files("clipbench").joinpath("studies", f"{self.store.name}.toml")
        return page.is_file()

    @property
    def title(self) -> str:
        """The study's title, or its name; a replica says that it is one."""
        try:
            page = tomllib.loads(self.store.study)
        except tomllib.TOMLDecodeError:
            return self.store.name
        number = page.get("run", {}).get("replica", 0)
        title = str(page.get("title", self.store.name))
        return f"{title} (replica {number})" if number else title

    @property
    def methods(self) -> dict[str, str]:
        """The named methods that the study holds, method → arm."""
        held = set(self.arms["arm"])
        known = selection.methods(self.plan.get("protocol", {}).get("headline", {}))
        return {name: arm for name, arm in known.items() if arm in held}

    @property
    def named(self) -> str | None:
        """The schedule of the headline, as the store's plan names it; older plans name none."""
        found = self.plan.get("protocol", {}).get("schedule")
        return None if found is None else str(found)

    @cached_property
    def schedules(self) -> set[str]:
        """The schedules of the learning rate that the study's optimizers have."""
        return set(map(schedule_of, self.arms["optimizer_label"]))

    @cached_property
    def schedule(self) -> str | None:
        """The schedule of the headline; None if it is constant, or if the study has several and
        names none.
        """
        met = self.schedules
        named = self.named
        found = named if named in met else min(met) if len(met) == 1 else CONSTANT
        return None if found == CONSTANT else found

    def short(self, arm: str) -> str:
        """An arm's name without the headline's schedule; any other stands after the optimizer."""
        mine = schedule_of(arm)
        if self.schedule is None and mine == CONSTANT:
            return arm
        bare = without_schedule(arm, mine)
        if mine == self.schedule:
            return bare
        optimizer, plus, clip = bare.partition(" + ")
        told = "at constant lr" if mine == CONSTANT else f"by {mine}"
        return f"{optimizer} {told}{plus}{clip}"

    def of_headline(self, arm: str) -> bool:
        """Whether an arm has the headline's schedule, or the study names none."""
        return self.named is None or schedule_of(arm) == self.named

    def labelled(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows with the name by which the page calls their arm."""
        return rows.assign(label=[self.short(arm) for arm in rows["arm"]])

    def shown(self, arms_table: pd.DataFrame) -> pd.DataFrame:
        """Arms whose ``label`` and ``optimizer_label`` are as the page calls them."""
        labels_of = [self.short(str(label)) for label in arms_table["optimizer_label"]]
        return self.labelled(arms_table).assign(optimizer_label=labels_of)

    def ordered(self, arms_table: pd.DataFrame) -> list[str]:
        """The arms as they are shown everywhere."""
        return _order(arms_table, self.named)

    @property
    def defaults(self) -> bool:
        """Whether the settings that nobody tuned are given by name, as defaults are."""
        return "points" in (self.plan.get("protocol", {}).get("untuned") or {})

    @property
    def reports(self) -> bool:
        """Whether the study asks for any fresh seed to report on."""
        return any(
            count["report"] for count in self.plan.get("protocol", {}).get("seeds", {}).values()
        )

    @property
    def rules(self) -> int:
        """By which rules the outcomes were judged; today's if there is no cell yet."""
        return int(self.cells["rules"].fillna(1).max()) if len(self.cells) else RULES

    @property
    def grade(self) -> str:
        """By which checkpoint runs are graded first: ``best`` or ``last``."""
        return str(self.plan.get("protocol", {}).get("grade", "best"))

    @cached_property
    def costs(self) -> pd.DataFrame:
        """What each clip costs in torch's default implementation."""
        return _costs(self.throughput)

    def about(self, task: Sequence[Any]) -> dict[str, Any]:
        """What the components page says of the task's workload."""
        return workload(self.components, task[0])

    def of(self, frame: pd.DataFrame, task: Sequence[Any]) -> pd.DataFrame:
        """The rows of one task."""
        return of_task(frame, task)

    def cells_of(self, ids: Iterable[str]) -> pd.DataFrame:
        """The cells with these identities."""
        return self.cells[self.cells["cell"].isin(set(ids))]

    def behind(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The cells that rows of levels, or of differences from a ``partner``, are made of."""
        sides = [name for name in ("arm", "partner") if name in rows.columns]
        found = set[str]()
        for row in rows.to_dict("records"):
            task = Task.of(row)
            found |= headline.behind([self.axes.get((task, row[s], row["grade"])) for s in sides])
        return self.cells_of(found)

    def machine(self, environment: str) -> str:
        """An environment in words: its key, and what computed there."""
        entry = self.environment.get("environments", {}).get(environment, {})
        processors = [entry.get("processor"), (entry.get("cuda") or {}).get("device")]
        return f"environment {environment}" + "".join(
            f", {processor}" for processor in processors if processor
        )

    def name(self, kind: str, *words: str) -> str:
        """A file name for these words that no other part of this ``kind`` has (``tables``,
        ``figures``).
        """
        slug = (
            "-".join(
                filter(
                    None, (re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)
                )
            )[:80]
            or "part"
        )
        self.names[kind, slug] = self.names.get((kind, slug), 0) + 1
        return slug if self.names[kind, slug] == 1 else f"{slug}-{self.names[kind, slug]}"

    def footer(self, cells: pd.DataFrame) -> str:
        """The line under a figure: the study's hash, and how the figure's cells ended."""
        return f"study {self.store.study_hash} · {census(counts(cells))}"


def read(store: Store) -> Evidence:
    """The evidence in a store."""
    cells, kept = current(store)
    components, plan = store.page("components"), store.page("plan")
    protocol = plan.get("protocol", {})
    drawn = draws(cells, protocol)
    timed = store.read("throughput")
    compared = arms(cells, components)
    scores = selection.score(cells)
    choices = selection.choose(scores)
    starts = headline.starts(headline.evals_of_diverged(store, cells), cells, components)
    found = headline.axes(cells, components, protocol, starts)
    grade = str(protocol.get("grade", "best"))
    methods, named = protocol.get("headline", {}), protocol.get("schedule")
    tasks = sorted({Task(*row) for row in cells[TASK].drop_duplicates().itertuples(index=False)})
    costs = _costs(timed)
    frames = {
        "arms": compared,
        "results": results(drawn, components),
        "levels": headline.levels(found, components),
        "gaps": _in_order(
            headline.gaps(found, compared, components, grade, named), compared, named
        ),
        "robust": _in_order(robust(found, compared, components), compared, named),
        "budget": _in_order(
            budget.curves(cells, compared, components, protocol, starts), compared, named
        ),
        "compared": _in_order(compare(drawn, clip_pairs(compared), components), compared, named),
    }
    beside = {
        "tries": scores.groupby(ARM, sort=False).size().reset_index(name="tries"),
        "costs": costs.assign(arm=costs["optimizer"] + " + " + costs["clip"]).sort_values("ratio"),
    }
    pilots = store.page("calibration").get("pilots", {})
    return Evidence(
        **frames,
        store=store,
        cells=cells,
        kept=kept,
        components=components,
        plan=plan,
        environment=store.page("environment"),
        drawn=drawn,
        lowered=lower_lr(cells, choices, compared, drawn),
        tasks=tasks,
        labels=labels(tasks),
        choices=choices,
        axes=found,
        rivals=headline.rivals(found, methods, compared, components, grade),
        at_median=budget.at_median(cells, compared, components, protocol, starts),
        replicas={number: _gaps_of(store, number) for number in store.replicas},
        throughput=timed,
        answers=answers(found, {**frames, **beside}, components, pilots),
    )


def names(evidence: Evidence) -> dict[str, list[tuple[str, str]]]:
    """What `part` may be asked for: key → name and label of each problem, optimizer and clip."""
    arms_table = evidence.arms
    entries = evidence.components.get("workloads", {})
    return {
        "problem": [
            (str(entries.get(task.problem, {}).get("name", task.problem)), task.problem)
            for task in evidence.tasks
        ],
        **{
            key: list(zip(arms_table[key], arms_table[f"{key}_label"], strict=True))
            for key in ("optimizer", "clip")
        },
    }


def part(evidence: Evidence, chosen: Mapping[str, Collection[str]]) -> Evidence:
    """The evidence on these problems, optimizers and clips, by name or label; a key without names
    leaves nothing out, and no clip is never left out.

    Verdicts, choices and intervals are those of the whole: only what is shown is fewer.
    """
    known = names(evidence)
    problems, optimizers, clips = (
        {label for name, label in known[key] if {name, label} & {*chosen.get(key, ())}}
        or {label for _, label in known[key]}
        for key in ("problem", "optimizer", "clip")
    )
    arms_table = evidence.arms
    kept = arms_table[
        arms_table["problem"].isin(problems)
        & arms_table["optimizer_label"].isin(optimizers)
        & arms_table["clip_label"].isin({*clips, "none"})
    ]
    asked = set(kept["arm"])
    frames = {
        one.name: frame[frame["problem"].isin(problems) & frame["arm"].isin(asked)]
        for one in fields(evidence)
        if isinstance(frame := getattr(evidence, one.name), pd.DataFrame)
        and {"problem", "arm"} <= set(frame.columns)
    }
    return replace(
        evidence,
        **frames,
        tasks=[task for task in evidence.tasks if task.problem in problems],
        axes={key: axis for key, axis in evidence.axes.items() if key[1] in asked},
        throughput=evidence.throughput[evidence.throughput["problem"].isin(problems)],
        names={},
    )


def _costs(throughput: pd.DataFrame) -> pd.DataFrame:
    costs = cost(throughput)
    return costs[costs["implementation"] == DEFAULT]


def _gaps_of(store: Store, number: int) -> pd.DataFrame | str:
    """The comparisons of a replica, or why it is none."""
    try:
        again, line = Store(store.replicas[number]), f"\nreplica = {number}\n"
        if line not in again.study or again.study.replace(line, "\n", 1) != store.study:
            return "its page is not that of this study"
        gaps = headline.of_store(again).gaps
    except UsageError as wrong:
        return str(wrong).removesuffix(".")
    return f"{next(iter(again.bad))} is damaged" if again.bad else gaps


def _in_order(rows: pd.DataFrame, arms_table: pd.DataFrame, named: str | None) -> pd.DataFrame:
    """The rows as arms are shown everywhere."""
    rank = {arm: number for number, arm in enumerate(_order(arms_table, named))}
    return rows.sort_values("arm", key=lambda names: names.map(rank), kind="stable")


def _order(arms_table: pd.DataFrame, named: str | None) -> list[str]:
    """The arms by optimizer, in the order people know, those of the headline's schedule first."""
    return sorted(
        ordered(arms_table), key=lambda arm: named is not None and schedule_of(arm) != named
    )


def flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A page's entry as columns: a nested value has its own name alone, such as ``torch`` of
    ``libraries``; lists are left out.
    """
    columns: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            columns |= flat(value)
        elif not isinstance(value, list):
            columns[name] = value
    return columns
