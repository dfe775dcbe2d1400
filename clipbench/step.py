"""One training step, measured before and after the clip: what `measures.PRODUCTS` asks for, in
either engine.

The observer is the step, not the clip: every clip, a user-defined one too, is measured in the same
way. On the device only products are taken, each a single pass; the ratios between them are worked
out later, for many steps at once.

Squares leave the range of float32 if elements are above 1.8e19 or below 1e-19. Then the products
are taken once more, in float64: what is recorded is right, or NaN if it leaves float64 as well. To
check for this waits for the device, which costs nothing on a CPU; on CUDA the products are taken in
float64 at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clipbench import measures, trees
from clipbench.measures import (
    CLIPPED,
    DIFFERING,
    HANDED,
    INNER,
    LAST,
    PEAK,
    PRODUCTS,
    RAW,
    REMEMBERED,
    UPDATE,
    Product,
    peak,
)

SQUARES = tuple(
    index for index, (kind, left, right) in enumerate(PRODUCTS) if kind == INNER and left == right
)
# The index of the largest element of what was squared; if the table has none for it, that of the
# raw gradient.
PEAKS = tuple(
    PRODUCTS.index(
        peak(PRODUCTS[index].left) if peak(PRODUCTS[index].left) in PRODUCTS else peak(RAW)
    )
    for index in SQUARES
)


class Plan(NamedTuple):
    """The products to be taken of a step in which some vectors are the same one, each once."""

    taken: tuple[tuple[bool, str, str], ...]
    """Whether it is an inner product or else a count, and of which vectors."""
    peaks: tuple[str, ...]
    ordered: Callable[[Sequence[Any]], tuple[Any, ...]]
    """``PRODUCTS`` from those taken, the peaks, and a zero behind them: no element of a vector
    differs from itself.
    """
    finite: tuple[float, ...]
    """The peaks and the zero if every element is finite."""


@cache
def plan(handed: bool, clipped: bool) -> Plan:
    """The products of a step.

    :param handed: whether the clip was handed anything but the raw gradient.
    :param clipped: whether a clip touched what it was handed.
    """
    before_clip = HANDED if handed else RAW
    same = {HANDED: before_clip, CLIPPED: CLIPPED if clipped else before_clip}
    all_products = [
        Product(kind, same.get(left, left), same.get(right, right))
        for kind, left, right in PRODUCTS
    ]
    distinct = [
        product
        for product in dict.fromkeys(all_products)
        if product.kind != DIFFERING or product.left != product.right
    ]
    distinct.sort(key=lambda product: product.kind == PEAK)
    order = tuple(
        distinct.index(product) if product in distinct else len(distinct)
        for product in all_products
    )
    taken = tuple((kind == INNER, left, right) for kind, left, right in distinct if kind != PEAK)
    peaks = tuple(left for kind, left, _ in distinct if kind == PEAK)
    return Plan(taken, peaks, itemgetter(*order), (0.0,) * (len(peaks) + 1))


def precision(dtype: torch.dtype) -> str:
    """The name of a dtype: ``float32``."""
    return str(dtype).removeprefix("torch.")


class Meter:
    """Measures the steps of one module; nothing waits for the device until ``rows`` is called.

    Flat buffers serve every measure: the raw gradient, the clipped one, and the parameters before
    and after the step.
    """

    def __init__(self, params: Sequence[nn.Parameter], dtype: torch.dtype | None = None) -> None:
        """A meter of these parameters.

        :param dtype: in what is measured; if not given, in the parameters' own.
        """
        flat = [leaf.detach().reshape(-1) for leaf in params]
        self._leaves = [
            (leaf, view, view.data_ptr()) for leaf, view in zip(params, flat, strict=True)
        ]
        together = torch.cat(flat)
        self._before = together if dtype is None else together.to(dtype)
        self._after, self._raw, self._clipped = (torch.zeros_like(self._before) for _ in range(3))
        # what the clip was handed and what it returned
        self._pair: tuple[Tensor, Tensor] | None = None
        self._memory = {
            LAST + vector: torch.full_like(self._before, math.nan) for vector in REMEMBERED
        }
        self._differs = torch.empty_like(self._before)
        self._dtype, self._waits = precision(self._before.dtype), self._before.is_cuda
        self._least = measures.least(self._dtype, self._before.numel())
        self._pending: list[Sequence[Tensor] | Sequence[float]] = []

    def before(self) -> None:
        """Keep the parameters as they are, if somebody else than the last step may have moved
        them.
        """
        torch.cat([leaf.detach().reshape(-1) for leaf, _, _ in self._leaves], out=self._before)

    @property
    def handed_and_clipped(self) -> tuple[Tensor, Tensor] | None:
        """What the clip of the step under way was handed and what it returned, each as one vector;
        None if neither is kept yet.
        """
        return self._pair

    def raw(self) -> None:
        """Keep the gradient as it is, before the clip."""
        torch.cat(self._gradient(), out=self._raw)

    @property
    def kept(self) -> Tensor:
        """The raw gradient as it was kept last, one vector."""
        return self._raw

    def now(self) -> Tensor:
        """The gradient as it is, one vector; zero where there is none."""
        return torch.cat(self._gradient(), out=torch.empty_like(self._raw))

    def clipped(self) -> None:
        """Keep the gradient as the clip left it. Later is too late: an optimizer may change
        ``.grad`` while it steps.
        """
        self._pair = self._raw, torch.cat(self._gradient(), out=self._clipped)

    def update(self, direction: Sequence[Tensor], clipped: Sequence[Tensor]) -> None:
        """Keep an update before and after a clip that is applied to it, in the parameters'
        order.
        """
        handed = torch.cat([tensor.reshape(-1) for tensor in direction])
        self._pair = (
            handed,
            torch.cat([tensor.reshape(-1) for tensor in clipped], out=self._clipped),
        )

    def step(self, loss: Tensor) -> None:
        """Measure the step that was just taken."""
        handed, clipped = self._pair or (self._raw, self._raw)
        self._pair = None
        # Views that were taken once serve as long as a parameter keeps its memory.
        now = [
            flat
            if leaf.data_ptr() == address and leaf.is_contiguous()
            else leaf.detach().reshape(-1)
            for leaf, flat, address in self._leaves
        ]
        torch.cat(now, out=self._after)
        vectors = {
            RAW: self._raw,
            HANDED: handed,
            CLIPPED: clipped,
            UPDATE: self._before.sub_(self._after),
            **self._memory,
        }
        wanted = plan(handed is not self._raw, clipped is not handed)
        if self._waits:
            self._pending.append((loss.detach(), *wanted.ordered(self._wide(vectors, wanted))))
        else:
            values = self._plain(vectors, wanted) or [
                value.item() for value in self._wide(vectors, wanted)
            ]
            self._pending.append((loss.item(), *wanted.ordered(values)))
        for vector in REMEMBERED:
            self._memory[LAST + vector].copy_(vectors[vector])
        self._before, self._after = self._after, self._before

    def _plain(self, vectors: Mapping[str, Tensor], wanted: Plan) -> list[float] | None:
        """The products as numbers, for which a CPU has nothing to wait for; None if a square
        left the range.
        """
        values: list[float] = []
        dot, low, high = torch.dot, self._least, math.inf
        for inner, left, right in wanted.taken:
            if inner:
                value = dot(vectors[left], vectors[right]).item()
                if (
                    left == right
                    and not low <= value < high
                    and not (math.isnan(value) and left in self._memory)
                ):
                    return None
                values.append(value)
            else:
                values.append(self._changed(vectors[left], vectors[right]).item())
        values += wanted.finite  # as elements whose squares are in range are
        return values

    def _wide(self, vectors: Mapping[str, Tensor], wanted: Plan) -> list[Tensor]:
        """The products taken in float64; the largest elements tell what is not finite."""
        names = [name for inner, *pair in wanted.taken if inner for name in pair]
        wide = {name: vectors[name].double() for name in dict.fromkeys([*names, *wanted.peaks])}
        values = [
            torch.dot(wide[left], wide[right])
            if inner
            else self._changed(vectors[left], vectors[right])
            for inner, left, right in wanted.taken
        ]
        peaks = [torch.linalg.vector_norm(wide[one], math.inf) for one in wanted.peaks]
        return [*values, *peaks, torch.zeros((), device=self._before.device)]

    def _changed(self, handed: Tensor, clipped: Tensor) -> Tensor:
        """The number of elements that a clip changed."""
        # Into numbers as wide, not truth values: a comparison that narrows its result takes three
        # times as long.
        return torch.ne(handed, clipped, out=self._differs).sum()

    def _gradient(self) -> list[Tensor]:
        vectors = []
        for leaf, flat, _ in self._leaves:
            if (grad := leaf.grad) is None:
                vectors.append(torch.zeros_like(flat))
            elif grad.dim() == 1 and grad.layout is torch.strided:
                # as it is: to reshape a short vector takes as long as to square it
                vectors.append(grad)
            else:
                vectors.append(trees.dense(grad).reshape(-1))
        return vectors

    def rows(self) -> np.ndarray:
        """The rows of the steps since the last call, float64, steps × measures: the one moment
        that waits for the device.
        """
        if not self._pending:
            return np.empty((0, len(measures.COLUMNS)))
        columns = zip(*self._pending, strict=True)
        loss, *taken = (
            torch.stack(column).double().cpu().numpy() if self._waits else np.array(column)
            for column in columns
        )
        self._pending = []
        return measures.rows(loss, taken, self._before.numel(), self._dtype)


class Unmeasured(Meter):
    """A meter that measures nothing."""

    def __init__(self) -> None:
        self._pending = []

    def raw(self) -> None: ...

    def clipped(self) -> None: ...

    def update(self, direction: Sequence[Tensor], clipped: Sequence[Tensor]) -> None: ...

    def step(self, loss: Tensor) -> None: ...


def products(
    before: Tensor,
    after: Tensor,
    raw: Tensor,
    handed: Tensor | None,
    clipped: Tensor | None,
    memory: Sequence[Tensor],
    *,
    one_pass: bool = False,
    wide: bool = False,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What one step of many lanes leaves on the device: ``PRODUCTS``, a value a lane each, and the
    vectors ``REMEMBERED``.

    :param before: the parameters before the step, lanes × elements, as are all others.
    :param after: the parameters after the step.
    :param raw: the gradient before the clip.
    :param handed: what the clip was handed; None if it was the gradient.
    :param clipped: what the clip returned; None if no clip touched it.
    :param memory: the vectors remembered from the step before.
    :param one_pass: for a compiler, which takes plain sums of one lane while it has its elements at
        hand. Anything to be done to the sums themselves would make it walk through all lanes once
        for each.
    :param wide: take them in float64, as `lost` asks for.
    """
    before_clip = raw if handed is None else handed
    vectors = {
        RAW: raw,
        HANDED: before_clip,
        CLIPPED: before_clip if clipped is None else clipped,
        UPDATE: before - after,
    }
    kept = tuple(vectors[name] for name in REMEMBERED)
    vectors |= {LAST + name: vector for name, vector in zip(REMEMBERED, memory, strict=True)}
    wanted = plan(handed is not None, clipped is not None)
    # Only sums need the range of float64: a largest element is what it is, and so is a difference.
    factors = {name: vector.double() for name, vector in vectors.items()} if wide else vectors
    values = [
        _inner(factors[left], factors[right], one_pass)
        if inner
        else _differing(vectors[left], vectors[right])
        for inner, left, right in wanted.taken
    ]
    peaks = [_peak(vectors[one], one_pass) for one in wanted.peaks]
    every = [*values, *peaks, torch.zeros(len(raw), dtype=torch.long, device=raw.device)]
    return wanted.ordered(every), kept


def _inner(left: Tensor, right: Tensor, one_pass: bool) -> Tensor:
    return (
        (left * right).sum(1)
        if one_pass or left is not right
        else torch.linalg.vector_norm(left, dim=1).square()
    )


def _peak(rows: Tensor, one_pass: bool) -> Tensor:
    return rows.abs().amax(1) if one_pass else torch.maximum(rows.amax(1), -rows.amin(1))


def _differing(left: Tensor, right: Tensor) -> Tensor:
    return torch.ne(left, right, out=torch.empty_like(left)).sum(1)  # as in `Meter._changed`


def lost(products: Sequence[Tensor], least: float) -> Tensor | None:
    """Whether squares of finite elements left the range of their dtype, a truth value a lane; None
    if they did in no lane.

    :param least: the least square that is exact, `measures.least`.
    """
    squares = torch.stack([products[index] for index in SQUARES])
    low, high = (bound.item() for bound in squares.aminmax())
    if least <= low <= high < math.inf:  # the way of almost all steps, in few operations
        return None
    largest = torch.stack([products[index] for index in PEAKS])
    left = ((squares < least) & (largest > 0)) | squares.isinf()
    lanes = (left & largest.isfinite()).any(0)
    return lanes if lanes.any() else None
