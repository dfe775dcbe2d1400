"""The floor: the bytes that a clip and a step must at least move, and how fast this machine
moves memory.
"""

from __future__ import annotations

import time

import torch

from clipbench.throughput.turns import Blocks

# Optimizer → the number of tensors as large as the weights: weights, gradients and state. A step
# reads all of them, and writes all but the gradients.
HELD = {"sgd": 2, "momentum": 3, "nesterov": 3, "rmsprop": 3, "adam": 4, "adamw": 4}
# Clip → passes over the gradients besides the step's own: the step can cut each element as it reads
# it, a norm must be known first.
PASSES = {"none": 0, "value": 0, "norm": 1}


def held_bytes(optimizer: str, weights: int) -> int | None:
    """Bytes of weights, gradients and state, from the bytes of the weights; None for an
    optimizer that is not in `HELD`.
    """
    return HELD[optimizer] * weights if optimizer in HELD else None


def floor_bytes(optimizer: str, clip: str, weights: int) -> int | None:
    """Bytes that a clip and a step move at least; None if the tables above lack one of them.

    :param weights: bytes of all weights.

    >>> floor_bytes("momentum", "norm", 4 * 1000) / 1000  # float32: 24 a parameter
    24.0
    """
    if optimizer not in HELD or clip not in PASSES:
        return None
    return (2 * HELD[optimizer] - 1 + PASSES[clip]) * weights


class Reference:
    """Moves as much memory as an optimizer holds, to measure the rate: by ``add_`` on a CPU, by a
    copy on CUDA.

    :param held: bytes in all, which two tensors share.
    """

    def __init__(self, held: int, dtype: torch.dtype, device: str) -> None:
        self.first, self.second = (
            torch.zeros(max(1, held // (2 * dtype.itemsize)), dtype=dtype, device=device)
            for _ in range(2)
        )
        self.device = device

    @property
    def moved(self) -> int:
        """Bytes that a pass moves: a sum reads two tensors and writes one of them, a copy reads
        one and writes the other.
        """
        return (2 if self.device == "cuda" else 3) * self.first.numel() * self.first.element_size()

    def takes(self, moved: int, blocks: Blocks) -> list[float | None]:
        """Seconds that moving so many bytes takes at the rate of each of these blocks; None if a
        block is not valid.
        """
        seconds, valid = blocks.seconds.tolist(), blocks.valid.tolist()
        return [
            moved / self.moved * one / blocks.steps if fine else None
            for one, fine in zip(seconds, valid, strict=True)
        ]

    def block(self, steps: int) -> float:
        """Seconds for so many passes."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(steps):
                self.first.copy_(self.second)
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1e3
        begin = time.perf_counter()
        for _ in range(steps):
            self.first.add_(self.second)
        return time.perf_counter() - begin
