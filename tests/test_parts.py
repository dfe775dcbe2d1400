"""A study in parts, on machines of their own: what is merged of them has the tables of one run, or
a sentence says what is missing.
"""

import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from battery import rows
from click.testing import CliRunner
from executors import InProcess
from hypothesis import given
from hypothesis import strategies as some

from clipbench import execute, protocol, registry, study
from clipbench.cli import cli
from clipbench.errors import UsageError
from clipbench.protocol.part import Part, part_named
from clipbench.store import Store
from clipbench.task import Task

PAGE = """
[run]
steps = 20
batch = 8
lr = [0.03, 0.1, 0.3]
seeds = { select = 2, report = 2 }
evaluations = 2
engine = "loop"

[[workload]]
name = "wdbc"

[[workload]]
name = "cosh"

[[optimizer]]
name = "sgd"

[[clip]]
name = "none"

[[clip]]
name = "norm"
relative = [0.5, 2]
"""
registry.load_packaged()
CELLS = study.parse("shared", PAGE, Path()).cells()


def run(folder, part=None, after=None, page=PAGE):
    """Run a study, or a part of it, in this process."""
    asked = study.parse("shared", page, folder.parent)
    store = Store.create(folder, asked.name, asked.text)
    options = protocol.Options(
        throughput=False, part=None if part is None else part_named(part), after=after
    )
    with InProcess() as executor, store.claim():
        execute.prepare(execute.Setting())  # as whoever trains is
        counts = protocol.run(asked, store, options, executor=executor)
    assert counts.failed == 0
    return counts


def merge(out, *folders):
    """What the command says, and its exit code."""
    said = CliRunner().invoke(cli, ["merge", *map(str, folders), "--out", str(out)])
    return said.exit_code, said.stdout + said.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    run(folder)
    return folder


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """A folder with part 0, and three parts of the first phase."""
    here = tmp_path_factory.mktemp("parts")
    run(here / "base", "0/3")
    for number in (1, 2, 3):
        run(here / f"p{number}", f"{number}/3", here / "base")
    return here


@pytest.fixture
def parts(selected, tmp_path):
    shutil.copytree(selected, tmp_path / "parts")
    return tmp_path / "parts"


# ------------------------------------------------------------------------------------------ a split


@given(of=some.integers(1, 40))
def test_each_cell_is_in_one_part_and_the_arms_of_a_seed_stay_together(of):
    found = [Part(number, of).cells(CELLS) for number in range(1, of + 1)]
    assert Counter(cell.id for cell in itertools.chain(*found)) == Counter(
        cell.id for cell in CELLS
    )
    units = {(Task.of(cell), cell.seed) for cell in CELLS}
    homes = {
        unit: {
            number
            for number, cells in enumerate(found)
            if any((Task.of(cell), cell.seed) == unit for cell in cells)
        }
        for unit in units
    }
    if of <= len(units):
        assert all(len(home) == 1 for home in homes.values())
        sizes = [len({(Task.of(cell), cell.seed) for cell in cells}) for cells in found]
        assert max(sizes) - min(sizes) <= 1
    else:
        arms = {cell.arm for cell in CELLS}
        assert sum(bool(cells) for cells in found) == min(of, len(units) * len(arms))


