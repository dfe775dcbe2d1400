"""One training step, measured before and after the clip.

The observer is the step, not the clip: every clip, a stranger's too, is measured in the same way. A step's measures are the row
``loss, grad_norm, kept, cosine, changed, update_norm``. On the device only inner products are taken, each a single pass; the ratios
between them are worked out later, for many steps at once.

Squares leave the range of float32 where elements are above 1.8e19 or below 1e-19. There the products are taken once more, in
float64: what is recorded is right, or NaN where it leaves float64 as well. To look whether that is so waits for the device, which
is nothing on a CPU; on CUDA they are taken in float64 at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from clipbench import trees

# What a step leaves on the device. ``raw_broken`` and ``update_broken`` are finite exactly where every element is: they tell a
# gradient with an infinite element from a finite one whose norm overflows. They are zero, or the largest element.
# ``handed`` is what the clip was given: the raw gradient, but for a clip on the update.
PRODUCTS = (
    *("loss", "raw_raw", "raw_broken", "handed_handed", "clipped_clipped", "handed_clipped", "changed"),
    *("update_update", "update_broken"),
)


class Meter:
    """Measures the steps of one module; nothing waits for the device until ``rows`` is called.

    Flat buffers serve every measure: the raw gradient, the clipped one, and the parameters before and after the step.
    """

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self._leaves = list(params)
        self._flat = [leaf.detach().reshape(-1) for leaf in self._leaves]
        self._before = torch.cat(self._flat)
        self._after, self._raw, self._clipped = (torch.zeros_like(self._before) for _ in range(3))
        self._pair: tuple[Tensor, Tensor] | None = None  # what the clip was handed and what it returned
        self._differs = torch.empty_like(self._before)
        self._waits, self._least = self._before.is_cuda, least(self._before.dtype, self._before.numel())
        self._pending: list[Sequence[Tensor] | Sequence[float]] = []

    def raw(self) -> None:
        """Keep the gradient as it is, before the clip."""
        torch.cat(self._gradient(), out=self._raw)

    def clipped(self) -> None:
        """Keep the gradient as the clip left it. Later is too late: an optimizer may change ``.grad`` while it steps."""
        self._pair = self._raw, torch.cat(self._gradient(), out=self._clipped)

    def update(self, direction: Sequence[Tensor], clipped: Sequence[Tensor]) -> None:
        """Keep an update before and after a clip that is applied to it, in the parameters' order."""
        handed = torch.cat([tensor.reshape(-1) for tensor in direction])
        self._pair = handed, torch.cat([tensor.reshape(-1) for tensor in clipped], out=self._clipped)

    def step(self, loss: Tensor) -> None:
        """Measure the step that was just taken."""
        handed, clipped = self._pair or (self._raw, self._raw)
        self._pair = None
        torch.cat([_vector(leaf, flat) for leaf, flat in zip(self._leaves, self._flat, strict=True)], out=self._after)
        update = self._before.sub_(self._after)
        if self._waits:
            self._pending.append((loss.detach(), *self._wide(handed, clipped, update)))
        else:
            found = self._plain(handed, clipped, update) or map(Tensor.item, self._wide(handed, clipped, update))
            self._pending.append((loss.item(), *found))
        self._before, self._after = self._after, self._before

    def _plain(self, handed: Tensor, clipped: Tensor, update: Tensor) -> tuple[float, ...] | None:
        """``PRODUCTS`` without ``loss``, as numbers, for which a CPU has nothing to wait for; None if a square left the range."""
        raw = self._raw
        raw_raw, update_update = torch.dot(raw, raw).item(), torch.dot(update, update).item()
        if not self._least <= raw_raw < math.inf or not self._least <= update_update < math.inf:
            return None
        if clipped is raw:
            return raw_raw, 0.0, raw_raw, raw_raw, raw_raw, 0.0, update_update, 0.0
        handed_handed = raw_raw if handed is raw else torch.dot(handed, handed).item()
        clipped_clipped, both = torch.dot(clipped, clipped).item(), torch.dot(handed, clipped).item()
        if not self._least <= handed_handed < math.inf or not self._least <= clipped_clipped < math.inf:
            return None
        return raw_raw, 0.0, handed_handed, clipped_clipped, both, self._changed(handed, clipped).item(), update_update, 0.0

    def _wide(self, handed: Tensor, clipped: Tensor, update: Tensor) -> tuple[Tensor, ...]:
        """``PRODUCTS`` without ``loss``, taken in float64; the largest elements tell what is not finite."""
        touched = clipped is not self._raw
        changed = self._changed(handed, clipped) if touched else torch.zeros((), device=handed.device)
        raw, moved = self._raw.double(), update.double()
        square = torch.dot(raw, raw)
        given, left = (handed.double(), clipped.double()) if touched else (raw, raw)
        inner = (torch.dot(given, given), torch.dot(left, left), torch.dot(given, left)) if touched else (square,) * 3
        largest = torch.linalg.vector_norm(raw, math.inf), torch.linalg.vector_norm(moved, math.inf)
        return square, largest[0], *inner, changed, torch.dot(moved, moved), largest[1]

    def _changed(self, handed: Tensor, clipped: Tensor) -> Tensor:
        """The number of elements that a clip changed."""
        # Into numbers as wide, not truth values: a comparison that narrows its result takes three times as long.
        return torch.ne(handed, clipped, out=self._differs).sum()

    def _gradient(self) -> list[Tensor]:
        return [
            torch.zeros_like(flat) if (grad := leaf.grad) is None else trees.dense(grad).reshape(-1)
            for leaf, flat in zip(self._leaves, self._flat, strict=True)
        ]

    def rows(self) -> np.ndarray:
        """The rows of the steps since the last call, a float64 array of steps × 6: the one moment that waits for the device."""
        if not self._pending:
            return np.empty((0, 6))
        columns = zip(*self._pending, strict=True)
        arrays = [torch.stack(column).double().cpu().numpy() if self._waits else np.array(column) for column in columns]
        self._pending = []
        return derive(dict(zip(PRODUCTS, arrays, strict=True)), self._before.numel(), self._before.dtype)


