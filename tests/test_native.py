"""A program of this machine is the lane it was made of: every operation against torch, every
packaged optimizer and clip against the loop, and for every cell the same bits whoever trains
beside it.
"""

import ctypes
import math
import platform
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from packaged import CLIPS, names
from strangers import on_cancer
from test_lanes import agree, bits, job
from torch import nn
from torch.nn import functional

from clipbench import (
    Positive,
    clip,
    clips,
    engines,
    native,
    optimizer,
    optimizers,
    registry,
    trees,
    workloads,
)
from clipbench.conformance.lanes import _locked, job_of, refused
from clipbench.conformance.settings import examples
from clipbench.engines import lanes, stacked, structure
from clipbench.engines.building import of_this_run
from clipbench.engines.lanes import NATIVE
from clipbench.errors import UsageError
from clipbench.measures import GRAD_NORM
from clipbench.native import SPARE, Untranslated
from clipbench.native.elements import EXPRESSIONS

__all__ = ["clips", "optimizers", "workloads"]

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler is here"
)


def run(function, *arguments):
    """What a function gives, as torch and as a program of this machine."""
    with torch.no_grad():
        expected = function(*arguments)
    made = native.translated(function, arguments)
    given = [
        torch.cat([one.contiguous().reshape(-1).view(torch.uint8), torch.zeros(SPARE).byte()])
        for one in arguments
    ]
    assert len(made.outputs) == len(expected)
    out = [torch.zeros(size + SPARE, dtype=torch.uint8) for size in made.outputs]
    inputs, outputs = (
        (ctypes.c_void_p * len(some))(*map(torch.Tensor.data_ptr, some)) for some in (given, out)
    )
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(made.address)(inputs, outputs)
    found = [
        one[: want.nbytes].view(want.dtype).view(want.shape)
        for one, want in zip(out, expected, strict=True)
    ]
    return found, expected


def same(functions, *arguments, limits):
    """All functions in one program: each gives what torch gives.

    :param limits: name → the relative and the absolute limit.
    """
    names = []

    def every(*arguments):
        names.clear()
        results = []
        for name, function in functions.items():
            found = function(*arguments)
            some = [found] if isinstance(found, torch.Tensor) else list(found)
            names.extend([name] * len(some))
            results += some
        return results

    found, expected = run(every, *arguments)
    for name, one, want in zip(names, found, expected, strict=True):
        rtol, atol = limits(name)
        torch.testing.assert_close(
            one, want, rtol=rtol, atol=atol, equal_nan=True, msg=lambda said, n=name: f"{n}: {said}"
        )


