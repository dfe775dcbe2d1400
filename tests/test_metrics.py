"""Metrics against scikit-learn, which is never asked at run time, and against their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from clipbench import metrics
from clipbench.errors import UsageError

GUARDED = [
    metrics.roc_auc,
    metrics.mean_auc,
    metrics.accuracy,
    metrics.log_loss,
    metrics.dice,
    metrics.bits,
    metrics.log10_gap,
]


def draw(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def scored(draw):
    """Labels of both classes with scores from a handful of values, so that ties are the rule."""
    labels = draw(
        st.lists(st.integers(0, 1), min_size=2, max_size=60).filter(
            lambda labels: 0 < sum(labels) < len(labels)
        )
    )
    scores = draw(st.lists(st.integers(-3, 3), min_size=len(labels), max_size=len(labels)))
    return scores, labels


@given(scored())
@settings(deadline=None, max_examples=200)
def test_roc_auc_is_scikit_learns_with_any_ties(case):
    """Midranks are exact, whatever is tied with whatever."""
    scores, labels = case
    ours = metrics.roc_auc(torch.tensor(scores, dtype=torch.float32), torch.tensor(labels))
    assert ours == pytest.approx(roc_auc_score(labels, scores), abs=1e-14)


@given(scored())
@settings(deadline=None, max_examples=50)
def test_roc_auc_is_the_share_of_pairs_in_order(case):
    """The definition itself, pair by pair, a tie counting one half."""
    scores, labels = (torch.tensor(values, dtype=torch.float64) for values in case)
    ahead = scores[labels == 1][:, None] - scores[labels == 0]
    share = ((ahead > 0).double() + (ahead == 0).double() / 2).mean().item()
    assert metrics.roc_auc(scores, labels) == pytest.approx(share, abs=1e-14)


def test_roc_auc_of_two_logits_is_that_of_their_softmax():
    logits, labels = (
        torch.randn(400, 2, generator=draw(0)),
        torch.randint(2, (400,), generator=draw(1)),
    )
    expected = roc_auc_score(labels.numpy(), logits.double().softmax(1)[:, 1].numpy())
    assert metrics.roc_auc(logits, labels) == pytest.approx(expected, abs=1e-14)


def test_roc_auc_tells_confident_logits_apart():
    """The difference is taken in float64: in float32 these two would be rounded to the same
    score.
    """
    logits = torch.tensor([[0.0, 2.0**24], [-1.0, 2.0**24]])
    assert metrics.roc_auc(logits, torch.tensor([0, 1])) == 1.0


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_mean_auc_is_that_of_medmnists_evaluator(classes):
    """Class by class one against the rest, by the softmax; scikit-learn's own average over the
    classes as well.
    """
    logits, labels = (
        2 * torch.randn(400, classes, generator=draw(2)),
        torch.randint(classes, (400,), generator=draw(3)),
    )
    scores, true = logits.double().softmax(1).numpy(), labels.numpy()
    each = [roc_auc_score(true == c, scores[:, c]) for c in range(classes)]
    assert metrics.mean_auc(logits, labels) == pytest.approx(sum(each) / classes, abs=1e-14)
    if classes > 2:
        assert metrics.mean_auc(logits, labels) == pytest.approx(
            roc_auc_score(true, scores, multi_class="ovr"), abs=1e-14
        )
    else:
        assert metrics.mean_auc(logits, labels) == pytest.approx(
            roc_auc_score(true, scores[:, -1]), abs=1e-14
        )


def test_mean_auc_orders_by_the_softmax_and_not_by_the_logit():
    """The two differ from three classes on: a logit of 2 is a small share beside one of 5."""
    logits = torch.tensor([[2.0, 5.0, 0.0], [1.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    labels = torch.tensor([1, 0, 1, 2])
    assert metrics.roc_auc(logits[:, 0], labels == 0) < 1
    assert metrics.mean_auc(logits, labels) == 1.0


def test_mean_auc_tells_confident_outputs_apart():
    """Both have a softmax of 1, to the last bit of a float64."""
    logits = torch.tensor([[0.0, 50.0], [0.0, 60.0], [0.0, 70.0]])
    labels = torch.tensor([0, 1, 1])
    assert roc_auc_score(labels, logits.double().softmax(1)[:, 1]) == 0.5
    assert metrics.mean_auc(logits, labels) == 1.0


def test_mean_auc_of_an_absent_class_is_no_number():
    assert math.isnan(
        metrics.mean_auc(torch.randn(6, 3, generator=draw(4)), torch.tensor([0, 1, 0, 1, 0, 1]))
    )


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2, 2)])
def test_mean_auc_wants_logits_of_two_classes_or_more(shape):
    with pytest.raises(UsageError, match="must be N×C"):
        metrics.mean_auc(torch.zeros(shape), torch.tensor([0, 1, 0, 1]))


def test_roc_auc_takes_a_column_as_it_takes_a_vector():
    scores, labels = torch.randn(50, generator=draw(2)), torch.randint(2, (50,), generator=draw(3))
    assert metrics.roc_auc(scores[:, None], labels[:, None]) == metrics.roc_auc(scores, labels)


def test_roc_auc_is_one_half_for_a_constant_output():
    assert metrics.roc_auc(torch.zeros(7, 2), torch.tensor([0, 1, 1, 0, 1, 0, 0])) == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_roc_auc_of_one_class_alone_is_nan(label):
    assert math.isnan(metrics.roc_auc(torch.arange(4.0), torch.full((4,), label)))


@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 2), ()])
def test_roc_auc_refuses_other_shapes(shape):
    with pytest.raises(UsageError, match="must be N, N×1 or N×2"):
        metrics.roc_auc(torch.zeros(shape), torch.zeros(4, dtype=torch.long))


def test_roc_auc_refuses_a_label_too_many():
    with pytest.raises(UsageError, match="4 scores came with 5 labels"):
        metrics.roc_auc(torch.zeros(4), torch.zeros(5, dtype=torch.long))


def test_roc_auc_sorts_and_does_not_compare_pairs():
    """A quarter of a million scores, whose pairs would fill 100 GB."""
    scores = torch.randint(1000, (250_000,), generator=draw(4)).double()
    labels = (torch.rand(250_000, generator=draw(5)) < 0.3).long()
    assert metrics.roc_auc(scores, labels) == pytest.approx(
        roc_auc_score(labels.numpy(), scores.numpy()), abs=1e-12
    )


def test_accuracy_is_scikit_learns():
    logits, labels = (
        torch.randn(300, 5, generator=draw(6)),
        torch.randint(5, (300,), generator=draw(7)),
    )
    assert metrics.accuracy(logits, labels) == pytest.approx(
        accuracy_score(labels, logits.argmax(1)), abs=1e-15
    )


def test_log_loss_is_scikit_learns():
    logits = 5 * torch.randn(40, 3, generator=draw(4))
    labels = torch.randint(3, (40,), generator=draw(5))
    assert metrics.log_loss(logits, labels) == pytest.approx(
        log_loss(labels, logits.double().softmax(1), labels=[0, 1, 2]), abs=1e-12
    )


def test_accuracy_counts_every_place_of_a_sequence():
    logits, labels = (
        torch.randn(20, 15, 5, generator=draw(8)),
        torch.randint(5, (20, 15), generator=draw(9)),
    )
    assert metrics.accuracy(logits, labels) == metrics.accuracy(
        logits.flatten(0, 1), labels.flatten()
    )


def test_accuracy_refuses_labels_that_would_broadcast():
    """N×1 labels against N predictions would compare every one with every other and say nothing."""
    with pytest.raises(UsageError, match=r"\(4, 2\) came with labels of \(4, 1\)"):
        metrics.accuracy(torch.zeros(4, 2), torch.zeros(4, 1, dtype=torch.long))


def test_dice_of_one_region_is_the_f1_score_of_its_pixels():
    logits, truth = (
        torch.randn(6, 1, 5, 7, generator=draw(10)),
        torch.randint(2, (6, 5, 7), generator=draw(11)),
    )
    pairs = zip(truth.flatten(1), (logits[:, 0] > 0).flatten(1), strict=True)
    expected = sum(f1_score(true, predicted, zero_division=1) for true, predicted in pairs) / 6
    assert metrics.dice(logits, truth) == pytest.approx(expected, abs=1e-14)
    assert metrics.dice(logits, truth[:, None]) == metrics.dice(logits, truth)


def test_dice_of_classes_is_the_mean_f1_score_without_the_background():
    logits, truth = (
        torch.randn(6, 3, 5, 7, generator=draw(12)),
        torch.randint(3, (6, 5, 7), generator=draw(13)),
    )
    pairs = zip(truth.flatten(1), logits.argmax(1).flatten(1), strict=True)
    expected = (
        sum(
            f1_score(true, predicted, labels=[1, 2], average="macro", zero_division=1)
            for true, predicted in pairs
        )
        / 6
    )
    assert metrics.dice(logits, truth) == pytest.approx(expected, abs=1e-14)


def test_dice_gives_a_pixel_of_equal_logits_to_the_first_class():
    """As argmax does: whole logits of a few values tie often."""
    generator = torch.Generator().manual_seed(8)
    logits = torch.randint(2, (40, 3, 5, 5), generator=generator).double()
    sure = torch.nn.functional.one_hot(logits.argmax(1), 3).movedim(-1, 1).double()
    truth = torch.randint(3, (40, 5, 5), generator=generator)
    assert metrics.dice(logits, truth) == metrics.dice(sure, truth)


def test_dice_of_two_empty_regions_is_one():
    assert (
        metrics.dice(torch.full((2, 1, 3, 3), -1.0), torch.zeros(2, 3, 3, dtype=torch.long)) == 1.0
    )


def test_bits_are_the_log_loss_to_base_two():
    logits, labels = (
        torch.randn(40, 9, 6, generator=draw(14)),
        torch.randint(6, (40, 9), generator=draw(15)),
    )
    probabilities = logits.double().softmax(-1).flatten(0, 1).numpy()
    expected = log_loss(labels.flatten().numpy(), probabilities, labels=range(6)) / math.log(2)
    assert metrics.bits(logits, labels) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("gap", "decades"),
    [(100.0, 2.0), (1.0, 0.0), (2.0**-20, -6.0205999), (0.0, -16.0), (-1.0, -16.0)],
)
def test_the_gap_is_in_decades_and_never_below_minus_sixteen(gap, decades):
    """Rounding may carry a value below the optimum: that is as near as can be told, not an
    error.
    """
    optimum = torch.tensor([8.0], dtype=torch.float64)
    assert metrics.log10_gap(optimum + gap, optimum) == pytest.approx(decades, abs=1e-7)
    assert metrics.log10_gap((optimum + gap).squeeze(), optimum) == metrics.log10_gap(
        optimum + gap, optimum
    )


@pytest.mark.parametrize("metric", GUARDED, ids=metrics.name_of)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_an_output_that_is_not_finite_has_no_metric(metric, bad):
    """A NaN has an argmax, a rank and a sign: without the guard a dead network would be graded."""
    output, target = torch.randn(8, 2, generator=draw(16)), torch.arange(8) % 2
    output[3, 1] = bad
    assert math.isnan(metric(output, target))


@pytest.mark.parametrize("metric", GUARDED, ids=metrics.name_of)
def test_a_metric_is_a_float_and_knows_its_name(metric):
    target = torch.zeros(1) if metric is metrics.log10_gap else torch.arange(8) % 2
    value = metric(torch.randn(8, 2, generator=draw(17)), target)
    assert type(value) is float
    assert metric is getattr(metrics, metrics.name_of(metric))


def test_directions_are_as_the_field_has_them():
    assert {metrics.name_of(metric): metrics.direction(metric) for metric in GUARDED} == {
        "roc_auc": True,
        "mean_auc": True,
        "accuracy": True,
        "log_loss": False,
        "dice": True,
        "bits": False,
        "log10_gap": False,
    }


def test_a_strangers_function_is_named_after_itself_and_counts_up():
    def kappa(output, target):
        return 0.0

    assert (metrics.name_of(kappa), metrics.direction(kappa)) == ("kappa", True)
    kappa.higher_is_better = False
    assert not metrics.direction(kappa)


# ---------------------------------------------------------------------------------- standard errors


def drawn(kind, examples, seed):
    """Outputs and targets of so many examples of one kind, from a model that is often right."""
    draw = torch.Generator().manual_seed(seed)
    if kind == "dice":
        target = (torch.rand(examples, 8, 8, generator=draw) < 0.3).long()
        output = (2.0 * target - 1 + 1.5 * torch.randn(examples, 8, 8, generator=draw)).unsqueeze(1)
        return output, target
    shape = (examples, 6) if kind == "bits" else (examples,)
    target = torch.randint(2, shape, generator=draw)
    output = torch.randn(*shape, 2, generator=draw)
    return output + 1.2 * torch.nn.functional.one_hot(target, 2), target


ERRORS = {
    "accuracy": metrics.accuracy,
    "log_loss": metrics.log_loss,
    "roc_auc": metrics.roc_auc,
    "dice": metrics.dice,
    "bits": metrics.bits,
}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_standard_error_is_the_deviation_over_fresh_examples(kind):
    """Over 400 draws of 100 examples; the deviation of so many is known to 4 %, the mean of the
    errors better.
    """
    pairs = [drawn(kind, 100, seed) for seed in range(400)]
    seen = np.std([ERRORS[kind](*pair) for pair in pairs], ddof=1)
    told = np.mean([metrics.standard_error(ERRORS[kind], *pair) for pair in pairs])
    assert told == pytest.approx(seen, rel=0.12)


@pytest.mark.parametrize("kind", ERRORS)
def test_the_jackknife_agrees_with_a_metrics_own_error(kind):
    """On the mean over 50 draws: of ten groups alone it is known to a quarter."""
    pairs = [drawn(kind, 200, seed) for seed in range(50)]
    own, left = (
        [error(ERRORS[kind], *pair) for pair in pairs]
        for error in (metrics.standard_error, metrics.jackknife)
    )
    assert np.mean(left) == pytest.approx(np.mean(own), rel=0.1)


def test_a_metric_of_the_users_own_has_a_standard_error_too():
    def brier(output, target):
        return ((output.softmax(1)[:, 1] - target) ** 2).mean().item()

    output, target = drawn("accuracy", 400, 0)
    each = ((output.softmax(1)[:, 1] - target) ** 2).double()
    assert metrics.standard_error(brier, output, target) == pytest.approx(
        metrics.of_mean(each), rel=0.6
    )


def test_where_there_is_nothing_to_vary_the_error_is_nought_and_where_nothing_is_known_nan():
    one = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert metrics.standard_error(metrics.accuracy, *one) == 0
    assert metrics.standard_error(lambda *_: 1.0, *one) == 0
    assert metrics.standard_error(metrics.log10_gap, torch.tensor(2.0), torch.tensor(1.0)) == 0
    assert math.isnan(
        metrics.standard_error(metrics.accuracy, torch.tensor([[math.nan, 0.0]]), torch.tensor([0]))
    )
    assert math.isnan(
        metrics.standard_error(metrics.roc_auc, torch.tensor([0.1, 0.2]), torch.tensor([0, 0]))
    )
