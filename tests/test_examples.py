"""The examples run, and keep what every component must keep."""

import ast
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from test_cli import clipbench

from clipbench import registry
from clipbench.conformance import conform

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
STUDIES = [page for page in EXAMPLES.glob("*/*.toml") if "[run]" in page.read_text("utf-8")]
FILES = {
    "unet_on_a_dataset/unet.py": ("workload", "unet"),
    "optimizer_of_my_own/signum.py": ("optimizer", "signum"),
    "clip_of_my_own/ema.py": ("clip", "ema"),
    "gate_of_my_own/decay.py": ("optimizer", "fading-momentum"),
}
TINY = {
    r"^steps *= .*": "steps = 2",
    r"^batch *= .*": "batch = 2",
    r"^lr *= .*": "lr = 0.01",
    r"^seeds *= .*": "seeds = { select = 1, report = 1 }",
    r"^evaluations *= .*": "evaluations = 1",
    r"^beta *= .*": "beta = 0.9",
}


@pytest.mark.parametrize("page", STUDIES, ids=lambda page: page.parent.name)
def test_the_study_of_an_example_runs_to_its_end(page, tmp_path):
    """With fewer steps, seeds and learning rates."""
    folder = tmp_path / "example"
    shutil.copytree(page.parent, folder)
    text = page.read_text(encoding="utf-8")
    for wanted, tiny in TINY.items():
        text = re.sub(wanted, tiny, text, flags=re.MULTILINE)
    (folder / page.name).write_text(text)
    done = clipbench("run", folder / page.name, "--no-throughput", "--out", tmp_path / page.stem)
    assert done.exit_code == 0, done.output
    assert re.search(r"\d+ run; .* 0 failed\.", done.stdout), done.stdout


@pytest.mark.parametrize(("file", "component"), FILES.items(), ids=FILES)
def test_the_component_of_an_example_keeps_every_claim(file, component):
    registry.load_packaged()
    registry.load_file(EXAMPLES / file)
    assert [check for check in conform(*component) if not check.passed or check.doubtful] == []


def test_every_example_that_has_a_component_is_looked_at():
    written = {
        path.relative_to(EXAMPLES).as_posix()
        for path in EXAMPLES.glob("*/*.py")
        if re.search(r"^@(workload|optimizer|clip)\(", path.read_text("utf-8"), re.MULTILINE)
    }
    assert written == set(FILES)
    assert {page.parent.name for page in STUDIES} == {Path(file).parent.name for file in FILES}


def calls(work):
    """How many Python functions run."""
    counted = 0

    def count(_frame, event, _called):
        nonlocal counted
        counted += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


@pytest.mark.parametrize("example", ["gate_of_my_own", "clip_of_my_own"])
def test_both_sides_of_the_gates_example_do_the_same_work(example, monkeypatch):
    """And as many calls, within a fifth: the reference is not faster from the first day on."""
    monkeypatch.syspath_prepend(EXAMPLES / example)
    before = set(sys.modules)
    works = [importlib.import_module(name).update() for name in ("speed", "frozen")]
    for name in set(sys.modules) - before:
        del sys.modules[name]
    ours, reference = (work() for work in works)
    assert calls(works[0]) == pytest.approx(calls(works[1]), rel=0.2)
    assert ours.keys() == reference.keys()
    assert all(torch.equal(ours[name], reference[name]) for name in ours)


def test_the_workflow_of_the_gates_example_is_our_own_with_another_command(checkout):
    def script(path):
        return path.read_text("utf-8").partition("- name: clipbench gate")[2]

    ours = script(checkout / ".github" / "workflows" / "gate.yml")
    theirs = script(EXAMPLES / "gate_of_my_own" / "gate.yml")
    assert theirs.replace("clipbench gate --limits gate.toml", "tox -e gate --") == ours


def test_the_notebook_runs_and_every_cell_shows_something(monkeypatch):
    """Cell by cell, as a kernel does; its own outputs are not kept."""
    monkeypatch.chdir(EXAMPLES.parent)
    page = json.loads((EXAMPLES / "results.ipynb").read_text(encoding="utf-8"))
    names, shown = {}, []
    for cell in page["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        *lines, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(lines, []), "notebook", "exec"), names)  # noqa: S102 - our own notebook
        shown.append(eval(compile(ast.Expression(last.value), "notebook", "eval"), names))  # noqa: S307
    assert all(len(one) for one in shown if hasattr(one, "__len__"))
    assert shown[0]._repr_html_().startswith("<div>")
    assert any(hasattr(one, "_repr_png_") for one in shown)
