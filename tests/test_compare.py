"""Two folders of one study beside each other."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import synthetic
from test_cli import clipbench, refused

from clipbench import compare, tuning
from clipbench.analysis import headline
from clipbench.errors import UsageError
from clipbench.store import Store

STUDY = dict(
    problems=("digits",),
    optimizers=("sgd", "momentum"),
    clips=("none", "norm"),
    relative=(0.3,),
    report=5,
)
SHIFT = 0.25


def shifted(one):
    """The rows of a cell of SGD with the norm clip, better by a shift that depends on the seed."""
    if (one.optimizer.name, one.clip.name) != ("sgd", "norm"):
        return None
    rows = synthetic.rows(one, "learned")
    row = rows["cells"][0]
    for name in ("metric_value", "best_metric"):
        row[name] += SHIFT + one.seed % 7 / 1000
    return rows


def plain(one):
    """The same cell, not shifted."""
    return synthetic.rows(one, "learned") if shifted(one) else None


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    synthetic.build(folder / "a" / "small", change=plain, **STUDY)
    synthetic.build(folder / "b" / "small", change=shifted, **STUDY)
    return folder / "a" / "small", folder / "b" / "small"


@pytest.fixture(scope="module")
def found(folders):
    return compare.beside(*map(Store, folders))


def test_a_folder_beside_itself_differs_in_nothing(folders):
    same = compare.beside(Store(folders[0]), Store(folders[0]))
    cells = len(Store(folders[0]).read("cells"))
    assert same.cells == {"equal": cells, "different": 0, "only_a": 0, "only_b": 0}
    assert (same.estimates["difference"] == 0).all()
    assert not same.verdicts["turned"].any()
    assert same.settings == []
    assert (same.times["ratio"] == 1).all()


def test_what_differs_is_counted_by_cell_and_estimated_by_arm_with_pairs_of_seeds(found):
    cells = found.cells
    assert cells["only_a"] == cells["only_b"] == 0
    assert cells["different"] > 0
    by_arm = found.estimates.set_index("arm")
    assert set(by_arm.index) == {"sgd", "sgd + norm", "momentum", "momentum + norm"}
    assert by_arm["paired"].all()
    assert (by_arm["n"] == 8).all()
    moved = by_arm.loc["sgd + norm"]
    assert moved["low"] < moved["difference"] < moved["high"]
    # the shifts of the seeds are known: so far apart two folders are, and luck takes no part in it
    assert moved["difference"] == pytest.approx(SHIFT + 0.003, abs=0.003)
    assert moved["high"] - moved["low"] < 0.02
    assert moved["difference"] == pytest.approx(moved["estimate_b"] - moved["estimate"])
    assert (by_arm.drop("sgd + norm")["difference"] == 0).all()


def test_seeds_of_other_settings_are_not_paired(folders):
    """By hand: the interval of a difference of two independent estimates."""
    one = headline.of_store(Store(folders[0])).axes
    key = next(key for key in one if key[1] == "sgd + norm" and key[2] == "best")
    first = one[key]
    other = headline.of_store(Store(folders[1])).axes[key]
    moved = other.points.assign(lr=other.points["lr"] * 2)
    difference, error, n, paired = compare._difference(
        first, headline.Axis(moved, *list(vars(other).values())[1:])
    )
    sides = [tuning.expected(axis.validation, axis.test) for axis in (first, other)]
    assert not paired
    assert n == 8
    assert difference == pytest.approx(sides[1].estimate - sides[0].estimate)
    assert error == pytest.approx(np.hypot(*(tuning.standard_error(s.without) for s in sides)))


def test_a_verdict_that_turned_is_named(found, folders):
    both = found.verdicts.set_index("arm")
    gaps = [headline.of_store(Store(folder)).gaps.set_index("arm") for folder in folders]
    for arm in both.index:
        assert both.loc[arm, "verdict"] == gaps[0].loc[arm, "verdict"]
        assert both.loc[arm, "verdict_again"] == gaps[1].loc[arm, "verdict"]


def test_pages_that_say_otherwise_are_named(folders, tmp_path):
    other = synthetic.build(tmp_path / "small", change=plain, **STUDY)
    page = other.page("environment")
    page["environments"]["e1"] |= {"torch": "2.14.0", "libraries": {"numpy": "3.0"}}
    other.write_page("environment", page)
    components = json.loads(json.dumps(other.page("components")))
    components["clips"]["norm"]["version"] = 2
    other.write_page("components", components)
    said = compare.beside(Store(folders[0]), Store(tmp_path / "small")).settings
    assert ("torch", "2.13.0", "2.14.0") in said
    assert ("version of norm", "1", "2") in said
    assert ("numpy", "2.3.0", "2.3.0, 3.0") in said


def test_a_device_is_compared_with_another_cell_by_cell(folders, tmp_path):
    """Here luck belongs to the cell: the folders have other numbers, and the same cells."""
    synthetic.build(tmp_path / "small", variants=({"device": "cuda"},), **STUDY)
    found = compare.beside(Store(folders[0]), Store(tmp_path / "small"))
    assert found.cells["equal"] + found.cells["different"] > 100
    assert set(found.estimates["device"]) == {"both"}
    assert len(found.estimates) == 4
    assert ("device", "cpu", "cuda") in found.settings
    assert len(found.verdicts) == 2


def test_a_replica_is_compared_with_its_study_cell_by_cell(folders, tmp_path):
    """A cell of a replica has an identity of its own, and all settings of the study's cell."""

    def again(one):
        return synthetic.rows(replace(one, replica=1), "learned")

    synthetic.build(tmp_path / "small", change=again, **STUDY)
    stores = [Store(folders[0]), Store(tmp_path / "small")]
    cells = [set(store.read("cells", ["cell"])["cell"]) for store in stores]
    assert not cells[0] & cells[1]
    beside = compare.beside(*stores)
    assert beside.cells["only_a"] == beside.cells["only_b"] == 0
    assert beside.cells["different"] > 0
    assert ("replica", "0", "1") in beside.settings


