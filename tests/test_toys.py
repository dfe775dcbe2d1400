"""What the toy problems of published results promise: cliff, heavy-tails, label-noise,
clipping-bias, sign-bias, non-smooth, and cosh from an even start.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import functional_call, grad, vmap

import clipbench.workloads  # noqa: F401  (registers them)
from clipbench import feed, registry
from clipbench.cell import Cell, Part
from clipbench.errors import UsageError

OBJECTIVES = {"logistic": 1.0, "huberised": 0.26, "partially-huberised": 1.36}


def built(name, **fields):
    return registry.build("workload", name, fields)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


# -------------------------------------------------------------------------------------------- cliff


def error_and_slopes(w, b):
    """E and its derivatives, forwards through time in plain numbers: dx/dw and dx/db are carried
    along.
    """

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    x, by_w, by_b = 0.5, 0.0, 0.0
    for _ in range(50):
        q = sigmoid(x)
        x, by_w, by_b = w * q + b, q + w * q * (1 - q) * by_w, 1 + w * q * (1 - q) * by_b
    q = sigmoid(x)
    slope = 2 * (q - 0.7) * q * (1 - q)
    return (q - 0.7) ** 2, slope * by_w, slope * by_b


@pytest.mark.parametrize("seed", [0, 19, 133, 210, 399])
def test_the_cliff_is_the_papers_function(seed):
    """Its value and gradient in float64, against a derivative taken forwards through time."""
    work = built("cliff")
    module = feed.model(work, seed, torch.float64)
    value = module(next(iter(feed.batches(work, seed, 1, 1, torch.float64)))[0])
    value.backward()
    expected = error_and_slopes(module.w.item(), module.b.item())
    assert (value.item(), module.w.grad.item(), module.b.grad.item()) == pytest.approx(
        expected, rel=1e-9
    )


@pytest.mark.parametrize("first", [0, 1000])
def test_any_400_seeds_in_a_row_are_the_grid_of_starts(first):
    """Those of the selection phase and those of the report phase alike."""
    modules = [
        feed.model(built("cliff"), seed, torch.float64) for seed in range(first, first + 400)
    ]
    found = sorted((round(module.w.item(), 5), round(module.b.item(), 5)) for module in modules)
    grid = [
        (round(float(w), 5), round(float(b), 5))
        for w in np.linspace(4, 6, 20)
        for b in np.linspace(-3.2, -2, 20)
    ]
    assert found == sorted(grid)


def test_a_success_on_the_cliff_is_an_error_below_one_in_ten_thousand():
    work = built("cliff")
    target = feed.splits(work, 0)["test"][1]
    assert (
        work.metric(torch.tensor([0.99e-4]), target)
        < work.success
        < work.metric(torch.tensor([1.01e-4]), target)
    )


# -------------------------------------------------------------------------------------- heavy tails

WITNESSES = {
    "normal": stats.norm(),
    "weibull": stats.weibull_min(0.2),
    "burr": stats.burr12(1.0, 2.3),
}


@pytest.mark.parametrize("noise", WITNESSES)
def test_noise_follows_scipys_distribution_centred_and_of_unit_variance(noise):
    """By a chi-squared test of 200,000 draws against scipy's quantiles, moved by its own mean and
    deviation.

    From the .3 quantile up: what is below lies, of Weibull's draws, closer together than float32
    can tell.
    """
    witness = WITNESSES[noise]
    drawn = (
        built("heavy-tails", noise=noise, dimension=200_000)
        .sample(draw(5))[0]
        .double()
        .flatten()
        .numpy()
    )
    edges = [0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999, 1]
    inside = (witness.ppf(edges[1:-1]) - witness.mean()) / witness.std()
    counts = np.bincount(np.searchsorted(inside, drawn), minlength=len(edges) - 1)
    assert stats.chisquare(counts, 200_000 * np.diff(edges)).pvalue > 1e-3


@pytest.mark.parametrize("noise", WITNESSES)
def test_noise_has_scipys_mean_below_a_cut_and_its_share_above(noise):
    """The sample mean of what lies below the .999 quantile, where a mean is one: within four
    standard errors.
    """
    witness, count = WITNESSES[noise], 400_000
    cut = witness.ppf(0.999)
    drawn = (
        built("heavy-tails", noise=noise, dimension=count)
        .sample(draw(6))[0]
        .double()
        .flatten()
        .numpy()
    )
    below = drawn[drawn < (cut - witness.mean()) / witness.std()]
    assert len(below) / count == pytest.approx(0.999, abs=4 * math.sqrt(0.001 / count))
    expected = (witness.expect(ub=cut, conditional=True) - witness.mean()) / witness.std()
    assert below.mean() == pytest.approx(expected, abs=4 * below.std() / math.sqrt(len(below)))


def test_heavy_noise_shifts_the_gradient_and_not_the_value():
    work = built("heavy-tails")
    module = feed.model(work, 0, torch.float64)
    noise, _ = next(iter(feed.batches(work, 0, 32, 1, torch.float64)))
    value = module(noise)
    value.backward()
    torch.testing.assert_close(
        module.x.detach(), 0.01 * torch.arange(1, 101).double(), rtol=1e-6, atol=0
    )
    assert value.item() == pytest.approx(0.5 * module.x.detach().square().sum().item(), rel=1e-14)
    torch.testing.assert_close(module.x.grad, module.x.detach() + noise[0], rtol=1e-14, atol=0)


# -------------------------------------------------------------------------------------- label noise


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_is_the_formula_of_its_paper(objective):
    """Branch by branch, in plain numbers."""
    tau = OBJECTIVES[objective]
    work = built("label-noise", objective=objective, tau=tau)
    for margin in np.linspace(-6, 6, 49):
        p = 1 / (1 + math.exp(-margin))
        expected = -math.log(p)
        if objective == "huberised" and margin <= -math.log(tau / (1 - tau)):
            expected = -tau * margin - math.log(1 - tau) - tau * math.log(tau / (1 - tau))
        if objective == "partially-huberised" and p <= 1 / tau:
            expected = -tau * p + math.log(tau) + 1
        for label in (0, 1):
            output = torch.tensor([[0.0, margin if label else -margin]], dtype=torch.float64)
            assert work.loss(output, torch.tensor([label])).item() == pytest.approx(
                expected, rel=1e-12
            )


def test_the_huberised_loss_is_the_logistic_one_clipped_by_example():
    """The derivatives by each example's score: those of the logistic loss, cut back to ±τ."""
    scores, labels = torch.linspace(-6, 6, 41, dtype=torch.float64), torch.arange(41) % 2

    def by_score(work):
        def total(scores):
            return work.loss(torch.stack([torch.zeros_like(scores), scores], 1), labels) * len(
                scores
            )

        return grad(total)(scores)

    logistic, huberised = (
        by_score(built("label-noise")),
        by_score(built("label-noise", objective="huberised", tau=0.26)),
    )
    assert (logistic.abs() > 0.26).sum() > 10
    torch.testing.assert_close(huberised, logistic.clamp(-0.26, 0.26), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_has_the_same_gradient_in_lanes(objective):
    work = built("label-noise", objective=objective, tau=OBJECTIVES[objective])
    module = feed.model(work, 0, torch.float64)
    inputs, targets = feed.splits(work, 0, torch.float64)["train"]
    weights = torch.randn(3, 1, 2, generator=draw(1), dtype=torch.float64) * 20

    def loss(weight):
        return work.loss(functional_call(module, {"linear.weight": weight}, (inputs,)), targets)

    lanes = vmap(grad(loss))(weights)
    torch.testing.assert_close(
        lanes, torch.stack([grad(loss)(weight) for weight in weights]), rtol=1e-12, atol=1e-15
    )


def test_a_tau_of_one_is_the_logistic_loss_and_the_straight_one():
    output, target = (
        torch.tensor([[0.0, -3.0], [0.0, 2.0]], dtype=torch.float64),
        torch.tensor([1, 1]),
    )
    same = built("label-noise", objective="huberised", tau=1.0).loss(output, target)
    torch.testing.assert_close(same, built("label-noise").loss(output, target), rtol=1e-14, atol=0)
    straight = built("label-noise", objective="partially-huberised", tau=1.0).loss(output, target)
    torch.testing.assert_close(straight, (1 - output[:, 1].sigmoid()).mean(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_constant_score_has_a_loss_below_the_reference(objective):
    work = built("label-noise", objective=objective, tau=OBJECTIVES[objective])
    both = torch.tensor([0, 1])
    losses = [
        work.loss(torch.tensor([[0.0, score]] * 2), both).item()
        for score in np.linspace(-20, 20, 401)
    ]
    assert min(losses) == pytest.approx(work.reference_loss, abs=1e-6)


def test_the_mixture_has_its_six_clouds_and_only_the_test_labels_are_right():
    """One in eight a cloud, the two that punish twice as many; a label is the sign of the first
    feature.
    """
    inputs, labels = built("label-noise", flip=0.2).data(draw(2))["train"]
    gamma = 1 / 24
    centres = torch.tensor(
        [
            [1, 0],
            [-1, 0],
            [gamma, 5 * gamma],
            [-gamma, -5 * gamma],
            [gamma, -gamma],
            [-gamma, gamma],
        ],
        dtype=torch.float64,
    )
    apart = torch.cdist(inputs, centres)
    counts = apart.argmin(1).bincount(minlength=6)
    assert stats.chisquare(counts, [125, 125, 125, 125, 250, 250]).pvalue > 1e-3
    assert apart.amin(1).max() < 0.06
    assert apart.amin(1).square().mean().item() == pytest.approx(2e-4, rel=0.2)
    wrong = ((inputs[:, 0] > 0).long() != labels).sum().item()
    assert stats.binomtest(wrong, 1000, 0.2).pvalue > 1e-3
    splits = built("label-noise").data(draw(2))
    assert {split: len(labels) for split, (_, labels) in splits.items()} == {
        "train": 1000,
        "validation": 500,
        "test": 500,
    }
    assert torch.equal(splits["test"][1], (splits["test"][0][:, 0] > 0).long())


@pytest.mark.parametrize(
    ("objective", "tau", "wanted"),
    [("huberised", 1.36, "at most 1"), ("partially-huberised", 0.26, "at least 1")],
)
def test_a_tau_of_the_other_loss_is_refused(objective, tau, wanted):
    with pytest.raises(
        UsageError,
        match=(
            f'workload "label-noise": tau is {tau}, and must be {wanted} for the {objective} loss'
        ),
    ):
        built("label-noise", objective=objective, tau=tau).data(draw())


# --------------------------------------------------------------------------------------------- cosh


def test_an_even_start_of_cosh_does_not_depend_on_the_seed():
    for seed in (0, 1):
        start = feed.model(built("cosh", radius=10.0, start="even"), seed).x.detach()
        torch.testing.assert_close(start, torch.linspace(5, 10, 10))


def test_cosh_with_a_drawn_start_is_the_cell_it_was():
    """The identity of a cell of before there was a choice: a default is left out."""
    cls = registry.find("workload", "cosh")
    settings = registry.validated(cls, {"start": "drawn"}, "here")
    cell = Cell(
        Part("cosh", cls.version, settings), Part("sgd", 1), Part("none", 1), 0.01, 0, 150, 1
    )
    assert cell.id == Cell(Part("cosh", 1), Part("sgd", 1), Part("none", 1), 0.01, 0, 150, 1).id


# ------------------------------------------------------------------------- clipping examples, signs


@pytest.mark.parametrize(
    ("examples", "numbers"), [("asymmetric", [-3, -3, 9]), ("symmetric", [-3, 3])]
)
def test_the_optimum_is_half_the_variance_of_the_numbers_at_their_mean(examples, numbers):
    work = built("clipping-bias", examples=examples)
    module = feed.model(work, 0, torch.float64)
    inputs, targets = next(iter(feed.batches(work, 0, 32, 1, torch.float64)))
    assert inputs.flatten().tolist() == numbers
    with torch.no_grad():
        module.x.fill_(np.mean(numbers))
    loss = work.loss(module(inputs), targets)
    loss.backward()
    assert loss.item() == pytest.approx(np.var(numbers) / 2) == work.optimum
    assert module.x.grad.item() == pytest.approx(0, abs=1e-15)


def test_a_gradient_of_sign_bias_is_4_in_a_quarter_of_the_steps_and_else_minus_1():
    """And its loss is x/4, whatever was drawn."""
    work = built("sign-bias")
    module = feed.model(work, 0, torch.float64)
    with torch.no_grad():
        module.x.fill_(0.3)
    slopes = []
    for noise, _ in feed.batches(work, 0, 1, 2000, torch.float64):
        loss = module(noise)
        assert loss.item() == 0.3 / 4
        slopes.append(torch.autograd.grad(loss, module.x)[0].item())
    assert set(slopes) == {4.0, -1.0}
    assert stats.binomtest(slopes.count(4.0), 2000, 0.25).pvalue > 1e-3


@pytest.mark.parametrize(
    ("point", "slope"),
    [
        ((1.0, 1.0), (1.25, -0.75)),
        ((0.5, 1.5), (-0.75, 1.25)),
        ((1.5, 0.5), (1.25, -0.75)),
        ((-1.5, -0.5), (-1.25, 0.75)),
        ((-0.5, -1.5), (0.75, -1.25)),
    ],
)
def test_a_gradient_of_the_non_smooth_function_has_opposite_signs_at_its_start_too(point, slope):
    """At ε = 1/4: ±ε(1, 1) ± (1, −1)."""
    module = feed.model(built("non-smooth", epsilon=0.25), 0, torch.float64)
    assert module.x.tolist() == [1.0, 1.0]
    with torch.no_grad():
        module.x.copy_(torch.tensor(point))
    value = module(torch.empty(1, 0))
    value.backward()
    assert value.item() == 0.25 * abs(sum(point)) + abs(point[0] - point[1])
    assert module.x.grad.tolist() == list(slope)
