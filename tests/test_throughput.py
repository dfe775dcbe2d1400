"""What a clip costs is timed on the real step, side by side with no clip."""

import pytest
import torch
from pages import study_page
from running import called

from clipbench import engines, feed, protocol, registry, schema, study, throughput
from clipbench.cell import Cell, Part
from clipbench.engines import Components, Job
from clipbench.engines.loop import untouched
from clipbench.store import Store
from clipbench.throughput import Step
from clipbench.throughput.footprint import Footprint

PAGE = study_page(
    "wdbc",
    clips={"none": {}, "norm": {"max_norm": [0.1, 1.0, 10.0]}},
    steps=4,
    batch=16,
    evaluations=1,
    lr=0.01,
)

CLIPS = {
    "none": {},
    "value": {"max_value": 0.01},
    "norm": {"max_norm": 0.1},
    "layer": {"max_norm": 0.1},
}


@pytest.fixture(autouse=True, scope="module")
def _packaged():
    registry.load_packaged()


def job(optimizer="sgd", clip="none", workload="wdbc", dtype="float32"):
    threshold = next(iter(CLIPS[clip]), None)
    parts = (Part(workload, 1), Part(optimizer, 1), Part(clip, 1, CLIPS[clip], threshold))
    return Job(Cell(*parts, throughput.LR, 0, 10, 16, dtype=dtype), CLIPS[clip])


def weights(module):
    return [param.detach().clone() for param in module.parameters()]


@pytest.fixture(scope="module")
def rows(_packaged):
    """A bench of three methods and one of two, timed in a worker as ``run`` does it."""
    bench = [job(clip=clip) for clip in ("none", "norm", "value")]
    return called(throughput.measure, [bench, [job("adam"), job("adam", "norm")]])


def of(rows, optimizer, clip):
    return [row for row in rows if (row["optimizer"], row["clip"]) == (optimizer, clip)]


def test_every_method_has_a_row_a_block_and_no_clip_is_one_of_them(rows):
    for optimizer, clips in (("sgd", ("none", "norm", "value")), ("adam", ("none", "norm"))):
        for clip in clips:
            assert [row["block"] for row in of(rows, optimizer, clip)] == list(
                range(throughput.AFTER_RUN.rounds)
            )
    assert len(rows) == 5 * throughput.AFTER_RUN.rounds


def test_blocks_side_by_side_are_as_long_as_each_other(rows):
    """So that the ratio to no clip can be taken within a round, and is a number."""
    for clip in ("norm", "value"):
        for plain, clipped in zip(of(rows, "sgd", "none"), of(rows, "sgd", clip), strict=True):
            assert (plain["block"], plain["steps"]) == (clipped["block"], clipped["steps"])
            assert clipped["seconds"] / plain["seconds"] > 0


def test_rows_name_the_method_and_its_threshold(rows):
    assert {row["threshold"] for row in of(rows, "sgd", "none")} == {None}
    assert {row["threshold"] for row in of(rows, "sgd", "norm")} == {0.1}
    assert {
        (row["problem"], row["device"], row["dtype"], row["batch"], row["implementation"])
        for row in rows
    } == {("wdbc", "cpu", "float32", 16, "torch")}


def test_peak_memory_holds_weights_gradients_and_the_optimizers_state(rows):
    model = feed.model(registry.build("workload", "wdbc", {}), 0)
    size = sum(param.numel() * param.element_size() for param in model.parameters())
    peak = {
        method: {row["peak_bytes"] for row in of(rows, *method)}
        for method in (("sgd", "none"), ("sgd", "norm"), ("adam", "none"))
    }
    assert all(len(values) == 1 for values in peak.values())
    [plain], [clipped], [adam] = peak.values()
    assert plain >= 2 * size
    assert clipped >= plain
    assert adam >= 4 * size


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw"])
def test_the_timed_step_is_the_step_the_curves_are_made_of(optimizer, clip):
    """Bit by bit, after every one of ten steps: what is timed is what was measured."""
    asked = job(optimizer, clip, dtype="float64")
    timed, trainer = Step(asked), engines.Trainer(Components.of(asked), asked.cell)
    workload = trainer.workload
    batches = list(feed.batches(workload, 0, asked.cell.batch, throughput.BATCHES, torch.float64))
    for inputs, targets in batches[:10]:
        with torch.no_grad():
            losses = [
                feed.loss_of(workload, module(inputs), targets)
                for module in (timed.trainer.module, trainer.module)
            ]
        assert torch.equal(*losses)
        timed.once()
        trainer.step(inputs, targets)
        assert all(
            torch.equal(a, b)
            for a, b in zip(weights(timed.trainer.module), weights(trainer.module), strict=True)
        )


