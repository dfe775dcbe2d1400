"""Handlers for Ignite's engines, and so for MONAI's: ``Watch(...).attach(trainer)``, and a clip
that stands in the right place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from clipbench.errors import UsageError
from clipbench.recording import watching


class Watch:
    """Watches a trainer from its start to its end; the arguments are those of `clipbench.watch`."""

    def __init__(
        self,
        model: nn.Module | None,
        optimizer: Optimizer,
        out: Path | str = watching.OUT,
        **options: Any,
    ) -> None:
        self._watch = watching.Watch(model, optimizer, out, **options)

    def attach(self, engine: Engine) -> None:
        """Begin and end with the engine's run; MONAI calls it of ``train_handlers``."""
        engine.add_event_handler(Events.STARTED, lambda: self._watch.start())  # noqa: PLW0108 - Ignite would look at its arguments
        engine.add_event_handler(Events.COMPLETED, lambda: self._watch.stop())  # noqa: PLW0108
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._stop)

    def _stop(self, _: Engine, error: Exception) -> None:
        self._watch.stop()
        raise error


class Clip:
    """Clips the gradient of each update right before its step, when it is whole and no longer
    scaled: under accumulation once an update, and under AMP in true units. MONAI's
    ``BACKWARD_COMPLETED`` gives neither; Ignite has no event there.

    :param optimizer: whose step is clipped.
    :param max_norm: the largest norm of the whole gradient; or
    :param max_value: the largest size of an element.
    :raises UsageError: not exactly one of both is given, or it is not above zero.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_norm: float | None = None,
        max_value: float | None = None,
    ) -> None:
        given = [one for one in (max_norm, max_value) if one is not None]
        if len(given) != 1 or not given[0] > 0:
            raise UsageError("Clip: give either max_norm or max_value, and one above zero.")
        self._optimizer, self._max_norm, self._max_value = optimizer, max_norm, max_value
        self._remove: Any = None

    def attach(self, engine: Engine) -> None:
        """Clip from the start of the engine's run to its end."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.COMPLETED, self._end)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._raised)

    def _begin(self) -> None:
        self._end()
        self._remove = self._optimizer.register_step_pre_hook(self._clip).remove

    def _end(self) -> None:
        if self._remove is not None:
            self._remove()
            self._remove = None

    def _raised(self, _: Engine, error: Exception) -> None:
        self._end()
        raise error

    def _clip(self, optimizer: Optimizer, *_: Any) -> None:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        # A fused optimizer divides by the scale in its kernel, after this.
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)
        factor = 1.0 if scale is None else float(scale)
        if self._max_norm is not None:
            clip_grad_norm_(params, self._max_norm * factor)
        elif self._max_value is not None:
            clip_grad_value_(params, self._max_value * factor)
