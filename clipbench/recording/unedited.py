"""A training that nobody edited is watched: every optimizer that its process makes, from the first
backward pass on.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
import weakref
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from clipbench.errors import UsageError
from clipbench.recording import taps
from clipbench.recording.injected import ASKED
from clipbench.recording.watching import Watch


class _Newcomers(taps.Listener):
    """Starts to watch what was made, when the first gradient is asked for: optimizers that never
    step are made for many a reason.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._made: list[weakref.ref[Optimizer]] = []
        self._watch: Watch | None = None
        self._scale: Tensor | None = None  # of the gradient that is asked for next
        self._exit = os._exit
        os._exit = self._leave  # type: ignore[assignment]  # a script may end by it

    def meet(self, optimizer: Optimizer) -> None:
        if os.getpid() == self._process and not isinstance(optimizer, LBFGS):
            self._made.append(weakref.ref(optimizer))
            taps.listen(self)

    def scaled(self, scale: Tensor) -> None:
        self._scale = scale

    def backward_begins(self) -> None:
        taps.leave(self)
        scale, self._scale = self._scale, None
        made = [one for reference in self._made if (one := reference()) is not None]
        self._made.clear()
        try:
            if self._watch is None:
                self._watch = Watch(None, made, **json.loads(os.environ[ASKED])).start()
            else:
                self._watch.join(made)
            if scale is not None:
                self._watch.scaled(scale)
        except UsageError as error:
            warnings.warn(f"clipbench does not watch this training: {error}", stacklevel=2)

    def failed(self, error: Exception) -> None:
        taps.leave(self)
        warnings.warn(f"clipbench does not watch this training: {error!r}", stacklevel=2)

    def _leave(self, code: int) -> Any:
        if os.getpid() == self._process and self._watch is not None:
            self._watch.stop()
            sys.stdout.flush()
        self._exit(code)


_NEWCOMERS: list[_Newcomers] = []


def meet(optimizer: Optimizer) -> None:
    """Watch an optimizer that was just made."""
    if ASKED in os.environ:
        if not _NEWCOMERS:
            _NEWCOMERS.append(_Newcomers())
        _NEWCOMERS[0].meet(optimizer)
