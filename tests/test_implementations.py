"""However a clip and a step are written, the weights are those of torch's own pair; and what is
counted of them is right.
"""

import shutil
import sys
from itertools import pairwise
from math import prod
from types import SimpleNamespace

import pytest
import torch
import warm
from torch import nn

from clipbench import optimizers, registry
from clipbench.errors import UsageError
from clipbench.throughput import IMPLEMENTATIONS, SIZES, Unfit, implementations_named, sizes_named
from clipbench.throughput.floor import Reference, floor_bytes, held_bytes
from clipbench.throughput.footprint import STEP, WAITS, _on_device, footprint
from clipbench.throughput.implementations import flattened
from clipbench.throughput.sizes import count, named
from clipbench.throughput.turns import FEWEST_ROUNDS, Blocks, Pace, take_turns
from clipbench.throughput.updates import Given, Update, Weights, halved

SHAPES = [(5, 3), (5,), (2, 5), (2,)]
CLIPS = {"none": {}, "value": {"max_value": 0.004}, "norm": {"max_norm": 0.01}}
RULES = ("sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw")
STEPS = 5
COMPILER = shutil.which("g++") or shutil.which("clang++")
BUILT = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            "compiled" in name and not COMPILER, reason="no C++ compiler is here"
        ),
    )
    for name in IMPLEMENTATIONS
]


@pytest.fixture(autouse=True, scope="module")
def _packaged():
    registry.load_packaged()


def clip(name, **settings):
    return registry.build("clip", name, settings or CLIPS[name])


def by_torch(rule, name, given, settings):
    """The weights after some steps of ``torch.optim`` and torch's own clip functions, written
    here once more.
    """
    params = given.params()
    optimizer = registry.build("optimizer", rule, {}).torch(params, 0.01)
    for _ in range(STEPS):
        for param, grad in zip(params, given.drawn(flat=False), strict=True):
            param.grad = grad.clone()
        if name == "value":
            nn.utils.clip_grad_value_(params, settings["max_value"])
        if name == "norm":
            nn.utils.clip_grad_norm_(params, settings["max_norm"])
        optimizer.step()
    return torch.cat([param.detach().flatten() for param in params])


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("implementation", BUILT)
def test_every_implementation_leaves_the_weights_that_torchs_own_pair_leaves(
    implementation, rule, name
):
    """Within 1e-6 relative, in float64: torch's fused steps take the norm's factor in float32."""
    given = Given(SHAPES, torch.float64, "cpu")
    if (implementation in ("fused", "fast") and rule == "rmsprop") or (
        implementation == "fast-compiled" and rule not in RULES[:3]
    ):
        pytest.skip("there is no such step")
    weights = Weights(implementation, registry.build("optimizer", rule, {}), 0.01, given)
    update = Update(weights, clip(name))
    for _ in range(STEPS):
        weights.renew()
        update.update()
    found = torch.cat([param.detach().flatten() for param in weights.built.params])
    torch.testing.assert_close(
        found, by_torch(rule, name, given, CLIPS[name]), rtol=1e-6, atol=1e-12
    )
    assert not torch.equal(found, given.weights)


@pytest.mark.parametrize(
    "implementation", [name for name in IMPLEMENTATIONS if "compiled" not in name]
)
def test_a_step_without_a_clip_is_none_the_less_so_after_one_with_it(implementation):
    """They share an optimizer: a factor that a fused step was given must not stay."""
    given = Given(SHAPES, torch.float64, "cpu")
    weights = Weights(implementation, registry.build("optimizer", "sgd", {}), 1.0, given)
    clipped, plain = Update(weights, clip("norm", max_norm=1e-9)), Update(weights, clip("none"))
    weights.renew()
    clipped.update()
    weights.renew()
    before = torch.cat([param.detach().flatten() for param in weights.built.params])
    plain.update()
    moved = before - torch.cat([param.detach().flatten() for param in weights.built.params])
    torch.testing.assert_close(moved, given.grads)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("name", "settings"), [("layer", {"max_norm": 0.1}), ("adaptive", {})])
def test_a_clip_that_cannot_be_written_so_is_refused_with_a_reason(implementation, name, settings):
    given = Given(SHAPES, torch.float32, "cpu")
    weights = Weights(implementation, registry.build("optimizer", "sgd", {}), 0.01, given)
    if implementation == "torch":
        assert Update(weights, registry.build("clip", name, settings)).block(1) > 0
    else:
        with pytest.raises(Unfit, match=r"\w"):
            Update(weights, registry.build("clip", name, settings))


def test_an_optimizer_without_a_fused_step_and_one_of_unknown_elements_are_refused():
    given = Given(SHAPES, torch.float32, "cpu")
    with pytest.raises(Unfit, match="knows no `fused`"):
        Weights("fused", registry.build("optimizer", "rmsprop", {}), 0.01, given)
    stranger = optimizers.torch_class("torch.optim.NAdam")
    rule = SimpleNamespace(torch=lambda params, lr: stranger(params, lr=lr))
    for implementation in ("flat", "compiled"):
        with pytest.raises(Unfit, match="all be treated alike"):
            Weights(implementation, rule, 0.01, given)
    assert Update(Weights("foreach", rule, 0.01, given), clip("norm")).block(1) > 0


def test_without_a_compiler_the_compiled_program_is_left_out_and_says_why(tmp_path):
    """In a process where neither ``g++`` nor ``clang++`` is found, with no program of an earlier
    run at hand.
    """
    code = """
import torch
from clipbench import registry
from clipbench.throughput import Unfit
from clipbench.throughput.updates import Given, Update, Weights
registry.load_packaged()
sgd, given = registry.build("optimizer", "sgd", {}), Given([(3,)], torch.float32, "cpu")
weights = Weights("compiled", sgd, 0.1, given)
try:
    Update(weights, registry.build("clip", "none", {}))
except Unfit as unfit:
    print(unfit)
"""
    environment = {
        "PATH": str(tmp_path),
        "PYTHONPATH": ":".join(sys.path),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "CXX": "none",
    }
    done = warm.run("-c", code, env=environment)
    assert done.stdout == "no C++ compiler was found\n", done.stderr


def test_weights_and_gradients_become_views_of_one_tensor_each_and_keep_their_values():
    params = Given(SHAPES, torch.float32, "cpu").params()
    params[1].grad = None
    before = [param.detach().clone() for param in params]
    whole = flattened(params)
    whole.data.mul_(2)
    whole.grad.add_(1)
    assert all(torch.equal(param, 2 * old) for param, old in zip(params, before, strict=True))
    assert torch.equal(params[1].grad, torch.ones(5))
    assert whole.numel() == sum(map(prod, SHAPES))


@pytest.mark.parametrize("implementation", BUILT)
def test_gradients_are_given_anew_at_every_step_so_that_the_clip_always_fires(implementation):
    given = Given(SHAPES, torch.float32, "cpu")
    weights = Weights(implementation, registry.build("optimizer", "sgd", {}), 1e-3, given)
    update = Update(weights, clip("value", max_value=1e-4))
    update.block(3)
    weights.renew()
    assert torch.equal(torch.cat([grad.flatten() for grad in weights.built.grads]), given.grads)


def test_thresholds_are_half_of_the_gradients_size_where_a_clip_has_one():
    given = Given(SHAPES, torch.float64, "cpu")
    assert halved(type(clip("norm")), {"max_norm": 7.0}, given)["max_norm"] == pytest.approx(
        given.grads.norm().item() / 2, rel=5e-3
    )
    assert halved(type(clip("value")), {"max_value": 7.0}, given)["max_value"] == pytest.approx(
        given.grads.abs().max().item() / 2, rel=5e-3
    )
    assert halved(type(clip("none")), {}, given) == {}


# -------------------------------------------------------------------------------------------- sizes


def test_the_largest_sizes_are_those_of_the_published_networks():
    """ResNet-18 has 11,689,512 parameters in 62 tensors and ResNet-50 25,557,032 in 161
    (torchvision).
    """
    found = {word: (sum(map(prod, SIZES[word])), len(SIZES[word])) for word in ("11.7M", "25.6M")}
    assert found == {"11.7M": (11_689_512, 62), "25.6M": (25_557_032, 161)}


def test_sizes_go_from_1k_to_25m_and_have_many_tiny_tensors_among_them():
    sizes = sorted(sum(map(prod, shapes)) for shapes in SIZES.values())
    assert sizes[0] <= 1_000
    assert sizes[-1] >= 25_000_000
    assert all(after / before < 30 for before, after in pairwise(sizes))
    assert len(SIZES["tiny"]) >= 120
    assert max(map(prod, SIZES["tiny"])) <= 64


def test_a_size_is_named_after_its_parameters_and_tensors():
    assert named(SIZES["11.7M"]) == "11.7M in 62 tensors"
    assert [count(number) for number in (10, 993, 9_600, 248_776, 25_557_032)] == [
        "10",
        "993",
        "9.6k",
        "249k",
        "25.6M",
    ]
    assert list(sizes_named("1k, tiny")) == ["993 in 4 tensors", "9.6k in 150 tensors"]
    assert sizes_named("none") == {}
    assert len(sizes_named(None)) == len(SIZES)


def test_an_unknown_size_or_implementation_is_one_sentence():
    with pytest.raises(
        UsageError,
        match=(
            r'^--sizes: there is no size "11\.7m"\. Did you mean 11\.7M\? There are: .*; '
            r"or none\.$"
        ),
    ):
        sizes_named("1k,11.7m")
    with pytest.raises(
        UsageError,
        match=(
            r'^--implementation: there is no implementation "fussed"\. Did you mean fused\? '
            r"There are: "
        ),
    ):
        implementations_named("torch,fussed")
    assert implementations_named("flat,torch,flat") == ["flat", "torch"]


# ----------------------------------------------------------------------------- the floor, and turns


