"""The packaged clips against ``torch.nn.utils`` and against their papers' formulas in NumPy, at
the edges too.
"""

from __future__ import annotations

import math

import numpy as np
import packaged
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from clipbench import clips, registry, trees
from clipbench.errors import UsageError

NAN, INF = math.nan, math.inf
THRESHOLDS = st.one_of(st.floats(1e-6, 1e6), st.just(INF))
NORM_TYPES = st.sampled_from([2, "inf"])


@st.composite
def gradients(draw):
    """A tree of one to four leaves, matrices to scalars, of any size between 1e-8 and 1e8."""
    shapes = draw(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=4))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = 10.0 ** draw(st.floats(-8, 8))
    return {
        str(at): size * torch.randn(shape, generator=source, dtype=torch.float64)
        for at, shape in enumerate(shapes)
    }


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


def arrays(grads):
    return {name: leaf.numpy() for name, leaf in grads.items()}


def tensors(leaves):
    return {name: torch.from_numpy(np.asarray(leaf)) for name, leaf in leaves.items()}


def length(leaves):
    """One norm over all, by NumPy."""
    return np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in leaves.values()]))


# ------------------------------------------------------------------------------------ the witnesses


@settings(max_examples=60)
@given(gradients(), THRESHOLDS, NORM_TYPES, st.booleans())
def test_every_clip_is_torchs(grads, threshold, norm_type, foreach):
    for clip in (
        clips.Value(threshold),
        clips.Norm(threshold, norm_type),
        clips.Layer(threshold, norm_type),
    ):
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
    lanes = {
        "w": torch.randn(5, 4, 3, generator=source, dtype=torch.float64),
        "b": torch.randn(5, generator=source).double(),
    }
    together = torch.vmap(lambda limit, grads: by_rule(kind(limit, **extra), grads))(
        thresholds, lanes
    )
    for lane, threshold in enumerate(thresholds.tolist()):
        alone = by_rule(
            kind(threshold, **extra), {name: leaf[lane] for name, leaf in lanes.items()}
        )
        assert_alike({name: leaf[lane] for name, leaf in together.items()}, alone)


def test_no_clip_returns_the_very_tree_it_was_given():
    grads, state = {"w": torch.ones(3)}, {}
    same, kept = clips.Unclipped().update(grads, state, {})
    assert same is grads
    assert kept is state


@settings(max_examples=60)
@given(gradients(), THRESHOLDS)
def test_block_rms_is_optaxs(grads, threshold):
    wanted = {
        name: leaf / max(1.0, np.sqrt(np.mean(np.abs(leaf) ** 2)) / threshold)
        for name, leaf in arrays(grads).items()
    }
    assert_alike(by_rule(clips.BlockRMS(threshold), grads), tensors(wanted))


@settings(max_examples=60)
@given(gradients(), THRESHOLDS, st.floats(1e-6, 1e3), st.integers(0, 2**31))
def test_adaptive_cuts_every_unit_as_the_paper_says(grads, ratio, eps, seed):
    """Row by row, and a vector as a whole: λ ‖w‖* / ‖g‖ g where ‖g‖ / ‖w‖* is above λ, ‖w‖*
    being ‖w‖ or ε if that is more.
    """
    draw = np.random.default_rng(seed)
    params = {name: draw.normal(size=leaf.shape) for name, leaf in arrays(grads).items()}
    wanted = {}
    for name, leaf in arrays(grads).items():
        wanted[name] = leaf.copy()
        for unit in range(leaf.shape[0]) if leaf.ndim > 1 else [...]:
            least = max(np.linalg.norm(np.ravel(params[name][unit])), eps)
            found = np.linalg.norm(np.ravel(leaf[unit]))
            if found / least > ratio:
                wanted[name][unit] = ratio * least / found * leaf[unit]
    came, _ = clips.Adaptive(ratio, eps).update(grads, {}, tensors(params))
    assert_alike(came, tensors(wanted))


@settings(max_examples=60)
@given(gradients(), st.floats(1e-9, 1e6))
def test_normalised_divides_by_the_norm_and_a_little(grads, beta):
    found = length(arrays(grads))
    wanted = {name: leaf / (found + beta) for name, leaf in arrays(grads).items()}
    assert_alike(by_rule(clips.Normalised(beta), grads), tensors(wanted))


