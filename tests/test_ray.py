"""The executor ray: the battery of executors through actors of a cluster on this machine, and what
only a cluster can do to a run.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from battery import (  # noqa: F401 - the tests that it brings are found here
    rows,
    test_a_call_returns_its_value_or_one_sentence,
    test_a_study_ends_with_the_same_rows_whoever_runs_it,
    test_calls_come_with_their_keys,
    test_what_is_left_when_a_run_is_stopped_is_nothing_of_the_executors,
    wanted,
)
from pages import study_page

from clipbench import execute, protocol, registry, study
from clipbench.errors import UsageError
from clipbench.execute import Call, Died, Local, Request, Returned, Setting
from clipbench.store import Store

ray = pytest.importorskip("ray")
from clipbench.execute.ray_tasks import ray_tasks  # noqa: E402 - it imports ray

# Ray leaves sockets and files of its own to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

# a clip that ends its process, or the actor above it, as long as a file is there
DEADLY = '''
"""Ends the process that runs it."""
import os, signal
from pathlib import Path
import clipbench

def parent(process):
    return int(Path(f"/proc/{{process}}/stat").read_text().rpartition(")")[2].split()[1])

@clipbench.clip("deadly")
class Deadly:
    factor: float = 1.0

    def update(self, grads, state, params):
        mark = Path({mark!r})
        if self.factor == 3.0 and mark.exists():
            if {once}:
                mark.unlink()
            victim = os.getpid()
            for _ in range({above}):
                victim = parent(victim)
            os.kill(victim, signal.SIGKILL)
        return grads, state
'''


@pytest.fixture(scope="module")
def executor():
    with ray_tasks(Request(2)) as made:
        yield made


def deadly(folder, *, once, above):
    """A study of three cells, the second of which ends its process."""
    mark = folder / "mark"
    mark.touch()
    (folder / "deadly.py").write_text(DEADLY.format(mark=str(mark), once=once, above=above))
    page = study_page(
        "cosh", "sgd", {"deadly": {"factor": [1.0, 3.0, 5.0]}}, use=["deadly.py"], steps=5, lr=0.1
    )
    asked = study.parse("deadly", page, folder)
    return asked, Store.create(folder / "out", asked.name, asked.text)


@pytest.mark.parametrize(("once", "above"), [(True, 0), (True, 2), (False, 0)])
def test_only_the_guilty_cell_of_a_killed_process_fails(executor, once, above, tmp_path):
    """Of a process that somebody killed none does. Two above it is the actor: its own parent starts
    processes. The file of the component is not there where it runs.
    """
    asked, store = deadly(tmp_path, once=once, above=above)
    options = protocol.Options(engine="loop", throughput=False, executor="ray")
    with store.claim():
        counts = protocol.run(asked, store, options, executor=executor)
    assert counts.failed == (0 if once else 1)
    assert [reason.words for reason in counts.reasons] == (
        [] if once else ["the worker was killed by SIGKILL"]
    )
    assert len(store.read("cells").drop_duplicates("cell")) == 3


def test_a_file_that_was_edited_while_the_study_ran_is_one_sentence(executor, tmp_path):
    asked, _ = deadly(tmp_path, once=True, above=0)
    used = tuple(asked.used)
    (tmp_path / "deadly.py").write_text("# edited\n")
    with pytest.raises(UsageError, match=r"deadly\.py was edited while the study ran"):
        execute.call(executor, Call(pow, (2, 5)), Setting(used))


def test_cancelled_work_ends_and_its_slot_is_free(executor):
    tickets = [executor.submit(Call(time.sleep, (600,)), Setting()) for _ in range(2)]
    begun = set()
    while begun != set(tickets):
        begun |= {portion.ticket for portion in executor.results(0.2)}
    for ticket in tickets:
        executor.cancel(ticket)
    assert execute.call(executor, Call(pow, (2, 5)), Setting()) == 32
    assert all(portion.ticket not in tickets for portion in executor.results(0.2))


def test_what_begins_no_more_after_a_stop_is_what_has_not_begun(executor):
    """Only here is the module's executor stopped: a new one takes its place in the cluster."""
    with execute.offered("ray")(Request(2)) as other:
        first = other.submit(Call(time.sleep, (1,)), Setting())
        while not other.results(0.2):
            pass
        other.submit(Call(pow, (2, 5)), Setting())
        other.stop()
        ends = []
        while not ends:
            ends += [portion for portion in other.results(0.2) if portion.end is not None]
    assert [(portion.ticket, type(portion.end)) for portion in ends] == [(first, Returned)]


