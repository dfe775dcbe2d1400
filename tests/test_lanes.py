"""Lanes are the loop, many at once: the same numbers, and for every cell the same bits whoever
trains beside it.
"""

import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaged import CLIPS
from strangers import on_cancer
from test_engines import HalfSquare, cell
from torch import nn
from torch.nn import functional

from clipbench import (
    Positive,
    clip,
    clips,
    engines,
    metrics,
    optimizer,
    optimizers,
    registry,
    trees,
    workload,
    workloads,
)
from clipbench.cell import Part
from clipbench.engines import Job, lanes
from clipbench.engines.program import FEWEST_LANES, GRAIN, NoLanes
from clipbench.engines.structure import Structure, arranged
from clipbench.measures import CHANGED, GRAD_NORM, LOSS

__all__ = ["clips", "optimizers", "workloads"]  # imported because that registers them

ORDER = ("temporal-order", {"length": 5})
EVERY = [  # every optimizer, with clips in turn
    ("sgd", "none"),
    ("momentum", ("norm", CLIPS["norm"])),
    ("nesterov", ("value", CLIPS["value"])),
    ("rmsprop", ("layer", CLIPS["layer"])),
    ("adam", ("norm", {"max_norm": 0.1, "norm_type": "inf"})),
    ("adamw", "none"),
]


def job(*args, **others):
    one = cell(*args, **{"steps": 12, "evaluations": 4, **others})
    return Job(one, one.clip_settings())


def bits(made):
    """All that a record says of a run, so that equal is the same bits; a NaN equals itself."""
    return (
        made.rows.tobytes(),
        repr(made.evaluations),
        repr(made.events),
        made.verdict,
    )


def agree(made, alone):
    """A lane's record and the loop's, in float64: what happened is the same, the numbers to
    rounding.
    """
    np.testing.assert_allclose(made.rows, alone.rows, rtol=1e-8, atol=1e-11)
    assert [found[:3] for found in made.evaluations] == [found[:3] for found in alone.evaluations]
    values = [[one.value for one in found.evaluations] for found in (made, alone)]
    np.testing.assert_allclose(*values, rtol=1e-8, atol=1e-11)
    assert [(event.step, event.kind) for event in made.events] == [
        (event.step, event.kind) for event in alone.events
    ]
    assert replace(made.verdict, reason=None) == replace(alone.verdict, reason=None)
    known = ("job", "threshold", "metric", "about", "failure", "threads")
    assert [getattr(made, name) for name in known] == [getattr(alone, name) for name in known]


# ---------------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize("problem", ["wdbc", "digits", ORDER], ids=str)
def test_lanes_and_the_loop_agree_in_float64(problem):
    """Optimizers, clips, learning rates and seeds of all kinds in one batch."""
    arms = EVERY if problem == "wdbc" else EVERY[1::2]
    asked = [
        job(problem, *arm, lr=0.01 / (1 + n), seed=n % 3, dtype="float64")
        for n, arm in enumerate(arms)
    ]
    for made, one in zip(lanes.run(asked), asked, strict=True):
        agree(made, engines.run(one))
        assert made.engine == "batched"


@pytest.mark.parametrize(
    "rule",
    [
        name
        for name in registry.names("optimizer")
        if hasattr(registry.find("optimizer", name), "update")
    ],
)
def test_every_optimizer_agrees_with_the_loop_under_every_clip(rule, whole):
    """Without --whole one without a state and one with two; the others under three of the clips:
    an optimizer sees a clip's result and no more.
    """
    asked = [
        job("cosh", rule, (name, settings), lr=1e-3, seed=1, dtype="float64")
        for name, settings in CLIPS.items()
        if whole or rule in ("sgd", "adam") or name in ("none", "norm", "value")
    ]
    for made, one in zip(lanes.run(asked), asked, strict=True):
        agree(made, engines.run(one))


