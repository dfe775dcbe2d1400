"""What each packaged clip takes on gradients of three sizes, torch's own in-place path beside
the pure rule.
"""

import pytest
import torch
from torch import nn

from clipbench import engines, registry
from clipbench.conformance.settings import examples

SIZES = {
    "6k in 6 tensors": [(64, 30), (64,), (64, 64), (64,), (2, 64), (2,)],
    "1.2M in 2 tensors": [(1024, 1024), (128, 1024)],
}
registry.load_packaged()
SETTINGS = {name: examples(registry.find("clip", name))[0] for name in registry.names("clip")}


def weights(shapes):
    drawn = torch.Generator().manual_seed(0)
    named = {
        f"p{number}": nn.Parameter(torch.randn(shape, generator=drawn))
        for number, shape in enumerate(shapes)
    }
    for param in named.values():
        param.grad = torch.randn(param.shape, generator=drawn)
    return named


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SETTINGS)
def test_clip_as_the_loop_applies_it(benchmark, name, size):
    benchmark.group = f"clip, {size}"
    named = weights(SIZES[size])
    apply = engines.clipper(registry.build("clip", name, SETTINGS[name]), named)
    benchmark(apply)
    assert all(torch.isfinite(param.grad).all() for param in named.values())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "none"])
def test_clip_as_a_pure_rule(benchmark, name, size):
    benchmark.group = f"clip, {size}"
    named = weights(SIZES[size])
    clip = registry.build("clip", name, SETTINGS[name])
    grads = {key: param.grad for key, param in named.items()}
    params = {key: param.detach() for key, param in named.items()}
    state = clip.init(params) if hasattr(clip, "init") else {}
    clipped, _ = benchmark(clip.update, grads, state, params)
    assert clipped.keys() == grads.keys()
