"""The committed results: what a clone holds is whole, and its reports are what the store gives."""

import filecmp
import json
import re
import runpy
import sys

import pytest
import torch

from clipbench import registry, report, schema
from clipbench.store import Store

STUDIES = (
    *("quick", "standard", "long", "origin", "full", "published", "nnunet", "transfer"),
    "distributed",
)


@pytest.fixture(params=STUDIES)
def folder(request, checkout):
    return checkout / "results" / request.param


def test_committed_results_keep_every_promise_and_are_finished(folder):
    store = Store(folder)
    assert store.problems() == []
    assert store.missing() == []
    assert all(len(list((folder / table).glob("*"))) <= 1 for table in schema.TABLES), (
        "`clipbench pack` makes it one file a table"
    )


CAPS = {
    "standard": 6e6,
    "quick": 10e6,
    "full": 5e6,
    "gate": 2e6,
}  # bytes; every other folder 1.5 MB
WHOLE = 25e6


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_committed_results_are_small(checkout):
    """A clone is for everybody, and every renewal stays in its history."""
    sizes = {
        path.name: size(path)
        for path in (checkout / "results").iterdir()
        if path.is_dir() and (path.name in kept(checkout))
    }
    assert {name for name, held in sizes.items() if held > CAPS.get(name, 1.5e6)} == set()
    assert sum(sizes.values()) <= WHOLE
    tables = [path for name in sizes for path in (checkout / "results" / name).rglob("*.csv")]
    assert all(path.stat().st_size <= 200e3 for path in tables)


def kept(checkout):
    """The folders that are committed, as .gitignore says."""
    lines = (checkout / ".gitignore").read_text(encoding="utf-8").splitlines()
    return {
        line.removeprefix("!/results/").rstrip("/")
        for line in lines
        if line.startswith("!/results/")
    }


def test_the_page_of_the_results_says_what_when_and_where(checkout):
    text = (checkout / "results" / "README.md").read_text(encoding="utf-8")
    for name in (*STUDIES, "gate/smoke", "gate/loop", "gate/batched"):
        store = Store(checkout / "results" / name)
        cells, machines = store.read("cells"), store.page("environment")["environments"]
        days = sorted({created[:10] for created in cells["created"]})
        where = {
            f"{machines[key]['processor']}, torch {machines[key]['libraries']['torch']}"
            for key in cells["environment"]
        }
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{name}` ")]
        _, _, _, runs, when, there, citable, _ = (part.strip() for part in row.split("|"))
        assert (runs, when) == (f"{len(cells):,}", " to ".join(dict.fromkeys((days[0], days[-1]))))
        assert there == "; ".join(sorted(where))
        rules = set(cells["rules"].fillna(1))
        assert (citable == "no") == (rules != {schema.RULES})


def test_committed_reports_are_rendered_anew_byte_for_byte(folder, whole, tmp_path):
    """Figures, tables and pages: no one has edited them by hand, and no change of the code has
    left them behind.
    """
    if folder.name != "origin" and not whole:
        pytest.skip("pages like the others: only with --whole, and by `tox -e figures`")
    report.write(Store(folder), folder=tmp_path)
    committed = {
        path.relative_to(folder / "report")
        for path in (folder / "report").rglob("*")
        if path.is_file()
    }
    assert {
        path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()
    } == committed
    _, different, unread = filecmp.cmpfiles(
        folder / "report", tmp_path, sorted(map(str, committed)), shallow=False
    )
    assert (different, unread) == ([], [])


@pytest.mark.usefixtures("undrawn")
def test_words_and_tables_of_the_largest_report_are_made_anew_byte_for_byte(checkout, tmp_path):
    """Those of quick, which README and docs quote. Its figures, which take most of the time, are
    rendered anew with --whole; those of origin at every change.
    """
    folder = checkout / "results" / "quick" / "report"
    report.write(Store(folder.parent), folder=tmp_path)
    tables = sorted(path.name for path in (folder / "tables").iterdir())
    assert len(tables) > 50
    compared = filecmp.cmpfiles(folder / "tables", tmp_path / "tables", tables, shallow=False)
    assert compared[1:] == ([], [])
    pages = [(place / "report.md").read_text(encoding="utf-8") for place in (folder, tmp_path)]
    # a figure that is too large to be kept has a sentence in its place
    one, other = (
        re.sub(r"^(!\[|\(This figure ).*$", "", page, flags=re.MULTILINE) for page in pages
    )
    assert one == other


def test_the_headline_is_drawn_from_thousands_of_cells_of_which_some_diverged(checkout):
    cells = Store(checkout / "results" / "quick").read("cells")
    assert len(cells) >= 2000
    assert (cells["status"] == "diverged").any()
    assert not (cells["status"] == "failed").any()


def test_the_table_of_engines_is_that_of_the_numbers_beside_it_and_the_docs(checkout, monkeypatch):
    monkeypatch.syspath_prepend(checkout / "benchmarks")  # as for a script that is run
    folder = checkout / "results" / "engines"
    stored = json.loads((folder / "engines.json").read_text(encoding="utf-8"))
    for by in stored["rounds"].values():
        for rounds in by.values():
            rounds[:] = [
                [{int(count): value for count, value in process.items()} for process in one]
                for one in rounds
            ]
    footer = ", ".join(f"{key} {value}" for key, value in stored["versions"].items())
    registry.load_packaged()
    with torch.random.fork_rng():  # the table counts the parameters of models, which are drawn
        page = runpy.run_path(str(checkout / "benchmarks" / "engines.py"))["table"](
            stored["rounds"], stored["missing"], footer
        )
    assert (folder / "engines.md").read_text(encoding="utf-8") == page
    shown = (checkout / "docs" / "engines.md").read_text(encoding="utf-8")
    assert page.partition("\n\n")[0] in shown
    eager, native = re.findall(r"^- recording.*?: ([\d.]+) ", page, flags=re.MULTILINE)
    assert (
        f"costs lanes of torch {eager} times the time of a step without, and native lanes {native} "
        f"times"
    ) in " ".join(shown.split())


@pytest.mark.parametrize("name", ["whole_run", "building"])
def test_tables_beside_that_of_engines_are_those_of_their_numbers_and_the_docs(
    checkout, monkeypatch, name
):
    monkeypatch.syspath_prepend(checkout / "benchmarks")
    folder = checkout / "results" / "engines"
    stored = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    page = runpy.run_path(str(checkout / "benchmarks" / f"{name}.py"))["table"](stored)
    for beside in ("engines", "held_out", "timing"):
        sys.modules.pop(beside, None)
    assert (folder / f"{name}.md").read_text(encoding="utf-8") == page
    assert page.strip() in (checkout / "docs" / "engines.md").read_text(encoding="utf-8")
