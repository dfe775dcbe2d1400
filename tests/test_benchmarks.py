"""Every program in benchmarks/ still runs: at two steps, for its numbers are not asked for here."""

from __future__ import annotations

import importlib
import importlib.util
import json
import multiprocessing
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from pages import study_page

from clipbench import registry, study

registry.load_packaged()


@pytest.fixture
def program(checkout, monkeypatch):
    """``program(name)`` imports one of them, as Python does that runs it: beside its neighbours."""
    monkeypatch.syspath_prepend(str(checkout / "benchmarks"))
    names = ("timing", "engines", "targets", "jax_peer", "whole_run", "held_out", "building")
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def engines(program, monkeypatch):
    module = program("engines")
    monkeypatch.setattr(module, "BLOCK", 2)
    monkeypatch.setattr(module, "FIXED", 2)
    monkeypatch.setattr(importlib.import_module("timing"), "WARM_UP", 0.0)
    with torch.random.fork_rng():  # the script seeds torch as a user does
        yield module


@pytest.mark.parametrize(
    "contender",
    [
        *("script", "loop", "batched", "native", "native, drawn before"),
        *("recording", "recording, native"),
    ],
)
def test_every_contender_of_engines_takes_its_steps(engines, contender):
    problem = replace(engines.PROBLEMS["wdbc"], ladder=(2,), native=(2,))
    met = []
    measured = engines.CONTENDERS[contender](problem, 0.0, lambda: met.append(contender))
    [(lanes, one)] = measured.items()
    assert met == [contender]
    assert lanes == (1 if contender in ("script", "loop") else 2)
    assert one["ratio" if contender.startswith("recording") else "microseconds"] > 0


def test_engines_writes_its_page_and_says_what_is_missing(engines, monkeypatch, tmp_path, capsys):
    """With a contender that raises, as a worker process tells it."""

    def here(contender, problem, seconds):
        if contender == "batched":
            return "TypeError: no lanes today"
        return [engines.CONTENDERS[contender](problem, seconds, lambda: None)] * 2

    monkeypatch.setattr(engines, "workers", here)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "engines.py",
            "--workloads",
            "wdbc,cosh",
            "--seconds",
            "0",
            "--rounds",
            "1",
        ],
    )
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--out", str(tmp_path)])
    monkeypatch.setattr(engines, "contenders", lambda *_: ["script", "loop", "batched"])
    engines.main()
    page = capsys.readouterr().out
    assert "- left out: cosh, batched: TypeError: no lanes today" in page
    assert json.loads((tmp_path / "engines.json").read_text())["rounds"].keys() == {"wdbc", "cosh"}
    assert {path.name for path in tmp_path.iterdir()} == {
        f"engines.{ending}" for ending in ("json", "md", "svg", "png")
    }


@pytest.mark.usefixtures("costly")
def test_engines_hands_a_pair_of_processes_what_they_measure(engines):
    """Real processes, spawned, which wait for each other."""
    found = engines.workers("loop", engines.PROBLEMS["cosh"], 0.0)
    assert [one[1]["microseconds"] > 0 for one in found] == [True, True]
    assert multiprocessing.active_children() == []


def test_the_study_of_a_whole_run_has_the_cells_it_says(program, tmp_path):
    text, cells = program("whole_run").page(13, 3000)
    assert len(study.parse("whole", text, tmp_path).cells()) == cells == 520


@pytest.mark.usefixtures("costly")
def test_a_whole_run_is_measured_beside_its_script(program):
    """Real commands, and real pairs of processes, for a moment."""
    found = program("whole_run").measure(1, 0.0, seeds=1, steps=4)
    (one,) = found["rounds"]
    assert len(one["script"]) == 3
    assert all(ratio > 0 for ratio in one["ratios"].values())
    assert "| once more |" in program("whole_run").table(found)


def test_building_is_measured_for_every_packaged_arm(program, monkeypatch):
    """Two of the sixty."""
    module = program("building")
    asked = module.jobs("cosh")
    assert len({job.cell.arm for job in asked}) == len(asked) == 60
    monkeypatch.setattr(module, "jobs", lambda _: asked[:2])
    seconds, arms = module.built("cosh")
    assert (seconds > 0, arms) == (True, 2)


def test_targets_prints_the_target_of_every_workload(program, monkeypatch, tmp_path, capsys):
    module = program("targets")
    monkeypatch.setattr(module, "SEEDS", 2)
    monkeypatch.setattr(
        module.protocol, "Options", partial(module.protocol.Options, workers=1, engine="loop")
    )
    (tmp_path / "page.toml").write_text(
        study_page("cosh", title="two steps", steps=2, lr=[0.001, 0.01], report=2)
    )
    module.main(str(tmp_path / "page.toml"), ["cosh"])
    assert "cosh, batch 32: target " in capsys.readouterr().out


@pytest.mark.usefixtures("costly")
def test_every_bench_runs(checkout):
    """One round each, without the two largest models, in a process of its own: benches set up
    torch for themselves.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks",
        "--benchmark-disable",
        "-q",
        "-k",
        "not 12M and not 25M",
    ]
    run = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_the_peer_in_jax_measures_its_lanes(program, monkeypatch, capsys):
    module = program("jax_peer")
    monkeypatch.setattr(sys, "argv", ["jax_peer.py", "cosh", "--seconds", "0", "--lanes", "2"])
    module.main()
    assert json.loads(capsys.readouterr().out)["lanes"]["2"]["microseconds"] > 0