@pytest.mark.parametrize("text", ["", "3", "4/3", "1/0", "0/0", "-1/3", "1/x", "1/3/5", "٣/٣"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(UsageError, match="write NUMBER/OF, such as 3/20"):
        part_named(text)


# ----------------------------------------------------------------------------------------- together


def test_three_parts_have_the_tables_of_one_run(parts, whole):
    """Selection, extended axes and report, each merged before the next begins."""
    out, folders = parts / "merged", [parts / f"p{number}" for number in (1, 2, 3)]
    code, said = merge(out, parts / "base", *folders)
    assert code == 0, said
    assert "the report phase has not run" in said
    assert "missing" not in said
    for _ in range(4):
        if "Complete" in said:
            break
        for number, folder in enumerate(folders, 1):
            run(folder, f"{number}/3", out)
        code, said = merge(out, *folders)
        assert code == 0, said
    assert "Complete" in said
    store = Store(out)
    assert store.problems() == store.missing() == []
    assert rows(store) == rows(Store(whole))
    plan = Store(whole).page("plan")
    assert store.page("plan") == {**plan, "parts": ["0/3", "1/3", "2/3", "3/3"]}
    assert store.page("calibration")["pilots"] == Store(whole).page("calibration")["pilots"]
    # what is merged once more adds nothing, and a run finds nothing to do
    files = {path: path.read_bytes() for path in out.rglob("*.parquet")}
    assert "Complete" in merge(out, *folders)[1]
    assert {path: path.read_bytes() for path in out.rglob("*.parquet")} == files
    assert run(out).ran == 0


def test_a_part_that_is_missing_is_named_and_doubled_ones_count_once(parts):
    out = parts / "merged"
    shutil.copytree(parts / "p1", parts / "p1 again")
    code, said = merge(out, parts / "base", parts / "p1", parts / "p3", parts / "p1 again")
    assert code == 0
    assert "of 3 parts, 2 is missing" in said
    assert "select cells are missing" in said
    # nothing is chosen from half of a selection
    counts = run(parts / "p1", "1/3", out)
    assert (counts.ran, counts.elsewhere > 0) == (0, True)
    assert Store(out).problems() == []
    assert "of 3 parts" not in merge(out, parts / "p2")[1]
    cells = Store(out).read("cells")
    assert len(cells) == cells["cell"].nunique() == len(CELLS)


def test_a_cell_that_two_parts_have_run_counts_once(parts):
    """As if a part was given to two machines."""
    run(parts / "twin", "1/3", parts / "base")
    code, _ = merge(parts / "merged", *(parts / name for name in ("p1", "twin", "p2", "p3")))
    assert code == 0
    store = Store(parts / "merged")
    assert store.read("cells")["cell"].nunique() == len(store.read("cells")) == len(CELLS)
    assert set(store.read("evals")["cell"]) == {cell.id for cell in CELLS}


def altered(folder, page, change):
    """A page that says something else, with its hash."""
    store = Store(folder)
    known = store.page(page)
    change(known)
    store.write_page(page, known)


def another_pilot(folder):
    def change(page):
        sizes = next(iter(page["pilots"].values()))
        sizes[next(iter(sizes))] *= 1 + 1e-9

    altered(folder, "calibration", change)


def another_version(folder):
    altered(folder, "components", lambda page: page["clips"]["norm"].update(version=2))


def another_page(folder):
    Store.create(folder, "shared", PAGE + "\n# another\n")


def another_study(folder):
    shutil.rmtree(folder)
    Store.create(folder, "other", PAGE)


def damaged(folder):
    (file,) = (folder / "evals").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-1] + b"x")


REFUSED = {
    another_pilot: "its pilot .* is not that of .*base",
    another_version: 'its component "norm" is not that of .*base; run all parts with one version',
    another_page: "its study.toml is not that of",
    another_study: 'holds the study "other"',
    damaged: "p2/evals/.* does not match the hash in its name; run this part again",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda one: one.__name__)
def test_a_folder_that_does_not_fit_is_refused_and_nothing_is_written(spoil, parts):
    spoil(parts / "p2")
    code, said = merge(parts / "merged", *(parts / name for name in ("base", "p1", "p2", "p3")))
    assert code == 2, said
    assert said.count("\n") == 1
    assert re.search(REFUSED[spoil], said), said
    assert not (parts / "merged").exists()


def test_a_part_without_what_parts_share_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--part 1/3: .*make it once by --part 0/3 --out DIR"):
        run(tmp_path / "p1", "1/3")
    with pytest.raises(UsageError, match="this is no results folder"):
        run(tmp_path / "p1", "1/3", tmp_path / "nothing")
    with pytest.raises(UsageError, match="give --part as well"):
        run(tmp_path / "p1", None, tmp_path / "nothing")
    code, said = merge(tmp_path / "p1", tmp_path / "p1")
    assert code == 2
    assert "one of the folders to merge" in said


def test_absolute_thresholds_need_nothing_to_share(tmp_path):
    page = PAGE.replace("relative = [0.5, 2]", "max_norm = [0.5, 2]")
    assert run(tmp_path / "p1", "1/2", page=page).ran > 0
    assert json.loads((tmp_path / "p1" / "plan.json").read_text())["part"] == "1/2"
