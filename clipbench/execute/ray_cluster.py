"""The connection to a Ray cluster, or one that is started on this machine and ended after it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from clipbench.cores import cores
from clipbench.errors import UsageError
from clipbench.execute.offered import Request

CONNECTING = 3.0  # seconds an address may take to answer; Ray itself would try for minutes
STORE_BYTES = 2**28  # of a cluster that is started here: records are small, and soon fetched
# Ray takes 127.0.0.1 for the address that others reach this machine by
LOOPBACK = "127.0.0.2"
SHORT = 24  # letters: below a longer folder Ray's sockets have paths of more than 107


def last_line(error: BaseException) -> str:
    """The last line of what an exception says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


@contextmanager
def connected(address: str | None, request: Request) -> Iterator[None]:
    """Ray, connected; if it was not before, it is not after."""
    if ray.is_initialized():
        yield
        return
    with _signals_kept():
        folder = _start(address, request)
    try:
        yield
    finally:
        with _signals_kept():
            ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _start(address: str | None, request: Request) -> Path | None:
    """Connect to a cluster, or start one, whose folder this is."""
    quiet: dict[str, Any] = dict(log_to_driver=False, logging_level=logging.ERROR)
    if address:
        _reached(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError, exceptions.RayError) as error:
            raise UsageError(
                f"--executor-option address={address}: Ray cannot use this cluster "
                f"({last_line(error)})."
            ) from error
        return None
    short = len(tempfile.gettempdir()) <= SHORT
    folder = Path(tempfile.mkdtemp(prefix="clipbench-", dir=None if short else "/tmp"))  # noqa: S108
    # By default Ray tells its makers of each cluster, and its workers give way to all others. What
    # an actor that is killed leaves goes with the folder.
    kept = dict(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0", TMPDIR=str(folder))
    with _environment(**kept):
        ray.init(
            address="local",
            num_cpus=request.workers or cores(),
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            _node_ip_address=LOOPBACK,
            _temp_dir=str(folder),
            **quiet,
        )
    return folder


def _reached(address: str) -> None:
    """:raises UsageError: the address has another form than ``HOST:PORT`` or ``auto``, or nothing
    answers there.
    """
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal() or "/" in host:
        raise UsageError(
            f'--executor-option address="{address}": write HOST:PORT, as `ray start` prints it, '
            f"or auto for a cluster of this machine; work for another one is sent with "
            f"`ray job submit`."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECTING).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--executor-option address={address}: no cluster answers there "
            f"({getattr(error, 'strerror', None) or error})."
        ) from error


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray ends the process at SIGTERM once it is connected; a run keeps what is finished."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
