"""The claim that a component works on a CUDA device, judged without one: on a device that is
pretended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from clipbench import feed, optimizers, trees
from clipbench.conformance.findings import Doubt, Fault, told, under
from clipbench.conformance.lanes import job_of
from clipbench.conformance.pretended import Device, Misplaced, Waited, pretended
from clipbench.conformance.settings import examples
from clipbench.conformance.steps import parameters, start, tree, update
from clipbench.engines import Components, Trainer, failures
from clipbench.trees import Tree

FREE = 2  # steps in which the host may wait: what is made at the first one is kept
LR = 0.01


def works(cls: type[Any]) -> None:
    """Steps with tensors on a device: none meets a tensor of the CPU, and none lets the host wait
    after the first two.

    :raises Doubt: one waits, or what it asks of a device needs a real one.
    """
    with pretended() as device:
        if cls.kind == "workload":
            _workload(cls, device)
            return
        doubts = list[Doubt]()
        for settings in examples(cls):
            with under(settings):
                for hook, steps in (("update", _rule), ("clip_", _in_place), ("torch", _torch)):
                    try:
                        if hasattr(cls, hook):
                            steps(cls(**settings), device)
                    except Doubt as doubt:
                        doubts.append(doubt)
        if doubts:
            raise doubts[0]


def _rule(component: Any, device: Device) -> None:
    params = _there(tree("params", torch.float32))
    with _judged():
        state = start(component, params)

    def step(number: int) -> None:
        nonlocal state
        grads = given[number]
        result, state = update(component, grads, state, params)
        if not all(leaf.is_cuda for leaf in result.values()):
            raise Fault("with its tensors on a CUDA device, update returns tensors of the CPU")

    given = [_there(tree(f"grads {number}", torch.float32)) for number in range(FREE + 1)]
    _steps(step, device)


def _in_place(component: Any, device: Device) -> None:
    params = _parameters()

    def step(number: int) -> None:
        for param, grad in zip(params.values(), given[number], strict=True):
            param.grad = grad
        component.clip_(list(params.values()))

    given = _gradients()
    _steps(step, device)


def _torch(component: Any, device: Device) -> None:
    params = _parameters()
    with _judged():
        optimizer = optimizers.torch_optimizer(component, list(params.values()), LR, params)

    def step(number: int) -> None:
        for param, grad in zip(params.values(), given[number], strict=True):
            param.grad = grad
        optimizer.step()

    given = _gradients()
    _steps(step, device)


def _workload(cls: type[Any], device: Device) -> None:
    job = job_of(cls, "sgd", "none", {})
    cell = replace(job.cell, device="cuda", dtype="float32")
    with _judged(), trees.seeded(cls.name, 0, "training"):
        trainer = Trainer(Components.of(replace(job, cell=cell)), cell)
        batches = feed.batches(trainer.workload, 0, cell.batch, FREE + 1, trainer.dtype, "cuda")
        given = list(batches)
        _steps(lambda number: trainer.step(*given[number]), device)
        trainer.module.eval()
        for split in feed.SPLITS:
            inputs, _ = feed.splits(trainer.workload, 0, trainer.dtype, "cuda")[split]
            trainer.module(inputs[: cell.batch])


def _steps(step: Callable[[int], None], device: Device) -> None:
    """Some steps; the last must not let the host wait."""
    with _judged():
        for number in range(FREE):
            step(number)
        device.strict = True
        try:
            step(FREE)
        finally:
            device.strict = False


@contextmanager
def _judged() -> Iterator[None]:
    """What goes wrong inside, as a finding."""
    try:
        yield
    except Waited as error:
        raise Doubt(
            f"at every step {_at(error)}: on CUDA training would stand still meanwhile, and such "
            f"a step has no lanes; say it with torch.where and the like, and read no values"
        ) from error
    except (Misplaced, TypeError) as error:
        if isinstance(error, TypeError) and "device type tensor to numpy" not in str(error):
            raise
        raise Fault(
            f"with its tensors on a CUDA device {_at(error)}; make what it keeps where its "
            f"inputs are: `torch.zeros_like(param)`, `device=grad.device`, or a buffer"
        ) from error
    except AssertionError as error:
        if "not compiled with CUDA" not in str(error):
            raise
        raise Doubt(f"this needs a real CUDA device to be judged ({told(error)})") from error


def _at(error: Exception) -> str:
    """What a device said, and where."""
    said = str(error).removeprefix("pretended CUDA: ")
    place = failures.place(error)
    return f"{said}{f', at {place}' if place else ''}"


def _there(some: Tree) -> Tree:
    return {name: leaf.to("cuda") for name, leaf in some.items()}


def _parameters() -> dict[str, nn.Parameter]:
    return {
        name: nn.Parameter(param.detach().float().to("cuda"))
        for name, param in parameters("params").items()
    }


def _gradients() -> list[list[Tensor]]:
    """The gradients of each step, in the order of the parameters."""
    return [
        pytree.tree_leaves(_there(tree(f"grads {number}", torch.float32)))
        for number in range(FREE + 1)
    ]
