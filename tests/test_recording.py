"""Watched loops: not one bit of them changes, what is recorded is what the engines record, and
every clip in a wrong place is found.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import clipbench
from clipbench import feed, registry
from clipbench.cell import Cell, Part
from clipbench.engines import loop as engine
from clipbench.engines.record import Components
from clipbench.measures import COLUMNS
from clipbench.schema import Sighting
from clipbench.store import Store

STEPS = 45
Model, Optimizer = nn.Module, torch.optim.Optimizer


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """A warning is a bug of the watch, which would go on without recording."""
    before = [getattr(where, name) for where, name in TAPPED]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, where it compiles
        yield
    assert [getattr(where, name) for where, name in TAPPED] == before


TAPPED = [
    (torch.autograd, "backward"),
    (torch.optim.Optimizer, "zero_grad"),
    (torch.nn.Module, "zero_grad"),
    (torch.nn.utils.clip_grad, "_get_total_norm"),
    (torch.nn.utils.clip_grad, "_clip_grads_with_norm_"),
    (torch, "_foreach_clamp_min_"),
    (torch, "_foreach_clamp_max_"),
    (torch.amp.GradScaler, "scale"),
    (torch.amp.GradScaler, "unscale_"),
    (torch.amp.GradScaler, "step"),
]


def data(steps: int = STEPS, batch: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(0)
    inputs = torch.randn(steps, batch, 12, generator=drawn)
    return [(one, (one[:, 0] > 0).long()) for one in inputs]


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first, second, third = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 2)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


def loss_of(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


# ----------------------------------------------------------------------------------- loops of users


def none(_: nn.Module) -> None: ...


def norm(net: nn.Module) -> None:
    clip_grad_norm_(net.parameters(), 0.3)


def value(net: nn.Module) -> None:
    clip_grad_value_(net.parameters(), 0.01)


def adaptive(net: nn.Module) -> None:
    """By the ratio of norms, and without ``no_grad``, as many a script has it."""
    for one in net.parameters():
        one.grad.mul_((0.01 * one.norm().clamp(min=1e-3) / one.grad.norm()).clamp(max=1))


def replaced(net: nn.Module) -> None:
    for one in net.parameters():
        one.grad = one.grad.clamp(-0.01, 0.01)


def through_data(net: nn.Module) -> None:
    """As in torch's own tutorial on reinforcement learning; no version counter tells of it."""
    for one in net.parameters():
        one.grad.data.clamp_(-0.01, 0.01)


CLIPS = [none, norm, value, adaptive, replaced, through_data]
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "fused": partial(torch.optim.AdamW, lr=0.01, fused=True),
}


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: Callable[[nn.Module], None] = none,
    parts: int = 1,
    steps: int = STEPS,
) -> None:
    batches = iter(data(steps * parts))
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(parts):
            (loss_of(net, next(batches)) / parts).backward()
        clip(net)
        optimizer.step()


def bits(net: nn.Module) -> list[bytes]:
    return [one.detach().numpy().tobytes() for one in net.parameters()]


@pytest.mark.parametrize("exact", [False, True], ids=["sampled", "exact"])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", CLIPS)
def test_a_watched_loop_trains_the_same_weights_to_the_last_bit(
    clip, optimizer, parts, exact, tmp_path
):
    alone, watched = model(), model()
    train(alone, OPTIMIZERS[optimizer](alone.parameters()), clip, parts)
    stepped = OPTIMIZERS[optimizer](watched.parameters())
    with clipbench.watch(watched, stepped, tmp_path / "run", exact=exact):
        train(watched, stepped, clip, parts)
    assert bits(watched) == bits(alone)
    curve = Store(tmp_path / "run").read("curves")
    assert len(curve) == STEPS
    assert set(curve["accumulated"]) == {parts}
    fired = curve["kept"] < 1
    assert fired.mean() > 0.5 if clip is not none else not fired.any()
    assert curve["grad_norm"].isna().sum() <= (clip in (adaptive, replaced, through_data))