def numbers(dtype, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


# --------------------------------------------------------------------------------------- operations

EDGES = [
    *(0.0, -0.0, 0.3, -0.7, 1.0, -1.0, 2.5, 88.0, -90.0, 1e-20, 3e5),
    *(math.inf, -math.inf, math.nan),
]
OTHERS = {
    "convert_element_type",
    "where",
    "signbit",  # whose type as a primitive is not its own
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "bitwise_not",
}
ONE, TWO = (
    {
        name: getattr(torch.ops.prims, name).default
        for name in sorted(EXPRESSIONS.keys() - OTHERS)
        if len(getattr(torch.ops.prims, name).default._schema.arguments) == count
    }
    for count in (1, 2)
)
# in units of float32's last place; else one, for a product and a sum may be rounded once
LAST_PLACES = {
    "erfc": 2,
    "exp": 2,
    "rsqrt": 2,
    "tanh": 3,
    "cosh": 4,
    "lgamma": 4,
    "log1p": 4,
    "sinh": 4,
    "expm1": 5,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_operations_are_torchs(dtype):
    """Over their range, at the edges of numbers, and of NaN and infinity; in float64 to 1e-12."""

    def limits(name):
        if dtype is torch.float64:
            return 1e-12, 1e-300
        return LAST_PLACES.get(name, 1) * 2**-23, 1e-37

    dense = torch.linspace(-20, 20, 997, dtype=torch.float64)
    same(ONE, torch.cat([torch.tensor(EDGES).double(), dense]).to(dtype), limits=limits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_operations_on_two_are_torchs(dtype):
    values = torch.tensor([*EDGES, 3.0, 7.25], dtype=dtype)
    pairs = torch.meshgrid(values, values, indexing="ij")
    limit = 1e-12 if dtype is torch.float64 else 2**-22
    flat = [one.reshape(-1).contiguous() for one in pairs]
    same(TWO, *flat, limits=lambda _: (limit, 1e-37))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool], ids=str)
def test_choices_and_changes_of_type_are_torchs(dtype):
    functions = {
        "where": lambda one: torch.where(one > 0, one, one * 2),
        "sign": lambda one: torch.where(one.double().signbit(), one, one * 3),
        "to float64": torch.Tensor.double,
        "to whole numbers": torch.Tensor.long,
        "to truth values": torch.Tensor.bool,
        "not": lambda one: ~one.bool() | (one == 0) ^ (one != 1),
    }
    given = torch.tensor([0.0, 1.0, -3.0, 7.0]).to(dtype)
    same(functions, given, limits=lambda _: (0, 0))


def test_operations_on_whole_numbers_are_torchs():
    functions = {
        "abs": torch.abs,
        "sign": torch.sign,
        "neg": torch.neg,
        "remainder": lambda one: one.remainder(3),
        "quotient": lambda one: one // 2,
        "clamp": lambda one: one.clamp(-1, 2),
        "bits": lambda one: (one & 3) | 4,
    }
    same(functions, torch.tensor([[3, -7, 0], [5, 2, -2]]), limits=lambda _: (0, 0))


MOVES = {
    "sum": lambda x: x.sum(),
    "sum of rows": lambda x: x.sum(-1),
    "sum of columns": lambda x: x.sum(0),
    "sum of two of three": lambda x: x.sum((0, 2)),
    "product": lambda x: x.prod(),
    "largest": lambda x: (x.amax(), x.amax(1), x.amax(0)),
    "smallest": lambda x: (x.amin(), x.amin(1), x.amin(0)),
    "variance": lambda x: (x.var(), x.var(1), x.var((0, 2), correction=0)),
    "norm": lambda x: (torch.linalg.vector_norm(x), torch.linalg.vector_norm(x, math.inf)),
    "turned": lambda x: x.transpose(0, 1) * 2 + x.transpose(0, 1).contiguous(),
    "broadcast": lambda x: x + x[0] * x[:, :1, :1],
    "in a row": lambda x: torch.cat([x.flatten(), (x * 2).flatten(), x[0, 0]]),
    "side by side": lambda x: torch.cat([x, x * 2], 1),
    "stacked": lambda x: torch.stack([x * 2, x, x * 2]),
    "sorted": lambda x: x.flatten().sort().values,
    "softmax": lambda x: (x.log_softmax(-1), x.softmax(1)),
    "part": lambda x: x[1, 1:4:2, ::2] * 2,
    "counted": lambda x: x + torch.arange(x.shape[-1], dtype=x.dtype),
    "gathered": lambda x: x.gather(1, (x > 0).long()),
    "scattered": lambda x: torch.zeros_like(x).scatter(1, (x > 0).long(), 2.0),
    "scattered and added": lambda x: x.scatter_add(1, (x > 0).long(), x),
    "looked up": lambda x: x[:, (x[0, :, 0] > 0).long()],
    "looked up in two": lambda x: x[(x[:, 0, 0] > 0).long(), (x[:, 1, 0] > 0).long()],
    "put": lambda x: x.index_put(((x[:, 0, 0] > 0).long(),), x[0], accumulate=True),
    "matrices": lambda x: x @ x.transpose(1, 2),
    "one matrix": lambda x: (x[0] @ x[1].T, x[0].T @ x[1], torch.addmm(x[0, :, :5], x[0], x[1].T)),
    "a vector": lambda x: (x[0] @ x[0, 0], x[0, 0] @ x[1].T),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_folds_moves_and_products_are_torchs(dtype):
    limit = 1e-12 if dtype is torch.float64 else 5e-6
    same(MOVES, numbers(dtype, 3, 5, 37), limits=lambda _: (limit, limit))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these widths are of other processors")
@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v3", "native"])
def test_every_width_of_registers_gives_what_torch_gives(monkeypatch, machine):
    """Of 16, of 32 bytes, and what this processor has: products and sums in whole registers and
    in what is left of one.
    """
    if machine == "x86-64-v3" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no registers of 32 bytes")
    monkeypatch.setattr(native, "FLAGS", ((f"-march={machine}", *native.FLAGS[0][1:]),))
    same(MOVES, numbers(torch.float64, 3, 5, 37), limits=lambda _: (1e-12, 1e-12))
    same(ONE, torch.linspace(-20, 20, 99, dtype=torch.float64), limits=lambda _: (1e-12, 1e-300))


@pytest.mark.parametrize("place", [0, 17, 36])
def test_folds_keep_a_nan_wherever_it_stands(place):
    given = numbers(torch.float32, 2, 1, 37)
    given[0, 0, place], given[1, 0, 5] = math.nan, math.inf
    names = ("sum", "largest", "smallest", "sum of columns", "sorted", "product")
    same({name: MOVES[name] for name in names}, given, limits=lambda _: (1e-5, 1e-5))


def test_what_is_written_over_is_read_as_it_was_before_and_as_it_is_after():
    """In place, as code of autograd does: a copy from before stays what it was."""

    def written(x):
        held = torch.zeros_like(x)
        before = held.clone()
        held[0] = x[0] * 2
        middle = held.sum(1)
        held[0] += 1
        held[1].copy_(held[0] * x[1])
        return before, middle, held, torch.cat([held[0], x[0]])

    same({"all": written}, numbers(torch.float64, 2, 19), limits=lambda _: (1e-13, 0))


CONVOLUTIONS = [
    nn.Conv2d(2, 5, 3),
    nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(2, 3, (1, 3), padding=(0, 2), dilation=(1, 2)),
    nn.ConvTranspose2d(2, 3, 2, stride=2),
    nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, bias=False),
    nn.Sequential(nn.Conv2d(2, 3, 3), nn.AvgPool2d(2)),
    nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, stride=2, padding=1)),
    nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU()),
    nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2, 1, 1)),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_the_gradients_of_a_convolution_are_torchs(layer):
    layer = layer.double()
    params = dict(layer.named_parameters())

    def gradients(images, *values):
        def loss(images, *values):
            named = dict(zip(params, values, strict=True))
            return torch.func.functional_call(layer, named, (images,)).square().mean()

        every = tuple(range(1 + len(values)))
        return torch.func.grad(loss, every)(images, *values)

    values = [one.detach() for one in params.values()]
    images = numbers(torch.float64, 3, 2, 7, 6)
    same({"all": gradients}, images, *values, limits=lambda _: (1e-11, 1e-13))


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: torch.fft.rfft(x).abs(), "_fft_r2c"),
        (lambda x: x.sort(descending=True).indices + 0, "sort"),
        (torch.linalg.inv, "linalg_inv"),
        (lambda x: x[x > 0], "an index of this form"),
        (lambda x: functional.dropout(x, 0.3), "bernoulli"),
    ],
)
def test_an_operation_without_a_translation_is_named(function, named):
    with pytest.raises(Untranslated, match=named):
        native.translated(function, [numbers(torch.float64, 4, 4)])


