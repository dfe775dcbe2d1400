"""The examples of a split as people have them, listed once as two tensors: arrays, a data set of
torch, a loader. It must not know what a workload is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
)

from clipbench.errors import UsageError

Batch = tuple[Tensor, Tensor]
WANTED = "a pair of tensors or arrays, inputs and targets, or a map-style data set of such pairs"
SAMPLE = "(input, target)"
TOGETHER = 32  # samples that are read at once; the first of them are read a second time


def pair(found: Any, where: str) -> Batch:
    """Inputs and targets of a split, two tensors whose first dimension is the example.

    :param found: two tensors or NumPy arrays; a map-style data set whose samples are ``(input,
        target)``; or a `DataLoader` of one, whose order and batch size do not matter.
    :param where: what a sentence begins with, such as ``workload "x": `data` for train``.
    :raises UsageError: it is something else, its samples differ in shape, or one is not the same
        when it is read again.
    """
    if isinstance(found, tuple | list):
        if len(found) == 2 and all(isinstance(one, Tensor | np.ndarray) for one in found):
            inputs, targets = found
            return _tensor(inputs, f"{where}: the inputs"), _labels(targets, where)
    elif isinstance(found, DataLoader):
        return _of_loader(found, where)
    elif _is_data_set(found):
        return _of_data_set(found, range(_length(found, where)), where)
    raise UsageError(f"{where} returned {description(found)}, and must return {WANTED}.")


def description(value: Any) -> str:
    """``a tuple of ndarray and ndarray``, ``a Tensor of shape (3, 4)``."""
    if isinstance(value, tuple | list) and value:
        return (
            f"a {type(value).__name__} of "
            f"{' and '.join(type(one).__name__ for one in value[:3])}{', …' * (len(value) > 3)}"
        )
    if isinstance(value, Mapping) and value:
        return f"a {type(value).__name__} of {', '.join(map(str, value))}"
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return "nothing" if value is None else f"a {type(value).__name__}{shape}"


# --------------------------------------------------------------------------------- sets and loaders


def _is_data_set(found: Any) -> bool:
    if isinstance(found, Tensor | np.ndarray | Mapping | str):
        return False
    return isinstance(found, IterableDataset) or hasattr(found, "__getitem__")


def _length(data_set: Any, where: str) -> int:
    """How many samples a data set has.

    :raises UsageError: it is iterable-style, or does not say it.
    """
    name = type(data_set).__name__
    if isinstance(data_set, IterableDataset):
        raise UsageError(
            f"{where}: {name} is an iterable-style data set, whose samples have no number, and "
            f"every method must meet the same ones; give a map-style one (`__len__` and "
            f"`__getitem__`), or draw each batch by `sample(self, generator, batch)`."
        )
    if not hasattr(data_set, "__len__"):
        raise UsageError(f"{where}: {name} has no `__len__`, which says how many samples it has.")
    if not (length := len(data_set)):
        raise UsageError(f"{where}: {name} has no samples.")
    return length


def _of_loader(loader: DataLoader[Any], where: str) -> Batch:
    """The samples of a loader's data set; in which order and how many at once the seed decides.

    :raises UsageError: the loader chooses its samples in a way that would be lost.
    """
    length = _length(loader.dataset, where)
    sampler, batches = loader.sampler, loader.batch_sampler
    order: Sequence[int] = range(length)
    if isinstance(sampler, SubsetRandomSampler):
        order = list(sampler.indices)
    elif not isinstance(sampler, SequentialSampler) and not (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == length
    ):
        raise _lost(type(sampler).__name__, where)
    if batches is None:
        raise UsageError(
            f"{where}: a DataLoader with batch_size=None hands on whole batches; give it the "
            f"single samples, each {SAMPLE}."
        )
    if type(batches) is not BatchSampler:
        raise _lost(type(batches).__name__, where)
    if loader.collate_fn is default_collate:
        return _of_data_set(loader.dataset, order, where)
    return _of_data_set(loader.dataset, order, where, loader.collate_fn)


def _lost(sampler: str, where: str) -> UsageError:
    return UsageError(
        f"{where}: its DataLoader chooses samples by {sampler}, and here the seed draws the "
        f"batches, the same for every method; give the data set itself, with the samples that "
        f"are meant, or draw each batch by `sample(self, generator, batch)`."
    )


def _of_data_set(
    data_set: Any,
    order: Sequence[int],
    where: str,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Batch:
    """The samples of these numbers as two tensors; the first are read twice, for with random
    augmentation every reading is of another data set.
    """

    def read(numbers: Sequence[int]) -> Batch:
        samples = [data_set[number] for number in numbers]
        if collate is None:
            return _stacked(samples, numbers, where)
        batch = collate(samples)
        if not (
            isinstance(batch, tuple | list)
            and len(batch) == 2
            and all(isinstance(one, Tensor) for one in batch)
        ):
            raise UsageError(
                f"{where}: its `collate_fn` returned {description(batch)}, and must return a pair "
                f"of tensors, inputs and targets."
            )
        return batch[0], batch[1]

    chunks = [read(order[start : start + TOGETHER]) for start in range(0, len(order), TOGETHER)]
    _refuse_drawn(chunks[0], read(order[:TOGETHER]), order, where)
    inputs, targets = zip(*chunks, strict=True)
    return (
        _joined(inputs, f"{where}: the inputs"),
        _labels(_joined(targets, f"{where}: the targets"), where),
    )


def _joined(chunks: Sequence[Tensor], what: str) -> Tensor:
    """:raises UsageError: their samples differ in shape."""
    shapes = sorted({tuple(chunk.shape[1:]) for chunk in chunks})
    if len(shapes) > 1:
        raise _ragged(f"{what} of one sample", *shapes[:2])
    return torch.cat(list(chunks))


def _refuse_drawn(once: Batch, twice: Batch, order: Sequence[int], where: str) -> None:
    """:raises UsageError: a sample is another one when it is read again."""
    for what, befores, afters in zip(("input", "target"), once, twice, strict=True):
        for number, before, after in zip(order, befores, afters, strict=False):
            if not torch.equal(before.nan_to_num(), after.nan_to_num()):
                raise UsageError(
                    f"{where}: the {what} of sample {number} is another one when it is read "
                    f"again, as random augmentation makes it; examples are read once and must be "
                    f"the same for every method, so leave the augmentation out, or draw each batch "
                    f"by `sample(self, generator, batch)`."
                )


# ----------------------------------------------------------------------------------- single samples


def _stacked(samples: Sequence[Any], numbers: Sequence[int], where: str) -> Batch:
    """:raises UsageError: a sample is no pair of numbers, or they differ in shape."""
    for number, sample in zip(numbers, samples, strict=True):
        if not (isinstance(sample, tuple | list) and len(sample) == 2):
            raise UsageError(
                f"{where}: sample {number} is {description(sample)}, and must be {SAMPLE}."
            )
    return (
        _stack([sample[0] for sample in samples], numbers, f"{where}: the input"),
        _stack([sample[1] for sample in samples], numbers, f"{where}: the target"),
    )


def _stack(values: Sequence[Any], numbers: Sequence[int], what: str) -> Tensor:
    tensors = [
        _tensor(value, f"{what} of sample {number}")
        for number, value in zip(numbers, values, strict=True)
    ]
    for number, tensor in zip(numbers, tensors, strict=True):
        if tensor.shape != tensors[0].shape:
            raise _ragged(
                f"{what} of sample {number}", tuple(tensor.shape), tuple(tensors[0].shape)
            )
    return torch.stack(tensors)


def _ragged(what: str, shape: tuple[int, ...], other: tuple[int, ...]) -> UsageError:
    return UsageError(
        f"{what} has the shape {shape}, and others have {other}; all must be alike: "
        f"resize, crop or pad them in the data set."
    )


def _tensor(value: Any, what: str) -> Tensor:
    """A tensor, an array or a number as a tensor.

    :raises UsageError: it is something else.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, bool | int | float | np.generic | np.ndarray):
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            # of its own memory, in this machine's order of bytes: what torch asks for
            return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
        raise UsageError(f"{what} is an array of {array.dtype}, and must hold numbers.")
    hint = (
        "; torchvision.transforms.ToTensor() makes a tensor of an image"
        if type(value).__module__.partition(".")[0] == "PIL"
        else ""
    )
    raise UsageError(
        f"{what} is {description(value)}, and must be a tensor, an array or a number{hint}."
    )


def _labels(targets: Any, where: str) -> Tensor:
    """Targets as a tensor; whole numbers become those that torch's losses take."""
    tensor = _tensor(targets, f"{where}: the targets")
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
    return tensor.long() if whole else tensor
