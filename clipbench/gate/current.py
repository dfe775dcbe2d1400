"""Today's code: for each frozen reference a factory of the same name that does the same work
with clipbench as it is now.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor, nn

from clipbench import engines, fast, registry
from clipbench import feed as feed_
from clipbench.cell import Cell, Part
from clipbench.engines import Components, Job, Trainer
from clipbench.engines import lanes as lanes_
from clipbench.gate import frozen
from clipbench.gate.frozen import fused

Work = Callable[[], object]


def _job(seed: int = 0) -> Job:
    clip = {"max_norm": 1.0}
    parts = Part("wdbc", 1), Part("momentum", 1), Part("norm", 1, clip, "max_norm")
    return Job(
        Cell(*parts, lr=1e-3, seed=seed, steps=frozen.BATCHES, batch=frozen.BATCH, evaluations=1),
        clip,
    )


def _trainer(metered: bool) -> tuple[Trainer, cycle[tuple[Tensor, Tensor]]]:
    job = _job()
    trainer = Trainer(Components.of(job), job.cell, metered)
    return trainer, cycle(list(feed_.batches(trainer.workload, 0, frozen.BATCH, frozen.BATCHES)))


def step() -> Work:
    """A step of the loop engine's trainer, unmeasured."""
    trainer, batches = _trainer(metered=False)
    return lambda: trainer.step(*next(batches))


def measured_step() -> Work:
    """A step of the loop engine's trainer with its measures; what it leaves is let go, as it is
    when rows are made of it.
    """
    trainer, batches = _trainer(metered=True)

    def work() -> object:
        trainer.step(*next(batches))
        return trainer.meter._pending.pop()[0]  # noqa: SLF001 - read as rows, a step would be timed with work of many

    return work


def _params_with_gradients() -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    named = {
        f"p{number}": nn.Parameter(torch.randn(shape, generator=draw))
        for number, shape in enumerate(frozen.SHAPES)
    }
    for param in named.values():
        param.grad = torch.randn(param.shape, generator=draw)
    return named


def value_clip() -> Work:
    """The packaged value clip, as the loop applies it."""
    return engines.clipper(
        registry.build("clip", "value", {"max_value": 0.1}), _params_with_gradients()
    )


def norm_clip() -> Work:
    """The packaged norm clip, as the loop applies it."""
    return engines.clipper(
        registry.build("clip", "norm", {"max_norm": 1.0}), _params_with_gradients()
    )


def fast_value_step() -> Work:
    """`clipbench.fast`'s value clip and step of many small tensors."""
    optimizer = fused.momentum_of_many()
    return lambda: fast.value_clipped_step(optimizer, 0.1)


def _rule(name: str, settings: dict[str, float]) -> Work:
    clip, grads = (
        registry.build("clip", name, settings),
        {label: param.grad for label, param in _params_with_gradients().items()},
    )
    return lambda: clip.update(grads, {}, {})


def value_rule() -> Work:
    """The packaged value clip's pure rule."""
    return _rule("value", {"max_value": 0.1})


def norm_rule() -> Work:
    """The packaged norm clip's pure rule."""
    return _rule("norm", {"max_norm": 1.0})


def adam_rule() -> Work:
    """The packaged Adam's pure rule."""
    rule, named = registry.build("optimizer", "adam", {}), _params_with_gradients()
    grads = {
        name: torch.randn(param.shape, generator=torch.Generator().manual_seed(0))
        for name, param in named.items()
    }
    params = {name: param.detach() for name, param in named.items()}
    state = rule.init(params)

    def work() -> object:
        nonlocal state
        direction, state = rule.update(grads, state, params)
        return direction

    return work


def feed() -> Work:
    """The batches of one seed, from the first."""
    workload = registry.build("workload", "wdbc", {})

    def work() -> object:
        return list(feed_.batches(workload, 0, frozen.BATCH, frozen.FED))[-1][0][0, 0]

    return work


def eight_lanes() -> Work:
    """A measured step of eight lanes of the batched engine."""
    together = lanes_.Lanes([_job() for _ in range(frozen.LANES)])
    inputs, targets = together.draw()

    def work() -> object:
        together.step(inputs, targets)
        return together.pending.pop()[0]

    return work
