"""Arithmetic on trees, and seeds that mean the same everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipbench import trees

WEIGHTS = {
    "w": torch.tensor([[3.0, 0.0], [0.0, -4.0]]),
    "b": torch.tensor([12.0]),
    "scale": torch.tensor(0.0),
}


def drawn(seed, size=1.0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"w": (4, 3), "b": (4,), "scale": ()}
    return {
        name: size * torch.randn(shape, generator=draw, dtype=dtype)
        for name, shape in shapes.items()
    }


def test_map_goes_leaf_by_leaf_and_keeps_the_names():
    doubled = trees.map(torch.add, WEIGHTS, WEIGHTS)
    assert list(doubled) == list(WEIGHTS)
    assert all(torch.equal(doubled[name], 2 * WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_keep_shape_and_dtype(dtype):
    tree = drawn(0, dtype=dtype)
    assert all(leaf.dtype == dtype and not leaf.any() for leaf in trees.zeros_like(tree).values())
    assert trees.zero(tree).dtype == dtype
    assert trees.zero(tree).shape == ()


@given(st.integers(0, 1000), st.floats(-6, 6))
def test_norm_is_torchs_total_norm(seed, exponent):
    tree = drawn(seed, 10.0**exponent)
    for order in (2.0, torch.inf):
        expected = torch.nn.utils.get_total_norm(tree.values(), order)
        torch.testing.assert_close(trees.norm(tree, order), expected, rtol=1e-14, atol=0)


@given(st.integers(0, 1000))
def test_norm_and_dot_are_those_of_the_flat_vector(seed):
    tree, other = drawn(seed), drawn(seed + 1)
    flat = trees.flatten(tree)
    assert flat.shape == (17,)
    torch.testing.assert_close(trees.norm(tree), flat.norm(), rtol=1e-14, atol=0)
    torch.testing.assert_close(
        trees.dot(tree, other), flat @ trees.flatten(other), rtol=1e-12, atol=1e-14
    )


def test_flatten_fills_the_buffer_it_is_given():
    buffer = torch.empty(6)
    assert trees.flatten(WEIGHTS, out=buffer) is buffer
    assert buffer.tolist() == [3, 0, 0, -4, 12, 0]


def test_scale_to_shortens_what_is_longer_exactly():
    short = trees.scale_to(WEIGHTS, 6.5, trees.norm(WEIGHTS))
    assert all(torch.equal(short[name], WEIGHTS[name] / 2) for name in WEIGHTS)


@pytest.mark.parametrize("limit", [13.0, 14.0, torch.inf])
def test_scale_to_leaves_what_is_short_enough_bit_for_bit(limit):
    same = trees.scale_to(WEIGHTS, limit, trees.norm(WEIGHTS))
    assert all(torch.equal(same[name], WEIGHTS[name]) for name in WEIGHTS)


def test_scale_to_keeps_zero_and_lets_a_nan_be_seen():
    zero = trees.zeros_like(WEIGHTS)
    assert all(not leaf.any() for leaf in trees.scale_to(zero, 0.0, trees.norm(zero)).values())
    broken = WEIGHTS | {"b": torch.tensor([float("nan")])}
    kept = trees.scale_to(broken, 1.0, trees.norm(broken))
    assert kept["b"].isnan().all()
    assert torch.equal(kept["w"], WEIGHTS["w"])


def test_a_seed_is_the_same_number_on_every_machine():
    """Golden: were it to move, every stored cell would have met another luck."""
    assert trees.seed_of("wdbc", 0, "weights") == 2477683850780269246
    assert trees.generator("wdbc", 0, "weights").initial_seed() == 2477683850780269246


def test_streams_differ_by_workload_seed_and_name():
    asked = [
        ("wdbc", 0, "weights"),
        ("wdbc", 0, "batches"),
        ("wdbc", 1, "weights"),
        ("digits", 0, "weights"),
        ("wdbc", 10, "weights"),
    ]
    assert len({trees.seed_of(*one) for one in asked}) == len(asked)
    assert all(0 <= trees.seed_of(*one) < 2**63 for one in asked)


def test_seeded_repeats_itself_and_gives_the_global_state_back():
    before = torch.get_rng_state()
    with trees.seeded("wdbc", 0, "weights"):
        first = torch.rand(5)
    with trees.seeded("wdbc", 0, "weights"):
        assert torch.equal(torch.rand(5), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_gives_the_global_state_back_when_its_body_raises():
    def fails():
        with trees.seeded("wdbc", 0, "weights"):
            return torch.rand(5) / 0 + 1 // 0

    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.equal(torch.get_rng_state(), before)
