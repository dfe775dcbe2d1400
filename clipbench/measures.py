"""What is measured of every training step: one table, `MEASURES`, off which everything else is
read.

A measure is made of products of vectors: inner products and counts, each a single pass. `step`
takes them on the device; what a measure makes of them is worked out later by `rows`, for many steps
at once. The products that are taken, the vectors that engines remember for the next step, the
columns of a stored curve and what a replay compares follow from the table: a measure is added here,
and nowhere else.

Nothing here knows of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import NamedTuple

import numpy as np

AT_ONCE = 8192  # values that are worked out at once

# The vectors of a step, as long as all trained parameters together.
RAW = "raw"  # the gradient before any clip
HANDED = "handed"  # what the clip was given: the raw gradient, but for a clip on the update
CLIPPED = "clipped"  # what the clip returned
UPDATE = "update"  # the parameters before the step less those after it
LAST = "last "


def last(vector: str) -> str:
    """A vector of the step before, which is all NaN at step 0."""
    return LAST + vector


class Product(NamedTuple):
    """A number that one pass over vectors of a step gives."""

    kind: str
    left: str
    right: str


INNER, DIFFERING, PEAK = "inner", "differing", "peak"


def inner(left: str, right: str) -> Product:
    """The inner product of two vectors."""
    return Product(INNER, left, right)


def square(vector: str) -> Product:
    """The sum of a vector's squares."""
    return inner(vector, vector)


def differing(left: str, right: str) -> Product:
    """The number of elements in which two vectors differ."""
    return Product(DIFFERING, left, right)


def peak(vector: str) -> Product:
    """Finite exactly if every element of a vector is: zero, or the largest of their sizes.

    It tells a gradient with an infinite element from a finite one whose norm overflows. Not taken
    of a vector of the step before.
    """
    return Product(PEAK, vector, vector)


@dataclass(frozen=True)
class Taken:
    """The losses and the products of some steps: arrays of one value a step, or of steps ×
    lanes.
    """

    loss: np.ndarray
    products: Mapping[Product, np.ndarray]
    elements: int
    """The number of trained parameters."""
    dtype: str
    """Of the gradients: ``float32`` or ``float64``."""
    known: dict[str, np.ndarray] = field(default_factory=dict)
    """What several measures are made of, by its name."""

    def __getitem__(self, product: Product) -> np.ndarray:
        return self.products[product]

    def norm(self, vector: str) -> np.ndarray:
        return np.sqrt(self[square(vector)])


def _shared(derive: Callable[[Taken], np.ndarray]) -> Callable[[Taken], np.ndarray]:
    """Work out once what several measures are made of."""

    @wraps(derive)
    def once(taken: Taken) -> np.ndarray:
        if (found := taken.known.get(derive.__name__)) is None:
            found = taken.known[derive.__name__] = derive(taken)
        return found

    return once


@dataclass(frozen=True)
class Measure:
    """One measure of a step, and its column in a stored curve."""

    name: str
    unit: str
    meaning: str
    needs: tuple[Product, ...]
    derive: Callable[[Taken], np.ndarray]
    """The measure of some steps, from what was taken of them."""
    counts: bool = False
    """Whether it counts elements, so that rounding alone moves it by whole ones."""
    later: bool = False
    """Whether curves were stored before there was such a measure: they are read with nulls in
    it.
    """


@cache
def least(dtype: str, elements: int) -> float:
    """The least sum of squares that is as exact as its ``dtype``: of a smaller one, squares that
    count may have been lost.
    """
    limits = np.finfo(dtype)
    return elements * float(limits.tiny) / float(limits.eps)


def _grad_norm(taken: Taken) -> np.ndarray:
    """The norm of the raw gradient; infinite if it is in the gradient's ``dtype``: a norm clip
    divides by that.
    """
    raw, largest = taken[square(RAW)], taken[peak(RAW)]
    # Where all squares are lost in float64, too, the largest element stands for the norm: it is not
    # zero.
    norm = np.where((raw == 0) & (largest > 0), largest, np.sqrt(raw))
    return np.where(raw > float(np.finfo(taken.dtype).max), np.inf, norm) + 0 * largest


@_shared
def _changed_elements(taken: Taken) -> np.ndarray:
    # A NaN differs from itself, so that a clip that was handed one has always changed something.
    count = taken[differing(HANDED, CLIPPED)]
    return np.where(np.isnan(taken[square(HANDED)]) & (count > 0), np.nan, count / taken.elements)


