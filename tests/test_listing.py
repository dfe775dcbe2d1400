"""A split in whatever people have it: listed once as two tensors, or refused by name."""

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from clipbench import feed, listing
from clipbench.errors import UsageError

IMAGES = torch.arange(40 * 4.0).reshape(40, 1, 2, 2)
LABELS = torch.arange(40) % 3


class Images(Dataset):
    """What a user has: an image and a plain number."""

    def __len__(self):
        return 40

    def __getitem__(self, number):
        return IMAGES[number], int(LABELS[number])


class Of(Dataset):
    """A data set whose samples come from a function of their number."""

    def __init__(self, sample):
        self.sample = sample

    def __len__(self):
        return 40

    def __getitem__(self, number):
        return self.sample(number)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Images())


KINDS = {
    "tensors": (IMAGES, LABELS),
    "arrays": [IMAGES.numpy(), LABELS.numpy().astype(np.uint8)],
    "an array that cannot be written, and bytes of another order": (
        np.broadcast_to(IMAGES.numpy(), IMAGES.shape),
        LABELS.numpy().astype(">i4"),
    ),
    "a data set": Images(),
    "a data set of arrays and numbers of NumPy": Of(
        lambda number: (IMAGES[number].numpy(), LABELS.numpy()[number])
    ),
    "a data set of torch's": TensorDataset(IMAGES, LABELS),
    "a part of one": Subset(Images(), range(40)),
    "a loader": DataLoader(Images(), batch_size=7),
    "a loader that shuffles": DataLoader(Images(), batch_size=7, shuffle=True, drop_last=True),
    "a loader of some": DataLoader(Images(), sampler=SubsetRandomSampler(range(40))),
    "a loader with a function of its own": DataLoader(
        Images(), collate_fn=lambda some: (torch.stack([x for x, _ in some]), LABELS[:len(some)])
    ),
}  # fmt: skip


@pytest.mark.parametrize("found", KINDS.values(), ids=KINDS)
def test_whatever_the_examples_are_in_they_are_the_same_tensors(found):
    state = torch.get_rng_state()
    inputs, targets = listing.pair(found, "here")
    assert torch.equal(inputs, IMAGES)
    assert targets.dtype == torch.long
    if getattr(found, "collate_fn", None) is None or len(found) != 40:
        assert torch.equal(targets, LABELS)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sample_is_read_once_but_for_the_first_that_are_looked_at_again():
    read = []
    listing.pair(Of(lambda number: read.append(number) or (IMAGES[number], 0)), "here")
    assert sorted(set(read)) == list(range(40))
    assert len(read) == 40 + listing.TOGETHER


def test_targets_of_any_whole_numbers_become_those_that_losses_take_and_others_stay():
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert listing.pair((IMAGES, LABELS.to(dtype)), "here")[1].dtype == torch.long
    for dtype in (torch.bool, torch.float64, torch.complex64):
        assert listing.pair((IMAGES, LABELS.to(dtype)), "here")[1].dtype == dtype


draw = torch.Generator().manual_seed(0)
WRONG = {
    "an iterable-style set": (Stream(), "here: Stream is an iterable-style data set"),
    "a loader of one": (DataLoader(Stream()), "or draw each batch by `sample(self, generator, ba"),
    "no length": (type("Bare", (), {"__getitem__": int})(), "Bare has no `__len__`"),
    "nothing in it": (Subset(Images(), []), "Subset has no samples"),
    "random augmentation": (
        Of(lambda number: (IMAGES[number] + torch.rand((), generator=draw), 0)),
        "the input of sample 0 is another one when it is read again, as random augmentation",
    ),
    "random labels": (
        Of(lambda number: (IMAGES[number], torch.rand((), generator=draw))),
        "the target of sample 0 is another one",
    ),
    "random augmentation behind a function": (
        DataLoader(
            Of(lambda number: (IMAGES[number] + torch.rand((), generator=draw), 0)),
            collate_fn=lambda some: (torch.stack([x for x, _ in some]), LABELS[: len(some)]),
        ),
        "the input of sample 0 is another one",
    ),
    "ragged images": (
        Of(lambda number: (torch.ones(1, 2, 2 + (number == 3)), 0)),
        "the input of sample 3 has the shape (1, 2, 3), and others have (1, 2, 2); all must be",
    ),
    "ragged images far apart": (
        Of(lambda number: (torch.ones(1, 2, 2 + (number >= 32)), 0)),
        "the inputs of one sample has the shape (1, 2, 2), and others have (1, 2, 3)",
    ),
    "no target": (
        Of(lambda number: IMAGES[number]),
        "sample 0 is a Tensor of shape (1, 2, 2), and must be (input, target)",
    ),
    "samples in a dict": (
        Of(lambda number: {"image": IMAGES[number], "label": 0}),
        "sample 0 is a dict of image, label, and must be (input, target)",
    ),
    "words": (
        Of(lambda number: (IMAGES[number], "cat")),
        "the target of sample 0 is a str, and must be a tensor, an array or a number",
    ),
    "an array of objects": (
        (np.array(["a", None]), LABELS.numpy()),
        "the inputs is an array of object, and must hold numbers",
    ),
    "samples drawn by weight": (
        DataLoader(Images(), sampler=WeightedRandomSampler([1.0] * 40, 40)),
        "its DataLoader chooses samples by WeightedRandomSampler, and here the seed draws",
    ),
    "batches of their own": (
        DataLoader(Images(), batch_sampler=[[0, 1], [2, 3]]),
        "its DataLoader chooses samples by list",
    ),
    "whole batches": (DataLoader(Images(), batch_size=None), "with batch_size=None hands on whole"),
    "a function that returns a dict": (
        DataLoader(Images(), collate_fn=lambda some: {"image": some}),
        "its `collate_fn` returned a dict of image, and must return a pair",
    ),
    "a list": ([1, 2, 3], "here returned a list of int and int and int, and must return a pair"),
}


@pytest.mark.parametrize(("found", "words"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_listed_says_what_came_and_what_is_wanted(found, words):
    with pytest.raises(UsageError, match=r"^here") as refusal:
        listing.pair(found, "here")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_workload_hands_over_what_it_has_and_is_told_which_split_is_missing():
    class Own:
        name = "own"

        def __init__(self, **found):
            self.found = found

        def data(self, generator):
            return self.found

    found = Own(train=Images(), validation=DataLoader(Images()), test=(IMAGES.numpy(), LABELS))
    for inputs, targets in feed.splits(found, 0, torch.float64).values():
        assert torch.equal(inputs, IMAGES.double())
        assert torch.equal(targets, LABELS)
    with pytest.raises(UsageError, match=r'`data` has no split "validation" \(it has train\)'):
        feed.splits(Own(train=Images()), 0)
