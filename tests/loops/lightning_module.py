"""A Lightning module that optimises by hand, as a generator's often does, and clips after the
step.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import nn

STEPS, PLANTED = 24, {"clip_after_step"}


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def training_step(self, batch: Any, _: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        optimizer.step()
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=1e-3)


def main(watch: Any = None) -> nn.Module:
    torch.manual_seed(0)
    module, inputs = Module(), torch.randn(STEPS * 16, 8)
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
    lightning.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[watch] if watch else [],
    ).fit(module, torch.utils.data.DataLoader(data, 16))
    return module


if __name__ == "__main__":
    main()
