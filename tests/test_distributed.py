"""What a clip does on several processes: one process gives the weights of real ones."""

import csv

import numpy as np
import pytest
import ranks as processes
import torch
from executors import InProcess

from clipbench import engines, feed, protocol, registry, study
from clipbench.analysis.distributed import mistaken
from clipbench.cell import Cell, Part
from clipbench.engines import Job, lanes
from clipbench.engines.sharded import Sharded
from clipbench.errors import UsageError
from clipbench.report import distributed, evidence
from clipbench.report.parts import Text
from clipbench.store import Store

registry.load_packaged()


def job(how, clip, workload, ranks, **about):
    on = {"on": how, "ranks": ranks} if how in ("rank", "shard") else {}
    settings = {
        "none": {},
        "norm": {"max_norm": processes.NORM},
        "value": {"max_value": processes.VALUE},
    }[clip]
    part = Part(clip, 1, {**settings, **on}, next(iter(settings), None))
    about = {"steps": processes.STEPS, "dtype": "float64", **about}
    cell = Cell(
        Part(workload, 1),
        Part("momentum", 1),
        part,
        processes.LR,
        0,
        batch=processes.BATCH,
        **about,
    )
    return Job(cell, settings)


def one_process(one):
    """The weights that the loop reaches."""
    trainer = engines.Trainer(engines.Components.of(one), one.cell)
    batches = feed.batches(trainer.workload, 0, processes.BATCH, processes.STEPS, torch.float64)
    for batch in batches:
        trainer.step(*batch)
    return torch.cat([param.detach().flatten() for param in trainer.module.parameters()]).numpy()


ASKED = [
    *((how, clip, "wdbc") for how in ("ddp", "fsdp2") for clip in ("none", "norm", "value")),
    ("ddp", "norm", "digits"),
    ("fsdp2", "norm", "digits"),
    ("rank", "norm", "wdbc"),
    ("rank", "value", "wdbc"),
    ("rank", "norm", "digits"),
    ("shard", "norm", "wdbc"),
    ("shard", "norm", "digits"),
]


@pytest.mark.parametrize("ranks", [2, 4])
def test_real_processes_reach_the_weights_of_one(ranks, tmp_path):
    """With gloo, in float64: clipped as it should be by DDP and FSDP2, and with either mistake."""
    found = processes.together(ranks, tmp_path, ASKED)
    assert found is not None
    apart = {}
    for how, clip, workload in ASKED:
        here = one_process(job(how, clip, workload, ranks))
        np.testing.assert_allclose(found[how, clip, workload], here, rtol=0, atol=1e-14)
        right = one_process(job("ddp", clip, workload, ranks))
        apart[how, clip, workload] = np.abs(here - right).max()
    for (how, *_), distance in apart.items():
        assert distance == 0 if how in ("ddp", "fsdp2") else distance > 1e-3


@pytest.mark.parametrize(("how", "share"), [("rank", 0.012), ("shard", 0.037)])
def test_how_far_a_mistake_leads_is_as_the_findings_say(how, share, checkout):
    there, right = (one_process(job(one, "norm", "wdbc", 4)) for one in (how, "ddp"))
    assert np.linalg.norm(there - right) / np.linalg.norm(right) == pytest.approx(share, abs=5e-4)
    said = (checkout / "docs" / "findings.md").read_text(encoding="utf-8")
    assert f"{100 * share:.1f} %" in said


def test_the_findings_count_the_committed_rows(checkout):
    table = checkout / "results" / "distributed" / "report" / "tables" / "distributed.csv"
    with table.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    worse, better = (
        sum(float(row["high"]) < 0 for row in found),
        sum(float(row["low"]) > 0 for row in found),
    )
    assert (len(found), worse, better) == (30, 0, 1)
    assert min(float(row["difference"]) for row in found if row["problem"] == "digits") > -0.06
    said = " ".join((checkout / "docs" / "findings.md").read_text(encoding="utf-8").split())
    assert "Of 30 rows no mistake is worse at 95 %, and one is better" in said


@pytest.mark.parametrize("workload", ["wdbc", "digits"])
def test_lanes_make_the_mistakes_as_the_loop_does(workload):
    """Side by side with the right clip, whose lanes they do not touch."""
    jobs = [
        job("shard", "norm", workload, 2),
        job("shard", "norm", workload, 4),
        job("ddp", "norm", workload, 1),
    ]
    for some in (jobs, [job("rank", "norm", workload, 4), job("rank", "value", workload, 4)]):
        for one, record in zip(some, lanes.run(some), strict=True):
            alone = engines.run(one)
            assert record.failure is alone.failure is None
            np.testing.assert_allclose(record.rows, alone.rows, rtol=1e-9, atol=1e-12)


