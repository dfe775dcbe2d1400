"""What one step takes besides time: memory and, on CUDA, kernels and waits for the device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

# of the host for the device
WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
STEP = "clipbench step"


@dataclass(frozen=True)
class Footprint:
    """The peak memory of one step in bytes; its kernels, and its waits of the host for the
    device, None on the CPU.
    """

    peak_bytes: int
    kernels: int | None = None
    synchronisations: int | None = None


def footprint(once: Callable[[], object], held: Iterable[Tensor], device: str) -> Footprint:
    """The footprint of one step; its peak is the bytes of ``held`` and the most that is
    allocated on top of them.
    """
    base = sum(tensor.numel() * tensor.element_size() for tensor in held)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        return Footprint(
            base + peak, *_on_device(_events(once, ProfilerActivity.CPU, ProfilerActivity.CUDA))
        )
    changes = [
        (event.start_ns(), event.nbytes())
        for event in _events(once, ProfilerActivity.CPU)
        if event.name() == "[memory]"
    ]
    level = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        level += change
        peak = max(peak, level)
    return Footprint(base + peak)


def _events(once: Callable[[], object], *activities: ProfilerActivity) -> list[Any]:
    """The events of one step in torch's profiler."""
    with (
        _silent(),
        torch.profiler.profile(
            activities=activities, profile_memory=len(activities) == 1
        ) as profile,
    ):
        with torch.profiler.record_function(STEP):
            once()
        if ProfilerActivity.CUDA in activities:
            torch.cuda.synchronize()
    return list(profile.profiler.kineto_results.events())


def _on_device(events: list[Any]) -> tuple[int, int]:
    """Kernels, and calls within the step in which the host waited for the device."""
    (step,) = [
        event for event in events if event.name() == STEP and event.device_type() == DeviceType.CPU
    ]
    # an annotation, such as torch's of an optimizer's step, has a time on the device and no kernel
    kernels = [
        event.name()
        for event in events
        if event.device_type() == DeviceType.CUDA
        and not event.is_user_annotation()
        and not event.name().startswith(("Memcpy", "Memset"))
    ]
    ends = step.start_ns() + step.duration_ns()
    waits = [
        event
        for event in events
        if event.name() in WAITS and step.start_ns() <= event.start_ns() <= ends
    ]
    return len(kernels), len(waits)


@contextmanager
def _silent() -> Iterator[None]:
    """The process's own stderr closed for a moment: the profiler's C++ code writes lines there
    that no setting turns off.
    """
    kept, void = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(void, 2)
        with warnings.catch_warnings():
            # torch 2.11 says so of every profile
            warnings.filterwarnings("ignore", message="(Warning: )?Profiler clears events")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(void)
