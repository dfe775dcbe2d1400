"""A MONAI script that accumulates, with a clip where MONAI sends its users: after each backward
pass.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import nn

STEPS, PLANTED = 12, {"clip_in_accumulation"}


class Clip:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(
            IterationEvents.BACKWARD_COMPLETED,
            lambda _: torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.1),
        )


def main(watch: Any = None) -> nn.Module:
    torch.manual_seed(0)
    model, inputs = (
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)),
        torch.randn(384, 8),
    )
    rows = [{"image": one, "label": (one[0] > 0).long()} for one in inputs]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=torch.utils.data.DataLoader(rows, 16),
        network=model,
        optimizer=optimizer,
        loss_function=nn.functional.cross_entropy,
        accumulation_steps=2,
        train_handlers=[*([watch(model, optimizer)] if watch else []), Clip(model)],
    ).run()
    return model


if __name__ == "__main__":
    main()
