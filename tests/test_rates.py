"""The choice of an engine follows from what was measured, within the memory, and says why where
there is none.
"""

import importlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from strangers import on_cancer
from test_engines import cell
from torch import nn

from clipbench import clips, execute, metrics, optimizers, workload, workloads
from clipbench.cell import Part
from clipbench.compiling import NotCompiled
from clipbench.engines import Job, lanes, rates, structure
from clipbench.engines.program import FEWEST_LANES
from clipbench.engines.rates import BATCHED, LADDER, LOOP, Choice

__all__ = ["clips", "optimizers", "workloads"]  # imported because that registers them

SMALL = ("wdbc", {"width": 4})
NORM = ("norm", {"max_norm": 0.1})


def job(*args, **others):
    one = cell(*args, **{"steps": 100, "evaluations": 2, **others})
    return Job(one, one.clip_settings())


def nadam(one):
    return replace(one, cell=replace(one.cell, optimizer=Part("torch.optim.NAdam", 1, {})))


def beside(abreast):
    """Lanes of which so many share a register."""
    return SimpleNamespace(stepper=SimpleNamespace(abreast={"a structure": abreast}))


@pytest.fixture
def timed(monkeypatch):
    """Put seconds into the place of measurements: by the number of lanes, native or not; None
    is a compiler that fails.
    """

    def put(loop, eager, native=None, some_more=lambda count: count, apart=None, abreast=1):
        asked = []

        def of_lanes(some, *, native=False):
            asked.append((len(some), native))
            rate = table[native](len(some))
            if rate is None:
                raise NotCompiled("no compiler")
            return rate, some_more(len(some))

        table = {False: eager, True: native or (lambda _: None)}
        monkeypatch.setattr(rates, "_loop", lambda _: loop)
        monkeypatch.setattr(rates, "_lanes", of_lanes)
        monkeypatch.setattr(rates.lanes, "begin", lambda *_, **__: (beside(abreast), []))
        monkeypatch.setattr(rates, "_parted", lambda *_: apart)
        return asked

    return put


# ------------------------------------------------------------------------------------------ choices


def test_nothing_is_measured_but_the_loop_where_little_is_to_be_done(monkeypatch):
    monkeypatch.setattr(rates, "refusals", None)
    choice = rates.measure([job(SMALL)], rates.MEMORY, cell_steps=10)
    assert (choice.engine, choice.lanes, choice.native, choice.refusals) == (LOOP, 0, False, {})
    assert list(choice.rates) == [LOOP]
    assert choice.rate(LOOP) > 0


def test_lanes_are_measured_where_they_are_wanted_however_little_is_to_be_done():
    """Two that fit the memory: a real measurement, of the loop and of lanes."""
    asked = [job(SMALL), job(SMALL, "momentum", NORM)]
    choice = rates.measure(asked, memory=2 * rates.lane_bytes(asked), cell_steps=10, wanted=BATCHED)
    assert choice.lanes == FEWEST_LANES == 2
    assert list(choice.rates) == [LOOP, "2 lanes"]
    assert choice.rate(BATCHED) == choice.rates["2 lanes"] > 0
    assert choice.engine == (BATCHED if choice.rates["2 lanes"] < choice.rates[LOOP] else LOOP)
    assert choice.refusals == {}
    assert choice.lane_bytes > 0


def test_the_faster_engine_is_chosen(timed):
    timed(loop=1.0, eager=lambda count: 1.5 / count)
    assert rates.measure([job(SMALL)], rates.MEMORY, cell_steps=20).engine == BATCHED
    timed(loop=1.0, eager=lambda _: 1.5)
    slower = rates.measure([job(SMALL)], rates.MEMORY, cell_steps=20)
    assert slower.engine == LOOP
    assert slower.rates == {LOOP: 1.0, "2 lanes": 1.5, "8 lanes": 1.5}


