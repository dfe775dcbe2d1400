"""The report is a pure function of the store, says nothing its numbers do not bear out, and
never loses a run.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import html
import html.parser
import io
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import packaged
import pandas as pd
import pytest
import synthetic

from clipbench import metrics, registry, report
from clipbench.cell import Cell, Part
from clipbench.errors import UsageError
from clipbench.report import advice, answer, hover, parts, problems, provenance, sections, threats
from clipbench.report.evidence import read
from clipbench.report.folder import LIST
from clipbench.report.parts import Table, Text
from clipbench.report.words import RANGES
from clipbench.store import Store

SIDES = ("arm", "partner")
MARK = re.compile(r'<(?:a class="word"|abbr) [^>]*>(.*?)</(?:a|abbr)>')
HOSTILE = '<script>alert(1)</script>$\\frac{$ & "|"'


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished study of two workloads, one of them bimodal, with its report."""
    store = synthetic.build(
        tmp_path_factory.mktemp("results") / "small",
        problems=("digits", "temporal-order"),
        optimizers=("sgd", "momentum"),
        relative=(1.0,),
        untuned={"lr": 0.01, "threshold": 1.0},
    )
    report.write(store)
    return store


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A finished study of one workload, one optimizer and one clip, for what needs a store but
    not its size.
    """
    folder = tmp_path_factory.mktemp("results") / "tiny"
    return synthetic.build(
        folder, optimizers=("sgd",), clips=("none", "norm"), relative=(1.0,), report=2
    )


@pytest.fixture
def sketched(monkeypatch):
    """Figures are made, but neither laid out nor painted, which is where the time goes; the
    tests above paint them.
    """

    def sketch(figure, forms):
        return dict.fromkeys(forms, b'<svg width="9pt" height="9pt"></svg>')

    monkeypatch.setattr(parts, "render", sketch)


def of_kind(section, kind):
    """The parts of one kind in a section."""
    return [part for part in parts.flattened(section.parts) if isinstance(part, kind)]


def opening(store):
    """The parts of the answer, as a section."""
    return parts.Section("answer", "", answer.told(read(store)))


def page(store: Store) -> str:
    """The page, without the marks on words that it uses for the first time."""
    report.write(store, ("html",))
    return MARK.sub(r"\1", rendered(store))


def rendered(store: Store) -> str:
    return (store.folder / "report" / "report.html").read_text(encoding="utf-8")


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Reader(html.parser.HTMLParser):
    """Counts tags, and notices those left open."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.faults, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


@pytest.mark.usefixtures("costly")
def test_same_store_same_bytes_in_another_process_with_another_hash_seed(small, tmp_path):
    """PNGs are left out: what is painted is in the SVGs, too. The committed tables of `quick`, made
    anew at every change, have the bytes of another process with another hash seed already.
    """
    formats = ("html", "md", "csv", "svg")
    script = "from pathlib import Path; from clipbench import report, store; "
    script += f"store_ = store.Store(Path({str(small.folder)!r})); "
    script += f"report.write(store_, {formats!r}, folder=Path('again'))"
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": str(Path(report.__file__).parents[2]),
        "TZ": "Asia/Tokyo",
    }
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, timeout=120
    )
    first, second = digest(small.folder / "report"), digest(tmp_path / "again")
    for digests in (first, second):
        del digests[LIST]  # of the files that were written
    assert second == {name: found for name, found in first.items() if not name.endswith(".png")}


def test_the_report_imports_no_torch():
    script = "import sys; import clipbench.report; assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(Path(report.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=60)


@pytest.mark.usefixtures("undrawn")
def test_a_store_in_a_folder_of_another_name_gives_the_same_bytes(tiny, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("report"))
    report.write(tiny, folder=tmp_path / "one")
    report.write(Store(tmp_path / "elsewhere"), folder=tmp_path / "two")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert "<code>clipbench report results/tiny</code> drew" in (
        tmp_path / "two" / "report.html"
    ).read_text(encoding="utf-8")


@pytest.mark.usefixtures("sketched")
def test_a_section_has_the_name_of_its_file_as_its_anchor_and_every_such_file_is_on_the_page(
    tiny,
):
    files = Path(sections.__file__).parent.glob("*.py")
    written = {path.stem for path in files if "\ndef section(" in path.read_text(encoding="utf-8")}
    named = [question.__name__.rpartition(".")[2] for question in sections.SECTIONS]
    assert [question.section(read(tiny)).anchor for question in sections.SECTIONS] == named
    assert sorted(named) == sorted(written)


def test_formats_are_written_as_asked_and_figures_always(tiny, tmp_path):
    written = report.write(tiny, ("md",), tmp_path / "r")
    assert {path.suffix for path in written} == {".md", ".svg"}
    assert written[0].name == "report.md"
    assert all(path.is_file() for path in written)


def test_an_unknown_format_names_the_nearest(tiny):
    with pytest.raises(
        UsageError,
        match=r'no format "htlm"\. Did you mean html\? There are: html, md, csv, tex, svg, png, ',
    ):
        report.write(tiny, ("htlm",))