def test_an_actor_that_is_gone_was_killed_and_lost(executor):
    ticket = executor.submit(Call(time.sleep, (600,)), Setting())
    while not any(portion.ticket == ticket for portion in executor.results(0.2)):
        pass
    (actor,) = (one for one in executor.crew if one.ticket == ticket)
    ray.kill(actor.handle)
    portions = []
    while not portions:
        portions = [portion for portion in executor.results(0.2) if portion.ticket == ticket]
    (portion,) = portions
    assert isinstance(portion.end, Died)
    assert portion.end.killed
    assert portion.end.lost


# ------------------------------------------------------------------------------------- the cluster


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Request(device="cuda"), r"the study has cells for CUDA, and .* has no GPU"),
        (Request(options={"gpus": "3"}), r"gpus=3: .* has 0 GPUs"),
        (Request(options={"gpus": "two"}), r'gpus="two": it must be a whole number'),
        (Request(options={"adress": "x:1"}), r"has no such option; .* Did you mean address"),
    ],
)
def test_what_a_cluster_does_not_have_is_one_sentence(request_, sentence):
    ray_was = ray.is_initialized()
    with pytest.raises(UsageError, match=sentence), ray_tasks(request_):
        pass
    assert ray.is_initialized() == ray_was


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:1", "no cluster answers there"),
        ("no-such-host.invalid:6379", "no cluster answers there"),
        ("127.0.0.1:99999", "no cluster answers there"),
        ("ray://127.0.0.1:10001", "write HOST:PORT"),
        ("head", "write HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_one_sentence(address, sentence, tmp_path, monkeypatch):
    """By the command line, which leaves no folder behind."""
    done = subprocess.run(
        [*command("smoke", tmp_path / "out"), "--executor-option", f"address={address}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def command(named, folder):
    options = ["--engine", "loop", "--no-throughput", "--workers", "2", "--out", str(folder)]
    return [sys.executable, "-m", "clipbench", "run", named, "--executor", "ray", *options]


def stored(folder):
    """How many cells a folder has, which may not be there yet."""
    return len(Store(folder).read("cells")) if (folder / "study.toml").is_file() else 0


def test_a_run_whose_driver_was_killed_goes_on_and_ends_as_if_it_ran_here(tmp_path):
    """None of its cells is run twice, nothing of Ray is left, and every table is the one of worker
    processes.
    """
    there = tmp_path / "there"
    # Ray's sockets have paths of 107 characters at most
    with tempfile.TemporaryDirectory(prefix="cb", dir="/tmp") as short:
        around = {**os.environ, "TMPDIR": short}
        driver = subprocess.Popen(command("smoke", there), env=around, stderr=subprocess.DEVNULL)
        while stored(there) < 64:
            time.sleep(0.1)
            assert driver.poll() is None
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        kept = set(Store(there).read("cells")["cell"])
        for left in Path(short).iterdir():  # nobody could remove it
            left.rename(tmp_path / left.name)
        done = subprocess.run(
            command("smoke", there), env=around, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert list(Path(short).iterdir()) == []
    cells = Store(there).read("cells")
    assert f"{len(cells)} cells, {len(kept)} kept, {len(cells) - len(kept)} run" in done.stdout
    assert set(cells["attempt"]) == {1}
    assert Store(there).problems() == Store(there).missing() == []

    registry.load_packaged()
    page = study.read("smoke")
    here = Store.create(tmp_path / "here", page.name, page.text)
    options = protocol.Options(engine="loop", throughput=False)
    with here.claim(), Local(2) as executor:
        protocol.run(page, here, options, protocol.Silent(), executor)
    assert rows(Store(there)) == rows(Store(tmp_path / "here"))