def test_the_climb_ends_where_more_lanes_gain_nothing(timed):
    """Twice as fast each rung up to 32; 64 is a hundredth better, which is not worth its memory."""
    asked = timed(loop=1.0, eager=lambda count: 0.99 / 32 if count > 32 else 1 / count)
    choice = rates.measure([job(SMALL)], rates.MEMORY, cell_steps=20)
    assert [count for count, native in asked if not native] == [2, 8, 16, 32, 64]
    assert (choice.engine, choice.lanes, choice.rate(BATCHED)) == (BATCHED, 32, 1 / 32)


@pytest.mark.parametrize(
    ("loops", "batched", "medians"),
    [
        pytest.param([1.5, 1.0, 1.05], [1.1, 1.15, 1.12], (1.05, 1.12), id="a disturbed loop"),
        pytest.param(
            [1.25, 1.2, 1.22], [1.1, 1.4, 1.12], (1.22, 1.12), id="disturbed lanes, later"
        ),
    ],
)
def test_close_rates_are_measured_again_and_their_medians_decide(
    timed, monkeypatch, loops, batched, medians
):
    # two lanes, eight, and two again
    alone, together = iter(loops), iter([batched[0], 1.2, *batched[1:]])
    asked = timed(loop=None, eager=lambda _: next(together))
    monkeypatch.setattr(rates, "_loop", lambda _: next(alone))
    choice = rates.measure([job(SMALL)], rates.MEMORY, cell_steps=20)
    assert (choice.rates[LOOP], choice.rates["2 lanes"]) == medians
    assert choice.engine == (LOOP if medians[0] < medians[1] else BATCHED)
    assert [count for count, native in asked if not native] == [2, 8, 2, 2]


@pytest.mark.parametrize("most", [2, 20, 64, 1000])
def test_the_lanes_chosen_fit_the_memory(timed, most):
    timed(loop=1.0, eager=lambda count: 1 / count)
    one = rates.lane_bytes([job(SMALL)])
    choice = rates.measure([job(SMALL)], memory=most * one, cell_steps=20)
    assert choice.lane_bytes == one
    assert choice.lanes == max(count for count in LADDER if count <= most)


def test_where_two_lanes_do_not_fit_the_loop_is_chosen(timed):
    asked = timed(loop=1.0, eager=lambda count: 1 / count)
    choice = rates.measure(
        [job(SMALL)], memory=2 * rates.lane_bytes([job(SMALL)]) - 1, cell_steps=10**6
    )
    assert (choice.engine, choice.lanes, asked) == (LOOP, 0, [])


