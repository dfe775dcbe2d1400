"""The packaged clips against ``torch.nn.utils``, at the edges too."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from clipbench import clips, registry, trees
from clipbench.registry import UsageError

NAN, INF = math.nan, math.inf
THRESHOLDS = st.one_of(st.floats(1e-6, 1e6), st.just(INF))
NORM_TYPES = st.sampled_from([2, "inf"])


@st.composite
def gradients(draw):
    """A tree of one to four leaves, matrices to scalars, of any size between 1e-8 and 1e8."""
    shapes = draw(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=4))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = 10.0 ** draw(st.floats(-8, 8))
    return {str(at): size * torch.randn(shape, generator=source, dtype=torch.float64) for at, shape in enumerate(shapes)}


def parameters(grads):
    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads.values()]
    for param, grad in zip(params, grads.values(), strict=True):
        param.grad = grad.clone()
    return params


def by_torch(clip, grads, foreach):
    """What torch's own function leaves in ``.grad``."""
    params = parameters(grads)
    if isinstance(clip, clips.Value):
        clip_grad_value_(params, clip.max_value, foreach=foreach)
    elif isinstance(clip, clips.Norm):
        clip_grad_norm_(params, clip.max_norm, float(clip.norm_type), foreach=foreach)
    else:
        for param in params:
            clip_grad_norm_([param], clip.max_norm, float(clip.norm_type), foreach=foreach)
    return dict(zip(grads, [param.grad for param in params], strict=True))


def by_path(clip, grads):
    params = parameters(grads)
    clip.clip_(params)
    return dict(zip(grads, [param.grad for param in params], strict=True))


def by_rule(clip, grads):
    return clip.update(grads, {}, trees.zeros_like(grads))[0]


def assert_alike(came, wanted, rtol=1e-12):
    assert came.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(came[name], wanted[name], rtol=rtol, atol=0, equal_nan=True)


# --------------------------------------------------------------------------------------------------------------- the witnesses


@settings(max_examples=60)
@given(gradients(), THRESHOLDS, NORM_TYPES, st.booleans())
def test_every_clip_is_torchs(grads, threshold, norm_type, foreach):
    for clip in (clips.Value(threshold), clips.Norm(threshold, norm_type), clips.Layer(threshold, norm_type)):
        wanted = by_torch(clip, grads, foreach)
        assert_alike(by_rule(clip, grads), wanted)
        assert_alike(by_path(clip, grads), wanted)


@settings(max_examples=30)
@given(gradients(), THRESHOLDS)
def test_one_tensor_alone_is_clipped_by_layer_as_by_norm(grads, threshold):
    alone = {"0": grads["0"]}
    assert_alike(by_rule(clips.Layer(threshold), alone), by_rule(clips.Norm(threshold), alone))


@pytest.mark.parametrize("norm_type", [2, "inf"])
@pytest.mark.parametrize("kind", [clips.Value, clips.Norm, clips.Layer])
def test_lanes_of_thresholds_are_the_plain_calls(kind, norm_type):
    thresholds = torch.tensor([0.01, 0.3, 1.0, 30.0, INF], dtype=torch.float64)
    extra = {} if kind is clips.Value else {"norm_type": norm_type}
    source = torch.Generator().manual_seed(0)
    lanes = {"w": torch.randn(5, 4, 3, generator=source, dtype=torch.float64), "b": torch.randn(5, generator=source).double()}
    together = torch.vmap(lambda limit, grads: by_rule(kind(limit, **extra), grads))(thresholds, lanes)
    for lane, threshold in enumerate(thresholds.tolist()):
        alone = by_rule(kind(threshold, **extra), {name: leaf[lane] for name, leaf in lanes.items()})
        assert_alike({name: leaf[lane] for name, leaf in together.items()}, alone)


def test_no_clip_returns_the_very_tree_it_was_given():
    grads, state = {"w": torch.ones(3)}, {}
    same, kept = clips.Unclipped().update(grads, state, {})
    assert same is grads
    assert kept is state


@settings(max_examples=30)
@given(gradients(), THRESHOLDS)
def test_infinity_is_no_clip_bit_for_bit_and_nothing_is_ever_lengthened(grads, threshold):
    for kind in (clips.Value, clips.Norm, clips.Layer):
        same = by_rule(kind(INF), grads)
        assert all(torch.equal(same[name], grads[name]) for name in grads)
        assert trees.norm(by_rule(kind(threshold), grads)) <= trees.norm(grads)
        assert not getattr(kind, "lengthens", False)


# ------------------------------------------------------------------------------------------------------------------- the sizes


