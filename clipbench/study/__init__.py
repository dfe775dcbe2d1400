"""A study: one TOML page that declares a matrix, and the cells of that matrix."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clipbench import lr_schedules, registry
from clipbench.cell import Cell, Part
from clipbench.errors import UsageError, nearest
from clipbench.events import Rules
from clipbench.study.component import part, refuse_unfit
from clipbench.study.page import Document, Page, Seeds, Table
from clipbench.study.sentences import ordinal, sentence
from clipbench.vocabulary import (
    ACCUMULATE,
    DEFAULTS,
    OF_PILOT,
    ON,
    RANKS,
    RESERVED,
    SCHEDULE,
    UPDATE,
    belongs,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
DEVICE_NAMES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)),
}


@dataclass(frozen=True)
class Study:
    """A parsed study page: its name (the file's stem), its text, and the folder its ``use``
    files are relative to.
    """

    name: str
    text: str
    folder: Path
    document: Page

    @property
    def where(self) -> str:
        """How an error names the page."""
        return f"{self.name}.toml"

    @property
    def used(self) -> list[tuple[Path, str]]:
        """The plug-ins that the study loads, each with its hash."""
        return [
            (path, registry.digest_of(path))
            for path in (self.folder / file for file in self.document.use)
        ]

    def cells(self) -> list[Cell]:
        """The cells of the selection phase: the whole grid on the selection seeds 0, 1, ….

        :raises UsageError: an unknown component, an unfit or empty axis, or two tables that give
            the same cell.
        """
        return [
            replace(one, seed=seed)
            for one in self.templates()
            for seed in range(self.seeds(one.workload.name).select)
        ]

    def templates(self) -> list[Cell]:
        """The cells of the selection phase on the first seed, 0: a study without its other seeds.

        :raises UsageError: as `cells` does.
        """
        templates: dict[str, Cell] = {}
        lengths: dict[tuple[str, int], int] = {}
        for template in self._grid():
            steps = lengths.setdefault((template.problem, template.batch), template.steps)
            if steps != template.steps:
                difference = (
                    f'"{template.problem}" is asked for at {steps} and at {template.steps} steps'
                )
                raise UsageError(
                    f"{self.where}: {difference}; runs of unequal length do not compare."
                )
            if template.id in templates:
                point = f"{template.problem}, {template.arm}, lr {template.lr:g}"
                raise UsageError(
                    f"{self.where}: the same cell is asked for twice ({point}); two tables or two "
                    f"values repeat each other."
                )
            templates[template.id] = template
        met = {cell.workload.name for cell in templates.values()}
        for number, table in enumerate(self.document.workload):
            if table.name not in met:
                where = f"{self.where}, {ordinal(number)} [[workload]]"
                raise UsageError(
                    f'{where}: no optimizer with a clip is for "{table.name}"; look at their '
                    f"`workloads`."
                )
        ran = {cell.optimizer.name for cell in templates.values()}
        for number, table in enumerate(self.document.optimizer):
            if table.name not in ran:
                where = f"{self.where}, {ordinal(number)} [[optimizer]]"
                raise UsageError(
                    f'{where}: no clip is for "{table.name}" on its workloads; look at the clips\' '
                    f"`optimizers`, and at `workloads`."
                )
        arms = {cell.arm for cell in templates.values()}
        untuned, where = self.document.untuned, f"{self.where}, [untuned]"
        for given, tables, word in (
            (untuned.lr, self.document.optimizer, "lr"),
            (untuned.threshold, self.document.clip, "threshold"),
        ):
            _refuse_unknown(given if isinstance(given, dict) else (), tables, f"{where}: `{word}`")
        for arm in self.document.untuned.arms:
            if arm not in arms:
                raise UsageError(
                    f'{self.where}, [untuned]: the study has no arm "{arm}".{nearest(arm, arms)}'
                )
        return list(templates.values())

    def seeds(self, workload: str) -> Page:
        """How many seeds each phase runs on one workload: one of each if it says that it has no
        randomness.
        """
        if getattr(registry.find("workload", workload), "deterministic", False):
            return Seeds(select=1, report=min(1, self.document.run.seeds.report))
        own = [
            table.seeds
            for table in self.document.workload
            if table.name == workload and table.seeds
        ]
        return own[0] if own else self.document.run.seeds

    def _grid(self) -> Iterator[Cell]:
        run = self.document.run
        events = self._events(run.events)
        workloads = list(self._components("workload", self.document.workload))
        optimizers = list(self._components("optimizer", self.document.optimizer))
        clips = list(self._components("clip", self.document.clip))
        for (w, workload), (o, optimizer), (c, clip) in product(workloads, optimizers, clips):
            if not (o.meets(w.name) and c.meets(w.name) and c.clips(o.name)):
                continue
            steps = c.steps or o.steps or w.steps or run.steps
            size = next(one for one in (c.batch, o.batch, w.batch, run.batch) if one is not None)
            batches = _axis(size, f"{self.where}, [run]: `batch`")
            devices = _axis(run.device, f"{self.where}, [run]: `device`")
            dtypes = _axis(run.dtype, f"{self.where}, [run]: `dtype`")
            schedules = self._schedules(w, o)
            numbers = _axis(
                run.accumulate if w.accumulate is None else w.accumulate,
                f"{self.where}, [run]: `accumulate`",
            )
            if clip.settings.get(ON) == UPDATE and not hasattr(
                registry.find("optimizer", optimizer.name), "update"
            ):
                raise UsageError(
                    f'{self.where}: "{clip.label}" clips the update of a pure rule, and '
                    f'"{optimizer.name}" has none; '
                    "leave one of the two out."
                )
            for batch, number, device, dtype, schedule, lr in product(
                batches, numbers, devices, dtypes, schedules, self._rates(w, o, c)
            ):
                if batch % number:
                    raise UsageError(
                        f"{self.where}: a batch of {batch} cannot be taken in {number} equal parts "
                        f"(`accumulate`)."
                    )
                taken = _with(workload, ACCUMULATE, number)
                stepped = _with(optimizer, SCHEDULE, schedule)
                yield Cell(
                    taken,
                    stepped,
                    clip,
                    float(lr),
                    0,
                    steps,
                    batch,
                    device,
                    dtype,
                    run.evaluations,
                    events,
                    run.replica,
                )

    def _schedules(self, w: Table, o: Table) -> list[str]:
        """The schedules of one workload and optimizer: the optimizer's own, the workload's, the
        study's.
        """
        what = f"{self.where}, [run]: `schedule`"
        for schedule in (o.schedule, w.schedule, self.document.run.schedule):
            if schedule is not None:
                return _axis(
                    [lr_schedules.canonical(one, what) for one in _axis(schedule, what)], what
                )
        return []

    def _events(self, changes: Mapping[str, float]) -> dict[str, float]:
        """The event thresholds that differ from the rules' own."""
        rules, changed = vars(Rules()), {}
        for name, value in changes.items():
            if name not in rules:
                raise UsageError(
                    f"{self.where}, [run] events: there is no rule `{name}`.{nearest(name, rules)}"
                )
            whole = isinstance(rules[name], int)
            if not value > 0 or (whole and not value.is_integer()):
                wanted = "positive whole number" if whole else "positive number"
                raise UsageError(
                    f"{self.where}, [run] events: `{name}` is {value!r}, and must be a {wanted}."
                )
            if value != rules[name]:
                changed[name] = type(rules[name])(value)
        return changed

    def _rates(self, w: Table, o: Table, c: Table) -> list[float]:
        """The lr axis of one workload, optimizer and clip: the most specific one that the page
        gives.
        """
        named = [
            table.lr.get(other)
            for table, other in ((w, o.name), (o, w.name))
            if isinstance(table.lr, dict)
        ]
        plain = [table.lr for table in (o, w) if not isinstance(table.lr, dict)]
        for lr in (c.lr, *named, *plain, self.document.run.lr):
            if lr is not None and not isinstance(lr, dict):
                return _axis(lr, f"{self.where}, [run]: `lr`")
        raise UsageError(
            f'{self.where}: no lr is given for "{o.name}" on "{w.name}"; set `lr` in [run], or in '
            f"either table."
        )

    def _components(
        self, kind: registry.Kind, tables: Sequence[Table]
    ) -> Iterator[tuple[Table, Part]]:
        others = {
            "workload": self.document.optimizer,
            "optimizer": self.document.workload,
            "clip": [],
        }[kind]
        for number, table in enumerate(tables):
            where = f"{self.where}, {ordinal(number)} [[{kind}]]"
            cls = registry.find(kind, table.name, where)
            for word, values in (("batch", table.batch), ("lr", table.lr)):
                for axis in values.values() if isinstance(values, dict) else [values]:
                    _axis(axis, f"{where}: `{word}`")
            _refuse_misplaced(table, where)
            seeds = [
                other.word("seeds") or self.document.run.seeds
                for other in tables
                if other.name == table.name
            ]
            if any(one != seeds[0] for one in seeds):
                raise UsageError(
                    f'{where}: another table of "{table.name}" gives other `seeds`; a workload has '
                    f"the same in all its tables."
                )
            _refuse_unknown(
                table.lr if isinstance(table.lr, dict) else (), others, f"{where}: `lr`"
            )
            _refuse_unknown(
                table.word("workloads") or (), self.document.workload, f"{where}: `workloads`"
            )
            _refuse_unknown(
                table.word("optimizers") or (), self.document.optimizer, f"{where}: `optimizers`"
            )
            words = (*OF_PILOT, ON, RANKS)
            kept = {word: said for word in words if (said := table.word(word)) is not None}
            refuse_unfit(cls, kept, where)
            axes = {
                name: _axis(value, f"{where}: `{name}`")
                for name, value in (table.settings | kept).items()
            }
            for point in product(*axes.values()):
                yield table, part(kind, cls, dict(zip(axes, point, strict=True)), where)


def _with(component: Part, word: str, value: Any) -> Part:
    """A component with a word of the study among its settings; the word is left out at its
    default.
    """
    return (
        component
        if value == DEFAULTS[word]
        else replace(component, settings={**component.settings, word: value})
    )


def _refuse_misplaced(table: Table, where: str) -> None:
    """Refuse a word of a component's table that belongs in another table, and a schedule that there
    is not.

    :raises UsageError: there is one.
    """
    for word in table.settings:
        if word in RESERVED:
            raise UsageError(f"{where}: {belongs(word)}.")
    schedule = table.word(SCHEDULE)
    for one in [] if schedule is None else _axis(schedule, f"{where}: `{SCHEDULE}`"):
        lr_schedules.canonical(one, where)


def _refuse_unknown(named: Iterable[str], tables: Sequence[Table], what: str) -> None:
    """Refuse the name of a component that the study does not run.

    :raises UsageError: there is one.
    """
    known = [table.name for table in tables]
    for name in named:
        if name not in known:
            raise UsageError(
                f'{what} names "{name}", which the study does not run.{nearest(name, known)}'
            )


def _axis(value: Any, what: str) -> list[Any]:
    values = list(value) if isinstance(value, list) else [value]
    if not values:
        raise UsageError(f"{what} is an empty list, and must have at least one value.")
    for index, one in enumerate(values):
        if one in values[:index]:
            raise UsageError(f"{what} has {one!r} twice.")
        if isinstance(one, float) and math.isnan(one):
            raise UsageError(f"{what} is nan, and must be a number.")
    return values


def replica(study: Study, number: int) -> Study:
    """The same study once more, from weights that differ in their last digits.

    :raises UsageError: its page has no line ``[run]`` to write the number under, or has one.
    """
    text = re.sub(r"(?m)^(\[run\][^\n]*)$", rf"\1\nreplica = {number}", study.text, count=1)
    if "replica" in study.document.run.model_fields_set or text == study.text:
        raise UsageError(
            f"{study.where}: --replica writes `replica` under the line [run]; "
            f"{'it stands there' if text != study.text else 'there is no such line'}."
        )
    return parse(study.name, text, study.folder)


# -------------------------------------------------------------------------------------- finding one


def packaged() -> dict[str, str]:
    """Name → text of the studies that come with clipbench."""
    folder = resources.files("clipbench") / "studies"
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".toml")),
        key=lambda file: file.name,
    )
    return {file.name.removesuffix(".toml"): file.read_text(encoding="utf-8") for file in files}