def test_the_cycle_of_batches_begins_again():
    step = Step(job())
    drawn = [next(step.batches)[0] for _ in range(2 * throughput.BATCHES)]
    assert all(
        torch.equal(drawn[n], drawn[n + throughput.BATCHES]) for n in range(throughput.BATCHES)
    )


def test_a_block_that_something_else_slowed_is_not_valid(monkeypatch):
    """One planted outlier, at three times its method's median; twice the median is still
    believed.
    """
    calls = {}

    def block(step, steps):
        calls[step] = calls.get(step, 0) + 1
        number = calls[step] - 3  # after the warm-up and the guess of a step's length
        return {7: 3.0, 9: 2.0}.get(number, 1.0) if step.trainer.clip is untouched else 1.5

    monkeypatch.setattr(Step, "block", block)
    monkeypatch.setattr(Step, "footprint", lambda _: Footprint(1))
    rows = throughput.measure([[job(), job(clip="norm")]])
    assert [(row["clip"], row["block"]) for row in rows if not row["valid"]] == [("none", 7)]
    assert {row["seconds"] for row in of(rows, "sgd", "norm")} == {1.5}


def test_the_order_within_a_round_changes(monkeypatch):
    """Else a method would always meet what its neighbour left behind."""
    order = []
    monkeypatch.setattr(Step, "block", lambda step, _: order.append(step) or 1.0)
    monkeypatch.setattr(Step, "footprint", lambda _: Footprint(1))
    throughput.measure([[job(), job(clip="norm"), job(clip="value")]])
    rounds = [tuple(order[start : start + 3]) for start in range(6, len(order), 3)]
    assert len(rounds) == throughput.AFTER_RUN.rounds
    assert all(len(set(one)) == 3 for one in rounds)
    assert len(set(rounds)) == 6


def test_a_bench_is_every_clip_of_one_optimizer_at_its_middle_threshold():
    page = PAGE.replace("lr = 0.01", "lr = [0.01, 0.1]").replace(
        'name = "sgd"', 'name = "sgd"\n[[optimizer]]\nname = "adam"'
    )
    benches = throughput.benches(
        [Job(cell, cell.clip_settings()) for cell in study.parse("tiny", page, None).cells()]
    )
    assert [
        [(job.cell.optimizer.name, job.cell.clip.name) for job in bench] for bench in benches
    ] == [
        [("adam", "none"), ("adam", "norm")],
        [("sgd", "none"), ("sgd", "norm")],
    ]
    assert {job.threshold for bench in benches for job in bench[1:]} == {1.0}
    assert {(job.cell.lr, job.cell.seed) for bench in benches for job in bench} == {
        (throughput.LR, 0)
    }


def test_a_study_without_the_unclipped_arm_is_timed_against_it_all_the_same():
    page = PAGE.replace('name = "none"', 'name = "value"\nmax_value = 0.1')
    (bench,) = throughput.benches(
        [Job(cell, cell.clip_settings()) for cell in study.parse("tiny", page, None).cells()]
    )
    assert [job.cell.clip.name for job in bench] == ["none", "norm", "value"]
    assert bench[0].clip_settings == {}


def test_a_run_times_once_and_a_clip_that_joins_is_timed_beside_the_others(tmp_path):
    def run(text):
        page = study.parse("tiny", text, tmp_path)
        store = Store.create(tmp_path / "tiny", page.name, page.text)
        with store.claim():
            protocol.run(page, store, protocol.Options(workers=1))
        return Store(store.folder).read("throughput")

    first = run(PAGE)
    assert set(first["clip"]) == {"none", "norm"}
    assert set(first["environment"]) == set(
        Store(tmp_path / "tiny").page("environment")["environments"]
    )
    assert len(run(PAGE)) == len(first)
    grown = run(PAGE + '\n[[clip]]\nname = "value"\nmax_value = 0.1\n')
    rounds = [set(block["clip"]) for _, block in grown.groupby("block")]
    assert len(grown) == len(first) + 3 * throughput.AFTER_RUN.rounds
    assert (
        rounds
        == [{"none", "norm"}] * throughput.AFTER_RUN.rounds
        + [{"none", "norm", "value"}] * throughput.AFTER_RUN.rounds
    )


# ------------------------------------------------------------------------------------ the long form

SURVEYED = ["origin", "torch", "loop", "foreach", "fused", "flat"]


def jobs(page=PAGE):
    return [Job(cell, cell.clip_settings()) for cell in study.parse("tiny", page, None).cells()]


@pytest.fixture(scope="module")
def surveyed(_packaged):
    """Every part of the long form for one workload and optimizer, on one thread, with one size
    beside; and what was refused.
    """
    page = PAGE + '\n[[clip]]\nname = "layer"\nmax_norm = 0.1\n'
    parts = throughput.surveys(jobs(page), throughput.sizes_named("1k"), SURVEYED, 1)
    told = [
        called(throughput.carry_out, part, device=part.device, threads=part.threads)
        for part in parts
    ]
    return [row for rows, _ in told for row in rows], [
        sentence for _, refusals in told for sentence in refusals
    ]


