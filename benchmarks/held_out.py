"""A workload that is not packaged: for it nothing was tuned."""

import torch
from torch import nn

from clipbench import metrics, workload

FEATURES, WIDTH, CLASSES = 40, 60, 4  # no multiples of a register
TRAIN, HELD = 600, 200


def examples():
    """Inputs and labels, which another network gives: the same for everyone."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(TRAIN + 2 * HELD, FEATURES, generator=draw)
    hidden = (inputs @ torch.randn(FEATURES, 20, generator=draw)).tanh()
    return inputs, (hidden @ torch.randn(20, CLASSES, generator=draw)).argmax(1)


def network():
    """An MLP of 6,364 numbers."""
    return nn.Sequential(
        nn.Linear(FEATURES, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
    )


@workload("held-out")
class HeldOut:
    """Which of four classes another network sees in 40 numbers."""

    metric = metrics.accuracy
    reference_loss = 1.38  # nats of the best constant prediction
    chance = 0.28
    target_metric = 0.6
    margin = 0.02

    def data(self, generator):
        inputs, labels = examples()
        order = torch.randperm(len(inputs), generator=generator)
        parts = order.tensor_split([TRAIN, TRAIN + HELD])
        splits = ("train", "validation", "test")
        return {
            split: (inputs[part], labels[part]) for split, part in zip(splits, parts, strict=True)
        }

    def model(self):
        return network()

    def loss(self, output, target):
        return nn.functional.cross_entropy(output, target)
