"""Metrics in torch: how good an output is, as one float. Each knows its name and its direction.

A metric is ``(output, target) -> float``. An output that is not finite everywhere has no metric:
NaN, whatever the function would have made of it. A user-defined metric is any function; a higher
value counts as better unless it carries ``higher_is_better = False``. One that carries
``standard_error``, ``(output, target) -> float``, is asked for its own.
"""

from __future__ import annotations

import cmath
import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from clipbench.errors import UsageError

Metric = Callable[[Tensor, Tensor], float]


def direction(metric: Metric) -> bool:
    """Whether a higher value of ``metric`` is better: yes, unless it says otherwise."""
    return bool(getattr(metric, "higher_is_better", True))


def name_of(metric: Metric) -> str:
    """The name of ``metric`` in the store and in figures: its ``name``, else that of its
    function.
    """
    return str(
        getattr(metric, "name", None) or getattr(metric, "__name__", None) or type(metric).__name__
    )


GROUPS = 10  # of the jackknife


def standard_error(metric: Metric, output: Tensor, target: Tensor) -> float:
    r"""The standard error of a metric: how far other examples of the same kind would move it, in
    its own unit, at least 0.

    By the metric's own ``standard_error`` if it has one, else by a delete-a-group jackknife, which
    knows nothing of the metric: the examples are dealt out in turn to ten groups (to as many as
    there are examples, if those are fewer), and each is left out once.

    .. math:: \sqrt{\tfrac{g - 1}{g} \sum_{i=1}^g (m_{-i} - \bar m)^2}

    0 for a single example; NaN if the metric is not finite, or is not without one of the groups.

    :param output: N×…; ``target`` likewise.

    **Source**: Tukey 1958; Kott 2001 for groups.

    >>> outputs, targets = torch.eye(2).repeat(50, 1), torch.tensor([0, 1, 0, 0] * 25)
    >>> round(standard_error(accuracy, outputs, targets), 4)
    0.0435
    """
    if not _is_finite(output):
        return math.nan
    own = getattr(metric, "standard_error", None)
    return float(own(output, target)) if own is not None else jackknife(metric, output, target)


def _is_finite(output: Tensor) -> bool:
    # a sum is finite only if all its terms are, and is found in a quarter of the time; it may
    # overflow
    return cmath.isfinite(output.sum().item()) or bool(output.isfinite().all())


def jackknife(metric: Metric, output: Tensor, target: Tensor) -> float:
    """The standard error of any metric by leaving groups of examples out (see `standard_error`)."""
    groups = min(GROUPS, len(output))
    if groups < 2:
        return 0.0
    group = torch.arange(len(output), device=output.device) % groups
    without = torch.tensor(
        [metric(output[group != left], target[group != left]) for left in range(groups)],
        dtype=torch.float64,
    )
    return ((groups - 1) * without.var(correction=0)).sqrt().item()


def of_mean(values: Tensor) -> float:
    """The standard error of the mean of independent values, N of them; 0 for one."""
    return (values.double().std() / math.sqrt(len(values))).item() if len(values) > 1 else 0.0


def _metric(
    *, higher_is_better: bool, standard_error: Callable[[Tensor, Tensor], float] | None = None
) -> Callable[[Metric], Metric]:
    """Give a metric its ``name``, direction and standard error, and NaN for an output that is
    not finite.
    """

    def mark(function: Metric) -> Metric:
        @functools.wraps(function)
        def guarded(output: Tensor, target: Tensor) -> float:
            return function(output, target) if _is_finite(output) else math.nan

        guarded.name, guarded.higher_is_better = name_of(function), higher_is_better  # type: ignore[attr-defined]
        if standard_error is not None:
            guarded.standard_error = standard_error  # type: ignore[attr-defined]
        return guarded

    return mark


# ----------------------------------------------------------------------------------- classification


def _delong(output: Tensor, target: Tensor) -> float:
    """The standard error of `roc_auc`: of its means over either class, which are independent
    (DeLong et al. 1988).
    """
    scores, positive = _scores(output), _positive(target)
    ranks, positives = _midranks(scores), positive.sum()
    if not 1 < positives < len(scores) - 1:
        return math.nan
    above = [(ranks[one] - _midranks(scores[one])) / (~one).sum() for one in (positive, ~positive)]
    return math.hypot(*(of_mean(torch.from_numpy(one)) for one in above))