TABLE = torch.arange(12.0, dtype=torch.float64)
LARGE = torch.ones(2**15, dtype=torch.float64)


def test_a_view_of_a_constant_shows_what_torchs_does():
    """Turned, and a part of a longer tensor."""
    turned, part = TABLE.view(3, 4).T, TABLE[6:]
    functions = {
        "turned": lambda x: turned[1] * 2 + x,
        "part": lambda x: part[1:4] + x,
        "looked up": lambda x: turned[(x > 0).long(), 1] + x,
    }
    same(functions, numbers(torch.float64, 3), limits=lambda _: (1e-13, 0))


def test_a_sum_of_many_rows_keeps_the_digits_that_torch_keeps():
    given = 100 + numbers(torch.float32, 20_000, 4)
    functions = {"sum": lambda x: x.sum(0), "variance": lambda x: x.var(0)}
    same(functions, given, limits=lambda _: (1e-5, 0))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.zeros_like(x).scatter(1, (x > 0).long(), x, reduce="add"),
        lambda x: (x > 5).amax(1).double(),
        lambda x: x.flatten()[x.flatten().argsort()],
        lambda x: x[0, 0].gather(0, torch.tensor(0)),
        lambda x: functional.interpolate(x[None, None], scale_factor=2.1),
        lambda x: functional.conv_transpose2d(
            x[None, None], x[None, None, :2, :2], dilation=2, output_padding=1
        ),
        lambda x: x + LARGE[0],
    ],
    ids=["reduce", "truth", "places", "a number", "scales", "padding", "a large constant"],
)
def test_what_would_be_another_operation_is_refused(function):
    with pytest.raises(Untranslated):
        native.translated(lambda x: [function(x)], [numbers(torch.float64, 4, 4)])


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (lambda x, at: x[at], IndexError),
        (lambda x, at: x.gather(0, at), IndexError),
        (lambda x, at: x.scatter(0, at, 1.0), IndexError),
        (lambda x, at: x.index_put((at,), x[:1]), IndexError),
        (lambda x, at: x * (7 // (at - at)), ZeroDivisionError),
        (lambda x, at: x * (7 % (at - at)), ZeroDivisionError),
    ],
    ids=["index", "gather", "scatter", "index_put", "quotient", "rest"],
)
@pytest.mark.parametrize("place", [4, -5, 10**12])
def test_what_has_no_result_raises_as_torch_does_and_leaves_the_process_alive(
    function, error, place
):
    made = native.translated(lambda *given: [function(*given)], [torch.ones(4), torch.tensor([1])])
    given = [torch.ones(4 + SPARE), torch.tensor([place, *[0] * SPARE])]
    out = [torch.zeros(made.outputs[0] + SPARE, dtype=torch.uint8)]
    inputs, outputs = (
        (ctypes.c_void_p * len(some))(*map(torch.Tensor.data_ptr, some)) for some in (given, out)
    )
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(made.address)(inputs, outputs)
    with pytest.raises(error):
        made.check()
    made.check()  # it is told once


