"""Packing: every job is in one shard, with whom it may be and how it was chosen."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_engines import cell, record

from clipbench import clips, optimizers, workloads
from clipbench.engines import Job, structure
from clipbench.engines.rates import BATCHED, LOOP, Choice, versioned
from clipbench.execute import IN_HAND, Shard, pack
from clipbench.execute.shards import WORTH

__all__ = ["clips", "optimizers", "workloads"]  # imported because that registers them

ARMS = [
    ("sgd", "none"),
    ("sgd", ("norm", {"max_norm": 0.1})),
    ("adam", ("value", {"max_value": 0.1})),
]


def job(*args, **others):
    one = cell(*args, **others)
    return Job(one, one.clip_settings())


def jobs(count, arms=ARMS, problem="wdbc", **others):
    """``count`` cells, the arms in turn, each with a learning rate of its own."""
    return [
        job(problem, *arms[number % len(arms)], lr=0.001 * (1 + number), seed=number % 2, **others)
        for number in range(count)
    ]


KNOWN = sorted({versioned(one) for one in jobs(len(ARMS))})


def batched(count, **others):
    """A choice of so many lanes for every arm of these tests."""
    return Choice(
        BATCHED,
        lanes=count,
        **{"rates": {LOOP: 4e-3, f"{count} lanes": 1e-3}, "arms": KNOWN, **others},
    )


def native(count):
    return batched(count, native=True, rates={LOOP: 4e-3, f"{count} lanes, native": 5e-4})


def packed(given, choice, workers=2):
    return pack(given, {structure.shape(given[0].cell): choice} if choice else {}, workers)


def ids(shards):
    return sorted(one.cell.id for shard in shards for one in shard.jobs)


def sizes(shards):
    return sorted(len(shard.jobs) for shard in shards)


CHOICES = st.one_of(
    st.just(None),
    st.just(Choice(LOOP, rates={LOOP: 1e-3})),
    st.sampled_from([2, 3, 8, 16]).map(batched),
    st.sampled_from([2, 3, 8, 16]).map(native),
    st.sampled_from([2, 8]).map(lambda count: batched(count, refusals={"sgd + norm": "no"})),
    st.sampled_from([2, 8]).map(
        lambda count: batched(
            count, refusals=dict.fromkeys(("sgd", "sgd + norm", "adam + value"), "no")
        )
    ),
)


@given(count=st.integers(1, 40), workers=st.integers(1, 8), choice=CHOICES, other=CHOICES)
def test_every_job_is_in_one_shard_whatever_was_chosen(count, workers, choice, other):
    """Of two workloads, one of them twice with other steps: cells of three shapes."""
    asked = [*jobs(count), *jobs(count // 2, steps=40), *jobs(count // 3, problem="cosh")]
    choices = {structure.shape(asked[0].cell): choice, structure.shape(asked[-1].cell): other}
    shards = pack(
        asked, {shape: found for shape, found in choices.items() if found is not None}, workers
    )
    assert ids(shards) == sorted(one.cell.id for one in asked)
    for shard in shards:
        assert shard.jobs
        assert len({structure.shape(one.cell) for one in shard.jobs}) == 1
        if shard.engine == LOOP:
            assert len(shard.jobs) <= IN_HAND
            assert not shard.native


@given(
    count=st.integers(1, 60),
    workers=st.integers(1, 8),
    choice=st.sampled_from([2, 3, 8, 16]).map(batched),
)
def test_lanes_are_no_more_than_were_chosen_and_nearly_equal(count, workers, choice):
    shards = packed(jobs(count), choice, workers)
    assert {(shard.engine, shard.native) for shard in shards} == {(BATCHED, choice.native)}
    found = sizes(shards)
    assert found[-1] <= choice.lanes
    assert found[-1] - found[0] <= 1
    fewest = -(-count // choice.lanes)
    assert len(found) >= fewest
    if len(found) != fewest:
        assert found[0] >= WORTH
        assert len(found) % workers == 0 or len(found) == count // WORTH
    elif len(found) % workers:
        # one more group would be too small
        assert count // (fewest + 1) < WORTH


def test_a_task_that_nobody_measured_goes_to_the_loop():
    shards = packed(jobs(20), None)
    assert {(shard.engine, shard.seconds) for shard in shards} == {(LOOP, 0.0)}
    assert sizes(shards) == [IN_HAND] * 5


def test_few_cells_for_the_loop_are_shared_out_among_the_workers():
    assert sizes(packed(jobs(6), None, workers=4)) == [1] * 6
    assert sizes(packed(jobs(6), None, workers=2)) == [3, 3]


def test_an_idle_worker_is_given_half_where_a_half_is_worth_it():
    """16 lanes would fit in one shard of 64: two workers have eight each; of 15 one worker has
    all.
    """
    assert sizes(packed(jobs(2 * WORTH), batched(64))) == [WORTH, WORTH]
    assert sizes(packed(jobs(2 * WORTH - 1), batched(64))) == [2 * WORTH - 1]


def test_a_refused_arm_goes_to_the_loop_and_the_others_to_lanes():
    asked = jobs(24)
    shards = packed(asked, batched(8, refusals={"sgd + norm": "it has no lanes"}))
    for shard in shards:
        assert (shard.engine == LOOP) == any(one.cell.arm == "sgd + norm" for one in shard.jobs)
    assert sum(len(shard.jobs) for shard in shards if shard.engine == LOOP) == 8
    assert ids(shards) == sorted(one.cell.id for one in asked)


def test_a_task_whose_every_arm_is_refused_goes_to_the_loop():
    asked = jobs(12)
    shards = packed(asked, batched(8, refusals={one.cell.arm: "no" for one in asked}))
    assert {shard.engine for shard in shards} == {LOOP}
    assert ids(shards) == sorted(one.cell.id for one in asked)


def test_an_arm_that_nobody_looked_at_goes_to_the_loop_and_needs_no_pure_rule():
    """So does one of another version of its clip: what was found of the old one says nothing of
    it.
    """
    asked = jobs(8, ARMS[1:2])
    one = asked[0].cell
    other = replace(
        asked[0], cell=replace(one, optimizer=replace(one.optimizer, name="torch.optim.NAdam"))
    )
    newer = replace(asked[0], cell=replace(one, clip=replace(one.clip, version=2)))
    shards = packed([*asked, other, newer], batched(8))
    assert ids([shard for shard in shards if shard.engine == LOOP]) == sorted(
        [other.cell.id, newer.cell.id]
    )
    assert ids([shard for shard in shards if shard.engine == BATCHED]) == sorted(
        each.cell.id for each in asked
    )


def test_lanes_of_one_structure_and_of_equal_rates_are_next_to_each_other():
    """In whatever order they were asked for."""
    asked = [
        job("wdbc", *arm, lr=lr, seed=seed)
        for seed, lr, arm in product(range(3), (0.1, 0.01), ARMS)
    ]
    (shard,) = packed(asked, batched(64), workers=1)
    found = [structure.Structure.of(one) for one in shard.jobs]
    assert sum(before != after for before, after in pairwise(found)) == len(ARMS) - 1
    assert [(one.cell.lr, one.cell.seed) for one in shard.jobs] == sorted(
        product((0.01, 0.1), range(3))
    ) * len(ARMS)
    (again,) = packed(asked[::-1], batched(64), workers=1)
    assert again.jobs == shard.jobs


def test_native_lanes_of_one_seed_are_next_to_each_other_in_each_structure():
    """A shard of theirs then draws the batches of few seeds."""
    asked = [
        job("wdbc", *arm, lr=lr, seed=seed)
        for seed, lr, arm in product(range(4), (0.1, 0.03, 0.01), ARMS)
    ]
    (shard,) = packed(asked, native(64), workers=1)
    assert [(one.cell.seed, one.cell.lr) for one in shard.jobs] == sorted(
        product(range(4), (0.01, 0.03, 0.1))
    ) * len(ARMS)
    halves = packed([one for one in asked if one.cell.arm == asked[0].cell.arm], native(6))
    assert [{one.cell.seed for one in each.jobs} for each in halves] == [{0, 1}, {2, 3}]


# -------------------------------------------------------------------------------------- predictions


def test_a_shard_knows_how_long_a_cell_should_take():
    """The rate is of a cell and step, by the engine that runs it."""
    shards = packed(jobs(24, steps=50), batched(8, refusals={"sgd": "no"}))
    assert {(shard.engine, round(shard.seconds, 9)) for shard in shards} == {
        (BATCHED, 50e-3),
        (LOOP, 200e-3),
    }
    (shard,) = packed(jobs(8, ARMS[:1], steps=50), native(16), workers=1)
    assert shard.seconds == pytest.approx(25e-3)


def test_the_longest_shards_come_first():
    asked = [*jobs(8, steps=10), *jobs(16, steps=100), *jobs(4, problem="cosh", steps=40)]
    choices = {structure.shape(one.cell): batched(8) for one in asked}
    predicted = [shard.seconds * len(shard.jobs) for shard in pack(asked, choices, 1)]
    assert predicted == sorted(predicted, reverse=True)
    assert predicted[0] > predicted[-1]


# ------------------------------------------------------------------------------------------ a shard


@given(count=st.integers(2, 9), done=st.integers(0, 9), is_native=st.booleans())
def test_halves_and_what_is_left_of_a_shard_are_run_as_it_was_but_halves_by_torch(
    count, done, is_native
):
    """A shard is halved after it ended its worker: our own program is not trusted again."""
    whole = Shard(tuple(jobs(count)), BATCHED, native=is_native, seconds=0.5)
    first, second = whole.halves()
    assert first.jobs + second.jobs == whole.jobs
    assert abs(len(first.jobs) - len(second.jobs)) <= 1
    for half in (first, second):
        assert replace(half, jobs=whole.jobs) == replace(whole, native=False)
    left = whole.without(done)
    assert left.jobs == whole.jobs[done:]
    assert replace(left, jobs=whole.jobs) == whole


def test_the_loop_hands_over_every_record_at_once_and_lanes_theirs_together():
    asked = tuple(jobs(3, steps=3))
    assert [len(found) for found in Shard(asked).run()] == [1, 1, 1]
    (found,) = Shard(asked, BATCHED).run()
    assert [made.job for made in found] == list(asked)
    assert {made.engine for made in found} == {"batched"}
    alone = record("wdbc", *ARMS[0], lr=0.001, steps=3)
    assert found[0].rows.shape == alone.rows.shape
