"""Published claims, judged from a store's cells: what holds, what does not, and what is not
asked.
"""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from clipbench.analysis.cells import current
from clipbench.analysis.published import CLAIMS, published
from clipbench.figures.published import draw
from clipbench.store import Store

ROOT = Path(__file__).resolve().parents[1]
COMPONENTS = {"workloads": {"cliff": {"success": -4.0, "higher_is_better": False}}}


def row(  # noqa: PLR0913 - a column or a setting each
    clip,
    threshold,
    lr,
    metric,
    *,
    workload="cliff",
    steps=2000,
    settings=(),
    optimizer=(),
    beside=(),
    **others,
):
    """A selection cell of plain SGD, as the store has it, with the columns that claims are
    judged by.
    """
    own = {} if clip == "none" else {"max_value" if clip == "value" else "max_norm": threshold}
    document = {
        "workload": {"settings": dict(settings)},
        "optimizer": {"settings": dict(optimizer)},
        "steps": steps,
        "clip": {"settings": {**own, **dict(beside)}},
    }
    return {
        "role": "select",
        "optimizer": "sgd",
        "workload": workload,
        "problem": workload,
        "clip": clip,
        "threshold": threshold,
        "relative": math.nan,
        "percentile": math.nan,
        "lr": lr,
        "metric_value": metric,
        "outcome": "learned",
        "status": "completed",
        "settings": json.dumps(document),
        "stationary_at": math.nan,
        "peak_ratio": math.nan,
        "batch": 1,
        "dtype": "float64",
        "device": "cpu",
        **others,
    }


def judged(rows):
    return published(pd.DataFrame(rows), COMPONENTS)


def cliff(free, clipped):
    """Four hundred starts without and with the clip, so many in a hundred of which succeed."""
    return [
        row(clip, threshold, 0.1, -9.0 if number % 100 < good else -1.0)
        for clip, threshold, good in (("none", math.nan, free), ("norm", 1.0, clipped))
        for number in range(400)
    ]


@pytest.mark.parametrize(
    ("free", "clipped", "holds"), [(65, 99, True), (66, 99, False), (65, 98, False), (0, 100, True)]
)
def test_a_claim_holds_up_to_its_bounds_and_not_beyond(free, clipped, holds):
    found = judged(cliff(free, clipped))
    assert found["claim"].tolist() == ["A cliff, lr .1"] * 2
    assert found["seen"].tolist() == [free / 100, clipped / 100]
    assert found["holds"].tolist() == [holds] * 2


@pytest.mark.parametrize(("value", "holds"), [(40, True), (41, False)])
def test_a_claim_may_be_a_relation_between_its_sides(value, holds):
    rows = [
        row(clip, 0.1, 0.5, -9.0 if number % 100 < good else -1.0)
        for clip, good in (("value", value), ("norm", 100))
        for number in range(400)
    ]
    assert judged(rows)["holds"].tolist() == [holds] * 2


def test_a_run_that_diverged_is_no_success():
    rows = cliff(60, 99)
    spoiled = {"outcome": "diverged", "status": "diverged", "metric_value": None}
    assert judged(rows)["holds"].all()
    assert not judged(
        [*rows[:400], *({**one, **spoiled} if n < 4 else one for n, one in enumerate(rows[400:]))]
    )["holds"].any()


FAILED = {"outcome": None, "status": "failed", "metric_value": None}


@pytest.mark.parametrize("spoiled", [range(1), range(400), range(400, 401), range(800)], ids=str)
def test_a_run_that_failed_is_no_evidence_for_or_against_a_claim(spoiled):
    """Killed or out of memory on the unclipped side, it would make the clip look good."""
    found = judged(
        [{**one, **FAILED} if n in spoiled else one for n, one in enumerate(cliff(60, 100))]
    )
    assert not found["complete"].any()
    assert not found["holds"].any()
    assert found["n"].sum() == 800 - len(spoiled)
    draw(found, "footer")


def test_a_claim_is_not_judged_on_the_runs_that_happen_to_be_there():
    found = judged([one for n, one in enumerate(cliff(60, 100)) if n % 400 < 399])
    assert not found["complete"].any()
    assert not found["holds"].any()


def test_steps_are_those_of_the_best_rate_and_never_is_infinite():
    far = {"radius": 10.0, "noise": 0.0, "start": "even"}
    shared = {"workload": "cosh", "steps": 10_000, "settings": far}
    rows = [
        row("none", math.nan, lr, -9.0, stationary_at=at, **shared)
        for lr, at in ((0.1, math.nan), (1e-3, 8900.0), (1e-4, 9500.0))
    ]
    fast = row("norm", 1.0, 0.5, -9.0, stationary_at=59.0, **shared)
    assert judged([*rows, fast])["seen"].tolist() == [8900.0, 59.0]
    assert judged([*rows, fast])["holds"].all()
    assert judged([rows[0], fast])["seen"].tolist() == [math.inf, 59.0]
    assert not judged([rows[0], fast])["holds"].any()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 1999}, {"settings": {"width": 3}}, {"role": "report"},
        {"optimizer": {"weight_decay": 0.1}}, {"relative": 1.0},
        {"lr": 0.2}, {"threshold": 2.0}, {"beside": {"on": "update"}},
        {"beside": {"norm_type": "inf"}}, {"batch": 32},
        {"dtype": "float32"},
    ],
    ids=str,
)  # fmt: skip
def test_cells_of_other_settings_are_not_what_was_claimed(change):
    free, clipped = (
        cliff(60, 100)[:400],
        {"clip": "norm", "threshold": 1.0, "lr": 0.1, "metric": -9.0} | change,
    )
    assert judged([*free, row(**clipped)]).empty


def test_a_figure_says_what_does_not_hold():
    for free, words in ((60, "A cliff, lr .1"), (70, "A cliff, lr .1: DOES NOT HOLD")):
        [axes, *_] = draw(judged(cliff(free, 100)), "footer").axes
        assert axes.get_title(loc="left") == words
        assert [text.get_text() for text in axes.texts] == [f"{free / 100:g}", "1"]


def test_all_claims_hold_in_the_committed_results_and_studies_of_other_settings_are_asked_none():
    """Every row of it; and not, say, temporal order at 800 steps."""
    for name, expected in (("published", len(CLAIMS)), ("quick", 0)):
        store = Store(ROOT / "results" / name)
        cells, _ = current(store)
        found = published(cells, store.page("components"))
        assert found["claim"].nunique() == expected
        assert found["holds"].all()
