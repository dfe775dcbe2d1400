"""Where torch is tapped while a training loop is watched: the functions that stand between a
backward pass and a step.

A tap calls what it stands for with the same arguments, and tells the listeners before and after. It
is set when the first listener comes and taken off when the last one goes. It looks functions up
where torch itself does, so that it does not matter how a loop imported them. Nothing here knows
what is recorded.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad

NORM, VALUE, OTHER = "norm", "value", "other"  # kinds of clips
QUIET = ("torch", "clipbench", "contextlib", "functools")  # packages that only hand a call on
DEEP = 24  # frames that are looked through for the line that asked for a clip


@dataclass(frozen=True)
class Caller:
    """The line that called a clip."""

    file: str
    """Its last part alone, ``train.py``: a record names no folder of anybody's."""
    line: int
    packages: tuple[str, ...]
    """The packages through which the call went, the nearest first."""

    def __str__(self) -> str:
        via = f" through {', '.join(self.packages)}" if self.packages else ""
        return f"{self.file}:{self.line}{via}"


class Listener:
    """Whoever is told what a loop does. Tensors are the loop's own, and are not to be changed."""

    def failed(self, error: Exception) -> None:
        """What it was told of made it raise."""

    def backward_begins(self) -> None:
        """Nothing is done of it here."""

    def backward_ends(self, loss: Tensor | None) -> None:
        """All gradients are there, those of other processes as well.

        :param loss: what was differentiated; None if it was no scalar.
        """

    def zero_begins(self) -> None:
        """Somebody is about to drop gradients, or to make them zero."""

    def scaled(self, scale: Tensor) -> None:
        """GradScaler multiplied what the next backward pass begins at."""

    def unscale_begins(self, optimizer: object) -> None:
        """Nothing is done of it here."""

    def unscale_ends(self, optimizer: object) -> None:
        """Nothing is done of it here."""

    def scaler_step_ends(self, optimizer: object) -> None:
        """GradScaler stepped, or skipped a step."""

    def norm_taken(self, order: float, seconds: float) -> None:
        """torch took the norm of some gradients, as its norm clip does first."""

    def norm_clip_begins(self, params: list[Tensor], threshold: float, norm: Tensor) -> bool:
        """Whether any of the parameters is of interest."""
        del params, threshold, norm
        return False

    def clip_missed(self, threshold: float, tensors: int) -> None:
        """A norm clip was called with so many tensors, of which none is of interest to anybody."""

    def value_clip_begins(self, grads: list[Tensor], threshold: float) -> None:
        """Nothing is done of it here."""

    def clip_ends(self, seconds: float) -> None:
        """The clip that began last, if one did, has changed the gradients."""


_LISTENERS: list[Listener] = []
_SET: list[tuple[Any, str, Any, Any]] = []  # where, name, torch's own, the tap
_HALF = [0.0]  # seconds of the first half of a value clip
_DEPTH = [0]  # of backward passes inside each other, as checkpoints of activations make them


def listen(listener: Listener) -> None:
    """Tell ``listener`` from now on."""
    if not _LISTENERS:
        _set()
    if listener not in _LISTENERS:
        _LISTENERS.append(listener)


def leave(listener: Listener) -> None:
    """Tell ``listener`` nothing more; torch is as it was if nobody else listens."""
    if listener in _LISTENERS:
        _LISTENERS.remove(listener)
    if not _LISTENERS:
        _take_off()