@pytest.mark.parametrize(
    ("optimizer", "name", "bytes_a_parameter"),
    [
        ("momentum", "none", 20),
        ("momentum", "value", 20),
        ("momentum", "norm", 24),
        ("adamw", "none", 28),
        ("adamw", "norm", 32),
        ("sgd", "none", 12),
    ],
)
def test_the_floor_is_what_must_be_read_and_written_in_float32(optimizer, name, bytes_a_parameter):
    assert floor_bytes(optimizer, name, 4_000) == 1_000 * bytes_a_parameter


def test_nobody_has_counted_a_strangers_floor():
    assert floor_bytes("torch.optim.NAdam", "norm", 4) is None
    assert floor_bytes("sgd", "layer", 4) is None
    assert held_bytes("torch.optim.NAdam", 4) is None


def test_what_the_floor_takes_is_what_the_reference_took_a_byte_in_the_same_round():
    """Two tensors of 500 float32 share the 4,000 bytes; a sum moves 6,000: at 2 s for two steps,
    12,000 bytes take 2 s.
    """
    reference = Reference(4_000, torch.float32, "cpu")
    assert reference.moved == 6_000
    blocks = Blocks(torch.tensor([2.0, 4.0, 2.0, 2.0, 9.0]), steps=2)
    assert reference.takes(12_000, blocks) == [2.0, 4.0, 2.0, 2.0, None]
    assert reference.block(3) > 0


class Clock:
    """A contender that takes what it is told to."""

    def __init__(self, each, blocks=()):
        self.each, self.blocks, self.asked = each, list(blocks), []

    def block(self, steps):
        self.asked.append(steps)
        return self.blocks.pop(0) if len(self.asked) > 2 and self.blocks else self.each * steps


def test_groups_have_blocks_of_their_own_length_and_their_members_the_same():
    quick, slow, other = Clock(0.001), Clock(0.004), Clock(0.1)
    (first, second), (third,) = take_turns(
        [[quick, slow], [other]], Pace(rounds=10, seconds=0.01, warm_up=2)
    )
    assert (first.steps, second.steps, third.steps) == (10, 10, 1)
    assert quick.asked == [2, 3, *[10] * 10]
    assert first.seconds.tolist() == pytest.approx([0.01] * 10)


def test_there_are_fewer_rounds_where_one_takes_long_but_never_too_few_for_an_interval():
    def rounds(limit):
        ((blocks,),) = take_turns(
            [[Clock(0.1)]], Pace(rounds=30, seconds=0.01, warm_up=1, limit=limit)
        )
        return len(blocks.seconds)

    assert [rounds(limit) for limit in (100, 1.501, 0.1)] == [30, 15, FEWEST_ROUNDS]


def test_a_block_of_more_than_twice_the_median_is_not_valid():
    ((blocks,),) = take_turns(
        [[Clock(1.0, [1, 2, 2.01, 1, 1, 1, 1, 1])]], Pace(rounds=8, seconds=1, warm_up=1)
    )
    assert blocks.valid.tolist() == [True, True, False, True, True, True, True, True]


# ---------------------------------------------------------------------------------------- footprint


def test_a_fast_step_holds_the_vector_of_its_norm_beside_weights_gradients_and_state():
    weights = Weights(
        "fast",
        registry.build("optimizer", "momentum", {}),
        0.01,
        Given(SHAPES, torch.float32, "cpu"),
    )
    update = Update(weights, clip("norm"))
    for _ in range(2):
        weights.renew()
        update.update()
    assert sum(tensor.numel() for tensor in weights.built.held()) == 4 * sum(map(prod, SHAPES))


def test_peak_memory_is_what_is_held_and_the_most_on_top_of_it():
    held = [torch.zeros(1000), torch.zeros(500, dtype=torch.float64)]
    assert footprint(lambda: None, held, "cpu").peak_bytes == 8_000
    assert footprint(lambda: torch.zeros(3000).sum(), held, "cpu").peak_bytes >= 20_000
    taken = footprint(lambda: None, held, "cpu")
    assert (taken.kernels, taken.synchronisations) == (None, None)


def test_kernels_are_counted_without_copies_and_waits_within_the_step_only():
    """On what the profiler would say of a device; the step is from 100 to 200."""
    kind = torch.autograd.DeviceType

    def event(name, start, device=kind.CPU, duration=1, annotation=False):
        return SimpleNamespace(
            name=lambda: name,
            is_user_annotation=lambda: annotation,
            start_ns=lambda: start,
            duration_ns=lambda: duration,
            device_type=lambda: device,
        )

    events = [
        event(STEP, 100, duration=100),
        event(STEP, 130, kind.CUDA, annotation=True),
        event("multi_tensor_apply_kernel", 150, kind.CUDA),
        event("reduce_kernel", 230, kind.CUDA),
        event("Memcpy DtoH (Device -> Pinned)", 160, kind.CUDA),
        event("Memset (Device)", 140, kind.CUDA),
        event("Optimizer.step#SGD.step", 145, kind.CUDA, annotation=True),
        event("cudaLaunchKernel", 120),
        event(WAITS[1], 170),
        event(WAITS[0], 210),
    ]
    assert _on_device(events) == (2, 1)
