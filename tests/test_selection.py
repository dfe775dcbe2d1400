"""The protocol's choices, by brute force and by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import synthetic

from clipbench import selection
from clipbench.task import ARM

INF, NAN = math.inf, math.nan
PLACE = {"problem": "digits", "batch": 32, "device": "cpu", "dtype": "float32"}


def scores(rows, arm="sgd + norm", **others) -> pd.DataFrame:
    """A frame as ``score`` makes it, from (lr, threshold, score) and optional columns."""
    blank = {
        "relative": NAN,
        "percentile": NAN,
        "error": 0.0,
        "seeds": 3,
        "unstable": 0,
        "kept": 1.0,
        "clipped_fraction": 0.5,
        "extended": False,
    }
    made = []
    for lr, threshold, value, *more in rows:
        extra = more[0] if more else {}
        made.append(
            {
                **PLACE,
                "arm": arm,
                "lr": lr,
                "threshold": threshold,
                **blank,
                "score": value,
                "finite": value,
                **others,
                **extra,
            }
        )
    frame = pd.DataFrame(made)
    frame.loc[np.isinf(frame["score"]) & (frame["unstable"] == 0), "unstable"] = 3
    frame.loc[frame["unstable"] == frame["seeds"], "finite"] = NAN
    return frame


def cells(rows) -> pd.DataFrame:
    """Cells from (lr, seed, validation, outcome)."""
    made = []
    for lr, seed, value, outcome in rows:
        one = synthetic.cell("digits", "sgd", "none", lr, seed)
        status = (
            "failed" if outcome is None else "diverged" if outcome == "diverged" else "completed"
        )
        made.append(
            synthetic.rows(one, "learned", validation_value=value, outcome=outcome, status=status)[
                "cells"
            ][0]
        )
    return pd.DataFrame(made)


# ------------------------------------------------------------------------------------------- scores


def test_a_score_is_the_mean_over_seeds_with_its_standard_error():
    table = selection.score(
        cells([(0.1, 0, 1.0, "learned"), (0.1, 1, 2.0, "stalled"), (0.1, 2, 3.0, "learned")])
    )
    row = table.iloc[0]
    assert (row["score"], row["seeds"], row["unstable"]) == (2.0, 3, 0)
    assert row["error"] == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (None, "diverged"),
        (0.2, "collapsed"),
        (0.2, "diverged"),
        (None, None),
        (NAN, "learned"),
        (INF, "learned"),
    ],
)
def test_one_spoiled_seed_makes_the_score_infinite(value, outcome):
    """benchopt drops a diverged run and keeps the mean of the survivors; a setting must not win
    that way.
    """
    table = selection.score(
        cells(
            [
                (0.1, 0, 0.1, "learned"),
                (0.1, 1, value, outcome),
                (0.03, 0, 0.5, "learned"),
                (0.03, 1, 0.5, "learned"),
            ]
        )
    )
    hot = table[table["lr"] == 0.1].iloc[0]
    assert (hot["score"], hot["finite"], hot["unstable"], hot["seeds"]) == (
        INF,
        pytest.approx(0.1),
        1,
        2,
    )
    assert selection.choose(table)["lr"].tolist() == [0.03]


def test_report_seeds_have_no_part_in_the_choice():
    frame = cells([(0.1, 0, 1.0, "learned"), (0.1, 1000, 0.0, "learned")])
    assert selection.score(frame)["seeds"].tolist() == [1]


def test_stored_arrow_rows_score_like_plain_ones(tmp_path):
    store = synthetic.build(
        tmp_path / "s", optimizers=("sgd",), relative=(0.1, 1.0), report=0, with_throughput=False
    )
    stored = store.read("cells")
    plain = pd.DataFrame(stored.astype(object).where(stored.notna(), None))
    pd.testing.assert_frame_equal(
        selection.score(stored), selection.score(plain), check_dtype=False
    )


# ------------------------------------------------------------------------------------------ choices


def test_within_one_standard_error_the_setting_with_stable_neighbours_wins():
    """The best score stands next to the cliff; its equal stands in the plain."""
    rows = [(0.01, NAN, 0.9), (0.03, NAN, 0.5), (0.1, NAN, 0.495, {"error": 0.02}), (0.3, NAN, INF)]
    assert selection.choose(scores(rows, arm="sgd"))["lr"].tolist() == [0.03]


def test_outside_one_standard_error_neighbours_do_not_count():
    rows = [(0.01, NAN, 0.9), (0.03, NAN, 0.5), (0.1, NAN, 0.4, {"error": 0.02}), (0.3, NAN, INF)]
    assert selection.choose(scores(rows, arm="sgd"))["lr"].tolist() == [0.1]


def test_neighbours_differ_in_one_step_on_one_axis():
    rows = [(lr, threshold, 1.0) for lr in (0.1, 0.3, 1.0) for threshold in (0.1, 1.0, 10.0)]
    frame = scores(rows).to_dict("records")
    middle = next(row for row in frame if (row["lr"], row["threshold"]) == (0.3, 1.0))
    near = [
        (row["lr"], row["threshold"]) for row in frame if selection._adjacent(middle, row, frame)
    ]
    assert sorted(near) == [(0.1, 1.0), (0.3, 0.1), (0.3, 10.0), (1.0, 1.0)]


def test_where_no_setting_is_stable_the_one_with_the_fewest_spoiled_seeds_is_chosen():
    rows = [
        (0.1, NAN, INF, {"unstable": 2, "finite": 0.1}),
        (0.3, NAN, INF, {"unstable": 1, "finite": 5.0}),
        (1.0, NAN, INF, {"unstable": 3}),
    ]
    chosen = selection.choose(scores(rows, arm="sgd"))
    assert chosen["lr"].tolist() == [0.3]


def test_the_choice_does_not_depend_on_the_order_of_the_rows():
    rows = [
        (lr, threshold, 1.0 + (lr - 0.3) ** 2, {"error": 0.3})
        for lr in (0.1, 0.3, 1.0)
        for threshold in (0.1, 1.0)
    ]
    picks = set()
    for order in itertools.islice(itertools.permutations(rows), 0, 720, 37):
        row = selection.choose(scores(order)).iloc[0]
        picks.add((row["lr"], row["threshold"]))
    assert len(picks) == 1


# -------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize(
    ("lr", "wanted"),
    [(0.01, ["lr low"]), (0.1, []), (1.0, ["lr high"])],
)
def test_a_choice_at_the_end_of_an_axis_is_named(lr, wanted):
    rows = scores([(value, NAN, 1.0) for value in (0.01, 0.1, 1.0)], arm="sgd").to_dict("records")
    assert selection.edges(next(row for row in rows if row["lr"] == lr), rows) == wanted


def test_an_axis_of_one_value_has_no_ends():
    rows = scores([(0.1, 1.0, 1.0)]).to_dict("records")
    assert selection.edges(rows[0], rows) == []


def test_a_threshold_too_large_to_fire_has_nothing_beyond_it():
    rows = scores([(0.1, 1.0, 2.0), (0.1, 10.0, 1.0, {"clipped_fraction": 0.005})]).to_dict(
        "records"
    )
    assert selection.edges(rows[1], rows) == []
    rows[1]["clipped_fraction"] = 0.02
    assert selection.edges(rows[1], rows) == ["threshold high"]


@pytest.mark.parametrize(
    ("axis", "best", "new"),
    [
        ((0.1, 0.3, 1.0, 3.0), 3.0, {10.0, 30.0}),
        ((0.01, 0.03, 0.1), 0.01, {0.003, 0.001}),
        ((0.3, 1.0, 3.0), 0.3, {0.1, 0.03}),
    ],
)
def test_a_choice_at_an_edge_extends_its_axis_by_two_half_decades(axis, best, new):
    frame = scores([(lr, NAN, 0.0 if lr == best else 1.0) for lr in axis], arm="sgd")
    assert set(selection.extend(frame)["lr"]) == new


def test_a_threshold_of_zero_has_nothing_below_it():
    frame = scores([(0.1, 0.0, 0.0), (0.1, 10.0, 1.0)])
    assert selection.choose(frame).iloc[0]["edge"] == "threshold low"
    assert selection.extend(frame).empty


def test_an_extension_fills_the_whole_new_border_of_the_grid_once():
    grid = [
        (
            lr,
            NAN,
            0.0 if (lr, multiple) == (3.0, 0.1) else 1.0,
            {"relative": multiple, "threshold": multiple / 2},
        )
        for lr in (1.0, 3.0)
        for multiple in (0.1, 1.0)
    ]
    new = selection.extend(scores(grid))
    points = {(row.lr, row.relative) for row in new.itertuples()}
    lrs, multiples = (1.0, 3.0, 10.0, 30.0), (0.1, 1.0, 0.03, 0.01)
    assert points == set(itertools.product(lrs, multiples)) - set(
        itertools.product((1.0, 3.0), (0.1, 1.0))
    )
    assert len(new) == len(points)
    assert new["threshold"].isna().all()


def test_an_extended_axis_is_not_extended_again():
    rows = [(0.1, NAN, 2.0), (0.3, NAN, 1.0), (1.0, NAN, 1.5), (3.0, NAN, 0.1, {"extended": True})]
    assert selection.extend(scores(rows, arm="sgd")).empty


def test_a_choice_inside_the_grid_extends_nothing_and_keeps_the_columns():
    new = selection.extend(scores([(0.1, NAN, 2.0), (0.3, NAN, 1.0), (1.0, NAN, 1.5)], arm="sgd"))
    assert new.empty
    assert list(new.columns) == [*ARM, *selection.POINT]


@pytest.mark.parametrize(
    ("value", "snapped"),
    [
        (9.4868, 10.0),
        (0.3162, 0.3),
        (0.0949, 0.1),
        (31.62, 30.0),
        (3.0, 3.0),
        (0.00095, 0.001),
        (1e-5, 1e-5),
        (0.5, 0.5),
        (2.2361, 2.2),
    ],
)
def test_half_decades_are_written_as_people_write_them(value, snapped):
    assert selection.snap(value) == snapped


# ----------------------------------------------------------------------------------------- readings


def test_every_report_seed_runs_the_choice():
    frame = scores([(lr, NAN, abs(math.log10(lr / 0.1))) for lr in (0.01, 0.1, 1.0)], arm="sgd")
    table = selection.readings(selection.choose(frame), {"digits": 10}, None)
    assert set(table["reading"]) == {"all"}
    assert set(table["lr"]) == {0.1}
    assert table["seed"].tolist() == list(range(1000, 1010))


def test_more_report_seeds_keep_what_was_drawn():
    frame = pd.concat(
        [
            scores([(0.1, NAN, 1.0)], arm="sgd"),
            scores([(0.1, float(c), c) for c in range(1, 9)], arm="sgd + norm"),
        ]
    )
    few, many = (
        selection.readings(selection.choose(frame), {"digits": n}, {"lr": 0.01, "threshold": 1.0})
        for n in (5, 12)
    )
    keys = ["arm", "reading", "seed"]
    kept = many[many["seed"] < 1005].sort_values(keys).reset_index(drop=True)
    pd.testing.assert_frame_equal(few.sort_values(keys).reset_index(drop=True), kept)


def test_untuned_is_one_setting_for_the_named_arms_with_a_threshold_only_where_there_is_a_clip():
    frame = pd.concat(
        [
            scores([(0.1, NAN, 1.0)], arm="sgd"),
            scores([(0.1, 2.0, 1.0)], arm="sgd + norm"),
            scores([(0.1, NAN, 1.0)], arm="adam"),
        ]
    )
    table = selection.readings(
        selection.choose(frame),
        {"digits": 2},
        {"lr": 0.01, "threshold": 1.0},
        ["sgd", "sgd + norm"],
    )
    untuned = table[table["reading"] == "untuned"].set_index("arm")
    assert set(untuned.index) == {"sgd", "sgd + norm"}
    assert set(untuned["lr"]) == {0.01}
    assert untuned.loc["sgd", "threshold"].isna().all()
    assert set(untuned.loc["sgd + norm", "threshold"]) == {1.0}


def of(word, *values, arm="sgd + norm", lrs=(0.1, 0.3), **others):
    """Settings of an arm whose thresholds are given by a word of the study."""
    pairs = [(lr, value) for lr in lrs for value in values]
    frame = scores([(lr, 0.01 * value, 1.0) for lr, value in pairs], arm=arm, **others)
    return frame if word is None else frame.assign(**{word: [value for _, value in pairs]})


SAME = {
    "the percentile among multiples": (
        [of("relative", 0.1, 1.0), of("percentile", 50.0, 90.0)],
        [("sgd", None), ("sgd + norm", 90.0)],
    ),
    "the only number": ([of(None, 5.0)], [("sgd", None), ("sgd + norm", None)]),
    "the only multiple": ([of("relative", 0.3)], [("sgd", None), ("sgd + norm", None)]),
    "several, and none fixed": ([of("relative", 0.1, 1.0)], []),
    "another percentile, alone": (
        [of("percentile", 50.0)],
        [("sgd", None), ("sgd + norm", 50.0)],
    ),
}


@pytest.mark.parametrize(("clipped", "wanted"), SAME.values(), ids=SAME)
def test_at_the_same_number_of_tries_a_clip_has_one_threshold_fixed_in_advance(clipped, wanted):
    """And all arms their own learning rates: what was tried beyond an edge has no part."""
    plain_sgd = scores([(lr, NAN, 1.0) for lr in (0.1, 0.3)], arm="sgd")
    beyond = scores([(1.0, NAN, 1.0)], arm="sgd", extended=True)
    elsewhere = scores([(0.1, NAN, 1.0)], arm="sgd", problem="wdbc")  # a task without a clip
    found = selection.same_tries(pd.concat([plain_sgd, beyond, elsewhere, *clipped]), 90.0)
    assert [
        (arm, None if math.isnan(percentile) else percentile)
        for arm, percentile in zip(found["arm"], found["percentile"], strict=True)
    ] == [one for one in wanted for _ in range(2)]
    assert set(found["problem"]) <= {"digits"}
    assert found["lr"].tolist() == [0.1, 0.3] * (len(found) // 2)


def test_a_cell_without_a_resolved_threshold_is_of_the_same_setting():
    frame = of("percentile", 90.0)
    failed = frame.assign(threshold=NAN)
    assert len(selection.same_tries(pd.concat([failed, frame]), 90.0)) == 2


def test_an_empty_store_has_no_choices():
    empty = selection.score(cells([(0.1, 1000, 1.0, "learned")]))
    assert selection.choose(empty).empty
    assert selection.extend(empty).empty
    assert selection.readings(selection.choose(empty), {}, None).empty


# -------------------------------------------------------------------------------------- a lower lr


def test_a_clip_that_fires_in_most_steps_stands_for_a_lower_lr_if_steps_are_as_long_as_gradients():
    def at(arm, fired, kept):
        return scores([(0.3, 1.0, 0.5)], arm=arm, clipped_fraction=fired, kept=kept)

    rows = pd.concat(
        [
            at("sgd + norm", 0.9, 0.123),
            at("sgd + value", 0.5, 0.5),  # it fires in half of the steps, which is not most
            at("adam + norm", 1.0, 0.1),
            at("momentum + norm", 1.0, NAN),  # of an older row nothing is known
        ]
    )
    unclipped = {
        (*PLACE.values(), arm): (arm.partition(" + ")[0], arm.partition(" + ")[0])
        for arm in rows["arm"]
    }
    [row] = selection.lowered(selection.choose(rows), unclipped).to_dict("records")
    assert (row["arm"], row["partner"], row["lr"]) == ("sgd + norm", "sgd", 0.037)
    assert selection.lowered(selection.choose(rows), {}).empty


def test_what_a_threshold_is_tuned_among_has_its_optimizers_own_rates_beside_it():
    """Whether or not one of the thresholds was fixed in advance."""
    clipped = scores([(0.1, 1.0, 0.5), (0.1, 2.0, 0.5), (0.3, 1.0, 0.5)], arm="sgd + norm")
    rows = pd.concat([clipped, scores([(0.1, NAN, 1.0), (0.3, NAN, 1.0)], arm="sgd"),
                      scores([(0.1, NAN, 1.0)], arm="adam")])  # fmt: skip
    place = tuple(PLACE.values())
    found = selection.several(rows, {(*place, "sgd + norm"): ("sgd", "sgd")})
    assert sorted(found["arm"]) == ["sgd", "sgd", "sgd + norm", "sgd + norm", "sgd + norm"]
