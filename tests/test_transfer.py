"""Thresholds carried from one condition to another: what they lose, by hand, by brute force and
by planted truths.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import synthetic

from clipbench.analysis import transfer
from clipbench.cell import Part
from clipbench.report import sections
from clipbench.report import transfer as page
from clipbench.report.evidence import read

ABSOLUTE, RELATIVE, LRS = (0.1, 0.3, 1.0), (0.3, 1.0, 3.0), (0.01, 0.1)
# (width, batch) → the pilot's median: a third of a decade apart
SIZES = {(4, 16): 0.1, (4, 64): 0.3, (16, 16): 1.0}


def bowl(size, threshold, lr, basis):
    """A loss that is least where the threshold is the gradient's own size, and at lr .1."""
    return 1 + abs(math.log10(threshold / size)) + abs(math.log10(lr / 0.1))


def study(loss=bowl, seeds=range(3), conditions=SIZES, spoil=lambda **_: {}):
    """The selection cells of one arm, twice clipped, under every condition; ``spoil`` overrides
    columns of single cells.
    """
    rows = []
    for (width, batch), basis, lr, seed in itertools.product(
        conditions, transfer.BASES, LRS, seeds
    ):
        size = conditions[width, batch]
        for written in ABSOLUTE if basis == "absolute" else RELATIVE:
            threshold = written if basis == "absolute" else written * size
            given = {"threshold": written} if basis == "absolute" else {"relative": written}
            one = synthetic.cell("digits", "sgd", "norm", lr, seed, batch=batch, **given)
            one = replace(one, workload=Part("digits", 1, {"width": width}))
            columns = {
                "validation_value": loss(size, threshold, lr, basis) + 0.01 * seed,
                "threshold": threshold,
            }
            columns |= spoil(
                width=width, batch=batch, basis=basis, lr=lr, seed=seed, written=written
            )
            rows.append(synthetic.rows(one, "learned", **columns)["cells"][0])
    return pd.DataFrame(rows)


def only(frame, **values):
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return frame


@pytest.fixture(scope="module")
def rows():
    return transfer.carried(study())


# ---------------------------------------------------------------------------------------- the pairs


def test_every_ordered_pair_of_conditions_is_there_for_every_basis_and_seed(rows):
    assert len(rows) == 3 * 2 * len(transfer.BASES) * 3
    assert not rows.duplicated([*transfer.PAIR, "seed"]).any()


def test_a_multiple_carries_where_what_matters_is_the_gradients_size(rows):
    """The planted truth: the best threshold is the pilot's median, so that the multiple is 1
    everywhere and the number is not.
    """
    relative, absolute = (only(rows, basis=basis) for basis in ("relative", "absolute"))
    assert (relative["carried"] == 1.0).all()
    assert (relative["loss"] == relative["own_loss"]).all()
    expected = [
        abs(
            math.log10(
                SIZES[_condition(row, "source", "source_batch")]
                / SIZES[_condition(row, "problem", "batch")]
            )
        )
        for row in absolute.to_dict("records")
    ]
    np.testing.assert_allclose(absolute["loss"] - absolute["own_loss"], expected, rtol=1e-9)


def _condition(row, problem, batch):
    return int(row[problem].partition("=")[2].rstrip(")")), row[batch]


def test_a_number_carries_where_the_gradients_size_does_not_matter():
    """The other planted truth: the best threshold is .3 under every condition."""
    tasks = transfer.carried(study(lambda _, *rest: bowl(0.3, *rest)))
    gaps = tasks.assign(gap=tasks["loss"] - tasks["own_loss"]).groupby("basis")["gap"].max()
    assert gaps["absolute"] == 0
    assert gaps["relative"] > 0.4


def test_a_carried_threshold_has_the_lr_that_suits_it_where_it_is_used():
    """Each threshold best at an lr of its own: carried to the other task it is not run at the lr
    of its old place.
    """

    def loss(size, threshold, lr, basis):
        best = 0.01 if threshold / size < 0.5 else 0.1
        return 1 + abs(math.log10(threshold / size)) + 5 * abs(math.log10(lr / best))

    tasks = only(
        transfer.carried(study(loss)),
        basis="absolute",
        source="digits(width=4)",
        source_batch=16,
    )
    strict = only(tasks, problem="digits(width=16)", seed=0).iloc[0]
    assert (strict["carried"], strict["own"]) == (0.1, 1.0)
    assert strict["loss"] == pytest.approx(2.0)  # a decade too strict, and at its own lr


# --------------------------------------------------------------- a seed judges no choice of its own


