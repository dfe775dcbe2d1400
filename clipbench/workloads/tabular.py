"""Workloads on tables: a row is an example, a column a feature. And the split that the small data sets share."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Generator, Tensor, nn

from clipbench import metrics
from clipbench.registry import Count, workload

MALIGNANT, BENIGN = 212, 357


@workload("wdbc")
class Wdbc:
    r"""A test of clipping where little can go wrong: the negative control.

    Malignant (1) or benign (0) from 30 numbers: Wisconsin diagnostic breast cancer, 569 rows, as scikit-learn ships them. The
    numbers are features measured on real images of fine-needle aspirates: the data is tabular, the images are not part of it.

    The seed draws a stratified split of 60/20/20 %. Every feature is standardised by the training split's mean and deviation,
    :math:`x \leftarrow (x - \mu_\text{train}) / \sigma_\text{train}`. An MLP 30–w–w–2 with ReLU learns it by cross entropy;
    inputs are N×30.

    :param width: w, the units of each hidden layer, at least 1.

    **Source**: Street, Wolberg & Mangasarian 1993; CC BY 4.0, doi:10.24432/C5DW2B.
    """

    width: Count = 64

    metric = metrics.roc_auc
    other_metrics = (metrics.accuracy,)
    target = 0.093
    reference_loss = -sum(n * math.log(n / (MALIGNANT + BENIGN)) for n in (MALIGNANT, BENIGN)) / (MALIGNANT + BENIGN)
    version = 1
    step_seconds = 3.1e-4
    lanes = True

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


def stratified(labels: Tensor, generator: Generator) -> dict[str, Tensor]:
    """The examples of each split, an index: 60 % train, 20 % validation, 20 % test of every class, drawn from ``generator``."""
    parts: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        cuts = round(0.6 * len(members)), round(0.8 * len(members))
        for part, index in zip(parts.values(), shuffled.tensor_split(cuts), strict=True):
            part.append(index)
    return {split: torch.cat(part) for split, part in parts.items()}
