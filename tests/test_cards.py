"""Several CUDA devices in one machine: which are used, by how many processes, and which are
refused.

The devices are pretended; the processes are real.
"""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import study_page
from pretended_workers import two_cards, where

from clipbench import engines, execute, protocol, registry, study
from clipbench.cell import Cell, Part
from clipbench.conformance.pretended import pretended
from clipbench.engines import Job, Record
from clipbench.engines.failures import Fault
from clipbench.engines.rates import Choice
from clipbench.errors import UsageError
from clipbench.execute import Call, Cards, Local, Setting, Shard, cards, pack
from clipbench.execute.executor import Done, Portion
from clipbench.execute.shards import Waiting
from clipbench.protocol import plans
from clipbench.store import Store

registry.load_packaged()
SMALL = study_page("cosh", steps=4, lr=0.01)
A_CARD = cards.Card(0, "H200", (9, 0), 139 * 2**30, 139 * 2**30)


def job(seed=0, device="cuda", clip="none", dtype="float64"):
    settings = {"none": {}, "norm": {"max_norm": 0.1}}[clip]
    part = Part(clip, 1, settings, next(iter(settings), None))
    cell = Cell(Part("cosh", 1), Part("sgd", 1), part, 0.01, seed, 4, 4, device=device, dtype=dtype)
    return Job(cell, settings)


# ------------------------------------------------------------------------------- which may be used


@pytest.mark.parametrize(
    ("option", "found"),
    [("cpu", ("cpu", None)), ("auto", ("auto", None)), ("cuda:12", ("cuda", 12))],
)
def test_a_device_is_named_by_its_kind_and_index(option, found):
    assert cards.named(option) == found


@pytest.mark.parametrize("option", ["cuda:", "cuda:-1", "cuda:x", "cuda:99999", "gpu", "CPU", ""])
def test_another_word_for_a_device_is_refused(option):
    with pytest.raises(UsageError, match=r"must be cpu, cuda, cuda:0 \(by its index\) or auto"):
        cards.named(option)


@pytest.mark.parametrize(
    ("device", "workers", "wanted"),
    [
        ("study", None, Cards((0, 1))),
        ("cuda", None, Cards((0, 1))),
        ("cuda", 1, Cards((0,))),
        ("cuda", 5, Cards((0, 1), 2)),
        ("cuda:1", None, Cards((1,))),
        ("cuda:1", 3, Cards((1,), 3)),
    ],
)
def test_a_device_has_one_process_unless_more_are_asked_for(device, workers, wanted):
    with two_cards():
        assert cards.spread(device, workers) == wanted


@pytest.mark.parametrize(
    ("built", "capability", "fits"),
    [
        (["sm_90"], (9, 0), True),
        (["sm_80"], (8, 6), True),  # machine code of its own generation
        (["sm_86"], (8, 0), False),
        (["sm_80"], (9, 0), False),  # of another
        (["compute_80"], (9, 0), True),  # what the driver translates
        (["compute_90"], (8, 6), False),
        (["sm_90a"], (9, 0), True),
        (["sm_75", "compute_120"], (12, 1), True),
        (["sm_120"], (3, 7), False),
        ([], (9, 0), False),
    ],
)
def test_a_device_fits_what_torch_was_built_for(built, capability, fits):
    said = cards.unfit(replace(A_CARD, capability=capability), built)
    assert (said is None) == fits
    if not fits:
        assert f"compute capability {capability[0]}.{capability[1]}" in said


def test_a_full_device_is_refused_and_a_shared_one_remarked_on():
    full = replace(A_CARD, free=2**29)
    assert "cuda:0 (H200) has 0.5 GiB of its 139.0 GiB free" in cards.unfit(full, ["sm_90"])
    assert cards.shared(A_CARD) is None
    assert "2.0 GiB are in use by others" in cards.shared(replace(A_CARD, free=137 * 2**30))


