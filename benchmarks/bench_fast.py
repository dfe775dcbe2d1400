"""What the fast clips save: against torch's pair at its defaults, a reference written by hand,
and the bytes that must move.
"""

import time
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from clipbench import fast

LR, MOMENTUM, MAX_NORM, MAX_VALUE = 1e-6, 0.9, 1.0, 0.5


def resnet(widths=(64, 128, 256, 512)):
    """The 62 shapes of a ResNet-18: 11,689,512 parameters."""
    shapes, before = [(64, 3, 7, 7), (64,), (64,)], 64
    for width in widths:
        for block in range(2):
            shapes += [
                (width, before, 3, 3),
                (width,),
                (width,),
                (width, width, 3, 3),
                (width,),
                (width,),
            ]
            if block == 0 and width != before:
                shapes += [(width, before, 1, 1), (width,), (width,)]
            before = width
    return [*shapes, (1000, 512), (1000,)]


SMALL = {
    "6k in 6": [(64, 30), (64,), (64, 64), (64,), (2, 64), (2,)],
    "250k in 20": [(157, 157), (157,)] * 10,
}
TINY = {
    "8k in 120": [(64,)] * 120,
    "10k in 300": [(index % 7 + 1, index % 11 + 3) for index in range(300)],
}
LARGE = {"12M in 62": resnet(), "25M in 4": [(2500, 2500)] * 4}
SIZES = SMALL | TINY | LARGE
NORM_BOUNDS = dict.fromkeys(SMALL, 0.4) | dict.fromkeys(TINY, 0.1) | dict.fromkeys(LARGE, 0.7)


def weights(size):
    drawn = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=drawn)) for shape in SIZES[size]]
    for param in params:
        param.grad = torch.randn(param.shape, generator=drawn)
    return params


def with_optimizer(size, make=torch.optim.SGD, **settings):
    """Weights with gradients, and their optimizer after its first step, which makes the state."""
    params = weights(size)
    optimizer = make(params, lr=LR, **settings)
    optimizer.step()
    return params, optimizer


