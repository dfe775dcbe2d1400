"""Published claims, judged from a store's cells: what holds, what does not, and what is not
asked.
"""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from clipbench.analysis.cells import current
from clipbench.analysis.claims import CLAIMS, Setting
from clipbench.analysis.published import published
from clipbench.figures.published import draw
from clipbench.report.published import opening
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


def steps_on_cosh(radius, free, clipped):
    """A run at each of some rates, without and with the clip, by its steps; NaN for never."""
    far = {"radius": radius, "noise": 0.0, "start": "even"}
    return [
        row(
            clip,
            threshold,
            2.0**-place,
            -9.0,
            workload="cosh",
            steps=10_000,
            settings=far,
            stationary_at=at,
        )
        for clip, threshold, counts in (("none", math.nan, free), ("norm", 1.0, clipped))
        for place, at in enumerate(counts)
    ]


@pytest.mark.parametrize(
    ("radius", "free", "clipped", "seen", "holds"),
    [
        (10.0, (math.nan, 500.0, 900.0), (70.0, 50.0), (500.0, 50.0), True),
        (10.0, (math.nan, 500.0, 900.0), (70.0, 51.0), (500.0, 51.0), False),
        (10.0, (math.nan, 500.0), (math.nan, math.nan), (500.0, math.inf), False),
        (10.0, (math.nan, math.nan), (50.0, 70.0), (math.inf, 50.0), False),
        (10.0, (math.nan, math.nan), (math.nan, math.nan), (math.inf, math.inf), False),
        (2.0, (9.0, 4.0), (4.0, 18.0), (4.0, 4.0), True),
        (2.0, (9.0, 4.0), (3.0, 18.0), (4.0, 3.0), False),
    ],
)
def test_steps_are_those_of_the_best_rate_of_either_side_and_never_is_infinite(
    radius, free, clipped, seen, holds
):
    """Far out the clip takes at most a tenth of the steps, near by it is not faster."""
    found = judged(steps_on_cosh(radius, free, clipped))
    assert found["seen"].tolist() == list(seen)
    assert found["holds"].tolist() == [holds] * 2


@pytest.mark.parametrize(
    ("others", "worst", "median"), [(5.0, True, True), (3.9, True, False), (1.0, True, False)]
)
def test_heavy_tails_are_judged_by_the_worst_seed_and_the_median_is_a_claim_of_its_own(
    others, worst, median
):
    """By the same bounds: unclipped at least 4, and twice the clipped. One seed of ten has 6."""
    rows = [
        row(
            clip,
            threshold,
            1e-3,
            -1.0,
            workload="heavy-tails",
            steps=20_000,
            peak_ratio=peak,
        )
        for clip, threshold, peaks in (
            ("none", math.nan, [6.0] + [others] * 9),
            ("norm", 100.0, [1.9] * 10),
        )
        for peak in peaks
    ]
    found = judged(rows).drop_duplicates("claim").set_index("claim")
    assert found["holds"].to_dict() == {
        "Weibull tails, worst seed": worst,
        "Weibull tails, median seed": median,
    }
    assert found["seen"].tolist() == [6.0, others]
    assert found["setting"].tolist() == [Setting.OURS, Setting.CHECK]


@pytest.mark.parametrize(
    ("free", "clipped", "holds"),
    [
        (-16.0, math.log10(6.125), True),
        (-3.0, math.log10(6.125), False),
        (-16.0, math.log10(6.13), False),
        (-16.0, None, False),
    ],
)
def test_how_far_above_the_minimum_descent_ends_is_held_to_the_papers_number(free, clipped, holds):
    shared = {"workload": "clipping-bias", "steps": 100, "batch": 3}
    rows = [
        row("none", math.nan, 0.5, free, **shared),
        row("norm", 1.0, 0.5, clipped, beside={"on": "example"}, **shared),
    ]
    found = judged(rows)
    assert found["holds"].tolist() == [holds] * 2
    assert found["setting"].tolist() == [Setting.PAPER] * 2
    assert found["seen"].iloc[1] == pytest.approx(math.inf if clipped is None else 10**clipped)


def ends_along_signs(free, clipped):
    """Four hundred runs a side on f = x/4, half of them .01 above these ends, half below."""
    return [
        row(
            clip,
            threshold,
            0.0025,
            math.log10(end + (0.01 if seed % 2 else -0.01)),
            workload="sign-bias",
            steps=100,
        )
        for clip, threshold, end in (
            ("none", math.nan, free),
            ("value", 0.5, clipped),
            ("norm", 0.5, clipped),
        )
        for seed in range(400)
    ]


@pytest.mark.parametrize(
    ("free", "clipped", "holds"),
    [
        (0.25 - 1 / 64, 0.25 + 1 / 64, True),
        (0.25 - 1 / 64, 0.25, False),
        (0.25, 0.25 + 1 / 64, False),
        (0.25 - 1 / 64 + 0.0020, 0.25 + 1 / 64 + 0.0004, True),  # 2.96 standard errors, either
        (0.25 - 1 / 64 + 0.0021, 0.25 + 1 / 64, False),
        (0.25 - 1 / 64, 0.25 + 1 / 64 - 0.00042, False),
    ],
)
def test_the_mean_over_seeds_is_held_to_the_expectation_by_three_standard_errors(
    free, clipped, holds
):
    """Of the known variance, not of the runs': by hand, 6.77e-4 unclipped and 1.353e-4 clipped."""
    assert judged(ends_along_signs(free, clipped))["holds"].tolist() == [holds] * 3


def test_the_page_counts_the_papers_own_settings_apart_from_ours():
    words = opening(
        judged([*cliff(60, 99), *steps_on_cosh(2.0, (9.0, 4.0), (3.0, 18.0))]).drop_duplicates(
            "claim"
        )
    )
    assert words.startswith(
        "**1 of 2 claims** hold here: 1 of 1 of a paper's claims at a setting of ours and 0 of 1 "
        "of our own checks."
    )
    words = opening(judged(cliff(60, 99)[:-1]).drop_duplicates("claim"))
    assert words.startswith("**0 of 0 claims** hold here; 1 more lack runs, and are not judged. ")


def test_every_claim_is_of_some_setting_and_at_least_three_are_the_papers_own():
    settings = [claim.setting for claim in CLAIMS]
    assert set(settings) == set(Setting)
    assert settings.count(Setting.PAPER) >= 3
    assert len({claim.what for claim in CLAIMS}) == len(CLAIMS)


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


# By the median seed, heavy tails do not do what they do by the worst: it stays, as such.
DO_NOT_HOLD = {"Weibull tails, median seed", "Burr tails, median seed"}


def test_what_holds_in_the_committed_results_is_known_and_other_studies_are_asked_nothing():
    """Every row of it; and not, say, temporal order at 800 steps."""
    for name, expected in (("published", len(CLAIMS)), ("quick", 0)):
        store = Store(ROOT / "results" / name)
        cells, _ = current(store)
        found = published(cells, store.page("components"))
        assert found["claim"].nunique() == expected
        assert set(found.loc[~found["holds"].astype(bool), "claim"]) == (
            DO_NOT_HOLD if expected else set()
        )
