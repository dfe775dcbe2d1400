"""A language-model script as many are: a small recurrent network, accumulation over four
micro-batches, and a clip at every one of them.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

STEPS, PARTS, PLANTED = 24, 4, {"clip_in_accumulation"}


class Model(nn.Module):
    def __init__(self, words: int = 32, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, words)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.out(self.recurrent(self.words(text))[0])


def main(watch: Any = None) -> nn.Module:
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with watch(model, optimizer) if watch else nullcontext():
        for number in range(STEPS * PARTS):
            text = torch.randint(0, 32, (8, 12))
            logits = model(text[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
            (loss / PARTS).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            if (number + 1) % PARTS == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model


if __name__ == "__main__":
    main()
