"""Workers may die, raise, be interrupted or be orphaned: a cell is lost at most, and never what
was stored.
"""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from pages import study_page
from running import called

from clipbench import execute, protocol, registry, selection, study
from clipbench.engines import Job, Record, structure
from clipbench.engines.rates import Choice, versioned
from clipbench.errors import UsageError
from clipbench.execute import Local, Setting
from clipbench.store import Store

PATIENCE = 120  # seconds for what takes one: a busy machine is no finding

TROUBLE = '''
"""A clip that does something else at every threshold."""

import os
import signal
import time
from pathlib import Path

import torch

from clipbench import Positive, clip

HERE = Path(__file__).parent


@clip("trouble")
class Trouble:
    """What the threshold says; at 1 nothing."""

    kind: Positive

    def update(self, grads, state, params):
        if self.kind == 2 and not (HERE / "killed").exists():
            (HERE / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == 3:
            raise ValueError("no,\\nthanks")
        if self.kind == 4:
            tiny = torch.full((64,), 1e-310, dtype=torch.float64) * 1.0
            threads, denormals = torch.get_num_threads(), torch.count_nonzero(tiny)
            raise RuntimeError(f"{threads} threads, {denormals} denormals")
        if self.kind == 5 and not (HERE / "go").exists():
            (HERE / "reached.writing").write_text(str(os.getpid()))
            os.replace(HERE / "reached.writing", HERE / "reached")
            while not (HERE / "go").exists():
                time.sleep(0.01)
        return grads, state
'''


def text_of(clip, setting, values, seeds=1, workload="cosh", steps=8):
    """The page of a study of a clip at several thresholds, with ``CLIP.py`` beside it."""
    run = {"steps": steps, "batch": 8, "evaluations": 2, "lr": 0.01}
    text = study_page(
        workload, clips={clip: {setting: values}}, use=[f"{clip}.py"], **run, select=seeds, report=1
    )
    return f"{text}\n[untuned]\nlr = 0.003\n"


def page(folder, kinds, seeds=1, workload="cosh", name="tiny"):
    """The study page in ``folder``, beside the stranger's file."""
    folder.mkdir(exist_ok=True)
    (folder / "trouble.py").write_text(TROUBLE)
    text = text_of("trouble", "kind", kinds, seeds, workload)
    (folder / f"{name}.toml").write_text(text)
    return study.parse(name, text, folder)


def jobs(asked):
    return [Job(cell, cell.clip_settings()) for cell in asked.cells()]


def new_store(folder):
    made = Store.create(folder, "tiny", "")
    made.write_page("environment", {"study": "tiny", "environments": {"here": {}}})
    return made


def supervise(asked, store, workers=2, **options):
    with Local(workers) as executor:
        execute.run(jobs(asked), store, "select", executor, Setting(tuple(asked.used)), **options)
    return Store(store.folder)


def outcomes(cells):
    """Rows by (threshold, seed)."""
    return cells.set_index(["threshold", "seed"]).sort_index()


