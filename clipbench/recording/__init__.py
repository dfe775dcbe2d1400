"""A training loop of somebody's own, recorded while it trains as if nobody looked.

It must not know how cells are run, and changes not one bit of the training.
"""

from clipbench.recording.watching import Watch, watch

__all__ = ["Watch", "watch"]
