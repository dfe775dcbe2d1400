"""The claims about what a clip does with its threshold: it clips at all, less if the threshold is
larger, both signs alike, and in the unit of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from clipbench import registry, trees
from clipbench.conformance import steps
from clipbench.conformance.findings import TOLERANCE, Doubt, Fault, distance, under
from clipbench.conformance.settings import candidates, examples, fits
from clipbench.trees import Tree

LATER = (1.0, 1e3, 0.3, 30.0, 1.0, 1e3)  # sizes of the gradients after those that fill a memory
UNIT = 8.0  # a power of two: a product with it is not rounded
ROOM = 1e-3  # relative: a guard against 0/0, such as torch's 1e-6, has a unit, and moves as much

Settings = Mapping[str, Any]


def clips_somewhere(cls: type[Any]) -> None:
    """At some threshold a gradient is changed, and not at every threshold alike."""
    name, gradients, changed = registry.threshold_field(cls), _gradients(), False
    thresholds = [{name: value} for value in candidates(cls, name)] if name else [{}]
    # counts, such as a warm-up's, at 1 as well: else it may last longer than what is tried
    for others in (*examples(cls), examples(cls)[0] | _counts_at_one(cls)):
        answers = [_after(cls, others | threshold) for threshold in thresholds]
        moved = any(_apart(result, gradients) > TOLERANCE for result in answers)
        if moved and len(answers) == 1:
            return
        if any(_apart(result, answers[0]) > TOLERANCE for result in answers[1:]):
            return
        changed |= moved
    if changed:
        raise Fault(f"gradients are changed alike whatever the threshold, {name}, is")
    tried = ", ".join(f"{next(iter(threshold.values()))}" for threshold in thresholds if name)
    raise Fault(
        "no gradient was changed" + (f" at any threshold: {name} = {tried}" if name else "")
    )


def larger_keeps_no_less(cls: type[Any]) -> str | None:
    """Of the same gradient a larger threshold keeps no less, first or after others; one that
    may lengthen may also keep less throughout.
    """
    falls, rises = list[str](), list[str]()
    for state, components in _side_by_side(cls):
        for size in (1.0, 1e3):
            grads = steps.tree("grads later", torch.float64, size)
            params = steps.tree("params", torch.float64)
            kept = [
                (value, float(trees.norm(steps.update(one, grads, steps.copy(state), params)[0])))
                for value, one in components
            ]
            for (low, before), (high, after) in pairwise(kept):
                said = (
                    f"a gradient of norm {float(trees.norm(grads)):.6g} leaves with {before:.6g} "
                    f"at threshold {low:g}, and with {after:.6g} at {high:g}"
                )
                if after < before * (1 - TOLERANCE):
                    falls.append(said)
                elif after > before * (1 + TOLERANCE):
                    rises.append(said)
    if falls and (rises or not getattr(cls, "lengthens", False)):
        raise Fault(falls[0])
    return "a larger one keeps less, as a clip that lengthens may" if falls else None


def signs_alike(cls: type[Any]) -> None:
    """Gradients with all signs turned come back as the same, turned."""
    for settings in examples(cls):
        with under(settings):
            turned = _times(-1.0, _gradients(cls, settings))
            results = _after(cls, settings, turned)
            wanted = _times(-1.0, _after(cls, settings))
            for grads, result, mirrored in zip(turned, results, wanted, strict=True):
                for name in grads:
                    if (apart := distance(result[name], mirrored[name])) > TOLERANCE:
                        raise Fault(
                            f"with all signs of a gradient turned, {name} comes back {apart:.2g} "
                            f"from the same turned: one sign is clipped otherwise than the other"
                        )


def units_kept(cls: type[Any]) -> str | None:
    """Gradients in another unit are clipped alike: 8 times as long, and those settings 8 times as
    large that have the gradient's unit, the threshold or another one or none, they come back 8
    times as long. One that may lengthen is not asked.

    :raises Fault: it holds with the threshold 64 times as large, so that this is compared with a
        square.
    :raises Doubt: it holds with none.
    """
    if getattr(cls, "lengthens", False):
        return "not asked of a clip that lengthens"
    tried = [
        (settings, results)
        for settings in examples(cls)
        if _apart(results := _after(cls, settings), _gradients(cls, settings)) > TOLERANCE
    ]
    threshold = str(registry.threshold_field(cls))
    if type(candidates(cls, threshold)[0]) not in (int, float):
        return f"not asked, for {threshold} is no number"
    others = [name for name in registry.lane_fields(cls) if name != threshold]
    scaled = [{threshold: UNIT}, {}] + [
        dict.fromkeys([*first, *some], UNIT)
        for count in range(1, len(others) + 1)
        for some in combinations(others, count)
        for first in ([], [threshold])
    ]
    scaled.append({threshold: _size_scale(cls)})
    if any(_scales(cls, tried, factors) for factors in scaled):
        return None
    if _scales(cls, tried, {threshold: UNIT**2}):
        raise Fault(
            f"gradients {UNIT:g} times as long keep the same share at {threshold} {UNIT**2:g} "
            f"times as large: it is compared with a square. Compare it with the norm, or add a "
            f"`size` that returns the square"
        )
    raise Doubt(
        f"gradients {UNIT:g} times as long are clipped otherwise, with {threshold} {UNIT:g} times "
        f"as large and with the same: is it compared with a number of another unit, or is there a "
        f"constant in the code? A threshold found on one model says nothing of another"
    )


# ------------------------------------------------------------------------------ what they look at


def _gradients(cls: type[Any] | None = None, settings: Settings | None = None) -> list[Tree]:
    """Gradients that fill a memory, and those after them; these alone, for a state that grows."""
    sizes = (*[1.0] * steps.WARM, *LATER)
    if cls and steps.grows(cls(**(settings or {})), steps.tree("params", torch.float32)):
        sizes = LATER
    return _drawn(sizes)


@lru_cache
def _drawn(sizes: tuple[float, ...]) -> list[Tree]:
    return [steps.tree(f"grads {step}", torch.float64, size) for step, size in enumerate(sizes)]


def _times(factor: float, gradients: list[Tree]) -> list[Tree]:
    """Each tree times a factor."""
    return [trees.scale(grads, factor) for grads in gradients]


def _after(cls: type[Any], settings: Settings, gradients: list[Tree] | None = None) -> list[Tree]:
    """What a clip makes of gradients, from a fresh state."""
    component, params = cls(**settings), steps.tree("params", torch.float64)
    state = steps.start(component, steps.copy(params))
    return steps.answers(component, state, gradients or _gradients(cls, settings), params)[0]


def _apart(left: list[Tree], right: list[Tree]) -> float:
    """The largest distance of two lists of trees; of what both have, if one is longer."""
    return max(
        distance(one[name], other[name])
        for one, other in zip(left, right, strict=False)
        for name in other
    )


def _counts_at_one(cls: type[Any]) -> dict[str, int]:
    """Every setting that is a whole number, but the threshold, at 1 if that fits."""
    return {
        name: 1
        for name, annotation in registry.fields(cls).items()
        if name != registry.threshold_field(cls)
        and all(type(value) is int for value in candidates(cls, name))
        and fits(1, annotation)
    }


def _side_by_side(cls: type[Any]) -> Iterator[tuple[Any, list[tuple[float, Any]]]]:
    """A state, and components that differ in their threshold alone, in ascending order: each state
    is fresh, or has seen some gradients.
    """
    name, first = registry.threshold_field(cls), examples(cls)[0]
    values = sorted(value for value in candidates(cls, str(name)) if type(value) in (int, float))
    components = [(value, cls(**{**first, str(name): value})) for value in values]
    params = steps.tree("params", torch.float64)
    fresh = [steps.start(one, steps.copy(params)) for _, one in components]
    if not fresh or any(steps.forms(one) != steps.forms(fresh[0]) for one in fresh):
        return  # each has a memory of its own form
    yield fresh[0], components
    component = cls(**first)
    if not steps.grows(component, steps.tree("params", torch.float32)):
        warm = _gradients()[: steps.WARM]
        yield steps.answers(component, steps.copy(fresh[0]), warm, params)[1], components


def _size_scale(cls: type[Any]) -> float:
    """By how much the clip's own size of a gradient grows if the gradient is `UNIT` times as long;
    `UNIT` if it has none, or none that is a number.
    """
    grads, component = steps.tree("grads", torch.float64), cls(**examples(cls)[0])
    if not hasattr(cls, "size"):
        return UNIT
    sizes = [component.size(one) for one in (grads, trees.scale(grads, UNIT))]
    if not all(isinstance(size, Tensor) and size.shape == () for size in sizes):
        return UNIT
    return float(sizes[1] / sizes[0])


def _scales(
    cls: type[Any],
    tried: list[tuple[dict[str, Any], list[Tree]]],
    factors: Mapping[str, float],
) -> bool:
    """Whether gradients `UNIT` times as long come back `UNIT` times as long, with some settings
    times their factor.
    """
    for settings, results in tried:
        larger = settings | {
            name: type(settings[name])(settings[name] * factor) for name, factor in factors.items()
        }
        if not all(
            fits(larger[name], registry.fields(cls)[name]) and math.isfinite(larger[name])
            for name in factors
        ):
            return False
        longer = _times(UNIT, _gradients(cls, settings))
        if _apart(_after(cls, larger, longer), _times(UNIT, results)) > ROOM:
            return False
    return True