@settings(max_examples=30)
@given(gradients(), THRESHOLDS)
def test_infinity_is_no_clip_bit_for_bit_and_nothing_is_ever_lengthened(grads, threshold):
    for kind in (clips.Value, clips.Norm, clips.Layer, clips.BlockRMS, clips.Adaptive):
        same = by_rule(kind(INF), grads)
        assert all(torch.equal(same[name], grads[name]) for name in grads)
        # Where norms are shortened to a limit, their last bit may be above it.
        assert trees.norm(by_rule(kind(threshold), grads)) <= trees.norm(grads) * (1 + 1e-15)
        assert not getattr(kind, "lengthens", False)


def test_only_normalised_lengthens():
    every = {name: registry.find("clip", name) for name in packaged.names("clip")}
    assert [name for name, kind in every.items() if getattr(kind, "lengthens", False)] == [
        "normalised"
    ]
    short = {"w": torch.tensor([3e-3, 4e-3], dtype=torch.float64)}
    assert trees.norm(by_rule(clips.Normalised(), short)).item() == pytest.approx(
        1 - 1e-6 / 5e-3, rel=1e-6
    )


# ------------------------------------------------------------------- what follows from the formulas


@settings(max_examples=30)
@given(gradients(), st.floats(1e-6, 1e6))
def test_block_rms_is_layer_with_a_threshold_for_each_size(grads, threshold):
    for name, leaf in grads.items():
        alone = {name: leaf}
        exact = trees.scale_to(alone, threshold * math.sqrt(leaf.numel()), trees.norm(alone))
        assert_alike(by_rule(clips.BlockRMS(threshold), alone), exact)


@settings(max_examples=30)
@given(gradients(), st.floats(1e-3, 1e3))
def test_normalised_is_norm_within_a_factor_of_two(grads, beta):
    """Zhang et al. 2020: at lr βη what norm with threshold β is at lr η."""
    exact = trees.scale_to(grads, beta, trees.norm(grads))
    share = beta * trees.norm(by_rule(clips.Normalised(beta), grads)) / trees.norm(exact)
    assert 0.5 * (1 - 1e-12) <= share <= 1 + 1e-12


@pytest.mark.parametrize(
    ("kind", "alike"), [(clips.Normalised, 3), (clips.BlockRMS, 2), (clips.Adaptive, 1)], ids=str
)
def test_a_direction_stays_where_one_factor_is_taken(kind, alike):
    """Of the whole, two rows and a vector; of each tensor, two rows; of each unit, one row."""
    grads = {
        "w": torch.tensor([[3.0, 4.0], [60.0, 80.0]]).double(),
        "b": torch.tensor([5.0, 12.0]).double(),
    }
    came, _ = kind(0.1).update(grads, {}, trees.map(torch.ones_like, grads))
    factors = torch.stack([*(came["w"] / grads["w"]), came["b"] / grads["b"]])
    torch.testing.assert_close(factors[:, 0], factors[:, 1], rtol=1e-12, atol=0)
    assert ((factors[:, 0] / factors[0, 0] - 1).abs() < 1e-12).tolist() == [
        place < alike for place in range(3)
    ]


def test_adaptive_is_about_ratios_only():
    """Weights and gradients measured in another unit are clipped alike; weights at 0 may leave
    it.
    """
    draw = torch.Generator().manual_seed(0)
    grads, params = (
        {
            "w": torch.randn(4, 3, generator=draw).double(),
            "b": torch.randn(4, generator=draw).double(),
        }
        for _ in "ab"
    )
    rule = clips.Adaptive(0.5)
    came, larger = (
        rule.update(trees.scale(grads, k), {}, trees.scale(params, k))[0] for k in (1.0, 1024.0)
    )
    assert all(torch.equal(1024 * came[name], larger[name]) for name in grads)
    assert not torch.equal(came["w"], grads["w"])
    still, _ = rule.update(grads, {}, trees.zeros_like(params))
    assert torch.linalg.vector_norm(still["b"]).item() == pytest.approx(0.5 * 1e-3, rel=1e-12)


def test_adaptive_cuts_a_tiny_gradient_to_its_limit_and_not_to_less():
    """Where optax and timm divide by 1e-6, and so leave half of what λ allows."""
    grads = {"w": torch.tensor([3e-7, 4e-7], dtype=torch.float64)}
    came, _ = clips.Adaptive(1e-4).update(grads, {}, trees.zeros_like(grads))
    assert torch.linalg.vector_norm(came["w"]).item() == pytest.approx(1e-7, rel=1e-12)


# ---------------------------------------------------------------------- thresholds that are learned

SHAPES = {"w": (4, 3), "b": (4,), "scale": ()}