@pytest.mark.usefixtures("undrawn")
def test_a_report_reads_the_curves_and_evaluations_that_it_shows_and_no_others(
    small, tmp_path, monkeypatch
):
    """They are most of a folder, and would not fit into memory."""
    asked, read_ = [], Store.read

    def noted(store, table, columns=None, cells=None):
        asked.append((table, cells))
        return read_(store, table, columns, cells)

    monkeypatch.setattr(Store, "read", noted)
    report.write(small, ("html",), tmp_path / "again")
    cells = [cells for table, cells in asked if table in ("curves", "evals")]
    assert len(cells) >= 4
    assert all(some is not None and len(some) < len(read_(small, "cells")) for some in cells)


@pytest.mark.usefixtures("undrawn")
def test_a_part_of_a_report_shows_less_and_says_the_same(small, tmp_path):
    """Its rows are those of the whole, verdicts and intervals included."""
    only = {"problem": {"digits"}, "optimizer": {"sgd"}, "clip": {"norm"}}
    report.write(small, ("html", "csv"), tmp_path / "part", only=only)
    text = (tmp_path / "part" / "report.html").read_text(encoding="utf-8")
    assert "momentum + " not in text[: text.index('id="missing"')]
    assert "temporal-order" not in text[: text.index('id="missing"')]
    whole, part = (
        pd.read_csv(folder / "tables" / "answer.csv")
        for folder in (small.folder / "report", tmp_path / "part")
    )
    kept = whole[(whole["problem"] == "digits") & (whole["arm"] == "sgd + norm")]
    pd.testing.assert_frame_equal(part, kept.reset_index(drop=True))


@pytest.mark.usefixtures("undrawn")
def test_a_second_report_leaves_no_figure_of_the_first(tiny, tmp_path):
    """And every file that it did not write: the list of what it wrote says which."""
    report.write(tiny, ("csv",), tmp_path / "r")
    listed = tmp_path / "r" / "files.txt"
    (tmp_path / "r" / "figures" / "old.svg").write_text("old")
    listed.write_text(listed.read_text() + "figures/old.svg\n")
    (tmp_path / "r" / "figures" / "mine.svg").write_text("mine")
    report.write(tiny, ("md",), tmp_path / "r")
    assert not (tmp_path / "r" / "figures" / "old.svg").exists()
    assert not list((tmp_path / "r" / "tables").glob("*.csv"))
    assert (tmp_path / "r" / "figures" / "mine.svg").read_text() == "mine"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("place", ["report", "report/figures", "report/report.html"])
def test_a_report_is_not_written_through_a_link(tiny, tmp_path, place):
    """Nor are files behind it removed."""
    folder = shutil.copytree(
        tiny.folder, tmp_path / "tiny", ignore=shutil.ignore_patterns("report")
    )
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.svg").write_text("mine")
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).symlink_to(tmp_path / "home")
    with pytest.raises(
        UsageError, match="this is a link, and a report is written into real folders only"
    ):
        report.write(Store(folder))
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["mine.svg"]


def test_a_spreadsheet_takes_no_cell_for_a_formula():
    words = ["=1+1", "+1", "-1", "−1", "@SUM(A1)", "plain"]
    table = Table(
        "t", "", [], [], pd.DataFrame({"name": words, "value": [-1.0, 2.0, -3.0, 0.5, -0.25, 1.0]})
    )
    back = pd.read_csv(io.StringIO(table.csv))
    assert back["name"].tolist() == [f"'{word}" for word in words[:-1]] + ["plain"]
    assert back["value"].tolist() == [-1.0, 2.0, -3.0, 0.5, -0.25, 1.0]


def test_the_page_is_self_contained_well_formed_and_its_ids_are_unique(small):
    text = rendered(small)
    reader = Reader()
    reader.feed(text)
    assert not reader.faults
    assert not reader.open
    assert len(reader.ids) == len(set(reader.ids))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:; script")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    assert policy.endswith("script-src " + " ".join(f"'sha256-{one}'" for one in hashes))
    assert reader.seen.count("script") == len(scripts) + 2  # beside them the runs and the plot
    body = text[: text.index("<script")]
    links = {link.partition("#")[0] for link in re.findall(r'(?:href|src)="([^#"][^"]*)"', body)}
    assert all(
        (link.startswith("tables/") and (small.folder / "report" / link).is_file())
        or link.startswith("data:")
        for link in links
        if link
    )


@pytest.mark.usefixtures("undrawn")
def test_every_link_within_a_page_leads_somewhere(small):
    """From the answer to a section, and from a word to its meaning."""
    text = rendered(small)
    linked = set(re.findall(r'href="#([^"=]+)"', text))
    assert {"clips", "instead"} <= linked
    assert linked <= set(re.findall(r' id="([^"]+)"', text))
    assert "](#" not in (small.folder / "report" / "report.md").read_text(encoding="utf-8")


def test_no_page_links_to_a_table_that_was_not_asked_for(tiny, tmp_path):
    report.write(tiny, ("html", "md"), tmp_path)
    assert ".csv" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ".csv" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_no_path_of_the_machine_and_no_date_of_today_is_in_any_file(small):
    for path in (small.folder / "report").rglob("*"):
        if path.suffix in (".html", ".md", ".svg", ".csv"):
            text = path.read_text(encoding="utf-8")
            assert str(small.folder.parent) not in text
            assert "matplotlib.org" not in text


def test_every_caption_names_the_study_and_counts_cells_diverged_and_failed(small):
    text = rendered(small)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL)
    assert len(captions) >= 9
    for caption in captions:
        assert small.study_hash in caption
        assert re.search(r"Drawn from [\d,]+ (cells|timed blocks)", caption)
        assert "diverged" in caption
        assert "failed" in caption


