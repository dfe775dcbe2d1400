"""What each workload promises of its data, its model and its loss."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.func import functional_call, grad, vmap

from clipbench import feed, metrics, registry, trees
from clipbench.cell import Cell, Part
from clipbench.engines import Job, rates
from clipbench.errors import UsageError
from clipbench.workloads import tabular

NAMES = [
    "wdbc",
    "digits",
    "origin",
    "phantom",
    "lesions",
    "temporal-order",
    "text",
    "cosh",
    "cliff",
    "heavy-tails",
    "label-noise",
    "clipping-bias",
    "sign-bias",
    "non-smooth",
]
SPLIT = ["wdbc", "digits", "origin"]  # the seed draws which example is in which split
KEYED = {"wdbc": load_breast_cancer, "digits": load_digits, "origin": load_digits}


def built(name, **fields):
    return registry.build("workload", name, fields)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


# -------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", NAMES)
def test_lanes_do_what_a_plain_call_does(name):
    """Under vmap: the same output and the same gradients in float64, and not one warning of a
    slow path.
    """
    work = built(name)
    models = [feed.model(work, seed, torch.float64) for seed in (0, 1)]
    batches = [next(iter(feed.batches(work, seed, 4, 1, torch.float64))) for seed in (0, 1)]
    params = {
        key: torch.stack([parameters_of(model)[key] for model in models])
        for key in parameters_of(models[0])
    }
    inputs, targets = (torch.stack(parts) for parts in zip(*batches, strict=True))

    def output(params, inputs):
        return functional_call(models[0], params, (inputs,))

    def loss(params, inputs, targets):
        return feed.loss_of(work, output(params, inputs), targets)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = vmap(output)(params, inputs)
        grads = vmap(grad(loss))(params, inputs, targets)
    for lane, (model, (x, y)) in enumerate(zip(models, batches, strict=True)):
        plain = model(x)
        feed.loss_of(work, plain, y).backward()
        torch.testing.assert_close(outputs[lane], plain.detach(), rtol=1e-12, atol=1e-14)
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(grads[key][lane], parameter.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_a_workload_says_whether_it_has_lanes(name):
    """As a trace finds it, with the gradient beside the loop's."""
    asked = Job(Cell(Part(name, 1), Part("sgd", 1), Part("none", 1), 1e-3, 0, 2, 4), {})
    assert registry.find("workload", name).lanes == (not rates.refusals([asked]))


@pytest.mark.parametrize("name", NAMES)
def test_settings_alone_make_a_workload_and_equal_ones_are_equal(name):
    """So that the feed's caches can hold on to them."""
    assert built(name) == built(name)
    assert hash(built(name)) == hash(built(name))
    assert registry.validated(registry.find("workload", name), {}, "here") == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_workload_declares_what_its_results_are_judged_by(name):
    work = built(name)
    assert metrics.name_of(work.metric) in vars(metrics)
    assert math.isfinite(work.target)
    best = getattr(work, "optimum", 0)
    assert best < work.target
    assert work.reference_loss is None or work.target < work.reference_loss


@pytest.mark.parametrize("name", ["wdbc", "digits", "temporal-order"])
def test_the_reference_is_the_loss_of_the_best_constant_prediction(name):
    """The log of the class frequencies, whatever the input: no constant does better on the whole
    of the data.
    """
    work = built(name)
    labels = torch.cat([targets for _, targets in feed.splits(work, 0).values()])
    constant = (labels.bincount() / len(labels)).log().expand(len(labels), -1)
    assert work.loss(constant, labels).item() == pytest.approx(work.reference_loss, rel=2e-3)


def test_wdbc_may_be_graded_by_its_log_loss_instead_of_its_ranking():
    """The data, the model and the loss stay: a run is the same, and is judged otherwise."""
    ranked, certain = built("wdbc"), built("wdbc", graded="log_loss")
    assert (ranked.metric, certain.metric) == (metrics.roc_auc, metrics.log_loss)
    assert metrics.roc_auc in certain.other_metrics
    assert (certain.chance, certain.target_metric) == (ranked.reference_loss, ranked.target)
    inputs, labels = feed.splits(certain, 0)["test"]
    assert torch.equal(inputs, feed.splits(ranked, 0)["test"][0])
    output = feed.model(certain, 0)(inputs).detach()
    assert certain.metric(output, labels) == pytest.approx(
        certain.loss(output, labels).item(), rel=1e-6
    )


