"""What the report says about the cells: nothing vanishes, nothing is made up."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pandas as pd
import pytest
import synthetic

from clipbench import selection
from clipbench.analysis import outcomes
from clipbench.analysis.cells import arms, current, plain
from clipbench.analysis.clips import claims, clip_pairs
from clipbench.analysis.cost import cost
from clipbench.analysis.curves import curves
from clipbench.analysis.events import event_counts, events
from clipbench.analysis.fired import fired
from clipbench.analysis.grid import grid
from clipbench.analysis.implementations import implementations, quickest
from clipbench.analysis.missing import mixtures, valueless
from clipbench.analysis.outcomes import COUNTS, compare, draws, results
from clipbench.analysis.stable import effective, notes, stable
from clipbench.cell import Cell

INF, NAN = math.inf, math.nan
build = functools.partial(
    synthetic.build, optimizers=("sgd",), relative=(1.0,), with_throughput=False
)


def learned(metric: float, **others):
    """Rows of every cell: learned, with this metric."""
    return lambda one: synthetic.rows(
        one,
        "learned",
        metric_value=metric,
        validation_value=one.lr,
        clipped_fraction=0.5 if one.clip.threshold else 0.0,
        **others,
    )


def read(store):
    cells, _ = current(store)
    components, protocol = store.page("components"), store.page("plan")["protocol"]
    drawn = draws(cells, protocol)
    return cells, components, protocol, drawn, results(drawn, components)


def one(frame: pd.DataFrame, arm: str, reading: str = "all") -> pd.Series:
    found = frame[(frame["arm"] == arm) & (frame["reading"] == reading)]
    assert len(found) == 1
    return found.iloc[0]


# ------------------------------------------------------------------ the mistakes of others, planted


def with_report_seed(kind: str | None, seed: int = 1003, arm: str = "sgd", problem_metric=0.9):
    """Every run learned, but for one report seed of one arm."""

    def change(cell: Cell):
        if cell.seed == seed and cell.arm == arm:
            return synthetic.failed(cell) if kind is None else synthetic.rows(cell, kind)
        return learned(problem_metric + 0.001 * (cell.seed % 10))(cell)

    return change


def test_a_diverged_seed_is_counted_and_makes_the_result_a_median_with_the_worst_outcome(tmp_path):
    """benchopt drops diverged runs: the mean of the other nine would be .9046."""
    *_, result = read(build(tmp_path / "s", change=with_report_seed("diverged")))
    row = one(result, "sgd")
    assert (row["n"], row["learned"], row["diverged"], row["statistic"]) == (10, 9, 1, "median")
    assert row["estimate"] == pytest.approx(
        np.median([-INF, 0.9, 0.901, 0.902, 0.904, 0.905, 0.906, 0.907, 0.908, 0.909])
    )
    assert row["low"] == 0.9


def test_three_diverged_seeds_of_ten_reach_the_interval(tmp_path):
    def change(cell: Cell):
        return (
            synthetic.rows(cell, "diverged")
            if cell.seed in (1001, 1004, 1007)
            else learned(0.9)(cell)
        )

    *_, result = read(build(tmp_path / "s", change=change))
    assert one(result, "sgd")["low"] == -INF
    assert one(result, "sgd")["diverged"] == 3


def test_for_a_lower_better_metric_the_worst_is_plus_infinity(tmp_path):
    def change(cell: Cell):
        return synthetic.rows(cell, "diverged") if cell.seed >= 1004 else learned(1e-3)(cell)

    *_, result = read(build(tmp_path / "s", problems=("cosh",), change=change))
    assert one(result, "sgd")["estimate"] == INF


def test_a_blow_up_with_a_finite_metric_is_still_a_divergence(tmp_path):
    def change(cell: Cell):
        if cell.seed == 1000:
            return synthetic.rows(
                cell, "diverged", metric_value=0.99, status="completed", reason="blow_up"
            )
        return learned(0.9)(cell)

    *_, drawn, result = read(build(tmp_path / "s", change=change))
    assert one(result, "sgd")["statistic"] == "median"
    assert drawn.loc[drawn["seed"] == 1000, "value"].isna().all()


def with_metric(value: float | None, kind: str = "collapsed", seed: int = 1000):
    """Every run learned with .5, but for one seed of plain SGD, which ended so with this metric."""

    def change(cell: Cell):
        mine = cell.seed == seed and cell.arm == "sgd"
        return (
            synthetic.rows(cell, kind, metric_value=value)
            if mine
            else learned(0.5 + 0.001 * (cell.seed % 10))(cell)
        )

    return change


@pytest.mark.parametrize("value", [NAN, None, -INF])
def test_a_metric_that_is_none_is_unknown_and_neither_a_number_nor_the_worst(tmp_path, value):
    """AlgoPerf's parser turns ``nan`` into 0, the best of losses; and a run that did not diverge
    must not count as one that did.
    """
    cells, components, _, drawn, result = read(
        build(tmp_path / "s", problems=("cosh",), change=with_metric(value))
    )
    row = one(result, "sgd")
    assert (row["statistic"], row["collapsed"], row["diverged"], row["no_value"]) == (
        "incomplete",
        1,
        0,
        1,
    )
    assert row["estimate"] == 0.505
    assert math.isnan(row["low"])
    assert set(one(result, "sgd + norm")[["statistic", "no_value"]]) == {"mean", 0}
    claimed = claims(drawn, arms(cells, components), components)
    assert set(claimed["note"]) == {"no value"}
    assert claimed["p"].isna().all()
    lacking = valueless(drawn, components)
    assert lacking[["arm", "seed", "ended"]].to_numpy().tolist() == [["sgd", 1000, "collapsed"]]


def test_a_metric_that_overflowed_to_the_worse_side_is_known(tmp_path):
    *_, result = read(build(tmp_path / "s", problems=("cosh",), change=with_metric(INF)))
    assert one(result, "sgd")[["statistic", "collapsed", "no_value"]].tolist() == ["median", 1, 0]


def test_an_all_or_nothing_run_without_a_metric_is_no_failure_to_succeed(tmp_path):
    *_, result = read(build(tmp_path / "s", problems=("temporal-order",), change=with_metric(None)))
    assert one(result, "sgd")[["statistic", "no_value"]].tolist() == ["incomplete", 1]
    assert math.isnan(one(result, "sgd")["low"])


def test_a_failed_seed_is_unknown_and_leaves_no_interval(tmp_path):
    *_, result = read(build(tmp_path / "s", change=with_report_seed(None)))
    row = one(result, "sgd")
    assert (row["failed"], row["diverged"], row["missing"], row["statistic"]) == (
        1,
        0,
        0,
        "incomplete",
    )
    assert math.isnan(row["low"])


def test_a_missing_seed_is_counted_as_missing(tmp_path):
    store = build(tmp_path / "s", change=learned(0.9))
    plan = store.page("plan")
    store.write_page(
        "plan",
        {
            **plan,
            "protocol": {**plan["protocol"], "seeds": {"digits": {"select": 3, "report": 12}}},
        },
    )
    *_, result = read(store)
    assert set(result["missing"]) == {2}
    assert (result[list(COUNTS)].sum(axis=1) == result["n"]).all()


def test_a_diverged_curve_ends_where_it_ended(tmp_path):
    """DeepOBS fills a diverged curve with its first loss."""
    store = build(tmp_path / "s", change=with_report_seed("diverged"))
    _, components, _, drawn, _ = read(store)
    lines = curves(store.read("curves"), drawn, components)
    lost = lines[(lines["seed"] == 1003) & (lines["arm"] == "sgd")]
    steps = int(drawn.loc[(drawn["seed"] == 1003) & (drawn["arm"] == "sgd"), "steps"].iloc[0])
    assert lost["step"].max() == steps - 1
    assert lost["gap"].iloc[-1] == INF
    assert set(lost["ended"]) == {"diverged"}


def test_curves_are_losses_above_the_optimum_in_at_most_150_points(tmp_path):
    store = build(tmp_path / "s", problems=("cosh",), change=learned(1e-3), report=2)
    _, components, _, drawn, _ = read(store)
    lines = curves(store.read("curves"), drawn, components, points=10)
    assert lines.groupby("cell").size().max() == 10
    assert lines["gap"].min() < 10.0
    assert curves(store.read("curves").iloc[:0], drawn, components).empty


# -------------------------------------------------------------------------------------- the results


def test_means_have_the_t_interval_of_their_seeds(tmp_path):
    *_, result = read(build(tmp_path / "s", change=with_report_seed("learned", seed=-1)))
    row = one(result, "sgd")
    assert row["statistic"] == "mean"
    assert row["estimate"] == pytest.approx(0.9045)
    assert row["high"] - row["estimate"] == pytest.approx(
        2.262157 * 0.00302765 / math.sqrt(10), rel=1e-4
    )


def test_all_or_nothing_workloads_are_success_rates_with_wilsons_interval(tmp_path):
    def change(cell: Cell):
        return learned(1.0 if cell.seed % 2 or cell.clip.threshold else 0.5)(cell)

    store = build(tmp_path / "s", problems=("temporal-order",), change=change)
    _, components, _, drawn, result = read(store)
    row = one(result, "sgd")
    assert (row["statistic"], row["successes"], row["estimate"]) == ("share", 5, 0.5)
    assert row["low"] == pytest.approx(0.2366, abs=1e-4)
    pairs = clip_pairs(arms(current(store)[0], components))
    gap = one(compare(drawn, pairs, components), "sgd + norm")
    assert gap["estimate"] == 0.5
    assert gap["p"] == pytest.approx(0.0625)


def test_a_diverged_run_of_an_all_or_nothing_workload_is_no_success(tmp_path):
    def change(cell: Cell):
        return synthetic.rows(cell, "diverged") if cell.seed == 1002 else learned(1.0)(cell)

    *_, result = read(build(tmp_path / "s", problems=("temporal-order",), change=change))
    assert one(result, "sgd")["successes"] == 9


def test_a_target_never_reached_stays_in_the_median_as_infinity(tmp_path):
    def change(cell: Cell):
        return learned(0.9, **({"steps_to_target": None} if cell.seed % 10 < 6 else {}))(cell)

    *_, result = read(build(tmp_path / "s", change=change))
    assert one(result, "sgd")["steps_to_target"] == INF
    assert one(result, "sgd")["reached"] == 4


def test_two_settings_that_resolve_to_the_same_number_are_not_mixed_up(tmp_path):
    """A multiple of .3 … of a median size of 1 / .3 is the untuned threshold, 1: a cell each."""
    size = synthetic.WORKLOADS["digits"]["size"]
    store = build(
        tmp_path / "s",
        relative=(1 / size,),
        untuned={"lr": 0.01, "threshold": 1.0},
        change=learned(0.9),
    )
    _, _, _, drawn, result = read(store)
    assert len(drawn) == 10 * (2 * 3)
    assert drawn["cell"].notna().all()
    assert set(result["n"]) == {10}


def test_a_failed_cell_without_a_resolved_threshold_is_still_found(tmp_path):
    def change(cell: Cell):
        if cell.seed == 1000 and cell.arm == "sgd + norm":
            parts = synthetic.failed(cell)
            parts["cells"][0]["threshold"] = None
            return parts
        return learned(0.9)(cell)

    *_, result = read(build(tmp_path / "s", change=change))
    assert one(result, "sgd + norm")["failed"] == 1
    assert one(result, "sgd + norm")["missing"] == 0


# -------------------------------------------------------------------------------------- differences


def shifted(gain: float):
    """A clip that gains so much, seed by seed, over noise that both share."""

    def change(cell: Cell):
        noise = np.random.default_rng(cell.seed).normal(0, 0.05) + np.random.default_rng(
            [cell.seed, len(cell.arm)]
        ).normal(0, 0.001)
        return learned(0.8 + noise + (gain if cell.clip.threshold else 0.0))(cell)

    return change


def test_pairing_takes_the_luck_of_the_seed_out(tmp_path):
    store = build(tmp_path / "s", change=shifted(0.01))
    cells, components, _, drawn, result = read(store)
    gap = one(compare(drawn, clip_pairs(arms(cells, components)), components), "sgd + norm")
    assert gap["low"] > 0.007
    assert gap["high"] < 0.013
    assert one(result, "sgd")["high"] - one(result, "sgd")["low"] > 0.03


def test_a_gain_is_positive_whatever_the_metrics_direction(tmp_path):
    store = build(tmp_path / "s", problems=("cosh",), change=shifted(-0.01))
    cells, components, _, drawn, _ = read(store)
    gaps = compare(drawn, clip_pairs(arms(cells, components)), components)
    assert one(gaps, "sgd + norm")["low"] > 0


def test_a_clip_that_never_fired_is_the_same_as_none(tmp_path):
    def change(cell: Cell):
        return (
            learned(0.9 if cell.clip.threshold else 0.8)(cell)
            if cell.seed < 1000
            else synthetic.rows(
                cell,
                "learned",
                metric_value=0.9 if cell.clip.threshold else 0.8,
                clipped_fraction=0.005 if cell.clip.threshold else 0.0,
            )
        )

    store = build(tmp_path / "s", change=change)
    cells, components, _, drawn, result = read(store)
    assert one(result, "sgd + norm")["never_fired"]
    assert not one(result, "sgd")["never_fired"]
    claimed = claims(drawn, arms(cells, components), components)
    assert set(claimed["note"]) == {"never fired"}
    assert claimed["low"].isna().all()
    assert (claimed["holm"] == 1.0).all()


@pytest.mark.parametrize(("steps", "never"), [(99, True), (101, False)])
def test_one_clipped_step_of_a_short_run_is_a_step(steps, never):
    """Under 1 % of 101 steps, and yet one a run: it may be the one that matters."""
    seeds = pd.DataFrame(
        {"threshold": [1.0] * 3, "clipped_fraction": [1 / 101] * 3, "steps": [steps] * 3}
    )
    assert outcomes._never_fired(seeds) is never


def test_claims_are_the_declared_family_holm_corrected(tmp_path):
    store = build(
        tmp_path / "s",
        problems=("digits", "cosh"),
        optimizers=("sgd", "adam"),
        clips=("none", "norm", "value", "ema"),
        change=shifted(0.01),
    )
    cells, components, _, drawn, _ = read(store)
    claimed = claims(drawn, arms(cells, components), components)
    assert len(claimed) == 2 * 2 * 2
    assert not claimed["arm"].str.contains("ema").any()
    assert claimed["holm"].min() == pytest.approx(claimed["p"].min() * 8)
    assert (claimed["holm"] >= claimed["p"]).all()


def test_a_difference_with_a_failed_seed_is_incomplete_and_not_testable(tmp_path):
    store = build(tmp_path / "s", change=with_report_seed(None))
    cells, components, _, drawn, _ = read(store)
    claimed = claims(drawn, arms(cells, components), components)
    assert set(claimed["note"]) == {"incomplete"}
    assert claimed["holm"].isna().all()


def test_a_difference_with_a_diverged_seed_is_a_median(tmp_path):
    store = build(tmp_path / "s", change=with_report_seed("diverged"))
    cells, components, _, drawn, _ = read(store)
    gap = one(compare(drawn, clip_pairs(arms(cells, components)), components), "sgd + norm")
    assert gap["statistic"] == "median"
    assert gap["high"] >= 0


def test_methods_come_in_the_order_people_name_them_though_json_sorts_them():
    methods = selection.methods(dict(sorted(synthetic.METHODS.items())))
    assert list(methods) == ["plain SGD", "momentum", "RMSprop", "value clip", "norm clip"]


# ----------------------------------------------------------------------------------- the whole grid


def at(table: dict[tuple[float, float | None], str]):
    """Outcomes by lr and multiple; learned elsewhere."""
    return lambda cell: synthetic.rows(
        cell, table.get((cell.lr, cell.relative), "learned") if cell.seed == 1 else "learned"
    )


def test_a_lr_is_stable_where_every_seed_learned_and_a_range_has_no_holes(tmp_path):
    bad = {
        (0.1, None): "stalled",
        (3.0, None): "diverged",
        (3.0, 0.1): "diverged",
        (0.01, 0.1): "stalled",
        (1.0, 1.0): "collapsed",
        (3.0, 1.0): "collapsed",
    }
    cells, _ = current(
        build(tmp_path / "s", clips=("none", "norm"), relative=(0.1, 1.0), report=0, change=at(bad))
    )
    ranges = stable(cells).set_index(["arm", "basis"])
    unclipped = ranges.loc[("sgd", "no clip")]
    assert (unclipped["low"], unclipped["high"], unclipped["above"], unclipped["below"]) == (
        0.3,
        1.0,
        False,
        False,
    )
    assert unclipped["lrs"] == (0.01, 0.03, 0.3, 1.0)
    best = ranges.loc[("sgd + norm", "best threshold")]
    assert (best["low"], best["high"], best["below"], best["above"]) == (0.01, 1.0, True, False)
    fixed = ranges.loc[("sgd + norm", "one threshold")]
    assert (fixed["relative"], fixed["low"], fixed["high"]) == (0.1, 0.03, 1.0)


def test_where_no_lr_is_stable_there_is_no_range(tmp_path):
    cells, _ = current(
        build(tmp_path / "s", report=0, change=lambda one: synthetic.rows(one, "collapsed"))
    )
    ranges = stable(cells)
    assert ranges["low"].isna().all()
    assert not ranges["above"].any()


def test_the_grid_counts_every_seed_and_averages_only_those_with_a_value(tmp_path):
    def change(cell: Cell):
        return (
            synthetic.rows(cell, "diverged")
            if cell.seed == 0
            else synthetic.failed(cell)
            if cell.seed == 1
            else learned(0.7)(cell)
        )

    cells, _ = current(build(tmp_path / "s", report=0, change=change))
    table = grid(cells, synthetic.components(("digits",)))
    assert set(table["statistic"]) == {"mean"}
    assert (
        table[["learned", "stalled", "collapsed", "diverged", "failed"]].sum(axis=1)
        == table["seeds"]
    ).all()
    assert set(table["valued"]) == {1}
    assert table["value"].tolist() == pytest.approx([0.7] * len(table))


def test_the_grid_of_an_all_or_nothing_workload_holds_shares_and_no_means(tmp_path):
    def change(cell: Cell):
        kinds = {
            0.01: lambda: learned(1.0 if cell.seed == 0 else 0.5)(cell),
            0.03: lambda: (
                synthetic.rows(cell, "diverged") if cell.seed == 0 else learned(1.0)(cell)
            ),
            0.1: lambda: synthetic.failed(cell) if cell.seed == 0 else learned(1.0)(cell),
            0.3: lambda: learned(NAN if cell.seed == 0 else 0.5)(cell),
        }
        return kinds.get(cell.lr, lambda: learned(1.0)(cell))()

    store = build(
        tmp_path / "s", problems=("temporal-order",), clips=("none",), report=0, change=change
    )
    table = grid(current(store)[0], store.page("components")).set_index("lr")
    assert set(table["statistic"]) == {"share"}
    assert table["value"].tolist() == pytest.approx([1 / 3, 2 / 3, 1.0, 0.0, 1.0, 1.0])
    assert table["valued"].tolist() == [3, 3, 2, 2, 3, 3]
    assert table["no_value"].tolist() == [0, 0, 0, 1, 0, 0]


def test_rmsprops_note_has_the_arms_own_alpha(tmp_path):
    cells, components, *_ = read(build(tmp_path / "s", optimizers=("rmsprop",), report=0))
    assert "α = 0.99 its first step is 1/√(1 − α) = 10 times" in notes(arms(cells, components))[0]
    cells["settings"] = cells["settings"].astype(object).map(with_alpha)
    (note,) = notes(arms(cells, components))
    assert "α = 0.9 its first step is 1/√(1 − α) = 3.16 times lr" in note


def with_alpha(settings: str) -> str:
    """The same settings with RMSprop's α at .9."""
    document = json.loads(settings)
    return json.dumps(
        {**document, "optimizer": {**document["optimizer"], "settings": {"alpha": 0.9}}}
    )


