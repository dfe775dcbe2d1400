"""What must hold exactly between clips and optimizers, on a real problem in float64: the torch
objects a user would step.
"""

from __future__ import annotations

import math

import pytest
import torch

import clipbench.workloads  # noqa: F401  (registers them)
from clipbench import clips, feed, optimizers, registry

STEPS = 40


@pytest.fixture(scope="module")
def wdbc():
    return registry.build("workload", "wdbc", {})


def trained(workload, optimizer, clip, lr, steps=STEPS, dtype=torch.float64, seen=None):
    """The weights after some steps; ``seen`` is called with the gradients and the weights before
    and after each.
    """
    module = feed.model(workload, 0, dtype)
    params = list(module.parameters())
    stepped = optimizer.torch(params, lr)
    for inputs, targets in feed.batches(workload, 0, 32, steps, dtype):
        stepped.zero_grad()
        feed.loss_of(workload, module(inputs), targets).backward()
        raw, before = (
            [param.grad.clone() for param in params],
            [param.detach().clone() for param in params],
        )
        if hasattr(clip, "clip_"):
            clip.clip_(params)
        clipped = [param.grad.clone() for param in params]
        stepped.step()
        if seen:
            seen(raw, clipped, before, [param.detach() for param in params])
    return torch.cat([param.detach().flatten() for param in params])


@pytest.mark.parametrize(
    "optimizer", [optimizers.SGD(), optimizers.Momentum()], ids=["sgd", "momentum"]
)
def test_an_always_active_norm_clip_leaves_only_the_product_of_lr_and_threshold(wdbc, optimizer):
    active = []

    def seen(raw, clipped, *_):
        active.append(all((a.abs() < b.abs()).any() for a, b in zip(clipped, raw, strict=True)))

    tight = trained(wdbc, optimizer, clips.Norm(1e-3), 0.1, seen=seen)
    assert all(active)
    # Powers of two are exact: bit for bit. Tens are not: the last bit of each step.
    assert torch.equal(tight, trained(wdbc, optimizer, clips.Norm(8e-3), 0.1 / 8))
    torch.testing.assert_close(
        tight, trained(wdbc, optimizer, clips.Norm(1e-2), 0.01), rtol=0, atol=1e-15
    )


class Smooth:
    """wdbc with a tanh network: a dead ReLU's gradient is exactly 0, and 0/0 without the
    epsilon.
    """

    name = "wdbc"

    def __init__(self, wdbc):
        self.data, self.loss = wdbc.data, wdbc.loss

    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(30, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def test_adam_without_epsilon_ignores_an_always_active_threshold(wdbc):
    smooth = Smooth(wdbc)
    plain, guarded = optimizers.Adam(eps=0.0), optimizers.Adam()
    one, other = (trained(smooth, plain, clips.Norm(limit), 1e-3) for limit in (1e-3, 1e-5))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    one, other = (trained(smooth, guarded, clips.Norm(limit), 1e-3) for limit in (1e-3, 1e-5))
    assert (one - other).abs().max() > 1e-5


def test_a_value_clip_below_every_element_is_sign_descent(wdbc):
    def seen(raw, clipped, *_):
        for before, after in zip(raw, clipped, strict=True):
            limit = 1e-30
            moved = before.abs() >= limit
            assert torch.equal(after[moved], (limit * before.sign())[moved])
            assert moved.float().mean() > 0.5

    trained(wdbc, optimizers.SGD(), clips.Value(1e-30), 1.0, seen=seen)
    grads = {"w": torch.tensor([3.0, -0.2, 0.011], dtype=torch.float64)}
    assert torch.equal(clips.Value(0.01).update(grads, {}, grads)[0]["w"], 0.01 * grads["w"].sign())


def test_at_the_origins_setting_no_weight_moves_more_than_a_thousandth_a_step(wdbc):
    """lr c / (1 − μ): clipped gradients of at most c, summed as a geometric series."""
    furthest = []

    def seen(_raw, _clipped, before, after):
        furthest.append(max(float((b - a).abs().max()) for b, a in zip(before, after, strict=True)))

    trained(wdbc, optimizers.Momentum(0.9), clips.Value(0.01), 0.01, steps=150, seen=seen)
    assert max(furthest) <= 1e-3 * (1 + 1e-9)
    assert max(furthest) > 5e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [clips.Norm, clips.Layer, clips.Value])
def test_an_infinite_threshold_is_no_clip_bit_for_bit(wdbc, kind, dtype):
    free = trained(wdbc, optimizers.Momentum(), clips.Unclipped(), 0.1, dtype=dtype)
    assert torch.equal(trained(wdbc, optimizers.Momentum(), kind(math.inf), 0.1, dtype=dtype), free)
