"""Slurm: what is said to it, what is made of its answers, and a study on a real one."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import slurm_cluster
import torch
from battery import rows
from pages import study_page

from clipbench import execute, protocol, registry, study
from clipbench.engines import Job
from clipbench.errors import UsageError
from clipbench.execute import (
    Call,
    Cards,
    Died,
    Done,
    Left,
    Request,
    Setting,
    Shard,
    slurm,
    slurm_job,
)
from clipbench.execute import slurm_commands as commands
from clipbench.execute.slurm_commands import Standing, Wishes
from clipbench.store import Store

PAGE = study_page(
    "cosh", "sgd", {"norm": {"max_norm": 0.3}}, title="t", steps=6, lr=[0.01, 0.02, 0.1], report=1
)
# a cell waits to be ended with its job
WAITS = """
import pathlib
import time

from clipbench import Positive, clip


@clip("waits")
class Waits:
    'Waits once, if it is told to by its threshold.'

    limit: Positive

    def update(self, grads, state, params):
        mark = pathlib.Path("MARK")
        if self.limit > 1 and not mark.exists():
            mark.touch()
            time.sleep(600)
        return grads, state
"""


# ---------------------------------------------------------------------------------- without a Slurm


class Told(commands.Cluster):
    """A cluster that runs nothing; ``states`` is what squeue says, if it answers."""

    def __init__(self):
        self.scripts, self.states, self.cancelled = [], None, []

    def submit(self, script):
        self.scripts.append(script)
        return str(len(self.scripts))

    def standing(self, name):
        return self.states

    def cancel(self, *words):
        self.cancelled.append(words)


class Runs(Told):
    """A cluster that runs every job at once, in this process."""

    def submit(self, script):
        number = super().submit(script)
        for folder in sorted(script.parent.glob(f"{script.stem}-*")):
            slurm_job.run(folder)
        return number


@pytest.fixture
def jobs(tmp_path):
    registry.load_packaged()
    asked = study.parse("t", PAGE, tmp_path)
    return tuple(Job(cell, cell.clip_settings()) for cell in asked.cells())


@pytest.fixture
def quick(monkeypatch):
    """No pause between looks, and denormals as they were."""
    for pause in ("LOOK", "ASK", "GRACE"):
        monkeypatch.setattr(slurm, pause, 0.0)
    yield
    torch.set_flush_denormal(False)


def made(folder, cluster, **options):
    return slurm.Slurm(Wishes.of(options), folder / ".slurm", cluster)


def ended(executor, looks=8):
    """All portions that come."""
    return [portion for _ in range(looks) for portion in executor.results(0.0)]


def test_a_script_asks_for_what_the_work_needs():
    wishes = Wishes.of(
        {"time": "90", "partition": "gpu", "setup": "module load cuda", "sbatch": "--qos=low"}
    )
    plain = wishes.script("name", Path("/a b/0007"), 3, 2, cuda=False)
    for line in ("array=0-2", "time=90", "partition=gpu", "cpus-per-task=2", "qos=low"):
        assert f"\n#SBATCH --{line}\n" in plain
    assert "--gpus" not in plain
    assert "\nmodule load cuda\n" in plain
    assert "folder='/a b/0007'-\"$SLURM_ARRAY_TASK_ID\"\n" in plain
    assert subprocess.run(["bash", "-n"], input=plain, text=True, check=True).returncode == 0
    assert "\n#SBATCH --gpus=1\n" in wishes.script("name", Path("/x"), 1, 1, cuda=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tim": "3"}, r"Did you mean time\?"),
        ({"time": "1h"}, r'time="1h": it must be minutes, from 1\.'),
        ({"jobs": "0"}, r'jobs="0": it must be a number of jobs'),
        ({"partition": "a; rm"}, r"it must be a word for sbatch --partition"),
        ({"sbatch": "'"}, r"sbatch: No closing quotation"),
    ],
)
def test_an_option_that_is_none_is_one_sentence(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        execute.offered("slurm")(Request(options=options))


def test_no_sbatch_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no sbatch on PATH; start the run on a machine"):
        commands.Cluster().submit(tmp_path)


def test_squeue_is_read_line_by_line():
    text = "12_0|RUNNING|None|n1\n12_1|PENDING|BadConstraints|\nslurm_load_jobs error: none\n"
    assert commands.standings(text) == {
        "12_0": Standing("RUNNING", "None", "n1"),
        "12_1": Standing("PENDING", "BadConstraints", ""),
    }


@pytest.mark.parametrize(("text", "code"), [("0\n", 0), ("3", 3), ("137", -9), ("", None)])
def test_a_code_of_the_shell_is_one_of_python(text, code):
    assert commands.exit_code(text) == code


@pytest.mark.parametrize(("minutes", "lasting"), [("4", 60.0), ("60", 300.0), ("600", 300.0)])
def test_a_shard_lasts_a_part_of_the_time_of_a_job(minutes, lasting, tmp_path):
    assert made(tmp_path, Told(), time=minutes).seconds == lasting


def test_far_away_a_job_has_cells_for_more_than_a_moment(jobs):
    many = jobs * 20
    sizes = {len(one.jobs) for one in execute.pack(many, {}, 20, lasting=300.0)}
    assert min(sizes) >= 3
    assert len(execute.pack(many, {}, 20, 0.05)) > len(execute.pack(many, {}, 20, 300.0))


def test_a_job_has_one_cuda_device_for_itself():
    cards = Cards(sharers=7, apart=True)
    assert (cards.processes, cards.sharing) == (7, 1)
    assert [cards.free([0] * taken) for taken in (6, 7)] == [0, None]


@pytest.mark.usefixtures("quick")
def test_a_shard_and_a_call_come_back_through_the_folder(tmp_path, jobs):
    with made(tmp_path, Runs()) as executor:
        shard = executor.submit(Shard(jobs), Setting())
        call = executor.submit(Call(pow, (2, 5), "the sum"), Setting())
        assert len(ended(executor, 1)) > 2  # an array, read in one look
        assert len(executor.cluster.scripts) == 1
        executor.submit(Shard(jobs), Setting())
        assert execute.call(executor, Call(pow, (2, 5), "the sum"), Setting()) == 32
    assert (shard, call) == (0, 1)
    assert not (tmp_path / ".slurm").exists()


ENDS = [
    (Standing("CANCELLED"), 0, None, Died("its job ended as CANCELLED", lost=True, killed=True)),
    (Standing("NODE_FAIL"), 1, None, Died("its job ended as NODE_FAIL", lost=True, killed=True)),
    (Standing("PREEMPTED"), 0, None, Left()),
    (Standing("PENDING", "BeginTime"), 1, None, Left()),
    (Standing("TIMEOUT"), 1, None, Left()),
    (Standing("FAILED"), 1, "3", Died("the worker exited with code 3")),
    (Standing("FAILED"), 1, "137", Died("the worker was killed by SIGKILL", True, killed=True)),
    (Standing("FAILED"), 1, "139", Died("the worker was killed by SIGSEGV", False, killed=True)),
    (Standing("COMPLETED"), 1, None, Died("its job ended as COMPLETED", True, killed=True)),
    (None, 1, None, Died("its job is gone", lost=True, killed=True)),
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("standing", "cells", "code", "end"), ENDS)
def test_what_became_of_a_job_says_what_becomes_of_its_work(
    standing, cells, code, end, tmp_path, jobs
):
    """What it had finished comes first."""
    cluster = Told()
    with made(tmp_path, cluster) as executor:
        ticket = executor.submit(Shard(jobs), Setting())
        executor.results(0.0)
        folder = executor.pieces[ticket].folder
        if cells:
            _write_records(folder, ticket, jobs[:cells])
        if code is not None:
            (folder / commands.EXIT).write_text(code)
        cluster.states = {} if standing is None else {"1_0": standing}
        portions = ended(executor)
        assert [record.job for one in portions for record in one.records] == [*jobs[:cells]]
        assert [one.end for one in portions if one.end is not None] == [end]


def _write_records(folder, ticket, some):
    outbox = slurm_job.Outbox(folder, ticket, 1)
    outbox.put()
    for job in some:
        outbox.put([execute.executor.Record(job)])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("standing", "sentence"),
    [
        (Standing("FAILED", "", "n7"), r"job 1_0 on n7 did not see .*; choose a folder that"),
        (Standing("PENDING", "InvalidQOS"), r"job 1_0 can never run \(InvalidQOS\); change"),
    ],
)
def test_a_job_that_cannot_run_is_one_sentence(standing, sentence, tmp_path, jobs):
    cluster = Told()
    cluster.states = {"1_0": standing}
    with made(tmp_path, cluster) as executor:
        executor.submit(Shard(jobs), Setting())
        with pytest.raises(UsageError, match=sentence):
            ended(executor)


@pytest.mark.usefixtures("quick")
def test_a_job_whose_python_cannot_start_says_why(tmp_path, jobs):
    cluster = Told()
    with made(tmp_path, cluster) as executor:
        ticket = executor.submit(Shard(jobs), Setting())
        executor.results(0.0)
        cluster.states = {"1_0": Standing("FAILED")}
        folder = executor.pieces[ticket].folder
        (folder / commands.SEEN).touch()
        (folder / commands.LOG).write_text("No module named clipbench\n")
        with pytest.raises(UsageError, match=r"could not start clipbench \(No module named"):
            ended(executor)


@pytest.mark.usefixtures("quick")
def test_what_a_killed_driver_left_is_taken_and_not_run_again(tmp_path, jobs):
    killed = made(tmp_path, Told())
    killed.__enter__()
    ticket = killed.submit(Shard(jobs), Setting())
    killed.results(0.0)
    _write_records(killed.pieces[ticket].folder, ticket, jobs[:2])
    cluster = Runs()
    with made(tmp_path, cluster) as executor:
        assert cluster.cancelled == [(f"--name={killed.name}",)]
        executor.submit(Shard(jobs), Setting())
        portions = ended(executor)
    cells = [record.job.cell.id for one in portions for record in one.records]
    assert sorted(cells) == sorted(job.cell.id for job in jobs)
    assert isinstance(portions[-1].end, Done)
    assert not killed.session.exists()


@pytest.mark.usefixtures("quick")
def test_a_job_that_slurm_begins_again_gives_its_work_back(tmp_path, jobs, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with made(tmp_path, Runs()) as executor:
        executor.submit(Shard(jobs), Setting())
        assert [one.end for one in ended(executor)] == [Left()]


@pytest.mark.usefixtures("quick")
def test_an_edited_use_file_is_refused_on_the_node(tmp_path, jobs):
    (tmp_path / "mine.py").write_text("")
    with made(tmp_path, Runs()) as executor:
        executor.submit(Shard(jobs), Setting(use=((tmp_path / "mine.py", "another"),)))
        with pytest.raises(UsageError, match=r"mine\.py was edited while the study ran"):
            ended(executor)


def test_a_dry_run_submits_nothing(tmp_path, monkeypatch):
    registry.load_packaged()
    monkeypatch.setattr(commands.Cluster, "submit", None)
    asked = study.parse("t", PAGE, tmp_path)
    told = protocol.rehearse(asked, protocol.Options(executor="slurm"), tmp_path / "out")
    assert told.startswith("#!/bin/bash\n#SBATCH --job-name=clipbench-")
    assert "the selection's 3 cells are 1 job at most: no step has been timed yet" in told
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="the executor local submits no scripts"):
        protocol.rehearse(asked, protocol.Options(), tmp_path / "out")


# ----------------------------------------------------------------------------------- a real cluster

needs_slurm = pytest.mark.skipif(
    "CLIPBENCH_CLUSTER" not in os.environ or not slurm_cluster.installed(),
    reason="tox -e cluster, as root, with the Debian packages in .ci/packages-cluster",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A folder that its jobs do not see."""
    folder = tmp_path_factory.mktemp("slurm")
    unseen = folder / "unseen"
    unseen.mkdir()
    with (
        slurm_cluster.started(folder / "cluster", unseen) as conf,
        pytest.MonkeyPatch.context() as m,
    ):
        m.setenv("SLURM_CONF", str(conf))
        m.setattr(slurm, "ASK", 1.0)
        m.setattr(slurm, "GRACE", 3.0)
        yield unseen


