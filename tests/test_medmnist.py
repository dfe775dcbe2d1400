"""The workload on MedMNIST's images: what its networks, its inputs and its measures are, and
that a study says what is missing.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import sets
import torch
from click.testing import CliRunner
from pages import study_page
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import nn

from clipbench import cli, datasets, engines, execute, feed, protocol, registry, study
from clipbench.cell import Cell, Part
from clipbench.engines import Components, Job, Trainer, rates
from clipbench.engines.lanes import Lanes
from clipbench.engines.program import NoLanes
from clipbench.errors import UsageError
from clipbench.measures import LOSS
from clipbench.workloads import medmnist

registry.load_packaged()

XRAYS = Path(os.environ.get("CLIPBENCH_DATA", "absent")) / "pneumonia.npz"


def clipbench(*args):
    return CliRunner().invoke(cli.cli, [str(arg) for arg in args], prog_name="clipbench")


def built(**settings):
    return registry.build("workload", "medmnist", settings)


def job(rule, lr, *, seed=0, steps=20, batch=12, dtype="float32", **settings):
    return Job(
        Cell(
            Part("medmnist", 1, settings),
            Part(rule, 1),
            Part("none", 1),
            lr,
            seed,
            steps,
            batch,
            dtype=dtype,
        ),
        {},
    )


@pytest.fixture
def here(tmp_path):
    """The settings of a workload on a tiny file of the named set."""

    def settings(stem="pneumoniamnist", **others):
        return {"dataset": stem, "path": str(sets.write(tmp_path / f"{stem}.npz", stem)), **others}

    return settings


# ----------------------------------------------------------------------------------------- its data


@pytest.mark.parametrize(
    ("stem", "shape"),
    [("pneumoniamnist", (1, 28, 28)), ("pathmnist", (3, 28, 28)), ("octmnist_64", (1, 64, 64))],
)
def test_images_are_scaled_as_medmnists_baseline_scales_them(here, stem, shape):
    """Channels first, divided by 255, minus .5, divided by .5; the labels are whole numbers in a
    row.
    """
    raw, found = sets.arrays(stem), feed.splits(built(**here(stem)), 0)
    for split, key in datasets.SPLITS.items():
        images = raw[f"{key}_images"].reshape(-1, *shape[1:], shape[0])
        expected = (np.moveaxis(images, -1, 1).astype(np.float32) / 255 - 0.5) / 0.5
        assert found[split][0].shape[1:] == shape
        assert found[split][0].is_contiguous()
        np.testing.assert_array_equal(found[split][0].numpy(), expected)
        np.testing.assert_array_equal(found[split][1].numpy(), raw[f"{key}_labels"].ravel())


def test_the_splits_are_the_published_ones_whatever_the_seed(here):
    work = built(**here())
    assert all(
        torch.equal(feed.splits(work, 0)[split][0], feed.splits(work, 1)[split][0])
        for split in datasets.SPLITS
    )


def test_the_file_is_read_once_for_all_networks(here, monkeypatch):
    read = []
    images = datasets.Archive.images
    monkeypatch.setattr(
        datasets.Archive,
        "images",
        lambda archive, split: read.append(split) or images(archive, split),
    )
    settings = here()
    several = [
        feed.splits(built(**settings, network=network), seed)
        for network in ("small", "origin")
        for seed in (0, 1)
    ]
    assert read == ["train", "validation", "test"]
    assert len({splits["train"][0].data_ptr() for splits in several}) == 1


def test_the_reference_is_the_loss_of_the_best_constant_prediction(tmp_path):
    """On training labels of unequal frequency, to nine digits; no other constant does better."""
    labels = np.array([0] * 45 + [1] * 15, np.uint8).reshape(-1, 1)
    work = built(path=str(sets.write(tmp_path / "a.npz", train_labels=labels)))
    targets = feed.splits(work, 0)["train"][1]
    constant = (targets.bincount() / len(targets)).double().log()
    assert work.loss(constant.expand(60, -1), targets).item() == pytest.approx(
        work.reference_loss, rel=1e-9
    )
    assert (
        work.loss((constant + torch.tensor([0.01, 0])).expand(60, -1), targets).item()
        > work.reference_loss
    )


def test_a_target_is_declared_where_one_was_measured(here):
    """For the small network on pneumoniamnist; elsewhere nobody knows, and there is none."""
    assert 0 < built(**here()).target < built(**here()).reference_loss
    assert built(**here(network="origin")).target is None
    assert built(**here("bloodmnist")).target is None


# ------------------------------------------------------------------------------------- its networks


def shapes(network, stem="pneumoniamnist"):
    return [
        tuple(parameter.shape)
        for parameter in feed.model(built(dataset=stem, network=network), 0).parameters()
    ]


def test_small_is_8_thousand_weights():
    assert shapes("small") == [(16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (2, 32 * 7 * 7), (2,)]
    assert shapes("small", "pathmnist_64")[4:] == [(9, 32 * 16 * 16), (9,)]


def test_origin_differs_from_the_workload_origin_only_where_images_and_classes_do():
    ours, theirs = (
        shapes("origin"),
        [
            tuple(one.shape)
            for one in feed.model(registry.build("workload", "origin", {}), 0).parameters()
        ],
    )
    assert ours[:4] + ours[5:6] == theirs[:4] + theirs[5:6]
    assert (ours[4], ours[6]) == ((128, 64 * 12 * 12), (2, 128))
    layers = [type(layer) for layer in feed.model(built(network="origin"), 0)]
    assert layers == [
        type(layer) for layer in feed.model(registry.build("workload", "origin", {}), 0)
    ]


def test_resnet18_has_the_stem_for_small_images():
    """11,173,962 weights for three channels and ten classes, as that network is known; the image
    is halved three times.
    """
    classes = datasets.named("bloodmnist").family.classes
    model = feed.model(built(dataset="bloodmnist", network="resnet18"), 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962 - (
        10 - classes
    ) * (512 + 1)
    seen, images = [], torch.zeros(2, 3, 28, 28)
    for layer in model.eval():
        images = layer(images)
        seen.append(tuple(images.shape[1:]))
    assert seen == [
        *[(64, 28, 28)] * 5,
        *[(128, 14, 14)] * 2,
        *[(256, 7, 7)] * 2,
        *[(512, 4, 4)] * 2,
        (512, 1, 1),
        (512,),
        (classes,),
    ]


def test_a_block_is_two_normalised_convolutions_and_its_short_cut():
    """Written out with torch's functions, in training, where the shape changes and where it does
    not.
    """
    for inner, outer, stride in ((4, 4, 1), (4, 8, 2)):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            block = medmnist.Block(inner, outer, stride).double()
            inputs = torch.randn(5, inner, 6, 6, dtype=torch.float64)
        first, second = (block.straight[at].weight for at in (0, 3))

        def normed(images):
            mean, variance = (
                images.mean((0, 2, 3), keepdim=True),
                images.var((0, 2, 3), correction=0, keepdim=True),
            )
            return (images - mean) / (variance + 1e-5).sqrt()

        inside = normed(nn.functional.conv2d(inputs, first, stride=stride, padding=1)).relu()
        straight = normed(nn.functional.conv2d(inside, second, padding=1))
        across = (
            inputs
            if inner == outer
            else normed(nn.functional.conv2d(inputs, block.across[0].weight, stride=stride))
        )
        torch.testing.assert_close(
            block(inputs), (straight + across).relu(), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("network", ["small", "origin"])
def test_in_lanes_it_takes_the_loops_steps(here, network):
    jobs = [
        job("momentum", 0.01, seed=seed, dtype="float64", **here(network=network))
        for seed in (0, 1)
    ]
    together = Lanes(jobs)
    for _ in range(3):
        together.step(*together.draw())
    rows = together.rows()
    for lane, one in enumerate(jobs):
        trainer = Trainer(Components.of(one), one.cell)
        for batch in feed.batches(
            trainer.workload, one.cell.seed, one.cell.batch, 3, trainer.dtype
        ):
            trainer.step(*batch)
        np.testing.assert_allclose(rows[:, lane, LOSS], trainer.meter.rows()[:, LOSS], rtol=1e-10)


@pytest.mark.usefixtures("costly")
def test_resnet18_runs_in_the_loop_and_says_why_not_in_lanes(here):
    one = job("sgd", 0.01, steps=2, **here(network="resnet18"))
    with pytest.raises(NoLanes, match="changes its buffers while it trains"):
        rates.disagreement(one)
    made = engines.run(one)
    assert made.failure is None
    assert np.isfinite(made.rows).all()


def test_its_first_losses_are_those_of_this_version(here):
    """Else raise its `version`: stored cells would be compared with cells of another
    mathematics.
    """
    one = job("adam", 0.003, dtype="float64", **here())
    trainer = Trainer(Components.of(one), one.cell)
    for batch in feed.batches(trainer.workload, 0, 12, 5, trainer.dtype):
        trainer.step(*batch)
    assert registry.find("workload", "medmnist").version == 1
    first = [
        0.6982319723916638,
        0.6038150141243265,
        0.6625462902179209,
        0.3479577620707395,
        0.4016223028211509,
    ]
    assert trainer.meter.rows()[:, LOSS].tolist() == pytest.approx(first, rel=1e-9)


# ------------------------------------------------------------------------------------- its measures


@pytest.mark.parametrize(("stem", "binary"), [("pneumoniamnist", True), ("bloodmnist", False)])
def test_it_is_judged_as_medmnists_evaluator_judges(here, stem, binary):
    """The evaluator's two functions, on the softmax that the published baseline hands them."""
    made = engines.run(job("adam", 0.003, **here(stem)))
    assert made.failure is None
    trainer = Trainer(Components.of(made.job), made.job.cell)
    for batch in feed.batches(trainer.workload, 0, 12, 20):
        trainer.step(*batch)
    inputs, targets = feed.splits(trainer.workload, 0)["test"]
    scores, true = trainer.module(inputs).detach().double().softmax(1).numpy(), targets.numpy()
    if binary:
        auc, accuracy = (
            roc_auc_score(true, scores[:, -1]),
            accuracy_score(true, scores[:, -1] > 0.5),
        )
    else:
        auc = np.mean([roc_auc_score(true == label, scores[:, label]) for label in range(8)])
        accuracy = accuracy_score(true, scores.argmax(-1))
    found = {one.metric: one.value for one in made.evaluations if one.split == "test"}
    assert found["mean_auc"] == pytest.approx(auc, abs=1e-12)
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.skipif(
    not XRAYS.is_file(),
    reason="CLIPBENCH_DATA has no pneumonia.npz, a balanced subset of PneumoniaMNIST",
)
def test_small_learns_pneumonia_from_real_x_rays():
    """Adam at lr 3e-3, 300 steps of 128: a test AUC above .92 on each of two seeds."""
    for seed in (0, 1):
        made = engines.run(job("adam", 0.003, seed=seed, steps=300, batch=128, path=str(XRAYS)))
        assert made.failure is None
        assert made.verdict.outcome == "learned"
        assert made.evaluations[-2][1:3] == ("test", "mean_auc")
        assert made.evaluations[-2][3] > 0.92


