"""A component of a cell, from the settings that a study gives it, with what is wrong about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clipbench import registry
from clipbench.cell import Part
from clipbench.errors import UsageError
from clipbench.vocabulary import (
    DEFAULTS,
    GRADIENT,
    KEPT,
    OF_PILOT,
    ON,
    RANK,
    RANKS,
    SHARD,
    UPDATE,
    words_of,
)

PROCESSES = (RANK, SHARD)  # what a clip is applied to on several processes
FEWEST_RANKS = 2


def part(kind: registry.Kind, cls: Any, settings: Mapping[str, Any], where: str) -> Part:
    """One component with validated settings; words of the study among them stay as the study
    wrote them.
    """
    threshold = registry.threshold_field(cls) if kind == "clip" else None
    words = {name: value for name, value in settings.items() if name in KEPT and name != threshold}
    others = {name: value for name, value in settings.items() if name not in words}
    of_pilot = next((word for word in OF_PILOT if word in words), None)
    on = words.get(ON, DEFAULTS[ON])
    _refuse_ranks(words, on, where)
    if on == GRADIENT:
        words.pop(ON, None)
    elif threshold is None:
        raise UsageError(
            f'{where}: "{cls.name}" changes nothing, so `on = "{on}"` would; leave it out.'
        )
    elif of_pilot is not None and on not in PROCESSES:
        raise UsageError(
            f"{where}: `{of_pilot}` is a {OF_PILOT[of_pilot]} of the size of a batch's gradient; "
            f'with `on = "{on}"` give `{threshold}`.'
        )
    elif on != UPDATE and hasattr(cls, "init"):
        raise UsageError(
            f'{where}: "{cls.name}" remembers from step to step, which with `on = "{on}"` it '
            f"cannot."
        )
    if of_pilot is None:
        return Part(
            cls.name,
            cls.version,
            {**registry.validated(cls, others, where, _beside(kind, cls, threshold)), **words},
            threshold,
        )
    if threshold is None or threshold in settings:
        raise UsageError(f"{where}: give `{of_pilot}` or `{threshold}`, not both.")
    clean = registry.validated(
        cls, {**others, threshold: 1.0}, where, _beside(kind, cls, threshold)
    )
    clean.pop(threshold, None)
    return Part(
        cls.name, cls.version, {**clean, **words, of_pilot: float(words[of_pilot])}, threshold
    )


def _refuse_ranks(words: dict[str, Any], on: str, where: str) -> None:
    """Refuse a number of processes that means nothing, or the lack of one; leave out the default.

    :raises UsageError: ``ranks`` and ``on`` do not fit together.
    """
    ranks = words.get(RANKS, DEFAULTS[RANKS])
    if on in PROCESSES and ranks < FEWEST_RANKS:
        raise UsageError(
            f'{where}: `on = "{on}"` is for several processes; give `ranks` as well, such as '
            f"ranks = [2, 4]."
        )
    if on not in PROCESSES and ranks != DEFAULTS[RANKS]:
        raise UsageError(
            f'{where}: `ranks` is for `on = "rank"` and `on = "shard"`; clipped as it should be, '
            f"the gradient is the same on any number of processes."
        )
    if ranks == DEFAULTS[RANKS]:
        words.pop(RANKS, None)


def _beside(kind: registry.Kind, cls: Any, threshold: str | None) -> list[str]:
    """The words of a study that may stand beside a component's settings: those of the pilot if a
    clip has a size, and what a clip is applied to if it has a threshold.
    """
    unfit = {
        *(OF_PILOT if not hasattr(cls, "size") or threshold is None else ()),
        *((ON, RANKS) if threshold is None else ()),
    }
    return [name for name in words_of(kind) if name not in {"name", "torch", threshold, *unfit}]


def refuse_unfit(cls: Any, words: Iterable[str], where: str) -> None:
    """Refuse words that give a threshold in the pilot's terms to a clip that cannot have it so.

    :raises UsageError: the clip has no size; or two such words stand in one table.
    """
    given = [word for word in OF_PILOT if word in words and word != registry.threshold_field(cls)]
    for word in given:
        if not hasattr(cls, "size"):
            raise UsageError(
                f'{where}: "{cls.name}" has no size that `{word}` could be a {OF_PILOT[word]} of; '
                f"give its setting a number."
            )
    if len(given) > 1:
        raise UsageError(
            f"{where}: give `relative` or `percentile`; for both make two tables of the clip."
        )