def text(folder):
    """A page of one clip that waits once, on the last of its cells."""
    (folder / "waits.py").write_text(WAITS.replace("MARK", str(folder / "mark")))
    return study_page(
        "cosh",
        "sgd",
        {"waits": {"limit": [0.3, 3.0]}},
        use=["waits.py"],
        steps=6,
        lr=[0.01, 0.1],
        extend=False,
    )


def run(where, executor, page, **options):
    registry.load_packaged()
    asked = study.parse("t", page, where)
    store = Store.create(where / executor, asked.name, asked.text)
    with store.claim():
        counts = protocol.run(
            asked,
            store,
            protocol.Options(
                throughput=False, engine="loop", executor=executor, executor_options=options
            ),
        )
    return counts, Store(store.folder)


def same_as_local(folder, page, store):
    """Whether each cell is there, once, as processes of this machine make it."""
    cells = store.read("cells")
    assert cells["cell"].is_unique
    assert store.problems() == store.missing() == []
    assert rows(store) == rows(run(folder, "local", page)[1])


@needs_slurm
@pytest.mark.usefixtures("cluster")
def test_a_study_through_slurm_has_the_tables_of_local(tmp_path):
    page = study_page(
        ["cosh", "wdbc"],
        "sgd",
        {"none": {}, "norm": {"relative": 0.3}},
        steps=6,
        lr=[0.01, 0.1],
        report=1,
    )
    counts, store = run(tmp_path, "slurm", page, jobs="2")
    assert counts.failed == 0
    same_as_local(tmp_path, page, store)
    assert not (store.folder / ".slurm").exists()