def read(study: str) -> Study:
    """The study named on the command line: a path ending in ``.toml``, or the name of a packaged
    one. Its ``use`` files are loaded.

    :raises UsageError: no such study, a name no folder can bear, or a page that is not a study.
    """
    if study.endswith(".toml"):
        path = Path(study)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UsageError(f"{study}: there is no such file.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{study}: this file cannot be read ({error}).") from None
        return parse(path.stem, text, path.resolve().parent)
    known = packaged()
    if study not in known:
        if "/" in study or "\\" in study or study.startswith("."):
            raise UsageError(
                f'"{study}" is no study: give the name of a packaged study, or a path ending '
                f"in .toml."
            )
        hint = nearest(study, known)
        raise UsageError(
            f'there is no packaged study "{study}".{hint} There are: {", ".join(known)}; or give a '
            f"path ending in .toml."
        )
    return parse(study, known[study], Path.cwd())


def parse(name: str, text: str, folder: Path) -> Study:
    """A study from its page.

    :raises UsageError: one sentence on the first thing that is wrong.
    """
    if not NAME.fullmatch(name) or name.lower() in DEVICE_NAMES:
        raise UsageError(
            f'"{name}.toml": a study\'s name is up to 64 letters, digits, - and _, begins with a '
            f"letter or digit; no device name."
        )
    where = f"{name}.toml"
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: this is not TOML: {error}.") from None
    for number, table in enumerate(
        raw.get("optimizer", []) if isinstance(raw.get("optimizer", []), list) else []
    ):
        if isinstance(table, dict) and "torch" in table:
            if "name" in table:
                raise UsageError(
                    f"{where}, {ordinal(number)} [[optimizer]]: give `name` or `torch`, not both."
                )
            table["name"] = table["torch"]
    try:
        document = Document.model_validate(raw)
    except ValidationError as error:
        raise UsageError(sentence(where, raw, error)) from None
    study = Study(name, text, folder, document)
    registry.load_packaged()
    for file in document.use:
        registry.load_file(folder / file, f"{where}: use")
    return study