def _vector(leaf: Tensor, flat: Tensor) -> Tensor:
    """``leaf`` as a vector: ``flat``, a view of it that was taken earlier, unless it has other memory since."""
    return flat if leaf.data_ptr() == flat.data_ptr() and leaf.is_contiguous() else leaf.detach().reshape(-1)


def least(dtype: torch.dtype, elements: int) -> float:
    """The least sum of squares that is as exact as its ``dtype``: of a smaller one, squares that count may have been lost."""
    limits = torch.finfo(dtype)
    return elements * limits.tiny / limits.eps


class Unmeasured(Meter):
    """In a meter's place where nothing is measured."""

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
    *,
    one_pass: bool = False,
    wide: bool = False,
) -> tuple[Tensor, ...]:
    """What one step of many lanes leaves on the device, in the order of ``PRODUCTS`` without the loss: a value a lane each.

    :param before: the parameters before the step, lanes × elements, as are all others.
    :param after: the parameters after the step.
    :param raw: the gradient before the clip.
    :param handed: what the clip was given; None where it was the gradient.
    :param clipped: the same after it; None where no clip touched it.
    :param one_pass: for a compiler, which takes plain sums of one lane while it has its elements at hand. Anything to be done to
        the sums themselves would make it walk through all lanes once for each.
    :param wide: take them in float64, as `lost` asks for.
    """
    square, largest = (_plain_square, _plain_largest) if one_pass else (_square, _largest)
    update = before - after
    if wide:
        raw, update = raw.double(), update.double()
        handed, clipped = (None if rows is None else rows.double() for rows in (handed, clipped))
    raw_raw, changed = square(raw), torch.zeros(len(raw), dtype=torch.long, device=raw.device)
    handed_handed = raw_raw if handed is None else square(handed)
    clipped_clipped = handed_clipped = handed_handed
    if clipped is not None:
        given = raw if handed is None else handed
        clipped_clipped, handed_clipped = square(clipped), (given * clipped).sum(1)
        changed = torch.ne(given, clipped, out=torch.empty_like(given)).sum(1)  # as in `Meter._changed`
    return raw_raw, largest(raw), handed_handed, clipped_clipped, handed_clipped, changed, square(update), largest(update)


def lost(products: Sequence[Tensor], dtype: torch.dtype, elements: int) -> Tensor | None:
    """In which lanes squares of finite elements left the range of ``dtype``, None if in no lane; ``products`` without the loss."""
    raw_raw, raw_largest, handed_handed, clipped_clipped, _, _, update_update, update_largest = products
    squares = torch.stack([raw_raw, handed_handed, clipped_clipped, update_update])
    low, high = (bound.item() for bound in squares.aminmax())
    if least(dtype, elements) <= low <= high < math.inf:  # the way of almost all steps, in few operations
        return None
    largest = torch.stack([raw_largest, raw_largest, raw_largest, update_largest])
    left = ((squares < least(dtype, elements)) & (largest > 0)) | squares.isinf()
    lanes = (left & largest.isfinite()).any(0)
    return lanes if lanes.any() else None


def _square(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1).square()


def _largest(rows: Tensor) -> Tensor:
    return torch.maximum(rows.amax(1), -rows.amin(1))


def _plain_square(rows: Tensor) -> Tensor:
    return (rows * rows).sum(1)


def _plain_largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(1)


def derive(products: dict[str, np.ndarray], elements: int, dtype: torch.dtype) -> np.ndarray:
    """Rows from the products of some steps, each an array of one value a step (or of steps × lanes).

    ``grad_norm`` is infinite where it is in the gradient's ``dtype``: that is what a norm clip divides by. ``kept``, ``cosine`` and
    ``changed`` compare what the clip was handed with what it returned. ``kept`` and ``cosine`` are 1 where the clip changed
    nothing, as of a gradient of zero; ``cosine`` is NaN where the clipped one is zero: it has no direction. Both are NaN where the
    squares that they are made of left the range, and all three where a clip was handed a NaN: there is nothing to compare.
    """
    raw_raw, raw_broken, handed_handed, clipped_clipped = (products[name] for name in PRODUCTS[1:5])
    # A NaN differs from itself, so that a clip that was handed one has always changed something.
    changed = np.where(np.isnan(handed_handed) & (products["changed"] > 0), np.nan, products["changed"] / elements)
    same = changed == 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Where all squares are lost in float64, too, the largest element stands for the norm: it is not zero.
        grad_norm = np.where((raw_raw == 0) & (raw_broken > 0), raw_broken, np.sqrt(raw_raw))
        grad_norm = np.where(raw_raw > torch.finfo(dtype).max, np.inf, grad_norm) + 0 * raw_broken
        handed_norm, clipped_norm = np.sqrt(handed_handed) + 0 * raw_broken, np.sqrt(clipped_clipped)
        update_norm = np.sqrt(products["update_update"]) + 0 * products["update_broken"]
        known = (handed_handed >= least(torch.float64, elements)) & ((handed_handed < np.inf) | (clipped_clipped == 0))
        kept = np.where(same, 1.0, np.where(known, clipped_norm / handed_norm, np.nan))
        both = handed_norm * clipped_norm
        cosine = np.clip(np.where(known & (both > 0), products["handed_clipped"] / both, np.nan), -1.0, 1.0)
    return np.stack([products["loss"], grad_norm, kept, np.where(same, 1.0, cosine), changed, update_norm], axis=-1)
