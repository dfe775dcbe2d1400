"""What happened to one optimizer's gradient since its last step, and what that says of its
clips.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from clipbench.recording.gradients import Number
from clipbench.recording.taps import NORM, OTHER, Caller
from clipbench.schema import Sighting

BY_HAND = "by the loop's own code"


class Sightings:
    """What was seen, how often, and first when; ``str`` of its detail says what it was."""

    def __init__(self) -> None:
        self.seen: dict[tuple[Sighting, Hashable], list[int]] = {}

    def see(self, kind: Sighting, detail: Hashable, step: int, times: int = 1) -> None:
        self.seen.setdefault((kind, detail), [step, 0])[1] += times

    def take(self, other: Sightings) -> None:
        """See what another one saw, which forgets it."""
        for (kind, detail), (step, times) in other.seen.items():
            self.see(kind, detail, step, times)
        other.seen.clear()


class Words(NamedTuple):
    """What is said of a clip, in parts: it is said of every step, and read once."""

    kind: str
    threshold: float
    caller: Caller
    order: float = 2.0

    def __str__(self) -> str:
        order = f" of order {self.order:g}" if self.order != 2 else ""
        return f"{self.kind} clip{order} at {self.threshold:g}, called in {self.caller}"


class Call(NamedTuple):
    """A clip of torch that a loop called."""

    kind: str
    threshold: float
    params: frozenset[int]
    """Ids of the optimizer's parameters that it was called with."""
    backward: int
    """After how many backward passes of the update."""
    order: float
    """Of its norm."""
    scaled: bool
    """Whether the gradient was still multiplied by GradScaler's scale."""
    caller: Caller

    @property
    def words(self) -> Words:
        """What is said of it."""
        return Words(self.kind, self.threshold, self.caller, self.order)


@dataclass
class Update:
    """One update, from the step before it to its own."""

    backwards: int = 0
    losses: list[Number] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    raw: Number | None = None
    """The norm of the gradient before any clip; None if it was not taken."""
    scale: Tensor | None = None
    """What the gradient is multiplied by now; None if by nothing."""
    raw_scale: Tensor | None = None
    """What it was multiplied by when ``raw`` was taken, if that has been undone since."""
    by_hand: bool = False
    """Whether anybody but torch's clips changed the gradient before its scale was undone."""
    clip_seconds: float | None = None

    @property
    def last(self) -> list[Call]:
        """The clips of the whole gradient, after its last backward pass."""
        return [
            call
            for call in self.calls
            if call.backward == self.backwards and math.isfinite(call.threshold)
        ]

    def wrong(self, with_gradient: frozenset[int]) -> Iterator[tuple[Sighting, Hashable]]:
        """What is wrong with where its clips stood, each with the call that shows it.

        :param with_gradient: ids of the parameters that have a gradient.
        """
        for call in self.calls:
            if not math.isfinite(call.threshold):
                yield Sighting.CLIP_AT_INFINITY, call.words
            elif call.backward < self.backwards:
                yield Sighting.CLIP_IN_ACCUMULATION, call.words
            if call.scaled and math.isfinite(call.threshold):
                yield Sighting.CLIP_ON_SCALED, call.words
        last = self.last
        covered = frozenset[int]().union(*(call.params for call in last))
        if last and with_gradient - covered:
            left = len(with_gradient - covered)
            yield (
                Sighting.CLIP_ON_PART,
                f"{last[-1].words}; {left} of {len(with_gradient)} tensors left out",
            )
        for number, call in enumerate(last):
            twice = [other for other in last[:number] if other.params & call.params]
            if twice:
                yield Sighting.CLIP_TWICE, f"{twice[-1].words}; {call.words}"

    def known(self, with_gradient: frozenset[int]) -> Call | None:
        """The one norm clip of the whole gradient, whose effect follows from the norm; None if
        what was done is anything else.
        """
        last = self.last
        if len(last) != 1 or any(call.backward < self.backwards for call in self.calls):
            return None
        call = last[0]
        whole = call.params >= with_gradient
        return call if call.kind == NORM and call.order == 2 and whole else None


def own_code(kind: str, threshold: float | None = None) -> tuple[Sighting, str]:
    """What is said of a clip that is not torch's, or of whatever else changes a gradient."""
    at = "" if threshold is None else f" at {threshold:.3g}"
    if kind == OTHER:
        return Sighting.CHANGE, f"a change {BY_HAND}"
    return Sighting.CLIP, f"{kind} clip{at} {BY_HAND}"