def test_momentum_is_given_as_lr_over_one_minus_mu_too(tmp_path):
    cells, components, *_ = read(
        build(tmp_path / "s", optimizers=("sgd", "momentum", "rmsprop"), report=1)
    )
    compared = arms(cells, components)
    steady = effective(stable(cells), compared)
    assert set(steady["arm"]) == {"momentum", "momentum + norm", "momentum + value"}
    assert steady["factor"].tolist() == pytest.approx([10.0] * 3)
    assert len(notes(compared)) == 2


def test_partners_are_found_from_settings_and_not_from_names(tmp_path):
    cells, components, *_ = read(build(tmp_path / "s", optimizers=("sgd", "adam"), report=1))
    cells["arm"] = cells["arm"].astype(object).str.replace("adam", "a + b")
    compared = arms(cells, components).set_index("arm")
    assert compared.loc["a + b + norm", "partner"] == "a + b"
    assert pd.isna(compared.loc["a + b", "partner"])


def test_share_of_steps_clipped_is_by_threshold_over_all_learning_rates(tmp_path):
    cells, _ = current(build(tmp_path / "s", relative=(0.1, 1.0, 3.0), report=0))
    shares = fired(cells)
    norm = shares[shares["arm"] == "sgd + norm"].sort_values("place")
    assert norm["place"].tolist() == [0.1, 1.0, 3.0]
    assert norm["median"].is_monotonic_decreasing
    assert (norm["cells"] == 18).all()