@pytest.mark.parametrize("name", ["digits", "origin", "temporal-order", "text"])
def test_an_untrained_network_is_at_chance(name):
    """Its loss starts near the reference: the rules on outcomes compare like with like."""
    work = built(name)
    inputs, targets = feed.splits(work, 0)["validation"]
    with torch.no_grad():
        assert work.loss(feed.model(work, 0)(inputs[:64]), targets[:64]).item() == pytest.approx(
            work.reference_loss, rel=0.1
        )


def test_a_workload_with_a_width_is_as_wide_as_it_says():
    assert feed.model(built("wdbc", width=7), 0)[2].weight.shape == (7, 7)
    assert feed.model(built("digits", width=3), 0)[2].weight.shape == (6, 3, 3, 3)
    assert feed.model(built("temporal-order", width=11), 0).recurrent.weight.shape == (11, 11)


# ------------------------------------------------------------------------------- splits by the seed


def test_splits_are_disjoint_and_cover_everything():
    labels = torch.randint(3, (101,), generator=draw(1))
    rows = tabular.stratified(labels, draw(2))
    assert torch.cat([*rows.values()]).sort().values.tolist() == list(range(101))


def test_splits_hold_60_20_20_percent_of_every_class():
    labels = torch.tensor([0] * 50 + [1] * 100)
    rows = tabular.stratified(labels, draw(3))
    assert {split: labels[index].bincount().tolist() for split, index in rows.items()} == {
        "train": [30, 60], "validation": [10, 20], "test": [10, 20],
    }  # fmt: skip