# -------------------------------------------------------------------------------------------- lanes

RULES = [
    name
    for name in registry.names("optimizer")
    if hasattr(registry.find("optimizer", name), "update")
]


def test_every_optimizer_and_clip_is_the_loops():
    asked = [
        job("cosh", rule, (name, settings), lr=1e-3, seed=number % 2, dtype="float64")
        for number, rule in enumerate(RULES)
        for name, settings in CLIPS.items()
    ]
    for made, one in zip(lanes.run(asked, native=True), asked, strict=True):
        assert made.engine == NATIVE
        agree(made, engines.run(one))


TOGETHER = 6  # arms of the largest model, whose two million numbers fill a gigabyte each
ARMS = [
    ("momentum", ("norm", CLIPS["norm"])),
    ("adam", ("value", CLIPS["value"])),
    ("rmsprop", ("norm", {**CLIPS["norm"], "on": "update"})),
    ("sgd", ("quantile", CLIPS["quantile"])),
]
PROBLEMS = [
    "wdbc",
    "digits",
    ("temporal-order", {"length": 5}),
    "text",
    "lesions",
    "cliff",
    "heavy-tails",
    "label-noise",
    "non-smooth",
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_workloads_are_the_loops(problem):
    """Structures and seeds of all kinds at once."""
    asked = [
        job(problem, *arm, lr=0.01 / (1 + n), seed=n % 2, dtype="float64", batch=4, steps=6)
        for n, arm in enumerate(ARMS)
    ]
    for made, one in zip(lanes.run(asked, native=True), asked, strict=True):
        assert made.engine == NATIVE
        agree(made, engines.run(one))


@pytest.mark.usefixtures("costly")
@pytest.mark.parametrize("problem", sorted(names("workload")))
def test_every_packaged_arm_of_every_packaged_workload_is_the_loops(problem, monkeypatch):
    """Step by step, as `conform` compares a few of them; but where the data is not here."""
    if problem == "tissue":
        # some of its gradients are nothing but rounding, or zero
        monkeypatch.setattr("clipbench.conformance.lanes.COUNTED", 1e-3)
    made = registry.find("workload", problem)
    workload = registry.build("workload", problem, examples(made)[0])
    try:
        getattr(workload, "ready", lambda: None)()
    except UsageError as missing:
        pytest.skip(str(missing))
    assert refused(made) is None
    asked = [job_of(made, rule, *clip) for rule, clip in product(RULES, CLIPS.items())]
    asked.sort(key=lambda one: repr(structure.Structure.of(one)))
    for begin in range(0, len(asked), TOGETHER):
        together = asked[begin : begin + TOGETHER]
        assert _locked(together, native=True).startswith(f"{len(together)} arms")


@pytest.mark.parametrize(
    "arm",
    [
        ("momentum", ("value", {**CLIPS["value"], "on": "example"})),
        (("sgd", {"schedule": "cosine"}), ("norm", CLIPS["norm"])),
    ],
    ids=str,
)
def test_clips_of_examples_and_schedules_are_the_loops(arm):
    asked = [job("wdbc", *arm, lr=0.1, seed=seed, dtype="float64", batch=4) for seed in (0, 1)]
    for made, one in zip(lanes.run(asked, native=True), asked, strict=True):
        assert made.engine == NATIVE
        agree(made, engines.run(one))


@pytest.mark.parametrize("problem", ["wdbc", "cosh"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_lane_has_the_same_bits_whoever_trains_beside_it(problem, dtype):
    """Of `cosh`, sixteen stand abreast."""
    count = 7 if problem == "wdbc" else 20
    asked = [
        job(problem, *ARMS[n % 3], lr=0.01 * (1 + n), seed=n % 3, dtype=dtype) for n in range(count)
    ]
    asked.append(job(problem, *ARMS[0], lr=1e30, seed=1, dtype=dtype))  # which ends at once
    together = lanes.run(asked, native=True)
    backwards = lanes.run(asked[::-1], native=True)[::-1]
    for made, other, one in zip(together, backwards, asked, strict=True):
        (alone,) = lanes.run([one], native=True)
        assert bits(made) == bits(other) == bits(alone)


@pytest.mark.parametrize(
    "rules",
    [
        ("sgd", ("value", {"max_value": 0.01})),
        ("momentum", ("norm", {"max_norm": 0.1})),
        ("adam", ("layer", {"max_norm": 0.05})),
    ],
    ids=str,
)
def test_a_lane_that_diverges_ends_as_the_loop_does(rules):
    asked = [job("wdbc", *rules, lr=1e200 * (1 + n), dtype="float64") for n in range(2)]
    for made, one in zip(lanes.run(asked, native=True), asked, strict=True):
        assert math.isnan(made.rows[-1, GRAD_NORM])
        agree(made, engines.run(one))


class Shift(nn.Module):
    """The same output whatever the input: its gradient has one sign."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, inputs):
        return self.shift.expand(len(inputs), 2)


@pytest.mark.parametrize(("scale", "norm"), [(1e20, math.nan), (1.0, math.inf)])
def test_an_infinite_gradient_is_told_from_one_whose_norm_overflows(scale, norm):
    """In float32, as the loop does: NaN for the one, infinity for the other."""
    on_cancer("steep", Shift, lambda output, _: output.mean() * 1e25 * scale)
    asked = [job("steep", lr=0.1 * (1 + n), dtype="float32") for n in range(2)]
    for made, one in zip(lanes.run(asked, native=True), asked, strict=True):
        alone = engines.run(one)
        assert made.engine == NATIVE
        np.testing.assert_equal(made.rows[0, GRAD_NORM], norm)
        np.testing.assert_equal(alone.rows[0, GRAD_NORM], norm)
        assert made.verdict == alone.verdict


def test_a_state_that_hands_on_what_was_is_read_before_it_is_overwritten():
    @clip("late")
    class Late:
        limit: Positive = 1.0

        def init(self, params):
            return {"now": trees.zeros_like(params), "last": trees.zeros_like(params)}

        def update(self, grads, state, params):
            return state["last"], {"now": grads, "last": state["now"]}

    asked = [
        job(("wdbc", {"width": 9}), "sgd", "late", lr=0.1 * (1 + n), dtype="float64")
        for n in range(2)
    ]
    for made, one in zip(lanes.run(asked, native=True), asked, strict=True):
        assert made.engine == NATIVE
        agree(made, engines.run(one))


def turned(tensor):
    return tensor.permute(*reversed(range(tensor.dim())))


def test_a_state_that_lies_in_another_order_is_the_loops():
    @optimizer("turned")
    class Turned:
        flat = False
        share: Positive = 0.5

        def init(self, params):
            return {name: torch.zeros_like(turned(param)) for name, param in params.items()}

        def update(self, grads, state, params):
            state = {
                name: self.share * held + turned(grads[name]) * (1 + torch.arange(len(grads[name])))
                for name, held in state.items()
            }
            return {name: turned(held).clone() for name, held in state.items()}, state

    asked = [job("wdbc", "turned", lr=0.001 * (1 + n), dtype="float64") for n in range(2)]
    for made, one in zip(lanes.run(asked, native=True), asked, strict=True):
        assert made.engine == NATIVE
        agree(made, engines.run(one))


@pytest.mark.parametrize(("tensors", "engine"), [(253, NATIVE), (254, lanes.EAGER)])
def test_a_program_of_more_arguments_than_there_is_room_for_is_not_native(tensors, engine):
    """Of 256 the weights, the inputs and the targets are three."""

    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.ParameterList(
                nn.Parameter(torch.full((2,), 0.01), requires_grad=False) for _ in range(tensors)
            )
            self.last = nn.Linear(30, 2)

        def forward(self, inputs):
            return self.last(inputs) + sum(self.frozen)

    on_cancer("many", Many)
    asked = [job("many", lr=0.1 * (1 + n), dtype="float64", steps=4) for n in range(2)]
    for made, one in zip(lanes.run(asked, native=True), asked, strict=True):
        assert made.engine == engine
        agree(made, engines.run(one))


def test_lanes_of_a_model_of_a_few_numbers_stand_abreast_and_follow_their_schedules():
    """Whatever can: an update that sorts its elements keeps a lane to itself."""
    arms = [
        (("momentum", {"schedule": "cosine"}), ("norm", CLIPS["norm"])),
        ("adam", ("none", {})),
        ("sgd", ("quantile", CLIPS["quantile"])),
    ]
    asked = [
        job("cosh", *arms[n % 3], lr=0.01 / (1 + n), seed=n % 4, dtype="float64") for n in range(21)
    ]
    together, _ = lanes.begin(asked, native=True)
    widths = {one.clip: width for one, width in together.stepper.abreast.items()}
    assert widths == {"norm": 16, "none": 16, "quantile": 1}
    for made, one in zip(lanes.run(asked, native=True), asked, strict=True):
        agree(made, engines.run(one))


def test_what_multiplies_matrices_is_not_made_of_loops_alone():
    square = numbers(torch.float64, 4, 4)
    native.written(lambda x: [x * x], [square], plain=True)
    for _ in range(2):  # the second time it is known
        with pytest.raises(Untranslated, match="loops alone"):
            native.written(lambda x: [x @ x], [square], "a product of squares", plain=True)


def test_a_rule_without_a_translation_runs_in_lanes_of_torch():
    @clip("inverse")
    class Inverse:
        limit: Positive = 1.0

        def update(self, grads, state, params):
            one = torch.linalg.inv(torch.eye(2).to(next(iter(grads.values())).dtype))[0, 0]
            return trees.scale(grads, one * self.limit), state

    asked = [job("cosh", "sgd", "inverse", lr=0.01, seed=seed, dtype="float64") for seed in (0, 1)]
    for made, one in zip(lanes.run(asked, native=True), asked, strict=True):
        assert made.engine == lanes.EAGER
        agree(made, engines.run(one))


@pytest.fixture
def halving(tmp_path):
    """The name of a user's clip, from a file of its own."""
    registry.load_packaged()
    file = tmp_path / "halving.py"
    file.write_text(
        "from clipbench import Positive, clip, trees\n\n\n"
        '@clip("halving")\nclass Halving:\n    limit: Positive = 1.0\n\n'
        "    def update(self, grads, state, params):\n"
        "        return trees.scale(grads, self.limit / 2), state\n"
    )
    registry.load_file(file)
    return "halving"


def test_programs_of_a_users_component_are_traced_once_a_run(halving, monkeypatch):
    """Of a packaged one once for all runs; another process is as one whose memory is empty."""
    traced, primitives = [], native.primitives

    def noted(*given):
        traced.append(given)
        return primitives(*given)

    monkeypatch.setattr(native, "primitives", noted)
    asked = [job("cosh", "sgd", halving, lr=0.01, seed=seed) for seed in (0, 1)]

    def records(word):
        stacked.programs.cache_clear()
        traced.clear()
        of_this_run(word)
        return lanes.run(asked, native=True)

    try:
        first = records("one run")
        assert len(traced) in (1, 2)  # the update; the gradient too if nobody has asked for it yet
        for word, times in (("one run", 0), ("another run", 1), ("", 1), ("", 1)):
            for made, one in zip(records(word), first, strict=True):
                assert bits(made) == bits(one)
            assert len(traced) == times
    finally:
        of_this_run("")
