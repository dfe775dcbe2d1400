"""Store → HTML, Markdown, SVG, PNG and CSV. A pure function of the store: the same store gives the same bytes."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from clipbench import analysis, figures, schema, selection
from clipbench.registry import UsageError, nearest
from clipbench.selection import GROUP, READINGS, TASK
from clipbench.statistics import Interval, share_interval
from clipbench.store import Store

FORMATS = ("html", "md", "csv")
PAGE_FORMATS = {"html": "report.html", "md": "report.md"}
LISTED = 40  # rows of a long list on the page; the CSV has them all
MAX_ARMS = 36  # curves and heat maps of more arms than this show the named methods only
READING_WORDS = {"all": "all settings", "equal": "equal budget", "untuned": "untuned"}
METRIC_WORDS = {"roc_auc": "ROC AUC"}
TASK_WORDS = {"batch": "batch {}", "device": "{}", "dtype": "{}"}
DASH, MINUS, INFINITY = "–", "−", "∞"

Row = Mapping[str, Any]


# ------------------------------------------------------------------------------------------------------- what a page is made of


@dataclass(frozen=True)
class Text:
    """A paragraph; ``**bold**`` is the only markup it knows."""

    words: str
    kind: str = "text"

    @property
    def runs(self) -> list[tuple[bool, str]]:
        """The words as (bold, text) runs."""
        return [(index % 2 == 1, part) for index, part in enumerate(self.words.split("**")) if part]


@dataclass(frozen=True)
class List:
    """A bulleted list of paragraphs."""

    items: Sequence[Text]
    kind: str = "list"


@dataclass(frozen=True)
class Table:
    """A table as the page shows it, and the frame that its CSV holds."""

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: pd.DataFrame
    words: int = 1  # how many columns at the left hold words
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """A figure with its caption; ``svg`` and ``png`` are its bytes."""

    name: str
    caption: str
    alt: str
    svg: str
    png: bytes
    kind: str = "picture"

    @property
    def inlined(self) -> str:
        """The SVG for the inside of a page: no prolog, no fixed size, ids that no other figure has."""
        body = self.svg[self.svg.index("<svg") :]
        body = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", body, count=1)
        body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
        body = re.sub(r'(?<= id=")', f"{self.name}-", body)
        return re.sub(r'(url\(#|href="#)', rf"\g<1>{self.name}-", body)


@dataclass(frozen=True)
class Heading:
    """A heading below a section's."""

    words: str
    kind: str = "heading"


@dataclass(frozen=True)
class Section:
    """A part of the page with an anchor."""

    anchor: str
    title: str
    parts: Sequence[Text | List | Table | Picture | Heading]


@dataclass(frozen=True)
class Evidence:
    """Everything the report is drawn from, read once."""

    store: Store
    cells: pd.DataFrame
    kept: Mapping[str, int]
    components: Mapping[str, Any]
    plan: Mapping[str, Any]
    environment: Mapping[str, Any]
    arms: pd.DataFrame
    drawn: pd.DataFrame
    results: pd.DataFrame
    tasks: Sequence[tuple[Any, ...]]
    labels: Mapping[tuple[Any, ...], str]
    throughput: pd.DataFrame
    names: dict[str, int] = field(default_factory=dict)

    @property
    def methods(self) -> dict[str, str]:
        """The named methods that the study holds, method → arm."""
        held = set(self.arms["arm"])
        named = analysis.named(self.plan.get("protocol", {}).get("headline", {}))
        return {name: arm for name, arm in named.items() if arm in held}

    def about(self, task: Sequence[Any]) -> dict[str, Any]:
        """What the components page says of the task's workload."""
        return analysis.workload(self.components, task[0])

    def of(self, frame: pd.DataFrame, task: Sequence[Any]) -> pd.DataFrame:
        """The rows of one task."""
        mask = pd.Series(True, index=frame.index)
        for name, value in zip(TASK, task, strict=True):
            mask &= frame[name] == value
        return frame[mask]

    def name(self, *words: str) -> str:
        """A file name for these words that no other part of the report has."""
        slug = "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)))[:80] or "part"
        self.names[slug] = self.names.get(slug, 0) + 1
        return slug if self.names[slug] == 1 else f"{slug}-{self.names[slug]}"

    def footer(self, cells: pd.DataFrame) -> str:
        """What stands under every figure: the study's hash, and how its cells ended."""
        return f"study {self.store.study_hash} · {census(analysis.counts(cells))}"


def read(store: Store) -> Evidence:
    """Read and merge what the report needs."""
    cells, kept = analysis.current(store)
    components, plan = store.page("components"), store.page("plan")
    protocol = plan.get("protocol", {})
    drawn = analysis.draws(cells, protocol)
    timed = store.read("throughput")
    tasks = sorted({tuple(row) for row in cells[TASK].drop_duplicates().itertuples(index=False)})
    return Evidence(
        store=store,
        cells=cells,
        kept=kept,
        components=components,
        plan=plan,
        environment=store.page("environment"),
        arms=analysis.arms(cells, components),
        drawn=drawn,
        results=analysis.results(drawn, components),
        tasks=tasks,
        labels=_labels(tasks),
        throughput=timed,
    )