@pytest.mark.parametrize("name", SPLIT)
def test_no_example_is_lost_or_changes_its_label(name):
    """Taken together the splits are scikit-learn's data, example by example; features are told
    apart by their sums.
    """
    work = built(name)
    original, labels = KEYED[name](return_X_y=True)
    if name == "wdbc":
        train = original[
            tabular.stratified(1 - torch.from_numpy(labels), trees.generator(name, 4, "split"))[
                "train"
            ]
        ]
        original, labels = (original - train.mean(0)) / train.std(0), 1 - labels
    else:
        original = original / 16
    if name == "origin":
        original = nn.functional.interpolate(
            torch.from_numpy(original).reshape(-1, 1, 8, 8), (36, 36), mode="bilinear"
        ).numpy()
    parts = feed.splits(work, 4).values()
    sums = torch.cat([inputs.double().flatten(1).sum(1) for inputs, _ in parts]).numpy()
    found = torch.cat([targets for _, targets in parts]).numpy()
    expected = original.reshape(len(original), -1).sum(1)
    assert len(sums) == len(expected)
    for label in np.unique(labels):
        np.testing.assert_allclose(
            np.sort(sums[found == label]), np.sort(expected[labels == label]), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", SPLIT)
def test_the_seed_draws_the_split(name):
    """The same seed the same split, another seed another one."""
    work = built(name)
    once, again, other = (work.data(trees.generator(name, seed, "split")) for seed in (0, 0, 1))
    for split in ("train", "validation", "test"):
        assert torch.equal(once[split][0], again[split][0])
        assert torch.equal(once[split][1], again[split][1])
        assert not torch.equal(once[split][0], other[split][0])


# --------------------------------------------------------------------------------------------- wdbc


def test_wdbc_is_standardised_as_a_scaler_fitted_on_the_training_split_does_it():
    raw, benign = load_breast_cancer(return_X_y=True)
    rows = tabular.stratified(1 - torch.from_numpy(benign), draw(7))
    scaler = StandardScaler().fit(raw[rows["train"]])
    for split, (inputs, _) in built("wdbc").data(draw(7)).items():
        np.testing.assert_allclose(
            inputs.numpy(), scaler.transform(raw[rows[split]]), rtol=2e-6, atol=2e-6
        )


def test_no_test_example_leaks_into_the_standardisation(monkeypatch):
    """A thousandfold test split leaves training and validation as they were, bit for bit."""
    before = built("wdbc").data(draw(8))
    features, labels = tabular._breast_cancer()
    spoilt = features.clone()
    spoilt[tabular.stratified(labels, draw(8))["test"]] *= 1000
    monkeypatch.setattr(tabular, "_breast_cancer", lambda: (spoilt, labels))
    after = built("wdbc").data(draw(8))
    for split in ("train", "validation"):
        assert torch.equal(before[split][0], after[split][0])
    assert not torch.equal(before["test"][0], after["test"][0])


def test_wdbc_counts_the_malignant_as_positive():
    names = load_breast_cancer().target_names.tolist()
    _, labels = tabular._breast_cancer()
    assert torch.equal(
        labels == 1, torch.from_numpy(load_breast_cancer().target == names.index("malignant"))
    )
    assert labels.bincount().tolist() == [tabular.BENIGN, tabular.MALIGNANT]


# ------------------------------------------------------------------------------------------- images


def test_origin_is_the_network_of_the_origin_document():
    """Every layer in its order and every shape; 36×36 arrives at the first linear layer as 16384
    features.
    """
    model = feed.model(built("origin"), 0)
    assert [type(layer) for layer in model] == [
        nn.Conv2d,
        nn.ReLU,
        nn.Conv2d,
        nn.ReLU,
        nn.AvgPool2d,
        nn.Flatten,
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [
        (32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,), (128, 16384), (128,), (10, 128), (10,),
    ]  # fmt: skip
    assert model[:6](torch.zeros(2, 1, 36, 36)).shape == (2, 16384)


@pytest.mark.parametrize(("name", "side"), [("digits", 8), ("origin", 36)])
def test_images_have_one_channel_and_lie_between_0_and_1(name, side):
    for inputs, targets in feed.splits(built(name), 0).values():
        assert inputs.shape == (len(targets), 1, side, side)
        assert (inputs.min().item(), inputs.max().item()) == (0.0, 1.0)


# ----------------------------------------------------------------------------------- temporal-order


@pytest.mark.parametrize("length", [3, 10, 20, 25, 100])
def test_temporal_order_labels_follow_from_the_sequences(length):
    """Read off the one-hot rows alone: two informative symbols, each in its window, and a label
    that tells their order.
    """
    inputs, labels = built("temporal-order", length=length).sample(draw(length), 400)
    assert inputs.shape == (400, length, 6)
    assert set(inputs.unique().tolist()) == {0.0, 1.0}
    assert bool((inputs.sum(-1) == 1).all())
    for sequence, label in zip(inputs.argmax(-1).tolist(), labels.tolist(), strict=True):
        (first, one), (second, other) = [
            (step, symbol) for step, symbol in enumerate(sequence) if symbol in (0, 1)
        ]
        assert length // 10 <= first <= 2 * length // 10
        assert 4 * length // 10 <= second <= 5 * length // 10
        assert ["AA", "AB", "BA", "BB"][label] == "AB"[one] + "AB"[other]


def test_temporal_order_draws_places_classes_and_distractors_evenly():
    """All 36 plans of T = 20 and all four distractors, by a chi-squared test each."""
    inputs, labels = built("temporal-order").sample(draw(11), 20_000)
    symbols = inputs.argmax(-1)
    places = (symbols < 2).nonzero()[:, 1].reshape(-1, 2)
    plans = ((places[:, 0] - 2) * 3 + places[:, 1] - 8) * 4 + labels
    assert stats.chisquare(plans.bincount(minlength=36)).pvalue > 1e-3
    assert stats.chisquare(symbols[symbols > 1].bincount(minlength=6)[2:]).pvalue > 1e-3


def test_temporal_order_draws_new_sequences_at_every_step():
    first, second = (inputs for inputs, _ in feed.batches(built("temporal-order"), 0, 20, 2))
    assert not torch.equal(first, second)


def test_temporal_order_validation_and_test_are_500_different_sequences():
    splits = feed.splits(built("temporal-order"), 0)
    assert {split: len(inputs) for split, (inputs, _) in splits.items()} == {
        "validation": 500,
        "test": 500,
    }
    assert not torch.equal(splits["validation"][0], splits["test"][0])


def test_temporal_order_starts_from_small_normal_weights_and_zero_biases():
    model = feed.model(built("temporal-order", width=400), 0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.1, rel=0.05)
            assert stats.kstest(parameter.detach().flatten().numpy() / 0.1, "norm").pvalue > 1e-4


def test_the_recurrent_network_is_torchs_own():
    """Written out for speed, it is ``nn.RNN`` with its last state classified."""
    model = feed.model(built("temporal-order"), 0, torch.float64)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        peer = nn.RNN(6, 50, batch_first=True).double()
        peer.weight_ih_l0.copy_(model.input.weight)
        peer.bias_ih_l0.copy_(model.input.bias)
        peer.weight_hh_l0.copy_(model.recurrent.weight)
        peer.bias_hh_l0.zero_()
    inputs = built("temporal-order").sample(draw(12), 16)[0].double()
    torch.testing.assert_close(
        model(inputs), model.output(peer(inputs)[0][:, -1]), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("length", [1, 2])
def test_a_sequence_too_short_for_two_places_is_refused(length):
    with pytest.raises(UsageError, match=f"the length is {length}, and must be at least 3"):
        built("temporal-order", length=length).sample(draw(), 1)


# --------------------------------------------------------------------------------------------- cosh


def test_cosh_noise_shifts_the_gradient_and_not_the_value():
    """In float64: the value is Σ cosh(xᵢ) to the bit, the gradient sinh(x) plus the very noise
    that was drawn.
    """
    work = built("cosh")
    model = feed.model(work, 0, torch.float64)
    noise, _ = next(iter(feed.batches(work, 0, 32, 1, torch.float64)))
    value = model(noise)
    value.backward()
    point = model.x.detach()
    assert noise.abs().min() > 0
    assert torch.equal(value.detach(), point.cosh().sum())
    torch.testing.assert_close(model.x.grad, point.sinh() + noise[0], rtol=1e-15, atol=0)
    seen = grad(lambda x: functional_call(model, {"x": x}, (noise,)))(point)
    torch.testing.assert_close(seen, model.x.grad, rtol=1e-15, atol=0)


@pytest.mark.parametrize("batch", [1, 32])
def test_cosh_noise_has_the_deviation_it_is_set_to_whatever_the_batch(batch):
    noise, _ = built("cosh", dimension=50_000, noise=0.3).sample(draw(13), batch)
    assert noise.shape == (1, 50_000)
    assert stats.kstest(noise.flatten().numpy() / 0.3, "norm").pvalue > 1e-3


def test_cosh_starts_uniformly_between_half_the_radius_and_the_radius():
    start = feed.model(built("cosh", dimension=50_000, radius=6.0), 0).x.detach().numpy()
    assert stats.kstest(start, "uniform", args=(3, 3)).pvalue > 1e-3


def test_cosh_is_evaluated_without_noise_against_its_optimum():
    """At the minimum the gap is as small as it can be, and at the start it is the true one."""
    work = built("cosh", dimension=4)
    model = feed.model(work, 0, torch.float64)
    for inputs, targets in feed.splits(work, 0, torch.float64).values():
        assert not inputs.any()
        gap = model.x.detach().cosh().sum().item() - 4
        assert work.metric(model(inputs), targets) == pytest.approx(math.log10(gap), rel=1e-12)
        assert (
            work.metric(functional_call(model, {"x": torch.zeros(4).double()}, (inputs,)), targets)
            == -16
        )


def test_cosh_takes_its_floats_as_tensors():
    """Under vmap a float setting is one number a lane: nothing may ask it for a truth."""
    work = built("cosh", radius=torch.tensor(8.0), noise=torch.tensor(0.1))
    with torch.random.fork_rng(devices=[]):
        assert work.model().x.shape == (10,)
    assert work.sample(draw(), 1)[0].shape == (1, 10)
    with torch.random.fork_rng(devices=[]):
        starts = vmap(
            lambda radius: built("cosh", radius=radius).model().x.detach(), randomness="same"
        )(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(starts[1], 2 * starts[0])


def test_the_recurrence_refuses_a_second_derivative_in_one_sentence():
    """Its gradient is written by hand and treats the states as given: differentiated again it
    would be wrong, not slow.
    """
    module = feed.model(registry.build("workload", "temporal-order", {"width": 3, "length": 4}), 0)
    (first,) = torch.autograd.grad(
        module(torch.ones(2, 4, 6)).sum(), module.recurrent.weight, create_graph=True
    )
    with pytest.raises(
        RuntimeError, match="the recurrence of temporal-order cannot be differentiated twice"
    ):
        torch.autograd.grad(first.sum(), module.recurrent.weight)
