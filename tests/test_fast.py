"""Fast clips: the weights and the state that torch's own pair leaves, wherever the fast way
applies, and wherever it does not.
"""

from __future__ import annotations

import copy
import functools
import gc
import io
import math
import re
import shutil
import sys
import types
import warnings
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import skip_init
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from clipbench import UsageError, fast
from clipbench.fast import one_pass
from clipbench.fast import plan as plan_

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
SHAPES = [(3,), (4, 5), (70, 80), (), (2, 3, 2, 2), (0, 4), (1, 7)]
RULES = {
    "plain": (SGD, {}),
    "weight decay": (SGD, {"weight_decay": 0.1}),
    "momentum": (SGD, {"momentum": 0.9}),
    "dampening": (SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "all dampened": (SGD, {"momentum": 0.9, "dampening": 1.0}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "maximize": (SGD, {"momentum": 0.9, "maximize": True, "weight_decay": 0.1}),
    "adam": (Adam, {"weight_decay": 0.1}),
    "adamw": (AdamW, {}),
    "adamw, maximize": (AdamW, {"maximize": True}),
    "adam, fused": (Adam, {"fused": True}),
    "sgd, foreach": (SGD, {"momentum": 0.9, "foreach": True}),
}
# Weights and thresholds are of order 1; a sum that cancels keeps the rounding of what was added.
TOLERANCE = {
    torch.float32: {"rtol": 1e-6, "atol": 5e-7},
    torch.float64: {"rtol": 1e-12, "atol": 1e-14},
}
NORM, VALUE = "norm", "value"
COMPILER = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
QUICK = {}


def weights(shapes=SHAPES, dtype=torch.float32, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=drawn, dtype=dtype)) for shape in shapes]


def fill(params, step, size=1.0):
    """Fresh gradients, as after ``zero_grad`` and ``backward``: the same ones for the same step."""
    drawn = torch.Generator().manual_seed(1000 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=drawn, dtype=param.dtype) * size


@pytest.fixture(scope="module", autouse=True, params=["torch's kernels", "our own kernels"])
def compiled(request):
    """Every claim is made twice: of the steps as they are, and ``compiled``."""
    own = request.param == "our own kernels"
    if own and COMPILER is None:
        pytest.skip("no C++ compiler is here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "QUICK", {"compiled": own})
        yield own


def quick(optimizer, clip, threshold):
    step = fast.norm_clipped_step if clip == NORM else fast.value_clipped_step
    return step(optimizer, threshold, **QUICK)


def plan_of(optimizer):
    return vars(optimizer).get(fast._PLAN)


def pair(optimizer, clip, threshold):
    params = [param for group in optimizer.param_groups for param in group["params"]]
    clipper = nn.utils.clip_grad_norm_ if clip == NORM else nn.utils.clip_grad_value_
    total = clipper(params, threshold)
    optimizer.step()
    return total


class Twins:
    """One model twice: ``ours`` steps by the fast way, ``torchs`` by the pair."""

    def __init__(
        self,
        cls=SGD,
        settings=None,
        shapes=SHAPES,
        dtype=torch.float32,
        split=None,
        clip=NORM,
        threshold=1.0,
    ):
        self.dtype, self.clip, self.threshold = dtype, clip, threshold
        settings = {"lr": 0.05, "momentum": 0.9} if settings is None else {"lr": 0.05, **settings}
        self.params, self.optimizers = [weights(shapes, dtype) for _ in range(2)], []
        for params in self.params:
            groups = (
                [{"params": params[:split]}, {"params": params[split:], "lr": 0.01}]
                if split
                else params
            )
            self.optimizers.append(cls(groups, **settings))
        self.count = 0

    def each(self, change):
        for params, optimizer in zip(self.params, self.optimizers, strict=True):
            change(params, optimizer)

    def step(self, size=1.0, change=None):
        for optimizer in self.optimizers:
            fill(
                [param for group in optimizer.param_groups for param in group["params"]],
                self.count,
                size,
            )
        if change is not None:
            self.each(change)
        totals = [
            go(one, self.clip, self.threshold)
            for go, one in zip((quick, pair), self.optimizers, strict=True)
        ]
        self.count += 1
        return totals

    def agree(self):
        ours, torchs = self.params
        for mine, theirs in zip(ours, torchs, strict=True):
            torch.testing.assert_close(
                mine.detach(), theirs.detach(), equal_nan=True, **TOLERANCE[self.dtype]
            )
        here, there = (one.state_dict() for one in self.optimizers)
        assert here["param_groups"] == there["param_groups"]
        torch.testing.assert_close(
            here["state"], there["state"], equal_nan=True, **TOLERANCE[self.dtype]
        )

    @property
    def planned(self):
        return plan_of(self.optimizers[0]) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("clip", [NORM, VALUE])
@pytest.mark.parametrize("rule", RULES)
def test_weights_and_state_are_those_of_torchs_pair(rule, clip, dtype):
    cls, settings = RULES[rule]
    for threshold in (0.5, 1e9):
        twins = Twins(cls, settings, dtype=dtype, clip=clip, threshold=threshold)
        for _ in range(12):
            ours, torchs = twins.step()
            if clip == NORM:
                torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=0)
            twins.agree()
        assert twins.planned