def gone(pid):
    """Whether a process has ended, a zombie counting as ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s in vain for {what}"
        time.sleep(0.02)


def curves(store):
    """All curves, in an order that does not depend on who wrote them."""
    frame = store.read("curves").sort_values(["cell", "step"]).reset_index(drop=True)
    return {
        name: column.to_numpy().tobytes() if name != "cell" else list(column)
        for name, column in frame.items()
    }


# ----------------------------------------------------------------------------------------- troubles


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """Two runs of eight cells; in the first one worker is killed."""
    registry.load_packaged()
    folder = tmp_path_factory.mktemp("troubled")
    asked, store = page(folder, [1.0, 2.0, 3.0, 4.0], seeds=2), new_store(folder / "out")
    ended = []
    first = supervise(asked, store, on_record=ended.append)
    again = [
        job
        for job in jobs(asked)
        if job.cell.id in set(first.read("cells").query("status == 'failed'")["cell"])
    ]
    cells = first.read("cells")
    with Local(2) as executor:
        execute.run(again, store, "select", executor, Setting(tuple(asked.used)))
    return {
        "folder": folder,
        "first": outcomes(cells),
        "second": outcomes(Store(store.folder).read("cells")),
        "ended": ended,
        "store": store,
    }


def test_a_worker_that_is_killed_once_costs_no_cell(troubled):
    first = troubled["first"]
    assert (troubled["folder"] / "killed").exists()
    assert len(first) == 8
    assert list(first.loc[[1.0, 2.0], "status"]) == ["completed"] * 4
    assert set(troubled["store"].read("curves")["cell"]) >= set(first.loc[[1.0, 2.0], "cell"])


def test_a_worker_that_is_killed_twice_costs_the_cell_it_was_at_and_no_other(tmp_path):
    registry.load_packaged()
    asked, records = page(tmp_path, [1.0, 12.0, 6.0, 7.0]), []
    rows = outcomes(
        supervise(asked, new_store(tmp_path / "out"), workers=1, on_record=records.append).read(
            "cells"
        )
    )
    assert list(rows["status"]) == ["completed", "completed", "completed", "failed"]
    assert rows["reason"].iloc[3] == "the worker was killed by SIGKILL"
    [failed] = [record for record in records if record.failure]
    assert failed.fault.lost


def test_the_next_run_tries_a_failed_cell_again(troubled):
    second = troubled["second"]
    failed_first = troubled["first"]["status"] == "failed"
    assert len(second) == 8
    assert list(second["attempt"]) == [2 if failed else 1 for failed in failed_first]
    assert set(second.loc[[1.0, 2.0], "status"]) == {"completed"}


def test_a_component_that_raises_is_a_failed_cell_with_the_reason_in_one_line(troubled):
    assert set(troubled["second"].loc[[3.0, 4.0], "status"]) == {"failed"}
    assert set(troubled["second"].loc[3.0, "reason"]) == {"ValueError: no, thanks"}


def test_workers_have_one_thread_and_flush_denormals(troubled):
    assert set(troubled["second"].loc[4.0, "reason"]) == {"RuntimeError: 1 threads, 0 denormals"}


def test_a_failed_cell_has_its_settings_and_no_numbers(troubled):
    """Its threshold above all: rows of one setting must stay together, or a lost seed would go
    unnoticed.
    """
    failed = troubled["first"].reset_index().query("status == 'failed'")
    assert failed["threshold"].isin([2.0, 3.0, 4.0]).all()
    assert failed[["outcome", "final_loss", "metric_value", "diverged_at"]].isna().all(axis=None)
    assert (failed["steps"] == 0).all()


def test_a_setting_that_lost_a_seed_counts_as_unstable(troubled):
    scores = selection.score(troubled["first"].reset_index()).set_index("threshold")
    assert list(scores.index) == [1.0, 2.0, 3.0, 4.0]
    assert list(scores["seeds"]) == [2, 2, 2, 2]
    assert list(scores["unstable"]) == [0, 0, 2, 2]


def test_who_watches_hears_of_every_cell_once(troubled):
    assert len({record.job.cell.id for record in troubled["ended"]}) == len(troubled["ended"]) == 8


def test_verify_lists_failed_cells(troubled):
    missing = Store(troubled["store"].folder).missing()
    assert len([told for told in missing if "failed (ValueError: no, thanks)" in told]) == 2


# ----------------------------------------------------------------------------------------- sameness


@pytest.mark.parametrize("workload", ["wdbc", "cosh"])
def test_one_worker_or_two_give_the_same_bits(tmp_path, workload):
    registry.load_packaged()
    asked = page(tmp_path, [1.0, 6.0], seeds=2, workload=workload)
    one = supervise(asked, new_store(tmp_path / "one"), workers=1)
    two = supervise(asked, new_store(tmp_path / "two"), workers=2)
    assert curves(one) == curves(two)
    values = ["cell", "validation_value", "metric_value", "final_loss", "threads"]
    pd.testing.assert_frame_equal(
        one.read("cells")[values].sort_values("cell").reset_index(drop=True),
        two.read("cells")[values].sort_values("cell").reset_index(drop=True),
    )


# ------------------------------------------------------------------------------------ interruptions


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A whole run of the study that others interrupt."""
    registry.load_packaged()
    folder = tmp_path_factory.mktemp("gated")
    asked = page(folder, [1.0, 5.0, 6.0])
    (folder / "go").touch()
    store = Store.create(folder / "undisturbed", asked.name, asked.text)
    with store.claim():
        protocol.run(asked, store, protocol.Options(workers=2, throughput=False))
    return folder, asked, Store(store.folder)


@pytest.fixture
def underway(undisturbed, tmp_path):
    """``clipbench run`` as a process of its own, its one worker at the second cell of three and
    kept there.
    """
    folder, _, _ = undisturbed
    (folder / "go").unlink(missing_ok=True)
    (folder / "reached").unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "clipbench",
            "run",
            "tiny.toml",
            "--out",
            tmp_path / "out",
            "--workers",
            "1",
            "--no-throughput",
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  (a shell's background jobs ignore it)
    )
    wait_for(lambda: (folder / "reached").exists() or process.poll() is not None, "the worker")
    assert process.poll() is None, process.communicate()
    yield process, int((folder / "reached").read_text()), Store(tmp_path / "out")
    (folder / "go").touch()
    process.kill()
    process.communicate()


