"""`clipbench watch`, `doctor` and `advise`: scripts that nobody edited, what was planted in them,
what a process may do, and what is said of it.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import warm
from test_adapters import bits, names, run

import clipbench
from clipbench import report
from clipbench.analysis.watched import runs
from clipbench.analysis.whatif import what_if
from clipbench.cli.doctor import examined
from clipbench.report.terminal import lines
from clipbench.report.watched import advice, diagnosis
from clipbench.store import Store

LOOPS = Path(__file__).parent / "loops"
ROOT = Path(__file__).parents[1]


def command(*words: str, where: Path) -> subprocess.CompletedProcess[str]:
    """A command of clipbench; what it starts is a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return warm.run("-m", "clipbench", *words, env=environment, cwd=where)


def script(name: str) -> ModuleType:
    """One of the loops, as a module."""
    spec = importlib.util.spec_from_file_location(name, LOOPS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edited(loop: ModuleType, folder: Path) -> Any:
    """A watch in the form that the loop's library takes."""
    if "lightning" in loop.__name__:
        from clipbench.recording.adapters.lightning import Watch

        return Watch(folder)
    if "hugging" in loop.__name__:
        from clipbench.recording.adapters.transformers import Watch

        return Watch(folder)
    if "monai" in loop.__name__:
        from clipbench.recording.adapters.ignite import Watch

        return partial(Watch, out=folder)
    return partial(clipbench.watch, out=folder)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("unet_amp", "torch"),
        ("language_model", "torch"),
        ("lightning_module", "lightning"),
        ("hugging_face", "transformers"),
        ("monai_trainer", "ignite"),
    ],
)
@pytest.mark.usefixtures("foreign")
@pytest.mark.filterwarnings("ignore")
def test_doctor_finds_what_was_planted_in_a_script_with_and_without_edits(name, library, tmp_path):
    pytest.importorskip(library)
    loop = script(name)
    alone = loop.main()
    watched = loop.main(edited(loop, tmp_path / "edited"))
    assert bits(watched) == bits(alone)
    told = command(
        "watch", "--out", "free", "--", sys.executable, str(LOOPS / f"{name}.py"), where=tmp_path
    )
    assert told.returncode == 0, told.stderr
    for folder in ("edited", "free"):
        assert names(tmp_path / folder) == loop.PLANTED
        assert len(run(tmp_path / folder).curve) == loop.STEPS
    free, mine = (run(tmp_path / folder).curve for folder in ("free", "edited"))
    for column in ("loss", "grad_norm", "kept", "threshold"):
        np.testing.assert_array_equal(free[column], mine[column])
    assert f"{name}.py:" in told.stdout or library in ("lightning", "transformers")


PROCESSES = """
import os, sys
import torch

assert sys.argv[1:] == ["a b", 'q"x', "--steps", "3"], sys.argv
net = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
data = torch.utils.data.TensorDataset(torch.randn(40, 4))
for batch, in torch.utils.data.DataLoader(data, 4, num_workers=2):
    optimizer.zero_grad()
    net(batch).square().mean().backward()
    optimizer.step()
if os.fork() == 0:  # a child trains as well: it is not what is watched
    for _ in range(5):
        net(batch).square().mean().backward()
        optimizer.step()
    os._exit(0)
os.wait()
os._exit(3)
"""


def test_a_script_may_fork_workers_take_words_with_quotes_and_end_by_exit(tmp_path):
    (tmp_path / "my train.py").write_text(PROCESSES, encoding="utf-8")
    words = [sys.executable, "my train.py", "a b", 'q"x', "--steps", "3"]
    told = command("watch", "--", *words, where=tmp_path)
    assert told.returncode == 3, told.stderr
    assert "There is no clip in this loop" in told.stdout
    assert len(run(tmp_path / "runs" / "watched").curve) == 10
    # a second command that steps nothing says so, and not what the first one did
    told = command("watch", "--", sys.executable, "-c", "print('done')", where=tmp_path)
    assert told.returncode == 0
    assert "nothing was recorded" in told.stderr
    assert "There is no clip" not in told.stdout


