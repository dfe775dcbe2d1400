"""A step's measures are those of an independent computation in float64, and tell the edges of
float32 apart.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clipbench import clips
from clipbench.engines import clipper
from clipbench.measures import CHANGED, COLUMNS, COSINE, GRAD_NORM, KEPT, LOSS, UPDATE_NORM
from clipbench.step import Meter

SHAPES = [(3, 4), (5,), (), (2, 1, 3)]
CLIPS = {
    "none": clips.Unclipped(),
    "value": clips.Value(max_value=0.5),
    "norm": clips.Norm(max_norm=1.0),
    "norm inf": clips.Norm(max_norm=0.5, norm_type="inf"),
    "layer": clips.Layer(max_norm=0.7),
    "block-rms": clips.BlockRMS(max_rms=0.5),
    "adaptive": clips.Adaptive(max_ratio=0.3),
    "normalised": clips.Normalised(),
}


def parameters(seed=0, dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in shapes
    ]


def set_gradients(params, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = (
            scale * torch.randn(param.shape, generator=generator, dtype=torch.float64)
        ).to(param.dtype)


def fill(params, value):
    for param in params:
        param.grad = torch.full_like(param, value)


def flat(tensors):
    """One float64 vector, made by NumPy."""
    return np.concatenate(
        [tensor.detach().numpy().astype(np.float64).ravel() for tensor in tensors]
    )


def move(params, lr=0.1):
    with torch.no_grad():
        for param in params:
            if param.grad is not None:
                param.sub_(param.grad, alpha=lr)


def measured(params, clip=None):
    """The row of one step whose gradients are set, clipped as the loop clips them."""
    meter = Meter(params)
    meter.raw()
    if (
        clip is not None
        and clipper(clip, {str(number): param for number, param in enumerate(params)})()
    ):
        meter.clipped()
    move(params)
    meter.step(torch.tensor(0.25))
    [row] = meter.rows()
    return row


# ---------------------------------------------------------------------------------------- witnesses


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 2e-6)],
    ids=["float64", "float32"],
)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-6, 6))
def test_measures_are_those_of_an_independent_computation(name, dtype, tolerance, seed, exponent):
    """Norm, share kept, cosine, elements changed and length of the update, by NumPy in float64,
    over twelve decades.
    """
    params = parameters(seed, dtype)
    set_gradients(params, seed + 1, 10.0**exponent)
    raw, before = flat(param.grad for param in params), flat(params)
    row = measured(params, CLIPS[name])
    clipped, after = flat(param.grad for param in params), flat(params)
    norm, length = np.linalg.norm(raw), np.linalg.norm(clipped)
    assert row[LOSS] == 0.25
    assert row[GRAD_NORM] == pytest.approx(norm, rel=tolerance)
    assert row[KEPT] == pytest.approx(length / norm, rel=tolerance)
    assert row[COSINE] == pytest.approx(raw @ clipped / (norm * length), rel=tolerance)
    assert row[CHANGED] == np.mean(raw != clipped)
    assert row[UPDATE_NORM] == pytest.approx(np.linalg.norm(after - before), rel=tolerance)


def test_rows_come_in_the_order_of_the_columns():
    assert COLUMNS == ("loss", "grad_norm", "kept", "cosine", "changed", "update_norm")
    params = parameters(shapes=[(2,)])
    params[0].grad = torch.tensor([3.0, 4.0])
    assert measured(params, clips.Value(max_value=3.0)) == pytest.approx(
        [0.25, 5.0, math.sqrt(18) / 5, 21 / (5 * math.sqrt(18)), 0.5, 0.1 * math.sqrt(18)], rel=1e-6
    )


def test_a_meter_starts_anew_after_its_rows_were_read():
    """Blocks of any size give the rows that one block gives, and no block gives none."""

    def trained(*stops):
        params, found = parameters(), []
        meter = Meter(params)
        for step in range(6):
            set_gradients(params, step)
            meter.raw()
            CLIPS["norm"].clip_(params)
            meter.clipped()
            move(params)
            meter.step(torch.tensor(float(step)))
            if step in stops:
                found.append(meter.rows())
        return np.concatenate([*found, meter.rows()])

    assert trained().shape == (6, len(COLUMNS))
    np.testing.assert_array_equal(trained(), trained(1, 2, 5))


def test_a_meter_follows_parameters_that_are_changed_in_place():
    """The length of an update is from where the step before left off, not from the start."""
    params = parameters(dtype=torch.float64)
    meter = Meter(params)
    for _ in range(5):
        fill(params, 1.0)
        meter.raw()
        move(params)
        meter.step(torch.tensor(0.0))
    expected = 0.1 * math.sqrt(sum(param.numel() for param in params))
    np.testing.assert_allclose(meter.rows()[:, UPDATE_NORM], expected, rtol=1e-13)


def test_measuring_changes_neither_gradients_nor_parameters():
    params = parameters()
    set_gradients(params, 1)
    before = [(param.detach().clone(), param.grad.clone()) for param in params]
    meter = Meter(params)
    meter.raw()
    meter.clipped()
    meter.step(torch.tensor(0.0))
    meter.rows()
    for param, (value, grad) in zip(params, before, strict=True):
        assert torch.equal(param, value)
        assert torch.equal(param.grad, grad)


class Doubles(torch.optim.SGD):
    """Changes ``.grad`` while it steps, as foreach Nesterov does."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.mul_(2)