DRIVERS = {
    "Found no NVIDIA driver on your system.": "this machine has no NVIDIA driver",
    "The NVIDIA driver on your system is too old (found version 11040).": (
        "the NVIDIA driver knows CUDA 11.4, and torch .* needs 13.0: install a newer driver"
    ),
    "No CUDA GPUs are available": "this machine has no CUDA device that CUDA_VISIBLE_DEVICES='7'",
}


@pytest.mark.parametrize("said", DRIVERS)
def test_why_there_is_no_device_is_said_in_words(said, monkeypatch):
    def refuse():
        raise RuntimeError(said)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    page = study.parse("tiny", SMALL, Path())
    with pytest.raises(UsageError, match=f"^--device cuda: {DRIVERS[said]}"):
        protocol.plan(page, "cuda")


def test_what_cannot_run_is_refused_before_a_folder_is_touched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = study.parse("tiny", SMALL, Path())
    with two_cards():
        with pytest.raises(UsageError, match="--device cuda:3: this machine has 2 CUDA devices"):
            protocol.plan(page, "cuda:3")
        asked = protocol.runnable(page, "cuda:1")
        monkeypatch.setattr(
            plans, "seen", lambda _: ([replace(A_CARD, index=1, free=0)], ["sm_90"])
        )
        with pytest.raises(UsageError, match="another process uses it"):
            protocol.ready(asked, "cuda:1")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------ who is where


def test_a_process_has_a_device_of_its_own_and_none_has_two():
    """Three calls on two devices, as pilots and rates are made."""
    with two_cards(), Local(4, Cards((0, 1))) as executor:
        works = {
            str(one): (Call(where, (0.2,), "a look"), Setting().of(job(dtype=dtype).cell))
            for one, dtype in enumerate(("float32", "tf32", "float32"))
        }
        seen = dict(execute.calls(executor, works))
        found = seen.values()
    # the third call goes to whichever device is free first
    assert sorted(Counter(index for index, *_ in found).items()) in (
        [(0, 2), (1, 1)],
        [(0, 1), (1, 2)],
    )
    assert [seen[name][-1] for name in "012"] == [(False,) * 2, (True,) * 2, (False,) * 2]
    for index in (0, 1):
        ended = sorted((begin, end) for one, begin, end, _ in found if one == index)
        assert all(before[1] <= after[0] for before, after in pairwise(ended))


def test_tf32_is_a_dtype_of_cuda_alone():
    page = SMALL.replace("[run]", '[run]\ndtype = "tf32"')
    with pytest.raises(UsageError, match='dtype "tf32" is arithmetic of CUDA devices'):
        protocol.plan(study.parse("tiny", page, Path()))
    there = study.parse("tiny", page.replace("[run]", '[run]\ndevice = "cuda"'), Path())
    with two_cards():
        assert [cell.dtype for cell in protocol.plan(there).cells] == ["tf32"]


def test_the_arms_of_a_seed_are_packed_for_one_device():
    jobs = [job(seed, clip=clip) for seed in range(6) for clip in ("none", "norm")]
    jobs.append(job(device="cpu"))
    shape = engines.structure.shape(jobs[0].cell)
    lanes = {shape: Choice("batched", 32, rates={"loop": 1.0, "32 lanes": 0.1})}
    for choices in ({}, lanes):
        shards = pack(jobs, choices, 2, cards=Cards((0, 2)))
        homes = {}
        for shard in shards:
            for one in shard.jobs:
                homes.setdefault((one.cell.device, one.cell.seed), set()).add(shard.card)
        assert homes.pop(("cpu", 0)) == {0}
        assert homes == {("cuda", seed): {(0, 2)[seed % 2]} for seed in range(6)}


def test_shards_wait_for_their_device_and_those_of_the_cpu_do_not():
    there, beside, other, here = (
        Shard((job(),)),
        Shard((job(2),)),
        Shard((job(1),), card=1),
        Shard((job(device="cpu"),)),
    )
    waiting = Waiting([here, there, beside, other], Cards((0, 1)))
    assert waiting.next([]) is there
    assert waiting.next([there]) is other
    assert waiting.next([there, other]) is here
    assert waiting.next([there, other, here]) is None
    assert waiting.next([other]) is beside
    assert not waiting
    shared = Waiting([replace(there, alone=True)], Cards((0,), sharers=3))
    assert shared.next([beside]) is None
    assert shared.next([]).alone
    shared.first(beside)
    assert shared.next([replace(there, alone=True)]) is None
    assert shared.next([there, there]) is beside