@pytest.mark.parametrize(
    ("workload", "clip", "settings"),
    [
        ("wdbc", "norm", {"max_norm": 0.3}),
        ("digits", "value", {"max_value": 0.01}),
        ("temporal-order", "norm", {"max_norm": 0.05}),
        ("digits", "none", {}),
    ],
)
def test_an_exact_watch_records_what_the_engine_records(workload, clip, settings, tmp_path):
    """Of the same loop, the engine's own: not one number differs; those of a watch that compares
    only now and then differ by rounding, where it has any.
    """
    registry.load_packaged()
    made = partial(_trainer, workload, clip, settings)
    for exact in (True, False):
        trainer, batches = made()
        folder = tmp_path / str(exact)
        with clipbench.watch(trainer.module, trainer.optimizer, folder, exact=exact):
            for batch in batches:
                trainer.step(*batch)
        wanted = trainer.meter.rows()
        found = Store(folder).read("curves")[list(COLUMNS)]
        if exact:
            np.testing.assert_array_equal(found.to_numpy(float), wanted)
        else:
            seen = ~found.isna().to_numpy()
            assert seen[:, : COLUMNS.index("cosine")].all()
            gap = np.abs(found.to_numpy(float) - wanted) / np.maximum(np.abs(wanted), 1e-3)
            assert gap[seen].max() < 1e-5


def _trainer(workload: str, clip: str, settings: dict[str, float]) -> tuple[Any, Any]:
    components = Components(
        registry.build("workload", workload, {}),
        registry.build("optimizer", "momentum", {}),
        registry.build("clip", clip, settings),
    )
    cell = Cell(Part(workload, 1), Part("momentum", 1), Part(clip, 1), 0.03, 0, 25, 32)
    trainer = engine.Trainer(components, cell)
    return trainer, feed.batches(components.workload, 0, 32, 25, trainer.dtype, "cpu")


# ------------------------------------------------------------------------------- clips out of place


def sightings(folder: Any) -> dict[str, int]:
    events = Store(folder).read("events")
    return {
        str(kind): int(rows["value"].sum())
        for kind, rows in events.groupby("kind")
        if kind in [*Sighting] and kind != Sighting.CLIP
    }


def scaled(net: nn.Module, optimizer: Any, place: str, clip: Callable[..., None] = norm) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number, batch in enumerate(data()):
        optimizer.zero_grad()
        spoiled = float("inf") if place == "skipped" and number == 7 else 1.0
        scaler.scale(loss_of(net, batch) * spoiled).backward()
        if place != "scaled":
            scaler.unscale_(optimizer)
        clip(net)
        scaler.step(optimizer)
        scaler.update()


def after_step(net: nn.Module, optimizer: Any, clip: Callable[..., None] = norm) -> None:
    for batch in data():
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.step()
        clip(net)


def before_backward(net: nn.Module, optimizer: Any, to_none: bool = True) -> None:
    for batch in data():
        loss = loss_of(net, batch)
        optimizer.zero_grad(set_to_none=to_none)
        norm(net)
        loss.backward()
        optimizer.step()


def in_accumulation(net: nn.Module, optimizer: Any, clip: Callable[..., None] = norm) -> None:
    batches = iter(data(2 * STEPS))
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(2):
            (loss_of(net, next(batches)) / 2).backward()
            clip(net)
        optimizer.step()


def part(net: Any) -> None:
    clip_grad_norm_(net[0].parameters(), 0.1)


def infinite(net: nn.Module) -> None:
    clip_grad_norm_(net.parameters(), float("inf"))


def twice(net: nn.Module) -> None:
    norm(net)
    value(net)


MISUSES: dict[str, tuple[Callable[..., Any], str, int]] = {
    "after the step": (after_step, Sighting.CLIP_AFTER_STEP, STEPS),
    "after the step, by value": (partial(after_step, clip=value), Sighting.CLIP_AFTER_STEP, STEPS),
    "after the step, by hand": (partial(after_step, clip=replaced), Sighting.CLIP_AFTER_STEP, 1),
    "after the step, through data": (
        partial(after_step, clip=through_data),
        Sighting.CLIP_AFTER_STEP,
        1,
    ),
    "before backward": (before_backward, Sighting.CLIP_BEFORE_BACKWARD, STEPS),
    "before backward, of zeros": (
        partial(before_backward, to_none=False),
        Sighting.CLIP_BEFORE_BACKWARD,
        STEPS,
    ),
    "on scaled gradients": (partial(scaled, place="scaled"), Sighting.CLIP_ON_SCALED, STEPS),
    "on scaled gradients, by value": (
        partial(scaled, place="scaled", clip=value),
        Sighting.CLIP_ON_SCALED,
        STEPS,
    ),
    "on scaled gradients, by hand": (
        partial(scaled, place="scaled", clip=replaced),
        Sighting.CLIP_ON_SCALED,
        STEPS,
    ),
    "in accumulation": (in_accumulation, Sighting.CLIP_IN_ACCUMULATION, STEPS),
    "in accumulation, by hand": (
        partial(in_accumulation, clip=replaced),
        Sighting.CLIP_IN_ACCUMULATION,
        STEPS,
    ),
    "in accumulation, through data": (
        partial(in_accumulation, clip=through_data),
        Sighting.CLIP_IN_ACCUMULATION,
        1,
    ),
    "on a part": (lambda net, opt: train(net, opt, part), Sighting.CLIP_ON_PART, STEPS),
    "at infinity": (lambda net, opt: train(net, opt, infinite), Sighting.CLIP_AT_INFINITY, STEPS),
    "twice": (lambda net, opt: train(net, opt, twice), Sighting.CLIP_TWICE, STEPS),
}


