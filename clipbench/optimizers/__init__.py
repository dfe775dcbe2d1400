"""Optimizers: the packaged rules, and the objects that the loop steps for them and for
user-defined ones.
"""

from clipbench.optimizers.loop import (
    Rule,
    TorchComponent,
    TorchOptimizer,
    torch_class,
    torch_optimizer,
    validate_torch,
)
from clipbench.optimizers.rules import SGD, Adam, AdamW, Momentum, Nesterov, RMSprop

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Momentum",
    "Nesterov",
    "RMSprop",
    "Rule",
    "TorchComponent",
    "TorchOptimizer",
    "torch_class",
    "torch_optimizer",
    "validate_torch",
]