def test_a_command_or_a_folder_that_cannot_be_used_is_a_sentence(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    Store.create(tmp_path / "study", "study", "title = 'A study'\n")
    for words, said in (
        (["watch", "--", "no-such-command"], "no-such-command: this cannot be run"),
        (["watch", "--out", "other", "--", "true"], "other: this holds something else"),
        (["watch", "--out", "study", "--", "true"], "study: this folder holds a study"),
        (["doctor", "study"], "holds a study, and no watched training"),
        (["doctor", "other"], "this is no results folder"),
    ):
        told = command(*words, where=tmp_path)
        assert told.returncode == 2
        assert told.stderr.startswith("clipbench: ")
        assert said in told.stderr
        assert len(told.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------------ what is said


def watched(folder: Path, threshold: float | None, lr: float = 0.1, kind: Any = None) -> Any:
    """The record of a loop whose gradients have the lengths 1 to 100."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = (kind or torch.optim.SGD)([weight], lr=lr)
    with clipbench.watch(None, optimizer, folder):
        for length in range(1, 101):
            optimizer.zero_grad()
            (weight * length).sum().backward()
            if threshold is not None:
                torch.nn.utils.clip_grad_norm_([weight], threshold)
            optimizer.step()
    return runs(Store(folder))[-1]


def words(parts: Any) -> str:
    return " ".join(" ".join(lines(parts)).split())


def test_shares_and_thresholds_are_those_of_the_norms(tmp_path):
    """The witness is numpy, on the norms 1 to 100."""
    norms = np.arange(1.0, 101.0)
    record = watched(tmp_path / "run", 50.0)
    np.testing.assert_allclose(record.norms, norms)
    table = what_if(record.norms, 50.0).set_index("why")
    assert table.loc["yours", "share"] == 0.5 == record.share
    assert table.loc["in common use", "share"].tolist() == [1.0, 1.0, 0.99, 0.95, 0.88]
    for percentile in (50, 90, 95, 99):
        row = table.loc[f"percentile {percentile} of all norms, to clip {100 - percentile} %"]
        assert row["threshold"] == np.percentile(norms, percentile)
        assert row["share"] == pytest.approx(1 - percentile / 100)
    early = table.iloc[-1]  # the 90th percentile of 1 to 10, and what it clips of 11 to 100
    assert (early["threshold"], early["share"], early["known_from"]) == (
        pytest.approx(9.1),
        1.0,
        0.1,
    )
    assert record.findings() == []
    assert "changed the gradient in 50 % of 100 steps**, first in step 50, last in step 99" in (
        diagnosis(record)[0].words
    )


def test_a_clip_that_never_fires_and_one_that_always_does_are_told_apart(tmp_path):
    never = watched(tmp_path / "never", 1000.0)
    assert [one.name for one in never.findings()] == ["never_fired"]
    assert "no gradient was longer than 100" in words(diagnosis(never))
    assert "an insurance" in words(advice(never))
    always = watched(tmp_path / "always", 0.5)
    assert [one.name for one in always.findings()] == ["always_fired"]
    said = words(diagnosis(always))
    assert "normalised descent" in said
    assert "the length learning rate × threshold, 0.05 at first" in said
    adam = watched(tmp_path / "adam", 0.5, kind=torch.optim.Adam)
    assert "the threshold cancels out" in words(diagnosis(adam))
    assert "normalised descent" not in words(diagnosis(adam))
    decayed = watched(
        tmp_path / "decay",
        0.5,
        kind=lambda params, lr: torch.optim.SGD(params, lr, weight_decay=0.1),
    )
    assert "weight decay of 0.1 is added after the clip" in words(diagnosis(decayed))


def test_advice_without_a_clip_depends_on_spikes(tmp_path):
    assert "no spikes" in words(advice(watched(tmp_path / "even", None)))
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with clipbench.watch(None, optimizer, tmp_path / "spikes"):
        for number in range(100):
            optimizer.zero_grad()
            (weight * (1000.0 if number % 50 == 49 else 1.0)).sum().backward()
            optimizer.step()
    said = words(advice(runs(Store(tmp_path / "spikes"))[0]))
    assert "has spikes" in said
    assert "cannot tell" in said


def test_an_optimizer_that_clips_by_itself_and_parameters_left_out_are_named(tmp_path):
    class Own(torch.optim.SGD):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, lr)
            self.defaults["max_grad_norm"] = 1.0

    with torch.random.fork_rng(devices=[]):
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    optimizer = Own(net[0].parameters(), 0.1)
    with clipbench.watch(net, optimizer, tmp_path / "run"):
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    found = {one.name: one for one in run(tmp_path / "run").findings()}
    assert set(found) == {"own_clip", "left_out"}
    assert "max_grad_norm=1.0" in words(diagnosis(run(tmp_path / "run")))
    assert found["left_out"].about["tensors"] == 2


def test_the_page_of_a_watched_folder_has_the_diagnosis_and_the_same_bytes_twice(tmp_path):
    for _ in range(2):
        watched(tmp_path / "run", 50.0)
    pages = []
    for name in ("one", "two"):
        written = report.write(Store(tmp_path / "run"), folder=tmp_path / name)
        pages.append({path.name: path.read_bytes() for path in written})
    assert pages[0] == pages[1]
    page = pages[0]["report.html"].decode()
    assert "Does my clip do anything?" in page
    assert page.count('<section id="run-') == 2  # both trainings, the last one first
    assert page.index("Run 2: ") < page.index("Run 1: ")
    assert "<script>" in page
    assert "yours" in pages[0]["report.md"].decode()


def test_doctor_says_of_a_running_training_what_is_written_until_now(tmp_path, capsys):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    watch = clipbench.watch(None, optimizer, tmp_path / "run").start()
    for _ in range(1500):
        weight.sum().backward()
        optimizer.step()
    assert examined(tmp_path / "run") == 0
    watch.stop()
    examined(tmp_path / "run")
    told = capsys.readouterr().out
    assert told.count("There is no clip in this loop") == 2
    assert len(run(tmp_path / "run").curve) == 1500


# --------------------------------------------------------------------------------- two processes


def _rank(rank: int, folder: str, port: int) -> None:
    """One process of a training by DDP with small buckets; it says whether its weights differ from
    those without a watch, and how far recorded norms are from those that the clip took.
    """
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    inputs = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
    targets, weights = (inputs[:, 0] > 0).long(), []
    for watching in (False, True):
        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Linear(30, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        parallel = torch.nn.parallel.DistributedDataParallel(net, bucket_cap_mb=0.005)
        optimizer, norms = torch.optim.SGD(net.parameters(), lr=0.1), []
        watch = clipbench.watch(net, optimizer, folder)
        if watching:
            watch.start()
        for _ in range(6):
            optimizer.zero_grad()
            output = parallel(inputs[rank::2])
            torch.nn.functional.cross_entropy(output, targets[rank::2]).backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)))
            optimizer.step()
        if watching:
            watch.stop()
        weights.append(bits(net))
    np.save(f"{folder}-{rank}.npy", norms)
    assert weights[0] == weights[1]
    torch.distributed.destroy_process_group()


def test_each_process_of_a_distributed_training_records_the_norms_of_all(tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "run"), port), nprocs=2)
    curves = [run(tmp_path / "run" / f"rank-{rank}").curve for rank in range(2)]
    for rank, curve in enumerate(curves):
        taken = np.load(tmp_path / f"run-{rank}.npy")
        np.testing.assert_allclose(curve["grad_norm"], taken, rtol=1e-6)
    np.testing.assert_allclose(curves[0]["grad_norm"], curves[1]["grad_norm"], rtol=1e-6)
    assert examined(tmp_path / "run") == 2  # the clip always fires, in either
    told = capsys.readouterr().out
    assert "rank-0:" in told
    assert "rank-1:" in told