def completed_like(undisturbed, store):
    """Complete an interrupted run; what it kept, and whether the tables are those of the
    undisturbed one.
    """
    folder, asked, whole = undisturbed
    (folder / "go").touch()
    with store.claim():
        counts = protocol.run(asked, store, protocol.Options(workers=2, throughput=False))
    done = Store(store.folder)
    assert done.problems() == []
    assert curves(done) == curves(whole)
    columns = [
        "cell",
        "role",
        "status",
        "outcome",
        "threshold",
        "validation_value",
        "metric_value",
        "steps",
        "attempt",
    ]
    pd.testing.assert_frame_equal(
        done.read("cells")[columns].sort_values("cell").reset_index(drop=True),
        whole.read("cells")[columns].sort_values("cell").reset_index(drop=True),
    )
    return counts


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["interrupt", "terminate"],
)
def test_an_interrupt_keeps_every_cell_that_ended_and_the_next_run_goes_on(
    undisturbed, whole, underway, number, code
):
    """The cell under way is waited for. ^C at a terminal reaches the whole process group: the
    workers leave the decision to one.
    """
    if number == signal.SIGTERM and not whole:
        pytest.skip("costly: both signals have one handler; only with --whole")
    process, worker, store = underway
    os.killpg(process.pid, number)
    # for the supervisor to hear of it; were it late, the worker would go further, and the claim
    # would hold
    time.sleep(1)
    (undisturbed[0] / "go").touch()
    said, complained = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert (
        complained
        == "clipbench: interrupted; every cell that ended is kept, and `run` goes on from there.\n"
    )
    assert said == ""
    assert gone(worker)
    kept = store.read("cells")
    assert {1.0, 5.0} <= set(kept["threshold"])
    assert set(kept["status"]) == {"completed"}
    assert completed_like(undisturbed, store).kept == len(kept)


def test_workers_whose_supervisor_was_killed_exit_and_the_next_run_goes_on(undisturbed, underway):
    """Killed alone, not with its group: nobody is left to tell the worker."""
    process, worker, store = underway
    assert not gone(worker)
    process.kill()
    process.wait()
    wait_for(lambda: gone(worker), "the orphan's end")
    assert completed_like(undisturbed, store).kept == 0


# ------------------------------------------------------------------------------------------- faults


def test_a_full_disk_ends_the_run_and_leaves_no_worker(tmp_path, monkeypatch):
    registry.load_packaged()
    asked, store = page(tmp_path, [1.0, 6.0]), new_store(tmp_path / "out")
    before = {process.pid for process in multiprocessing.active_children()}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", full)
        with pytest.raises(OSError, match="No space left"):
            supervise(asked, store)
    assert {process.pid for process in multiprocessing.active_children()} <= before
    assert len(store.read("cells")) == 0
    assert len(supervise(asked, store).read("cells")) == 2


def test_a_disk_that_fails_behind_the_commit_stores_no_cell_twice(tmp_path, monkeypatch):
    registry.load_packaged()
    asked, store = page(tmp_path, [1.0, 6.0]), new_store(tmp_path / "out")
    commit, calls = Store.commit, []

    def failing(*arguments):
        commit(*arguments)
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", failing)
        with pytest.raises(OSError, match="Input/output"):
            supervise(asked, store)
    assert not store.read("curves").duplicated(["cell", "step"]).any()
    assert len(store.read("cells")) == 2


def test_workers_killed_between_two_cells_are_replaced(tmp_path):
    """They have nothing in hand, and the supervisor is about to give them more."""
    registry.load_packaged()
    asked, store = (
        page(tmp_path, [1.0, *(6.0 + number for number in range(execute.IN_HAND + 2))]),
        new_store(tmp_path / "out"),
    )
    ended: list[Record] = []

    def kill(record):
        ended.append(record)
        if len(ended) == execute.IN_HAND:  # the hand is empty now
            for process in multiprocessing.active_children():
                if process.name.startswith("clipbench-"):
                    process.kill()
                    process.join()

    done = supervise(asked, store, workers=1, on_record=kill)
    assert len(done.read("cells")) == len(asked.cells()) == len(ended)
    assert (done.read("cells")["status"] == "failed").sum() <= 1