@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=12),
    threshold=st.sampled_from([0.0, 1e-12, 1e-3, 0.5, 1.0, 30.0, math.inf]),
    size=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    rule=st.sampled_from(sorted(RULES)),
    clip=st.sampled_from([NORM, VALUE]),
    split=st.integers(0, 3),
    frozen=st.sets(st.integers(0, 11)),
)
def test_any_model_threshold_and_gradient_gives_what_torchs_pair_gives(
    shapes, threshold, size, rule, clip, split, frozen
):
    cls, settings = RULES[rule]
    split = split if 0 < split < len(shapes) else None
    twins = Twins(cls, settings, shapes, torch.float64, split, clip, threshold)
    frozen = {index for index in frozen if index < len(shapes)}
    if len(frozen) == len(shapes):
        frozen.pop()

    def freeze(params, _):
        for index in frozen:
            params[index].grad = None

    for _ in range(4):
        twins.step(size, freeze)
    twins.agree()


# ---------------------------------------------------------------------------------- our own kernels


@pytest.mark.parametrize("clip", [NORM, VALUE])
@pytest.mark.parametrize("rule", ["momentum", "dampening", "plain", "nesterov", "maximize"])
def test_our_own_kernels_give_what_torchs_pair_gives_and_write_no_gradient(rule, clip, compiled):
    """As the learning rate moves, with more elements than one block of a sum has."""
    twins = Twins(*RULES[rule], [(600, 500), (4, 4), (2**15,), (31,)], clip=clip, threshold=0.3)
    for count in range(4):
        twins.step(
            change=lambda _, optimizer, lr=0.1 / (count + 1): optimizer.param_groups[0].update(
                lr=lr
            )
        )
        twins.agree()
    assert twins.planned
    if compiled:
        assert all(bool((param.grad.abs() > 0.3).any()) for param in twins.params[0])


@pytest.mark.parametrize(
    "settings",
    [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 0.0}],
    ids=str,
)
@pytest.mark.parametrize("clip", [NORM, VALUE])
def test_infinite_and_missing_numbers_come_out_as_torch_has_them(settings, clip):
    def spoil(params, _):
        params[0].data[0] = math.inf  # without weight decay no weight enters its own update
        params[2].grad[1, 2], params[2].grad[3, 4] = math.nan, -math.inf

    for threshold in (0.5, math.inf):
        twins = Twins(SGD, settings, clip=clip, threshold=threshold)
        twins.step()
        twins.step(change=spoil)
        twins.agree()


def test_the_norm_overflows_where_torchs_does_and_not_before():
    twins = Twins(shapes=[(300, 20)])
    twins.step()
    for size in (1e16, 1e17, 1e18, 1e21):
        ours, torchs = twins.step(size)
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=0)
    assert ours == math.inf


MOVED = {
    "other memory": torch.clone,
    "another layout": lambda buffer: buffer.t().contiguous().t(),
    "double precision": torch.Tensor.double,
    "half precision": torch.Tensor.bfloat16,
}


@pytest.mark.parametrize("how", MOVED)
def test_momentum_that_was_given_other_memory_is_found_there(how):
    def move(_, optimizer):
        for slot in optimizer.state.values():
            slot["momentum_buffer"].data = MOVED[how](slot["momentum_buffer"].data)

    twins = Twins(shapes=[(300, 20), (7, 3)], clip=VALUE)
    for count in range(5):
        twins.step(change=move if count == 3 else None)
        for mine, theirs in zip(*twins.params, strict=True):
            torch.testing.assert_close(mine, theirs, **TOLERANCE[torch.float32])


def test_gradients_of_another_dtype_go_to_the_pair():
    def narrow(params, _):
        for param in params:
            param.grad.data = param.grad.data.double()

    twins = Twins(shapes=[(300, 20), (7, 3)], clip=VALUE)
    for count in range(5):
        twins.step(change=narrow if count == 3 else None)
        twins.agree()


def test_a_gradient_that_backward_left_negated_goes_to_the_pair_which_refuses_it():
    phase, size = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(1.0))
    optimizer = SGD([size, phase], lr=0.1)
    for make in (
        lambda *parts: torch.complex(*parts).abs(),
        lambda *parts: torch.complex(*parts).conj().abs(),
    ):
        optimizer.zero_grad()
        make(size, phase).square().backward()
        if phase.grad.is_neg():
            with pytest.raises(RuntimeError, match="negat"):
                quick(optimizer, VALUE, 9.0)
        else:
            quick(optimizer, VALUE, 9.0)
    assert phase.grad.is_neg()  # else this torch makes none, and nothing was claimed


def test_parameters_that_overlap_go_to_the_pair():
    """Threads would step them at once."""
    twins = []
    for go in (quick, pair):
        base = torch.linspace(-1, 1, 100_000)
        params = [nn.Parameter(base[start : start + 50_000]) for start in (0, 10_000, 40_000)]
        optimizer = SGD(params, lr=0.1, momentum=0.9, weight_decay=0.3)
        for step in range(4):
            fill(params, step)
            go(optimizer, VALUE, 0.5)
        assert plan_of(optimizer) is None
        twins.append(base)
    assert torch.equal(*twins)