@pytest.mark.parametrize("on", ["update", "example"])
@pytest.mark.parametrize("problem", ["wdbc", ORDER], ids=str)
def test_whatever_a_clip_is_applied_to_lanes_and_the_loop_agree(problem, on):
    arms = [
        (rule, (name, {**CLIPS[name], "on": on}))
        for rule, name in (
            ("momentum", "norm"),
            ("adam", "value"),
            ("rmsprop", "layer"),
            ("sgd", "value"),
        )
    ]
    if on == "update":
        arms.append(("momentum", ("quantile", {"percentile": 30.0, "on": on})))  # which remembers
    asked = [job(problem, *arm, lr=0.01, seed=n % 2, dtype="float64") for n, arm in enumerate(arms)]
    for made, one in zip(lanes.run(asked), asked, strict=True):
        alone = engines.run(one)
        agree(made, alone)
        assert (alone.rows[:, CHANGED] > 0).any()


def test_lanes_of_different_schedules_are_one_structure_and_agree_with_the_loop():
    """Each at its own rate; one that ends leaves the others theirs."""
    rules = [
        "sgd",
        *(
            ("sgd", {"schedule": schedule})
            for schedule in ("cosine", "step(factor=0.5)", "polynomial(warm_up=0.25)")
        ),
    ]
    asked = [job("digits", rule, lr=0.1, dtype="float64") for rule in rules]
    asked.append(job("digits", rules[1], lr=1e200, dtype="float64"))
    assert len({Structure.of(one) for one in asked}) == 1
    made = lanes.run(asked)
    assert len({found.rows.tobytes() for found in made}) == len(asked)
    assert [found.verdict.status for found in made] == [*["completed"] * 4, "diverged"]
    for found, one in zip(made, asked, strict=True):
        agree(found, engines.run(one))


def test_lanes_of_a_replica_have_the_weights_that_the_loop_has():
    made = [job(seed=seed, replica=1, dtype="float64") for seed in (0, 1)]
    found = lanes.run(made)
    for lane, one in zip(found, made, strict=True):
        agree(lane, engines.run(one))
    plain = engines.run(job(seed=0, dtype="float64"))
    assert found[0].rows[0, LOSS] != plain.rows[0, LOSS]


def test_lanes_take_a_batch_in_parts_as_the_loop_does():
    asked = [job(("wdbc", {"accumulate": 4}), rule, dtype="float64") for rule in ("sgd", "adam")]
    for found, one in zip(lanes.run(asked), asked, strict=True):
        agree(found, engines.run(one))


@pytest.mark.parametrize("problem", ["digits", ORDER, "phantom"], ids=str)
def test_lanes_compute_under_autocast_as_the_loop_does(problem, whole):
    """To what bfloat16 can tell apart; and not as float32 does."""
    if problem == "phantom" and not whole:
        pytest.skip("costly: digits has convolutions, too; only with --whole")
    asked = [
        job(problem, "momentum", lr=0.01, dtype=dtype, batch=8, evaluations=1)
        for dtype in ("bfloat16-mixed", "float32")
    ]
    (made,), (plain,) = (lanes.run([one]) for one in asked)
    alone = engines.run(asked[0])
    np.testing.assert_allclose(made.rows[:, LOSS], alone.rows[:, LOSS], rtol=5e-3)
    assert not np.array_equal(made.rows[:, LOSS], plain.rows[:, LOSS])


@pytest.mark.parametrize("method", CLIPS)
def test_every_clip_agrees_with_the_loop_on_matrices_and_vectors(method):
    """A network of six tensors, over steps of which the clip shortens some."""
    asked = [
        job(
            "wdbc",
            "momentum",
            (method, CLIPS[method]),
            lr=0.02,
            seed=seed,
            steps=30,
            dtype="float64",
        )
        for seed in (0, 1)
    ]
    for made, one in zip(lanes.run(asked), asked, strict=True):
        agree(made, engines.run(one))
        assert (made.rows[:, CHANGED] > 0).any() == (method != "none")