def _scores(output: Tensor) -> np.ndarray:
    # a difference of float32 logits would be rounded into ties that are none
    wide = output.detach().double().cpu().numpy()
    return wide[:, 1] - wide[:, 0] if wide.shape[1:] == (2,) else wide.ravel()


def _positive(target: Tensor) -> np.ndarray:
    return target.flatten().bool().cpu().numpy()


def _midranks(scores: np.ndarray) -> np.ndarray:
    """The rank of each score, from 1, of equal ones the mean of theirs."""
    ordered = np.sort(scores)
    below, at_most = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    return (below + at_most + 1) / 2


@_metric(higher_is_better=True, standard_error=_delong)
def roc_auc(output: Tensor, target: Tensor) -> float:
    r"""The probability that a positive example scores above a negative one, a tie counting one
    half.

    .. math:: \mathrm{AUC} = \frac{\sum_{y_i = 1} r_i - n_+(n_+ + 1)/2}{n_+\, n_-}, \qquad
              r_i = \text{midrank of score } i

    Mann and Whitney's statistic: exact with ties, O(n log n). In [0, 1], higher is better, .5 at
    chance; NaN if a class is absent.

    :param output: scores of N or N×1, or logits of N×2, whose score is the second minus the first.
    :param target: N or N×1 labels, 0 or 1.
    :raises UsageError: any other shape.

    >>> roc_auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.875
    """
    if not (output.ndim == 1 or (output.ndim == 2 and output.shape[1] in (1, 2))):
        raise UsageError(
            f"roc_auc: the output has the shape {tuple(output.shape)}, and must be N, N×1 or N×2 "
            f"(two classes)."
        )
    scores, positive = _scores(output), _positive(target)
    if len(positive) != len(scores):
        raise UsageError(f"roc_auc: {len(scores)} scores came with {len(positive)} labels.")
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return math.nan
    rank_sum = float(_midranks(scores)[positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


@_metric(higher_is_better=True)
def mean_auc(output: Tensor, target: Tensor) -> float:
    r"""The ROC AUC of every class against the rest, averaged over the classes, as MedMNIST's
    evaluator does it.

    .. math:: \frac{1}{C} \sum_c \mathrm{AUC}\bigl(\mathrm{softmax}(z)_c,\ [y = c]\bigr)

    In [0, 1], higher is better, .5 at chance; NaN if a class is absent. Of two classes both AUC are
    that of ``roc_auc``.

    :param output: logits of N×C, C at least 2. The order within a class is that of the softmax, not
        of the logit.
    :param target: labels of N, 0 to C − 1.
    :raises UsageError: another shape.

    >>> mean_auc(torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.5]]), torch.tensor([0, 1, 0]))
    1.0
    """
    if output.ndim != 2 or output.shape[1] < 2:
        raise UsageError(
            f"mean_auc: the output has the shape {tuple(output.shape)}, and must be N×C with two "
            f"classes or more."
        )
    logits, classes = output.double(), output.shape[1]
    own = torch.eye(classes, dtype=torch.bool, device=output.device)
    # log p/(1 − p): it orders as the softmax does, which would round confident outputs into ties at
    # 1.
    odds = [
        logits[:, c] - logits.masked_fill(own[c], -math.inf).logsumexp(1) for c in range(classes)
    ]
    return sum(roc_auc(score, target == c) for c, score in enumerate(odds)) / classes


def _of_examples(values: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], float]:
    """The standard error of a mean over examples, of which ``values`` gives one each, N."""
    return lambda output, target: of_mean(values(output, target))


def _nats(output: Tensor, target: Tensor) -> Tensor:
    """The cross entropy of each example, N."""
    each = torch.nn.functional.cross_entropy(
        output.double().flatten(0, -2), target.flatten(), reduction="none"
    )
    return each.reshape(len(output), -1).mean(1)


@_metric(higher_is_better=False, standard_error=_of_examples(_nats))
def log_loss(output: Tensor, target: Tensor) -> float:
    r"""How much probability the labels are given: the mean cross entropy.

    .. math:: -\frac{1}{N} \sum_i \log \text{softmax}(z_i)_{y_i}

    In [0, ∞) nats, lower is better. A model that is sure and wrong pays for it, however well
    it ranks.

    :param output: logits of N×…×C.
    :param target: labels of N×…, 0 to C − 1.

    >>> round(log_loss(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])), 4)
    0.6931
    """
    return _nats(output, target).mean().item()


def _hits(output: Tensor, target: Tensor) -> Tensor:
    """The share of each example that is right, N."""
    return (output.argmax(-1) == target).double().reshape(len(output), -1).mean(1)


@_metric(higher_is_better=True, standard_error=_of_examples(_hits))
def accuracy(output: Tensor, target: Tensor) -> float:
    r"""The share of examples whose largest logit is that of their label.

    .. math:: \frac{1}{N} \sum_i [\arg\max_c z_{ic} = y_i]

    In [0, 1], higher is better.

    :param output: logits of N×…×C.
    :param target: labels of N×…, 0 to C − 1.
    :raises UsageError: the labels have another shape: compared all the same, they would be spread
        over each other.

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    0.5
    """
    if output.shape[:-1] != target.shape:
        raise UsageError(
            f"accuracy: logits of the shape {tuple(output.shape)} came with labels of "
            f"{tuple(target.shape)}."
        )
    return (output.argmax(-1) == target).double().mean().item()


# ------------------------------------------------------------------------------------- segmentation


def _overlaps(output: Tensor, target: Tensor) -> Tensor:
    """The Dice of each class but the background and of each image, (C − 1)×N."""
    classes = output.shape[1]
    # the first of equal ones, as argmax has it, which takes ten times as long over this dimension
    predicted = (output[:, 0] > 0).long() if classes == 1 else output.max(1).indices
    predicted, true = (labels.reshape(len(output), -1) for labels in (predicted, target))
    scores = []
    for label in range(1, max(classes, 2)):
        inside, wanted = predicted == label, true == label
        both, either = (inside & wanted).sum(1), inside.sum(1) + wanted.sum(1)
        scores.append(torch.where(either > 0, 2 * both.double() / either.clamp(min=1), 1.0))
    return torch.stack(scores)


@_metric(
    higher_is_better=True,
    standard_error=_of_examples(lambda output, target: _overlaps(output, target).mean(0)),
)
def dice(output: Tensor, target: Tensor) -> float:
    r"""The overlap of predicted and true region, taken per image and class and averaged.

    .. math:: \mathrm{Dice}(A, B) = \frac{2 |A \cap B|}{|A| + |B|}, \qquad
              \mathrm{Dice}(\emptyset, \emptyset) = 1

    In [0, 1], higher is better. Of several classes the first is the background, and is left out.

    :param output: logits of N×1×… (inside where positive) or of N×C×… (the class of the largest).
    :param target: N×… labels, 0 to C − 1 (0 or 1 if C is 1), or the same as N×1×….

    >>> dice(torch.tensor([[[1.0, 1.0, -1.0, -1.0]]]), torch.tensor([[1, 0, 1, 0]]))
    0.5
    """
    return _overlaps(output, target).mean().item()


# ---------------------------------------------------------------------------------------- sequences


def _lengths(output: Tensor, target: Tensor) -> Tensor:
    """The bits a character of each example, N."""
    return _nats(output, target) / math.log(2)


@_metric(higher_is_better=False, standard_error=_of_examples(_lengths))
def bits(output: Tensor, target: Tensor) -> float:
    r"""Bits per character: the mean length of the code that the predicted probabilities would give
    to the text.

    .. math:: -\frac{1}{N} \sum_i \log_2 \mathrm{softmax}(z_i)_{y_i}

    In [0, ∞), lower is better; log₂ C at chance.

    :param output: logits of N×…×C.
    :param target: the characters that came, of N×…, 0 to C − 1.

    >>> bits(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    2.0
    """
    nats = torch.nn.functional.cross_entropy(output.double().flatten(0, -2), target.flatten())
    return nats.item() / math.log(2)


# ------------------------------------------------------------------------------- analytic functions


@_metric(higher_is_better=False, standard_error=lambda *_: 0.0)
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