def test_a_caption_counts_the_cells_that_its_figure_is_made_of_and_no_others(small):
    """Two clips and none, at the axis of each optimizer and 13 seeds of one fixed threshold: the
    runs at other thresholds, and at the settings that were chosen, are no part of it.
    """
    evidence = read(small)
    counted = {
        part.name: int(re.search(r"Drawn from ([\d,]+) cells", part.caption)[1].replace(",", ""))
        for section in sections.told(evidence)
        for part in parts.flattened(section.parts)
        if isinstance(part, parts.Picture) and "timed blocks" not in part.caption
    }
    cells = evidence.cells
    gaps, levels = evidence.gaps, evidence.levels
    axis = 6 * 13  # learning rates, seeds
    both = {(row["problem"], row[side]) for row in gaps.to_dict("records") for side in SIDES}
    assert counted["headline"] == axis * len(both) < len(cells)
    every = levels[levels["grade"] == evidence.grade]
    assert counted["instead"] == counted["robust"] == axis * len(every)
    assert counted["form"] == axis * 2 * 2 * 2  # problems, optimizers, clips: no run without one
    selected = cells[(cells["role"] == "select") & (cells["problem"] == "digits")]
    assert counted["heat-digits"] == len(selected)


def test_an_environment_that_only_timed_is_counted_beside_those_of_the_cells(tmp_path):
    """Timings may be of another machine than the cells, and the folder may not describe it."""
    store = synthetic.build(
        tmp_path / "two", optimizers=("sgd",), clips=("none", "norm"), relative=(1.0,), report=2
    )
    own = len(store.read("throughput"))
    costs = {"none": 1.0, "norm": 1.1}
    store.add_throughput(synthetic.timing("digits", "sgd", costs, environment="e2"))
    evidence = read(store)
    text = "".join(part.words for part in of_kind(threats.section(evidence), parts.List)[0].items)
    assert "in 2 environments: environment e1" in text
    assert "environment e2 (timings alone)" in text
    table = of_kind(provenance.section(evidence), Table)[0].data.set_index("environment")
    assert list(table.loc["e1", ["cells", "timed blocks"]]) == [len(evidence.cells), own]
    assert list(table.loc["e2", ["cells", "timed blocks"]]) == [0, 40]


def test_the_page_says_where_the_arms_of_a_seed_were_split(small):
    evidence = read(small)
    merged = dataclasses.replace(evidence, plan={**evidence.plan, "parts": ["1/99"]})
    plain, told = (
        "".join(part.words for part in of_kind(provenance.section(one), parts.Text))
        for one in (evidence, merged)
    )
    assert "Arms apart" not in plain
    assert "**Arms apart.** The report cells were run in 99 parts" in told


def test_every_number_of_the_answer_says_on_how_much_it_rests(small):
    """In the CSV, and on the page where a reader points at it: shares lie in their intervals."""
    rows = read(small).answers
    rows = rows[rows["basis"] == "same tries"]
    assert len(rows)
    for name in ("lost", "lost_without"):
        assert ((rows[f"{name}_low"] <= rows[name]) & (rows[name] <= rows[f"{name}_high"])).all()
        assert (rows[f"{name}_high"] - rows[f"{name}_low"] > 0.15).all()  # thirteen seeds
    assert (rows["fired_low"] <= rows["fired_high"]).all()
    assert rows["share"].between(0, 1, inclusive="right").all()
    assert (rows["cost_blocks"] == 19).all()
    marks = [row["titles"] for row in of_kind(opening(small), parts.Verdicts)[0].marks]
    assert all("of 13 seeds" in titles[hover.LOST] for titles in marks)
    assert html.escape(marks[0][hover.COST]) in rendered(small)


def test_every_table_of_the_page_is_a_csv_that_pandas_reads(small):
    files = sorted((small.folder / "report" / "tables").glob("*.csv"))
    assert {
        "headline-digits.csv",
        "clips-digits.csv",
        "grid-digits.csv",
        "throughput-digits.csv",
        "events.csv",
        "outcomes.csv",
    } <= {path.name for path in files}
    for path in files:
        assert len(pd.read_csv(path))
    ends = pd.read_csv(small.folder / "report" / "tables" / "clips-digits.csv")
    assert (
        ends[["learned", "stalled", "collapsed", "diverged", "failed", "missing"]].sum(axis=1)
        == ends["n"]
    ).all()


def test_all_or_nothing_outcomes_are_success_rates_and_never_means(small):
    tuned = pd.read_csv(small.folder / "report" / "tables" / "clips-temporal-order.csv")
    assert set(tuned["statistic"]) == {"share"}
    grid = pd.read_csv(small.folder / "report" / "tables" / "grid-temporal-order.csv")
    assert set(grid["statistic"]) == {"share"}
    assert set((grid["value"] * grid["valued"]).round(9)) <= {0.0, 1.0, 2.0, 3.0}
    text = rendered(small)
    assert (
        "share of seeds that succeed (accuracy ≥ 0.99) after the last step, on selection seeds"
        in text
    )
    assert "temporal-order: accuracy, mean over seeds" not in text
    assert "digits: accuracy, mean over seeds" in text