def test_every_lane_has_plain_numbers_of_its_own():
    """Of the optimizer, the clip and the learning rate: one structure, and no two lanes alike."""
    asked = [
        job(
            "wdbc",
            ("adam", {"beta1": beta, "beta2": 0.99 - beta / 10}),
            ("norm", {"max_norm": most}),
            lr=lr,
            dtype="float64",
        )
        for beta, most, lr in [
            (0.9, 0.1, 0.01),
            (0.5, 0.1, 0.01),
            (0.9, 0.02, 0.01),
            (0.9, 0.1, 0.03),
        ]
    ]
    assert len({Structure.of(one) for one in asked}) == 1
    made = lanes.run(asked)
    assert len({found.rows.tobytes() for found in made}) == len(asked)
    for found, one in zip(made, asked, strict=True):
        agree(found, engines.run(one))


def test_settings_that_are_no_plain_numbers_are_structure():
    arms = [{"max_norm": 0.1}, {"max_norm": 0.2}, {"max_norm": 0.1, "norm_type": "inf"}]
    found = [Structure.of(job(method=("norm", settings))) for settings in arms]
    assert found[0] == found[1] != found[2]


def test_what_is_not_trained_is_each_seeds_own():
    """A buffer and a frozen weight, which the seed draws."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(30, 6), nn.Linear(6, 2)
            self.first.weight.requires_grad_(False)
            self.register_buffer("shift", torch.randn(6))

        def forward(self, inputs):
            return self.last((self.first(inputs) + self.shift).relu())

    on_cancer("frozen", Frozen)
    asked = [
        job("frozen", "momentum", ("layer", {"max_norm": 0.05}), seed=seed, dtype="float64")
        for seed in (0, 1, 1, 2)
    ]
    for made, one in zip(lanes.run(asked), asked, strict=True):
        agree(made, engines.run(one))


def test_seeds_may_draw_splits_of_different_sizes():
    @workload("uneven")
    class Uneven:
        metric = metrics.accuracy
        reference_loss = 1.0

        def data(self, generator):
            found = registry.build("workload", "wdbc", {}).data(generator)
            size = 40 + int(torch.randint(3, (), generator=generator))
            return {
                split: (inputs[:size], targets[:size]) for split, (inputs, targets) in found.items()
            }

        def model(self):
            return nn.Linear(30, 2)

        def loss(self, output, target):
            return functional.cross_entropy(output, target)

    asked = [job("uneven", seed=seed, dtype="float64") for seed in range(6)]
    work = registry.build("workload", "uneven", {})
    assert len({len(engines.loop.feed.splits(work, seed)["test"][0]) for seed in range(6)}) > 1
    for made, one in zip(lanes.run(asked), asked, strict=True):
        agree(made, engines.run(one))


# ------------------------------------------------------------------------------------- independence


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", ["wdbc", "digits", ORDER, "cosh"], ids=str)
def test_a_lane_has_the_same_bits_whoever_trains_beside_it(problem, dtype, whole):
    """Alone, among others, in another order, and beside lanes full of NaN; two runs, too.

    Nothing here knows the dtype but torch's kernels, and matrix products are most of these.
    """
    if dtype == "float64" and problem != "wdbc" and not whole:
        pytest.skip("costly: matrix products in float64 are wdbc's; only with --whole")
    batch = 8 if problem == "digits" else 20
    asked = [
        job(problem, *arm, lr=lr, seed=seed, dtype=dtype, batch=batch, steps=8)
        for arm, lr, seed in [
            (EVERY[0], 0.01, 0),
            (EVERY[1], 0.003, 1),
            (EVERY[1], 0.01, 0),
            (EVERY[1], 0.001, 2),
            (EVERY[0], 0.02, 1),
        ]
    ]
    broken = [replace(one, cell=replace(one.cell, lr=math.nan, seed=3)) for one in asked[:3]]
    expected = [bits(made) for made in lanes.run(asked)]
    assert len(set(expected)) == len(asked)
    assert [bits(made) for made in lanes.run(asked)] == expected
    assert [bits(made) for made in lanes.run(asked[::-1])][::-1] == expected
    beside = lanes.run([broken[0], *asked[:3], broken[1], *asked[3:], broken[2]])
    assert [bits(beside[place]) for place in (1, 2, 3, 5, 6)] == expected
    assert {beside[place].verdict.status for place in (0, 4, 7)} == {"diverged"}
    for place in (1, 4):
        (alone,) = lanes.run([asked[place]])
        assert bits(alone) == expected[place]


ODD = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_lanes
from clipbench.engines import lanes
for dtype in ("float32", "float64"):
    problem = "temporal-order", {"width": 5, "length": 6}
    together = lanes.Lanes([test_lanes.job(problem, lr=1.0, dtype=dtype)] * 32)
    together.weights *= 10  # so that there is something to round
    for _ in range(12):
        together.step(*together.draw())
    print(dtype, bool((together.weights == together.weights[:1]).all()))
"""


