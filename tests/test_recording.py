"""Watched loops: not one bit of them changes, what is recorded is what the engines record, and
every clip in a wrong place is found.
"""

from __future__ import annotations

import errno
import gc
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
from clipbench.analysis.watched import runs
from clipbench.cell import Cell, Part
from clipbench.engines import loop as engine
from clipbench.engines.record import Components
from clipbench.errors import UsageError
from clipbench.measures import COLUMNS
from clipbench.recording import taps, watching
from clipbench.recording.compared import Comparison
from clipbench.recording.gradients import Gradients
from clipbench.report.watched import diagnosis
from clipbench.schema import Sighting
from clipbench.store import Store, growing

STEPS = 45


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


SEEN = (Sighting.CLIP, Sighting.CHANGE, Sighting.DROPPED)  # what is nothing wrong


def sightings(folder: Any) -> dict[str, int]:
    events = Store(folder).read("events")
    return {
        str(kind): int(rows["value"].sum())
        for kind, rows in events.groupby("kind")
        if kind in [*Sighting] and kind not in SEEN
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
    # that after the last step is told by no further step
    "after the step": (after_step, Sighting.CLIP_AFTER_STEP, STEPS - 1),
    "after the step, by value": (
        partial(after_step, clip=value),
        Sighting.CLIP_AFTER_STEP,
        STEPS - 1,
    ),
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


# --------------------------------------------------------------------------- several, and strange


def test_two_optimizers_have_a_record_each(tmp_path):
    """As a generator and a discriminator have: a backward pass counts for those it concerns."""
    nets = [model(), model()]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    with clipbench.watch(nets[0], optimizers, tmp_path / "run"):
        for number, batch in enumerate(data()):
            for net, optimizer in list(zip(nets, optimizers, strict=True))[: 1 + number % 2]:
                optimizer.zero_grad()
                loss_of(net, batch).backward()
                norm(net)
                optimizer.step()
    cells = Store(tmp_path / "run").read("cells").sort_values("attempt")
    assert list(cells["steps"]) == [STEPS, STEPS // 2]
    assert sightings(tmp_path / "run") == {}


def test_a_group_that_is_added_is_watched_as_well(tmp_path):
    net = model()
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    with clipbench.watch(net, optimizer, tmp_path / "run"):
        for number, batch in enumerate(data()):
            if number == 10:
                optimizer.add_param_group({"params": net[2].parameters()})
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            clip_grad_norm_(net[:3].parameters(), 0.01)
            optimizer.step()
    curve = Store(tmp_path / "run").read("curves")
    np.testing.assert_allclose((curve["kept"] * curve["grad_norm"])[11:], 0.01, rtol=1e-3)


def test_a_clip_inside_of_the_step_is_seen(tmp_path):
    class Clipped(torch.optim.SGD):
        def step(self, closure=None):
            clip_grad_norm_(self.param_groups[0]["params"], 0.01)
            return super().step(closure)

    net = model()
    optimizer = Clipped(net.parameters(), lr=0.1)
    with clipbench.watch(net, optimizer, tmp_path / "run"):
        train(net, optimizer)
    curve = Store(tmp_path / "run").read("curves")
    assert len(curve) == STEPS
    np.testing.assert_allclose(curve["kept"] * curve["grad_norm"], 0.01, rtol=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_is_told_and_takes_no_row(fused, tmp_path):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
    with clipbench.watch(net, optimizer, tmp_path / "run"):
        scaled(net, optimizer, "scaled" if fused else "skipped", none if fused else norm)
        if fused:
            scaled(net, optimizer, "skipped", none)
    steps = 2 * STEPS - 1 if fused else STEPS - 1
    curve = Store(tmp_path / "run").read("curves")
    assert len(curve) == steps
    assert curve["grad_norm"].max() < 5  # and not a thousand times as much
    assert sightings(tmp_path / "run") == {Sighting.SKIPPED_STEP: 1}


def test_an_infinite_element_is_no_norm_that_overflows(tmp_path):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with clipbench.watch(net, optimizer, tmp_path / "run"):
        for factor in (1.0, 1e30, float("inf")):
            optimizer.zero_grad()
            (loss_of(net, data()[0]) * factor).backward()
            norm(net)
            optimizer.step()
    norms = Store(tmp_path / "run").read("curves")["grad_norm"].to_numpy(float, na_value=-1.0)
    assert np.isfinite(norms[0])
    assert np.isinf(norms[1])
    assert np.isnan(norms[2])


# ---------------------------------------------------------------------------------- nothing remains


def test_after_ten_watches_and_an_exception_everything_is_as_it_was(tmp_path):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for number in range(10):
        with clipbench.watch(net, optimizer, tmp_path / str(number)):
            train(net, optimizer, norm, steps=2)

    def fails() -> None:
        with clipbench.watch(net, optimizer, tmp_path / "x"):
            train(net, optimizer, steps=1)
            raise RuntimeError("of the loop")

    with pytest.raises(RuntimeError, match="of the loop"):
        fails()
    assert len(Store(tmp_path / "x").read("curves")) == 1
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not taps._LISTENERS


def test_nothing_leaks_over_many_steps(tmp_path):
    """Tensors that live and memory that is traced stay the same but for the numbers of a step."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    batch, counted = data(1)[0], []
    with clipbench.watch(net, optimizer, tmp_path / "run"):
        for number in range(3000):
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            value(net)
            optimizer.step()
            if number % 1000 == 500:
                gc.collect()
                counted.append(sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()))
    assert len(set(counted)) == 1
    assert Store(tmp_path / "run").read("cells")["steps"].item() == 3000


def test_a_killed_training_loses_a_block_at_most(tmp_path):
    """Blocks are joined as a counter carries: few files, every step once."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    batch = data(1)[0]
    watch = clipbench.watch(net, optimizer, tmp_path / "run").start()
    for number in range(5300):
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.step()
        if number == 5100:  # as a kill would leave it
            held = Store(tmp_path / "run")
            curve = held.read("curves").sort_values("step")
            files = held.reader.files("curves")
            assert held.problems() == []
    watch.stop()
    assert list(curve["step"]) == list(range(5100))
    assert len(files) == 2  # of four blocks and of two, of which the first one is short
    assert len(Store(tmp_path / "run").read("curves")) == 5300
    assert Store(tmp_path / "run").problems() == []


def test_a_second_training_in_the_same_folder_is_kept_beside_the_first(tmp_path):
    for _ in range(2):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with clipbench.watch(net, optimizer, tmp_path / "run"):
            train(net, optimizer, steps=3)
    store = Store(tmp_path / "run")
    assert sorted(store.read("cells")["attempt"]) == [1, 2]
    assert len(store.read("curves")) == 6
    assert store.problems() == []


# -------------------------------------------------------------------------------------- wrong use


def test_what_cannot_be_watched_is_refused_in_a_sentence(tmp_path):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="LBFGS takes many gradients"):
        clipbench.watch(net, torch.optim.LBFGS(net.parameters()))
    with pytest.raises(UsageError, match=r"Sequential is no torch.optim.Optimizer"):
        clipbench.watch(net, net)
    with (
        clipbench.watch(net, optimizer, tmp_path / "one"),
        pytest.raises(UsageError, match="is being watched already"),
    ):
        clipbench.watch(net, optimizer, tmp_path / "two")
    Store.create(tmp_path / "study", "study", "title = 'A study'\n")
    with pytest.raises(UsageError, match='holds the study "study"'):
        clipbench.watch(net, optimizer, tmp_path / "study").start()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UsageError, match="not empty and holds no study"):
        clipbench.watch(net, optimizer, tmp_path / "other").start()
    clipbench.watch(net, optimizer, tmp_path / "after").start().stop()


def test_a_loop_without_steps_and_steps_without_gradients_are_told(tmp_path):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with clipbench.watch(net, optimizer, tmp_path / "none"):
        pass
    assert [one.name for one in runs(Store(tmp_path / "none"))[0].findings()] == ["no_step"]
    with clipbench.watch(net, optimizer, tmp_path / "empty"):
        optimizer.step()
    assert sightings(tmp_path / "empty") == {Sighting.NO_GRADIENT: 1}


def test_a_full_disk_ends_no_training_and_what_was_written_stays(tmp_path, monkeypatch):
    alone, net = model(), model()
    train(alone, torch.optim.SGD(alone.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    written, left = growing.write_table, [3]

    def full(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(*args, **kwargs)

    monkeypatch.setattr(growing, "write_table", full)
    monkeypatch.setattr(watching, "BLOCK", 10)
    with (
        pytest.warns(UserWarning, match="No space left on device.*training goes on") as told,
        clipbench.watch(net, optimizer, tmp_path / "run"),
    ):
        train(net, optimizer)
    assert len(told) == 1
    assert bits(net) == bits(alone)
    store = Store(tmp_path / "run")
    assert 0 < len(store.read("curves")) < STEPS
    assert store.problems() == []


def test_a_watcher_without_memory_ends_no_training(tmp_path, monkeypatch):
    def full(_: Comparison) -> None:
        raise torch.OutOfMemoryError("of the watcher")

    alone, net = model(), model()
    train(alone, torch.optim.SGD(alone.parameters(), lr=0.1), value)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monkeypatch.setattr(Comparison, "clipped", full)
    with clipbench.watch(net, optimizer, tmp_path / "run", exact=True):
        train(net, optimizer, value)
    assert bits(net) == bits(alone)
    curve = Store(tmp_path / "run").read("curves")
    assert len(curve) == STEPS
    assert curve["kept"].notna().sum() >= STEPS - 1


def test_a_bug_of_ours_ends_no_training_and_is_told_with_its_traceback(tmp_path, monkeypatch):
    alone, net = model(), model()
    train(alone, torch.optim.SGD(alone.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with clipbench.watch(net, optimizer, tmp_path / "run"):
        monkeypatch.setattr(Gradients, "norm", lambda _: 1 / 0)
        with pytest.warns(UserWarning, match="(?s)please report this.*ZeroDivisionError"):
            train(net, optimizer)
    assert bits(net) == bits(alone)


# ---------------------------------------------------------------------- what is no clip of the loop


def own_mean(net: nn.Module) -> None:
    for one in net.parameters():
        one.grad.div_(4)


def decayed(net: nn.Module) -> None:
    for one in net.parameters():
        one.grad.add_(one.detach(), alpha=0.1)


def test_a_mean_of_the_loops_own_is_part_of_what_the_clip_is_handed(tmp_path):
    net, norms = model(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def clip(net: nn.Module) -> None:
        own_mean(net)
        norms.append(float(clip_grad_norm_(net.parameters(), 0.1)))

    with clipbench.watch(net, optimizer, tmp_path / "run"):
        train(net, optimizer, clip)
    [found] = runs(Store(tmp_path / "run"))
    np.testing.assert_allclose(found.curve["grad_norm"], norms, rtol=1e-6)
    np.testing.assert_array_equal(found.fired, np.array(norms) > 0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (own_mean, "multiplies every gradient by 0.25"),
        (adaptive, "Its own code changes the gradient in 100 %"),
        (
            lambda net: [one.grad.add_(one.detach(), alpha=0.1) for one in net.parameters()],
            "changes",
        ),
    ],
)
def test_a_change_that_is_no_clip_is_not_called_one(change, said, tmp_path):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with clipbench.watch(net, optimizer, tmp_path / "run"):
        train(net, optimizer, change)
    [found] = runs(Store(tmp_path / "run"))
    assert found.findings() == []
    assert said in diagnosis(found)[0].words


def test_a_clip_of_a_later_loop_is_not_the_first_ones(tmp_path):
    """As after a search for a learning rate, whose optimizer is still alive."""
    net = model()
    finder, optimizer = (torch.optim.SGD(net.parameters(), lr=0.1) for _ in range(2))
    with clipbench.watch(net, [finder, optimizer], tmp_path / "run"):
        train(net, finder, steps=5)
        train(net, optimizer, norm)
    first, second = runs(Store(tmp_path / "run"))
    assert first.clips == []
    assert first.findings() == []
    assert len(second.clips) == 1


def test_a_clip_that_is_handed_no_parameter_of_the_optimizer_is_named(tmp_path):
    used, net, other = model().parameters(), model(), model()
    for number, params in enumerate((other.parameters(), list(used)[:0])):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with clipbench.watch(net, optimizer, tmp_path / str(number)):
            train(net, optimizer, lambda _, params=params: clip_grad_norm_(list(params), 1.0))
        [finding] = runs(Store(tmp_path / str(number)))[0].findings()
        assert finding.name == Sighting.CLIP_MISSED


def test_hooks_and_dropped_gradients_are_told(tmp_path):
    net = model()
    net[0].weight.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with clipbench.watch(net, optimizer, tmp_path / "run"):
        for number, batch in enumerate(data()):
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            if number % 10 != 5:
                optimizer.step()
    [found] = runs(Store(tmp_path / "run"))
    assert [one.name for one in found.findings()] == ["hooked"]
    assert found.facts()["dropped"] == 4
    assert "dropped 4 gradients" in diagnosis(found)[2].words
