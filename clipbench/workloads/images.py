"""Workloads on images: small convolutional networks, without BatchNorm or dropout, so that every
engine runs them alike.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Generator, Tensor, nn

from clipbench import metrics
from clipbench.registry import Count, workload
from clipbench.workloads.tabular import stratified


@workload("digits")
class Digits:
    r"""A test of the learning rates that a small ReLU network survives: too hot, it dies at chance
    and stays finite.

    Handwritten digits, 1797 images of 8×8 in [0, 1], as scikit-learn ships them. Not medical. The
    seed draws a stratified split of 60/20/20 %.

    Convolution 3×3 of w channels, ReLU, convolution 3×3 of 2w channels with stride 2, ReLU, a
    linear layer to the ten digits; cross entropy; inputs are N×1×8×8.

    :param width: w, the channels of the first convolution, at least 1.

    **Source**: Alpaydin & Kaynak 1998, their test set; CC BY 4.0, doi:10.24432/C50P49.
    """

    width: Count = 8

    metric = metrics.accuracy
    chance = 0.1018  # 183 of 1797 are threes
    target = 0.133
    target_metric = 0.961
    margin = 0.003  # one of 360 test digits; a quarter of what Adam gains over SGD is less
    reference_loss = math.log(10)
    version = 1
    step_seconds = 8.0e-4
    lanes = True

    def data(self, generator: Generator) -> dict[str, tuple[Tensor, Tensor]]:
        return _split(8, generator)

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, self.width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(self.width, 2 * self.width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(2 * self.width * 4 * 4, 10),
        )  # fmt: skip

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target)


@workload("origin")
class Origin:
    r"""A test of the origin document's own network, of 2.1 million weights, which it trains with
    momentum and the value clip.

    Data, licence and split as in ``digits``, the images enlarged to 36×36 (bilinear), the size that
    its layers ask for.

    Convolution 3×3 of 32 channels, ReLU, convolution 3×3 of 64 channels, ReLU, both without
    padding; the average over 2×2; 64·16·16 = 16384 features to 128, ReLU, to the ten digits; cross
    entropy; inputs are N×1×36×36. It has no settings. It has lanes, and gains nothing from them:
    one step fills a core.

    **Source**: the network of an article on gradient clipping in medical image analysis; data as in
    digits.
    """

    metric = metrics.accuracy
    chance = 0.1018
    target = 0.32
    target_metric = 0.925
    margin = 0.038  # a quarter of what Adam gains over SGD
    reference_loss = math.log(10)
    version = 1
    step_seconds = 4.5e-2
    lanes = True

    def data(self, generator: Generator) -> dict[str, tuple[Tensor, Tensor]]:
        return _split(36, generator)

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(),
            nn.Conv2d(32, 64, 3), nn.ReLU(),
            nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(16384, 128), nn.ReLU(),
            nn.Linear(128, 10),
        )  # fmt: skip

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target)


def _split(side: int, generator: Generator) -> dict[str, tuple[Tensor, Tensor]]:
    images, labels = _digits(side)
    return {
        split: (images[index], labels[index])
        for split, index in stratified(labels, generator).items()
    }


@lru_cache(maxsize=2)  # one size each of digits and origin: 0.5 and 9 MB, shared by all seeds
def _digits(side: int) -> tuple[Tensor, Tensor]:
    """The images, 1797×1×side×side in [0, 1], and the labels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().div(16).reshape(-1, 1, 8, 8)
    if side != 8:
        images = nn.functional.interpolate(
            images, size=(side, side), mode="bilinear", align_corners=False
        )
    return images, torch.from_numpy(labels).long()
