"""Choices of an engine that are kept between runs: what brings one back, and what must not."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest
from click.testing import CliRunner
from pages import study_page

from clipbench import protocol, registry, study
from clipbench.cache import folder as cache_folder
from clipbench.cli import cli
from clipbench.engines import Job
from clipbench.engines.rates import Choice
from clipbench.execute import Setting
from clipbench.execute.local import Local
from clipbench.protocol import remembered
from clipbench.protocol.campaign import begin
from clipbench.protocol.choose import Asked, _is_undisturbed, choose, remembered_as
from clipbench.store import Store

CHOICE = Choice(
    "batched", 8, False, {"loop": 2e-4, "8 lanes": 1e-5}, 4000, {}, "", ["sgd, version 1"]
)
PAGE = study_page("cosh", steps=12, batch=8, evaluations=2, device="cpu", lr=[0.01, 0.1], report=0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, in which choices are looked for."""
    monkeypatch.setenv("CLIPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CLIPBENCH_RATES")
    registry.load_packaged()
    return tmp_path / "cache"


def test_the_folder_is_the_users_cache_unless_another_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("CLIPBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "clipbench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "clipbench"


def test_a_choice_that_was_kept_comes_back(cache):
    name = remembered.key({"task": "cosh"})
    assert remembered.recall(name) is None
    remembered.keep(name, CHOICE)
    assert remembered.recall(name) == CHOICE
    assert [path.name for path in cache.glob("*.json")] == [f"{name}.json"]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "no text", "a folder"])
def test_a_damaged_file_counts_as_none(damage, cache):
    remembered.keep("name", CHOICE)
    file = cache / "name.json"
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut": whole[:-3],
            "flipped": whole.replace(b"batched", b"batchee"),
            "no text": b"\xff\xfe",
        }.get(damage, b"")
    )
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    assert remembered.recall("name") is None


def test_a_folder_that_cannot_be_made_keeps_nothing(cache):
    cache.write_text("a file is in the way")
    remembered.keep("name", CHOICE)
    assert remembered.recall("name") is None


def test_the_oldest_go_if_there_are_too_many(cache, monkeypatch):
    monkeypatch.setattr(remembered, "MOST", 3)
    for number in range(5):
        remembered.keep(f"{number}", CHOICE)
        os.utime(cache / f"{number}.json", (number, number))
    remembered.keep("last", CHOICE)
    assert {path.stem for path in cache.iterdir()} == {"3", "4", "last"}


def test_another_machine_library_or_version_of_clipbench_has_another_key(monkeypatch):
    keys = {remembered.key({"task": "cosh"}), remembered.key({"task": "wdbc"})}
    with monkeypatch.context() as patch:
        patch.setattr("clipbench.execute.machine.processor", lambda: "another")
        keys.add(remembered.key({"task": "cosh"}))
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda _: "another")
        keys.add(remembered.key({"task": "cosh"}))
    with monkeypatch.context() as patch:
        patch.setattr(remembered.cache, "sources", lambda: "another")
        keys.add(remembered.key({"task": "cosh"}))
    assert len(keys) == 5


def question(text, folder, slots=2, executor=Local, **asked):
    """The key of the one task of a page."""
    page = study.parse("tiny", text, folder)
    jobs = [Job(cell, cell.clip_settings(1.0)) for cell in protocol.plan(page).cells]
    question = {"engine": "auto", "memory": None, **asked}
    made = Asked(limit=600.0, executor=executor(slots), setting=Setting(), study=page, **question)
    return remembered_as(jobs, sum(job.cell.steps for job in jobs), made)


def test_another_question_has_another_key(tmp_path):
    first = question(PAGE, tmp_path)
    assert question(PAGE, tmp_path) == first
    others = {
        question(PAGE, tmp_path, slots=1),
        question(PAGE, tmp_path, engine="batched"),
        question(PAGE, tmp_path, memory=10**6),
        question(PAGE.replace("steps = 12", "steps = 13"), tmp_path),
        question(PAGE.replace("batch = 8", "batch = 9"), tmp_path),
        question(PAGE.replace("evaluations = 2", "evaluations = 3"), tmp_path),
        question(PAGE.replace('"cosh"', '"wdbc"'), tmp_path),
        question(PAGE.replace("select = 1", "select = 2"), tmp_path),
    }
    assert len(others | {first}) == 9


