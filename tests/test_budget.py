"""What a tuned threshold is worth: against loops over stored rows, and by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import synthetic

from clipbench import tuning
from clipbench.analysis import budget
from clipbench.analysis.cells import arms, current
from clipbench.report import evidence


@pytest.mark.parametrize(
    ("differences", "tries"),
    [
        ((-1.0, -0.5, 0.1, 0.2), 3),
        ((0.3, -0.1, 0.1), 3),  # ahead, behind, and ahead for good
        ((0.1, 0.2), 1),
        ((0.1, 0.2, 0.0), math.nan),  # with all of them it is not ahead
        ((), math.nan),
    ],
)
def test_a_clip_is_ahead_from_the_try_after_the_last_one_behind(differences, tries):
    rows = {"tries": range(1, len(differences) + 1), "difference": differences}
    found = budget.ahead(pd.DataFrame(rows).sample(frac=1, random_state=0))
    assert found == pytest.approx(tries, nan_ok=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two clips of three thresholds; one learning rate of the norm clip diverges on every seed,
    with the best checkpoints before the event.
    """

    def change(one):
        hot = one.clip.name == "norm" and one.lr == 3.0
        better = {"best_validation": 2.0, "best_metric": 2.0} if hot else {}
        return synthetic.rows(one, "diverged" if hot else "learned", **better)

    return synthetic.build(
        tmp_path_factory.mktemp("budget") / "s",
        optimizers=("sgd",),
        relative=(0.1, 1.0),
        percentile=synthetic.PERCENTILE,
        report=5,
        budget=4,
        change=change,
        with_throughput=False,
    )


def found_in(store, question):
    cells, _ = current(store)
    components, protocol = store.page("components"), store.page("plan")["protocol"]
    return question(cells, arms(cells, components), components, protocol, {})


def test_it_is_what_loops_over_all_sets_of_settings_give(store):
    """Chosen on selection seeds by the graded metric, judged on report seeds; chance if
    diverged.
    """
    found = found_in(store, budget.curves)
    assert set(found["arm"]) == {"sgd + value", "sgd + norm"}
    assert set(found["tries"]) == set(range(1, 19))
    assert set(found["n"]) == {4}
    rows = current(store)[0].to_dict("records")

    def point(row):
        return row["lr"], str(row["relative"]), str(row["percentile"])

    def worth(row, column):
        return 0.1 if row["status"] == "diverged" else row[column]

    def settings(arm):
        mine = [row for row in rows if row["arm"] == arm]
        for one in sorted(set(map(point, mine))):
            at = [row for row in mine if point(row) == one]
            judged = [worth(row, "best_metric") for row in at if 1000 <= row["seed"] < 1004]
            chosen = [worth(row, "best_validation") for row in at if row["seed"] < 3]
            assert (len(judged), len(chosen)) == (4, 3)
            yield np.mean(chosen), np.mean(judged)

    def expected(arm, tries):
        known = list(settings(arm))
        sets = itertools.combinations(known, min(tries, len(known)))
        return np.mean([max(some)[1] for some in sets])

    for arm, tries in itertools.product(["sgd + norm", "sgd + value"], (1, 2, 6, 17)):
        [row] = found[(found["arm"] == arm) & (found["tries"] == tries)].to_dict("records")
        assert row["estimate"] == pytest.approx(expected(arm, tries))
        assert row["without"] == pytest.approx(expected("sgd", tries))
        assert row["difference"] == pytest.approx(row["estimate"] - row["without"])


def test_the_median_as_a_threshold_is_compared_on_the_seeds_that_ran_it(store):
    found = found_in(store, budget.at_median)
    assert dict(zip(found["arm"], found["n"], strict=True)) == {"sgd + norm": 7, "sgd + value": 7}
    assert (found["low"] < found["difference"]).all()


def test_a_study_without_a_budget_says_nothing_of_it(tmp_path):
    store = synthetic.build(tmp_path / "s", optimizers=("sgd",), report=4, with_throughput=False)
    seen = evidence.read(store)
    assert seen.budget.empty
    assert seen.at_median.empty


def made(folder, change=lambda _: None, **options):
    """A store of one clip with two thresholds beside its optimizer."""
    given = {"clips": ("none", "norm"), "relative": (0.1, 1.0), "report": 5, "budget": 4}
    return synthetic.build(
        folder,
        optimizers=("sgd",),
        change=change,
        with_throughput=False,
        **given | {"percentile": synthetic.PERCENTILE} | options,
    )


def test_less_is_better_if_the_workload_says_so(tmp_path):
    """A gap: the clip's is a tenth of its optimizer's, whatever the setting."""

    def change(one):
        gap = (0.01 if one.clip.name == "norm" else 0.1) * (1 + 0.01 * (one.seed % 5))
        return synthetic.rows(
            one, "learned", metric_value=gap, best_metric=gap, validation_metric=gap,
            best_validation=gap,
        )  # fmt: skip

    found = found_in(made(tmp_path / "s", change, problems=("cosh",)), budget.curves)
    assert (found["estimate"] < found["without"]).all()
    assert (found["difference"] > 0.08).all()
    assert budget.ahead(found) == budget.ahead(found, "low") == 1.0


def test_a_failed_run_takes_its_seed_out_and_a_seed_that_chooses_the_whole_curve(tmp_path):
    def failing(seed):
        def change(one):
            failed = (one.clip.name, one.lr, one.seed) == ("none", 0.03, seed)
            return synthetic.failed(one) if failed else None

        return change

    judged = found_in(made(tmp_path / "judges", failing(1002)), budget.curves)
    assert set(judged["n"]) == {3}
    assert found_in(made(tmp_path / "chooses", failing(1)), budget.curves).empty
    # the same seeds, compared by pairs
    assert set(found_in(made(tmp_path / "again", failing(1002)), budget.at_median)["n"]) == {6}


def test_a_tie_that_rounding_breaks_is_a_tie():
    """The means of the same three accuracies in three orders are not one float."""
    scores = np.array([np.mean(one) for one in ((0.9, 0.8, 0.7), (0.7, 0.8, 0.9), (0.8, 0.9, 0.7))])
    assert len(set(scores)) > 1
    curve = tuning.budget_curve(scores, np.array([[1.0], [2.0], [6.0]]))
    assert curve.ravel() == pytest.approx([3.0, 3.0, 3.0])
