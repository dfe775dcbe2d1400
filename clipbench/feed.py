"""What a workload gives to one cell: weights, batches and evaluation data, each from a seeded
stream of its own.

A stream depends on the workload's name, the seed and the stream's name only. So every method meets
the same weights and the same batches, in every process and in every engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from clipbench import listing, streams, trees
from clipbench.errors import UsageError
from clipbench.streams import Sampled, Shuffled, cast, drawing, takes

Batch = listing.Batch
SPLITS = ("validation", "test")  # what a run is evaluated on
EVALUATED = 256  # examples of a split that is sampled
KEPT_BYTES = 2**29  # of splits that are held for another use: 38 seeds of origin
MIXED = "bfloat16-mixed"  # weights, update and loss in float32, the model's products under autocast
DISTURBED = 1e-7  # relative, of the weights of a replica: the last digit of a float32
TF32 = "tf32"  # float32, whose products CUDA takes in ten bits: a process is set up for it
DTYPES = {
    "float32": torch.float32,
    TF32: torch.float32,
    "float64": torch.float64,
    MIXED: torch.float32,
}


def model(
    workload: Any,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    mixed: bool = False,
    replica: int = 0,
) -> nn.Module:
    """The workload's module with the seed's weights: drawn in float32 on the CPU, the same on every
    processor, then moved.

    ``model(self)`` draws them from torch's random state, which the seed has set; ``model(self,
    seed)`` is handed the seed as well.

    :param mixed: whether it computes under autocast to bfloat16, and returns float32.
    :param replica: other than 0, the weights differ in their last digits (`DISTURBED`), as rounding
        on another processor would make them differ after a step.
    :raises UsageError: a parameter or a buffer is complex: in ``dtype`` it would be another model.
    """
    arguments = {"seed": seed} if takes(workload.model, "seed") else {}
    with trees.seeded(workload.name, seed, "weights"), trees.AlikeEverywhere():
        module = workload.model(**arguments)
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_complex():
            raise UsageError(
                f'workload "{workload.name}": `{name}` is complex '
                f"({str(tensor.dtype).removeprefix('torch.')}), and only real "
                "numbers are trained here; keep real and imaginary part as two, such as "
                "`torch.view_as_real` makes of it"
            )
    if replica:
        _disturb(module, trees.generator(workload.name, seed, f"replica {replica}"))
    module = module.to(device=device, dtype=dtype)
    if mixed:
        plain = module.forward

        def forward(*inputs: Tensor) -> Tensor:
            with torch.autocast(device, torch.bfloat16):
                return plain(*inputs).float()

        module.forward = forward
    return module


@torch.no_grad()
def _disturb(module: nn.Module, stream: torch.Generator) -> None:
    """Multiply every weight by a normal number around 1."""
    for param in module.parameters():
        noise = torch.randn(param.shape, generator=stream, dtype=torch.float64)
        param.copy_((param.double() * (1 + DISTURBED * noise)).to(param.dtype))


class _Held:
    """Splits by what they were drawn from; those not used for longest go if all take more than
    `KEPT_BYTES`, for a study may have any number of seeds.
    """

    def __init__(self) -> None:
        self.splits: dict[Any, dict[str, Batch]] = {}
        self.bytes = 0

    def get(self, key: Any, draw: Callable[[], dict[str, Batch]]) -> dict[str, Batch]:
        """The splits of this key, drawn if they are not held; the latest stand last."""
        found = self.splits.pop(key, None)
        if found is None:
            found = draw()
            self.bytes += _bytes(found)
        self.splits[key] = found
        while self.bytes > KEPT_BYTES and len(self.splits) > 1:
            self.bytes -= _bytes(self.splits.pop(next(iter(self.splits))))
        return found


def _bytes(drawn: Mapping[str, Batch]) -> int:
    return sum(tensor.nbytes for pair in drawn.values() for tensor in pair)


_held = _Held()


def splits(
    workload: Any, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict[str, Batch]:
    """Split name → ``(inputs, targets)``, floating tensors in ``dtype``.

    ``data(self)`` is called once per process and the same for every seed; ``data(self, generator)``
    draws the split of each seed. A workload that only samples is evaluated on one sampled batch per
    split.
    """
    key = (workload, seed, dtype, device)
    return _held.get(key, lambda: _drawn(*key))


def _drawn(workload: Any, seed: int, dtype: torch.dtype, device: str) -> dict[str, Batch]:
    if not hasattr(workload, "data"):
        drawn = {
            name: drawing(
                workload, "sample", trees.generator(workload.name, seed, name), EVALUATED
            )()
            for name in SPLITS
        }
    elif takes(workload.data, "generator"):
        drawn = listed(workload, workload.data(trees.generator(workload.name, seed, "split")))
    else:
        drawn = _once(workload)
    return {
        name: (cast(inputs, dtype, device), cast(targets, dtype, device))
        for name, (inputs, targets) in drawn.items()
    }


def listed(workload: Any, data: Any) -> dict[str, Batch]:
    """The splits in what ``data`` has returned, whatever people have their examples in.

    :raises UsageError: it is something else, or a split is missing.
    """
    where = f'workload "{workload.name}": `data`'
    if not isinstance(data, Mapping):
        raise UsageError(
            f"{where} returned {listing.description(data)}, and must return a dict of the splits "
            f"train, validation and test; torch.utils.data.random_split makes three of one set."
        )
    wanted = SPLITS if hasattr(workload, "sample") else ("train", *SPLITS)
    for name in wanted:
        if name not in data:
            raise UsageError(
                f'{where} has no split "{name}" (it has {", ".join(map(str, data)) or "none"}); '
                f"train is learned from, validation chooses, and test is what is reported."
            )
    return {name: listing.pair(found, f"{where} for {name}") for name, found in data.items()}


@lru_cache(maxsize=8)
def _once(workload: Any) -> dict[str, Batch]:
    return listed(workload, workload.data())


def batches(
    workload: Any,
    seed: int,
    batch: int,
    steps: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Iterator[Batch]:
    """The ``steps`` training batches of one seed, in order.

    :raises UsageError: the training split is smaller than one batch.
    """
    return streams.each(source(workload, seed, batch, steps, dtype, device), steps)


def source(
    workload: Any,
    seed: int,
    batch: int,
    steps: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Shuffled | Sampled:
    """Where the ``steps`` training batches of one seed come from, in order.

    Data is visited in shuffled epochs without the last, short batch; a workload with ``sample``
    draws every batch anew.

    :raises UsageError: the training split is smaller than one batch.
    """
    stream = trees.generator(workload.name, seed, "batches")
    if hasattr(workload, "sample"):
        return Sampled(workload, stream, batch, dtype, device)
    split = splits(workload, seed, dtype, device)["train"]
    numbers = order(len(split[0]), batch, steps, stream, workload.name).to(device)
    return Shuffled(split, numbers)


def order(examples: int, batch: int, steps: int, stream: torch.Generator, name: str) -> Tensor:
    """The numbers of the examples of every batch, of shape ``(steps, batch)``.

    :raises UsageError: the training split is smaller than one batch.
    """
    per_epoch = examples // batch
    if per_epoch == 0:
        raise UsageError(
            f'workload "{name}": a batch of {batch} is larger than its {examples} training '
            f"examples."
        )
    epochs = [
        torch.randperm(examples, generator=stream)[: per_epoch * batch]
        for _ in range(-(-steps // per_epoch))
    ]
    return (
        torch.cat(epochs).reshape(-1, batch)[:steps]
        if epochs
        else torch.empty(0, batch, dtype=torch.long)
    )


def parts(
    workload: Any, inputs: Tensor, targets: Tensor, number: int
) -> list[tuple[float, Tensor, Tensor]]:
    """A batch in ``number`` parts: the share of each in the whole, its inputs and its targets.

    The share is that of the examples, or of ``weight(targets)`` if the workload has that: what a
    part counts for, a number of at least 0, such as the sum of its classes' weights. A part that
    counts for nothing is left out, for its loss may be 0/0; if no part of a batch counts, all are
    kept.

    An analytic function, whose input is one vector whatever the batch, has one part.
    """
    pieces = list(zip(inputs.chunk(number), targets.chunk(number), strict=True))
    if not hasattr(workload, "weight"):
        return [(len(some) / len(inputs), some, wanted) for some, wanted in pieces]
    weights = torch.stack([weight(workload, wanted) for _, wanted in pieces])
    shared = [
        (share, *piece)
        for share, piece in zip((weights / weights.sum()).tolist(), pieces, strict=True)
    ]
    return [one for one in shared if one[0] != 0] or shared


def weight(workload: Any, targets: Tensor) -> Tensor:
    """What some examples count for in a workload that says it, a scalar in float64.

    :raises UsageError: it is no single number.
    """
    value = torch.as_tensor(workload.weight(targets), device=targets.device)
    if value.numel() != 1 or value.is_complex():
        raise UsageError(
            f'workload "{workload.name}": `weight` returned {value.numel()} numbers, not one of '
            f"at least 0"
        )
    return value.reshape(()).double()


def loss_of(workload: Any, output: Tensor, target: Tensor) -> Tensor:
    """The workload's loss; of a workload without one, the module's output itself."""
    return workload.loss(output, target) if hasattr(workload, "loss") else output


def sparse(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The sentence on the first of some named parameters whose gradient is sparse; None if all
    are dense.
    """
    for name, param in named:
        if param.grad is not None and param.grad.layout is not torch.strided:
            return (
                f"`{name}` has a sparse gradient, which only the loop without a clip can train; "
                f"give its layer `sparse=False`"
            )
    return None


@lru_cache(maxsize=32)
def sparse_at_first(workload: Any) -> str | None:
    """The same for a workload's parameters at its first small batch; None also if that batch
    cannot be taken.
    """
    try:
        module = model(workload, 0)
        inputs, targets = next(batches(workload, 0, 2, 1))
        with trees.seeded(workload.name, 0, "training"):
            loss_of(workload, module(inputs), targets).backward()
    except Exception:  # noqa: BLE001 - a user-defined model may raise anything; training will tell
        return None
    return sparse(module.named_parameters())