class Swaps(torch.optim.SGD):
    """Gives every parameter other memory, and throws its gradient away."""

    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                param.data = param.data - group["lr"] * param.grad
                param.grad = None


NESTEROV = partial(torch.optim.SGD, momentum=0.9, nesterov=True, foreach=True)


@pytest.mark.parametrize("make", [torch.optim.SGD, Doubles, Swaps, NESTEROV])
@pytest.mark.parametrize(
    "clip",
    [None, clips.Norm(max_norm=1e9), clips.Value(max_value=1e9), clips.Adaptive(max_ratio=1e9)],
)
def test_what_an_optimizer_does_to_a_gradient_is_not_taken_for_a_clip(make, clip):
    """All are measured as plain SGD is: the clip between the backward pass and the step, the
    update by where the weights lie.
    """
    params = parameters(dtype=torch.float64)
    meter, optimizer = Meter(params), make(params, lr=0.1)
    clipped = (
        clipper(clip, {str(number): param for number, param in enumerate(params)})
        if clip
        else lambda: False
    )
    for step in range(3):
        set_gradients(params, step)
        raw, before = flat(param.grad for param in params), flat(params)
        meter.raw()
        if clipped():
            meter.clipped()
        optimizer.step()
        meter.step(torch.tensor(0.0))
        row = meter.rows()[0]
        assert row[[KEPT, CHANGED]].tolist() == [1.0, 0.0]
        assert row[COSINE] == pytest.approx(1.0, rel=1e-14)
        assert row[GRAD_NORM] == pytest.approx(np.linalg.norm(raw), rel=1e-13)
        assert row[UPDATE_NORM] == pytest.approx(np.linalg.norm(flat(params) - before), rel=1e-13)


# ---------------------------------------------------------------------------------------- the edges


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_element_that_is_not_finite_makes_the_norm_nan(value, clip):
    """Infinity too, so that it is told from an overflow; and whatever the clip made of it."""
    params = parameters()
    set_gradients(params, 1)
    params[1].grad[3] = value
    assert math.isnan(measured(params, clip)[GRAD_NORM])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_makes_its_norm_nan(value):
    params = parameters()
    fill(params, 1.0)
    params[0].grad[0, 0] = value
    assert math.isnan(measured(params)[UPDATE_NORM])


def test_a_finite_gradient_that_overflows_has_an_infinite_norm_and_nothing_is_kept():
    """2e19 in float32: the norm clip makes it exactly zero, a silent stall; the row says so."""
    params = parameters()
    fill(params, 2e19)
    row = measured(params, CLIPS["norm"])
    assert not flat(param.grad for param in params).any()
    assert row[GRAD_NORM] == math.inf
    assert row[KEPT] == 0
    assert row[CHANGED] == 1
    assert row[UPDATE_NORM] == 0
    assert math.isnan(row[COSINE])