def test_markdown_tables_have_equal_columns_in_every_row(small):
    text = (small.folder / "report" / "report.md").read_text(encoding="utf-8")
    width = 0
    for line in text.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not cells or not width or cells == width
        width = cells
    assert "\n\n\n" not in text


def test_hostile_names_are_text_in_every_file(tmp_path):
    def renamed(one: Cell):
        parts = synthetic.rows(one, "learned")
        if one.optimizer.name == "momentum":
            parts["cells"][0]["arm"] = one.arm.replace("momentum", HOSTILE)
        return parts

    store = synthetic.build(
        tmp_path / "hostile",
        optimizers=("sgd", "momentum"),
        relative=(1.0,),
        report=0,
        change=renamed,
    )
    plan = store.page("plan")
    store.write_page(
        "plan", {**plan, "not_run": [{"device": HOSTILE, "cells": 1, "reason": HOSTILE}]}
    )
    report.write(store)
    text = (store.folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "<script" not in (store.folder / "report" / "report.md").read_text(encoding="utf-8")
    for picture in (store.folder / "report" / "figures").glob("*.svg"):
        assert "<script" not in picture.read_text(encoding="utf-8")


@pytest.mark.usefixtures("sketched")
def test_hostile_workload_settings_make_safe_file_names(tmp_path):
    store = synthetic.build(
        tmp_path / "paths",
        relative=(1.0,),
        optimizers=("sgd",),
        report=0,
        change=lambda one: moved(one, "../../x y(path='/etc')"),
    )
    written = report.write(store)
    assert all(store.folder / "report" in path.parents for path in written)
    assert all(re.fullmatch(r"[a-z0-9-]+\.(svg|png|csv|md|html)", path.name) for path in written)


def moved(one: Cell, problem: str):
    parts = synthetic.rows(one, "learned")
    parts["cells"][0]["problem"] = problem
    return parts


# --------------------------------------------------------------- stores that are not what one hopes


@pytest.mark.usefixtures("sketched")
def test_an_empty_store_says_that_nothing_was_run(tmp_path):
    store = Store.create(tmp_path / "empty", "empty", 'title = "Nothing"\n')
    assert "Nothing has been run yet" in page(store)


@pytest.mark.usefixtures("sketched")
def test_before_the_report_phase_the_page_says_so_and_shows_the_grid(tmp_path):
    store = synthetic.build(
        tmp_path / "early", optimizers=("sgd",), report=0, with_throughput=False
    )
    plan = store.page("plan")
    plan["protocol"]["seeds"] = {
        problem: {**count, "report": 10} for problem, count in plan["protocol"]["seeds"].items()
    }
    store.write_page("plan", plan)
    text = page(store)
    assert "No answer yet" in text
    assert "The report phase, which runs each" in text
    assert "Throughput was not measured" in text
    assert "heat" in {
        path.stem.partition("-")[0] for path in (store.folder / "report" / "figures").glob("*.svg")
    }


@pytest.mark.usefixtures("undrawn")
def test_a_study_without_report_seeds_does_not_promise_an_answer(tmp_path):
    text = page(
        synthetic.build(tmp_path / "all", optimizers=("sgd",), report=0, with_throughput=False)
    )
    assert "Nothing is compared here" in text
    assert "No answer yet" not in text
    assert "has not run yet" not in text


@pytest.mark.usefixtures("undrawn")
def test_a_study_without_a_fixed_threshold_says_so_and_not_that_nothing_ran(tmp_path):
    store = synthetic.build(tmp_path / "other", optimizers=("adam",), with_throughput=False)
    text = page(store)
    assert "No clip of this study has a threshold that was fixed in advance" in text
    assert "has not run yet" not in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("threshold", "words"), [(1e3, "its clip never fired"), (0.01, "its clip fired in ")]
)
def test_an_arm_that_the_page_names_untuned_is_answered_for(tmp_path, threshold, words):
    """nnU-Net's very setting is such a one: its clip fires, or it does not."""
    asked = {"lr": 0.01, "threshold": threshold, "arms": ["adam + norm"]}
    text = page(
        synthetic.build(
            tmp_path / "asked", optimizers=("adam",), untuned=asked, with_throughput=False
        )
    )
    assert (
        f"As the study sets it</strong>, adam + norm at lr 0.01 and threshold {threshold:g}" in text
    )
    assert words in text


@pytest.mark.usefixtures("undrawn")
def test_a_report_phase_that_stopped_early_is_incomplete_and_claims_nothing(tmp_path):
    store = synthetic.build(
        tmp_path / "partial", optimizers=("sgd",), relative=(1.0,), change=gaining(0.1, 0.001)
    )
    assert "better, by what matters</span>" in page(store)
    plan = store.page("plan")
    protocol = {**plan["protocol"], "seeds": {"digits": {"select": 3, "report": 12}}}
    store.write_page("plan", {**plan, "protocol": protocol})
    text = page(store)
    assert "better, by what matters</span>" not in text
    assert re.search(r"Runs are missing: .*sgd \+ norm on digits", text)
    assert "13 of 15" in text


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize("kind", ["failed", "diverged", "collapsed", "stalled", "learned"])
def test_a_study_that_ends_one_way_renders(tmp_path, kind):
    change = synthetic.failed if kind == "failed" else functools.partial(synthetic.rows, kind=kind)
    store = synthetic.build(
        tmp_path / kind, optimizers=("sgd",), relative=(0.1, 1.0), report=3, change=change
    )
    text = page(store)
    assert f"0 {kind}" not in re.search(r'class="sub">(.*?)</p>', text)[1]
    if kind == "failed":
        assert "out of memory" in text


