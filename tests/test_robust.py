"""How hot a learning rate the methods survive: by hand, at the ends of the axis, and from stored
rows.
"""

import math

import numpy as np
import pytest
import synthetic

from clipbench.analysis import headline
from clipbench.analysis.cells import arms, current
from clipbench.analysis.robust import half_lost, robust

LRS = np.array([0.01, 0.1, 1.0, 10.0])


@pytest.mark.parametrize(
    ("lost", "half", "below", "above"),
    [
        ([0, 0, 1, 1], 10**-0.5, False, False),  # half way between .1 and 1, in decades
        ([0.5, 0, 0.25, 0.75], 10**0.5, False, False),  # what is too cold does not count
        ([0, 0, 0, 0.2], 10.0, False, True),
        ([1, 1, 0.6, 1], 0.01, True, False),
        ([0, 0.5, 0.5, 1], 0.1, False, False),
        ([0.2, 0.4, 0.1, 0.1], 10.0, False, True),
    ],
)
def test_half_is_where_the_share_of_lost_seeds_rises_through_it(lost, half, below, above):
    found = half_lost(LRS, np.array([lost], dtype=float))
    assert [one[0] for one in found] == [pytest.approx(half), below, above]


def test_a_single_learning_rate_has_two_ends():
    for lost, below in ((0.0, False), (1.0, True)):
        half, low, high = half_lost(LRS[:1], np.array([[lost]]))
        assert (half[0], low[0], high[0]) == (0.01, below, not below)


def test_many_draws_at_once_are_each_their_own():
    draws = np.random.default_rng(0).random((50, 4))
    together = half_lost(LRS, draws)[0]
    assert together.tolist() == [half_lost(LRS, one[None])[0][0] for one in draws]


def table(store):
    cells, _ = current(store)
    components, protocol = store.page("components"), store.page("plan")["protocol"]
    found = headline.axes(cells, components, protocol, {})
    return robust(found, arms(cells, components), components)


def test_a_clip_that_survives_ten_times_the_learning_rate_moves_it_by_a_decade(tmp_path):
    """Without it runs are lost from .1 on, with it from 1 on; and what is lost is worth chance."""

    def change(one):
        limit = 1.0 if one.clip.name == "norm" else 0.1
        kind = "learned" if one.lr < limit else "collapsed"
        worse = 0.02 if one.lr == 0.3 else None  # worse than chance, which is .1
        return synthetic.rows(one, kind, metric_value=0.9 if kind == "learned" else worse or 0.1)

    store = synthetic.build(
        tmp_path / "s",
        optimizers=("sgd",),
        clips=("none", "norm"),
        relative=(1.0,),
        report=4,
        change=change,
        with_throughput=False,
    )
    [row] = table(store).to_dict("records")
    assert row["n"] == 7
    assert row["shift"] == pytest.approx(1.0)
    assert (row["low"], row["high"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert row["partner_half"] == pytest.approx(10 ** ((math.log10(0.03) - 1) / 2))
    # two of six learning rates hold without the clip, four with it
    assert row["partner_sensitivity"] == pytest.approx(0.8 * 4 / 6)
    assert row["sensitivity"] == pytest.approx(0.8 * 2 / 6)