def test_rates_elsewhere_on_a_device_or_of_a_users_files_are_not_remembered(tmp_path):
    """Nobody looked at that machine, and a user's file may read others."""

    class Elsewhere:
        def __init__(self, slots):
            self.slots = slots

    assert question(PAGE, tmp_path, executor=Elsewhere) is None
    page = study.parse("tiny", PAGE, tmp_path)
    [job, *_] = [Job(cell, cell.clip_settings(1.0)) for cell in protocol.plan(page).cells]
    asked = Asked("auto", None, 600.0, Local(2), Setting(), page)
    for cell in (
        replace(job.cell, device="cuda"),
        replace(job.cell, clip=replace(job.cell.clip, version="0123456789abcdef")),
    ):
        assert remembered_as([replace(job, cell=cell)], 100, asked) is None


def test_what_a_plan_has_measured_a_run_recalls_unless_it_is_to_measure_anew(
    tmp_path, cache, monkeypatch
):
    """And the next plan says that it has it from another run."""
    page = study.parse("tiny", PAGE, tmp_path)
    made = Store.create(tmp_path / "out", page.name, page.text)
    measured = []

    def answered(executor, works, limit):
        measured.extend(works)
        return iter([(task, (CHOICE, True)) for task in works])

    monkeypatch.setattr("clipbench.execute.calls", answered)
    [row] = protocol.predict(page, protocol.plan(page), None)
    assert not row["remembered"]
    assert len(measured) == len([*cache.iterdir()]) == 1
    [again] = protocol.predict(page, protocol.plan(page), None)
    assert again["remembered"]
    assert {**again, "remembered": False} == row
    assert len(measured) == 1
    with made.claim(), Local(row["workers"]) as executor:
        campaign = begin(page, made, protocol.Options(), executor, protocol.Silent())
        choose(campaign)
    assert len(measured) == 1
    [stored] = made.page("calibration")["engines"].values()
    assert Choice(**stored) == CHOICE
    monkeypatch.setenv("CLIPBENCH_RATES", "anew")
    [row] = protocol.predict(page, protocol.plan(page), None)
    assert not row["remembered"]
    assert len(measured) == 2


def test_rates_that_another_program_disturbed_are_good_for_one_run_alone(
    tmp_path, cache, monkeypatch
):
    """A busy machine must not decide for every run to come."""
    page = study.parse("tiny", PAGE, tmp_path)
    monkeypatch.setattr(
        "clipbench.execute.calls", lambda _, works, __: ((task, (CHOICE, False)) for task in works)
    )
    [row] = protocol.predict(page, protocol.plan(page), None)
    assert row["engine"] == "8 lanes"
    assert not cache.exists()


@pytest.mark.parametrize(("share", "undisturbed"), [(1.0, True), (0.95, True), (0.5, False)])
def test_a_process_that_waits_for_its_processor_is_disturbed(share, undisturbed, monkeypatch):
    """A clock that gives the process a share of each millisecond."""
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: 1e-3 * next(ticks))
    monkeypatch.setattr("time.process_time", lambda: 1e-3 * share * next(ticks))
    assert _is_undisturbed() == undisturbed


def test_a_plan_says_that_a_rate_is_remembered(tmp_path, monkeypatch):
    """So that nobody takes it for one of today."""
    (tmp_path / "tiny.toml").write_text(PAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "clipbench.execute.calls", lambda _, works, __: ((task, (CHOICE, True)) for task in works)
    )
    first, second = (
        CliRunner().invoke(cli, ["plan", "tiny.toml"], prog_name="clipbench").stdout
        for _ in range(2)
    )
    assert "remembered" not in first
    assert "rate of 1 task remembered from another run; with CLIPBENCH_RATES=anew" in second