def test_in_float64_the_same_gradient_does_not_overflow():
    params = parameters(dtype=torch.float64)
    fill(params, 2e19)
    row = measured(params, CLIPS["norm"])
    assert row[GRAD_NORM] == pytest.approx(2e19 * math.sqrt(24))
    assert row[KEPT] * row[GRAD_NORM] == pytest.approx(1.0)


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_a_zero_gradient_is_kept_whole(clip):
    params = parameters()
    fill(params, 0.0)
    assert measured(params, clip).tolist() == [0.25, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_a_gradient_that_the_clip_makes_zero_has_no_direction():
    class Erase:
        def clip_(self, params):
            fill(params, 0.0)

    params = parameters()
    set_gradients(params, 1)
    row = measured(params, Erase())
    assert (row[KEPT], row[CHANGED], row[UPDATE_NORM]) == (0.0, 1.0, 0.0)
    assert math.isnan(row[COSINE])


@pytest.mark.parametrize(("name", "value"), [("none", math.nan), ("none", -0.0), ("value", -0.0)])
def test_an_element_that_stays_as_it_is_is_not_changed(name, value):
    """Without a clip a NaN neither, though it is not equal to itself."""
    params = parameters()
    fill(params, 0.25)
    params[0].grad[0] = value
    row = measured(params, CLIPS[name])
    assert (row[KEPT], row[COSINE], row[CHANGED]) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize("clip", [clip for name, clip in CLIPS.items() if name != "none"])
def test_what_a_clip_makes_of_a_nan_is_not_told(clip):
    """Which NaN comes out of arithmetic depends on the order of the operands: bits would not be
    the same in every engine.
    """
    params = parameters()
    fill(params, 0.25)
    params[0].grad[0] = math.nan
    assert np.isnan(measured(params, clip)[[KEPT, COSINE, CHANGED]]).all()


def test_a_parameter_without_a_gradient_counts_as_zeros():
    """It is among the elements that were not changed, and its place in the buffer is not taken
    by another's.
    """
    params = parameters()
    fill(params, 1.0)
    params[1].grad = None
    present = [param for param in params if param.grad is not None]
    row = measured(params, clips.Value(max_value=0.5))
    elements = sum(param.numel() for param in params)
    assert row[GRAD_NORM] == pytest.approx(math.sqrt(elements - 5))
    assert row[CHANGED] == (elements - 5) / elements
    assert row[KEPT] == pytest.approx(0.5)
    assert row[UPDATE_NORM] == pytest.approx(
        0.05 * math.sqrt(sum(param.numel() for param in present)), rel=1e-6
    )


def test_parameters_that_are_not_contiguous_are_measured_in_full():
    params = [nn.Parameter(torch.arange(12.0).reshape(3, 4).t())]
    params[0].grad = torch.arange(12.0).reshape(4, 3).t().contiguous().t()
    assert measured(params)[GRAD_NORM] == pytest.approx(math.sqrt(506))


def test_what_a_value_clip_leaves_of_a_gradient_whose_norm_overflows_is_measured():
    """By hand: cosine (2e19 + 5)/(2e19 √6) = .408248 and kept √6/2e19, not the 0 of a right
    angle and of nothing.
    """
    params = [nn.Parameter(torch.ones(6))]
    params[0].grad = torch.tensor([2e19, 1, 1, 1, 1, 1])
    row = measured(params, clips.Value(max_value=1.0))
    assert row[COSINE] == pytest.approx(0.408248, abs=1e-6)
    assert row[KEPT] == pytest.approx(math.sqrt(6) / 2e19, rel=1e-6)
    assert row[CHANGED] == pytest.approx(1 / 6)
    assert row[GRAD_NORM] == math.inf


@pytest.mark.parametrize("exponent", [-40, -36, -30, -24, -19, -12, 12, 18, 24, 30, 36])
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_measures_are_free_of_the_gradients_unit(exponent, share):
    """Where the squares of float32 are all 0 or infinite, too: as NumPy has them in float64,
    whatever the clip.
    """
    params = parameters(3)
    set_gradients(params, 4, 10.0**exponent)
    raw, before = flat(param.grad for param in params), flat(params)
    row = measured(params, clips.Value(max_value=share * float(np.abs(raw).max())))
    clipped, after = flat(param.grad for param in params), flat(params)
    norm, length = np.linalg.norm(raw), np.linalg.norm(clipped)
    assert row[GRAD_NORM] == (pytest.approx(norm, rel=1e-6) if norm < 1.8e19 else math.inf)
    assert row[KEPT] == pytest.approx(length / norm, rel=1e-6)
    assert row[COSINE] == pytest.approx(raw @ clipped / norm / length, rel=1e-6)
    assert row[CHANGED] == np.mean(raw != clipped)
    assert row[UPDATE_NORM] == pytest.approx(np.linalg.norm(after - before), rel=1e-6)


@pytest.mark.parametrize("size", [1e170, 1e-170])
def test_what_leaves_float64_as_well_is_not_told(size):
    params = parameters(dtype=torch.float64)
    set_gradients(params, 1, size)
    row = measured(params, clips.Value(max_value=size / 10))
    assert np.isnan(row[[KEPT, COSINE]]).all()
    assert row[CHANGED] > 0
    assert row[GRAD_NORM] == math.inf if size > 1 else 0 < row[GRAD_NORM] < 1e-169
