"""What is compared: tasks and thresholds are values, from a cell as from a row."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from clipbench.analysis.cells import arms
from clipbench.cell import Cell, Part
from clipbench.task import ARM, Task, Threshold, arm_of, axis_label, labels

CELL = Cell(
    Part("wdbc", 1, {"noise": 0.5}),
    Part("sgd", 1),
    Part("norm", 1, {"max_norm": 0.1}, "max_norm"),
    lr=0.1,
    seed=0,
    steps=8,
    batch=32,
)
ROW = {
    "problem": "wdbc(noise=0.5)",
    "batch": 32,
    "device": "cpu",
    "dtype": "float32",
    "arm": "sgd + norm",
    "lr": 0.1,
}


def test_a_cell_and_its_row_have_one_task_and_one_arm():
    assert Task.of(CELL) == Task.of(ROW) == ("wdbc(noise=0.5)", 32, "cpu", "float32")
    assert arm_of(CELL) == arm_of(ROW) == (*Task.of(CELL), "sgd + norm")
    assert [ROW[name] for name in ARM] == [*arm_of(ROW)]
    assert Task.of(CELL).label == "wdbc(noise=0.5), batch 32, cpu, float32"


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], "wdbc(noise=0.5)"),
        ([{"batch": 64}], "wdbc(noise=0.5), batch 32"),
        ([{"device": "cuda"}, {"dtype": "float64"}], "wdbc(noise=0.5), cpu, float32"),
    ],
)
def test_a_label_says_of_a_task_only_what_differs(others, expected):
    first = Task.of(CELL)
    tasks = [
        first,
        *(first._replace(**other) for other in others),
        first._replace(problem="digits"),
    ]
    found = labels(tasks)
    assert found[first] == expected
    assert len(set(found.values())) == len(set(tasks))


@pytest.mark.parametrize(
    ("threshold", "given", "word", "absent"),
    [
        (Threshold(0.12), 0.12, None, False),
        (Threshold(0.12, relative=0.3), 0.3, "relative", False),
        (Threshold(0.12, percentile=90.0), 90.0, "percentile", False),
        (Threshold(math.nan, percentile=0.0), 0.0, "percentile", False),
        (Threshold(), math.nan, None, True),
    ],
    ids=["number", "multiple", "percentile", "unresolved", "none"],
)
def test_a_threshold_is_a_number_a_multiple_a_percentile_or_none(threshold, given, word, absent):
    np.testing.assert_equal(threshold.given, given)
    assert (threshold.word, threshold.absent) == (word, absent)
    assert Threshold.of(threshold.columns).key == threshold.key


def test_equal_thresholds_share_a_key_though_a_nan_equals_nothing_and_none_comes_first():
    assert Threshold(0.1) != Threshold(0.1, float("nan"))
    assert Threshold(0.1).key == Threshold(0.1, float("nan")).key
    values = [
        Threshold(3.0),
        Threshold(),
        Threshold(math.inf),
        Threshold(0.0),
        Threshold(math.nan, 0.3),
    ]
    assert [one.given for one in sorted(values, key=lambda one: one.key)][2:] == [
        0.0,
        3.0,
        math.inf,
    ]


def test_an_axis_is_called_after_the_clips_own_setting():
    assert axis_label("max_norm", relative=True) == "max_norm (× median size of the gradient)"
    assert axis_label("max_value", relative=False) == "max_value"
    assert axis_label(None, relative=False) == "threshold"


def test_a_clip_that_a_study_has_only_with_settings_is_not_labelled_with_a_threshold():
    cell = replace(CELL, clip=Part("quantile", 1, {"percentile": 90.0, "window": 20}, "percentile"))
    row = {
        **dict(zip(ARM, arm_of(cell), strict=True)),
        "optimizer": "sgd",
        "clip": "quantile",
        "settings": cell.canonical,
    }
    [arm] = arms(
        pd.DataFrame([row]), {"clips": {cell.clip.label: {"threshold": "percentile"}}}
    ).to_dict("records")
    assert (arm["clip_label"], arm["setting"]) == ("quantile(window=20)", "percentile")
