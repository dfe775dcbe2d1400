"""What `conform` says of the mistakes that people make first: one sentence in their own words, and
of models that only the loop can train.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from clipbench import engines, metrics, registry, workload
from clipbench.cell import Cell, Part
from clipbench.conformance import conform
from clipbench.engines import Job

registry.load_packaged()
IMAGES = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = (IMAGES.mean((1, 2, 3)) > 0.5).long()


class Own:
    metric = metrics.accuracy
    reference_loss = 0.7
    inputs, targets = IMAGES, LABELS

    def data(self):
        return {
            split: (self.inputs[at::3], self.targets[at::3])
            for at, split in enumerate(("train", "validation", "test"))
        }

    def model(self):
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))

    def loss(self, output, target):
        return functional.cross_entropy(output, target)


def own(**changed):
    """Register the workload with something else in it; functions are taken without `self`."""
    changed = {name: staticmethod(one) if callable(one) else one for name, one in changed.items()}
    return workload("own")(type("Own", (Own,), changed))


def made(*layers):
    """A model of layers, each made when the model is."""
    return lambda: nn.Sequential(*(layer() for layer in layers))


def flat(inputs, outputs):
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))


MISTAKES = {
    "labels that are floats": (
        {"targets": LABELS.float()},
        ("the outputs are 4 × 2 and the targets 4, float32: a loss of classes, such as "
         "cross_entropy, takes whole numbers: `labels.long()`"),
    ),
    "labels in a column": ({"targets": LABELS[:, None]}, "one label an example: `labels.squeeze(1"),
    "labels for a loss of numbers": (
        {
            "targets": LABELS[:, None],
            "model": flat(16, 1),
            "loss": functional.binary_cross_entropy_with_logits,
        },
        ("the targets are whole numbers (int64), and a loss of numbers, such as mse_loss or "
         "binary_cross_entropy_with_logits, takes floating ones: `targets.float()`"),
    ),
    "a loss that spreads one over the other": (
        {
            "targets": LABELS.float(),
            "model": flat(16, 1),
            "loss": functional.mse_loss,
        },
        "the outputs are 4 × 1 and the targets 4: both must have one shape",
    ),
    "too few classes": (
        {"targets": LABELS + 1},
        "there is a target 2, and the model gives 2 numbers an example, one a class from 0 on",
    ),
    "no axis of channels": (
        {"inputs": IMAGES.squeeze(1)},
        (
            "layer `0`, Conv2d, is given 4 × 4 × 4 of float32, and takes batch × channels × height "
            "× width: the axis of channels is missing, `inputs.unsqueeze(1)` adds it"
        ),
    ),
    "colours for a layer of grey": (
        {"inputs": IMAGES.expand(-1, 3, -1, -1)},
        "is given 4 × 3 × 4 × 4 of float32, and takes batch × channels × height × width with 1 for",
    ),
    "images of bytes": (
        {"inputs": (255 * IMAGES).to(torch.uint8)},
        "of uint8, and takes floating numbers: `images.float() / 255` for images of bytes",
    ),
    "images that are not flat": (
        {"model": made(lambda: nn.Linear(16, 2))},
        "takes 16 numbers in the last axis; nn.Flatten() before it makes one",
    ),
    "layers that do not fit": (
        {"model": made(flat(16, 2), lambda: nn.Linear(3, 2))},
        "layer `1`, Linear, is given 4 × 2 of float32, and takes 3 numbers in the last axis",
    ),
    "numbers for words": (
        {"model": made(lambda: nn.Embedding(9, 2))},
        "layer `0`, Embedding, is given 4 × 1 × 4 × 4 of float32, and takes whole numbers",
    ),
    "another failure": (
        {"model": made(nn.Flatten, lambda: nn.Unflatten(1, (3, 3)))},
        "the model fails: RuntimeError: ",
    ),
    "a loss for each example": (
        {"loss": partial(functional.cross_entropy, reduction="none")},
        "`loss` returned 4 numbers, of shape (4,), and must return one: their mean",
    ),
    "a loss in plain numbers": (
        {"loss": lambda *_: 1.0},
        "`loss` returned a float, and must return a tensor",
    ),
    "two outputs": (
        {"model": lambda: nn.LSTM(4, 2), "inputs": IMAGES.squeeze(1)},
        "the model returned a tuple, and must return a tensor",
    ),
    "training data only": (
        {"data": lambda: {"train": (IMAGES, LABELS)}},
        '`data` has no split "validation" (it has train)',
    ),
    "no targets": (
        {"data": lambda: dict.fromkeys(("train", "validation", "test"), IMAGES)},
        "`data` for train returned a Tensor of shape (60, 1, 4, 4), and must return a pair",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_first_mistake_is_told_once_and_says_what_to_do(changed, words):
    own(**changed)
    *kept, broken = conform("workload", "own")
    assert all(check.passed for check in kept)
    assert not broken.passed
    assert words in broken.detail
    assert "\n" not in broken.detail


class Branching(nn.Linear):
    def forward(self, inputs):
        output = super().forward(inputs)
        return 2 * output if output.mean() > 0 else output


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.last = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, inputs):
        return self.last(self.cells(inputs.squeeze(1))[0][:, -1])


def network(*middle):
    return made(lambda: nn.Conv2d(1, 2, 3), *middle, flat(8, 2))


IN_LOOP = {
    "dropout": (
        network(nn.Dropout),
        "draws at random while it trains, as dropout does: it runs in the loop",
    ),
    "BatchNorm": (
        network(lambda: nn.BatchNorm2d(2)),
        "changes its buffers while it trains, as BatchNorm does: it runs in the loop",
    ),
    "an LSTM": (
        Recurrent,
        (
            "has an operation that would run lane by lane, as that of nn.LSTM does: it runs in the "
            "loop"
        ),
    ),
    "a branch": (
        made(nn.Flatten, lambda: Branching(16, 2)),
        "reads the values of its tensors, as `if x.sum() > 0` does: it runs in the loop",
    ),
}


@pytest.mark.parametrize(("model", "words"), IN_LOOP.values(), ids=IN_LOOP)
def test_a_model_that_only_the_loop_can_train_keeps_every_claim_and_says_why(model, words):
    own(model=model)
    checks = conform("workload", "own")
    assert [check for check in checks if not check.passed] == []
    assert f'workload "own" {words}' in [check.detail for check in checks]


def test_dropout_by_hand_that_draws_in_evaluation_is_found():
    class Careless(nn.Linear):
        def forward(self, inputs):
            return super().forward(functional.dropout(inputs))

    own(model=made(nn.Flatten, lambda: Careless(16, 2)))
    broken = [check for check in conform("workload", "own") if not check.passed]
    assert [check.detail for check in broken] == [
        (
            "the model, where it is evaluated, drew from torch's global random state; dropout by "
            "hand needs `training=self.training`"
        )
    ]


def trained(optimizer="sgd", seed=0):
    part = Part("own", "interactive")
    cell = Cell(part, Part(optimizer, 1), Part("none", 1), 0.1, seed, 6, 4, evaluations=2)
    record = engines.run(Job(cell, {}))
    assert record.failure is None
    return record


def test_dropout_draws_from_the_cells_own_stream():
    """The same seed gives the same masks whatever ran before and whichever optimizer trains;
    another seed gives others; evaluation draws none.
    """
    masks = []

    class Seen(nn.Dropout):
        def forward(self, inputs):
            output = super().forward(inputs)
            if self.training:
                masks[-1].append((output == 0).flatten().tolist())
            else:
                assert torch.equal(output, inputs)
            return output

    own(model=network(Seen))
    runs = []
    for optimizer, seed in (("sgd", 0), ("sgd", 0), ("adam", 0), ("sgd", 1)):
        masks.append([])
        runs.append(trained(optimizer, seed).rows)
    assert runs[0].tobytes() == runs[1].tobytes()
    assert masks[0] == masks[1] == masks[2] != masks[3]
    assert len({str(mask) for mask in masks[0]}) == 6


def test_batch_norm_trains_on_batches_and_is_evaluated_by_its_running_statistics():
    modes = []

    class Seen(nn.BatchNorm2d):
        def forward(self, inputs):
            modes.append((self.training, len(inputs)))
            return super().forward(inputs)

    own(model=network(lambda: Seen(2)))
    first, again = trained(), trained()
    assert first.rows.tobytes() == again.rows.tobytes()
    assert set(modes) == {(True, 4), (False, 20)}