def test_lanes_that_fill_up_must_fit_the_memory_too(timed):
    """Of whole registers: two lanes, eight and sixteen are 32, and 64 are one too many."""
    timed(loop=1.0, eager=lambda count: 1 / count, some_more=lambda count: count + -count % 32)
    memory = 63 * rates.lane_bytes([job(SMALL)])
    assert rates.measure([job(SMALL)], memory, cell_steps=20).lanes == 32
    none = rates.measure([job(SMALL)], memory // 2, cell_steps=20)
    assert (none.engine, none.lanes, list(none.rates)) == (LOOP, 0, [LOOP])


@pytest.mark.parametrize(("seeds", "by_torch", "by_program"), [(1, 1, 1), (2, 2, 2), (14, 14, 3)])
def test_a_measurement_is_of_one_structure_and_of_as_many_seeds_as_a_shard_has(
    monkeypatch, seeds, by_torch, by_program
):
    """Those of lanes of torch stand in any order, those of a seed that are native together."""
    met = {False: set(), True: set()}

    def noted(filled, native=False):
        met[native].add(
            (
                len({structure.Structure.of(one) for one in filled}),
                len({one.cell.seed for one in filled}),
            )
        )
        return 1.0, len(filled)

    monkeypatch.setattr(rates, "_loop", lambda _: 1.0)
    monkeypatch.setattr(rates, "_lanes", noted)
    monkeypatch.setattr(rates, "_parted", lambda *_: None)
    monkeypatch.setattr(rates.lanes, "begin", lambda *_, **__: (beside(1), []))
    monkeypatch.setattr(rates, "LADDER", (32,))
    for native in (False, True):
        steps = 10**6 if native else 10
        rates.measure([job(SMALL, "adam", NORM)], rates.MEMORY, steps, BATCHED, seeds=seeds)
    assert met[True] == {(1, by_program)}
    assert met[False] == {(1, by_torch), (1, by_program)}


# ------------------------------------------------------------------------------------------- native


def test_nothing_is_built_that_would_not_pay(timed):
    """What it saves is less than it takes to build."""
    asked = timed(loop=1.0, eager=lambda count: 1 / count)
    choice = rates.measure([job(SMALL)], rates.MEMORY, cell_steps=1.9 * rates.BUILDING)
    assert not any(native for _, native in asked)
    assert not choice.native


@pytest.mark.parametrize(("fitting", "abreast"), [(8, 1), (1000, 1), (1000, 16), (40, 16)])
def test_what_is_built_and_pays_is_taken(timed, fitting, abreast):
    """With as many lanes as serve it, or as fit, and without a search for more."""
    asked = timed(loop=1.0, eager=lambda count: 1 / count, native=lambda _: 0.001, abreast=abreast)
    one, count = rates.lane_bytes([job(SMALL)]), min(fitting, abreast * rates.NATIVE_LANES)
    choice = rates.measure([job(SMALL)], fitting * one, cell_steps=10**6)
    assert asked == [(count, True), (count, False)]
    assert (choice.engine, choice.lanes, choice.native) == (BATCHED, count, True)
    assert choice.rate(BATCHED) == choice.rates[f"{count} lanes, native"] == 0.001


def test_lanes_stay_as_they_are_where_a_program_of_this_machine_is_slower_or_fails(timed):
    for native in (lambda _: 0.5, None):
        asked = timed(
            loop=1.0, eager=lambda count: 1 / 8 if count > 8 else 1 / count, native=native
        )
        choice = rates.measure([job(SMALL)], rates.MEMORY, cell_steps=10**6)
        assert (rates.NATIVE_LANES, True) in asked
        found = (choice.engine, choice.lanes, choice.native, choice.rate(BATCHED))
        assert found == (BATCHED, 8, False, 1 / 8)
        assert choice.untranslated == ("" if native else "no compiler")


def test_a_program_of_this_machine_whose_numbers_are_others_is_not_taken(timed):
    timed(loop=1.0, eager=lambda count: 1 / count, native=lambda _: 1e-6, apart="they are not")
    choice = rates.measure([job(SMALL)], rates.MEMORY, cell_steps=10**6)
    assert (choice.native, choice.untranslated) == (False, "they are not")


def test_a_program_of_this_machine_is_taken_where_torchs_lanes_are_slower_than_the_loop(timed):
    timed(loop=1.0, eager=lambda _: 2.0, native=lambda _: 0.5)
    choice = rates.measure([job(SMALL)], rates.MEMORY, cell_steps=10**6)
    assert (choice.engine, choice.native) == (BATCHED, True)


def test_a_choice_of_an_earlier_version_is_read_as_far_as_it_goes():
    page = {**Choice(BATCHED, lanes=8, rates={"8 lanes": 0.1}).page(), "compiled": True}
    assert Choice.of(page) == Choice(BATCHED, lanes=8, rates={"8 lanes": 0.1})


# ----------------------------------------------------------------------------------------- refusals


def test_an_arm_without_lanes_is_refused_and_the_others_are_measured(timed):
    asked = timed(loop=1.0, eager=lambda count: 1 / count)
    plain = job(SMALL, "sgd", NORM)
    refused = nadam(plain)
    choice = rates.measure([refused, plain], 2 * rates.lane_bytes([plain]), cell_steps=20)
    assert choice.arms == sorted(rates.versioned(one) for one in (plain, refused))
    assert choice.refusals == {
        "torch.optim.NAdam + norm": (
            'optimizer "torch.optim.NAdam" has no pure rule, which lanes '
            "need, and runs in the loop only"
        )
    }
    assert (choice.engine, choice.lanes) == (BATCHED, 2)
    assert (2, False) in asked


def test_a_task_whose_every_arm_is_refused_is_run_by_the_loop(timed):
    asked = timed(loop=1.0, eager=lambda count: 1 / count)
    choice = rates.measure([nadam(job(SMALL))], rates.MEMORY, cell_steps=20)
    assert (choice.engine, choice.lanes, list(choice.refusals)) == (LOOP, 0, ["torch.optim.NAdam"])
    assert asked == []


def test_a_workload_without_lanes_is_refused_once_for_all_its_arms(timed):
    timed(loop=1.0, eager=lambda count: 1 / count)
    on_cancer("other", lambda: nn.Sequential(nn.Linear(30, 4), nn.Dropout(0.5), nn.Linear(4, 2)))
    choice = rates.measure(
        [job("other"), job("other", "momentum", NORM)], rates.MEMORY, cell_steps=20
    )
    assert (choice.engine, choice.lanes) == (LOOP, 0)
    assert list(choice.refusals) == [""]
    assert choice.refusals[""].startswith('workload "other" draws at random while it trains, as')


class Remembering(nn.Linear):
    """Its first call is not like the others: a trace holds what the first did."""

    calls = 0

    def forward(self, inputs):
        self.calls += 1
        return super().forward(inputs * (2.0 if self.calls == 1 else 1.0))


def test_a_workload_whose_lanes_have_another_gradient_than_the_loop_is_refused():
    on_cancer("other", lambda: Remembering(30, 2))
    assert rates.refusals([job("other")]) == {
        "": 'workload "other" has another gradient in lanes than in the loop'
    }


@pytest.mark.parametrize(
    "problem", ["wdbc", "digits", ("temporal-order", {"length": 4}), "cosh"], ids=str
)
def test_every_packaged_workload_has_the_same_gradient_in_lanes_as_in_the_loop(problem):
    assert rates.disagreement(rates._double(job(problem))) is None


# ------------------------------------------------------------------------------------------- memory


def test_a_lane_takes_more_memory_where_its_network_or_its_batch_is_larger():
    sizes = [
        rates.lane_bytes([job(("wdbc", {"width": width}), batch=batch)])
        for width, batch in ((8, 10), (64, 10), (64, 300))
    ]
    assert sizes == sorted(set(sizes))


def test_a_lane_takes_at_least_its_weights_and_gradients_and_what_it_is_evaluated_on():
    width, examples = 300, 114  # of the validation split
    weights = 30 * width + width + width * width + width + width * 2 + 2
    found = rates.lane_bytes([job(("wdbc", {"width": width}), batch=1)])
    assert found >= 4 * 2 * weights
    assert rates.lane_bytes([job(("wdbc", {"width": 1}), batch=1)]) >= 4 * examples * 30


def test_of_several_arms_the_one_that_takes_most_counts():
    asked = [job(("wdbc", {"width": 64}), optimizer, batch=1) for optimizer in ("sgd", "adam")]
    alone = [rates.lane_bytes([one]) for one in asked]
    assert alone[0] < alone[1] == rates.lane_bytes(asked) == rates.lane_bytes(asked[::-1])


def test_the_larger_of_the_splits_that_are_evaluated_counts():
    def bound(validation, test):
        @workload("uneven")
        class Uneven:
            metric = metrics.accuracy
            reference_loss = 1.0

            def data(self):
                sizes = {"train": 4, "validation": validation, "test": test}
                return {
                    name: (torch.zeros(size, 30), torch.zeros(size, dtype=torch.long))
                    for name, size in sizes.items()
                }

            def model(self):
                return nn.Linear(30, 2)

            def loss(self, output, target):
                return nn.functional.cross_entropy(output, target)

        return rates.lane_bytes([job("uneven", batch=2)])

    assert bound(2, 200) == bound(200, 2) > bound(2, 2)


def test_a_number_of_eight_bytes_takes_twice_the_memory_of_four():
    single, double = (rates.lane_bytes([job(dtype=dtype)]) for dtype in ("float32", "float64"))
    assert double == pytest.approx(2 * single, rel=0.05)


GROWING = {  # workload, lanes, whether native, steps
    "wdbc": ("wdbc", 256, False, 6),
    "digits": ("digits", 96, False, 6),
    "temporal-order": ("temporal-order", 64, False, 6),
    "digits-native": ("digits", 96, True, 6),
    "curves": ("cosh", 512, True, 2000),
}


def print_growth():
    """The bound on the lanes of every workload, and how much a process grew by them: a fork of
    one set up as a worker is.
    """
    execute.prepare(execute.Setting())
    for late in ("sklearn.datasets", "torch._dynamo"):  # which every fork would import
        importlib.import_module(late)
    for name, (problem, count, native, steps) in GROWING.items():
        sys.stdout.flush()
        if os.fork() == 0:
            asked = [
                job(problem, "adam", NORM, lr=1e-4, seed=seed, steps=steps, batch=32)
                for seed in range(3)
            ]
            bound = rates.lane_bytes(asked[:1])
            lanes.run(asked, native)
            # the peak counts from here
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
            before = peak()
            records = lanes.run([asked[number % 3] for number in range(count)], native)
            handed_over = pickle.dumps(records)
            sys.stdout.write(f"{name} {bound * count} {peak() - before}\n")
            assert handed_over
            sys.stdout.flush()
            os._exit(0)
        os.wait()


def peak():
    told = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in told if line.startswith("VmHWM"))


