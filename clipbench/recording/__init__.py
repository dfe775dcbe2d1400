"""A training loop of somebody's own, recorded while it trains as if nobody looked.

It must not know how cells are run, and changes not one bit of the training.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipbench.recording.watching import Watch, watch

__all__ = ["Watch", "watch"]


def __getattr__(name: str) -> Any:
    """Import torch when the watch is first used: what prepares a command's processes needs none."""
    if name in __all__:
        from clipbench.recording import watching

        return getattr(watching, name)
    raise AttributeError(f"module 'clipbench.recording' has no attribute {name!r}")
