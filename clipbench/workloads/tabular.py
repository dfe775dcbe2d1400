"""Workloads on tables, with an example a row and a feature a column; and the split that the
small data sets share.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from clipbench import metrics
from clipbench.errors import UsageError
from clipbench.registry import Count, Positive, Unit, workload

MALIGNANT, BENIGN = 212, 357


@workload("wdbc")
class Wdbc:
    r"""A test of clipping where little can go wrong: the negative control.

    Malignant (1) or benign (0) from 30 numbers: Wisconsin diagnostic breast cancer, 569 rows, as
    scikit-learn ships them. The numbers are features measured on real images of fine-needle
    aspirates: the data is tabular, the images are not part of it.

    The seed draws a stratified split of 60/20/20 %. Every feature is standardised by the training
    split's mean and deviation, :math:`x \leftarrow (x - \mu_\text{train}) / \sigma_\text{train}`.
    An MLP 30–w–w–2 with ReLU learns it by cross entropy; inputs are N×30.

    :param width: w, the units of each hidden layer, at least 1.
    :param graded: by which metric. The ROC AUC of almost every model is above .99 here, and hardly
        tells two of them apart; the log loss does.

    **Source**: Street, Wolberg & Mangasarian 1993; CC BY 4.0, doi:10.24432/C5DW2B.
    """

    width: Count = 64
    graded: Literal["roc_auc", "log_loss"] = "roc_auc"

    target = 0.093
    margin = 0.01  # one of 114 cases; a quarter of what Adam gains over SGD is less
    reference_loss = -sum(n * math.log(n / (MALIGNANT + BENIGN)) for n in (MALIGNANT, BENIGN)) / (
        MALIGNANT + BENIGN
    )
    version = 1
    step_seconds = 3.1e-4
    lanes = True

    @property
    def metric(self) -> metrics.Metric:
        return metrics.roc_auc if self.graded == "roc_auc" else metrics.log_loss

    @property
    def other_metrics(self) -> tuple[metrics.Metric, ...]:
        ranking = () if self.graded == "roc_auc" else (metrics.roc_auc,)
        return (*ranking, metrics.accuracy)

    @property
    def chance(self) -> float:
        return 0.5 if self.graded == "roc_auc" else self.reference_loss

    @property
    def target_metric(self) -> float:
        return 0.996 if self.graded == "roc_auc" else self.target

    def data(self, generator: Generator) -> dict[str, tuple[Tensor, Tensor]]:
        features, labels = _breast_cancer()
        rows = stratified(labels, generator)
        train = features[rows["train"]]
        standardised = ((features - train.mean(0)) / train.std(0, correction=0)).float()
        return {split: (standardised[index], labels[index]) for split, index in rows.items()}

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(30, self.width), nn.ReLU(),
            nn.Linear(self.width, self.width), nn.ReLU(),
            nn.Linear(self.width, 2),
        )  # fmt: skip

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target)


@lru_cache(maxsize=1)
def _breast_cancer() -> tuple[Tensor, Tensor]:
    """The features in float64, 569×30, and the labels; scikit-learn's count benign as 1."""
    from sklearn.datasets import load_breast_cancer

    features, benign = load_breast_cancer(return_X_y=True)
    return torch.from_numpy(features), 1 - torch.from_numpy(benign).long()