def test_a_cell_is_committed_before_the_run_is_over(tmp_path, monkeypatch):
    """A shard closes at 64 cells if a second has passed, here at two and at once."""
    registry.load_packaged()
    monkeypatch.setattr(execute.archive, "SHARD_CELLS", 2)
    monkeypatch.setattr(execute.archive, "LEAST_SECONDS", 0)
    asked, store = page(tmp_path, [1.0, 6.0, 7.0, 8.0, 9.0]), new_store(tmp_path / "out")
    seen = []
    supervise(
        asked,
        store,
        workers=1,
        on_record=lambda _: seen.append(len(Store(store.folder).read("cells"))),
    )
    assert seen == [0, 2, 2, 4, 4]
    assert len(list((store.folder / "cells").iterdir())) == 3


def test_nothing_to_do_starts_no_worker(tmp_path, monkeypatch):
    monkeypatch.setattr("clipbench.execute.local.Worker", None)
    with Local(2) as executor:
        execute.run([], new_store(tmp_path / "out"), "select", executor, Setting())


def test_a_call_in_a_worker_returns_its_value_or_one_sentence():
    """What pilots and timings run in."""
    assert called(pow, 2, 5) == 32
    with pytest.raises(UsageError, match=r"^the sum took longer than 0.2 s\.$"):
        called(time.sleep, 60, limit=0.2)
    with pytest.raises(UsageError, match=r'^there is no clip "nrm"'):
        called(registry.find, "clip", "nrm")


def test_a_bug_of_ours_in_a_call_comes_with_the_traceback_of_the_worker():
    with pytest.raises(
        execute.Bug, match=r"^the sum has met a mistake in clipbench itself:"
    ) as raised:
        called(pow, 0, -1)
    assert "execute/worker.py" in raised.value.__notes__[0]
    assert raised.value.__notes__[0].endswith(
        "ZeroDivisionError: 0.0 cannot be raised to a negative power\n"
    )


def test_a_call_that_a_signal_kills_has_a_second_try(tmp_path):
    tries = tmp_path / "tries"
    dying = (
        f"import os, signal\nwith open({str(tries)!r}, 'a') as file: file.write('x')\nif %s: "
        f"os.kill(os.getpid(), signal.SIGKILL)"
    )
    called(exec, dying % f"os.path.getsize({str(tries)!r}) == 1")
    assert tries.read_text() == "xx"
    with pytest.raises(
        UsageError,
        match=r"^the sum: the worker was killed by SIGKILL, and so was the one after it; ",
    ):
        called(exec, dying % "True")
    assert tries.read_text() == "xxxx"


# -------------------------------------------------------------------------------------------- lanes

FATED = '''
"""A workload whose data does to one seed what the file beside it says."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from clipbench import metrics, trees, workload

HERE = Path(__file__).parent


@workload("fated")
class Fated:
    """A line through points that the seed draws."""

    metric = metrics.log10_gap
    reference_loss = 1.0
    optimum = 0.0

    def data(self, generator):
        fate, _, seeds = (HERE / "fate").read_text().partition(" ")
        fated = [trees.seed_of("fated", int(seed), "split") for seed in seeds.split()]
        if generator.initial_seed() in fated:
            if fate == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fate == "raise":
                raise ValueError("no,\\nthanks")
            if fate == "sleep":
                time.sleep(600)
        inputs = torch.randn(24, 3, generator=generator)
        return dict.fromkeys(("train", "validation", "test"), (inputs, inputs.sum(1)))

    def model(self):
        return Refusing() if (HERE / "fate").read_text() == "refuse" else nn.Linear(3, 1)

    def loss(self, output, target):
        return (output.flatten() - target).square().mean()


class Refusing(nn.Linear):
    def __init__(self):
        super().__init__(3, 1)

    def forward(self, inputs):
        if self.weight.sum() > 100:
            raise ValueError("the weights are too large")
        return super().forward(inputs)
'''


@pytest.fixture(scope="module")
def fated(tmp_path_factory):
    """What becomes of eight cells, seeds of one setting, trained as lanes, when a fate strikes
    some of the seeds.
    """
    registry.load_packaged()
    folder = tmp_path_factory.mktemp("fated")
    (folder / "fated.py").write_text(FATED)
    text = text_of("norm", "max_norm", [1.0], seeds=8, workload="fated").replace(
        "norm.py", "fated.py"
    )
    (folder / "fate").write_text("none")
    asked = study.parse("tiny", text, folder)

    def struck(fate, count=8, **options):
        (folder / "fate").write_text(fate)
        arms = [versioned(job) for job in jobs(asked)]
        choices = {
            structure.shape(cell): Choice("batched", lanes=count, arms=arms)
            for cell in asked.cells()
        }
        ended = []
        number = len(list(folder.glob("out*")))
        store = supervise(
            asked,
            new_store(folder / f"out{number}"),
            choices=choices,
            on_record=ended.append,
            **options,
        )
        assert len(ended) == len(store.read("cells")) == 8
        return store

    return struck