MATRIX = {"optimizers": ("sgd",), "clips": ("none", "norm"), "relative": (1.0,)}


def gaining(gain: float, spread: float = 0.0):
    """Every run learned; the clip gains so much on every seed, give or take ``spread``."""

    def change(one: Cell):
        clipped = one.clip.name != "none"
        metric = 0.8 + clipped * (gain + spread * (one.seed % 10)) + 0.01 * (one.seed % 7)
        return synthetic.rows(
            one,
            "learned",
            metric_value=metric,
            validation_value=one.lr,
            validation_metric=-one.lr,
            best_validation=-one.lr,
            best_metric=metric,
            clipped_fraction=0.5 * clipped,
        )

    return change


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("report_seeds", "claimed"), [(1, False), (2, True)])
def test_fewer_than_five_seeds_have_no_interval_and_claim_nothing(tmp_path, report_seeds, claimed):
    store = synthetic.build(
        tmp_path / "few", **MATRIX, report=report_seeds, change=gaining(0.1, 0.001)
    )
    text = page(store)
    assert ("▲ better, by what matters</span>" in text) == claimed
    assert ("this study cannot tell: the one row is undecided." in text) != claimed


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("gain", [0.1, 0.0])
def test_differences_that_are_alike_on_every_seed_are_no_certainty(tmp_path, gain):
    text = page(synthetic.build(tmp_path / "alike", **MATRIX, change=gaining(gain)))
    assert "this study cannot tell: the one row is undecided." in text
    assert "better, by what matters</span>" not in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.1, ["Better: {} (+0.1", "▲ better, by what matters</span>"]),
        (-0.1, ["Worse: {} (−0.09", "▼ worse, by what matters</span>"]),
        (0.015, ["Better: {} (+0.01", "△ better, size uncertain</span>"]),
        (0.001, ["No difference that matters: {} (", "= no difference that"]),
    ],
)
def test_the_answer_has_the_words_of_the_verdict(tmp_path, gain, words):
    """The margin is .02."""
    text = page(synthetic.build(tmp_path / "said", **MATRIX, change=gaining(gain, 0.001)))
    assert all(one.format("sgd + norm on digits") in text for one in words)


@pytest.mark.usefixtures("undrawn")
def test_a_column_of_the_answer_that_no_row_fills_is_left_out(tmp_path):
    """No budget was run here; what is compared has its column."""
    text = page(synthetic.build(tmp_path / "filled", **MATRIX, change=gaining(0.1, 0.001)))
    table = text.partition('<table class="verdicts')[2].partition("</table>")[0]
    heads = re.findall(r"<th [^>]*>(.*?)</th>", table)
    assert "gain [95 %]" in heads
    assert "thresholds to try until ahead" not in heads
    assert table.count("<td") == len(heads)


@pytest.mark.parametrize(
    ("relative", "percentile", "words"),
    [
        (
            (1.0,),
            90.0,
            "sgd + norm has p90 and 1× as threshold, and the table judges the one fixed",
        ),
        ((0.3, 1.0), None, "has 0.3× and 1× as threshold, and the table judges the one that"),
        ((1.0,), None, None),
    ],
    ids=["one fixed", "none fixed", "one alone"],
)
@pytest.mark.usefixtures("undrawn")
def test_thresholds_of_one_clip_are_said_to_compete_with_each_other(
    tmp_path, relative, percentile, words
):
    """And which of them the table judges; of one threshold nothing is said."""
    asked = {**MATRIX, "relative": relative, "percentile": percentile}
    text = page(synthetic.build(tmp_path / "several", **asked, change=gaining(0.1, 0.001)))
    assert ("Several thresholds, one clip:" in text) == (words is not None)
    assert words is None or words in text


@pytest.mark.parametrize(("gain", "said"), [(0.05, False), (0.2, True)])
@pytest.mark.usefixtures("undrawn")
def test_an_interval_beyond_what_the_metric_can_be_is_said_to_be_one(tmp_path, gain, said):
    """An accuracy above 1: the numbers stay as they are, in the page and in its CSV."""
    text = page(synthetic.build(tmp_path / "beyond", **MATRIX, change=gaining(gain, 0.005)))
    words = "some reach beyond what accuracy can be (0 to 1): read these as ending there."
    assert (words in text) == said


def test_the_range_of_a_metric_is_the_one_that_its_docstring_says():
    ranges = {}
    for name in dir(metrics):
        one = getattr(metrics, name)
        found = re.search(r"In \[(\S+), (\S+)[\])]", getattr(one, "__doc__", None) or "")
        if found and hasattr(one, "higher_is_better") and name != "log10_gap":
            ranges[name] = tuple(float(end.replace("∞", "inf")) for end in found.groups())
    assert ranges == RANGES


@pytest.mark.usefixtures("undrawn")
def test_the_words_that_a_page_marks_are_in_its_list(tmp_path):
    """Every link has its line, and no line stands twice."""
    store = synthetic.build(tmp_path / "marked", **MATRIX, change=gaining(0.1, 0.001))
    page(store)
    text = rendered(store)
    linked = set(re.findall(r'class="word" href="#(word-[a-z-]+)"', text))
    listed = re.findall(r'<dt id="(word-[a-z-]+)"', text)
    assert linked
    assert linked <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.usefixtures("undrawn")
