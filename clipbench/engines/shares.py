"""Whether a batch may be taken in parts: what they add up to is the loss and the gradient of the
whole, or the cell is refused.

A plain mean over the examples is the sum over the parts, each times its share of the examples. This
does not hold for a loss that divides by something else, such as the weights of its classes or the
number of labels that count, nor for a model that mixes examples, as BatchNorm does: in parts,
another problem would be trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from clipbench import feed, trees
from clipbench.cell import Cell
from clipbench.errors import UsageError
from clipbench.vocabulary import APART, RANK

BATCHES = 3  # looked at: a rare class, or a label that is left out, is not in every one
SEED = 0
NO_MEAN = "its loss is no mean over examples"
MIXES = (
    "its model has BatchNorm, whose statistics are those of the batch, so that a part of it has "
    "another loss"
)
# In float64, in which no difference is mere rounding; in float32 if the workload knows no other
# dtype.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


class Expected(TorchDispatchMode):
    """A mode in which every random number is its mean, so that dropout makes no difference
    between two passes.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name.partition("::")[2]  # noqa: SLF001 - torch has no public word for it
        drawn = func(*args, **(kwargs or {}))
        if name in ("native_dropout", "_fused_dropout"):
            return args[0].clone(), torch.ones_like(drawn[1])
        if name == "bernoulli":
            return drawn.copy_(args[0]) if len(args) == 1 else drawn.fill_(args[1])
        if name == "bernoulli_":
            chance = args[1] if len(args) > 1 else 0.5
            return drawn.copy_(chance) if isinstance(chance, Tensor) else drawn.fill_(chance)
        if name in ("rand", "rand_like", "uniform_"):
            return drawn.fill_(sum(args[1:3]) / 2 if name == "uniform_" and len(args) > 2 else 0.5)
        if name in ("randn", "randn_like", "normal_"):
            return drawn.fill_(args[1] if name == "normal_" and len(args) > 1 else 0.0)
        return drawn


@dataclass(frozen=True)
class Whole:
    """The loss and the gradient of some examples, and the largest sum of absolute terms in each:
    the scale of their rounding.
    """

    loss: Tensor
    gradient: Tensor
    largest_loss: float
    largest_gradient: float


def refuse(workload: Any, cell: Cell) -> None:
    """Do nothing if a cell's batches may be taken in the parts that it asks for.

    :raises UsageError: its parts add up to another loss, or another gradient, than the whole batch
        has.
    """
    if reason := refusal(workload, cell):
        raise UsageError(reason)


def refusal(workload: Any, cell: Cell) -> str | None:
    """Why a cell's batches cannot be taken in parts; None if they can, or if the cell takes them
    whole.
    """
    if cell.on == RANK and hasattr(workload, "weight"):
        return (
            f'`on = "rank"` is not for workload "{workload.name}", which weighs its examples: the '
            f"mean of what several processes have is another loss"
        )
    if cell.on == RANK and (cell.accumulate > 1 or cell.batch % cell.ranks):
        return (
            f'`on = "rank"` takes a batch in {cell.ranks} equal pieces: with a batch of '
            f"{cell.batch} and `accumulate` = {cell.accumulate} it cannot"
        )
    if cell.accumulate == 1 and cell.on not in APART:
        return None
    number = cell.pieces or cell.accumulate
    if (difference := apart(workload, cell.batch, number)) is None:
        return None
    asked = f'`on = "{cell.on}"`' if cell.pieces else f"`accumulate` = {cell.accumulate}"
    return (
        f'{asked} is not for workload "{workload.name}": {difference}; leave it out, or '
        f"{remedy(difference)}"
    )


def remedy(difference: str) -> str:
    """What would make a batch in parts add up to the whole, by how it differs (see `apart`)."""
    if difference.startswith(MIXES):
        return "give the model a norm of single examples, such as GroupNorm"
    return "give the workload `weight(targets)`, what a part counts for"