def _labels(tasks: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], str]:
    """A task's problem, and of batch, device and dtype only what varies within the study."""
    varied = [index for index in range(1, len(TASK)) if len({(task[0], task[index]) for task in tasks}) > len({task[0] for task in tasks})]
    labels = {}
    for task in tasks:
        extra = [TASK_WORDS[TASK[index]].format(task[index]) for index in varied]
        labels[task] = ", ".join([str(task[0]), *extra])
    return labels


# --------------------------------------------------------------------------------------------------------------- numbers, words


def decimals(values: Iterable[float]) -> int:
    """How many decimals a column of such numbers needs: three digits at the largest, more where the values are close to zero."""
    finite = [abs(value) for value in values if math.isfinite(value) and value]
    if not finite:
        return 3
    return max(0, min(8, 2 - math.floor(math.log10(max(finite)))))


def fixed(value: float, places: int) -> str:
    """A number with so many decimals, with a true minus, ∞ and a dash for nothing."""
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return INFINITY if value > 0 else MINUS + INFINITY
    text = f"{value:.{places}f}"
    if not text.strip("-0."):
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float, places: int) -> str:
    """A difference: its sign always shown."""
    text = fixed(value, places)
    return f"+{text}" if value > 0 and text.strip("0.") else text


def short(value: float) -> str:
    """A number with up to three digits, as settings are written."""
    if not math.isfinite(value):
        return fixed(value, 0)
    return figures.number(float(f"{value:.3g}"))


def percent(value: float) -> str:
    """A share in percent."""
    if math.isnan(value):
        return DASH
    return "<1 %" if 0 < value < 0.005 else ">99 %" if 0.995 <= value < 1 else f"{100 * value:.0f} %"


def between(interval: Interval, places: int, sign: bool = False) -> str:
    """``[low, high]``, or nothing where there are no bounds."""
    show = signed if sign else fixed
    return f"[{show(interval.low, places)}, {show(interval.high, places)}]" if interval.bounded else ""


def seconds(value: float) -> str:
    """A duration in the unit that suits it."""
    if not math.isfinite(value):
        return DASH
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            break
    return f"{figures.number(float(f'{value / size:.3g}'))} {unit}"


def census(ended: Mapping[str, int]) -> str:
    """``2,400 cells: 31 diverged, 120 collapsed, 80 stalled, 0 failed``."""
    others = ", ".join(f"{ended[name]:,} {name}" for name in ("diverged", "collapsed", "stalled", "failed"))
    return f"{ended['cells']:,} cell{'s' * (ended['cells'] != 1)}: {others}"


def metric_words(about: Row) -> str:
    """The metric and its better direction."""
    name = str(about["metric"])
    return METRIC_WORDS.get(name, name.replace("_", " "))


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def interval_of(row: Row) -> Interval:
    return Interval(row["estimate"], row["low"], row["high"])


# -------------------------------------------------------------------------------------------------------------------- the answer


def answer(evidence: Evidence) -> list[Text | List]:
    """The reader's question, answered from the numbers, task by task."""
    if not len(evidence.cells):
        return [Text("**Nothing has been run yet.** No cell of this study is stored; `clipbench run` fills this folder.")]
    if not evidence.drawn["ended"].isin(schema.OUTCOMES).any():
        return [
            Text(
                "**No answer yet.** The report phase, which runs each method's chosen setting on fresh seeds, has no finished cell in this "
                "folder. What the selection phase showed is below; it chose the settings, so that its numbers flatter every method."
            )
        ]
    pairs = analysis.headline_pairs(evidence.arms, evidence.methods)
    compared = analysis.compare(evidence.drawn, pairs, evidence.components)
    ranges, costs = analysis.stable(evidence.cells), analysis.cost(evidence.throughput)
    claimed = analysis.claims(evidence.drawn, evidence.arms, evidence.components)
    items = [Text(_task_answer(evidence, task, compared, ranges, costs, claimed)) for task in evidence.tasks]
    return [List([item for item in items if item.words])]


def _task_answer(
    evidence: Evidence, task: tuple[Any, ...], compared: pd.DataFrame, ranges: pd.DataFrame, costs: pd.DataFrame, claimed: pd.DataFrame
) -> str:
    about, methods = evidence.about(task), evidence.methods
    sentences = []
    rows = evidence.of(compared, task)
    rows = rows[rows["reading"] == "equal"]
    places = decimals(rows[["estimate", "low", "high"]].abs().min(axis=1))
    places = min(places, 4) if len(rows) else 3
    for clip in ("value clip", "norm clip"):
        found = rows[rows["arm"] == methods.get(clip)]
        if len(found):
            sentences.append(_verdict(clip, found.iloc[0].to_dict(), about, places))
    for clip in ("value clip", "norm clip"):
        if clip in methods and "plain SGD" in methods:
            sentences.append(_range_sentence(clip, evidence.of(ranges, task), methods))
    sentences.append(_cost_sentence(task, costs))
    sentences.append(_claims_sentence(evidence.of(claimed, task)))
    told = " ".join(filter(None, sentences))
    return f"**{evidence.labels[task]}** ({_metric_note(about)}). {told}" if told else ""