# ------------------------------------------------------------------------ cost, events, bookkeeping


def timed(rows) -> pd.DataFrame:
    return cost(pd.DataFrame(rows))


def test_a_clip_costs_the_median_ratio_to_the_block_beside_it():
    rows = synthetic.timing("digits", "sgd", {"none": 1.0, "norm": 1.1})
    for row in rows:  # load that both sides of a block share
        row["seconds"] = (1.1 if row["clip"] == "norm" else 1.0) * (1 + row["block"])
    table = timed(rows).set_index("clip")
    assert table.loc["norm", ["ratio", "low", "high"]].tolist() == pytest.approx([1.1] * 3)
    assert math.isnan(table.loc["none", "ratio"])
    assert table["blocks"].tolist() == [19, 19]
    assert table["invalid"].tolist() == [1, 1]


def test_a_second_timing_run_whose_blocks_are_numbered_on_pairs_with_itself():
    first = synthetic.timing("digits", "sgd", {"none": 1.0, "norm": 1.0}, seconds=1.0)
    second = synthetic.timing(
        "digits", "sgd", {"none": 1.0, "norm": 1.0}, seconds=100.0, created="2026-02-01T00:00:00Z"
    )
    table = timed([*({**row, "block": 20 + row["block"]} for row in second), *first]).set_index(
        "clip"
    )
    assert table.loc["norm", "ratio"] == 1.0
    assert table.loc["norm", "blocks"] == 38