def test_a_seed_has_no_part_in_the_choices_it_judges():
    """One lucky run at a threshold that is bad on all other seeds: on its own seed it is not
    chosen, neither here nor there.
    """

    def spoil(basis, seed, written, **_):
        return {"validation_value": 0.0} if (basis, seed, written) == ("absolute", 2, 0.1) else {}

    tasks = only(
        transfer.carried(study(lambda _, *rest: bowl(1.0, *rest), spoil=spoil)),
        basis="absolute",
        seed=2,
    )
    assert (tasks["carried"] == 1.0).all()
    assert (tasks["own"] == 1.0).all()
    assert tasks["own_loss"].tolist() == pytest.approx([1.02] * 6)


def test_without_that_noise_alone_would_make_every_carried_threshold_look_worse():
    """Thresholds that are all the same but for noise: what a carried one loses is zero on
    average, as often a gain.
    """
    noise = np.random.default_rng(5)
    found = transfer.carried(study(lambda *_: noise.normal(), seeds=range(12)))
    gaps = (found["loss"] - found["own_loss"]).to_numpy()
    moved = gaps[gaps != 0]
    assert len(moved) > 60
    assert abs(moved.mean()) < 4 * moved.std() / math.sqrt(len(moved)) + 0.1
    assert 0.35 < (moved > 0).mean() < 0.65


# ------------------------------------------------------------------------------ unstable and failed


def test_an_unstable_run_is_infinitely_bad_and_two_of_them_are_a_tie():
    """On seed 2 alone, where the size of width 16 is carried to width 4."""

    def spoil(width, batch, basis, seed, written, **_):
        hit = (width, batch, basis, seed, written) == (4, 16, "absolute", 2, 1.0)
        return {"outcome": "collapsed"} if hit else {}

    found = transfer.pairs(transfer.carried(study(spoil=spoil)))
    row = only(
        found, basis="absolute", source="digits(width=16)", problem="digits(width=4)", batch=16
    ).iloc[0]
    assert (row["unstable"], row["own_unstable"], row["statistic"]) == (1, 0, "median")
    assert math.isfinite(row["estimate"])
    every = transfer.carried(study(spoil=lambda **_: {"outcome": "diverged"}))
    assert np.isinf(every["loss"]).all()
    assert (transfer.pairs(every)["estimate"] == 0).all()


def test_nothing_is_concluded_where_a_cell_failed():
    """The failed cell's pairs are incomplete, without an interval; all others are as they were."""

    def spoil(width, basis, seed, written, **_):
        hit = (width, basis, seed, written) == (16, "relative", 0, 1.0)
        return (
            {"status": "failed", "outcome": None, "validation_value": None, "threshold": None}
            if hit
            else {}
        )

    before, after = (
        transfer.pairs(transfer.carried(study(spoil=one))) for one in (lambda **_: {}, spoil)
    )
    hit = (after["problem"] == "digits(width=16)") & (after["basis"] == "relative")
    assert (after.loc[hit, "statistic"] == "incomplete").all()
    assert after.loc[hit, "low"].isna().all()
    untouched = (after["source"] != "digits(width=16)") & ~hit
    pd.testing.assert_frame_equal(after[untouched], before[untouched])


# --------------------------------------------------------------------------------- what is left out


def test_extended_and_report_cells_and_unclipped_arms_have_no_part():
    frame = study()
    others = frame.assign(validation_value=0.0)
    more = [
        others.assign(extended=True, threshold=9.0),
        others.assign(role="report"),
        others.assign(clip="none"),
    ]
    pd.testing.assert_frame_equal(
        transfer.carried(pd.concat([frame, *more], ignore_index=True)), transfer.carried(frame)
    )


@pytest.mark.parametrize("basis", transfer.BASES)
def test_an_arm_with_thresholds_of_one_kind_has_nothing_to_compare(basis):
    """So that studies which do not ask this question have no such rows."""
    frame = study()
    relative = frame["relative"].notna()
    found = transfer.carried(frame[relative if basis == "relative" else ~relative])
    assert found.empty
    assert transfer.pairs(found).empty
    assert transfer.bases(found).empty


def test_a_choice_that_the_other_condition_did_not_try_is_left_out():
    frame = study()
    gone = (
        (frame["problem"] == "digits(width=4)")
        & (frame["batch"] == 16)
        & (frame["threshold"] == 1.0)
        & frame["relative"].isna()
    )
    tasks = only(transfer.carried(frame[~gone]), basis="absolute", source="digits(width=16)")
    assert set(tasks["batch"]) == {64}


def test_conditions_of_other_devices_and_workloads_are_not_paired():
    frame = study(conditions={(4, 16): 0.1})
    elsewhere = [
        frame.assign(device="cuda"),
        frame.assign(workload="wdbc", problem="wdbc"),
        frame.assign(dtype="float64"),
    ]
    assert only(transfer.carried(pd.concat([frame, *elsewhere], ignore_index=True))).empty