def _metric_note(about: Row) -> str:
    if about["success"] is not None:
        return f"share of seeds that succeed: {metric_words(about)} {'≥' if about['higher_is_better'] else '≤'} {short(about['success'])}"
    return f"{metric_words(about)}, {'higher' if about['higher_is_better'] else 'lower'} is better"


def _verdict(clip: str, row: Row, about: Row, places: int) -> str:
    """One comparison at equal budget, in words that the interval bears out."""
    name, n = clip.capitalize(), int(row["n"])
    if row["note"] == "never fired":
        return f"**{name}**, as chosen, never fired (under {percent(selection.FIRED)} of steps): the same as plain SGD."
    if row["note"] == "incomplete":
        return f"{name}: seeds failed or are missing, so nothing is concluded."
    interval = interval_of(row)
    unit = "success rate" if about["success"] is not None else metric_words(about)
    if not interval.bounded:
        return f"{name}: {plural(n, 'seed')}, too few for an interval; nothing is concluded."
    shown = f"{signed(interval.estimate, places)} {between(interval, places, sign=True)}"
    kind = {"mean": "", "median": ", median with diverged seeds as the worst", "share": ""}[row["statistic"]]
    # The paired difference counts improvement as positive, whatever the metric's direction.
    gain = f"{unit}" if about["higher_is_better"] or about["success"] is not None else f"{unit} lower by"
    if interval.sign > 0:
        return f"**{name} is better than plain SGD** at equal budget: {gain} {shown}{kind} (n = {n})."
    if interval.sign < 0:
        return f"**{name} is worse than plain SGD** at equal budget: {gain} {shown}{kind} (n = {n})."
    return f"{name}: no difference from plain SGD seen at equal budget; {gain} {shown}{kind} (n = {n})."


def _range_sentence(clip: str, ranges: pd.DataFrame, methods: Mapping[str, str]) -> str:
    base = ranges[(ranges["arm"] == methods["plain SGD"]) & (ranges["basis"] == "no clip")]
    best = ranges[(ranges["arm"] == methods[clip]) & (ranges["basis"] == "best threshold")]
    if base.empty or best.empty:
        return ""
    before, after = base.iloc[0], best.iloc[0]
    if math.isnan(before["high"]) and math.isnan(after["high"]):
        return f"No learning rate was stable for plain SGD or with {clip}ping."
    at_least = "at least " if after["above"] else ""
    if math.isnan(before["high"]):
        return f"{clip.capitalize()}ping makes learning rates up to {at_least}{short(after['high'])} stable, where plain SGD has none."
    if math.isnan(after["high"]):
        return f"With {clip}ping no learning rate was stable; plain SGD holds to {short(before['high'])}."
    if after["high"] > before["high"]:
        return f"With {clip}ping the largest stable learning rate rises from {short(before['high'])} to {at_least}{short(after['high'])}."
    if after["high"] < before["high"]:
        return f"With {clip}ping the largest stable learning rate falls from {short(before['high'])} to {short(after['high'])}."
    edge = ", the largest tried" if before["above"] else ""
    return f"{clip.capitalize()}ping leaves the largest stable learning rate where it is ({short(before['high'])}{edge})."


def _cost_sentence(task: tuple[Any, ...], costs: pd.DataFrame) -> str:
    problem, batch, device, dtype = task
    mask = (costs["problem"] == problem) & (costs["batch"] == batch) & (costs["device"] == device) & (costs["dtype"] == dtype)
    rows = costs[mask & (costs["optimizer"] == "sgd") & costs["clip"].isin(["value", "norm"]) & np.isfinite(costs["ratio"])]
    said = [f"×{fixed(row['ratio'], 2)} {between(Interval(row['ratio'], row['low'], row['high']), 2)} with {row['clip']}" for row in rows.to_dict("records")]
    return f"A step costs {listed(said)} clipping." if said else ""


def _claims_sentence(claimed: pd.DataFrame) -> str:
    others = claimed[claimed["baseline"] != "sgd"]
    if others.empty:
        return ""
    held = others[(others["holm"] < 0.05) & (others["estimate"] != 0)]
    better, worse = int((held["estimate"] > 0).sum()), int((held["estimate"] < 0).sum())
    names = listed(sorted(set(others["baseline"])))
    if not better and not worse:
        return f"On {names}, none of {plural(len(others), 'comparison')} with and without a clip survives Holm's correction."
    return f"On {names}, of {plural(len(others), 'comparison')} with and without a clip {better} gain and {worse} lose after Holm's correction."
