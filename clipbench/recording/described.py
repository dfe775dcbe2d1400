"""What is recorded of a watched loop beside its steps: its optimizer, its model's size, the
libraries that run it. It names no person, no path and no data.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from clipbench.recording.loop import Loop

TRAINERS = {
    **{name: name for name in ("lightning", "transformers", "accelerate", "monai", "deepspeed")},
    "pytorch_lightning": "pytorch-lightning",
    "ignite": "pytorch-ignite",
    "nnunetv2": "nnunetv2",
}
# by these settings optimizers of other packages clip by themselves
OWN_CLIP = ("max_grad_norm", "clip_threshold", "clip", "agc_clipping_value", "clip_lambda")


def described(model: nn.Module | None, loop: Loop) -> dict[str, Any]:
    """What a loop is, as its record's settings."""
    gradients, optimizer = loop.gradients, loop.optimizer
    trained = [] if model is None else [one for one in model.parameters() if one.requires_grad]
    return {
        "optimizer": type(optimizer).__name__,
        "groups": [_plain(group) for group in optimizer.param_groups],
        "model": None if model is None else type(model).__name__,
        "parameters": gradients.elements,
        "tensors": len(gradients.params),
        "hooked": sum(bool(one._backward_hooks) for one in gradients.params),  # noqa: SLF001
        "left_out": sum(id(one) not in gradients.ids for one in trained),
        "own_clip": {
            name: value
            for name, value in _plain(optimizer.defaults).items()
            if name in OWN_CLIP and value
        },
        "device": gradients.params[0].device.type if gradients.params else "cpu",
        "dtype": gradients.dtype,
        "threads": torch.get_num_threads(),
        "trainers": dict(_trainers()),
    }


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group of parameters that are numbers or words."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in group.items()
        if isinstance(value, bool | int | float | str)
        or (isinstance(value, tuple) and all(isinstance(one, int | float) for one in value))
    }


def _trainers() -> Any:
    """The training libraries that are loaded, and their versions."""
    for module, package in TRAINERS.items():
        if module in sys.modules:
            with suppress(importlib.metadata.PackageNotFoundError):
                yield package, importlib.metadata.version(package)