# -------------------------------------------------------------------------------------- its studies


@pytest.mark.parametrize("command", ["plan", "run"])
def test_without_its_data_the_packaged_study_says_how_to_get_it(monkeypatch, tmp_path, command):
    """One sentence, exit 2, no folder and no worker."""
    monkeypatch.setenv("CLIPBENCH_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr(execute.Local, "submit", lambda *_: pytest.fail("a worker was started"))
    done = clipbench(command, "medmnist", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"clipbench: {tmp_path}")
    assert done.stderr.endswith(
        "`clipbench data fetch pneumoniamnist` fetches it, or give its file as `path`.\n"
    )
    assert done.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_the_packaged_study_is_the_published_protocol(data_folder):
    """Adam at 1e-3, batch 128, 100 epochs of the published 4,708 images, each followed by an
    evaluation; ResNet-18.
    """
    found = protocol.plan(study.read("medmnist")).cells
    assert {(cell.workload.settings["network"], cell.batch, cell.steps) for cell in found} == {
        ("resnet18", 128, 100 * (4708 // 128))
    }
    assert engines.record.stops(found[0]) == list(range(36, 3601, 36))
    assert ("adam(schedule=step)", 1e-3) in {(cell.arm, cell.lr) for cell in found}
    assert set(protocol.headline(found).values()) <= {cell.arm for cell in found}


PAGE = study_page("medmnist", steps=6, batch=8, evaluations=2, lr=0.01, report=1, engine="loop")


def test_a_study_on_a_file_of_ones_own_runs_and_a_stored_row_repeats(here, tmp_path):
    path = here()["path"]
    (tmp_path / "mine.toml").write_text(
        PAGE.replace('"medmnist"', f'"medmnist"\npath = {json.dumps(path)}')
    )
    done = clipbench(
        "run", tmp_path / "mine.toml", "--out", tmp_path / "out", "--no-throughput", "--workers", 1
    )
    assert done.exit_code == 0, done.stderr
    components = json.loads((tmp_path / "out" / "components.json").read_text())["workloads"]
    [entry] = components.values()
    assert (entry["metric"], entry["other_metrics"]) == ("mean_auc", {"accuracy": True})
    assert entry["reference_loss"] == pytest.approx(np.log(2))
    cell = next(iter(protocol.plan(study.read(str(tmp_path / "mine.toml"))).cells)).id
    Path(path).unlink()
    done = clipbench("replay", tmp_path / "out", cell)
    assert done.exit_code == 2
    assert "there is no such file" in done.stderr


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dataset": "pneumonia"}, "Did you mean pneumoniamnist?"),
        ({"dataset": "chestmnist"}, "chestmnist is for multi-label"),
        ({"dataset": "dermamnist"}, "CC BY-NC 4.0"),
        ({"path": "nowhere.npz"}, "nowhere.npz: there is no such file"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_runs(settings, sentence):
    with pytest.raises(UsageError, match=sentence.replace("?", r"\?")):
        registry.ready("medmnist", settings)