# ---------------------------------------------------------------------------------------- summaries


def test_a_pairs_row_counts_the_seeds_and_gives_their_mean_with_its_interval():
    """By hand: seeds 0, 1, 2 lose 1, 2 and 3."""
    rows = transfer.carried(study())
    one = only(
        rows,
        basis="absolute",
        source="digits(width=4)",
        source_batch=16,
        problem="digits(width=16)",
    ).copy()
    one["own_loss"] = one["loss"] - one["seed"] - 1
    found = transfer.pairs(one).iloc[0]
    assert (found["n"], found["carried"], found["own"], found["agreed"], found["statistic"]) == (
        3,
        0.1,
        1.0,
        0.0,
        "mean",
    )
    half = 4.302652729911275 / math.sqrt(3)  # t of two degrees of freedom, deviation 1
    assert [found["estimate"], found["low"], found["high"]] == pytest.approx(
        [2, 2 - half, 2 + half]
    )


def test_absolute_against_relative_is_paired_by_seed_and_positive_where_the_multiple_carries_better(
    rows,
):
    """Where the gradient's size decides: every pair loses by the number, in the middle half a
    decade; none by the multiple.
    """
    noisy = rows.assign(loss=rows["loss"] + 0.001 * rows["seed"] * (rows["basis"] == "absolute"))
    found = transfer.bases(noisy)
    row = found.iloc[0]
    assert (row["n"], row["pairs"], row["carries"], row["relative"]) == (3, 6, 18, 0.0)
    assert row["absolute"] == pytest.approx(0.5, abs=0.03)
    assert 0 < row["low"] < row["estimate"] < row["high"]
    assert (row["unstable"], row["relative_unstable"]) == (0, 0)


def test_pairs_that_one_basis_lacks_do_not_count_for_the_other(rows):
    """Else the mean of other pairs would stand against it."""
    lost = only(rows, basis="relative", source="digits(width=16)").index
    assert transfer.bases(rows.drop(lost))["pairs"].item() == 4


# -------------------------------------------------------------------------------------- the section


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """Of a study with one arm under two batch sizes, clipped by multiples only."""
    folder = tmp_path_factory.mktemp("results") / "two"
    batches = ({"batch": 16}, {"batch": 64})
    made = {
        "clips": ("none", "norm"),
        "relative": (0.3, 1.0),
        "optimizers": ("sgd",),
        "variants": batches,
    }
    return read(synthetic.build(folder, **made, report=0, with_throughput=False))


def asked(evidence, frame):
    """The same report over other cells."""
    return page.section(replace(evidence, cells=frame, names={}))


def test_a_study_that_does_not_ask_has_no_section(evidence):
    assert page.section(evidence).parts == []
    assert "transfer" not in [section.anchor for section in sections.told(evidence)]


def test_the_section_sets_the_number_against_the_multiple(evidence):
    _, both, pairs = asked(evidence, study()).parts
    [row] = both.rows
    assert row[:3] == ["digits", "sgd + norm", "6 pairs × 3"]
    lost = dict(zip(both.head, row, strict=True))
    assert float(lost["lost as a number"]) > 0.4
    assert float(lost["lost as a multiple"]) == 0
    assert len(pairs.rows) == len(pairs.data) == 3 * 2 * 2
    told = dict(
        zip(pairs.head, next(row for row in pairs.rows if row[1] == "multiple"), strict=True)
    )
    assert (told["carried"], told["chosen there"], told["the same"]) == ("1×", "1×", "100 %")


def test_what_is_unstable_or_unknown_is_said_and_never_a_number(evidence):
    def spoil(width, batch, basis, seed, written, **_):
        if (width, batch, basis, seed, written) == (4, 16, "absolute", 2, 1.0):
            return {"outcome": "collapsed"}
        if (width, basis, seed) == (16, "relative", 0):
            return {
                "status": "failed",
                "outcome": None,
                "validation_value": None,
                "threshold": None,
            }
        return {}

    pairs = asked(evidence, study(spoil=spoil)).parts[-1]
    told = [dict(zip(pairs.head, row, strict=True)) for row in pairs.rows]
    unstable = next(row for row in told if row["unstable"] == "1, 0 of 3")
    assert unstable["loses"].startswith("median +")
    failed = [
        row
        for row in told
        if row["threshold as a"] == "multiple" and row["used at"].startswith("digits(width=16)")
    ]
    assert {row["loses"] for row in failed} == {"incomplete"}
    assert not any("nan" in cell for row in pairs.rows for cell in row)