def test_the_long_form_times_updates_at_sizes_and_workloads_and_training_steps(surveyed):
    rows, _ = surveyed
    assert {
        (row["part"], row.get("workload"), row["problem"], row["parameters"], row["tensors"])
        for row in rows
    } == {
        ("update", None, "993 in 4 tensors", 993, 4),
        ("update", "wdbc", "wdbc", 6274, 6),
        ("step", "wdbc", "wdbc", 6274, 6),
    }
    for part in ("update", "step"):
        timed = {(row["implementation"], row["clip"]) for row in rows if row["part"] == part}
        assert timed == {(name, clip) for name in SURVEYED for clip in ("none", "norm")} | {
            ("torch", "layer")
        }


def test_every_block_of_the_long_form_has_the_block_without_a_clip_beside_it(surveyed):
    rows, _ = surveyed
    blocks = {}
    for row in rows:
        blocks.setdefault((row["part"], row["problem"], row["implementation"], row["block"]), {})[
            row["clip"]
        ] = row
    assert all({"none", "norm"} <= beside.keys() for beside in blocks.values())
    assert all(len({row["steps"] for row in beside.values()}) == 1 for beside in blocks.values())


def test_every_row_of_the_long_form_fills_the_columns_it_can(surveyed):
    rows, _ = surveyed
    names = {column.name for column in schema.THROUGHPUT} - {"environment"}
    assert all(row.keys() <= names for row in rows)
    assert {row["threads"] for row in rows} == {1}
    assert all(row["peak_bytes"] > 0 and row["seconds"] > 0 for row in rows)
    for row in rows:
        counted = row["part"] == "update" and row["clip"] != "layer"
        assert (row.get("floor_bytes") is not None) == counted
    floors = {
        row["clip"]: row["floor_bytes"] / row["parameters"]
        for row in rows
        if row.get("floor_bytes")
    }
    assert floors == {"none": 12, "norm": 16}


def test_what_has_no_such_implementation_is_told_once_with_its_reason(surveyed):
    _, refusals = surveyed
    assert refusals[:4] == [
        "origin is left out with layer: nobody writes it by hand.",
        "loop is left out with layer: torch has no function of its own for it.",
        "foreach is left out with layer: torch has no function of its own for it.",
        "fused is left out with layer: no fused step takes it.",
    ]
    assert "flat is left out with layer: it is another clip over one flat tensor." in refusals


def test_all_threads_are_a_part_of_their_own_and_their_rows_say_so():
    parts = throughput.surveys(jobs(), throughput.sizes_named("1k"), ["torch"], 2)
    assert [part.threads for part in parts] == [1, 1, 2, 2]
    _, _, sizes, training = parts
    assert called(throughput.carry_out, sizes, threads=2) == ([], [])  # 1k is too few to share
    rows, _ = called(throughput.carry_out, training, threads=2)
    assert {(row["threads"], row["part"]) for row in rows} == {(2, "step")}


def test_a_training_step_takes_the_weights_where_torchs_own_step_takes_them():
    for implementation in [name for name in SURVEYED if name != "torch"]:
        asked = job("momentum", "norm", dtype="float64")
        ours, theirs = Step(asked, implementation), Step(asked)
        for _ in range(5):
            ours.once()
            theirs.once()
        for mine, other in zip(
            weights(ours.trainer.module), weights(theirs.trainer.module), strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_a_run_after_the_long_form_times_nothing_again_and_before_it_is_no_hindrance(tmp_path):
    page = study.parse("tiny", PAGE, tmp_path)
    store = Store.create(tmp_path / "tiny", page.name, page.text)
    with store.claim():
        blocks = protocol.survey(page, store, "study", {}, ["torch"], protocol.Silent())
        timed = Store(store.folder).read("throughput")
        assert len(timed) == blocks
        counts = protocol.run(page, store, protocol.Options(workers=1))
    assert counts.timed == 0
    assert len(Store(store.folder).read("throughput")) == blocks
    assert timed.groupby(["part", "threads", "problem", "clip", "block"]).size().max() == 1


def test_a_run_still_times_its_own_where_only_other_implementations_were(tmp_path):
    page = study.parse("tiny", PAGE, tmp_path)
    store = Store.create(tmp_path / "tiny", page.name, page.text)
    with store.claim():
        protocol.survey(page, store, "study", {}, ["loop"], protocol.Silent())
        assert protocol.run(page, store, protocol.Options(workers=1)).timed == 1
