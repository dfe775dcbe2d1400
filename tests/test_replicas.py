"""A study beside its replica: what moved, and whether a verdict turned."""

import math

import pandas as pd
import pytest
import synthetic

from clipbench.analysis.replicas import beside
from clipbench.report import evidence, replicas
from clipbench.schema import Verdict
from clipbench.store import Store
from clipbench.task import Task

TASK = Task("digits", 32, "cpu", "float32")._asdict()


def gaps(**arms):
    """A row per arm: its difference, error and verdict."""
    return pd.DataFrame(
        [
            {
                **TASK,
                "arm": f"sgd + {clip}",
                "n": 20,
                "margin": 0.02,
                **dict(zip(("difference", "error", "verdict"), one, strict=True)),
            }
            for clip, one in arms.items()
        ]
    )


@pytest.mark.parametrize(
    ("first", "second", "turned"),
    [
        (Verdict.BETTER, Verdict.PERHAPS_BETTER, False),
        (Verdict.BETTER, Verdict.UNDECIDED, False),
        (Verdict.UNDECIDED, Verdict.WORSE, False),
        (Verdict.BETTER, Verdict.WORSE, True),
        (Verdict.SAME, Verdict.PERHAPS_WORSE, True),
        (Verdict.PERHAPS_BETTER, Verdict.SAME, True),
        (Verdict.NEVER_FIRED, Verdict.BETTER, False),
    ],
)
def test_a_verdict_turns_if_the_two_contradict_each_other(first, second, turned):
    [row] = beside(
        gaps(norm=(0.03, 0.01, str(first))), gaps(norm=(0.01, 0.01, str(second)))
    ).to_dict("records")
    assert row["turned"] is turned


def test_two_estimates_may_differ_by_the_interval_of_their_difference():
    """By hand: Student's quantile at 38 degrees of freedom is 2.0244."""
    first = gaps(norm=(0.03, 0.003, "undecided"), value=(0.0, math.nan, "undecided"))
    again = gaps(norm=(0.01, 0.004, "undecided"), layer=(0.0, 0.1, "undecided"))
    [row] = beside(first, again).to_dict("records")  # the others have no other
    assert row["arm"] == "sgd + norm"
    assert row["moved"] == pytest.approx(-0.02)
    assert row["allowed"] == pytest.approx(2.0244 * 0.005, rel=1e-4)


def test_the_section_counts_what_moved_and_what_turned(tmp_path):
    def study(folder, better):
        def change(one):
            clipped = one.clip.name == "norm"
            value = 0.9 + better * clipped + 1e-3 * (one.seed * (3 if clipped else 1) % 7)
            return synthetic.rows(one, "learned", best_metric=value, metric_value=value)

        return synthetic.build(
            folder,
            optimizers=("sgd",),
            clips=("none", "norm"),
            relative=(1.0,),
            report=4,
            change=change,
            with_throughput=False,
        )

    store = study(tmp_path / "s", 0.05)
    assert replicas.section(evidence.read(store)).parts == []
    again = study(tmp_path / "s" / "replica-2", -0.05)
    [text] = replicas.section(evidence.read(store)).parts
    assert "Replica 2 is left out: its page is not that of this study." in text.words
    Store.create(again.folder, again.name, again.study.replace("[run]", "[run]\nreplica = 2"))
    [text, table] = replicas.section(evidence.read(store)).parts
    assert "In replica 2, 0 of 1 comparisons have the same words" in text.words
    assert "Of 1 that are decided in both **1 turns**" in text.words
    assert "0 of 1 estimates with an error moved by no more" in text.words
    assert table.rows[0][-1] == f"{Verdict.WORSE} (turned)"


def test_a_replica_that_is_not_finished_agrees_with_nothing(tmp_path):
    both = beside(
        gaps(norm=(0.03, 0.01, "undecided")), gaps(norm=(math.nan, math.nan, "incomplete"))
    )
    said = replicas._told(1, both)
    assert "0 of 0 comparisons have the same words, and 1 more lack runs." in said
    assert "Of 0 that are decided in both none turns" in said