def test_a_clip_that_helps_at_the_last_step_only_is_said_to_be_no_better_than_an_early_stop(
    tmp_path,
):
    def change(one: Cell):
        parts = gaining(0.2, 0.001)(one)
        return synthetic.rows(one, "learned", **{**only(parts), "best_metric": best(one)})

    def only(parts):
        names = ("metric_value", "validation_value", "validation_metric", "clipped_fraction")
        return {name: parts["cells"][0][name] for name in names}

    def best(one: Cell):
        return 0.9 + 0.001 * (one.seed % 3) + 0.0001 * (one.seed % 2) * (one.clip.name != "none")

    text = page(synthetic.build(tmp_path / "stop", **MATRIX, change=change))
    assert "; better only without early stopping" in text


@pytest.mark.usefixtures("undrawn")
def test_cells_of_older_rules_are_not_compared_at_the_same_number_of_tries(tmp_path):
    def change(one: Cell):
        return synthetic.rows(one, "learned", rules=None, best_metric=None, best_step=None)

    text = page(synthetic.build(tmp_path / "old", **MATRIX, change=change))
    assert "The cells of this folder are of rules 1" in text
    assert "Without a verdict, for the clip had more tries: 1 of 1" in text
    assert "no verdict: " in text


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_a_metric_is_named_and_nothing_is_concluded(tmp_path):
    def change(one: Cell):
        spoiled = one.seed == 1003 and one.arm == "sgd"
        return (
            synthetic.rows(one, "stalled", metric_value=None, best_metric=None)
            if spoiled
            else gaining(0.1, 0.001)(one)
        )

    text = page(synthetic.build(tmp_path / "blank", **MATRIX, change=change))
    assert "<strong>No value</strong>: 1 report run of digits, sgd, did not diverge" in text
    assert "seed 1003 (stalled)" in text
    assert "(median of 9 of 10 seeds, incomplete, 1 with no value)" in text
    assert "better, by what matters</span>" not in text


@pytest.mark.usefixtures("undrawn")
def test_without_plain_sgd_no_other_method_stands_under_its_name(tmp_path):
    store = synthetic.build(
        tmp_path / "none",
        optimizers=("momentum", "rmsprop"),
        relative=(1.0,),
        change=gaining(0.1, 0.001),
    )
    report.write(store, ("html", "csv"))
    text = rendered(store)
    assert "Plain SGD reaches" not in text
    assert "ahead of plain SGD" not in text
    assert re.search(r"Better: .*momentum \+ norm on digits", text)


@pytest.mark.usefixtures("undrawn")
def test_timings_of_two_machines_are_told_apart(tmp_path):
    store = synthetic.build(tmp_path / "two", **MATRIX, report=2)
    store.add_throughput(
        synthetic.timing("digits", "sgd", {"none": 1.0, "norm": 3.0}, environment="e2")
    )
    page_of_environments = store.page("environment")
    machines = {
        "e1": {"processor": "Slow"},
        "e2": {"processor": "Fast", "cuda": {"device": "Card"}},
    }
    store.write_page("environment", {**page_of_environments, "environments": machines})
    text = page(store)
    for words in ("digits (environment e1, Slow)", "digits (environment e2, Fast, Card)"):
        assert f"<h3>{words}</h3>" in text
        assert f"<caption>{words}: cost of a training step.</caption>" in text
    assert re.search(r"1\d to 20\d % more time a step, over 2 machines", text)


@pytest.mark.usefixtures("undrawn")
def test_a_workload_without_randomness_says_so(tmp_path):
    store = synthetic.build(
        tmp_path / "sure", problems=("cosh",), **MATRIX, select=1, report=1, change=gaining(-0.1)
    )
    components = store.page("components")
    components["workloads"]["cosh"]["deterministic"] = True
    store.write_page("components", components)
    text = page(store)
    assert "(no randomness: one run)" in text
    assert "n: no randomness: one run; div." in text
    assert "at which the one selection seed (no randomness: one run) learned" in text
    assert "n = 1" not in text


@pytest.mark.usefixtures("undrawn")
def test_a_failed_cell_is_listed_with_its_reason_and_a_reader_sees_it_is_not_a_divergence(tmp_path):
    def change(one: Cell):
        return (
            synthetic.failed(one, "killed by signal 9")
            if one.seed == 1000 and one.arm == "sgd"
            else None
        )

    store = synthetic.build(
        tmp_path / "failed", optimizers=("sgd",), relative=(1.0,), change=change
    )
    text = page(store)
    assert "killed by signal 9" in text
    assert "median of 9 of 10 seeds, incomplete" in text


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize(
    "choice",
    [
        {"clips": ("none",)},
        {"clips": ("norm",)},
        {"optimizers": ("adam",)},
        {
            "optimizers": ("sgd",),
            "clips": ("none", "norm"),
            "relative": (1.0,),
            "select": 1,
            "report": 1,
        },
        {"clips": ("none", "ema"), "optimizers": ("sgd",), "relative": (1.0, 3.0)},
    ],
    ids=["no clips", "no unclipped arm", "no headline optimizer", "one seed", "a stranger's clip"],
)
def test_an_unusual_matrix_renders(tmp_path, choice):
    store = synthetic.build(
        tmp_path / "odd",
        **{"optimizers": ("sgd", "momentum"), "relative": (0.1, 1.0), "report": 2, **choice},
    )
    assert "Should I clip?" in page(store)


