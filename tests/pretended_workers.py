"""Worker processes on a machine with two CUDA devices that are pretended."""

import contextlib
import time
from unittest import mock

import torch

from clipbench.conformance.pretended import pretended
from clipbench.execute import local
from clipbench.protocol import plans

COUNT = 2
SERVE, SERVE_ONCE = local.serve, local.serve_once


def serve(pipe, setting, stop):
    with pretended(COUNT) if setting.device == "cuda" else contextlib.nullcontext():
        SERVE(pipe, setting, stop)


def serve_once(pipe, setting, call):
    with pretended(COUNT) if setting.device == "cuda" else contextlib.nullcontext():
        SERVE_ONCE(pipe, setting, call)


@contextlib.contextmanager
def two_cards():
    """What is run inside finds two devices, and so do its worker processes."""
    seen = plans.seen
    seen.cache_clear()
    with (
        mock.patch.object(local, "serve", serve),
        mock.patch.object(local, "serve_once", serve_once),
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "device_count", return_value=COUNT),
    ):
        yield
    seen.cache_clear()


def where(seconds=0.0):
    """The device of a process, when it was at work there, and whether it counts in TF32."""
    begin = time.monotonic()
    short = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    index = torch.zeros(1, device="cuda").device.index
    time.sleep(seconds)
    return index, begin, time.monotonic(), short