@pytest.fixture(scope="module")
def growths(whole):
    if not whole:
        pytest.skip("costly: a process for what the bound is checked against; only with --whole")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            place for place in [str(Path(__file__).parent), *sys.path] if place
        ),
    }
    command = [sys.executable, "-c", "import test_rates; test_rates.print_growth()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows = (line.split() for line in done.stdout.splitlines())
    return {name: (int(bound), int(growth)) for name, bound, growth in rows}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read as Linux tells it")
@pytest.mark.parametrize("name", GROWING)
def test_a_process_does_not_grow_by_more_than_the_bound_on_its_lanes(growths, name):
    """A process of its own, as a worker is set up: what the allocator keeps counts, not only
    what is alive.
    """
    bound, growth = growths[name]
    assert 0 < growth <= bound


# ----------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize(
    "choice",
    [
        Choice(LOOP),
        Choice(
            BATCHED,
            32,
            True,
            {LOOP: 0.1 + 0.2, "32 lanes": 1 / 3, "32 lanes, native": 1e-7},
            123456,
            {"sgd + norm": "no"},
            ["sgd, versions 1 and 1"],
        ),
        Choice(LOOP, refusals={"": 'workload "x" has another gradient in lanes than in the loop'}),
    ],
    ids=["the loop", "compiled lanes", "a refusal"],
)
def test_a_choice_comes_back_from_its_page(choice):
    again = Choice(**json.loads(json.dumps(choice.page())))
    assert again == choice
    assert [again.rate(engine) for engine in (LOOP, BATCHED)] == [
        choice.rate(engine) for engine in (LOOP, BATCHED)
    ]


def test_a_rate_is_of_the_engine_as_it_would_be_used():
    known = {LOOP: 4.0, "8 lanes": 2.0, "8 lanes, native": 1.0, "16 lanes": 3.0}
    assert Choice(BATCHED, 8, rates=known).rate(BATCHED) == 2.0
    assert Choice(BATCHED, 8, native=True, rates=known).rate(BATCHED) == 1.0
    assert Choice(BATCHED, 8, rates=known).rate(LOOP) == 4.0
    assert Choice(BATCHED, 32, rates=known).rate(BATCHED) is None


def test_measuring_draws_from_no_global_generator():
    """A network with dropout, which draws, and is seeded as in training."""
    on_cancer("other", lambda: nn.Sequential(nn.Linear(30, 4), nn.Dropout(0.5), nn.Linear(4, 2)))
    before = torch.get_rng_state()
    rates.measure([job("other")], rates.MEMORY, cell_steps=10)
    assert torch.equal(torch.get_rng_state(), before)
