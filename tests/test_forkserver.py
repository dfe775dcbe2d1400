"""The server of workers: woken early, and deaf to what is meant for the command."""

from __future__ import annotations

import os
import subprocess
import sys

WAKES = """
import os, signal, sys
from multiprocessing import forkserver as server
from clipbench import forkserver

before = signal.getsignal(signal.SIGINT)
forkserver.wake()
pid = server._forkserver._forkserver_pid
with open(f"/proc/{pid}/status") as lines:
    ignored = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))
print("torch" in sys.modules, bool(ignored >> signal.SIGINT - 1 & 1),
      signal.getsignal(signal.SIGINT) is before)
forkserver.wake()
print(server._forkserver._forkserver_pid == pid)
os.kill(pid, signal.SIGKILL)
"""


def test_a_waking_server_ignores_interrupts_from_its_first_moment():
    """And this process, which has not imported torch, heeds them as before. A process of its own:
    what is claimed is of a start.
    """
    places = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", WAKES],
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "True", "True", "True"]