def walk(steps, seed=0, dtype=torch.float64):
    """Norms over a decade: some twice in a row, some spikes, some with a tensor of zeros, one
    all zeros.
    """
    draw, found = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        grads = {
            name: torch.randn(shape, generator=draw, dtype=torch.float64)
            for name, shape in SHAPES.items()
        }
        grads = trees.map(
            lambda leaf: leaf * torch.randn((), generator=draw, dtype=torch.float64).exp(), grads
        )
        if step % 7 == 3:
            grads = trees.map(torch.clone, found[-1])
        if step % 11 == 5:
            grads["b"] = torch.zeros(4, dtype=torch.float64)
        if step % 40 == 39:
            grads = trees.scale(grads, 30.0)
        if step == 49:
            grads = trees.zeros_like(grads)
        found.append(grads)
    return [{name: leaf.to(dtype) for name, leaf in grads.items()} for grads in found]


def run(rule, steps, params=None):
    """What a clip that remembers returns, step by step."""
    state, found = rule.init(params or trees.zeros_like(steps[0])), []
    for grads in steps:
        came, state = rule.update(grads, state, params)
        found.append(came)
    return found


def quantile_by_hand(steps, percentile, window):
    """AutoClip as published: remember the norm, then clip at the percentile of all remembered;
    without torch's epsilon.
    """
    history = []
    for grads in steps:
        history = [*history, length(grads)][-window:]
        limit = np.percentile(history, percentile)
        yield {
            name: leaf * min(1.0, limit / history[-1]) if history[-1] else leaf
            for name, leaf in grads.items()
        }


def z_score_by_hand(steps, threshold, alpha, warmup, eps):
    """ZClip in the order of its authors' code: norms in a list, then a mean and a variance; the
    clipped norm is learned.
    """
    buffer, mean, variance = [], None, None
    for grads in steps:
        norm = kept = length(grads)
        if len(buffer) < warmup:
            buffer.append(norm)
            if len(buffer) == warmup:
                mean, variance = np.mean(buffer), np.var(buffer)
        else:
            z = (norm - mean) / (variance**0.5 + eps)
            if z > threshold:
                kept = mean + (threshold * variance**0.5) / (z / threshold)
            mean = alpha * mean + (1 - alpha) * kept
            variance = alpha * variance + (1 - alpha) * (kept - mean) ** 2
        yield {name: leaf * (kept / norm) if norm else leaf for name, leaf in grads.items()}


def adagc_by_hand(steps, ratio, beta, most, warmup):
    """AdaGC, the paper's Algorithm: a global clip and running minima first, then each tensor at
    λ times its mean.
    """
    usual = {}
    for number, grads in enumerate(steps):
        found = {}
        whole = min(1.0, most / (length(grads) + 1e-6))
        for name, leaf in grads.items():
            norm = np.linalg.norm(np.ravel(leaf))
            if number < warmup:
                found[name] = leaf * whole
                usual[name] = min(usual.get(name, np.inf), np.linalg.norm(np.ravel(found[name])))
            else:
                found[name] = (
                    leaf * (ratio * usual[name] / norm) if norm > ratio * usual[name] else leaf
                )
                usual[name] = beta * usual[name] + (1 - beta) * np.linalg.norm(
                    np.ravel(found[name])
                )
        yield found