@lru_cache(maxsize=64)
def apart(workload: Any, batch: int, number: int) -> str | None:
    """How the loss of a batch in ``number`` parts differs from the loss of the whole, in words;
    None if it does not.

    They are compared on the CPU, with the first weights and batches of one seed.
    """
    with trees.seeded(workload.name, SEED, "parts"):
        for dtype, tolerance in TOLERANCES.items():
            try:
                module = feed.model(workload, SEED, dtype)
                drawn = list(feed.batches(workload, SEED, batch, BATCHES, dtype))
                wholes = [
                    _whole_of(workload, module, [(1.0, *drawn_batch)]) for drawn_batch in drawn
                ]
            except UsageError:
                raise
            except Exception:  # noqa: BLE001, S112 - a workload may know float32 only; training reports what fails in both
                continue
            for drawn_batch, whole in zip(drawn, wholes, strict=True):
                difference = _difference(workload, module, drawn_batch, number, whole, tolerance)
                if difference is not None:
                    return _reason(workload, module, drawn, number, tolerance) or difference
            return None
    return None


def _difference(
    workload: Any, module: nn.Module, batch: feed.Batch, number: int, whole: Whole, tolerance: float
) -> str | None:
    try:
        parts = _whole_of(workload, module, feed.parts(workload, *batch, number))
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - a user-defined model may raise anything
        return (
            f"{NO_MEAN}: one of {number} parts fails ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]})"
        )
    if not (whole.loss.isfinite() and whole.gradient.isfinite().all()):
        return None  # its training will tell
    no_mean = NO_MEAN + (" by its `weight`" if hasattr(workload, "weight") else "")
    if not float((parts.loss - whole.loss).abs()) <= tolerance * max(
        whole.largest_loss, parts.largest_loss
    ):
        return (
            f"{no_mean}: of {number} parts it is {float(parts.loss):.6g}, of the whole batch "
            f"{float(whole.loss):.6g}"
        )
    gap = float((parts.gradient - whole.gradient).abs().amax()) if whole.gradient.numel() else 0.0
    if not gap <= tolerance * (largest := max(whole.largest_gradient, parts.largest_gradient)):
        return (
            f"{no_mean}: of {number} parts its gradient is {gap / largest:.2g} away from that "
            f"of the whole batch, relatively"
        )
    return None


def _reason(
    workload: Any, module: nn.Module, batches: list[feed.Batch], number: int, tolerance: float
) -> str | None:
    """That BatchNorm alone is why a batch in parts differs: with its running statistics in place of
    the batch's, the parts of all batches add up. None if there is another reason.
    """
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001 - torch has no public word for all of them
    for norm in norms:
        norm.eval()
    if not norms:
        return None
    for batch in batches:
        whole = _whole_of(workload, module, [(1.0, *batch)])
        if _difference(workload, module, batch, number, whole, tolerance) is not None:
            return None
    return MIXES


def _whole_of(workload: Any, module: nn.Module, parts: list[tuple[float, Tensor, Tensor]]) -> Whole:
    params = [param for param in module.parameters() if param.requires_grad]
    losses, gradients = [], []
    for share, inputs, targets in parts:
        with Expected():  # type: ignore[no-untyped-call]
            loss = share * feed.loss_of(workload, module(inputs), targets)
            grads = torch.autograd.grad(loss, params, allow_unused=True)
        losses.append(loss.detach())
        gradients.append(
            torch.cat([_dense(grad, param) for grad, param in zip(grads, params, strict=True)])
        )
    largest = torch.stack([gradient.abs() for gradient in gradients]).sum(0)
    return Whole(
        torch.stack(losses).sum(),
        torch.stack(gradients).sum(0),
        float(torch.stack(losses).abs().sum()),
        float(largest.amax()) if largest.numel() else 0.0,
    )


def _dense(grad: Tensor | None, param: Tensor) -> Tensor:
    return (torch.zeros_like(param) if grad is None else trees.dense(grad)).reshape(-1)
