"""``python -m MODULE`` and ``python -c CODE`` by a fork of a process that has the libraries loaded:
what a new process says and leaves, without the seconds in which it imports torch, scikit-learn and
pandas.

Nothing of clipbench is loaded in it. A test that claims something of a start, of signals, of what
is imported, or of what an environment variable does before Python's first line starts a real
process.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from multiprocessing import util
from pathlib import Path

LIBRARIES = (
    "torch._dynamo",
    "sklearn.datasets",
    "pandas",
    "pyarrow.parquet",
    "seaborn",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "jinja2",
    "pydantic",
    "click",
    "tqdm",
)
LIMIT = 600  # seconds for one command
LENT = 6  # processes: a gate that confirms an alarm starts four
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a fork has one thread only


def run(*arguments, env, cwd=None, stderr=None):
    """What came of ``python ARGUMENTS``, which begin with ``-m`` or ``-c``; ``stderr`` may be the
    path of a terminal, which says what it was told.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / "stdout"), stderr or str(Path(folder) / "stderr")]
        asked = {"arguments": arguments, "env": env, "cwd": str(cwd or Path.cwd()), "files": files}
        server = _server()
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code = _answer(server)
        said = [None if file == stderr else Path(file).read_text("utf-8") for file in files]
    return subprocess.CompletedProcess(arguments, code, *said)


def _answer(server):
    """The exit code; a command that hangs ends with its server, and the next one has another."""
    ready, _, _ = select.select([server.stdout], [], [], LIMIT)
    line = server.stdout.readline() if ready else ""
    if not line:
        _server.cache_clear()
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        raise AssertionError(f"no answer within {LIMIT} s, or the process is gone")
    return int(line)


@cache
def _server():
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    server = subprocess.Popen(
        [sys.executable, __file__],
        env=environment | ONE_THREAD,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that it can be ended with all of its forks
    )
    atexit.register(server.communicate)  # it ends with its input
    return server


# ----------------------------------------------------------------------------- in the other process


def _next_program():
    """Returns in a fork, prepared as a new interpreter would be; the process itself answers each
    line of its input with an exit code until there is none.
    """
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            return _prepared(asked)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()
    return None


def _prepared(asked):
    for number, file in enumerate([os.devnull, *asked["files"]]):
        opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOCTTY, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    places = asked["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [asked["cwd"], *filter(None, places), *sys.path[1:]]
    importlib.invalidate_caches()
    _lend_to_multiprocessing()
    return asked["arguments"]


def _lend_to_multiprocessing():
    """The first processes that multiprocessing starts afresh, a server of forks among them, are
    forks of this process as it is now, and do not load the same libraries once more.
    """
    lent = []
    for _ in range(LENT):
        ours, theirs = socket.socketpair()
        child = os.fork()
        if not child:
            for end, _ in [*lent, (ours, 0)]:
                end.close()
            _wait_for_work(theirs)
        theirs.close()
        lent.append((ours, child))
    started = util.spawnv_passfds

    def spawned(path, arguments, fds):
        if not lent or "multiprocessing.resource_tracker" in arguments[-2] + arguments[-1]:
            return started(path, arguments, fds)
        end, child = lent.pop()
        wanted = {
            "arguments": [os.fsdecode(one) for one in arguments],
            "fds": [int(fd) for fd in fds],
        }
        socket.send_fds(end, [json.dumps(wanted).encode()], wanted["fds"])
        end.close()
        return child

    util.spawnv_passfds = spawned


def _wait_for_work(end):
    """The life of a lent process: multiprocessing's own line, once it comes."""
    text, fds, _, _ = socket.recv_fds(end, 100_000, 20)
    if not text:  # nobody needed it
        os._exit(0)
    end.close()
    wanted = json.loads(text)
    aside = [os.dup2(fd, 100 + place) for place, fd in enumerate(fds)]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(aside, wanted["fds"], strict=True):
        os.dup2(fd, number, inheritable=False)
        os.close(fd)
    at = wanted["arguments"].index("-c")
    _end(_exit_code("-c", wanted["arguments"][at + 1], *wanted["arguments"][at + 2 :]))


def _main():
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork that looked through it all for garbage would copy it all
    if (asked := _next_program()) is not None:
        _end(_exit_code(*asked))


def _exit_code(kind, what, *rest):
    """Runs the program; its exit code, as the interpreter works it out."""
    sys.argv = [kind, *rest]
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(what, {"__name__": "__main__"})  # noqa: S102 - as `python -c` does
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        return 1
    return 0


def _end(code):
    """Without taking apart the libraries' thousands of objects, which a fork would copy first."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _main()