def test_the_compiled_norm_is_the_same_for_every_number_of_threads(compiled):
    if not compiled:
        pytest.skip("torch's own norm promises nothing of the kind")
    norms, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            twins = Twins(shapes=[(700, 300), (5,), (2**16 + 3,)])
            twins.step()
            norms.append(twins.step()[0].item())
            twins.agree()
    finally:
        torch.set_num_threads(before)
    assert len(set(norms)) == 1


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/nowhere/c++", "No such file"),
        ("false", "it ended with 1"),
        ("g++ 'x", "No closing quotation"),
        (f"{sys.executable} -c 'raise SystemExit(\"error: none\")'", "error: none"),
    ],
    ids=["absent", "fails", "odd quotes", "fails and says why"],
)
def test_without_a_compiler_there_is_one_warning_and_torchs_kernels(monkeypatch, compiler, reason):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setitem(QUICK, "compiled", True)
    one_pass.kernels.cache_clear()
    try:
        twins = Twins(clip=VALUE, threshold=0.3)
        twins.step()
        with pytest.warns(UserWarning, match=reason) as told:
            twins.step()
        assert "cannot compile its kernels" in str(told[0].message)
        assert told[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            twins.step()
        twins.agree()
    finally:
        one_pass.kernels.cache_clear()


# ---------------------------------------------------------------------------------- what comes back


def test_the_norm_comes_back_as_torch_gives_it(compiled):
    twins = Twins(shapes=[(300, 200), (5000,), (100, 41)])  # none small: the very same sums
    for _ in range(3):
        ours, torchs = twins.step()
        assert ours.shape == ()
        # ours sums in double precision
        torch.testing.assert_close(ours, torchs, rtol=1e-6 if compiled else 0, atol=0)


def test_the_norm_of_many_small_tensors_is_torchs_to_rounding():
    twins = Twins(shapes=[(index % 7 + 1, index % 11 + 3) for index in range(900)])
    for _ in range(3):
        ours, torchs = twins.step()
        torch.testing.assert_close(ours, torchs, rtol=3e-7, atol=0)
    twins.agree()


def test_without_any_gradient_the_norm_is_zero_and_the_values_are_refused_as_torch_refuses_them():
    params = weights()
    optimizer = SGD(params, lr=0.1)
    assert fast.norm_clipped_step(optimizer, 1.0) == 0
    with pytest.raises(RuntimeError, match="empty") as torchs:
        nn.utils.clip_grad_value_(params, 1.0)
    for call in (
        lambda: fast.value_clipped_step(optimizer, 1.0),
        lambda: fast.clip_grad_value_(params, 1.0),
    ):
        with pytest.raises(RuntimeError, match=re.escape(str(torchs.value))):
            call()


# ----------------------------------------------------------------------------------- hard gradients

HARD = {
    "NaN": math.nan,
    "infinity": math.inf,
    "an overflowing norm": 3e38,
    "zero": 0.0,
}


@pytest.mark.parametrize("clip", [NORM, VALUE])
@pytest.mark.parametrize("rule", ["plain", "momentum", "dampening", "nesterov", "adamw"])
@pytest.mark.parametrize("hard", HARD)
def test_a_hard_gradient_does_what_it_does_to_torchs_pair(hard, rule, clip):
    twins = Twins(*RULES[rule], clip=clip)

    def plant(params, _):
        if hard == "zero":
            for param in params:
                param.grad.zero_()
        else:
            params[1].grad[2, 3] = HARD[hard]

    for step in range(6):
        twins.step(change=plant if step == 3 else None)
        twins.agree()


@pytest.mark.parametrize("threshold", [0.0, 1e-30, 1e-6, math.inf])
@pytest.mark.parametrize("clip", [NORM, VALUE])
@pytest.mark.parametrize("rule", ["dampening", "nesterov", "adam"])
def test_an_extreme_threshold_does_what_it_does_to_torchs_pair(rule, clip, threshold):
    twins = Twins(*RULES[rule], clip=clip, threshold=threshold)
    for _ in range(4):
        twins.step(
            change=lambda params, _: params[2].grad.mul_(1e20) if threshold == math.inf else None
        )
        twins.agree()


@pytest.mark.parametrize("bad", [-1.0, math.nan, -math.inf, "much", None])
def test_a_threshold_that_is_none_is_refused_with_its_value(bad):
    params = weights()
    fill(params, 0)
    optimizer, before = SGD(params, lr=0.1), [param.detach().clone() for param in params]
    calls = (
        lambda: fast.norm_clipped_step(optimizer, bad),
        lambda: fast.value_clipped_step(optimizer, bad),
        lambda: fast.clip_grad_value_(params, bad),
    )
    for call in calls:
        with pytest.raises(UsageError, match=f"is {bad!r}; it has to be a number of at least 0"):
            call()
    assert all(map(torch.equal, params, before))


# ------------------------------------------------------------------------- the plan notices changes


def reassign(params, _):
    for param in params:
        param.data = param.data.clone() * 0.5


def transpose(params, _):
    params[1].data = params[1].data.t()
    params[1].grad = params[1].grad.t()


def turn(params, _):
    """A square weight, under a gradient that stays as it lay: same address, other element beside
    other element.
    """
    params[1].data = params[1].data.t()


def turn_in_place(params, _):
    with torch.no_grad():
        params[1].t_()


def lose_gradient(params, _):
    params[1].grad = None


def transposed_gradient(params, _):
    params[1].grad = params[1].grad.t().contiguous().t()


def load_own_state(_, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def new_momentum(params, optimizer):
    optimizer.state[params[1]]["momentum_buffer"] = torch.ones_like(params[1])


def new_entry(params, optimizer):
    optimizer.state[params[1]] = {"momentum_buffer": torch.ones_like(params[1])}


def no_momentum(params, optimizer):
    del optimizer.state[params[1]]["momentum_buffer"]


def no_entry(params, optimizer):
    del optimizer.state[params[1]]


def no_state(_, optimizer):
    optimizer.state.clear()


def other_settings(_, optimizer):
    optimizer.param_groups[0].update(
        lr=0.2, momentum=0.5, weight_decay=0.3, nesterov=True, maximize=True
    )


def momentum_off(_, optimizer):
    optimizer.param_groups[0]["momentum"] = 0


def more_params(params, optimizer):
    added = weights([(5, 5)], params[0].dtype, seed=7)
    added[0].grad = torch.ones_like(added[0])
    optimizer.add_param_group({"params": added, "lr": 0.3})


def fewer_params(params, optimizer):
    optimizer.param_groups[0]["params"].pop(1)
    del optimizer.state[params[1]]


def lr_as_tensor(_, optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.03)


def in_place(params, optimizer):
    with torch.no_grad():
        params[1].mul_(0.5)
        optimizer.state[params[1]]["momentum_buffer"].mul_(0.5)


CHANGES = [
    reassign,
    transpose,
    turn,
    turn_in_place,
    lose_gradient,
    transposed_gradient,
    load_own_state,
    new_momentum,
    new_entry,
    no_momentum,
    no_entry,
    no_state,
    other_settings,
    momentum_off,
    more_params,
    fewer_params,
    lr_as_tensor,
    in_place,
]


@pytest.mark.parametrize("clip", [NORM, VALUE])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_steps_is_met_as_torchs_pair_meets_it(change, clip):
    """Once in mid-training, and then the training goes on."""
    twins = Twins(dtype=torch.float64, shapes=[(3,), (5, 5), (70, 80)], clip=clip)
    for step in range(6):
        twins.step(change=change if step == 3 else None)
        twins.agree()


@pytest.mark.parametrize(
    "change", [reassign, load_own_state, new_momentum, in_place], ids=lambda change: change.__name__
)
def test_after_a_change_that_lasts_the_way_is_fast_again(change):
    twins = Twins(dtype=torch.float64)
    for step in range(5):
        twins.step(change=change if step == 3 else None)
    assert twins.planned
    plan = plan_of(twins.optimizers[0])
    twins.step()
    assert plan_of(twins.optimizers[0]) is plan


def expanded_gradient(params, _):
    params[2].grad = torch.ones(1, 1, dtype=params[2].dtype).expand(70, 80)


def shrunken_weight(params, _):
    params[2].grad, params[2].data = None, params[2].data[:1]
    params[2].grad = torch.ones_like(params[2])


@pytest.mark.parametrize("clip", [NORM, VALUE])
@pytest.mark.parametrize(
    "change", [expanded_gradient, shrunken_weight], ids=lambda change: change.__name__
)
def test_memory_that_is_nobodys_is_never_read(change, clip):
    """The fused kernels ask no tensor for its size: they would take what lies behind it. Torch's
    pair refuses such a step.
    """
    twins = Twins(shapes=[(3,), (4, 5), (70, 80)], clip=clip)
    for _ in range(3):
        twins.step()
    for params, optimizer, go in zip(twins.params, twins.optimizers, (quick, pair), strict=True):
        fill(params, 3)
        change(params, optimizer)
        with pytest.raises(RuntimeError, match=r"single memory location|broadcast shape"):
            go(optimizer, clip, 1.0)


def test_settings_that_a_scheduler_moves_are_read_at_every_step():
    twins = Twins(dtype=torch.float64)
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(one, max_lr=0.2, total_steps=20, cycle_momentum=True)
        for one in twins.optimizers
    ]
    for _ in range(10):
        twins.step()
        # it warns, which is an error here, where it believes no step was made before it
        for scheduler in schedulers:
            scheduler.step()
        twins.agree()
    assert twins.planned


def test_a_scheduler_is_told_of_a_fast_step():
    params = weights()
    optimizer = SGD(params, lr=0.1, momentum=0.9)
    for step in range(2):
        fill(params, step)
        fast.norm_clipped_step(optimizer, 1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    fill(params, 2)
    fast.norm_clipped_step(optimizer, 1.0)
    scheduler.step()


def test_gradients_kept_and_zeroed_in_place_serve_as_well():
    models = [
        nn.Sequential(skip_init(nn.Linear, 6, 5), nn.Tanh(), skip_init(nn.Linear, 5, 1)).double()
        for _ in range(2)
    ]
    for model in models:
        for param, start in zip(
            model.parameters(), weights([(5, 6), (5,), (1, 5), (1,)], torch.float64), strict=True
        ):
            param.data.copy_(start.data)
    optimizers = [SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    inputs = torch.randn(7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for _ in range(6):
        for model, optimizer, go in zip(models, optimizers, (quick, pair), strict=True):
            optimizer.zero_grad(set_to_none=False)
            model(inputs).square().sum().backward()
            go(optimizer, NORM, 0.1)
    for mine, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_channels_last_weights_take_the_fast_way():
    def twin():
        model = skip_init(nn.Conv2d, 3, 8, 3).double().to(memory_format=torch.channels_last)
        for param, start in zip(
            model.parameters(), weights([(8, 3, 3, 3), (8,)], torch.float64), strict=True
        ):
            param.data.copy_(start.data)
        return model, SGD(model.parameters(), lr=0.1, momentum=0.9)

    inputs = torch.randn(
        2, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    (ours, quickly), (torchs, slowly) = twin(), twin()
    for _ in range(5):
        for model, optimizer, go in ((ours, quickly, quick), (torchs, slowly, pair)):
            optimizer.zero_grad()
            model(inputs.to(memory_format=torch.channels_last)).square().sum().backward()
            go(optimizer, NORM, 0.1)
    torch.testing.assert_close(ours.weight, torchs.weight, rtol=1e-12, atol=1e-14)
    assert not ours.weight.is_contiguous()
    assert plan_of(quickly)


LAST, LAST_3D, FIRST = torch.channels_last, torch.channels_last_3d, torch.contiguous_format
# of small and of large tensors, of full vectors of the processor and of a few elements more
LAID = {
    "channels last": [((5, 3, 3, 3), LAST), ((31, 17, 3, 3), LAST)],
    "channels last, 3d": [((3, 5, 2, 3, 3), LAST_3D), ((16, 16, 3, 3, 3), LAST_3D)],
    "mixed": [((31, 17, 3, 3), LAST), ((31,), FIRST), ((70, 80), FIRST), ((5, 3, 3, 3), LAST)],
    "contiguous": [((31, 17, 3, 3), FIRST), ((7, 5), FIRST)],
    "empty and of no dimension": [((0, 4), FIRST), ((), FIRST), ((31, 17, 3, 3), LAST)],
}


def laid(laying, rule, grads_like=None):
    """An optimizer of such weights; its gradients lie as they do, or all in ``grads_like``."""
    drawn = torch.Generator().manual_seed(0)
    params = [
        nn.Parameter(torch.randn(shape, generator=drawn).to(memory_format=form))
        for shape, form in LAID[laying]
    ]

    def backward():
        for param, (shape, form) in zip(params, LAID[laying], strict=True):
            grad = torch.randn(shape, generator=drawn)
            param.grad = grad.to(memory_format=grads_like or form)

    cls, settings = RULES[rule]
    return cls(params, lr=0.05, **settings), params, backward


def after_steps(clip, laying, rule, grads_like=None):
    """All that four steps leave: norms, weights, gradients, state, and where they lie."""
    optimizer, params, backward = laid(laying, rule, grads_like)
    norms = []
    for _ in range(4):
        backward()
        norms.append(quick(optimizer, clip, 0.7))
    states = [
        value for slot in optimizer.state.values() for value in slot.values() if value is not None
    ]
    left = [*params, *(param.grad for param in params), *states]
    return norms, left, [tensor.stride() for tensor in left], plan_of(optimizer) is not None


@pytest.mark.parametrize("clip", [NORM, VALUE])
@pytest.mark.parametrize("rule", ["dampening", "nesterov", "adamw"])
@pytest.mark.parametrize("laying", LAID)
def test_weights_handed_over_as_vectors_come_out_with_the_same_bits(
    laying, rule, clip, monkeypatch
):
    """The fused kernels see dense tensors as vectors, and leave what they leave of the tensors as
    they lie: not one bit of weights, gradients, state and norms is another.
    """
    seen = []
    fused = torch._fused_sgd_

    def noted(params, grads, buffers, **settings):
        seen.extend([*params, *grads, *buffers])
        return fused(params, grads, buffers, **settings)

    monkeypatch.setattr(torch, "_fused_sgd_", noted)
    norms, left, strides, planned = after_steps(clip, laying, rule)
    assert planned
    assert all(tensor.is_contiguous() for tensor in seen)
    monkeypatch.setattr(plan_, "_vector", lambda tensor: tensor)
    norms_before, left_before, strides_before, _ = after_steps(clip, laying, rule)
    assert norms == norms_before
    assert all(map(torch.equal, left, left_before))
    assert strides == strides_before


@pytest.mark.parametrize("clip", [NORM, VALUE])
def test_gradients_that_lie_otherwise_than_their_weights_go_to_the_pair(clip):
    """One vector of a weight and one of its gradient would pair other elements."""
    assert not after_steps(clip, "channels last", "momentum", grads_like=FIRST)[-1]


@pytest.mark.parametrize("clip", [NORM, VALUE])
def test_a_gradient_that_lies_elsewhere_is_read_where_it_lies(clip):
    """Gradients are new tensors after ``zero_grad``, and a weight's ``data`` may be another."""
    drawn = torch.Generator().manual_seed(9)
    start = [
        torch.randn(shape, generator=drawn).to(memory_format=form) for shape, form in LAID["mixed"]
    ]
    pairs = [[nn.Parameter(one.clone()) for one in start] for _ in range(2)]
    optimizers = [SGD(params, lr=0.1, momentum=0.9) for params in pairs]
    for step in range(6):
        for params, optimizer, go in zip(pairs, optimizers, (quick, pair), strict=True):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            drawn = torch.Generator().manual_seed(step)
            sum(
                (param * torch.randn(param.shape, generator=drawn)).sum() for param in params
            ).backward()
            if step == 3:
                params[0].data = params[0].data.clone() * 0.5
            go(optimizer, clip, 0.7)
    for mine, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE[torch.float32])
    assert plan_of(optimizers[0])


# --------------------------------------------------------------------------- where the pair does it


class Halved(SGD):
    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    param.mul_(0.5)


def sparse(params, _):
    params[1].grad = params[1].grad.to_sparse()


FALLBACKS = {
    "another optimizer": (torch.optim.RMSprop, {}, None),
    "a subclass with a step of its own": (Halved, {"momentum": 0.9}, None),
    "amsgrad": (Adam, {"amsgrad": True}, None),
    "a learning rate in a tensor": (SGD, {"momentum": 0.9, "lr": torch.tensor(0.05)}, None),
    "a gradient of its own layout": (SGD, {"momentum": 0.9}, transposed_gradient),
}


@pytest.mark.parametrize("clip", [NORM, VALUE])
@pytest.mark.parametrize("case", FALLBACKS)
def test_the_pair_does_what_the_fast_way_does_not(case, clip):
    cls, settings, change = FALLBACKS[case]
    twins = Twins(cls, settings, clip=clip)
    for _ in range(4):
        twins.step(change=change)
        for mine, theirs in zip(*twins.params, strict=True):
            assert torch.equal(mine, theirs)
    assert not twins.planned


class Torchs(Exception):  # noqa: N818 - an observation
    """Raised in the place of torch's clip."""


@pytest.mark.parametrize("flag", ["amsgrad", "capturable", "differentiable"])
def test_a_flag_raised_in_mid_training_sends_the_next_step_to_torch(flag, monkeypatch):
    twins = Twins(AdamW, {})
    for _ in range(3):
        twins.step()
    assert twins.planned

    def observed(*_):
        raise Torchs

    monkeypatch.setattr(fast, "clip_grad_norm_", observed)
    quick(twins.optimizers[0], NORM, 1.0)
    twins.optimizers[0].param_groups[0][flag] = True
    with pytest.raises(Torchs):
        quick(twins.optimizers[0], NORM, 1.0)


@pytest.mark.parametrize(
    "setting",
    [{"nesterov": 1}, {"nesterov": np.bool_(True)}, {"maximize": np.bool_(True)}],
    ids=str,
)
def test_flags_that_are_no_booleans_go_to_the_pair(setting):
    twins = Twins(SGD, {"momentum": 0.9, **setting}, clip=VALUE)
    for _ in range(3):
        twins.step()
        twins.agree()
    assert not twins.planned


def test_the_pair_runs_with_gradients_enabled_as_it_would_without_us():
    seen = []
    twins = Twins()
    twins.each(
        lambda _, optimizer: optimizer.register_step_post_hook(
            lambda *_: seen.append(torch.is_grad_enabled())
        )
    )
    twins.step()
    assert seen == [True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_other_dtypes_go_to_the_pair(dtype):
    twins = Twins(shapes=[(3,), (4, 5)], dtype=dtype)
    for _ in range(3):
        twins.step()
    assert all(map(torch.equal, *twins.params))
    assert not twins.planned


def test_two_dtypes_in_one_optimizer_go_to_the_pair():
    twins = []
    for go in (quick, pair):
        params = [*weights([(3,), (4, 5)]), *weights([(6,)], torch.float64, seed=1)]
        optimizer = SGD(params, lr=0.1, momentum=0.9)
        for step in range(3):
            fill(params, step)
            go(optimizer, NORM, 0.5)
        twins.append(params)
        assert plan_of(optimizer) is None
    assert all(map(torch.equal, *twins))


def test_a_step_in_inference_mode_spoils_none_after_it():
    twins = Twins()
    twins.step()
    with torch.inference_mode():
        for go, one in zip((quick, pair), twins.optimizers, strict=True):
            go(one, NORM, 1.0)
    for _ in range(2):
        twins.step()
        twins.agree()


def test_another_default_device_is_not_the_parameters():
    twins = Twins(settings={"momentum": 0.9, "nesterov": True}, threshold=0.1)
    twins.step()
    for optimizer in twins.optimizers:
        fill(optimizer.param_groups[0]["params"], 5)
    with torch.device("meta"):
        quick(twins.optimizers[0], NORM, 0.1)
    pair(twins.optimizers[1], NORM, 0.1)
    twins.agree()
    assert twins.planned


def test_a_step_replaced_for_all_optimizers_of_a_class_is_called(monkeypatch):
    twins, called = Twins(), []
    twins.step()
    kept = SGD.step
    for replaced in (
        lambda self: (called.append(self), kept(self))[1],
        functools.wraps(kept)(lambda self: (called.append(self), kept(self))),
    ):
        called.clear()
        monkeypatch.setattr(SGD, "step", replaced)
        twins.step()
        twins.agree()
        assert called == twins.optimizers


@pytest.mark.parametrize("clip", [NORM, VALUE], ids=["norm", "value"])
def test_of_sparse_gradients_comes_whatever_the_pair_makes_of_them(clip):
    """Up to torch 2.13 it refuses them, later it may not."""

    def after(go):
        layer = skip_init(nn.EmbeddingBag, 5, 3, sparse=True)
        layer.weight.data = weights([(5, 3)])[0].data
        optimizer = SGD(layer.parameters(), lr=0.1)
        layer(torch.tensor([[0, 1, 1]])).sum().backward()
        try:
            go(optimizer, clip, 0.5)
        except NotImplementedError as error:  # what it says is compared with the pair's below
            said = str(error).partition(" with arguments")[0]
        else:
            said = "nothing"
        assert plan_of(optimizer) is None
        return said, layer.weight.detach()

    (said, weight), (by_hand, expected) = after(quick), after(pair)
    assert said == by_hand
    assert torch.equal(weight, expected)


def test_a_parameter_listed_twice_is_stepped_twice_as_torch_does():
    twins = Twins(shapes=[(3,), (4, 5)])
    for number, (first, second) in enumerate(twins.params):
        with pytest.warns(UserWarning, match="duplicate"):
            twins.optimizers[number] = SGD([first, second, first], lr=0.1, momentum=0.9)
    for _ in range(3):
        twins.step()
        twins.agree()
    assert not twins.planned


@pytest.mark.parametrize("where", ["before", "after", "before all", "after all"])
def test_hooks_on_the_step_are_called(where):
    seen = []
    twins = Twins()
    for _ in range(3):
        twins.step()
    ours = twins.optimizers[0]
    register = {
        "before": ours.register_step_pre_hook,
        "after": ours.register_step_post_hook,
        "before all": register_optimizer_step_pre_hook,
        "after all": register_optimizer_step_post_hook,
    }[where]
    hook = register(lambda optimizer, *_: seen.append(optimizer))
    try:
        twins.step()
    finally:
        hook.remove()
    assert ours in seen
    twins.step()
    twins.agree()


def wrapped(optimizer, told):
    """Over what a learning-rate scheduler made of it, whose mark ``functools.wraps`` copies."""
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    inner = optimizer.step
    optimizer.step = functools.wraps(inner)(lambda *args: (told(), inner(*args)))


def under_a_scheduler(optimizer, told):
    kept = SGD.step
    optimizer.step = types.MethodType(lambda self: (told(), kept(self)), optimizer)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)


def by_another(optimizer, told):
    kept = optimizer.step
    optimizer.step = lambda: (told(), kept())


@pytest.mark.parametrize("replace", [by_another, wrapped, under_a_scheduler])
def test_a_step_that_somebody_replaced_is_called(replace):
    twins, called = Twins(), []
    for _ in range(3):
        twins.step()
    replace(twins.optimizers[0], lambda: called.append(1))
    for _ in range(2):
        twins.step()
    for mine, theirs in zip(*twins.params, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE[torch.float32])
    assert called == [1, 1]


# --------------------------------------------------------------- checkpoints, copies and going back


@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_a_checkpoint_of_fast_steps_goes_on_with_torchs_pair_and_back(rule):
    twins = Twins(*RULES[rule], dtype=torch.float64)
    for _ in range(4):
        twins.step()
    file = io.BytesIO()
    torch.save({"params": twins.params[0], "optimizer": twins.optimizers[0].state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=False)
    cls, settings = RULES[rule]
    for number in range(2):
        params = copy.deepcopy(stored["params"])
        optimizer = cls(params, lr=0.05, **settings)
        optimizer.load_state_dict(copy.deepcopy(stored["optimizer"]))
        twins.params[number], twins.optimizers[number] = params, optimizer
    for _ in range(3):
        twins.step()
        twins.agree()


def test_fast_steps_and_torchs_may_alternate():
    twins = Twins(dtype=torch.float64)
    for step in range(8):
        for params in twins.params:
            fill(params, step)
        (pair if step % 2 else quick)(twins.optimizers[0], NORM, 1.0)
        pair(twins.optimizers[1], NORM, 1.0)
        twins.agree()


def test_a_copied_optimizer_trains_its_own_copy_of_the_weights():
    twins = Twins(dtype=torch.float64)
    for _ in range(3):
        twins.step()
    params, optimizer = copy.deepcopy((twins.params[0], twins.optimizers[0]))
    before = [param.detach().clone() for param in twins.params[0]]
    for step in range(2):
        fill(params, 50 + step)
        fast.norm_clipped_step(optimizer, 1.0)
    assert all(map(torch.equal, twins.params[0], before))
    for step in range(2):
        fill(twins.params[1], 50 + step)
        pair(twins.optimizers[1], NORM, 1.0)
    for mine, theirs in zip(params, twins.params[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_a_plan_keeps_no_optimizer_alive():
    twins = Twins()
    for _ in range(3):
        twins.step()
    gone = weakref.ref(twins.optimizers[0])
    assert plan_of(gone())
    del twins
    gc.collect()
    assert gone() is None


def test_a_hook_that_refers_to_the_optimizer_is_no_leak():
    """A trainer's method: the plan refers to the parameter, the parameter to the trainer, the
    trainer to the optimizer.
    """

    class Trainer:
        def __init__(self):
            self.twins = Twins()
            for param in self.twins.params[0]:
                param.register_hook(self.seen)

        def seen(self, grad):
            return grad

    trainer = Trainer()
    for _ in range(3):
        trainer.twins.step()
    gone = weakref.ref(trainer.twins.optimizers[0])
    assert plan_of(gone())
    del trainer
    gc.collect()
    assert gone() is None


def test_a_graph_recorded_before_the_step_is_known_to_be_stale():
    """As after torch's own step: a second backward through it would mix old activations with new
    weights.
    """
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = SGD([weight], lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward(retain_graph=True)
        fast.norm_clipped_step(optimizer, 1.0)
    assert plan_of(optimizer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# -------------------------------------------------------------------------- values clipped in place


@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=6),
    threshold=st.sampled_from([0.0, 1e-3, 0.5, 30.0, math.inf]),
    planted=st.sampled_from([0.0, math.nan, math.inf, -math.inf, -0.0]),
)
def test_values_clipped_in_place_have_the_bits_torch_gives_them(shapes, threshold, planted):
    ours, torchs = weights(shapes), weights(shapes)
    for params in (ours, torchs):
        fill(params, 0)
        for param in params:
            if param.grad.numel():
                param.grad.view(-1)[0] = planted
    fast.clip_grad_value_(iter(ours), threshold, **QUICK)
    nn.utils.clip_grad_value_(torchs, threshold)
    for mine, theirs in zip(ours, torchs, strict=True):
        assert mine.grad.numpy().tobytes() == theirs.grad.numpy().tobytes()


def test_values_of_one_tensor_and_of_any_layout_are_clipped():
    weight = nn.Parameter(torch.zeros(4, 3))
    weight.grad = torch.arange(12.0).view(3, 4).t()
    fast.clip_grad_value_(weight, 5.0, **QUICK)
    assert torch.equal(weight.grad, torch.arange(12.0).view(3, 4).t().clamp(max=5))


def test_values_of_gradients_without_and_of_half_precision_are_clipped():
    params = [
        nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)),
        nn.Parameter(torch.zeros(2)),
        nn.Parameter(torch.zeros(2)),
    ]
    params[0].grad, params[1].grad = (
        torch.tensor([3.0, -3.0, 0.1], dtype=torch.bfloat16),
        torch.tensor([9.0, -0.2]),
    )
    torchs = [copy.copy(param) for param in params]
    for mine, theirs in zip(params, torchs, strict=True):
        theirs.grad = None if mine.grad is None else mine.grad.clone()
    fast.clip_grad_value_(params, 0.3, **QUICK)
    nn.utils.clip_grad_value_(torchs, 0.3)
    assert torch.equal(params[0].grad, torchs[0].grad)
    assert torch.equal(params[1].grad, torchs[1].grad)
    assert params[2].grad is None


# -------------------------------------------------------------------------------------- on a device

on_device = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this machine has no CUDA device"
)


@on_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("clip", [NORM, VALUE])
@pytest.mark.parametrize("rule", [*RULES, "adamw, fused"])
def test_on_a_device_weights_and_state_are_those_of_torchs_pair(rule, clip, dtype):
    cls, settings = {**RULES, "adamw, fused": (AdamW, {"fused": True})}[rule]
    ours, torchs = (
        [nn.Parameter(param.detach().cuda()) for param in weights(dtype=dtype)] for _ in range(2)
    )
    optimizers = [cls(params, lr=0.05, **settings) for params in (ours, torchs)]
    for step in range(6):
        for params, optimizer, go in zip((ours, torchs), optimizers, (quick, pair), strict=True):
            start = weights(dtype=dtype, seed=100 + step)
            for param, grad in zip(params, start, strict=True):
                param.grad = grad.detach().cuda()
            go(optimizer, clip, 0.5)
    for mine, theirs in zip(ours, torchs, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE[dtype])
    torch.testing.assert_close(
        *(one.state_dict()["state"] for one in optimizers), **TOLERANCE[dtype]
    )
    assert (plan_of(optimizers[0]) is not None) == (cls is SGD or settings.get("fused", False))


def device_model(count):
    params = [nn.Parameter(torch.zeros(3, 5, device="cuda")) for _ in range(count)]
    optimizer = SGD(params, lr=0.1, momentum=0.9)
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        fast.norm_clipped_step(optimizer, 1.0)
    return optimizer


@on_device
def test_on_a_device_no_step_waits_for_it():
    optimizer = device_model(10)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast.norm_clipped_step(optimizer, 1.0)
        fast.value_clipped_step(optimizer, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_device
@pytest.mark.parametrize("go", [fast.norm_clipped_step, fast.value_clipped_step])
def test_on_a_device_the_number_of_kernels_is_not_that_of_the_tensors(go):
    launched = []
    for count in (4, 24):
        optimizer = device_model(count)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            go(optimizer, 1.0)
            torch.cuda.synchronize()
        launched.append(
            sum(event.count for event in profile.key_averages() if event.self_device_time_total)
        )
    assert launched[0] == launched[1]