def timed(call, size):
    """Seconds of one call, the mean of some milliseconds' worth, on the thread's own clock: a
    neighbour's turn is not ours.

    The first calls are not counted: they find the caches full of the other side's data.
    """
    count = max(1, min(40, 500_000 // sum(torch.Size(shape).numel() for shape in SIZES[size])))
    return block_of(call, count)


def block_of(call, count):
    """As `timed`, of so many calls."""

    def block():
        for _ in range(min(3, count)):
            call()
        start = time.thread_time()
        for _ in range(count):
            call()
        return (time.thread_time() - start) / count

    return block


HOW = {"fast": {}, "fast, compiled": {"compiled": True}}


def norm_steps(size, make=torch.optim.SGD, how="fast", **settings):
    """The fast step and torch's pair, on the same weights: what memory each happens to have
    matters more than what is measured.
    """
    params, optimizer = with_optimizer(size, make, **settings)
    return (
        timed(lambda: fast.norm_clipped_step(optimizer, MAX_NORM, **HOW[how]), size),
        timed(lambda: (clip_grad_norm_(params, MAX_NORM), optimizer.step()), size),
    )


def value_steps(size, how="fast"):
    """The same for a value clip with momentum."""
    params, optimizer = with_optimizer(size, momentum=MOMENTUM)
    return (
        timed(lambda: fast.value_clipped_step(optimizer, MAX_VALUE, **HOW[how]), size),
        timed(lambda: (clip_grad_value_(params, MAX_VALUE), optimizer.step()), size),
    )


def by_hand(size):
    """The frozen reference: norm clip and momentum as a careful user writes them. It is never
    made faster.
    """
    params = weights(size)
    buffers = [torch.zeros_like(param) for param in params]

    @torch.no_grad()
    def step():
        norms = [torch.linalg.vector_norm(param.grad) for param in params]
        total = torch.linalg.vector_norm(torch.stack(norms)).item()
        coefficient = min(MAX_NORM / (total + 1e-6), 1.0)
        for param, buffer in zip(params, buffers, strict=True):
            buffer.mul_(MOMENTUM).add_(param.grad, alpha=coefficient)
            param.add_(buffer, alpha=-LR)

    return step


def floor(size, bytes_each):
    """Seconds in which ``add_`` moves so many bytes a parameter, over as much memory as weights,
    gradients and momentum take.
    """
    params = sum(torch.Size(shape).numel() for shape in SIZES[size])
    # 12 bytes an element of each: two read, one written
    left, right = torch.ones(params * 3 // 2), torch.ones(params * 3 // 2)
    block = timed(lambda: left.add_(right), size)
    return lambda: block() * bytes_each / 18


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", HOW)
def test_norm_clip_and_momentum_against_the_default_pair(ratio, how, size):
    ours, theirs = norm_steps(size, how=how, momentum=MOMENTUM)
    assert (
        ratio(
            f"norm clip + momentum, {size}: {how} / default pair",
            ours,
            theirs,
            at_most=NORM_BOUNDS[size],
        )
        > 0
    )


@pytest.mark.parametrize("size", SIZES)
def test_norm_clip_and_momentum_against_the_reference(ratio, size):
    ours, _ = norm_steps(size, momentum=MOMENTUM)
    assert (
        ratio(
            f"norm clip + momentum, {size}: fast / written by hand",
            ours,
            timed(by_hand(size), size),
        )
        > 0
    )


@pytest.mark.parametrize("size", SIZES)
def test_norm_clip_and_adamw_against_the_default_pair(ratio, size):
    ours, theirs = norm_steps(size, torch.optim.AdamW)
    assert (
        ratio(
            f"norm clip + AdamW, {size}: fast / default pair",
            ours,
            theirs,
            9 if size in LARGE else 25,
        )
        > 0
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", HOW)
def test_value_clip_and_momentum_against_the_default_pair(ratio, how, size):
    """The bound is that of one pass over memory, which torch's kernels cannot keep."""
    bound = {"at_most": 0.5} if size in LARGE and HOW[how] else {}
    assert (
        ratio(
            f"value clip + momentum, {size}: {how} / default pair", *value_steps(size, how), **bound
        )
        > 0
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", HOW)
def test_value_clip_alone_against_torchs(ratio, how, size):
    """Half the bytes of torch's two passes: at sizes where memory decides, the bound is what one
    pass can reach.
    """
    params = weights(size)
    quick = timed(lambda: fast.clip_grad_value_(params, MAX_VALUE, **HOW[how]), size)
    default = timed(lambda: clip_grad_value_(params, MAX_VALUE), size)
    bound = {"at_most": 0.5} if size in LARGE else {}
    assert ratio(f"value clip, {size}: {how} / default", quick, default, **bound) > 0


CHANNELS_LAST = [(64, 64, 3, 3)] * 20
OPTIMIZERS = {
    "momentum": (torch.optim.SGD, {"momentum": MOMENTUM}),
    "AdamW": (torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_channels_last_weights_against_the_default_pair(ratio, rule, form):
    """The same tensors in both layouts: what is saved must not hang on it."""
    drawn = torch.Generator().manual_seed(0)
    params = [
        nn.Parameter(torch.randn(shape, generator=drawn).to(memory_format=form))
        for shape in CHANNELS_LAST
    ]
    for param in params:
        param.grad = torch.randn(param.shape, generator=drawn).to(memory_format=form)
    cls, settings = OPTIMIZERS[rule]
    optimizer = cls(params, lr=LR, **settings)
    optimizer.step()
    for name, quick, clip, limit in (
        ("norm", fast.norm_clipped_step, clip_grad_norm_, MAX_NORM),
        ("value", fast.value_clipped_step, clip_grad_value_, MAX_VALUE),
    ):
        ours = block_of(lambda quick=quick, limit=limit: quick(optimizer, limit), 5)
        theirs = block_of(lambda clip=clip, limit=limit: (clip(params, limit), optimizer.step()), 5)
        label = f"{name} clip + {rule}, 20 of (64, 64, 3, 3), {form}: fast / default pair"
        assert ratio(label, ours, theirs, at_most=0.75) > 0


class Encoder(nn.Module):
    """Two layers of a transformer over 32 positions, and a linear one that reads their mean."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(192, 4, 576, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(192, 10)

    def forward(self, inputs):
        return self.last(self.layers(inputs).mean(dim=1))


def perceptron(inputs, width, depth):
    widths = [inputs] + [width] * depth
    rows = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    return nn.Sequential(*(layer for row in rows for layer in row), nn.Linear(width, 10))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


# a model and the shape of a batch of 32
MODELS = {
    "perceptron, 7k": (lambda: perceptron(30, 64, 2), (32, 30)),
    "conv net, 57k": (convolutions, (32, 3, 32, 32)),
    "perceptron, 142k": (lambda: perceptron(64, 128, 9), (32, 64)),
    "transformer, 740k": (Encoder, (32, 32, 192)),
    "perceptron, 5.5M": (lambda: perceptron(256, 1600, 3), (32, 256)),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_a_whole_step_of_training_against_both_pairs(ratio, rule, model):
    """Forward, backward, clip and step, beside torch's pair as it is and with ``fused=True``; all
    three train the same model.
    """
    make, shape = MODELS[model]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, inputs, targets = make(), torch.randn(shape), torch.randint(10, (32,))
    cls, settings = OPTIMIZERS[rule]
    ours, plain, fused = (
        cls(net.parameters(), lr=LR, **settings, **more) for more in ({}, {}, {"fused": True})
    )

    def training(optimizer, clip_and_step):
        def step():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), targets).backward()
            clip_and_step(optimizer)

        return block_of(step, 5)

    def torchs(optimizer):
        clip_grad_norm_(net.parameters(), MAX_NORM)
        optimizer.step()

    quick = training(ours, lambda one: fast.norm_clipped_step(one, MAX_NORM))
    for name, rival in (("default", plain), ("fused", fused)):
        label = f"a whole step, {model}, {rule}: fast / {name} pair"
        assert ratio(label, quick, training(rival, torchs), 25) > 0


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("how", HOW)
def test_share_of_the_floor(ratio, how, size):
    """Floor: weights, gradients and momentum read once, weights and momentum written once; the
    norm reads the gradients before.
    """
    norm, _ = norm_steps(size, how=how, momentum=MOMENTUM)
    value, _ = value_steps(size, how)
    bound = {"at_least": 0.85} if HOW[how] else {}
    assert (
        ratio(
            f"norm clip + momentum, {size}: {how}, share of the floor reached",
            floor(size, 24),
            norm,
            at_least=0.65,
        )
        > 0
    )
    assert (
        ratio(
            f"value clip + momentum, {size}: {how}, share of the floor reached",
            floor(size, 20),
            value,
            **bound,
        )
        > 0
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", ["fast", "default pair"])
def test_norm_clip_and_momentum(benchmark, step, size):
    benchmark.group = f"norm clip + momentum, {size}"
    params, optimizer = with_optimizer(size, momentum=MOMENTUM)
    if step == "fast":
        benchmark(fast.norm_clipped_step, optimizer, MAX_NORM)
    else:
        benchmark(lambda: (clip_grad_norm_(params, MAX_NORM), optimizer.step()))
