"""Metrics in torch: how good an output is, as one float. Each knows its name and its direction.

A metric is ``(output, target) -> float``. An output that is not finite everywhere has no metric: NaN, whatever the function would
have made of it. A user-defined metric is any function; a higher value counts as better unless it carries
``higher_is_better = False``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from clipbench.errors import UsageError

Metric = Callable[[Tensor, Tensor], float]


def direction(metric: Metric) -> bool:
    """Whether a higher value of ``metric`` is better: yes, unless it says otherwise."""
    return bool(getattr(metric, "higher_is_better", True))


def name_of(metric: Metric) -> str:
    """The name of ``metric`` in the store and in figures: its ``name``, else that of its function."""
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", None) or type(metric).__name__)


def _metric(*, higher_is_better: bool) -> Callable[[Metric], Metric]:
    """Give a metric its ``name`` and direction, and NaN for an output that is not finite."""

    def mark(function: Metric) -> Metric:
        @functools.wraps(function)
        def guarded(output: Tensor, target: Tensor) -> float:
            return function(output, target) if torch.isfinite(output).all() else math.nan

        guarded.name, guarded.higher_is_better = name_of(function), higher_is_better  # type: ignore[attr-defined]
        return guarded

    return mark


# ---------------------------------------------------------------------------------------------------------------- classification


@_metric(higher_is_better=True)
def roc_auc(output: Tensor, target: Tensor) -> float:
    r"""The probability that a positive example scores above a negative one, a tie counting one half.

    .. math:: \mathrm{AUC} = \frac{\sum_{y_i = 1} r_i - n_+(n_+ + 1)/2}{n_+\, n_-}, \qquad r_i = \text{midrank of score } i

    Mann and Whitney's statistic: exact with ties, O(n log n). In [0, 1], higher is better, .5 at chance; NaN if a class is
    absent.

    :param output: scores of N or N×1, or logits of N×2, whose score is the second minus the first.
    :param target: N or N×1 labels, 0 or 1.
    :raises UsageError: any other shape.

    >>> roc_auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.875
    """
    if not (output.ndim == 1 or (output.ndim == 2 and output.shape[1] in (1, 2))):
        raise UsageError(f"roc_auc: the output has the shape {tuple(output.shape)}, and must be N, N×1 or N×2 (two classes).")
    wide = output.double()  # a difference of float32 logits would be rounded into ties that are none
    scores = wide[:, 1] - wide[:, 0] if wide.shape[1:] == (2,) else wide.flatten()
    positive = target.flatten().bool()
    if len(positive) != len(scores):
        raise UsageError(f"roc_auc: {len(scores)} scores came with {len(positive)} labels.")
    _, group, ties = torch.unique(scores, return_inverse=True, return_counts=True)
    midranks = ties.cumsum(0) - (ties.double() - 1) / 2
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return math.nan
    rank_sum = midranks[group[positive]].sum().item()
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


@_metric(higher_is_better=True)
def mean_auc(output: Tensor, target: Tensor) -> float:
    r"""The ROC AUC of every class against the rest, averaged over the classes, as MedMNIST's evaluator does it.

    .. math:: \frac{1}{C} \sum_c \mathrm{AUC}\bigl(\mathrm{softmax}(z)_c,\ [y = c]\bigr)

    In [0, 1], higher is better, .5 at chance; NaN if a class is absent. Of two classes both AUC are that of ``roc_auc``.

    :param output: logits of N×C, C at least 2. The order within a class is that of the softmax, not of the logit.
    :param target: labels of N, 0 to C − 1.
    :raises UsageError: another shape.

    >>> mean_auc(torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.5]]), torch.tensor([0, 1, 0]))
    1.0
    """
    if output.ndim != 2 or output.shape[1] < 2:
        raise UsageError(f"mean_auc: the output has the shape {tuple(output.shape)}, and must be N×C with two classes or more.")
    logits, classes = output.double(), output.shape[1]
    own = torch.eye(classes, dtype=torch.bool, device=output.device)
    # log p/(1 − p): it orders as the softmax does, which would round confident outputs into ties at 1.
    odds = [logits[:, c] - logits.masked_fill(own[c], -math.inf).logsumexp(1) for c in range(classes)]
    return sum(roc_auc(score, target == c) for c, score in enumerate(odds)) / classes


@_metric(higher_is_better=True)
def accuracy(output: Tensor, target: Tensor) -> float:
    r"""The share of examples whose largest logit is that of their label.

    .. math:: \frac{1}{N} \sum_i [\arg\max_c z_{ic} = y_i]

    In [0, 1], higher is better.

    :param output: logits of N×…×C.
    :param target: labels of N×…, 0 to C − 1.
    :raises UsageError: the labels have another shape: compared all the same, they would be spread over each other.

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    0.5
    """
    if output.shape[:-1] != target.shape:
        raise UsageError(f"accuracy: logits of the shape {tuple(output.shape)} came with labels of {tuple(target.shape)}.")
    return (output.argmax(-1) == target).double().mean().item()


# ------------------------------------------------------------------------------------------------------------------ segmentation


@_metric(higher_is_better=True)
def dice(output: Tensor, target: Tensor) -> float:
    r"""The overlap of predicted and true region, taken per image and class and averaged.

    .. math:: \mathrm{Dice}(A, B) = \frac{2 |A \cap B|}{|A| + |B|}, \qquad \mathrm{Dice}(\emptyset, \emptyset) = 1

    In [0, 1], higher is better. Of several classes the first is the background, and is left out.

    :param output: logits of N×1×… (inside where positive) or of N×C×… (the class of the largest).
    :param target: N×… labels, 0 to C − 1 (0 or 1 if C is 1), or the same as N×1×….

    >>> dice(torch.tensor([[[1.0, 1.0, -1.0, -1.0]]]), torch.tensor([[1, 0, 1, 0]]))
    0.5
    """
    classes = output.shape[1]
    predicted = (output[:, 0] > 0).long() if classes == 1 else output.argmax(1)
    predicted, true = (labels.reshape(len(output), -1) for labels in (predicted, target))
    scores = []
    for label in range(1, max(classes, 2)):
        inside, wanted = predicted == label, true == label
        both, either = (inside & wanted).sum(1), inside.sum(1) + wanted.sum(1)
        scores.append(torch.where(either > 0, 2 * both.double() / either.clamp(min=1), 1.0))
    return torch.stack(scores).mean().item()


# --------------------------------------------------------------------------------------------------------------------- sequences


@_metric(higher_is_better=False)
def bits(output: Tensor, target: Tensor) -> float:
    r"""Bits per character: the mean length of the code that the predicted probabilities would give to the text.

    .. math:: -\frac{1}{N} \sum_i \log_2 \mathrm{softmax}(z_i)_{y_i}

    In [0, ∞), lower is better; log₂ C at chance.

    :param output: logits of N×…×C.
    :param target: the characters that came, of N×…, 0 to C − 1.

    >>> bits(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    2.0
    """
    nats = torch.nn.functional.cross_entropy(output.double().flatten(0, -2), target.flatten())
    return nats.item() / math.log(2)


# ------------------------------------------------------------------------------------------------------------ analytic functions


@_metric(higher_is_better=False)
def log10_gap(output: Tensor, target: Tensor) -> float:
    r"""How far a value is above the optimum, in decades.

    .. math:: \log_{10} \max(f - f^\ast,\ 10^{-16})

    In [−16, ∞), lower is better.

    :param output: the function's value: a scalar, or any number of them, of which the mean counts.
    :param target: the optimum f*, in the same shape or one that broadcasts.

    >>> log10_gap(torch.tensor(110.0), torch.tensor(10.0))
    2.0
    """
    gap = (output.double() - target.double()).mean().item()
    return math.log10(max(gap, 1e-16))