@_shared
def _comparable(taken: Taken) -> np.ndarray:
    """Whether the squares of what the clip was handed, and of what it returned, stayed in range:
    a truth value for each step.
    """
    handed, clipped = taken[square(HANDED)], taken[square(CLIPPED)]
    return (handed >= least("float64", taken.elements)) & ((handed < np.inf) | (clipped == 0))


@_shared
def _handed_norm(taken: Taken) -> np.ndarray:
    return taken.norm(HANDED) + 0 * taken[peak(RAW)]


@_shared
def _clipped_norm(taken: Taken) -> np.ndarray:
    return taken.norm(CLIPPED)


def _kept_share(taken: Taken) -> np.ndarray:
    ratio = np.where(_comparable(taken), _clipped_norm(taken) / _handed_norm(taken), np.nan)
    return np.where(_changed_elements(taken) == 0, 1.0, ratio)


def _cosine(taken: Taken) -> np.ndarray:
    both = _handed_norm(taken) * _clipped_norm(taken)
    cosine = np.where(_comparable(taken) & (both > 0), taken[inner(HANDED, CLIPPED)] / both, np.nan)
    return np.where(_changed_elements(taken) == 0, 1.0, np.clip(cosine, -1.0, 1.0))


def _update_norm(taken: Taken) -> np.ndarray:
    return taken.norm(UPDATE) + 0 * taken[peak(UPDATE)]


_COMPARED = (square(HANDED), square(CLIPPED), differing(HANDED, CLIPPED), peak(RAW))

MEASURES = (
    Measure(
        "loss",
        "loss",
        "training loss of the batch, before the update",
        (),
        lambda taken: taken.loss,
    ),
    Measure(
        "grad_norm",
        "gradient",
        (
            "2-norm of the raw gradient; inf where finite elements overflow it in their "
            "precision, NaN where an element is not finite"
        ),
        (square(RAW), peak(RAW)),
        _grad_norm,
    ),
    Measure(
        "kept",
        "ratio",
        (
            "norm of what the clip returned over that of what it was handed; 1 for zero, NaN where "
            "either left the range of float64"
        ),
        _COMPARED,
        _kept_share,
    ),
    Measure(
        "cosine",
        "ratio",
        (
            "cosine between what the clip was handed and what it returned; 1 for zero, NaN where "
            "only that is zero"
        ),
        (*_COMPARED, inner(HANDED, CLIPPED)),
        _cosine,
    ),
    Measure(
        "changed",
        "share of elements",
        "share of the elements that the clip altered; NaN where it was handed a NaN",
        (square(HANDED), differing(HANDED, CLIPPED)),
        _changed_elements,
        counts=True,
    ),
    Measure(
        "update_norm",
        "parameter",
        "2-norm of the parameters' change; NaN where a parameter is not finite",
        (square(UPDATE), peak(UPDATE)),
        _update_norm,
    ),
)
COLUMNS = tuple(measure.name for measure in MEASURES)
LOSS, GRAD_NORM, KEPT, COSINE, CHANGED, UPDATE_NORM = map(
    COLUMNS.index, ("loss", "grad_norm", "kept", "cosine", "changed", "update_norm")
)
PRODUCTS = tuple(dict.fromkeys(product for measure in MEASURES for product in measure.needs))
"""What a step leaves on the device beside its loss."""
REMEMBERED = tuple(
    dict.fromkeys(
        vector.removeprefix(LAST)
        for product in PRODUCTS
        for vector in product[1:]
        if vector.startswith(LAST)
    )
)
"""The vectors that are kept until the next step, for a measure with memory."""


def rows(loss: np.ndarray, products: Sequence[np.ndarray], elements: int, dtype: str) -> np.ndarray:
    """The measures of some steps along the last axis, in the order of ``COLUMNS``.

    :param products: in the order of ``PRODUCTS``, each of one value a step, or of steps × lanes.
    """
    found = np.empty((*loss.shape, len(MEASURES)))
    # some steps at a time, so that what is worked out stays in a cache
    some = max(1, AT_ONCE // max(1, math.prod(loss.shape[1:])))
    for begin in range(0, len(loss), some):
        part = slice(begin, begin + some)
        products_of = {one: values[part] for one, values in zip(PRODUCTS, products, strict=True)}
        taken = Taken(loss[part], products_of, elements, dtype)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for column, measure in enumerate(MEASURES):
                found[part, ..., column] = measure.derive(taken)
    return found