def test_a_lane_of_odd_width_has_the_same_bits_at_every_place_where_mkl_is_told_to_be_strict():
    """Weights of 5×5 numbers: the lanes' matrices begin at addresses of different alignment,
    which MKL heeds by default.
    """
    environment = {
        **os.environ,
        "MKL_CBWR": "AUTO,STRICT",
        "PYTHONPATH": os.pathsep.join(place for place in sys.path if place),
    }
    command = [sys.executable, "-c", ODD, str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "float32 True\nfloat64 True\n"


def test_a_lane_needs_no_company():
    (made,) = lanes.run([job(dtype="float64")])
    agree(made, engines.run(job(dtype="float64")))


def test_records_come_in_the_order_that_was_asked_for():
    """However lanes are arranged: by structure, those alike together."""
    asked = [job("cosh", *EVERY[n % 3], lr=1e-3 * (1 + n), steps=2) for n in (5, 0, 4, 2, 1, 3)]
    assert [made.job for made in lanes.run(asked)] == asked


# --------------------------------------------------------------------------------------- divergence


def test_a_diverged_lane_is_recorded_as_the_loop_does():
    """The curve up to and with its first non-finite step, events, verdict; and the evaluations
    before it alone.
    """
    asked = [job("wdbc", lr=lr, dtype="float64") for lr in (1e20, 1e100, 1e250, 0.01)]
    made = lanes.run(asked)
    for found, one in zip(made, asked, strict=True):
        agree(found, engines.run(one))
    assert [found.verdict.status for found in made] == ["diverged"] * 3 + ["completed"]
    assert len({len(found.rows) for found in made}) > 2
    for found in made[:3]:
        assert np.isfinite(found.rows[:-1, LOSS]).all()
        assert not np.isfinite(found.rows[-1]).all()
        assert max(step for step, *_ in found.evaluations) < len(found.rows)


@pytest.mark.parametrize("evaluations", [1, 3, 20])
def test_a_lane_ends_with_its_first_non_finite_step_however_rarely_one_looks(evaluations):
    """‖x‖²/2 in float32 at learning rates of 3 and 5 is 2ⁿ and 4ⁿ to the power of two, over two:
    as counted for the loop.
    """

    @workload("half-square")
    class Half:
        metric = metrics.log10_gap
        reference_loss = None
        optimum = 0.0

        def data(self):
            return dict.fromkeys(("validation", "test"), (torch.zeros(1, 1), torch.zeros(1)))

        def sample(self, generator):
            return torch.zeros(1, 1), torch.zeros(1)

        def model(self):
            return HalfSquare(1.0)

    asked = [
        job("half-square", lr=lr, steps=100, evaluations=evaluations) for lr in (3.0, 5.0, 0.5)
    ]
    made = lanes.run(asked)
    assert [len(found.rows) for found in made] == [65, 33, 100]
    for found, one in zip(made, asked, strict=True):
        alone = engines.run(one)
        assert found.verdict == alone.verdict
        assert repr(found.events) == repr(alone.events)
        np.testing.assert_array_equal(found.rows[:, LOSS], alone.rows[:, LOSS])


@pytest.mark.parametrize(
    ("problem", "live", "ended", "before", "after"),
    [("wdbc", 3, 9, 12, 3), ("wdbc", 1, 5, 6, 2), ("cosh", 4, 30, 64, 32)],
    ids=["three of twelve", "the last of six", "four of 34, in whole registers"],
)
def test_lanes_go_on_without_those_that_ended_and_with_the_same_bits(
    problem, live, ended, before, after, monkeypatch
):
    kept = []
    keep = lanes.Lanes.keep

    def watched(self, some):
        kept.append((len(self.jobs), len(some)))
        keep(self, some)

    monkeypatch.setattr(lanes.Lanes, "keep", watched)
    arms = [EVERY[1], EVERY[3]]
    going = [job(problem, *arms[n % 2], lr=0.001 * (1 + n), seed=n % 2) for n in range(live)]
    lost = [job(problem, *arms[n % 2], lr=1e38, seed=n % 3) for n in range(ended)]
    asked = [*lost[: ended // 2], *going, *lost[ended // 2 :]]
    made = lanes.run(asked)
    assert kept == [(before, after)]
    assert [found.verdict.status for found in made] == [
        "completed" if one in going else "diverged" for one in asked
    ]
    apart = lanes.run(going)
    assert kept == [(before, after)]
    assert [bits(found) for found in made[ended // 2 :][:live]] == [bits(found) for found in apart]


def test_lanes_that_have_all_ended_are_recorded():
    made = lanes.run([job("wdbc", lr=1e38, seed=seed) for seed in range(3)])
    assert [found.verdict.status for found in made] == ["diverged"] * 3
    assert all(0 < len(found.rows) < 12 for found in made)
    assert all({one.step for one in found.evaluations} == {0} for found in made)


def test_a_state_that_is_the_same_in_every_lane_survives_the_end_of_one():
    """A clip that notes that it has begun: its state does not depend on the gradient."""

    @clip("begun")
    class Begun:
        limit: Positive = 1.0

        def init(self, params):
            return {"begun": torch.zeros(())}

        def update(self, grads, state, params):
            return {name: grad * (1 + state["begun"]) for name, grad in grads.items()}, {
                "begun": torch.ones(())
            }

    first, second, lost = (job("wdbc", "sgd", "begun", lr=lr) for lr in (0.01, 0.02, 1e38))
    expected, _ = lanes.run([first, second])
    beside, ended = lanes.run([first, lost])
    assert ended.verdict.status == "diverged"
    assert bits(beside) == bits(expected)


# ----------------------------------------------------------------------------------------- refusals


class Branching(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs if self.weight.sum() > 0 else -inputs)


class Margin(nn.Linear):
    """Its gradient is one that vmap would take lane by lane."""

    def forward(self, inputs):
        output = super().forward(inputs)
        return output + functional.multi_margin_loss(
            output, torch.zeros(len(output), dtype=torch.long)
        )


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.last = nn.LSTM(10, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, inputs):
        return self.last(self.cells(inputs.unflatten(1, (3, 10)))[0][:, -1])


REFUSED = {
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(30, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        "changes its buffers|inplace|in-place",
    ),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(30, 4), nn.Dropout(0.5), nn.Linear(4, 2)),
        "random",
    ),
    "a branch": (lambda: Branching(30, 2), "reads the values"),
    "an LSTM": (Recurrent, "lane by lane"),
    "lane by lane": (lambda: Margin(30, 2), "lane by lane"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_cannot_have_lanes_is_refused_in_one_sentence_and_left_to_the_loop(name):
    build, because = REFUSED[name]

    on_cancer("refused", build)
    asked = [job("refused", seed=seed, steps=3) for seed in (0, 1)]
    with pytest.raises(NoLanes, match=because) as refusal:
        lanes.run(asked)
    assert str(refusal.value).startswith('workload "refused" ')
    assert "\n" not in str(refusal.value)
    assert engines.run(asked[0]).failure is None


def test_an_optimizer_without_a_pure_rule_is_refused_by_name():
    one = replace(cell(steps=3), optimizer=Part("torch.optim.NAdam", 1, {}))
    with pytest.raises(
        NoLanes,
        match=(
            r'^optimizer "torch.optim.NAdam" has no pure rule, which lanes need, and runs in the '
            r"loop only$"
        ),
    ):
        lanes.run([Job(one, {}), Job(replace(one, seed=1), {})])
    assert engines.run(Job(one, {})).failure is None


def test_a_clip_that_branches_on_its_number_is_refused_by_name():
    @clip("choosy")
    class Choosy:
        limit: Positive = 1.0

        def update(self, grads, state, params):
            return (
                {name: grad / 2 for name, grad in grads.items()} if self.limit > 1 else dict(grads)
            ), state

    one = job("wdbc", "sgd", "choosy", steps=3)
    with pytest.raises(NoLanes, match=r'^"sgd \+ choosy" reads the values of its tensors'):
        lanes.run([one, one])
    assert engines.run(one).failure is None


def test_a_clip_whose_state_changes_its_form_is_refused_by_name():
    @clip("growing")
    class Growing:
        def init(self, params):
            return {"seen": []}

        def update(self, grads, state, params):
            return grads, {"seen": [*state["seen"], next(iter(grads.values())).sum()]}

    one = job("wdbc", "sgd", "growing", steps=3)
    with pytest.raises(
        NoLanes, match=r'^"sgd \+ growing" cannot .* the state changes its form from step to step'
    ):
        lanes.run([one, one])
    assert engines.run(one).failure is None


# -------------------------------------------------------------------------------------- arrangement

KINDS = [Structure(name, (), "none", (), (1, 1)) for name in ("sgd", "momentum", "adam")]
GRAINS = st.dictionaries(st.sampled_from([None, *KINDS]), st.sampled_from([1, GRAIN]))


@given(structures=st.lists(st.sampled_from(KINDS), min_size=1, max_size=70), grain=GRAINS)
def test_lanes_are_arranged_by_structure_and_padded_to_what_each_wants(structures, grain):
    order = arranged(structures, grain)
    assert set(order) == set(range(len(structures)))
    assert len(order) >= FEWEST_LANES
    assert len(order) % grain.get(None, 1) == 0
    found = [structures[number] for number in order]
    begins = [
        place for place in range(len(found)) if place == 0 or found[place] != found[place - 1]
    ]
    assert len(begins) == len(set(structures))
    for begin, end in zip(begins, [*begins[1:], len(found)], strict=True):
        wanted = grain.get(found[begin], 1)
        assert begin % wanted == 0
        filled = end == len(found)  # the last one's repeats fill up the whole
        assert filled or (end - begin) % wanted == 0
        assert filled or end - begin < structures.count(found[begin]) + wanted


@pytest.mark.parametrize(("cells", "expected"), [(1, 2), (2, 2), (5, 5)])
def test_no_lane_is_added_where_none_is_wanted(cells, expected):
    assert len(arranged(KINDS[:1] * cells, {})) == expected


@pytest.mark.parametrize(("cells", "expected"), [(1, 32), (32, 32), (33, 64)])
def test_whole_registers_of_lanes_where_they_are_wanted(cells, expected):
    assert len(arranged(KINDS[:1] * cells, {None: GRAIN})) == expected
    assert len(arranged(KINDS[:1] * cells, {KINDS[0]: GRAIN})) == expected


def test_a_clip_with_an_exponential_has_whole_registers_to_itself():
    """wdbc wants none, the clip does: its lanes begin the whole, at multiples of 32, and have
    the same bits anywhere.
    """

    @clip("soft")
    class Soft:
        limit: Positive = 1.0

        def update(self, grads, state, params):
            return {name: grad.tanh() * self.limit for name, grad in grads.items()}, state

    asked = [
        job("wdbc", "sgd", method, lr=lr, steps=5)
        for lr in (0.01, 0.02, 0.03)
        for method in ("none", ("soft", {"limit": 0.5}))
    ]
    made = lanes.run(asked)
    together, order = lanes.begin(asked)
    assert [(part.begin, part.end, part.structure.clip) for part in together.segments] == [
        (0, 32, "soft"),
        (32, 35, "none"),
    ]
    assert sorted(set(order)) == [*range(6)]
    for found, one in zip(made, asked, strict=True):
        assert bits(lanes.run([one])[0]) == bits(found)


@pytest.mark.parametrize(
    "rules",
    [
        ("sgd", ("value", {"max_value": 0.01})),
        ("momentum", ("norm", {"max_norm": 0.1})),
        ("adam", ("layer", {"max_norm": 0.05})),
    ],
    ids=["sgd + value", "momentum + norm", "adam + layer"],
)
def test_the_last_row_of_a_diverged_run_is_the_loops(rules):
    """Where a clip was handed a NaN, which it multiplies here in one order and there in another."""
    asked = [
        job(("wdbc", {"width": 8}), *rules, lr=1e200 * (1 + n), dtype="float64") for n in range(2)
    ]
    for made, one in zip(lanes.run(asked), asked, strict=True):
        assert math.isnan(made.rows[-1, GRAD_NORM])
        agree(made, engines.run(one))


def test_a_rule_may_keep_the_parameters_it_is_handed():
    """As they were: the loop must not hand out what the step then moves."""

    @optimizer("heavy")
    class Heavy:
        share: Positive = 0.5

        def init(self, params):
            return {"last": params}

        def update(self, grads, state, params):
            direction = trees.map(
                lambda g, p, last: g - self.share * (p - last), grads, params, state["last"]
            )
            return direction, {"last": params}

    @clip("near")
    class Near:
        """More of the gradient, the farther from the start."""

        limit: Positive = 1.0

        def init(self, params):
            return {"start": params}

        def update(self, grads, state, params):
            return trees.map(
                lambda g, p, start: g * (1 + (p - start).abs() / self.limit),
                grads,
                params,
                state["start"],
            ), state

    for rules in (("heavy", "none"), ("heavy", "near")):
        asked = [job("wdbc", *rules, lr=0.1 * (1 + n), dtype="float64") for n in range(2)]
        for made, one in zip(lanes.run(asked), asked, strict=True):
            agree(made, engines.run(one))


def test_a_loss_may_hold_tensors_of_its_own():
    """The weights of its classes, which no program is given."""
    shares = torch.tensor([0.3, 0.7], dtype=torch.float64)
    on_cancer(
        "weighed",
        lambda: nn.Linear(30, 2),
        lambda output, target: functional.cross_entropy(output, target, shares),
    )
    asked = [job("weighed", seed=seed, dtype="float64") for seed in range(2)]
    for made, one in zip(lanes.run(asked), asked, strict=True):
        agree(made, engines.run(one))


@lru_cache
def shares_of(dtype):
    return torch.tensor([0.3, 0.7], dtype=dtype)


class Masked(nn.Linear):
    """Makes its mask at the first call, and keeps it."""

    mask = None

    def forward(self, inputs):
        if self.mask is None:
            self.mask = torch.linspace(0, 1, inputs.shape[-1], dtype=inputs.dtype)
        return super().forward(inputs * self.mask)


def test_what_is_made_at_the_first_call_and_kept_is_no_part_of_a_trace():
    """By the loss and by the module: a trace of tensors without memory would leave it broken,
    for the loop too.
    """
    shares_of.cache_clear()
    on_cancer(
        "kept",
        lambda: Masked(30, 2),
        lambda output, target: functional.cross_entropy(output, target, shares_of(output.dtype)),
    )
    asked = [job("kept", seed=seed, dtype="float64") for seed in range(2)]
    for made, one in zip(lanes.run(asked), asked, strict=True):
        agree(made, engines.run(one))
