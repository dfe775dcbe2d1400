"""The methods at the same number of tries, from stored rows: against a recomputation that shares
nothing with ours, and what becomes of runs that diverged, failed or are missing.
"""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import synthetic
from scipy import stats

from clipbench import comparisons
from clipbench.analysis import headline
from clipbench.analysis.cells import arms, current
from clipbench.schema import Verdict
from clipbench.task import Task

MATRIX = {
    "optimizers": ("sgd", "adam"),
    "clips": ("none", "value", "norm"),
    "relative": (0.1, 1.0),
    "percentile": 90.0,
    "with_throughput": False,
}
TASK = Task("digits", 32, "cpu", "float32")


def tables(store, grade="best"):
    cells, _ = current(store)
    components, protocol = store.page("components"), store.page("plan")["protocol"]
    compared = arms(cells, components)
    starts = headline.starts(store.read("evals"), cells, components)
    found = headline.axes(cells, components, protocol, starts)
    return (
        headline.levels(found, components),
        headline.gaps(found, compared, components, grade),
        headline.rivals(found, protocol["headline"], compared, components, grade),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return synthetic.build(tmp_path_factory.mktemp("h") / "s", report=4, **MATRIX)


def reached(cells, arm, validation, test, leave=None):
    """By pandas and loops: tune on three seeds, train once more on another."""
    mine = cells[(cells["arm"] == arm) & (cells["relative"].isna())]
    chosen_by = mine.pivot_table(index="lr", columns="seed", values=validation)
    judged_by = mine.pivot_table(index="lr", columns="seed", values=test)
    seeds = [seed for seed in chosen_by.columns if seed != leave]
    values = []
    for three in itertools.combinations(seeds, 3):
        means = chosen_by[list(three)].mean(axis=1)
        best = means[np.isclose(means, means.max(), rtol=1e-12, atol=0)].index
        values += [judged_by.loc[best, seed].mean() for seed in seeds if seed not in three]
    return float(np.mean(values))


@pytest.mark.parametrize("grade", ["best", "last"])
def test_every_number_is_that_of_an_independent_recomputation(whole, grade):
    columns = {"best": ("best_validation", "best_metric")}
    columns["last"] = ("validation_metric", "metric_value")
    raw = pd.read_parquet(whole.folder / "cells").astype({"lr": float, "seed": int})
    diverged = raw["status"] == "diverged"
    raw.loc[diverged, ["validation_metric", "metric_value"]] = 0.1  # chance
    raw = raw[["arm", "lr", "seed", "relative", *columns["best"], *columns["last"]]]
    levels, gaps, _ = tables(whole, grade)
    seeds = sorted(set(raw.loc[raw["arm"] == "adam", "seed"]))
    assert len(seeds) == 7
    for row in levels[levels["grade"] == grade].to_dict("records"):
        assert row["n"] == 7
        assert row["estimate"] == pytest.approx(reached(raw, row["arm"], *columns[grade]))
    for row in gaps.to_dict("records"):
        sides = row["arm"], row["partner"]
        left = [
            reached(raw, sides[0], *columns[grade], leave=seed)
            - reached(raw, sides[1], *columns[grade], leave=seed)
            for seed in seeds
        ]
        whole_gap = np.subtract(*(reached(raw, side, *columns[grade]) for side in sides))
        error = math.sqrt(6 / 7 * np.sum((np.array(left) - np.mean(left)) ** 2))
        assert row["difference"] == pytest.approx(whole_gap)
        assert row["error"] == pytest.approx(error)
        assert row["high"] - row["difference"] == pytest.approx(stats.t.ppf(0.975, 6) * error)


def test_only_the_fixed_threshold_is_compared_and_every_arm_tries_as_often(whole):
    levels, *_ = tables(whole)
    assert set(levels["tries"]) == {6}
    clipped = levels[levels["arm"].str.contains(" + ", regex=False)]
    assert set(clipped["percentile"]) == {90.0}
    assert set(levels["arm"]) == {
        *("sgd", "sgd + value", "sgd + norm"),
        *("adam", "adam + value", "adam + norm"),
    }


def test_a_rival_is_compared_with_plain_sgd_and_has_no_verdict(whole):
    *_, rivals = tables(whole)
    assert rivals["arm"].tolist() == ["adam"]
    assert rivals["partner"].tolist() == ["sgd"]
    assert "verdict" not in rivals


def changed(**columns):
    """Runs of which those at seed 1001 and the arm norm on SGD have other columns."""

    def change(one):
        hit = one.seed == 1001 and one.arm == "sgd + norm"
        return synthetic.rows(one, "diverged", **columns) if hit else None

    return change


def test_a_run_that_diverged_is_its_best_checkpoint_and_at_the_end_chance(tmp_path):
    store = synthetic.build(
        tmp_path / "s", report=4, **MATRIX, change=changed(best_metric=0.77, best_validation=9.0)
    )
    cells, _ = current(store)
    components, protocol = store.page("components"), store.page("plan")["protocol"]
    found = headline.axes(cells, components, protocol, {})
    at = list(found[TASK, "sgd + norm", "best"].seeds).index(1001)
    assert set(found[TASK, "sgd + norm", "best"].test[:, at]) == {0.77}
    assert set(found[TASK, "sgd + norm", "last"].test[:, at]) == {0.1}
    assert set(found[TASK, "sgd + norm", "last"].validation[:, at]) == {0.1}


def test_where_chance_is_not_known_it_is_what_the_untrained_model_had(tmp_path):
    """A function: its gap at the start, lower is better; and it has no checkpoint to choose."""

    def change(one):
        if one.seed != 1001 or one.arm != "sgd":
            return None
        parts = synthetic.rows(one, "diverged")
        start = [("validation", "loss", 810.0), ("test", "gap", 3.0)]
        evals = [
            {"cell": one.id, "step": 0, "split": split, "metric": name, "value": value}
            for split, name, value in start
        ]
        return {**parts, "evals": evals}

    store = synthetic.build(tmp_path / "s", problems=("cosh",), report=4, **MATRIX, change=change)
    page = store.page("components")
    page["workloads"]["cosh"]["reference_loss"] = None
    store.write_page("components", page)
    cells, _ = current(store)
    starts = headline.starts(store.read("evals"), cells, page)
    assert set(starts.values()) >= {(810.0, 3.0)}
    found = headline.axes(cells, page, store.page("plan")["protocol"], starts)
    assert {grade for *_, grade in found} == {"last"}
    axis = found[TASK._replace(problem="cosh"), "sgd", "last"]
    at = list(axis.seeds).index(1001)
    assert set(axis.test[:, at]) == {-3.0}
    assert set(axis.validation[:, at]) == {-810.0}


@pytest.mark.parametrize("lost", ["failed", "missing"])
def test_without_a_run_nothing_is_said_of_its_comparison(tmp_path, lost):
    def change(one):
        hit = one.seed == 1001 and one.arm == "sgd + norm" and one.lr == 0.1
        if not hit:
            return None
        return (
            synthetic.failed(one)
            if lost == "failed"
            else {name: [] for name in ("cells", "curves", "evals", "events")}
        )

    store = synthetic.build(tmp_path / "s", report=4, **MATRIX, change=change)
    levels, gaps, _ = tables(store)
    said = gaps.set_index("arm")["verdict"]
    assert said["sgd + norm"] == Verdict.INCOMPLETE
    assert said["sgd + value"] != Verdict.INCOMPLETE
    row = levels[(levels["arm"] == "sgd + norm") & (levels["grade"] == "best")].iloc[0]
    assert (row["n"], row["lacking"]) == (6, 1)


def test_a_clip_that_altered_no_gradient_never_fired(tmp_path):
    def change(one):
        never = one.arm == "sgd + norm"
        return synthetic.rows(one, "learned", clipped_fraction=0.0) if never else None

    _, gaps, _ = tables(synthetic.build(tmp_path / "s", report=4, **MATRIX, change=change))
    said = gaps.set_index("arm")["verdict"]
    assert said["sgd + norm"] == Verdict.NEVER_FIRED
    assert said["sgd + value"] != Verdict.NEVER_FIRED


def tuned_on_three(validation, test, seeds):
    """The same in loops over arrays: every set of three seeds, judged on all seeds outside."""
    values = []
    for three in itertools.combinations(seeds, 3):
        means = validation[:, three].mean(axis=1)
        best = np.isclose(means, means.max(), rtol=1e-12, atol=0)
        rest = [seed for seed in seeds if seed not in three]
        values.append(test[best][:, rest].mean())
    return float(np.mean(values))


def test_every_headline_number_of_quick_is_recomputed_from_its_raw_rows(checkout):
    """Every level and difference of the committed tables, and the error of one pair a workload."""
    folder = checkout / "results" / "quick"
    raw = pd.read_parquet(folder / "cells")
    fixed = raw[raw["percentile"].notna() | (raw["clip"] == "none")]
    reports = sorted((folder / "report" / "tables").glob("verdicts-*.csv"))
    assert len(reports) == 4
    for path in reports:
        levels = pd.read_csv(path.with_name(path.name.replace("verdicts", "headline")))
        gaps = pd.read_csv(path)
        sign = -1 if gaps["problem"].iloc[0].startswith("wdbc") else 1  # its log loss
        mine = fixed[fixed["problem"] == gaps["problem"].iloc[0]]
        sides = {}
        for arm, runs in mine.groupby("arm"):
            tried = runs.loc[runs["role"] == "select", "lr"].unique()
            axis = runs[runs["lr"].isin(tried)].set_index(["lr", "seed"]).sort_index()
            sides[arm] = [
                sign * axis[name].to_numpy(dtype=float).reshape(len(tried), -1)
                for name in ("best_validation", "best_metric")
            ]
            assert sides[arm][0].shape == (6, 20)
        whole = {arm: tuned_on_three(*pair, range(20)) for arm, pair in sides.items()}
        best = levels[levels["grade"] == "best"].set_index("arm")["estimate"]
        assert {arm: sign * value for arm, value in whole.items()} == pytest.approx(best.to_dict())
        for row in gaps.to_dict("records"):
            assert row["difference"] == pytest.approx(
                whole[row["arm"]] - whole[row["partner"]], abs=1e-9
            )
        row = gaps.iloc[1]
        left = [
            np.subtract(
                *(
                    tuned_on_three(*sides[row[side]], [at for at in range(20) if at != gone])
                    for side in ("arm", "partner")
                )
            )
            for gone in range(20)
        ]
        assert row["error"] == pytest.approx(math.sqrt(19 * np.var(left)), rel=1e-6)


# ----------------------------------------------------------------------------------------- families


def row(optimizer, clip, problem="digits", schedule=""):
    return {
        **Task(problem, 32, "cpu", "float32")._asdict(),
        "arm": f"{optimizer}{schedule} + {clip}",
        "optimizer": optimizer,
        "optimizer_label": f"{optimizer}{schedule}",
        "clip": clip,
        "partner": f"{optimizer}{schedule}",
    }


def test_value_and_norm_on_one_optimizer_are_a_family_over_all_workloads():
    rows = [
        row(optimizer, clip, problem)
        for optimizer in ("sgd", "momentum", "adamw")
        for clip in ("value", "norm", "layer")
        for problem in ("digits", "wdbc", "cosh")
    ]
    found = {
        family.name: (family.level, len(family.pairs))
        for family in comparisons.families(rows, ["cosh"], {"sgd", "momentum", "adamw"}, None)
    }
    assert found["clips on sgd"] == found["clips on adamw"] == (0.025, 4)
    assert found["clips on momentum"] == (0.05, 4)
    assert found["clips on sgd, functions"] == (0.05, 2)
    assert found["other clips on sgd"] == (0.05, 2)
    alone = comparisons.families(rows, ["cosh"], {"sgd", "momentum"}, None)
    assert {family.level for family in alone} == {0.05}


def test_the_first_questions_are_about_the_schedule_of_the_headline():
    """Another schedule is a family of its own, with the whole error."""
    falling = "cosine(warm_up=0.05)"
    rows = [
        row(optimizer, clip, schedule=schedule)
        for optimizer in ("sgd", "adamw")
        for clip in ("value", "norm")
        for schedule in ("", f"(schedule={falling})", "(schedule=cosine)")
    ]
    levels = {
        family.name: family.level
        for family in comparisons.families(rows, [], {"sgd", "adamw"}, falling)
    }
    assert levels == {
        f"clips on {optimizer}{schedule}": level
        for optimizer in ("sgd", "adamw")
        for schedule, level in (
            ("", 0.05),
            (f"(schedule={falling})", 0.025),
            ("(schedule=cosine)", 0.05),
        )
    }
