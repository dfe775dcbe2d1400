"""A Hugging Face script that says nothing of a clip: its Trainer clips at 1."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

STEPS, PLANTED = 24, {"at_default", "never_fired"}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(0.1 * x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def main(watch: Any = None) -> nn.Module:
    torch.manual_seed(0)
    model, inputs = Model(), torch.randn(256, 8)
    rows = [{"x": one, "labels": (one[0] > 0).long()} for one in inputs]
    arguments = transformers.TrainingArguments(
        "hf",
        max_steps=STEPS,
        per_device_train_batch_size=16,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=5,
    )
    callbacks = [watch] if watch else []
    transformers.Trainer(model, arguments, train_dataset=rows, callbacks=callbacks).train()
    return model


if __name__ == "__main__":
    main()
