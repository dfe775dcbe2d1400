"""The protocol of a run: calibrate, select, extend, report, time. Each phase is a list of cells, and runs what is missing of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from clipbench import engines, execute, registry, selection, throughput
from clipbench.cell import RELATIVE, Cell
from clipbench.engines import Job, Record, rates, stacked
from clipbench.engines.rates import LOOP, Choice
from clipbench.errors import UsageError
from clipbench.protocol import choices, pages
from clipbench.protocol.choices import Asked
from clipbench.protocol.failures import Failures, Reason
from clipbench.protocol.plans import (
    HEADLINE,
    Plan,
    choice_key,
    cores,
    gauge_key,
    headline,
    pilot_key,
    plan,
    predict,
    runnable,
    shards,
)
from clipbench.protocol.watcher import Silent, Watcher
from clipbench.store import CURVES, Store
from clipbench.study import Study, part
from clipbench.task import ARM, TASK, Task, Threshold, arm_of

__all__ = [
    "HEADLINE",
    "PHASES",
    "Plan",
    "Reason",
    "Silent",
    "cores",
    "headline",
    "plan",
    "predict",
    "run",
    "runnable",
    "shards",
    "survey",
]

TIMING = 3600.0  # seconds that the timings of one task may take
PHASES = ("select", "extend", "report")


def run(  # noqa: PLR0913 - what a run may be told
    study: Study,
    store: Store,
    *,
    device: str = "study",
    engine: str | None = None,
    memory: int = rates.MEMORY,
    limit: float | None = None,
    workers: int | None = None,
    curves: str = "all",
    with_throughput: bool = True,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Run what is missing of a study into a claimed store; returns counts for a closing sentence.

    :param engine: ``auto``, ``loop`` or ``batched``; what the study says where not given.
    :param memory: bytes that the lanes of one worker may take.
    :param limit: seconds a shard may take; worked out from the measured rates where not given.
    :returns: ``kept`` and ``ran`` cells, ``diverged``, ``collapsed`` and ``failed`` among all, optimizers ``timed``; ``reasons``, a
        list of `Reason`, says why cells failed.
    """
    watcher = watcher or Silent()
    for moved in store.sweep():
        watcher.note(f"set aside: {moved}")
    asked = runnable(study, device)
    environment = _settle(study, store, asked, curves)
    campaign = _Campaign(study, store, asked, environment, workers or cores(), watcher)
    campaign.limit = limit
    campaign.failures.forget()
    campaign.calibrate()
    campaign.choose(engine or study.document.run.engine, memory)
    campaign.phase("select", asked.cells)
    campaign.phase("extend", campaign.extension() if study.document.run.extend else [])
    campaign.phase("report", campaign.report())
    timed = campaign.time() if with_throughput else 0
    if not store.missing():
        store.compact()
    cells = store.read("cells")
    wanted = cells[cells["cell"].isin(campaign.ids)]
    return {
        "kept": campaign.kept,
        "ran": campaign.ran,
        "diverged": int((wanted["status"] == "diverged").sum()),
        "collapsed": int((wanted["outcome"] == "collapsed").sum()),
        "failed": int((wanted["status"] == "failed").sum()),
        "not_run": sum(entry["cells"] for entry in asked.not_run),
        "timed": timed,
        "reasons": [*campaign.failures.reasons.values()],
    }


def survey(
    study: Study, store: Store, device: str, sizes: Mapping[str, Any], implementations: Sequence[str], watcher: Watcher
) -> int:
    """Time every implementation of every method into a claimed store, beside the timings stored; returns how many blocks.

    :param sizes: model sizes beside those of the study's workloads, name → shapes.
    :raises UsageError: the study has no cell to run here.
    """
    asked = runnable(study, device)
    environment = _settle(study, store, asked, store.page("environment").get("curves", "all"))
    campaign = _Campaign(study, store, asked, environment, 1, watcher)
    campaign.calibrate()
    return campaign.survey(sizes, implementations)


