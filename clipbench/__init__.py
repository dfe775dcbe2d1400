"""clipbench: what gradient clipping does, compared with another optimizer or another learning
rate.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipbench import fast, metrics, trees
    from clipbench.errors import UsageError
    from clipbench.loading import Results, load
    from clipbench.recording import watch
    from clipbench.registry import (
        Count,
        Decay,
        Finite,
        NonNegative,
        Percent,
        Positive,
        Unit,
        clip,
        optimizer,
        workload,
    )
    from clipbench.running import run

__version__ = "0.1.0"
__all__ = [
    "Count",
    "Decay",
    "Finite",
    "NonNegative",
    "Percent",
    "Positive",
    "Results",
    "Unit",
    "UsageError",
    "clip",
    "fast",
    "load",
    "metrics",
    "optimizer",
    "run",
    "trees",
    "watch",
    "workload",
]

_HOMES = {
    "UsageError": "errors",
    "Results": "loading",
    "load": "loading",
    "run": "running",
    "watch": "recording",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that ``clipbench --help`` does
    not wait for torch.
    """
    if name in ("fast", "metrics", "trees"):
        return import_module(f"clipbench.{name}")
    if name in __all__:
        return getattr(import_module(f"clipbench.{_HOMES.get(name, 'registry')}"), name)
    raise AttributeError(f"module 'clipbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