class Crowded:
    """An executor on one device: of two cells at a time each lacks memory, and one alone does
    not.
    """

    slots, seconds, patience, cards = 2, 0.0, 60.0, Cards((0,), sharers=2)

    def __init__(self):
        self.held, self.ended = {}, []

    def submit(self, work, setting):
        self.held[len(self.ended)] = work
        self.ended.append((work.alone, setting.card))
        return len(self.ended) - 1

    def results(self, timeout):
        del timeout
        crowded = len(self.held) > 1
        portions = []
        for ticket, shard in self.held.items():
            records = [
                Record(one, failure="out of memory on cuda", fault=Fault(lost=True))
                if crowded
                else engines.run(one)
                for one in shard.jobs
            ]
            portions.append(Portion(ticket, records, environment={"here": 1}, end=Done()))
        self.held = {}
        return portions

    def cancel(self, ticket):
        self.held.pop(ticket, None)

    def stop(self):
        self.held = {}


def test_memory_that_another_process_had_is_no_fault_of_a_cell(tmp_path):
    store = Store.create(tmp_path / "out", "tiny", SMALL)
    executor, jobs = Crowded(), [job(seed) for seed in range(2)]
    with store.claim(), pretended():
        execute.run(jobs, store, "select", executor, Setting())
    cells = Store(tmp_path / "out").read("cells")
    assert set(cells["status"]) == {"completed"}
    assert len(cells) == 2
    assert [alone for alone, _ in executor.ended] == [False, False, True, True]


# ------------------------------------------------------------------------------------ a whole run


PAGE = """
[run]
steps = 12
batch = 4
lr = [0.01, 0.1]
dtype = "float64"
device = ["cpu", "cuda"]
seeds = { select = 2, report = 0 }
evaluations = 2
extend = false

[[workload]]
name = "cosh"

[[optimizer]]
name = "momentum"

[[clip]]
name = "none"

[[clip]]
name = "norm"
max_norm = 0.1
"""


def test_a_study_runs_on_two_devices_and_gives_the_numbers_of_the_cpu(tmp_path, monkeypatch):
    """In real processes, each set up for one device; those of the CPU work beside them."""
    submitted, submit = [], Local.submit

    def noted(self, work, setting):
        submitted.append((work, setting))
        return submit(self, work, setting)

    monkeypatch.setattr(Local, "submit", noted)
    asked = study.parse("both", PAGE, tmp_path)
    store = Store.create(tmp_path / "out", asked.name, asked.text)
    with two_cards(), store.claim():
        counts = protocol.run(asked, store, protocol.Options(engine="loop", throughput=False))
    assert counts.failed == counts.not_run == 0
    store = Store(tmp_path / "out")
    assert store.problems() == []
    homes = Counter()
    for work, setting in submitted:
        if isinstance(work, Shard):
            cells = [one.cell for one in work.jobs]
            assert {cell.device for cell in cells} == {setting.device}
            if setting.device == "cuda":
                assert {cell.seed % 2 for cell in cells} == {setting.card}
            homes[setting.device, setting.card] += len(cells)
    assert set(homes) == {("cpu", 0), ("cuda", 0), ("cuda", 1)}
    cells = store.read("cells")
    about = store.page("environment")["environments"]
    named = {
        device: {
            (about[key].get("cuda") or {}).get("device")
            for key in set(cells.loc[cells["device"] == device, "environment"])
        }
        for device in ("cpu", "cuda")
    }
    assert named == {"cpu": {None}, "cuda": {"pretended"}}
    key = ["arm", "lr", "seed", "role", "threshold"]
    here, there = (
        cells[cells["device"] == device].sort_values(key)["final_loss"].to_numpy(float)
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there, here, rtol=1e-9)