WALKS = {
    "quantile": (clips.Quantile(10.0), lambda steps: quantile_by_hand(steps, 10.0, 1000)),
    "quantile, between two norms": (
        clips.Quantile(37.5, 20),
        lambda steps: quantile_by_hand(steps, 37.5, 20),
    ),
    "quantile, the smallest": (
        clips.Quantile(0.0, 9),
        lambda steps: quantile_by_hand(steps, 0.0, 9),
    ),
    "quantile, the largest": (
        clips.Quantile(100.0, 9),
        lambda steps: quantile_by_hand(steps, 100.0, 9),
    ),
    "quantile of itself": (clips.Quantile(50.0, 1), lambda steps: quantile_by_hand(steps, 50.0, 1)),
    "z-score": (clips.ZScore(), lambda steps: z_score_by_hand(steps, 2.5, 0.97, 25, 1e-6)),
    "z-score, strict": (
        clips.ZScore(0.3, 0.8, 5, 0.01),
        lambda steps: z_score_by_hand(steps, 0.3, 0.8, 5, 0.01),
    ),
    "z-score, forgetful": (
        clips.ZScore(1.0, 0.0, 1),
        lambda steps: z_score_by_hand(steps, 1.0, 0.0, 1, 1e-6),
    ),
    "adagc": (clips.AdaGC(), lambda steps: adagc_by_hand(steps, 1.05, 0.98, 1.0, 100)),
    "adagc, soon": (
        clips.AdaGC(1.5, 0.7, 2.0, 4),
        lambda steps: adagc_by_hand(steps, 1.5, 0.7, 2.0, 4),
    ),
    "adagc, strict": (
        clips.AdaGC(0.9, 0.0, INF, 1),
        lambda steps: adagc_by_hand(steps, 0.9, 0.0, INF, 1),
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", WALKS)
def test_what_is_learned_is_the_papers(name, seed):
    """Over 130 steps: the warm-up, its end, and long after; and clipped steps are among them."""
    rule, by_hand = WALKS[name]
    steps = walk(130, seed)
    came, wanted = run(rule, steps), list(by_hand([arrays(grads) for grads in steps]))
    for ours, theirs in zip(came, wanted, strict=True):
        assert_alike(ours, tensors(theirs), rtol=1e-9)
    clipped = [
        any(not torch.equal(ours[name], grads[name]) for name in grads)
        for ours, grads in zip(came, steps, strict=True)
    ]
    assert any(clipped) != (name in ("quantile, the largest", "quantile of itself"))


@pytest.mark.parametrize("name", [name for name in WALKS if not name.startswith("adagc")])
def test_one_factor_is_taken_for_the_whole_and_none_above_one(name):
    for came, grads in zip(run(WALKS[name][0], steps := walk(60)), steps, strict=True):
        assert_alike(
            came,
            trees.scale(grads, trees.norm(came) / trees.norm(grads) if trees.norm(grads) else 1.0),
        )
        assert trees.norm(came) <= trees.norm(grads) * (1 + 1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "rule",
    [
        clips.Quantile(100.0),
        clips.Quantile(100.0, 7),
        clips.ZScore(INF),
        clips.AdaGC(INF, max_norm=INF, warmup=3),
    ],
    ids=str,
)
def test_the_largest_threshold_is_no_clip_bit_for_bit(rule, dtype):
    steps = walk(60, dtype=dtype)
    assert all(
        torch.equal(came[name], grads[name])
        for came, grads in zip(run(rule, steps), steps, strict=True)
        for name in grads
    )


def test_steps_of_one_norm_are_never_clipped():
    """Whatever the clip has learned of them, in whatever order the percentile is counted."""
    grads = walk(1)[0]
    for rule in (
        clips.Quantile(0.0),
        clips.Quantile(33.0, 7),
        clips.ZScore(1e-9, warmup=2),
        clips.AdaGC(1.0, max_norm=INF, warmup=2),
    ):
        assert all(
            torch.equal(came[name], grads[name])
            for came in run(rule, [grads] * 50)
            for name in grads
        )


def test_the_first_step_after_a_warm_up_may_be_clipped_and_the_last_of_it_not():
    """A spike as step 24 passes, and as step 25 does not; AdaGC's warm-up is the norm clip, to
    the bit.
    """
    steps = [
        trees.scale(grads, 1 / trees.norm(grads) * (1 + 0.01 * n))
        for n, grads in enumerate(walk(3) * 12)
    ]
    for spike, clipped in ((24, False), (25, True)):
        spiked = [
            trees.scale(grads, 100.0) if n == spike else grads for n, grads in enumerate(steps)
        ]
        assert (trees.norm(run(clips.ZScore(), spiked)[spike]) < 2) == clipped
    many = walk(102)
    for number, (came, grads) in enumerate(zip(run(clips.AdaGC(), many), many, strict=True)):
        alike = all(
            torch.equal(leaf, by_rule(clips.Norm(1.0), grads)[name]) for name, leaf in came.items()
        )
        assert alike == (number < 100)


@pytest.mark.parametrize(
    ("rule", "larger"),
    [
        (clips.Quantile(20.0), clips.Quantile(20.0)),
        (clips.ZScore(0.5, warmup=3, eps=0.0), clips.ZScore(0.5, warmup=3, eps=0.0)),
        (clips.ZScore(0.5, warmup=3, eps=0.1), clips.ZScore(0.5, warmup=3, eps=102.4)),
        (clips.AdaGC(1.05, warmup=3, max_norm=INF), clips.AdaGC(1.05, warmup=3, max_norm=INF)),
    ],
    ids=["quantile", "z-score", "z-score with eps", "adagc"],
)
def test_gradients_in_another_unit_are_clipped_alike(rule, larger):
    """A power of two is exact."""
    steps = walk(40)
    for one, other in zip(
        run(rule, steps), run(larger, [trees.scale(grads, 1024.0) for grads in steps]), strict=True
    ):
        assert_alike(other, trees.scale(one, 1024.0))


LEARNERS = {
    "quantile": clips.Quantile(30.0),
    "quantile of five": clips.Quantile(30.0, window=5),
    "z-score": clips.ZScore(0.5, warmup=4),
    "adagc": clips.AdaGC(1.05, max_norm=3.0, warmup=4),
}


@pytest.mark.parametrize("bad", [NAN, INF, "overflow"])
@pytest.mark.parametrize("place", [0, 2, 9])
@pytest.mark.parametrize("name", LEARNERS)
def test_nothing_is_learned_from_a_norm_that_is_not_finite(name, place, bad):
    """First, in the warm-up and after it: the steps that follow are clipped as if it had not
    been.
    """
    steps = walk(20, dtype=torch.float32)
    broken = {
        leaf: torch.full(shape, 1e38 if bad == "overflow" else bad)
        for leaf, shape in SHAPES.items()
    }
    assert not trees.norm(broken).isfinite()
    expected = run(LEARNERS[name], steps)
    came = run(LEARNERS[name], [*steps[:place], broken, *steps[place:]])
    for one, other in zip(came[:place] + came[place + 1 :], expected, strict=True):
        assert all(torch.equal(one[leaf], other[leaf]) for leaf in SHAPES)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_nan_stays_visible_and_zeros_stay_zero(name):
    one = {"w": torch.tensor([1.0, NAN]), "b": torch.tensor([1.0])}
    zeros = trees.zeros_like(one)
    for steps in ([one], [{"w": torch.ones(2), "b": torch.ones(1)}] * 6 + [one]):
        assert run(LEARNERS[name], steps)[-1]["w"][1].isnan()
    for came in run(
        LEARNERS[name], [zeros, zeros, {"w": torch.ones(2), "b": torch.ones(1)}, zeros] * 3
    ):
        assert all(leaf.isfinite().all() for leaf in came.values())
    assert not trees.norm(run(LEARNERS[name], [zeros] * 8)[-1])


def test_a_tensor_that_was_zero_in_adagcs_warm_up_is_held_at_zero():
    """By the authors' running minimum; told in the docstring."""
    steps = walk(30)
    steps[2] = steps[2] | {"b": torch.zeros(4, dtype=torch.float64)}
    came = run(clips.AdaGC(warmup=4), steps)
    assert all(not found["b"].any() and found["w"].any() for found in came[4:] if found["w"].any())


@pytest.mark.parametrize(
    ("kind", "names", "settings"),
    [
        (clips.Quantile, ["percentile"], {"window": 6}),
        (clips.ZScore, ["max_z", "alpha", "eps"], {"warmup": 5}),
        (clips.AdaGC, ["max_ratio", "beta", "max_norm"], {"warmup": 5}),
        (clips.Adaptive, ["max_ratio", "eps"], {}),
        (clips.BlockRMS, ["max_rms"], {}),
        (clips.Normalised, ["beta"], {}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_lanes_remember_each_its_own(kind, names, settings):
    """Past the warm-up and the window, every plain number a lane's own."""
    draw = torch.Generator().manual_seed(1)
    numbers = {
        name: torch.rand(3, generator=draw, dtype=torch.float64)
        * (60 if name == "percentile" else 0.9)
        for name in names
    }
    walks = [walk(40, seed) for seed in range(3)]
    params = {
        name: torch.randn(3, *shape, generator=draw).double() for name, shape in SHAPES.items()
    }

    def start(numbers, params):
        rule = kind(**numbers, **settings)
        return rule.init(params) if hasattr(rule, "init") else {}

    def update(numbers, grads, state, params):
        return kind(**numbers, **settings).update(grads, state, params)

    state = torch.vmap(start)(numbers, params)
    plain = [{name: row[lane].item() for name, row in numbers.items()} for lane in range(3)]
    alone = [start(plain[lane], pick(params, lane)) for lane in range(3)]
    for step in range(40):
        grads = {name: torch.stack([one[step][name] for one in walks]) for name in SHAPES}
        together, state = torch.vmap(update)(numbers, grads, state, params)
        for lane in range(3):
            found, alone[lane] = update(
                plain[lane], walks[lane][step], alone[lane], pick(params, lane)
            )
            assert_alike(pick(together, lane), found, rtol=1e-10)


def pick(tree, lane):
    return {name: leaf[lane] for name, leaf in tree.items()}


@pytest.mark.parametrize("rule", [clips.Quantile(25.0, 6), clips.ZScore(0.5, warmup=5)], ids=str)
def test_the_whole_as_one_vector_is_clipped_as_it_is_in_parts(rule):
    steps = walk(40)
    for joined, came in zip(
        run(rule, [{"": trees.flatten(grads)} for grads in steps]), run(rule, steps), strict=True
    ):
        torch.testing.assert_close(joined[""], trees.flatten(came), rtol=1e-12, atol=0)


# ---------------------------------------------------------------------------------------- the sizes


def test_size_is_where_a_threshold_begins_to_act():
    grads = {"w": torch.tensor([3.0, -4.0]), "b": torch.tensor([12.0])}
    expected = {
        clips.Value(1.0): 12.0,
        clips.Norm(1.0): 13.0,
        clips.Norm(1.0, "inf"): 12.0,
        clips.Layer(1.0): 12.0,
        clips.Layer(1.0, "inf"): 12.0,
        clips.BlockRMS(): 12.0,
        clips.Normalised(): 13.0,
    }
    for clip, size in expected.items():
        found = clip.size(grads)
        assert found.shape == ()
        assert found.item() == size
    assert clips.Layer(1.0).size({"w": torch.tensor([3.0, -4.0])}).item() == 5.0
    assert clips.BlockRMS().size({"w": torch.tensor([3.0, -4.0])}).item() == pytest.approx(
        12.5**0.5
    )
    # nothing, or a ratio
    for kind in (clips.Unclipped, clips.Adaptive, clips.Quantile, clips.ZScore, clips.AdaGC):
        assert not hasattr(kind, "size")


# ------------------------------------------------------------------- torch's functions at the edges


def alike_everywhere(clip, grads):
    """The rule's result, after it was found to be torch's, in both of torch's forms."""
    came = by_rule(clip, grads)
    for wanted in (
        by_torch(clip, grads, foreach=True),
        by_torch(clip, grads, foreach=False),
        by_path(clip, grads),
    ):
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
    came = alike_everywhere(
        clips.Norm(1.0), {"w": torch.tensor([1.0, NAN]), "b": torch.tensor([2.0])}
    )
    assert all(leaf.isnan().all() for leaf in came.values())


def test_by_layer_a_nan_stays_in_its_own_tensor():
    came = alike_everywhere(
        clips.Layer(1.0), {"w": torch.tensor([1.0, NAN]), "b": torch.tensor([0.5])}
    )
    assert came["w"].isnan().all()
    assert came["b"].item() == 0.5


def test_one_infinity_becomes_nan_and_every_other_element_zero():
    came = alike_everywhere(
        clips.Norm(1.0), {"w": torch.tensor([1.0, INF]), "b": torch.tensor([2.0])}
    )
    assert came["w"][1].isnan()
    assert came["w"][0] == 0
    assert came["b"] == 0


def test_finite_gradients_whose_norm_overflows_become_exactly_zero():
    came = alike_everywhere(
        clips.Norm(1.0), {"w": torch.full((2,), 2e19), "b": torch.tensor([1.0])}
    )
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
    for kind, field in (
        (clips.Norm, "max_norm"),
        (clips.Layer, "max_norm"),
        (clips.Value, "max_value"),
    ):
        with pytest.raises(UsageError, match=f"`{field}` is -1.0, and must be a positive number"):
            registry.validated(kind, {field: -1.0}, "here")


def test_a_setting_out_of_its_range_is_refused():
    for kind, field, value, wanted in (
        (clips.Quantile, "percentile", 101.0, "a number from 0 to 100"),
        (clips.Quantile, "percentile", -1.0, "a number from 0 to 100"),
        (clips.Quantile, "window", 0, "a whole number of at least 1"),
        (clips.Normalised, "beta", INF, "a positive, finite number"),
        (clips.Normalised, "beta", 0.0, "a positive, finite number"),
        (clips.ZScore, "alpha", 1.0, "a number from 0 up to, but not including, 1"),
        (clips.AdaGC, "max_ratio", 0.0, "a positive number"),
        (clips.Adaptive, "eps", 0.0, "a positive number"),
    ):
        with pytest.raises(UsageError, match=f"`{field}` is {value}, and must be {wanted}"):
            registry.validated(kind, {field: value}, "here")


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