@pytest.mark.usefixtures("sketched")
def test_a_single_cell_renders(tmp_path):
    store = Store.create(tmp_path / "one", "one", 'title = "One"\n')
    one = synthetic.cell("digits", "sgd", "none", 0.1, 0)
    synthetic.commit(store, "a", [synthetic.rows(one, "learned")])
    store.write_page("plan", {"cells": {"select": [one.id]}, "protocol": {}, "not_run": []})
    assert "1 cell:" in page(store)


@pytest.mark.usefixtures("sketched")
def test_a_workload_with_one_seed_says_n_is_one(tmp_path):
    store = synthetic.build(
        tmp_path / "one",
        problems=("cosh",),
        optimizers=("sgd",),
        relative=(0.1,),
        select=1,
        report=1,
    )
    assert "(n = 1, no interval)" in page(store)


def test_curves_of_report_cells_alone_are_enough(tmp_path):
    matrix = {"optimizers": ("sgd",), "clips": ("none", "norm"), "relative": (1.0,), "report": 2}
    whole = synthetic.build(tmp_path / "a" / "same", **matrix)
    light = synthetic.build(tmp_path / "b" / "same", **matrix, curves="report")
    for store in (whole, light):
        report.write(store, ("html", "svg"))
    assert digest(whole.folder / "report" / "figures") == digest(
        light.folder / "report" / "figures"
    )
    assert "keeps the curves of report cells only" in (
        light.folder / "report" / "report.html"
    ).read_text(encoding="utf-8")


@pytest.mark.usefixtures("sketched")
def test_devices_and_batches_are_sections_of_their_own_and_their_labels_show_what_varies(tmp_path):
    store = synthetic.build(
        tmp_path / "two",
        optimizers=("sgd",),
        relative=(1.0,),
        report=2,
        variants=({"batch": 32}, {"batch": 128}),
        with_throughput=False,
    )
    text = page(store)
    assert "<h3>digits, batch 32</h3>" in text
    assert "<h3>digits, batch 128</h3>" in text
    before, _, threats = text.partition('id="threats"')  # which tells the conditions in full
    told = before.replace("On cpu, float32; ", "") + threats.partition("</section>")[2]
    assert "float32" not in told


@pytest.mark.usefixtures("undrawn")
def test_a_mixture_of_engines_is_labelled(tmp_path):
    def change(one: Cell):
        return synthetic.rows(one, "learned", engine="batched") if one.seed == 1000 else None

    store = synthetic.build(
        tmp_path / "mixed", optimizers=("sgd",), relative=(1.0,), report=3, change=change
    )
    assert "come from more than one engine: batched" in page(store)


@pytest.mark.usefixtures("undrawn")
def test_cells_of_another_version_are_kept_but_not_compared(tmp_path):
    store = synthetic.build(tmp_path / "old", optimizers=("sgd",), relative=(1.0,), report=2)
    old = Cell(
        Part("digits", 1),
        Part("sgd", 1),
        Part("norm", 0, {"relative": 1.0}, "max_norm"),
        0.1,
        0,
        60,
        32,
    )
    gone = synthetic.cell("digits", "sgd", "none", 77.0, 0)
    synthetic.commit(
        store, "old", [synthetic.rows(old, "learned"), synthetic.rows(gone, "learned")]
    )
    text = page(store)
    assert (
        "1 stored cell kept but not compared: written by version 0 of &quot;norm&quot; (now 1)."
        in text
    )
    assert "1 stored cell kept but not compared: no longer asked for by the study." in text


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_file_is_named(tmp_path):
    store = synthetic.build(tmp_path / "hurt", optimizers=("sgd",), relative=(1.0,), report=2)
    file = next((store.folder / "events").glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-1])
    assert "Damaged file left out: events/" in page(Store(store.folder))


@pytest.mark.usefixtures("undrawn")
def test_a_folder_that_cannot_be_written_is_one_sentence(tiny, tmp_path):
    (tmp_path / "report").write_text("a file")
    with pytest.raises(UsageError, match="this is a file, and the report needs a folder there"):
        report.write(tiny, ("md",), tmp_path / "report")


# ---------------------------------------------------------------------------------- implementations

COSTS = {
    "torch": {"none": 2.0, "value": 4.0, "norm": 4.0},
    "flat": {"none": 1.25, "value": 6.0, "norm": 2.0},
}