def test_size_is_where_a_threshold_begins_to_act():
    grads = {"w": torch.tensor([3.0, -4.0]), "b": torch.tensor([12.0])}
    expected = {
        clips.Value(1.0): 12.0,
        clips.Norm(1.0): 13.0,
        clips.Norm(1.0, "inf"): 12.0,
        clips.Layer(1.0): 12.0,
        clips.Layer(1.0, "inf"): 12.0,
    }
    for clip, size in expected.items():
        found = clip.size(grads)
        assert found.shape == ()
        assert found.item() == size
    assert clips.Layer(1.0).size({"w": torch.tensor([3.0, -4.0])}).item() == 5.0
    assert not hasattr(clips.Unclipped(), "size")


# ------------------------------------------------------------------------------------------------ torch's functions at the edges


def alike_everywhere(clip, grads):
    """The rule's result, after it was found to be torch's, in both of torch's forms."""
    came = by_rule(clip, grads)
    for wanted in (by_torch(clip, grads, foreach=True), by_torch(clip, grads, foreach=False), by_path(clip, grads)):
        assert_alike(came, wanted, rtol=1e-6)
    return came


def test_a_norm_equal_to_the_threshold_is_still_scaled():
    came = alike_everywhere(clips.Norm(5.0), {"w": torch.tensor([3.0, 4.0])})["w"]
    assert came.norm().item() / 5 == pytest.approx(1 - 2.4e-7, abs=1e-7)
    assert came[0] < 3


def test_at_a_threshold_of_a_millionth_the_epsilon_bites():
    came = alike_everywhere(clips.Norm(1e-6), {"w": torch.tensor([3e-6, 4e-6])})["w"]
    assert came.norm().item() / 1e-6 == pytest.approx(0.83, abs=0.005)


def test_one_nan_makes_every_gradient_nan():
    came = alike_everywhere(clips.Norm(1.0), {"w": torch.tensor([1.0, NAN]), "b": torch.tensor([2.0])})
    assert all(leaf.isnan().all() for leaf in came.values())


def test_by_layer_a_nan_stays_in_its_own_tensor():
    came = alike_everywhere(clips.Layer(1.0), {"w": torch.tensor([1.0, NAN]), "b": torch.tensor([0.5])})
    assert came["w"].isnan().all()
    assert came["b"].item() == 0.5


def test_one_infinity_becomes_nan_and_every_other_element_zero():
    came = alike_everywhere(clips.Norm(1.0), {"w": torch.tensor([1.0, INF]), "b": torch.tensor([2.0])})
    assert came["w"][1].isnan()
    assert came["w"][0] == 0
    assert came["b"] == 0


def test_finite_gradients_whose_norm_overflows_become_exactly_zero():
    came = alike_everywhere(clips.Norm(1.0), {"w": torch.full((2,), 2e19), "b": torch.tensor([1.0])})
    assert all(not leaf.any() for leaf in came.values())


def test_an_infinite_threshold_and_an_overflowing_norm_make_nan():
    came = alike_everywhere(clips.Norm(INF), {"w": torch.full((2,), 2e19)})
    assert came["w"].isnan().all()


def test_the_largest_element_does_not_overflow():
    came = alike_everywhere(clips.Norm(1.0, "inf"), {"w": torch.full((2,), 2e19)})
    assert came["w"].tolist() == [1.0, 1.0]


def test_value_masks_an_infinity_and_keeps_nan():
    came = alike_everywhere(clips.Value(0.5), {"w": torch.tensor([INF, -INF, NAN, 0.25])})["w"]
    assert came[:2].tolist() == [0.5, -0.5]
    assert came[2].isnan()
    assert came[3] == 0.25


def test_a_negative_threshold_flips_the_sign_in_torch_and_is_refused_here():
    (param,) = parameters({"w": torch.tensor([3.0, 4.0])})
    clip_grad_norm_([param], -1.0)
    assert (param.grad < 0).all()
    for kind, field in ((clips.Norm, "max_norm"), (clips.Layer, "max_norm"), (clips.Value, "max_value")):
        with pytest.raises(UsageError, match=f"`{field}` is -1.0, and must be a positive number"):
            registry.validated(kind, {field: -1.0}, "here")


def test_a_parameter_listed_twice_is_scaled_twice():
    (param,) = parameters({"w": torch.tensor([3.0, 4.0])})
    clips.Norm(1.0).clip_([param, param])
    assert param.grad.norm().item() == pytest.approx(5 / (50**0.5) ** 2, rel=1e-5)


def test_without_any_gradient_value_raises_and_norm_does_not():
    bare = torch.nn.Parameter(torch.ones(2))
    for params in ([], [bare]):
        with pytest.raises(RuntimeError):
            clips.Value(1.0).clip_(params)
        clips.Norm(1.0).clip_(params)
        clips.Layer(1.0).clip_(params)
    assert bare.grad is None


def test_a_parameter_without_a_gradient_is_passed_over():
    bare, (param,) = torch.nn.Parameter(torch.ones(2)), parameters({"w": torch.tensor([3.0, 4.0])})
    for clip in (clips.Value(1.0), clips.Norm(1.0), clips.Layer(1.0)):
        clip.clip_([bare, param])
    assert bare.grad is None
    assert param.grad.norm() < 1