@pytest.fixture(scope="module")
def unstruck(fated):
    return fated("none")


def by_seed(store):
    return store.read("cells").set_index("seed").sort_index()


def same_but_for(store, undisturbed, lost):
    """Every cell of other seeds as if nothing had happened, to the bit."""
    rows, expected = by_seed(store), by_seed(undisturbed)
    others = [seed for seed in expected.index if seed not in lost]
    assert list(rows.index) == [*range(8)]
    assert set(rows.loc[others, "status"]) == {"completed"}
    for table, keys in (
        ("curves", ["cell", "step"]),
        ("evals", ["cell", "step", "split", "metric"]),
    ):
        kept = set(expected.loc[others, "cell"])
        found, wanted = (
            one.read(table).sort_values(keys).reset_index(drop=True) for one in (store, undisturbed)
        )
        assert set(found["cell"]) == kept
        pd.testing.assert_frame_equal(
            found, wanted[wanted["cell"].isin(kept)].reset_index(drop=True), check_exact=True
        )
    values = [
        "cell",
        "outcome",
        "final_loss",
        "validation_value",
        "metric_value",
        "steps",
        "threshold",
        "engine",
    ]
    pd.testing.assert_frame_equal(
        rows.loc[others, values], expected.loc[others, values], check_exact=True
    )


def test_cells_are_trained_as_lanes_where_that_was_chosen(unstruck):
    rows = by_seed(unstruck)
    assert set(rows["engine"]) == {"batched"}
    assert set(rows["status"]) == {"completed"}


def test_how_lanes_are_shared_out_changes_no_bit(fated, unstruck):
    same_but_for(fated("none", count=3, workers=1), unstruck, [])


@pytest.mark.parametrize(
    ("fate", "reason"),
    [("kill 5", "the worker was killed by SIGKILL"), ("raise 2", "ValueError: no, thanks")],
    ids=["killed", "raises"],
)
def test_lanes_are_halved_until_the_guilty_cell_is_alone(fated, unstruck, fate, reason):
    """The loop tries it once more; it is recorded as failed, and every other cell as it would
    have been.
    """
    store, guilty = fated(fate), int(fate.split()[1])
    row = by_seed(store).loc[guilty]
    assert (row["status"], row["reason"], row["engine"], row["steps"], row["threshold"]) == (
        "failed",
        reason,
        "loop",
        0,
        1.0,
    )
    assert pd.isna(row["outcome"])
    same_but_for(store, unstruck, [guilty])


def test_two_guilty_cells_of_one_batch_are_both_found(fated, unstruck):
    store = fated("raise 0 6")
    assert list(by_seed(store).loc[[0, 6], "status"]) == ["failed"] * 2
    same_but_for(store, unstruck, [0, 6])


def test_lanes_that_take_too_long_are_ended_and_the_guilty_cell_is_recorded(fated, unstruck):
    """Two lanes a shard; the one with the sleeper passes the limit three times: whole, halved
    and in the loop.
    """
    store = fated("sleep 7", count=2, limit=2.0)
    row = by_seed(store).loc[7]
    assert (row["status"], row["reason"], row["engine"]) == (
        "failed",
        "it took longer than 2 s",
        "loop",
    )
    same_but_for(store, unstruck, [7])


def test_lanes_that_are_refused_after_all_are_run_by_the_loop(fated):
    """A refusal that nobody foresaw costs no cell."""
    rows = by_seed(fated("refuse"))
    assert set(rows["engine"]) == {"loop"}
    assert set(rows["status"]) == {"completed"}


def test_a_cell_of_the_loop_that_takes_too_long_is_ended_alone(tmp_path):
    """The others of its shard are run by another worker."""
    registry.load_packaged()
    asked = page(tmp_path, [1.0, 5.0, 6.0])
    rows = outcomes(
        supervise(asked, new_store(tmp_path / "out"), workers=1, limit=2.0).read("cells")
    )
    assert list(rows["status"]) == ["completed", "failed", "completed"]
    assert rows["reason"].iloc[1] == "it took longer than 2 s"
    assert gone(int((tmp_path / "reached").read_text()))