@workload("label-noise")
class LabelNoise:
    r"""A test of wrong labels: whether it helps to limit what one example may pull.

    A mixture on which label noise defeats every convex loss. Two features; (1, 0) is far out, (γ,
    5γ) pulls a separating line away, (γ, −γ), twice as frequent, pays for it; γ = 1/24. Each is the
    centre of a normal cloud of deviation .01, and so is its mirror image. The label is whether the
    first feature is positive, so that the line is there to be found. Training and validation labels
    are flipped at random, those of the test are not: 1000, 500 and 500 examples, by the seed. A
    linear model without bias, z its score times ±1, the label's sign:

    .. math:: \phi(z) = \log(1 + e^{-z}), \qquad
              \text{huberised: } \phi_\tau(z) = \begin{cases} \phi(z_0) + \tau (z_0 - z) & z < z_0 =
              -\log \frac{\tau}{1 - \tau} \\ \phi(z) & \text{else} \end{cases}, \qquad
              \text{partially: } \begin{cases} \log \tau + 1 - \tau p & p = \sigma(z) < 1 / \tau \\
              -\log p & \text{else} \end{cases}

    The huberised loss is the logistic one whose derivative by the score, at most 1, is clipped at
    τ, example by example: convex, and no help. Clipping the norm of each example's gradient (``on =
    "example"``) is the same only where all examples are of one length; here, where they differ, a
    small threshold does help. The partially huberised loss clips the derivative of −log p by p
    alone: an example given up on stops pulling. Only a run's end tells: the logistic loss at lr 1
    has .98 of the test right after 100 steps of the whole batch, and .54 after 2000.

    :param objective: which loss.
    :param tau: τ; of the huberised loss in (0, 1], of the partially huberised at least 1; not
        looked at by the logistic one.
    :param flip: the chance that a label is flipped, from 0 to 1.

    **Source**: Long & Servedio 2010, in the form of Menon, Rawat, Reddi & Kumar 2020.
    """

    objective: Literal["logistic", "huberised", "partially-huberised"] = "logistic"
    tau: Positive = 1.0
    flip: Unit = 0.2

    metric = metrics.accuracy
    version = 2  # 2: drawn in float64
    step_seconds = 2.3e-4
    lanes = True

    @property
    def target(self) -> float | None:
        """What the logistic loss has at 75 % of its steps; another loss is on a scale of its
        own.
        """
        return 0.619 if self.objective == "logistic" else None

    @property
    def reference_loss(self) -> float:
        """At a score of 0, the best constant: both labels are as frequent."""
        return self.loss(torch.zeros(1, 2), torch.zeros(1)).item()

    def ready(self) -> None:
        """Whether τ fits the objective.

        :raises UsageError: it does not.
        """
        if (self.objective == "huberised" and self.tau > 1) or (
            self.objective == "partially-huberised" and self.tau < 1
        ):
            wanted = "at most" if self.objective == "huberised" else "at least"
            raise UsageError(
                f'workload "label-noise": tau is {self.tau:g}, and must be {wanted} 1 for the '
                f"{self.objective} loss."
            )

    def data(self, generator: Generator) -> dict[str, tuple[Tensor, Tensor]]:
        self.ready()
        sizes = {"train": (1000, self.flip), "validation": (500, self.flip), "test": (500, 0.0)}
        return {
            split: _long_servedio(examples, flip, generator)
            for split, (examples, flip) in sizes.items()
        }

    def model(self) -> nn.Module:
        return Scorer()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        margin = (output[..., 1] - output[..., 0]) * (2 * target - 1)
        if self.objective == "logistic":
            return nn.functional.softplus(-margin).mean()
        huberised = self.objective == "huberised"
        # the probability below which the loss goes straight on
        certain = 1 - self.tau if huberised else 1 / self.tau
        edge = _logit(certain)
        below = edge - margin if huberised else certain - margin.sigmoid()
        return (nn.functional.softplus(-margin.clamp(min=edge)) + self.tau * below.relu()).mean()


class Scorer(nn.Module):
    """A linear score of two features, N×2, without bias, as the logits of two classes: N×2, the
    first always 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.pad(self.linear(inputs), (1, 0))


def _logit(probability: float) -> float:
    inside = 0 < probability < 1
    return (
        math.log(probability / (1 - probability))
        if inside
        else math.copysign(math.inf, probability - 0.5)
    )


def _long_servedio(examples: int, flip: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Features, N×2, and labels, of which a share of about ``flip`` is wrong."""
    gamma = 1 / 24
    atoms = torch.tensor(
        [[1, 0], [gamma, 5 * gamma], [gamma, -gamma], [gamma, -gamma]], dtype=torch.float64
    )
    mirrored = torch.cat([atoms, -atoms])
    features = mirrored[torch.randint(8, (examples,), generator=generator)]
    features += 0.01 * torch.randn(examples, 2, generator=generator, dtype=torch.float64)
    wrong = torch.rand(examples, generator=generator) < flip
    return features, ((features[:, 0] > 0) ^ wrong).long()


def stratified(labels: Tensor, generator: Generator) -> dict[str, Tensor]:
    """The examples of each split, an index: 60 % train, 20 % validation, 20 % test of every
    class, drawn from ``generator``.
    """
    parts: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        cuts = round(0.6 * len(members)), round(0.8 * len(members))
        for indices, index in zip(parts.values(), shuffled.tensor_split(cuts), strict=True):
            indices.append(index)
    return {split: torch.cat(indices) for split, indices in parts.items()}