@pytest.mark.parametrize("name", MISUSES)
def test_a_clip_out_of_place_is_seen(name, tmp_path):
    loop, kind, least = MISUSES[name]
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with clipbench.watch(net, optimizer, tmp_path / "run"):
        loop(net, optimizer)
    seen = sightings(tmp_path / "run")
    assert set(seen) == {kind}
    assert seen[kind] >= least
    assert len(Store(tmp_path / "run").read("curves")) == STEPS


# ----------------------------------------------------------------------------------- right loops


def accumulated(net: nn.Module, optimizer: Any) -> None:
    train(net, optimizer, norm, parts=3)


def by_model(net: nn.Module, optimizer: Any) -> None:
    """Zeroes through the model, in place."""
    for batch in data():
        net.zero_grad(set_to_none=False)
        loss_of(net, batch).backward()
        norm(net)
        optimizer.step()


def by_closure(net: nn.Module, optimizer: Any) -> None:
    for batch in data():

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            norm(net)
            return loss

        optimizer.step(closure)


def logged(net: nn.Module, optimizer: Any) -> None:
    """Takes the norm for a log, between the clip and the step and after it."""
    for batch in data():
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        norm(net)
        torch.nn.utils.get_total_norm([one.grad for one in net.parameters()])
        optimizer.step()


def each_group(net: Any, optimizer: Any) -> None:
    for batch in data():
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        clip_grad_norm_(net[0].parameters(), 0.1)
        clip_grad_norm_(net[2:].parameters(), 0.2)
        optimizer.step()


def checked(net: nn.Module, optimizer: Any) -> None:
    """Drops a gradient that was only looked at, as a search for a learning rate does."""
    for batch in data():
        loss_of(net, batch).backward()
        norm(net)
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        norm(net)
        optimizer.step()
        optimizer.zero_grad()


def unscaled(net: nn.Module, optimizer: Any) -> None:
    scaled(net, optimizer, "unscaled")


def compiled(net: nn.Module, optimizer: Any) -> None:
    step = torch.compile(optimizer.step, backend="eager")
    for batch in data():
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        norm(net)
        step()


def off(net: nn.Module, optimizer: Any) -> None:
    """A scaler that is turned off, as on a CPU."""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for batch in data():
        optimizer.zero_grad()
        scaler.scale(loss_of(net, batch)).backward()
        scaler.unscale_(optimizer)
        norm(net)
        scaler.step(optimizer)
        scaler.update()


RIGHT: dict[str, Callable[..., None]] = {
    "without a clip": train,
    "by norm": lambda net, optimizer: train(net, optimizer, norm),
    "by value": lambda net, optimizer: train(net, optimizer, value),
    "by hand": lambda net, optimizer: train(net, optimizer, adaptive, 2),
    "after accumulation": accumulated,
    "zeroed in place": by_model,
    "in a closure": by_closure,
    "with a logged norm": logged,
    "each group by itself": each_group,
    "after a dropped gradient": checked,
    "after unscale_": unscaled,
    "with a scaler that is off": off,
    "with a compiled step": compiled,
}


@pytest.mark.parametrize("name", RIGHT)
def test_nothing_is_found_in_a_right_loop(name, tmp_path):
    loop, alone, net = RIGHT[name], model(), model()
    loop(alone, torch.optim.SGD(alone.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with clipbench.watch(net, optimizer, tmp_path / "run"):
        loop(net, optimizer)
    assert bits(net) == bits(alone)
    assert sightings(tmp_path / "run") == {}
    assert len(Store(tmp_path / "run").read("curves")) == STEPS