def test_folders_without_a_cell_in_common_are_refused(folders, tmp_path):
    synthetic.build(tmp_path / "other", problems=("wdbc",), optimizers=("sgd",), report=0)
    with pytest.raises(UsageError, match="no cell of one has the settings"):
        compare.beside(Store(folders[0]), Store(tmp_path / "other"))


def test_a_study_without_a_report_phase_is_compared_as_far_as_it_goes(folders, tmp_path):
    synthetic.build(tmp_path / "small", change=plain, **{**STUDY, "report": 0})
    found = compare.beside(Store(folders[0]), Store(tmp_path / "small"))
    assert found.cells["different"] == 0
    assert found.cells["only_a"] > 0
    assert (found.estimates["n"] <= 3).all()


def test_the_command_says_it_in_aligned_lines_of_a_terminals_width(folders, tmp_path):
    file = tmp_path / "both.csv"
    said = clipbench("compare", *folders, "--csv", file)
    assert said.exit_code == 0, said.stderr
    lines = said.stdout.splitlines()
    assert max(map(len, lines)) < 100
    assert lines[:2] == [f"A: {folders[0]}", f"B: {folders[1]}"]
    assert "verdict turned; " in lines[2]
    assert re.fullmatch(r"What a clip gains moved by [\d.]+ of the margin in the .*", lines[3])
    assert "B is better in 1, worse in 0" in said.stdout
    start = lines.index("digits: what tuning on three seeds reaches")
    table = lines[start + 1 : start + 6]
    place = table[0].index("B less A")
    assert all(row[place - 1] == " " and row[place] in "+-–B" for row in table)
    written = pd.read_csv(file)
    assert list(written["arm"]) == [row.split("  ")[1] for row in table[1:]]
    assert "verdict_b" in written


def test_long_names_are_cut_and_lines_stay_short(tmp_path):
    from clipbench.cli.compare import _columns

    rows = [("sgd(" + "x" * 90 + ") + norm", "a" * 60)]
    lines = _columns(("arm", "B"), rows)
    assert max(map(len, lines)) < 100
    assert "…" in lines[1]
    assert ") + norm" in lines[1]


def test_the_command_refuses_in_one_sentence(folders, tmp_path):
    assert refused(clipbench("compare", folders[0], folders[0]), "are the same folder")
    assert refused(clipbench("compare", folders[0], tmp_path), "no results folder")
    wrong = clipbench("compare", *folders, "--csv", tmp_path / "no" / "x.csv")
    assert refused(wrong, "there is no folder")
