"""Blocks side by side: contenders take turns in short blocks, in an order that is shuffled anew
every round.

So a machine's drift affects all of them alike, and ratios are taken within a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clipbench import trees

FEWEST_ROUNDS = 8  # however long a round takes: six are the fewest whose median has a 95 % interval


class Contender(Protocol):
    """Something that can be timed."""

    def block(self, steps: int) -> float:
        """Seconds for ``steps`` steps."""


@dataclass(frozen=True)
class Pace:
    """How long to time.

    :param rounds: blocks of each contender.
    :param seconds: of the quickest contender's block within a group, about.
    :param warm_up: steps before anything is timed.
    :param limit: seconds that all rounds together may take, about; beyond it there are fewer, down
        to `FEWEST_ROUNDS`.
    """

    rounds: int
    seconds: float
    warm_up: int
    limit: float = float("inf")


@dataclass(frozen=True)
class Blocks:
    """The blocks of one contender: seconds of every round, and the steps in each."""

    seconds: Tensor
    steps: int

    @property
    def valid(self) -> Tensor:
        """Whether each block is valid: not if it took more than twice the median, as then
        something else used the machine.
        """
        return self.seconds <= 2 * self.seconds.median()


def take_turns(groups: Sequence[Sequence[Contender]], pace: Pace) -> list[list[Blocks]]:
    """The blocks of every contender, group by group; all blocks of a group have the same number
    of steps.
    """
    everyone = [contender for group in groups for contender in group]
    for contender in everyone:
        contender.block(pace.warm_up)
    lengths, round_seconds = [], 0.0
    for group in groups:
        singles = [contender.block(3) / 3 for contender in group]
        length = max(1, round(pace.seconds / min(singles)))
        lengths += [length] * len(group)
        round_seconds += length * sum(singles)
    rounds = max(min(pace.rounds, FEWEST_ROUNDS), int(min(pace.rounds, pace.limit / round_seconds)))
    shuffle = trees.generator("throughput", 0, "order")
    seconds = torch.zeros(len(everyone), rounds, dtype=torch.float64)
    for number in range(rounds):
        for index in torch.randperm(len(everyone), generator=shuffle).tolist():
            seconds[index, number] = everyone[index].block(lengths[index])
    blocks = iter([Blocks(mine, length) for mine, length in zip(seconds, lengths, strict=True)])
    return [[next(blocks) for _ in group] for group in groups]
