"""A report that follows a run: drawn again if more is stored, until the run has ended."""

import importlib
import threading
from contextlib import ExitStack

import pytest
import synthetic
from test_cli import clipbench, refused

from clipbench import report as report_
from clipbench.errors import UsageError
from clipbench.store import Store

command = importlib.import_module("clipbench.cli.report")  # there the command has the same name


@pytest.fixture
def growing(tmp_path):
    """A folder that holds a study and no cell yet, and functions that store one, and no row."""
    made = Store.create(tmp_path / "small", "small", 'title = "Small"\n[run]\nsteps = 60\n')
    made.write_page("components", synthetic.components(["digits"]))
    made.write_page("environment", {"study": "small", "environments": {}})

    def grow(seed):
        one = synthetic.cell("digits", "sgd", "none", 0.1, seed)
        synthetic.commit(made, f"shard-{seed}", [synthetic.rows(one, "learned")])
        asked = [*made.page("plan").get("cells", {}).get("select", []), one.id]
        made.write_page("plan", {"cells": {"select": asked}, "protocol": {}})

    return made, grow


def played(monkeypatch, *scenes):
    """Each wait of the command plays one scene; a wait after the last is a failure."""
    left = list(scenes)
    monkeypatch.setattr(command.time, "sleep", lambda _: left.pop(0)())
    return left


def test_it_is_drawn_again_if_more_is_stored_and_ends_with_the_run(growing, monkeypatch):
    made, grow = growing
    seen = []

    def write(store, *_):
        seen.append(len(store.read("cells")))
        return [store.folder / "report" / "report.md"]

    monkeypatch.setattr(report_, "write", write)
    with ExitStack() as run:
        run.enter_context(made.claim())

        def last():
            grow(2)
            run.close()

        left = played(monkeypatch, lambda: grow(0), lambda: None, lambda: grow(1), last)
        said = clipbench("report", made.folder, "--follow", "--format", "md")
    assert said.exit_code == 0, said.stderr
    assert left == []
    assert seen == [0, 1, 2, 3]  # before the first cell, and not while nothing is stored
    assert said.stdout.splitlines()[-1].startswith(f"{made.folder}: no run is filling this folder")


@pytest.mark.usefixtures("undrawn")
def test_a_real_page_is_there_from_the_first_moment_to_the_last(growing, monkeypatch):
    made, grow = growing
    page, pages = made.folder / "report" / "report.html", []
    with ExitStack() as run:
        run.enter_context(made.claim())

        def last():
            pages.append(page.read_text())
            run.close()

        def first():
            pages.append(page.read_text())
            grow(0)

        played(monkeypatch, first, last)
        said = clipbench("report", made.folder, "--follow", "--format", "html")
    assert said.exit_code == 0, said.stderr
    assert all("</html>" in text for text in pages)
    assert pages[0] != pages[1]
    assert page.read_text() == pages[1]


def test_without_a_run_it_is_drawn_once(growing, monkeypatch):
    made, _ = growing
    monkeypatch.setattr(report_, "write", lambda *_: [made.folder / "report.md"])
    played(monkeypatch)
    said = clipbench("report", made.folder, "--follow")
    assert said.exit_code == 0, said.stderr
    assert "no run is filling this folder" in said.stdout


def test_what_cannot_be_drawn_while_the_run_goes_on_is_tried_again(growing, monkeypatch):
    made, _ = growing
    tries = []

    def write(*_):
        tries.append(1)
        if len(tries) < 3:
            raise UsageError("the page plan.json is damaged.")
        return [made.folder / "report.md"]

    monkeypatch.setattr(report_, "write", write)
    with ExitStack() as run:
        run.enter_context(made.claim())
        played(monkeypatch, lambda: None, run.close)
        said = clipbench("report", made.folder, "--follow")
    assert said.exit_code == 0, said.stderr
    assert said.stderr.count("It is tried again.") == 2
    tries.clear()
    assert refused(clipbench("report", made.folder, "--follow"), "plan.json is damaged.")


def test_ctrl_c_ends_it_in_one_sentence(growing, monkeypatch):
    made, _ = growing
    monkeypatch.setattr(report_, "write", lambda *_: [made.folder / "report.md"])

    def interrupt():
        raise KeyboardInterrupt

    with made.claim():
        played(monkeypatch, interrupt)
        said = clipbench("report", made.folder, "--follow")
    assert said.exit_code == 130
    assert said.stderr == "clipbench: interrupted; nothing that was stored is lost.\n"


def test_a_look_whether_a_run_goes_on_takes_nothing_from_it(growing):
    made, _ = growing
    assert not made.claimed
    with made.claim():
        looks = []
        looker = threading.Thread(target=lambda: looks.append(Store(made.folder).claimed))
        looker.start()
        looker.join()
        assert looks == [True]
    with made.claim():
        pass
    assert not made.claimed


def test_a_part_needs_a_folder_of_its_own_and_names_what_there_is(growing, tmp_path):
    made, grow = growing
    grow(1000)
    assert refused(
        clipbench("report", made.folder, "--only", "problem=cosh"),
        "--only: a part must not replace the whole report; name a folder for it with --out.",
    )
    said = clipbench("report", made.folder, "--only", "problem=nosuch", "--out", tmp_path / "part")
    assert refused(said, '--only problem=nosuch: the study has no problem "nosuch".')
    said = clipbench(
        "report", made.folder, "--only", "clip=none", "--out", tmp_path / "part", "--format", "md"
    )
    assert said.exit_code == 0
    assert (tmp_path / "part" / "report.md").is_file()
    assert not (made.folder / "report").exists()
