"""The steps of one optimizer: who looks is called right before an update and right after it.

A closure runs inside of a step, and a step may call another one: there is one update all the same.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from clipbench.recording import taps


class Stepping:
    """Hooks into an optimizer's steps. What is called may fail: the training goes on.

    :param before: is called when the gradient is there that the step will use.
    :param after: is called when the step was taken.
    :param failed: is called with what either of them raised.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        before: Callable[[], None],
        after: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.active = True
        """Whether anybody is called; hooks outlast that, for one of them may be calling."""
        self._before, self._after, self._failed = before, after, failed
        self._depth, self._closure = 0, False
        self._hooks = [
            optimizer.register_step_pre_hook(taps.untraced(self._pre)).remove,
            optimizer.register_step_post_hook(taps.untraced(self._post)).remove,
        ]

    @property
    def inside(self) -> bool:
        """Whether a step is under way."""
        return self._depth > 0

    def close(self) -> None:
        """Take the hooks off the optimizer; not to be called by one of them."""
        self.active = False
        while self._hooks:
            self._hooks.pop()()

    def backward_begins(self) -> None:
        """Forget a step that raised: no backward pass begins inside of one, but in a closure."""
        if not self._closure:
            self._depth = 0

    def _pre(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.active:
            return None
        at = next((at for at, one in enumerate(args[1:], 1) if callable(one)), None)
        closure = kwargs.get("closure") if at is None else args[at]
        self._depth += 1
        if closure is None:
            self._guarded(self._before)
            return None

        def measured() -> Any:  # its backward pass and its clip run inside of the step
            result = closure()
            self._guarded(self._before)
            return result

        self._closure = True
        if at is None:
            return args, {**kwargs, "closure": measured}
        return (*args[:at], measured, *args[at + 1 :]), kwargs

    def _post(self, *_: Any) -> None:
        self._depth -= 1
        if self.active and self._depth <= 0:  # else it is a step inside of a step
            self._depth, self._closure = 0, False
            self._guarded(self._after)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - somebody's training goes on, whatever it is
            self._failed(error)


def tell_of_bug(error: Exception) -> None:
    """Warn of a bug of ours that ended a watch, with its traceback."""
    told = "".join(traceback.format_exception(error))
    warnings.warn(
        f"clipbench watches this loop no longer, which goes on; please report this:\n{told}",
        stacklevel=2,
    )
