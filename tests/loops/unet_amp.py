"""A segmentation script as many are: a small U-Net, AdamW and GradScaler; its clip runs before
`unscale_`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional

STEPS, PLANTED = 24, {"clip_on_scaled"}


def block(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(4, outside), nn.ReLU()
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = block(1, 8), block(8, 16), block(24, 8)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        down = self.down(images)
        middle = self.middle(functional.max_pool2d(down, 2))
        up = functional.interpolate(middle, scale_factor=2)
        return self.out(self.up(torch.cat([up, down], 1)))


def dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    chances = logits.sigmoid()
    shared = (chances * masks).sum((1, 2, 3))
    return (1 - (2 * shared + 1) / (chances.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)).mean()


def main(watch: Any = None) -> nn.Module:
    torch.manual_seed(0)
    model = UNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu")
    with watch(model, optimizer) if watch else nullcontext():
        for _ in range(STEPS):
            images = torch.randn(4, 1, 16, 16)
            masks = (images > 1).float()
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(images)
            loss = dice(logits.float(), masks)
            scaler.scale(loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    return model


if __name__ == "__main__":
    main()