def _once(mark, act):
    """A thread that acts when a file is there."""

    def wait():
        while not mark.exists():
            time.sleep(0.1)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@needs_slurm
@pytest.mark.usefixtures("cluster")
def test_a_cancelled_job_costs_no_cell(tmp_path):
    page = text(tmp_path)
    thread = _once(
        tmp_path / "mark",
        lambda: subprocess.run(["scancel", "--user=root"], check=True),
    )
    counts, store = run(tmp_path, "slurm", page, jobs="1")
    thread.join(5)
    assert counts.failed == 0
    same_as_local(tmp_path, page, store)


@needs_slurm
@pytest.mark.usefixtures("cluster")
def test_a_job_over_its_time_costs_no_cell(tmp_path):
    page = text(tmp_path)
    counts, store = run(tmp_path, "slurm", page, jobs="1", time="1")
    assert counts.failed == 0
    same_as_local(tmp_path, page, store)


@needs_slurm
@pytest.mark.usefixtures("cluster")
def test_a_killed_driver_starts_again(tmp_path):
    page = text(tmp_path)
    (tmp_path / "t.toml").write_text(page)
    words = ["run", "t.toml", "--engine", "loop", "--no-throughput", "--executor", "slurm"]
    words += ["--executor-option", "jobs=1", "--out", "slurm"]
    driver = subprocess.Popen([sys.executable, "-m", "clipbench", *words], cwd=tmp_path)
    _once(tmp_path / "mark", driver.kill).join(120)
    driver.wait(10)
    assert [*(tmp_path / "slurm" / ".slurm").iterdir()]
    counts, store = run(tmp_path, "slurm", page, jobs="1")
    assert counts.failed == 0
    same_as_local(tmp_path, page, store)


@needs_slurm
def test_a_folder_that_jobs_do_not_see_is_named(cluster, tmp_path):
    with pytest.raises(UsageError, match=rf"did not see {cluster}/.*; choose a folder that"):
        run(tmp_path, "slurm", PAGE, folder=str(cluster))