def test_the_timings_of_two_machines_are_never_pooled():
    clips = {"none": 1.0, "norm": 1.0}
    fast = synthetic.timing("digits", "sgd", clips, seconds=1.0)
    slow = synthetic.timing("digits", "sgd", clips, seconds=100.0, environment="e2")
    table = timed([*fast, *slow]).set_index(["environment", "clip"])
    assert len(table) == 4
    assert table.loc[("e1", "norm"), "step_50"] == pytest.approx(1 / 50)
    assert table.loc[("e2", "norm"), "step_50"] == pytest.approx(2.0)
    assert set(table["blocks"]) == {19}


def test_a_block_whose_partner_is_invalid_has_no_ratio_and_no_blocks_is_no_crash():
    rows = synthetic.timing("digits", "sgd", {"none": 1.0, "norm": 1.0}, valid=False)
    table = timed(rows)
    assert table["ratio"].isna().all()
    assert set(table["invalid"]) == {20}
    assert timed(rows).iloc[:0].empty


def test_cost_is_apart_for_every_implementation_and_batch():
    rows = [
        row
        for batch in (32, 64)
        for code in ("torch", "loop")
        for row in synthetic.timing(
            "digits", "sgd", {"none": 1, "norm": 2}, batch=batch, implementation=code
        )
    ]
    assert len(timed(rows)) == 8