class _Campaign:
    """One call of ``run``: what the phases share."""

    def __init__(self, study: Study, store: Store, asked: Plan, environment: str, workers: int, watcher: Watcher) -> None:
        self.study, self.store, self.asked, self.environment = study, store, asked, environment
        self.workers, self.watcher = workers, watcher
        self.templates = {arm_of(cell): cell for cell in asked.cells}
        self.pilots: dict[str, dict[str, float]] = {}
        self.choices: dict[Any, Choice] = {}
        self.limit: float | None = None
        self.kept = self.ran = 0
        self.failures = Failures(store.folder)
        self.lost: dict[tuple[Any, ...], int] = {}  # group → cells that failed by no fault of their settings
        self.told: set[tuple[Any, ...]] = set()
        self.ids: set[str] = set()

    def calibrate(self) -> None:
        """The pilots of relative thresholds: run once, stored before the first shard, and kept for good."""
        page = self.store.page("calibration")
        self.pilots = page.setdefault("pilots", {})
        missing = [
            (key, cell, clips) for key, (cell, clips) in self._gauges().items() if set(clips) - set(self.pilots.get(key, {}))
        ]
        self.watcher.phase("calibrate", len(missing))
        for key, cell, clips in missing:
            # In a worker of one thread, as the cells are: the thread count changes bits.
            what = f"the pilot of {Task.of(cell).label}"
            found = execute.call(_pilot, (cell, clips), self.study.used, cell.device, what=what, limit=self._patience())
            self.pilots[key] = self.pilots.get(key, {}) | found
            self.watcher.tick()
        self.store.write_page("calibration", page)

    def _patience(self) -> float:
        """Seconds that a pilot, or the choice of an engine, may take."""
        return max(self.limit or 0.0, execute.LIMIT)

    def choose(self, engine: str, memory: int) -> None:
        """How each task is run: measured once, stored before the first shard, and used again by every later run of the folder.

        :raises UsageError: lanes were asked for, and a task cannot have them.
        """
        if engine == LOOP:
            return
        page = self.store.page("calibration")
        tasks: dict[str, list[Job]] = {}
        for cell in self.asked.cells:
            tasks.setdefault(choice_key(cell), []).append(self.job(cell))
        asked = Asked(engine, memory, self._patience(), self.workers, self.study.used)
        missing = choices.missing(page.setdefault("engines", {}), tasks, engine)
        self.watcher.phase("choose", len(missing))
        steps = {key: sum(job.cell.steps for job in jobs) for key, jobs in tasks.items()}
        found = choices.measured({key: tasks[key] for key in missing}, steps, asked, self.watcher.tick)
        # What failed is not remembered: the next run looks again.
        page["engines"] |= {key: choice.page() for key, choice in found.items() if choice.rates}
        if found:
            self.store.write_page("calibration", page)
        for key, jobs in tasks.items():
            choice = found[key] if key in found else Choice(**page["engines"][key])
            self.choices[stacked.shape(jobs[0].cell)] = choices.used(choice, asked)

    def _gauges(self) -> dict[str, tuple[Cell, dict[str, tuple[str, dict[str, Any]]]]]:
        """Task → a cell of it, and the clips with a relative threshold: label → (name, other settings)."""
        gauges: dict[str, tuple[Cell, dict[str, tuple[str, dict[str, Any]]]]] = {}
        for cell in self.asked.cells:
            if cell.relative is not None:
                gauges.setdefault(pilot_key(cell), (cell, {}))[1][gauge_key(cell)] = (cell.clip.name, cell.clip.own)
        return gauges

    def job(self, cell: Cell) -> Job:
        size = self.pilots[pilot_key(cell)][gauge_key(cell)] if cell.relative is not None else None
        return Job(cell, cell.clip_settings(size))

    def phase(self, name: str, cells: Sequence[Cell]) -> None:
        """Run the cells of one phase that are not stored; a failed one is tried again."""
        page = self.store.page("plan")
        before = PHASES[: PHASES.index(name)]  # what came after is asked for anew
        page["cells"] = {**{phase: page["cells"][phase] for phase in before}, name: [cell.id for cell in cells]}
        self.store.write_page("plan", page)
        cells = [cell for cell in cells if cell.id not in self.ids]
        self.ids.update(cell.id for cell in cells)
        stored = self.store.read("cells")
        done = set(stored.loc[stored["status"] != "failed", "cell"])
        missing = [cell for cell in cells if cell.id not in done]
        self.kept += len(cells) - len(missing)
        self.ran += len(missing)
        self.watcher.phase(name, len(missing))
        jobs = [self.job(cell) for cell in missing]
        execute.run(
            jobs,
            self.store,
            name,
            self.environment,
            choices=self.choices,
            use=self.study.used,
            workers=self.workers,
            limit=self.limit,
            on_record=self._ended,
            on_note=self.watcher.note,
        )

    def _ended(self, record: Record) -> None:
        self.watcher.record(record)
        self.failures.note(record)
        if record.fault is not None and record.fault.lost:
            group = arm_of(record.job.cell)
            self.lost[group] = self.lost.get(group, 0) + 1

    def _say_lost(self) -> None:
        """Of what no setting is to blame for, nothing can be chosen."""
        for group, count in self.lost.items():
            if group not in self.told:
                self.told.add(group)
                cells = (
                    f"{count} cells of {group[-1]} on {group[0]} were" if count > 1 else f"a cell of {group[-1]} on {group[0]} was"
                )
                self.watcher.note(
                    f"{cells} killed, took too long or ran out of memory: nothing is chosen for this arm, and `run` tries again."
                )

    def scores(self) -> Any:
        """The selection scores of the cells this study asks for now, but for groups that lost a cell from outside."""
        self._say_lost()
        cells = selection.planned(self.store.read("cells"), self.store.page("plan")["cells"])
        whole = [group not in self.lost for group in cells[ARM].itertuples(index=False, name=None)]
        return selection.score(cells[whole])

    def extension(self) -> list[Cell]:
        """The cells beyond an edge at which a choice lies, as far as a threshold's own range goes: no percentile is above 100.

        Where no seed is reported on, nothing is chosen.
        """
        found = []
        for row in selection.extend(self.scores()).to_dict("records"):
            count = self.study.seeds(self.templates[arm_of(row)].workload.name)
            if not count.report:
                continue
            try:
                cell = self.place(row)
            except UsageError:
                continue
            found += [replace(cell, seed=seed, extended=True) for seed in range(count.select)]
        return found

    def report(self) -> list[Cell]:
        """The chosen settings on fresh seeds, at every reading."""
        protocol = self.store.page("plan")["protocol"]
        seeds = {problem: count["report"] for problem, count in protocol["seeds"].items()}
        rows = selection.readings(self.scores(), seeds, protocol["untuned"], protocol["untuned"]["arms"])
        cells = (replace(self.place(row), seed=int(row["seed"]), role="report") for row in rows.to_dict("records"))
        return list({cell.id: cell for cell in cells}.values())

    def place(self, row: Mapping[str, Any]) -> Cell:
        """The cell at a row's lr and threshold, otherwise like the study's own cells of that arm."""
        template = self.templates[arm_of(row)]
        clip = template.clip
        if clip.threshold is not None:
            others = {name: value for name, value in clip.settings.items() if name not in (RELATIVE, clip.threshold)}
            threshold = Threshold.of(row)
            given = {RELATIVE if threshold.is_relative else clip.threshold: threshold.given}
            clip = part("clip", registry.find("clip", clip.name), {**others, **given}, self.study.where)
        return replace(template, clip=clip, lr=float(row["lr"]))

    def time(self) -> int:
        """Time every method, unless this environment's timings are stored; returns how many benches."""
        stored = self.store.read("throughput")
        names = [*TASK, "optimizer", "clip"]
        same = (stored["environment"] == self.environment) & (stored["implementation"] == throughput.DEFAULT)
        same &= (stored["part"].fillna(throughput.STEP) == throughput.STEP) & (stored["threads"].fillna(1) == 1)
        timed = set(stored.loc[same, names].itertuples(index=False, name=None))
        # Whole benches: a clip that joins a study is timed beside its neighbours, not alone.
        trained = self._trained()
        benches = throughput.benches([self.job(cell) for cell in self.asked.cells if cell.id in trained])
        benches = [bench for bench in benches if not {_method(job.cell) for job in bench} <= timed]
        tasks = [list(group) for _, group in groupby(benches, key=lambda bench: Task.of(bench[0].cell))]
        self.watcher.phase("throughput", len(tasks))
        for task in tasks:
            cell = task[0][0].cell
            what = f"the timing of {Task.of(cell).label}"
            given = (throughput.measure, (task,), self.study.used, cell.device)
            try:
                self._keep_timings(execute.call(*given, what=what, limit=TIMING))
            except UsageError as error:  # the cells are there; the next run tries it again
                self.watcher.note(str(error))
                benches = [bench for bench in benches if bench not in task]
            self.watcher.tick()
        return len(benches)

    def _trained(self) -> set[str]:
        """The cells that could be run: what cannot be cannot be timed."""
        cells = self.store.read("cells")
        return set(cells.loc[cells["status"] != "failed", "cell"])

    def survey(self, sizes: Mapping[str, Any], implementations: Sequence[str]) -> int:
        """Time every implementation of every method; returns how many blocks."""
        parts = throughput.surveys([self.job(cell) for cell in self.asked.cells], sizes, implementations, cores())
        self.watcher.phase("throughput", len(parts))
        blocks, refused = 0, set[str]()
        for one in parts:
            given = (throughput.carry_out, (one,), self.study.used, one.device)
            what = "the timing of implementations"
            rows, refusals = execute.call(*given, what=what, limit=TIMING, threads=one.threads)
            for sentence in refusals:
                if sentence not in refused:
                    self.watcher.note(sentence)
            refused.update(refusals)
            self._keep_timings(rows)
            blocks += len(rows)
            self.watcher.tick()
        return blocks

    def _keep_timings(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Into the store; their numbers go on from those there: blocks of the same number ran side by side."""
        if rows:
            stored = self.store.read("throughput")["block"]
            first = int(stored.max()) + 1 if len(stored) else 0
            self.store.add_throughput([{**row, "environment": self.environment, "block": first + row["block"]} for row in rows])


def _pilot(cell: Cell, clips: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, float]:
    """A pilot in its worker: the clips are built there, with a threshold that nothing reads."""
    built = {}
    for label, (name, settings) in clips.items():
        threshold = registry.threshold_field(registry.find("clip", name))
        built[label] = registry.build("clip", name, {**settings, str(threshold): 1.0})
    return engines.pilot(cell, built)


def _method(cell: Cell) -> tuple[Any, ...]:
    return (*Task.of(cell), cell.optimizer.label, cell.clip.label)


def _settle(study: Study, store: Store, asked: Plan, curves: str) -> str:
    """Write the environment, components and plan pages before the first cell; returns the environment's key."""
    here = pages.environment(asked.cells)
    key = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:8]
    page = store.page("environment")
    page["environments"] = {**page.get("environments", {}), key: here}
    page["curves"] = max(page.get("curves", curves), curves, key=CURVES.index)  # the least that all of it keeps
    store.write_page("environment", page)
    store.write_page("components", pages.components(asked.cells))
    problems = {cell.problem: study.seeds(cell.workload.name).model_dump() for cell in asked.cells}
    untuned = study.document.untuned.model_dump()
    methods = headline(asked.cells)
    untuned["arms"] = [*methods.values(), *untuned["arms"]]
    plan_page = store.page("plan")
    plan_page["protocol"] = {"seeds": problems, "untuned": untuned, "headline": methods}
    plan_page["phases"] = list(PHASES)
    plan_page["not_run"] = asked.not_run
    store.write_page("plan", plan_page)
    return key
