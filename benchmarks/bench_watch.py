"""What a watch adds to a training step: a hand-written loop with it and without, in turn."""

import shutil
import tempfile
import time
from itertools import pairwise

import pytest
import torch
from torch import nn

import clipbench

# widths, batch, steps a block; a step takes about as many milliseconds as its name says
SIZES = {
    "1 ms": ([64, 128, 128, 10], 256, 200),
    "3 ms": ([128] * 12 + [10], 128, 100),
    "10 ms": ([64, 256, 256, 10], 1536, 40),
}
WARM_UP = 25  # steps, so that the first comparison is over, which makes the memory for the others


def loops(size, clip, **options):
    """Two functions, seconds of a block with a watch and without one."""
    widths, batch, steps = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    net = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    inputs = torch.randn(batch, widths[0], generator=generator)
    targets = torch.randint(0, widths[-1], (batch,), generator=generator)

    def block(count):
        began = time.process_time()
        for _ in range(count):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), targets).backward()
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
        return time.process_time() - began

    def watched():
        folder = tempfile.mkdtemp()
        watch = clipbench.watch(net, optimizer, f"{folder}/run", **options).start()
        try:
            block(WARM_UP)
            return block(steps)
        finally:
            watch.stop()
            shutil.rmtree(folder)

    return watched, lambda: block(steps)


@pytest.mark.parametrize(("size", "goal"), [("1 ms", 1.10), ("3 ms", 1.10), ("10 ms", 1.03)])
def test_a_watch_against_the_loop_alone(ratio, size, goal):
    name = f"loop with torch's norm clip, {size} a step, watched / alone"
    assert ratio(name, *loops(size, clip=True), pairs=15, at_most=goal) > 0


@pytest.mark.parametrize("size", ["3 ms", "10 ms"])
def test_a_watch_of_a_loop_without_a_clip(ratio, size):
    """It takes the norm itself, which the clip hands over else."""
    name = f"loop without a clip, {size} a step, watched / alone"
    assert ratio(name, *loops(size, clip=False), pairs=15) > 0


@pytest.mark.parametrize("size", ["3 ms", "10 ms"])
def test_an_exact_watch_against_the_loop_alone(ratio, size):
    name = f"loop with torch's norm clip, {size} a step, watched exactly / alone"
    assert ratio(name, *loops(size, clip=True, exact=True), pairs=15, at_most=1.25) > 0