def test_shards_are_those_of_fsdp_and_their_clip_is_put_together():
    """A shard on its own is clipped by its own norm, and what acts by element sees no shards."""
    grads = {
        "weight": torch.arange(15.0, dtype=torch.float64).view(5, 3) + 1,
        "bias": torch.tensor([30.0], dtype=torch.float64),
        "scale": torch.tensor(40.0, dtype=torch.float64),
    }
    norm = registry.build("clip", "norm", {"max_norm": 1.0})
    clipped, state = Sharded(norm, 4).update(grads, {}, grads)
    assert state == {}
    assert {name: leaf.shape for name, leaf in clipped.items()} == {
        name: leaf.shape for name, leaf in grads.items()
    }
    # rows 0 and 1 with bias and scale, rows 2 and 3, row 4, nothing
    first = torch.cat([grads["weight"][:2].flatten(), grads["bias"], grads["scale"].view(1)])
    size = float(first.norm())
    torch.testing.assert_close(clipped["scale"], grads["scale"] / size, rtol=1e-6, atol=0)
    torch.testing.assert_close(clipped["weight"][:2], grads["weight"][:2] / size, rtol=1e-6, atol=0)
    assert float(clipped["weight"][2:4].norm()) == pytest.approx(1, rel=1e-6)
    assert float(clipped["weight"][4].norm()) == pytest.approx(1, rel=1e-6)
    value = registry.build("clip", "value", {"max_value": 2.0})
    for name, leaf in Sharded(value, 4).update(grads, {}, grads)[0].items():
        assert torch.equal(leaf, value.update(grads, {}, grads)[0][name])
    alone = Sharded(norm, 1).update(grads, {}, grads)[0]
    for name, leaf in norm.update(grads, {}, grads)[0].items():
        torch.testing.assert_close(alone[name], leaf)


PAGE = """
[run]
steps = 10
batch = 8
lr = 0.1
seeds = { select = 1, report = 0 }

[[workload]]
name = "wdbc"

[[optimizer]]
name = "sgd"

[[clip]]
name = "norm"
max_norm = 1.0
"""
REFUSED = {
    'on = "rank"': "is for several processes; give `ranks` as well",
    'on = "shard"\nranks = 1': "is for several processes; give `ranks` as well",
    "ranks = 2": "the gradient is the same on any number of processes",
    'on = "example"\nranks = 2': "`ranks` is for `on",
    'on = "rank"\nranks = 0': "`ranks` is 0, and must be a whole number of at least 1",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_number_of_processes_that_means_nothing_is_refused(words, tmp_path):
    with pytest.raises(UsageError, match=REFUSED[words]):
        study.parse("mine", PAGE + words + "\n", tmp_path).cells()


def test_arms_are_named_by_the_mistake_and_relative_thresholds_hold_for_them(tmp_path):
    page = PAGE.replace("max_norm = 1.0", "relative = 0.5")
    words = 'on = ["gradient", "rank", "shard"]\nranks = [1, 2, 4]\n'
    with pytest.raises(UsageError, match="clipped as it should be, the gradient is the same"):
        study.parse("mine", page + words, tmp_path).cells()
    tables = [
        page,
        *(
            f'[[clip]]\nname = "norm"\nrelative = 0.5\non = "{on}"\nranks = [2, 4]\n'
            for on in ("rank", "shard")
        ),
    ]
    cells = study.parse("mine", "\n".join(tables), tmp_path).cells()
    assert [cell.arm for cell in cells] == [
        "sgd + norm",
        *(f"sgd + norm(on={on}, ranks={ranks})" for on in ("rank", "shard") for ranks in (2, 4)),
    ]
    assert [cell.pieces for cell in cells] == [0, 2, 4, 0, 0]


def test_a_batch_that_no_such_processes_share_fails_with_a_sentence():
    record = engines.run(job("rank", "norm", "wdbc", 5))
    assert "takes a batch in 5 equal pieces" in record.failure


MISTAKEN = """
[run]
steps = 30
batch = 16
lr = 0.3
seeds = { select = 2, report = 3 }
evaluations = 3
engine = "loop"

[protocol]
grade = "last"

[[workload]]
name = "digits"

[[optimizer]]
name = "sgd"

[[clip]]
name = "none"

[[clip]]
name = "norm"
max_norm = 0.1

[[clip]]
name = "norm"
max_norm = 0.1
on = ["rank", "shard"]
ranks = 4
"""


def test_a_mistake_is_compared_with_the_same_clip_as_it_should_be(tmp_path):
    """With one setting the difference is that of the means over all seeds."""
    asked = study.parse("mine", MISTAKEN, tmp_path)
    store = Store.create(tmp_path / "out", asked.name, asked.text)
    with InProcess() as executor, store.claim():
        options = protocol.Options(throughput=False)
        assert protocol.run(asked, store, options, executor=executor).failed == 0
    cells = Store(store.folder).read("cells").query("lr == 0.3 and threshold == 0.1")
    pairs = evidence.read(Store(store.folder))
    found = mistaken(pairs.axes, pairs.arms, pairs.grade).set_index("on")
    assert list(found["partner"]) == ["sgd + norm"] * 2
    assert list(found["ranks"]) == [4, 4]
    values = cells.pivot_table(index="seed", columns="arm", values="metric_value").astype(float)
    for on, row in found.iterrows():
        gap = values[f"sgd + norm(on={on}, ranks=4)"] - values["sgd + norm"]
        assert row["n"] == len(gap) == 5
        assert row["difference"] == pytest.approx(gap.mean(), abs=1e-12)
    section = distributed.section(pairs)
    words = " ".join(part.words for part in section.parts if isinstance(part, Text))
    assert "before the all-reduce" in words
    assert "of 1 rows" in words