@pytest.mark.usefixtures("sketched")
def test_the_section_on_cost_says_which_implementation_to_use_at_each_size(tmp_path):
    store = synthetic.build(tmp_path / "s", **MATRIX, report=2)
    before = page(store)
    assert "Which implementation to use" not in before
    store.add_throughput(synthetic.surveyed(COSTS))
    store.add_throughput(synthetic.surveyed(COSTS, threads=2))
    store.add_throughput(
        synthetic.surveyed(
            {"torch": {"none": 1.0, "norm": 3.0}, "flat": {"none": 1.0, "norm": 4.0}},
            parameters=1000,
        )
    )
    disturbed = [
        {**row, "valid": row["block"] < 3} for row in synthetic.surveyed(COSTS, parameters=5000)
    ]
    store.add_throughput(disturbed)
    text = page(store)
    words = re.sub(r"<[^>]*>|`", "", html.unescape(text))
    assert "5000 in 6 tensors: For norm, too few valid blocks to tell with momentum." in words
    assert (
        words.count(
            "For norm, flat with momentum (×0.5). For value, torch's default, which nothing beats, "
            "with momentum."
        )
        == 2
    )
    assert (
        "1000 in 6 tensors: For norm, torch's default, which nothing beats, with momentum." in words
    )
    assert words.index("1000 in 6 tensors: ") < words.index("2000000 in 6 tensors: ")
    assert "Clip and step alone, on given gradients, one thread" in words
    assert "Clip and step alone, on given gradients, 2 threads" in words
    assert "25 % → 50 %" in words
    assert "digits: cost of a training step." in words


@pytest.mark.usefixtures("sketched")
def test_timings_without_a_single_cell_have_a_report(tmp_path):
    store = Store.create(tmp_path / "timed", "timed", 'title = "Timed"')
    store.add_throughput(synthetic.surveyed(COSTS))
    text = page(store)
    assert "Nothing has been run yet" in text
    assert "Which implementation to use" in text


@pytest.mark.usefixtures("sketched")
def test_kernels_and_waits_are_shown_where_they_were_counted(tmp_path):
    store = Store.create(tmp_path / "cuda", "cuda", 'title = "Timed"')
    counted = [
        {**row, "kernels": 9 if row["implementation"] == "torch" else 4, "synchronisations": 0}
        for row in synthetic.surveyed(COSTS, device="cuda")
    ]
    store.add_throughput(counted)
    text = re.sub(r"<[^>]*>", " ", page(store))
    assert "9 → 4" in text
    assert "synchronisations" in text
    assert "on given gradients, cuda" in text


def test_the_threshold_of_an_advice_holds_on_its_optimizer_and_its_problem_alone(tmp_path):
    """The line of torch is beside the optimizer and the learning rate on which it was better."""
    store = synthetic.build(tmp_path / "advice", **MATRIX, change=gaining(0.1, 0.001))
    [line, *_] = of_kind(parts.Section("advice", "", advice.told(read(store))), parts.List)[0].items
    assert re.search(r"Clip\*\* on digits, if you train with sgd at lr [\d.]+: ", line.words)
    torch_line = line.words.index("clip_grad_norm_(model.parameters(), max_norm=")
    assert line.words.index("The number is this problem's") > torch_line


@pytest.mark.parametrize(("grows", "said"), [(True, False), (False, True)])
def test_a_share_is_said_to_fall_with_the_time_of_a_step_where_it_does(tmp_path, grows, said):
    """Two problems, of which one has the longer step."""
    store = synthetic.build(
        tmp_path / "cost", **{**MATRIX, "problems": ("digits", "wdbc")}, with_throughput=False
    )
    rows = [
        {**row, "step_50": 0.001 * (1 + place), "ratio": math.nan if clip == "none" else ratio}
        for place, problem in enumerate(("digits", "wdbc"))
        for clip in ("none", "norm")
        for ratio in [1.1 + 0.2 * (place == grows)]
        for row in [{"problem": problem, "clip": clip, "optimizer": "sgd", "environment": "e"}]
    ]
    evidence = read(store)
    costs = pd.DataFrame(rows).assign(batch=32, device="cpu", dtype="float32")
    evidence.__dict__["costs"] = costs
    text = " ".join(part.words for part in answer.told(evidence) if isinstance(part, Text))
    assert "10 to 30 % more time a step: the least on " in text
    assert ("The longer a step takes, the smaller the share." in text) == said


def test_every_packaged_problem_is_told_in_a_few_words():
    registry.load_packaged()
    assert set(problems.WHAT) == set(packaged.names("workload"))


def test_a_paragraph_marks_what_is_strong_code_and_a_link_to_a_row_and_escapes_the_rest():
    row = "tables/answer.csv#row=3"
    text = Text(f"a **b c** `d` <e> 2 ** 3 `f [g]({row}) [h](javascript:i)")
    assert [run for run in text.runs if run[1]] == [
        ("", "a ", ""),
        ("strong", "b c", ""),
        ("", " ", ""),
        ("code", "d", ""),
        ("", " <e> 2 ** 3 `f ", ""),
        ("a", "g", row),
        ("", " [h](javascript:i)", ""),
    ]
    assert text.unlinked == "a **b c** `d` <e> 2 ** 3 `f g [h](javascript:i)"


@pytest.mark.usefixtures("undrawn")
def test_what_limits_the_conclusions_is_read_from_the_store(tmp_path):
    """The longest run, the ends of axes that were chosen, the machines, and what was not run."""

    def change(one: Cell):  # the smaller the learning rate the better
        parts = gaining(0.0, 0.001)(one)["cells"][0]
        names = ("metric_value", "best_metric", "validation_metric", "best_validation")
        return synthetic.rows(one, "learned", **{name: parts[name] for name in names})

    text = page(synthetic.build(tmp_path / "threats", **MATRIX, change=change))
    section = text.partition('id="threats"')[2].partition("</section>")[0]
    assert "No run is longer than 60 steps." in section
    assert "sgd on digits (0.01 in 100 %)" in section
    assert "1 environment: environment e1" in section
    assert "300 cells on cuda" in section
