"""Clips: what happens to a gradient between the backward pass and the step. Read in order, `fixed`
and `running`: a survey.

A clip is ``update(grads, state, params) -> (grads, state)``, a pure function of trees ``{name:
tensor}``, whose first field is its threshold. A clip that remembers adds ``init(params) -> state``;
one without is handed ``{}``. What else a clip may add:

``clip_(params)``
    torch's own in-place path over the ``.grad`` of an iterable of parameters: a user's loop calls
    it, and throughput times it.
``size(grads)``
    the size of a raw gradient, a scalar; a relative threshold is a multiple of its median.
``lengthens = True``
    on a clip that may return a gradient longer than it was given; ``False`` by default.
``flat = True``
    on a clip that treats all elements alike, however they are divided into tensors.

Under ``torch.func.vmap`` a float setting is a tensor, one number a lane: nothing here branches on
one.
"""

from clipbench.clips.fixed import (
    EPSILON,
    Adaptive,
    BlockRMS,
    Layer,
    Norm,
    Normalised,
    Unclipped,
    Value,
)
from clipbench.clips.running import AdaGC, Quantile, ZScore

__all__ = [
    "EPSILON",
    "AdaGC",
    "Adaptive",
    "BlockRMS",
    "Layer",
    "Norm",
    "Normalised",
    "Quantile",
    "Unclipped",
    "Value",
    "ZScore",
]
