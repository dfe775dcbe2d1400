"""The server of which the workers of this machine are forks, with torch loaded.

It takes seconds to load. It must not import torch itself: a command wakes it before it does.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

from clipbench import registry

# The first optimizer or trace of a process imports torch._dynamo: a second.
LOADED = ["torch._dynamo", "clipbench.execute", *registry.PACKAGED]


def server() -> ForkServerContext:
    """The way in which processes start that are forks of the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


def wake() -> None:
    """Let the server begin to load, and do not wait for it; one that is awake stays as it is."""
    server()
    with _interrupts_ignored():
        forkserver.ensure_running()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """What starts meanwhile ignores interrupts from its first moment: the server does it only after
    it has loaded, and would end before that with a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
