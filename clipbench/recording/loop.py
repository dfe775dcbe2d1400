"""One optimizer's loop, as it is listened to: what its gradient was, what its clips did to it, and
where they stood.

Between steps nothing is copied, but in one step of `EVERY`, whose gradient is compared element by
element: by that a clip is found that is not torch's. If torch's norm clip is seen, not even that
is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from clipbench.recording import taps
from clipbench.recording.compared import Comparison
from clipbench.recording.gradients import SAFE, Gradients, Marks, Number
from clipbench.recording.gradients import norm as norm_of
from clipbench.recording.stepping import Stepping, tell_of_bug
from clipbench.recording.steps import Step, columns
from clipbench.recording.update import BY_HAND, Call, Sightings, Update, Words, own_code
from clipbench.schema import Sighting

EVERY = 20


class Loop(taps.Listener):
    """A listener to one optimizer.

    :param loss: what gives a step's loss; if None, what its backward passes began at.
    :param exact: whether every step is compared element by element.
    :param memory: bytes that comparisons may take.
    :param stepped: is called after each step.
    :param shows: whether it asks for what was measured of the last step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        loss: Callable[[], Any] | None,
        exact: bool,
        memory: int,
        stepped: Callable[[Loop], None],
        shows: bool = False,
    ) -> None:
        self.optimizer, self.sightings = optimizer, Sightings()
        # of clips, until a step of this optimizer: they may be another's, of the same parameters
        self._later = Sightings()
        self._own: dict[str, tuple[Sighting, str]] = {}  # kind of a clip by hand → what is said
        self.steps = 0
        self.clips: set[str] = set()
        """The kinds of clips that touched a gradient: norm, value, other."""
        self._loss, self._exact, self._memory, self._stepped = loss, exact, memory, stepped
        self._shows = shows
        self._pending: list[dict[str, Any]] = []
        self._by_hand = self._only_known = False
        self._hand_threshold: float | None = None
        self._order, self._norm_seconds = 2.0, 0.0
        self._open: Call | None = None
        self._next_scale: Tensor | None = None
        self._told, self._measured, self._present = 0, dict[str, Any](), frozenset[int]()
        self._ended: float | None = None
        self._marks: Marks = []
        self._adopt()
        self._begin()
        self.stepping = Stepping(optimizer, self._measure, self._record, self.failed)

    def taken(self) -> dict[str, np.ma.MaskedArray]:
        """The columns of the steps since the last call; waits for the device."""
        self._settle()
        pending, self._pending = self._pending, []
        table, skipped = columns([_step(one) for one in pending])
        if skipped:
            self._skipped("in a fused optimizer", skipped)
            self.steps -= skipped
        return table

    def _settle(self) -> None:
        """Ask for the rows of the steps that were compared since the last call."""
        whole, compared = self._comparison.whole, [one for one in self._pending if one["compared"]]
        for one, row in zip(compared, self._comparison.rows(), strict=True):
            one["compared"], one["exact"] = False, row if whole else None

    @property
    def waiting(self) -> int:
        """How many steps have not been taken yet."""
        return len(self._pending)

    @property
    def last(self) -> Step:
        """What was measured of the last step."""
        return _step(self._pending[-1])

    # -------------------------------------------------------------------------------- what is heard

    def backward_begins(self) -> None:
        self.stepping.backward_begins()
        marks = self._before = self.gradients.marks()
        update = self._update
        if not update.backwards:
            self._look_after_step(marks)
        elif not any(marks):
            self._drop()
        elif self._is_altered():
            if self._is_zero():
                self._drop()
            elif not update.calls:
                self._by_hand = True
                self._see(Sighting.CLIP_IN_ACCUMULATION, BY_HAND)

    def zero_begins(self) -> None:
        if not self._update.backwards:
            self._look_after_step(self.gradients.marks())

    def backward_ends(self, loss: Tensor | None) -> None:
        scale, self._next_scale = self._next_scale, None
        marks = self.gradients.marks()
        if marks == self._before:  # it was about other parameters
            return
        update, self._marks = self._update, marks
        update.backwards += 1
        update.scale = scale
        if loss is not None:
            true = loss if scale is None else loss / scale
            # its owner may write into it
            update.losses.append(true.clone() if self.gradients.waits else float(true))
        self._keep_raw()

    def scaled(self, scale: Tensor) -> None:
        self._next_scale = scale

    def unscale_begins(self, optimizer: object) -> None:
        if self._is_mine(optimizer) and self._update.scale is not None and self._is_altered():
            self._by_hand = self._update.by_hand = True
            self.clips.add(taps.OTHER)
            self._see(*own_code(taps.OTHER))
            self._see(Sighting.CLIP_ON_SCALED, BY_HAND)

    def unscale_ends(self, optimizer: object) -> None:
        update = self._update
        if not self._is_mine(optimizer) or update.scale is None:
            return
        self._marks = self.gradients.marks()
        if update.calls or update.by_hand:
            update.raw_scale, self._comparing = update.scale, False
        else:
            self._keep_raw()
        update.scale = None

    def scaler_step_ends(self, optimizer: object) -> None:
        if self._is_mine(optimizer) and self._update.backwards:  # or it would have begun anew
            self._skipped("by GradScaler")
            self._begin()

    def norm_taken(self, order: float, seconds: float) -> None:
        self._order, self._norm_seconds = order, seconds

    def norm_clip_begins(self, params: list[Tensor], threshold: float, norm: Tensor) -> bool:
        mine = self.gradients.ours(params)
        if mine:
            self._clip_begins(taps.NORM, mine, threshold, norm if self._order == 2 else None)
        return bool(mine)

    def clip_missed(self, threshold: float, tensors: int) -> None:
        whose = f"{tensors} tensors of no watched optimizer" if tensors else "no parameter at all"
        words = Words(taps.NORM, threshold, taps.caller())
        self._later.see(Sighting.CLIP_MISSED, f"{words}, with {whose}", self.steps)

    def value_clip_begins(self, grads: list[Tensor], threshold: float) -> None:
        handed = set(map(id, grads))
        mine = frozenset(id(one) for one in self.gradients.params if id(one.grad) in handed)
        if mine:
            self._order, self._norm_seconds = 2.0, 0.0
            self._clip_begins(taps.VALUE, mine, threshold, None)

    def clip_ends(self, seconds: float) -> None:
        call, self._open = self._open, None
        if call is None:
            return
        update = self._update
        update.clip_seconds = (update.clip_seconds or 0.0) + seconds + self._norm_seconds
        self._order, self._norm_seconds = 2.0, 0.0
        self._marks = self.gradients.marks()
        if update.backwards:
            update.calls.append(call)
        else:
            self._comparison.forget_step()

    # --------------------------------------------------------------------------------- what is done

    def _adopt(self) -> None:
        """Take the optimizer's parameters as they are now."""
        if self._pending:
            self._settle()
        self._held = sum(len(group["params"]) for group in self.optimizer.param_groups)
        self.gradients = Gradients(self.optimizer)
        self._comparison = Comparison(self.gradients, self._memory)
        self._marks = self.gradients.marks()
        self._before = self._marks

    def _begin(self) -> None:
        """Begin the next update."""
        self._update = Update()
        sampled = self.steps % EVERY == 0 and not self._only_known
        self._comparing = self._exact or sampled

    def _keep_raw(self) -> None:
        self._update.raw = self.gradients.norm() if self._by_hand else None
        if self._comparing:
            self._comparison.raw()

    def _clip_begins(
        self, kind: str, mine: frozenset[int], threshold: float, norm: Tensor | None
    ) -> None:
        update = self._update
        call = Call(
            kind,
            threshold,
            mine,
            update.backwards,
            self._order,
            # what clips inside of a step knows the scale that the step will undo
            update.scale is not None and not self.stepping.inside,
            taps.caller(),
        )
        self._open = call
        self._later.see(Sighting.CLIP, call.words, self.steps)
        if not update.backwards:
            zero = self._is_zero()
            kind = Sighting.CLIP_BEFORE_BACKWARD if zero else Sighting.CLIP_AFTER_STEP
            self._later.see(kind, call.words, self.steps - (not zero))
            return
        if not update.calls and self._is_altered():
            self._prepared()
        if update.raw is None and (marks := self.gradients.marks()) == self._marks:
            alone = mine == self.gradients.with_gradient(marks)
            update.raw = self._number(norm) if norm is not None and alone else self.gradients.norm()

    def _prepared(self) -> None:
        """Take the gradient as the raw one that the loop's own code made before a clip of torch,
        such as a mean over micro-batches.
        """
        self._marks, self._update.raw = self.gradients.marks(), None
        if self._comparing:
            self._comparison.raw()

    def _drop(self) -> None:
        """Begin anew: the gradient was dropped before any step."""
        self._see(Sighting.DROPPED, "")
        self._begin()

    def _number(self, norm: Tensor) -> Number:
        """The norm that torch's clip took of exactly these gradients, as `Gradients.norm` gives
        it.
        """
        if self.gradients.waits:
            largest = norm_of(self.gradients.present(), True, math.inf)
            return norm + 0 * largest
        value = float(norm)
        return value if SAFE[0] < value < SAFE[1] else self.gradients.norm()

    def failed(self, error: Exception) -> None:
        """Go on without comparisons if memory is short; else tell of our bug, and stop."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            self._memory, self._measured = 0, {}
            self._adopt()
            self._begin()
            return
        self.stepping.active = False
        taps.leave(self)
        tell_of_bug(error)

    def _measure(self) -> None:
        """Measure the gradient that the optimizer is about to use."""
        if sum(len(group["params"]) for group in self.optimizer.param_groups) != self._held:
            self._adopt()  # a group was added
            self._begin()
        update, gradients = self._update, self.gradients
        altered = update.by_hand or (update.backwards > 0 and gradients.marks() != self._marks)
        if self._comparing and update.backwards:
            self._comparison.clipped()
            altered = self._is_by_hand(altered)
        self._by_hand = self._by_hand or altered
        self._told = len(update.calls)
        self._look(altered)

    def _look(self, by_hand: bool) -> None:
        """What norms tell of the gradient that the optimizer uses.

        :param by_hand: whether anybody but torch's clips changed it.
        """
        update, gradients = self._update, self.gradients
        present, last = gradients.with_gradient(gradients.marks()), update.last
        known = None if by_hand else update.known(present)
        self._only_known = known is not None
        # one that wrote through `.data` is seen by the norms alone
        raw, clip = update.raw, self._by_hand or bool(last)
        # the comparison measures it as well, and is asked later
        later = self._comparing and self._comparison.whole and not self._shows
        if raw is None and not clip and not later:
            raw = gradients.norm()
        self.clips |= {call.kind for call in last}
        threshold = last[-1].threshold if last else self._hand_threshold if by_hand else None
        self._present = present
        self._measured = {
            "raw": raw,
            "clipped": None if known else raw if not clip else gradients.norm(),
            "clip": clip,
            "known": known is not None,
            "threshold": threshold,
            "accumulated": update.backwards,
            "raw_scale": update.raw_scale,
            "scale": getattr(self.optimizer, "grad_scale", update.scale),
            "skipped": getattr(self.optimizer, "found_inf", 0.0),
        }

    def _is_by_hand(self, altered: bool) -> bool:
        """Whether the comparison shows that anybody but torch's clips changed the gradient."""
        if self._exact and (self.gradients.waits or self.steps % EVERY):
            return altered
        calls = self._update.last
        what = None if calls and not altered else self._comparison.what_clipped()
        if what is None or (calls and what[0] == calls[-1].kind):
            return False
        kind, self._hand_threshold = what
        self.clips.add(kind)
        self._see(*self._own.setdefault(kind, own_code(*what)))
        return True

    def _record(self) -> None:
        """Note the step that was taken."""
        update = self._update
        if len(update.calls) > self._told or not self._measured:  # a clip inside of the step
            self._comparing = False
            self._look(by_hand=False)
        compared = self._comparing and update.backwards > 0
        if compared:
            self._comparison.step(self.steps % EVERY == 0)
        began, self._ended = self._ended, perf_counter()
        self._pending.append(
            {
                **self._measured,
                "loss": self._loss_of_step(),
                "lr": self._lr(),
                "seconds": None if began is None else self._ended - began,
                "clip_seconds": update.clip_seconds,
                "compared": compared and self._comparison.any,
                "exact": None,
            }
        )
        self.sightings.take(self._later)
        if not self._present:
            self._see(Sighting.NO_GRADIENT, "")
        for kind, detail in dict.fromkeys(update.wrong(self._present)):
            self._see(kind, detail)
        self.steps += 1
        self._measured = {}
        self._marks = self.gradients.marks()
        self._begin()
        self._stepped(self)

    # ---------------------------------------------------------------------------------------- asked

    def _loss_of_step(self) -> Number | None:
        losses = self._update.losses
        if self._loss is not None:
            given = self._loss()
            return given.detach().clone() if isinstance(given, Tensor) else float(given)
        return sum(losses[1:], losses[0]) if losses else None

    def _lr(self) -> Number:
        lr = self.optimizer.param_groups[0].get("lr", math.nan)
        return lr.clone() if isinstance(lr, Tensor) else float(lr)

    def _is_mine(self, optimizer: object) -> bool:
        return bare(optimizer) is self.optimizer

    def _is_altered(self) -> bool:
        """Whether the gradient is not what the last backward pass left, for all that is known of
        that.
        """
        if self.gradients.marks() != self._marks:
            return True
        if self._comparing and not self._update.calls:
            return self._comparison.altered_since_raw()
        if self._by_hand and not self._update.calls and not self.gradients.waits:
            return self._update.raw is not None and bool(self.gradients.norm() != self._update.raw)
        return False

    def _look_after_step(self, marks: Marks) -> None:
        """Whether the gradient that the last step left was changed by hand since."""
        if not self.steps or not any(marks):
            return
        altered = self._comparison.altered_since_step()
        if altered or (marks != self._marks and not self._is_zero()):
            self.sightings.see(Sighting.CLIP_AFTER_STEP, BY_HAND, self.steps - 1)
        self._marks = marks

    def _is_zero(self) -> bool:
        """Whether no gradient is there, or all are zero."""
        present = self.gradients.present()
        return not present or not any(bool(grad.any()) for grad in present)

    def _see(self, kind: Sighting, detail: Hashable) -> None:
        self.sightings.see(kind, detail, self.steps)

    def _skipped(self, detail: str, times: int = 1) -> None:
        self.sightings.see(Sighting.SKIPPED_STEP, detail, self.steps, times)


def _step(noted: Mapping[str, Any]) -> Step:
    return Step(**{name: value for name, value in noted.items() if name != "compared"})


def bare(optimizer: Any) -> Any:
    """The optimizer of torch inside of what a library wraps around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer
