"""MedMNIST: medical images with published results, read from files that the user has or has
fetched.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from clipbench import datasets, metrics
from clipbench.datasets import Archive, Dataset
from clipbench.registry import workload


@workload("medmnist")
class MedMnist:
    r"""A test of clipping on medical images, on the splits and by the measures that published
    results have.

    Any 2-D set of MedMNIST with one label an image, but those that take more than 16 GiB as numbers
    (PathMNIST from 128 on, OCTMNIST and TissueMNIST at 224). Its file is not part of clipbench:
    ``clipbench data fetch pneumoniamnist`` puts it into the data folder, or ``path`` says where it
    is. The splits are the published ones, whatever the seed. Pixels become :math:`(x / 255 - .5) /
    .5` as in MedMNIST's own baseline; inputs are N×C×s×s. Judged by AUC (``mean_auc``) and accuracy
    as MedMNIST's evaluator defines them, on the last model.

    Cross entropy, and one of three networks, for images of C channels and s×s pixels:

    ``small``
        convolution 3×3 of 16 channels with stride 2, ReLU, the same of 32, ReLU, a linear layer to
        the classes: 8 thousand weights at 28×28. It has lanes.
    ``origin``
        the network of the workload ``origin``: convolutions 3×3 of 32 and 64 channels without
        padding, the average over 2×2, 128 units. Only the first linear layer follows the image,
        with :math:`64 \lfloor (s - 4) / 2 \rfloor^2` inputs: 1.2 million weights at 28×28, 99
        million at 224×224. It has lanes.
    ``resnet18``
        the ResNet-18 of the published baseline (He et al. 2016 with the stem for small images: a
        convolution 3×3 of stride 1, no pooling), 11.2 million weights. Its BatchNorm changes
        buffers while it trains: it runs in the loop only.

    DermaMNIST is not free (CC BY-NC 4.0) and leaks between its splits: it is read where ``path`` is
    given, and not looked for elsewhere. Multi-label and ordinal-regression sets are refused.

    :param dataset: the set, ``pneumoniamnist``; of larger images ``pneumoniamnist_64``, ``_128`` or
        ``_224``.
    :param path: its file, relative to the working folder; empty for the one in the data folder,
        which must have the published MD5. A cell's identity holds the path, not what is in the
        file.
    :param network: ``small``, ``origin`` or ``resnet18``.

    **Source**: Yang et al. 2023; CC BY 4.0, doi:10.1038/s41597-022-01721-8.
    """

    dataset: str = "pneumoniamnist"
    path: str = ""
    network: Literal["small", "origin", "resnet18"] = "small"

    metric = metrics.mean_auc
    other_metrics = (metrics.accuracy,)
    step_seconds = 0.0043  # of small; origin takes 0.1, resnet18 2.2
    lanes = True
    version = 1

    def ready(self) -> None:
        """Whether the file is there, is that of the set, by its headers and labels, and is not
        damaged.

        :raises UsageError: it is not.
        """
        archive = self._archive()
        if self.path:  # of the one in the data folder the MD5 was looked at
            archive.sound()

    @property
    def reference_loss(self) -> float:
        """The entropy of the training labels: the loss of the best constant prediction."""
        labels = self._archive().labels["train"]
        shares = np.unique(labels, return_counts=True)[1] / len(labels)
        return float(-(shares * np.log(shares)).sum())

    @property
    def target(self) -> float | None:
        """What the best unclipped arm has at 75 % of 300 steps of 128, known for ``small`` on
        pneumoniamnist only.

        A share of the reference: it was measured, on nine seeds, on a balanced subset of 2428
        training images, .0915 of log 2.
        """
        return (
            0.132 * self.reference_loss
            if (self.dataset, self.network) == ("pneumoniamnist", "small")
            else None
        )

    def data(self) -> dict[str, tuple[Tensor, Tensor]]:
        return _splits(self._archive())

    def model(self) -> nn.Module:
        dataset = datasets.named(self.dataset)
        channels, classes = dataset.family.channels, dataset.family.classes
        if self.network == "resnet18":
            return resnet18(channels, classes)
        return (small if self.network == "small" else origin)(channels, classes, dataset.size)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target)

    def _archive(self) -> Archive:
        dataset = datasets.named(self.dataset)
        return _opened(dataset, datasets.located(dataset, self.path), official=not self.path)


def small(channels: int, classes: int, size: int) -> nn.Module:
    """Two convolutions with stride 2 and a linear layer."""
    side = -(-size // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * side * side, classes),
    )  # fmt: skip


def origin(channels: int, classes: int, size: int) -> nn.Module:
    """The network of the workload ``origin``, whose first linear layer takes as many features as
    the image leaves.
    """
    side = (size - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * side * side, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def resnet18(channels: int, classes: int) -> nn.Module:
    """The ResNet-18 of MedMNIST's baseline, for images of any size: four stages of two blocks,
    the last at an eighth of it.
    """
    widths = [
        (64, 64, 1),
        (64, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        (512, 512, 1),
    ]
    return nn.Sequential(
        *_convolution(channels, 64, 3),
        nn.ReLU(),
        *(Block(*width) for width in widths),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


class Block(nn.Module):
    """Two normalised convolutions 3×3 beside a short cut, which is a normalised convolution 1×1
    where the shape changes.
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.straight = nn.Sequential(
            *_convolution(inner, outer, 3, stride), nn.ReLU(), *_convolution(outer, outer, 3)
        )
        self.across = nn.Sequential(
            *(_convolution(inner, outer, 1, stride) if inner != outer else ())
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.straight(inputs) + self.across(inputs))


def _convolution(
    inner: int, outer: int, kernel: int, stride: int = 1
) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inner, outer, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(
        outer
    )


@lru_cache(maxsize=4)
def _opened(dataset: Dataset, file: Path, *, official: bool) -> Archive:
    return datasets.opened(dataset, file, official=official)


# of two sets, shared by all networks: 18 MB for pneumoniamnist, 1 GB for pathmnist
@lru_cache(maxsize=2)
def _splits(archive: Archive) -> dict[str, tuple[Tensor, Tensor]]:
    """Images of N×C×s×s in [−1, 1], and their labels."""
    return {
        split: (_images(archive.images(split)), torch.from_numpy(labels))
        for split, labels in archive.labels.items()
    }


def _images(pixels: np.ndarray) -> Tensor:
    images = torch.from_numpy(pixels)
    images = images.unsqueeze(1) if images.ndim == 3 else images.movedim(3, 1).contiguous()
    return images.float().div_(255).sub_(0.5).div_(0.5)
