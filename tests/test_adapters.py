"""The adapters of `clipbench.watch`, each with the real library: the same weights, the right rows,
and the clips that the library's own places spoil.

A library that is not installed skips its tests: `tox -e watch` installs them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

import clipbench
from clipbench.analysis.watched import AT_DEFAULT, Run, runs
from clipbench.errors import UsageError
from clipbench.schema import Sighting
from clipbench.store import Store

BATCH, STEPS = 32, 8


pytestmark = pytest.mark.usefixtures("foreign")


def data() -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH * STEPS, 12, generator=drawn)
    return inputs, (inputs[:, 0] > 0).long()


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))


def bits(net: nn.Module) -> list[bytes]:
    return [one.detach().numpy().tobytes() for one in net.parameters()]


def run(folder: Path | str) -> Run:
    return runs(Store(folder))[-1]


def names(folder: Path | str) -> set[str]:
    return {one.name for one in run(folder).findings()}


def batches() -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), BATCH)


# ------------------------------------------------------------------------------------- Lightning


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"gradient_clip_val": 0.1}, STEPS),
        ({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, STEPS),
        ({"gradient_clip_val": 0.1, "accumulate_grad_batches": 2}, STEPS // 2),
        ({"gradient_clip_val": 0.1, "precision": "bf16-mixed"}, STEPS),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_the_same_and_its_clip_is_seen(settings, steps):
    lightning = pytest.importorskip("lightning")
    from clipbench.recording.adapters.lightning import Watch

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    def train(*callbacks: Any) -> nn.Module:
        module = Module()
        lightning.Trainer(
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            callbacks=list(callbacks),
            **settings,
        ).fit(module, batches())
        return module

    alone, watched = train(), train(Watch("runs/mine"))
    assert bits(watched) == bits(alone)
    curve = run("runs/mine").curve
    assert len(curve) == steps
    assert set(curve["threshold"]) == {settings["gradient_clip_val"]}
    assert (curve["kept"] < 1).all()
    if "gradient_clip_algorithm" not in settings:
        np.testing.assert_allclose(curve["kept"] * curve["grad_norm"], 0.1, rtol=1e-4)
    assert not names("runs/mine") - {"always_fired"}


# ------------------------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"max_grad_norm": 0.1}, set()),
        ({}, {AT_DEFAULT}),
        ({"max_grad_norm": 0}, {str(Sighting.CLIP_AT_INFINITY)}),
        ({"max_grad_norm": 0.1, "gradient_accumulation_steps": 2}, set()),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trains_the_same_and_its_habits_are_named(settings, found):
    transformers = pytest.importorskip("transformers")
    from clipbench.recording.adapters.transformers import Watch

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = [{"x": x, "labels": y} for x, y in zip(*data(), strict=True)]

    def train(*callbacks: Any) -> nn.Module:
        net = Wrapped()
        arguments = transformers.TrainingArguments(
            "hf",
            max_steps=6,
            per_device_train_batch_size=BATCH,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=5,
            **settings,
        )
        trainer = transformers.Trainer(
            net, arguments, train_dataset=rows, callbacks=list(callbacks)
        )
        trainer.train()
        logs.append(trainer.state.log_history)
        return net

    logs: list[Any] = []
    alone, watched = train(), train(Watch("runs/mine"))
    assert bits(watched) == bits(alone)
    curve = run("runs/mine").curve
    assert len(curve) == 6
    logged = [one["grad_norm"] for one in logs[1] if "grad_norm" in one]
    np.testing.assert_allclose(curve["grad_norm"], logged, rtol=1e-3)
    assert [one["clip/grad_norm"] for one in logs[1] if "loss" in one] == pytest.approx(
        list(curve["grad_norm"]), rel=1e-5
    )
    assert names("runs/mine") - {"always_fired", "never_fired"} == found


@pytest.mark.parametrize(
    ("place", "parts", "found"),
    [("right", 1, set()), ("right", 2, set()), ("always", 2, {Sighting.CLIP_IN_ACCUMULATION})],
)
def test_accelerate_trains_the_same_and_a_clip_in_accumulation_is_found(place, parts, found):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState

    def train(watch: Callable[..., Any] | None) -> nn.Module:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=parts)
        net = model()
        made = torch.optim.SGD(net.parameters(), lr=0.1)
        torch.manual_seed(2)
        net, optimizer, loader = accelerator.prepare(net, made, batches())
        if watch:
            watch = watch(net, optimizer, "runs/mine").start()
        for inputs, targets in loader:
            with accelerator.accumulate(net):
                accelerator.backward(nn.functional.cross_entropy(net(inputs), targets))
                if place == "always" or accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
        if watch:
            watch.stop()
        return net

    alone, watched = train(None), train(clipbench.watch)
    assert bits(watched) == bits(alone)
    assert len(run("runs/mine").curve) == STEPS // parts
    assert names("runs/mine") - {"always_fired"} == found


# ------------------------------------------------------------------------------- MONAI and Ignite


def _monai(parts: int, handlers: Callable[[nn.Module, Any], list[Any]]) -> tuple[nn.Module, Any]:
    engines = pytest.importorskip("monai.engines")
    pytest.importorskip("ignite")
    rows = [{"image": x, "label": y} for x, y in zip(*data(), strict=True)]
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = engines.SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=torch.utils.data.DataLoader(rows, BATCH),
        network=net,
        optimizer=optimizer,
        loss_function=nn.functional.cross_entropy,
        accumulation_steps=parts,
        train_handlers=handlers(net, optimizer),
    )
    return net, trainer


class _Documented:
    """A clip at MONAI's only event between a backward pass and a step."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def attach(self, engine: Any) -> None:
        from monai.engines.utils import IterationEvents

        engine.add_event_handler(
            IterationEvents.BACKWARD_COMPLETED,
            lambda _: clip_grad_norm_(self.net.parameters(), 0.1),
        )


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.filterwarnings("ignore")
def test_monai_trains_the_same_and_its_event_is_found_wrong_under_accumulation(parts):
    pytest.importorskip("ignite")
    from clipbench.recording.adapters.ignite import Watch

    alone, trainer = _monai(parts, lambda net, _: [_Documented(net)])
    trainer.run()
    watched, trainer = _monai(
        parts, lambda net, opt: [Watch(net, opt, "runs/mine"), _Documented(net)]
    )
    trainer.run()
    assert bits(watched) == bits(alone)
    assert len(run("runs/mine").curve) == STEPS // parts
    wrong = {Sighting.CLIP_IN_ACCUMULATION} if parts == 2 else set()
    assert names("runs/mine") - {"always_fired"} == wrong


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.filterwarnings("ignore")
def test_clip_for_monai_clips_the_whole_gradient_once_an_update(parts):
    """The witness is a plain loop that accumulates, clips and steps."""
    pytest.importorskip("ignite")
    from clipbench.recording.adapters.ignite import Clip, Watch

    net, trainer = _monai(
        parts, lambda net, opt: [Watch(net, opt, "runs/mine"), Clip(opt, max_norm=0.1)]
    )
    trainer.run()
    witness = model()
    optimizer = torch.optim.SGD(witness.parameters(), lr=0.1)
    loader = iter(batches())
    for _ in range(STEPS // parts):
        optimizer.zero_grad()
        for _ in range(parts):
            inputs, targets = next(loader)
            (nn.functional.cross_entropy(witness(inputs), targets) / parts).backward()
        clip_grad_norm_(witness.parameters(), 0.1)
        optimizer.step()
    assert bits(net) == bits(witness)
    assert names("runs/mine") - {"always_fired"} == set()
    assert not optimizer._optimizer_step_pre_hooks


def test_clip_divides_by_the_scale_that_a_fused_optimizer_undoes_later():
    ignite = pytest.importorskip("ignite.engine")
    from clipbench.recording.adapters.ignite import Clip, Watch

    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def update(_: Any, batch: Any) -> None:
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(net(batch[0]), batch[1])).backward()
        scaler.step(optimizer)
        scaler.update()

    engine = ignite.Engine(update)
    Watch(net, optimizer, "runs/mine").attach(engine)
    Clip(optimizer, max_norm=0.1).attach(engine)
    engine.run(batches())
    curve = run("runs/mine").curve
    assert len(curve) == STEPS
    np.testing.assert_allclose(curve["kept"] * curve["grad_norm"], 0.1, rtol=1e-3)