def test_a_clip_costs_what_it_adds_to_a_whole_step_on_one_thread():
    """Updates, and blocks of several threads, are no training steps of that kind."""
    rows = synthetic.timing("digits", "sgd", {"none": 1.0, "norm": 1.0}, seconds=1.0)
    others = [
        synthetic.timing("digits", "sgd", {"none": 1, "norm": 9}, threads=2),
        synthetic.surveyed({"torch": {"none": 1, "norm": 9}}),
    ]
    assert timed([*rows, *others[0], *others[1]]).equals(timed(rows))


SURVEYED = {
    "torch": {"none": 2.0, "value": 4.0, "norm": 4.0},
    "fused": {"none": 1.5, "norm": 3.0, "value": 5.0},
    "flat": {"none": 1.25, "norm": 2.0},
}


def survey(rows):
    frame = pd.DataFrame(rows)
    return implementations(
        frame.astype({name: float for name in frame if name in synthetic.NUMBERS})
    )


def test_implementations_are_set_against_no_clip_the_default_and_the_floor():
    table = survey(synthetic.surveyed(SURVEYED)).set_index(["implementation", "clip"])
    flat = table.loc[("flat", "norm")]
    assert flat[["ratio", "relative"]].tolist() == pytest.approx([1.6, 0.5])
    assert flat["ratio_low"] <= 1.6 <= flat["ratio_high"]
    assert flat["share"] == pytest.approx(0.5, rel=0.02)
    assert flat["seconds_50"] == pytest.approx(2e-4, rel=0.02)
    assert flat["bytes_per_second"] == pytest.approx(20 * 2_000_000 / flat["seconds_50"])
    assert flat[["blocks", "invalid"]].tolist() == [19, 1]
    assert table.loc[[("flat", "none"), ("torch", "none")], "ratio"].isna().all()
    assert math.isnan(table.loc[("torch", "norm"), "relative"])
    assert set(table["size"]) == {"2000000 in 6 tensors"}


