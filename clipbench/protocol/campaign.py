"""What the phases of one run share: the study and its store, the executor, and what has been run
so far.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from clipbench import execute, registry
from clipbench.cell import Cell
from clipbench.engines import Job, Record
from clipbench.engines.rates import Choice
from clipbench.execute import Call, Executor, Setting
from clipbench.protocol import pages
from clipbench.protocol.failures import Failures, Reason
from clipbench.protocol.part import Part, shared_by_parts
from clipbench.protocol.plans import (
    Plan,
    finished,
    gauge_key,
    headline,
    pilot_key,
    runnable,
    schedule,
    untuned,
)
from clipbench.protocol.preregister import preregister
from clipbench.protocol.watcher import Watcher
from clipbench.schema import Outcome, Status
from clipbench.store import CURVES, Store, cells_of
from clipbench.study import Study
from clipbench.study.component import part
from clipbench.study.only import Only
from clipbench.task import Threshold, arm_of
from clipbench.vocabulary import OF_PILOT

PHASES = ("select", "extend", "report")
CALIBRATED = ("pilots", "engines")


@dataclass(frozen=True)
class Options:
    """The options of a run.

    :param device: ``study`` (what the page says), ``cpu``, ``cuda``, ``cuda:1`` or ``auto``.
    :param engine: ``auto``, ``loop`` or ``batched``; what the study says if not given.
    :param memory: bytes that the lanes of one worker may take; 2 GB on the CPU and most of a CUDA
        device if not given.
    :param limit: seconds a shard may take; worked out from the measured rates if not given.
    :param workers: processes on this machine; one a core, and one a CUDA device, if not given.
    :param curves: whose curves are kept, of `store.CURVES`.
    :param throughput: whether every method is timed after the training.
    :param only: which problems and arms are run; the pages of the store tell of the whole.
    :param part: which part of each phase is run here.
    :param after: the folder of what all parts share, or of what was merged of them.
    :param executor: the name of who runs the work, and its options.
    """

    device: str = "study"
    engine: str | None = None
    memory: int | None = None
    limit: float | None = None
    workers: int | None = None
    curves: str = "all"
    throughput: bool = True
    only: Only = field(default_factory=Only)
    part: Part | None = None
    after: Path | None = None
    executor: str = execute.LOCAL
    executor_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def elsewhere(self) -> bool:
        """Whether cells run on other machines than this one."""
        return self.executor != execute.LOCAL

    @property
    def patience(self) -> float:
        """Seconds that a pilot, or the choice of an engine, may take."""
        return max(self.limit or 0.0, execute.LIMIT)


@dataclass
class Counts:
    """How many cells a run ``kept`` and ``ran``, and how they ended.

    ``diverged``, ``collapsed`` and ``failed`` count among all cells; ``not_run`` those for an
    absent device; ``timed`` counts methods; ``reasons`` say why cells failed. ``elsewhere`` are the
    cells of a phase that other parts run.
    """

    kept: int = 0
    ran: int = 0
    diverged: int = 0
    collapsed: int = 0
    failed: int = 0
    not_run: int = 0
    timed: int = 0
    elsewhere: int = 0
    reasons: list[Reason] = field(default_factory=list)


@dataclass
class Campaign:
    """One run of a study into a claimed store."""

    study: Study
    store: Store
    plan: Plan
    options: Options
    executor: Executor
    setting: Setting
    environment: str  # the key of this machine's
    watcher: Watcher
    after: Store | None = None  # what was merged of other parts
    counts: Counts = field(default_factory=Counts)
    pilots: dict[str, dict[str, float]] = field(default_factory=dict)
    choices: dict[Any, Choice] = field(default_factory=dict)  # by `structure.shape`
    # arm → cells that failed by no fault of their settings
    lost: dict[tuple[Any, ...], int] = field(default_factory=dict)
    told: set[tuple[Any, ...]] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    asked: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # cell → its arm

    @cached_property
    def failures(self) -> Failures:
        return Failures(self.store.folder)

    @cached_property
    def templates(self) -> dict[tuple[Any, ...], Cell]:
        """A cell of every arm."""
        return {arm_of(cell): cell for cell in self.plan.cells}

    @cached_property
    def cells(self) -> list[Cell]:
        """The selection cells of every problem of which this run runs some."""
        return [cell for cell in self.plan.cells if self.options.only.of_problem(cell)]

    def job(self, cell: Cell) -> Job:
        """The cell with its threshold as a number."""
        size = (
            self.pilots[pilot_key(cell)][gauge_key(cell, cell.percentile)]
            if cell.needs_pilot
            else None
        )
        return Job(cell, cell.clip_settings(size))

    def at(self, row: Mapping[str, Any]) -> Cell:
        """The cell at a row's lr and threshold, otherwise like the study's own cells of that arm.

        :raises UsageError: the clip cannot have such a threshold.
        """
        template = self.templates[arm_of(row)]
        clip = template.clip
        if clip.threshold is not None:
            others = {
                name: value
                for name, value in clip.settings.items()
                if name not in (*OF_PILOT, clip.threshold)
            }
            threshold = Threshold.of(row)
            resolved = {threshold.word or clip.threshold: threshold.given}
            clip = part(
                "clip", registry.find("clip", clip.name), {**others, **resolved}, self.study.where
            )
        return replace(template, clip=clip, lr=float(row["lr"]))

    def train(self, phase: str, cells: Sequence[Cell]) -> None:
        """Run the cells of one phase that are not stored; a failed one is tried again."""
        page = self.store.page("plan")
        before = PHASES[: PHASES.index(phase)]  # later phases ask for their cells anew
        page["cells"] = {
            **{name: page["cells"][name] for name in before},
            phase: [cell.id for cell in cells],
        }
        self.store.write_page("plan", page)
        self.asked |= {cell.id: arm_of(cell) for cell in cells}
        cells = [cell for cell in cells if cell.id not in self.ids]
        cells = [cell for cell in cells if self.options.only.meets(cell)]
        self.ids.update(cell.id for cell in cells)
        done = finished(self.stored())
        missing = [cell for cell in cells if cell.id not in done]
        if (part := self.options.part) is not None:
            mine = {cell.id for cell in part.cells(cells)}
            self.counts.elsewhere = sum(cell.id not in mine for cell in missing)
            cells = [cell for cell in cells if cell.id in mine]
            missing = [cell for cell in missing if cell.id in mine]
        self.counts.kept += len(cells) - len(missing)
        self.counts.ran += len(missing)
        self.watcher.phase(phase, len(missing))
        execute.run(
            [self.job(cell) for cell in missing],
            self.store,
            phase,
            self.executor,
            self.setting,
            choices=self.choices,
            limit=self.options.limit,
            on_record=self._note_end,
            on_note=self.watcher.note,
        )

    def stored(self) -> Any:
        """The stored cells, a frame: those of the folder, and of other parts."""
        return cells_of([self.store, *([] if self.after is None else [self.after])])

    def _note_end(self, record: Record) -> None:
        self.watcher.record(record)
        self.failures.note(record)
        if record.fault is not None and record.fault.lost:
            arm = arm_of(record.job.cell)
            self.lost[arm] = self.lost.get(arm, 0) + 1

    def environment_of(self, page: Mapping[str, Any] | None) -> str:
        """The key of a machine's environment, which is filed; this machine's if none is given."""
        if page is None:
            return self.environment
        key = execute.key_of(page)
        filed = self.store.page("environment")
        if key not in filed["environments"]:
            filed["environments"][key] = dict(page)
            self.store.write_page("environment", filed)
        return key

    def finish(self) -> Counts:
        """The counts of the run; a finished store is compacted."""
        if self.options.part is not None or not self.store.missing():
            self.store.compact()
        cells = self.store.read("cells")
        wanted = cells[cells["cell"].isin(self.ids)]
        self.counts.diverged = int((wanted["status"] == Status.DIVERGED).sum())
        self.counts.collapsed = int((wanted["outcome"] == Outcome.COLLAPSED).sum())
        self.counts.failed = int((wanted["status"] == Status.FAILED).sum())
        self.counts.not_run = sum(entry["cells"] for entry in self.plan.not_run)
        self.counts.reasons = [*self.failures.reasons.values()]
        return self.counts


def begin(
    study: Study, store: Store, options: Options, executor: Executor, watcher: Watcher
) -> Campaign:
    """A campaign whose pages are written, so that a reader knows before the first cell what was
    asked for.

    :raises UsageError: the study has no cell to run here.
    """
    plan = runnable(study, options.device, options.elsewhere)
    on_cuda = any(cell.device == "cuda" for cell in plan.templates)
    setting = Setting(
        tuple(study.used),
        1,
        "cuda" if on_cuda else "cpu",
        executor.cards.indices[0],
        run=secrets.token_hex(8),
    )
    # Where cells run: that may be another machine, and a look at a device takes memory on it for
    # as long as the process lives that looks.
    look = Call(execute.environment, (setting.device,), "the look at the machine")
    here = (
        execute.call(executor, look, setting)
        if on_cuda or options.elsewhere
        else execute.environment("cpu")
    )
    after = shared_by_parts(study, plan.templates, options.part, options.after)
    environment_key = _write_pages(study, store, plan, here, options)
    if after is not None:
        own, shared = store.page("calibration"), after.page("calibration")
        known = {name: {**own.get(name, {}), **shared.get(name, {})} for name in CALIBRATED}
        store.write_page("calibration", known)
    return Campaign(study, store, plan, options, executor, setting, environment_key, watcher, after)


def _write_pages(
    study: Study, store: Store, plan: Plan, here: Mapping[str, Any], options: Options
) -> str:
    """The key of this machine's environment; the environment, components and plan pages are
    written.
    """
    environment_key = execute.key_of(here)
    page = store.page("environment")
    page["environments"] = {**page.get("environments", {}), environment_key: here}
    # the least that all of it keeps
    page["curves"] = max(page.get("curves", options.curves), options.curves, key=CURVES.index)
    store.write_page("environment", page)
    store.write_page("components", pages.components(plan.cells))
    problems = {cell.problem: study.seeds(cell.workload.name).model_dump() for cell in plan.cells}
    plan_page = store.page("plan")
    plan_page["protocol"] = {
        "seeds": problems,
        "untuned": untuned(study.document.untuned, plan.templates),
        "headline": headline(plan.templates),
        "schedule": schedule(plan.templates),
        **study.document.protocol.model_dump(),
    }
    plan_page["phases"] = list(PHASES)
    if options.part is not None:
        plan_page["part"] = str(options.part)
    plan_page["not_run"] = plan.not_run
    store.write_page("plan", plan_page)
    preregister(store, plan.cells, plan_page["protocol"])
    return environment_key
