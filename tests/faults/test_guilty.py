"""A cell that raises, ends or stops its worker, fills the memory, prints, forks or patches
torch: its neighbours do not notice.
"""

from __future__ import annotations

import pytest
from test_io import PAGE, SENTENCE, command, numbers, told_well

from clipbench import execute, registry

INNOCENT = "the neighbours of a guilty cell have the bits that they have without it"
FAILED = "a guilty cell that cannot end is recorded as failed, and says why"
FILE = """
import os, signal, sys, time
import torch
from clipbench import Positive, clip

def stop(grads): time.sleep(600)
def kill(grads): os.kill(os.getpid(), signal.SIGKILL)
def end(grads): os._exit(7)
def crash(grads): os.kill(os.getpid(), signal.SIGSEGV)
def refuse(grads): raise RuntimeError("no, thanks")
def fill(grads): return bytearray(2**60)
def talk(grads): sys.stdout.write("A" * 200_000)
def fork(grads):
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
def widen(grads): torch.set_default_dtype(torch.float64)
def patch(grads): torch.cosh = torch.Tensor.cosh = torch.sinh
def move(grads): os.chdir("/")

ACTS = dict(stop=stop, kill=kill, end=end, crash=crash, refuse=refuse, fill=fill, talk=talk)
ACTS |= dict(fork=fork, widen=widen, patch=patch, move=move)

@clip("guilty")
class Guilty:
    size: Positive = 1.0
    act: str = "refuse"

    def update(self, grads, state, params):
        ACTS[self.act](grads)
        return grads, state
"""
ACTS = ("stop", "kill", "end", "crash", "refuse", "fill", "talk", "fork", "widen", "patch", "move")
ENDED = ("stop", "kill", "end", "crash", "refuse", "fill", "widen", "patch")


@pytest.fixture(scope="module")
def innocent(tmp_path_factory):
    """The numbers of the study without the guilty clip."""
    registry.load_packaged()
    execute.context("cpu").Process(target=int).start()
    return numbers(studied(tmp_path_factory.mktemp("innocent") / "alone", "")[0])


def studied(folder, act):
    """The folder of a run beside a guilty clip, its exit code and what it said."""
    folder.mkdir()
    (folder / "guilty.py").write_text(FILE)
    guilty = f'[[clip]]\nname = "guilty"\nact = "{act}"\n' if act else ""
    page = PAGE.replace("report = 1", "report = 0").replace("select = 1", "select = 2")
    page = page.replace("lr = [0.01, 0.1]", "lr = 0.01")  # two guilty cells: each may stop for 8 s
    (folder / "faults.toml").write_text('use = ["guilty.py"]\n' + page + guilty)
    limit = ("--limit", "4") if act == "stop" else ()
    arguments = (
        "run",
        folder / "faults.toml",
        "--out",
        folder / "out",
        "--workers",
        "2",
        "--no-throughput",
        "--engine",
        "loop",
    )
    code, said = command(*arguments, *limit)
    return folder / "out", code, said


def test_a_guilty_cell_beside_innocent_ones(innocent, tmp_path, every, tally):
    """In the loop; lanes beside one are tested in test_world.py."""
    wrong = []
    for number in every(len(ACTS), 3):
        act = ACTS[number]
        out, code, said = studied(tmp_path / act, act)
        found = numbers(out)
        changed = [cell for cell, row in innocent.items() if found.get(cell) != row]
        ended = act in ENDED
        failed = any("'failed'" in row for row in found.values())
        lost = tally(INNOCENT, lost=bool(changed))
        lost |= tally(SENTENCE, lost=not told_well(code, said))
        lost |= tally(FAILED, lost=failed != ended or (code == 1) != ended)
        if lost:
            wrong.append((act, code, len(changed), failed, said[-500:]))
    assert not wrong, wrong