def test_clip_takes_one_threshold():
    pytest.importorskip("ignite")
    from clipbench.recording.adapters.ignite import Clip

    optimizer = torch.optim.SGD(model().parameters(), lr=0.1)
    for wrong in ({}, {"max_norm": 1.0, "max_value": 1.0}, {"max_norm": 0.0}):
        with pytest.raises(UsageError, match="either max_norm or max_value"):
            Clip(optimizer, **wrong)


# ------------------------------------------------------------------------------------------ nnU-Net


@pytest.mark.filterwarnings("ignore")
def test_the_step_of_nnunet_trains_the_same_and_its_clip_never_fires():
    """Its own `train_step`, with a small network in place of the U-Net, and the folder and the
    optimizer that its trainer would have.
    """
    pytest.importorskip("nnunetv2")
    from clipbench.recording.adapters.nnunet import WatchedTrainer

    def train(watched: bool) -> nn.Module:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
        trainer = object.__new__(WatchedTrainer)
        trainer.device, trainer.network, trainer.grad_scaler = torch.device("cpu"), net, None
        trainer.output_folder = "."
        trainer.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.99, nesterov=True)
        trainer.loss = lambda output, target: nn.functional.cross_entropy(output, target[:, 0])
        if watched:
            trainer.watch_training()
        drawn = torch.Generator().manual_seed(3)
        for _ in range(STEPS):
            batch = torch.randn(2, 1, 8, 8, generator=drawn)
            trainer.train_step({"data": batch, "target": (batch > 0).long()})
        if watched:
            trainer.watch.stop()
        return net

    assert bits(train(True)) == bits(train(False))
    found = run("watched")
    assert len(found.curve) == STEPS
    assert set(found.curve["threshold"]) == {12}
    assert {"never_fired", AT_DEFAULT} == {one.name for one in found.findings()}