def _set() -> None:
    scaler = torch.amp.GradScaler
    for where, name, around in (
        (torch.autograd, "backward", _backward),
        (torch.optim.Optimizer, "zero_grad", _zero),
        (torch.nn.Module, "zero_grad", _zero),
        (clip_grad, "_get_total_norm", _total_norm),
        (clip_grad, "_clip_grads_with_norm_", _norm_clip),
        (torch, "_foreach_clamp_min_", _clamp_min),
        (torch, "_foreach_clamp_max_", _clamp_max),
        (scaler, "scale", _scale),
        (scaler, "unscale_", _unscale),
        (scaler, "step", _scaler_step),
    ):
        # private names may go: then a clip is seen by what it does to a copy of the gradient
        if (own := getattr(where, name, None)) is not None:
            tap = _tap(own, around)
            setattr(where, name, tap)
            _SET.append((where, name, own, tap))


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, into which `torch.compile` does not look if a loop compiles what calls it.

    It does what `torch.compiler.disable` does, which would import the compiler: 2 s of every
    training.
    """
    frames = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)  # noqa: SLF001
    if frames is None or not hasattr(frames, "set_code_exec_strategy"):
        return function

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # noqa: SLF001
    skip = frames._FrameAction.SKIP  # noqa: SLF001
    frames.set_code_exec_strategy(call.__code__, frames._FrameExecStrategy(skip, skip))  # noqa: SLF001
    return call


def _tap(own: Callable[..., Any], around: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def tap(*args: Any, **kwargs: Any) -> Any:
        # one that somebody wrapped while it was set stays behind, and hands calls on
        return around(own, *args, **kwargs) if _LISTENERS else own(*args, **kwargs)

    return tap


def _take_off() -> None:
    for where, name, own, tap in reversed(_SET):
        if getattr(where, name) is tap:
            setattr(where, name, own)
    _SET.clear()
    _DEPTH[0] = 0


def _forget() -> None:
    """In a forked process nobody listens: what it trains is not what its parent watches."""
    _LISTENERS.clear()
    _take_off()


os.register_at_fork(after_in_child=_forget)


@untraced
def _tell(event: str, *about: Any) -> bool:
    """Whether any listener says so."""
    said = False
    for listener in tuple(_LISTENERS):
        try:
            said |= bool(getattr(listener, event)(*about))
        except Exception as error:  # noqa: BLE001 - it must not end somebody's training
            listener.failed(error)
    return said


# ------------------------------------------------------------------------------------- around torch


def _backward(own: Callable[..., Any], tensors: Any, *args: Any, **kwargs: Any) -> Any:
    if _DEPTH[0]:
        return own(tensors, *args, **kwargs)
    _tell("backward_begins")
    _DEPTH[0] += 1
    try:
        result = own(tensors, *args, **kwargs)
    finally:
        _DEPTH[0] -= 1
    roots = [tensors] if isinstance(tensors, Tensor) else [*tensors]
    scalar = len(roots) == 1 and roots[0].numel() == 1
    _tell("backward_ends", roots[0].detach() if scalar else None)
    return result


def _zero(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    _tell("zero_begins")
    return own(*args, **kwargs)


def _total_norm(
    own: Callable[..., Any], tensors: Any, norm_type: float = 2.0, *args: Any, **kwargs: Any
) -> Any:
    result, seconds = _timed(own, tensors, norm_type, *args, **kwargs)
    _tell("norm_taken", float(norm_type), seconds)
    return result


def _norm_clip(
    own: Callable[..., Any],
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    total_norm: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not _tell("norm_clip_begins", params, float(max_norm), total_norm.detach()):
        _tell("clip_missed", float(max_norm), len(params))
    result, seconds = _timed(own, params, max_norm, total_norm, *args, **kwargs)
    _tell("clip_ends", seconds)
    return result


def _clamp_min(own: Callable[..., Any], tensors: Any, least: Any, *args: Any, **kwargs: Any) -> Any:
    """The first half of torch's value clip, which has no function of its own to be tapped."""
    if isinstance(least, float | int) and not isinstance(tensors, Tensor):
        _tell("value_clip_begins", list(tensors), -float(least))
    result, _HALF[0] = _timed(own, tensors, least, *args, **kwargs)
    return result


def _clamp_max(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    result, seconds = _timed(own, *args, **kwargs)
    _tell("clip_ends", _HALF[0] + seconds)
    return result


def _timed(own: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    began = perf_counter()
    return own(*args, **kwargs), perf_counter() - began


def _scale(own: Callable[..., Any], scaler: Any, outputs: Any) -> Any:
    result = own(scaler, outputs)
    if scaler.is_enabled():
        _tell("scaled", scaler._get_scale_async())  # noqa: SLF001 - the public one waits
    return result


def _unscale(own: Callable[..., Any], scaler: Any, optimizer: Any) -> Any:
    if not scaler.is_enabled():
        return own(scaler, optimizer)
    _tell("unscale_begins", optimizer)
    result = own(scaler, optimizer)
    _tell("unscale_ends", optimizer)
    return result


def _scaler_step(
    own: Callable[..., Any], scaler: Any, optimizer: Any, *args: Any, **kwargs: Any
) -> Any:
    result = own(scaler, optimizer, *args, **kwargs)
    if scaler.is_enabled():
        _tell("scaler_step_ends", optimizer)
    return result


# ------------------------------------------------------------------------------------------ callers


def caller() -> Caller:
    """The line that asked for the clip that is running: the first one outside of packages, else the
    first one outside of torch.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - `inspect` takes milliseconds
    while frame is not None and _package(frame) in QUIET:
        frame = frame.f_back
    if frame is None:
        return Caller("?", 0, ())
    place = frame.f_code, frame.f_lineno
    if place not in _CALLERS:
        _CALLERS[place] = _through(frame)
    return _CALLERS[place]


_CALLERS: dict[tuple[CodeType, int], Caller] = {}  # of the first frames outside of torch


def _through(nearest: FrameType) -> Caller:
    packages: list[str] = []
    frame: FrameType | None = nearest
    for _ in range(DEEP):
        if frame is None or not _is_installed(frame.f_code.co_filename):
            break
        if (package := _package(frame)) not in (*QUIET, *packages):
            packages.append(package)
        frame = frame.f_back
    shown = frame or nearest
    return Caller(Path(shown.f_code.co_filename).name, shown.f_lineno, tuple(packages))


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_installed(file: str) -> bool:
    parts = Path(file).parts
    return "site-packages" in parts or "dist-packages" in parts