def test_the_quickest_is_the_least_beside_the_default_and_the_default_where_nothing_beats_it():
    best = quickest(survey(synthetic.surveyed(SURVEYED))).set_index("clip")
    assert best["implementation"].to_dict() == {"norm": "flat", "value": "torch"}
    assert best.loc[
        "norm", ["default_ratio", "best_ratio", "best_relative"]
    ].tolist() == pytest.approx([2.0, 1.6, 0.5])
    assert best.loc["value", "best_ratio"] == pytest.approx(2.0)


def test_one_that_is_surely_quicker_is_not_hidden_by_one_that_may_be():
    found = survey(synthetic.surveyed(SURVEYED)).set_index(["implementation", "clip"])
    found.loc[("flat", "norm"), ["relative", "relative_high"]] = (0.60, 1.05)
    found.loc[("fused", "norm"), ["relative", "relative_high"]] = (0.62, 0.63)
    best = quickest(found.reset_index()).set_index("clip")
    assert best.loc["norm", "implementation"] == "fused"


def test_without_torchs_default_there_is_nothing_to_be_quicker_than():
    assert quickest(survey(synthetic.surveyed({"flat": SURVEYED["flat"]}))).empty


def test_a_runs_own_timings_are_no_survey_and_threads_are_kept_apart():
    own = synthetic.timing("digits", "sgd", {"none": 1.0, "norm": 2.0})
    assert survey(own).empty
    both = survey(
        [
            *synthetic.surveyed(SURVEYED),
            *synthetic.surveyed({"torch": SURVEYED["torch"]}, threads=2),
            *own,
        ]
    )
    assert both.groupby("threads").size().to_dict() == {1.0: 8, 2.0: 3}
    assert set(both["part"]) == {"update"}


def test_events_are_those_of_compared_cells_worst_first(tmp_path):
    store = build(
        tmp_path / "s", report=0, change=at({(3.0, None): "diverged", (1.0, None): "collapsed"})
    )
    cells, _ = current(store)
    found = events(store.read("events"), cells)
    assert found["kind"].tolist() == ["nonfinite_loss", "blow_up"]
    counted = event_counts(found, cells).set_index("arm")
    assert counted.loc[
        "sgd", ["cells", "learned", "collapsed", "diverged", "nonfinite_loss", "blow_up"]
    ].tolist() == [
        18,
        16,
        1,
        1,
        1,
        1,
    ]
    assert events(store.read("events"), cells.iloc[:0]).empty


def test_cells_outside_the_plan_are_kept_but_not_compared(tmp_path):
    store = build(tmp_path / "s", report=0)
    synthetic.commit(
        store, "more", [synthetic.rows(synthetic.cell("digits", "sgd", "none", 9.0, 0), "learned")]
    )
    cells, kept = current(store)
    assert kept == {"no longer asked for by the study": 1}
    assert 9.0 not in set(cells["lr"])


def test_two_environments_in_one_comparison_are_found(tmp_path):
    def change(cell: Cell):
        return synthetic.rows(cell, "learned", environment="e2") if cell.seed == 1001 else None

    cells, _ = current(build(tmp_path / "s", report=3, change=change))
    (mixture,) = mixtures(cells)
    assert (mixture["role"], mixture["column"], set(mixture["values"])) == (
        "report",
        "environment",
        {"e1", "e2"},
    )


def test_null_and_nan_are_told_apart_until_they_are_numbers(tmp_path):
    store = build(tmp_path / "s", report=0)
    table = plain(store.read("cells"))
    assert table["threshold"].dtype == float
    assert table["seed"].dtype == np.int64
    assert table["extended"].dtype == bool
    assert set(table.loc[table["outcome"] == "learned", "reason"]) == {None}
