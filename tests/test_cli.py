"""The command line: what it promises, what it refuses, and that a refusal is one sentence."""

import errno
import json
import os
import pty
import shutil
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import warm
from click.testing import CliRunner
from pages import study_page
from strangers import EMA, SIGNUM

from clipbench import cli as cli_
from clipbench import forkserver, progress, registry, study
from clipbench.store import Store

PAGE = study_page(
    "cosh",
    clips={"none": {}, "norm": {"max_norm": 1.0}},
    use=[],
    steps=8,
    batch=8,
    evaluations=2,
    lr=[0.01, 0.03],
    report=1,
)

XRAYS = '''
import numpy as np
import torch
from torch import nn

from clipbench import metrics, workload


@workload("my-xrays")
class MyXrays:
    """Binary classification of 28 × 28 X-rays."""

    path: str = {path!r}
    width: int = 16

    metric = metrics.roc_auc
    target = 0.30
    reference_loss = 0.693

    def data(self):
        arrays = np.load(self.path, allow_pickle=False)
        def split(name):
            x = torch.from_numpy(arrays[f"{{name}}_images"]).float().div(255).unsqueeze(1)
            return x, torch.from_numpy(arrays[f"{{name}}_labels"]).long().flatten()
        return {{"train": split("train"), "validation": split("val"), "test": split("test")}}

    def model(self):
        convolution, linear = nn.Conv2d(1, self.width, 3, 2, 1), nn.Linear(self.width * 196, 2)
        return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), linear)

    def loss(self, output, target):
        return nn.functional.cross_entropy(output, target)
'''
BROKEN = '''
from clipbench import Positive, clip, trees


@clip("doubler")
class Doubler:
    """Lengthens what it should shorten."""

    factor: Positive = 2.0

    def update(self, grads, state, params):
        return trees.scale(grads, self.factor), state
'''


def clipbench(*args, **options):
    """The command line, in this process; ``result.stdout`` and ``result.stderr`` apart."""
    return CliRunner().invoke(
        cli_.cli, [str(arg) for arg in args], prog_name="clipbench", **options
    )


def environment(*path):
    """That of a process that finds what this one finds, and what is in ``path`` first."""
    places = os.pathsep.join(str(place) for place in [*path, *sys.path] if place)
    return {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}


def process(*args, path=(), **where):
    """The command line as a process of its own."""
    return warm.run("-m", "clipbench", *map(str, args), env=environment(*path), **where)


def new_process(*arguments):
    """``python ARGUMENTS``, with nothing loaded."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def refused(result, *fragments):
    """Exit 2, one sentence on stderr, nothing else."""
    code = result.exit_code if hasattr(result, "exit_code") else result.returncode
    assert code == 2, result.stdout + result.stderr
    assert result.stderr.startswith("clipbench: ")
    assert result.stderr.endswith((".\n", "?\n"))
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    for fragment in fragments:
        assert fragment in result.stderr
    return True


@pytest.fixture
def written(tmp_path):
    """A function that writes a study page, changed here and there, and returns its path."""

    def write(*changes, name="tiny"):
        text = PAGE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run: the page, its folder, and what the command said."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "tiny.toml").write_text(PAGE)
    said = process("run", "tiny.toml", "--out", "out", "--no-throughput", cwd=folder)
    assert said.returncode == 0, said.stderr
    return folder / "tiny.toml", folder / "out", said


def test_a_replica_lies_in_the_folder_of_its_study(done, tmp_path):
    page, folder, _ = done
    said = clipbench("run", page, "--out", tmp_path / "none", "--replica", 1)
    assert refused(said, "no study to repeat")
    copy = shutil.copytree(folder, tmp_path / "out")
    options = ("--no-throughput", "--workers", 1, "--engine", "loop")
    said = clipbench("run", page, "--out", copy, "--replica", 1, *options)
    assert said.exit_code == 0, said.stderr
    again = Store(copy).replicas[1]
    assert again == copy / "replica-1"
    assert len(Store(again).read("cells")) == len(Store(copy).read("cells"))
    assert not {*Store(again).read("cells")["cell"]} & {*Store(copy).read("cells")["cell"]}
    assert clipbench("verify", again).exit_code == clipbench("verify", copy).exit_code == 0


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (("--out", "new"), ["awake", "import"]),
        (("--out", "filled"), ["import"]),
        (("--out", "new", "--executor", "slurm"), ["import"]),
        (("--out", "new", "--dry-run"), ["import"]),
    ],
)
def test_the_workers_server_loads_while_the_command_does(options, first, tmp_path, monkeypatch):
    """Before anything slow is imported; but not where no worker may be needed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "study.toml").touch()
    done = []
    monkeypatch.setattr(forkserver, "wake", lambda: done.append("awake"))
    monkeypatch.setattr("clipbench.cli.leaving._import", lambda _: done.append("import"))
    refused(clipbench("run", "nowhere.toml", *options), "nowhere.toml")
    assert done == first


# ---------------------------------------------------------------------------------------- bad input

BAD = {
    "an unknown workload": (
        ('"cosh"', '"cos"'),
        "first [[workload]]",
        'no workload "cos"',
        "Did you mean cosh?",
    ),
    "an unknown optimizer": (
        ('"sgd"', '"sdg"'),
        "first [[optimizer]]",
        'no optimizer "sdg"',
        "Did you mean sgd?",
    ),
    "an unknown clip": (
        ('"norm"', '"nrom"'),
        "second [[clip]]",
        'no clip "nrom"',
        "Did you mean norm?",
    ),
    "an unknown setting": (
        ("max_norm", "max_nrom"),
        "second [[clip]]",
        "no setting `max_nrom`",
        "Did you mean max_norm?",
    ),
    "an unknown word in [run]": (
        ("batch = 8", "bach = 8"),
        "[run]",
        "no setting `bach`",
        "Did you mean batch?",
    ),
    "an unknown table": (("use = []", "usee = []"), "no setting `usee`", "Did you mean use?"),
    "a missing setting": (("max_norm = 1.0", ""), "second [[clip]]", "needs `max_norm`"),
    "a negative threshold": (
        ("max_norm = 1.0", "max_norm = -1.5"),
        "second [[clip]]",
        "-1.5",
        "positive number",
    ),
    "a threshold of zero": (
        ("max_norm = 1.0", "max_norm = 0"),
        "second [[clip]]",
        "positive number",
    ),
    "a threshold that is NaN": (("max_norm = 1.0", "max_norm = nan"), "second [[clip]]", "nan"),
    "a threshold in words": (
        ("max_norm = 1.0", 'max_norm = "one"'),
        "second [[clip]]",
        "'one'",
        "positive number",
    ),
    "one negative of several thresholds": (
        ("max_norm = 1.0", "max_norm = [1.0, -2.0]"),
        "-2.0",
        "positive number",
    ),
    "no threshold at all": (("max_norm = 1.0", "max_norm = []"), "second [[clip]]", "empty list"),
    "the same threshold twice": (("max_norm = 1.0", "max_norm = [1.0, 1.0]"), "1.0 twice"),
    "both kinds of threshold": (("max_norm = 1.0", "max_norm = 1.0\nrelative = 1"), "not both"),
    "a negative relative threshold": (
        ("max_norm = 1.0", "relative = -1"),
        "`relative` is -1",
        "positive number",
    ),
    "a relative threshold that is NaN": (("max_norm = 1.0", "relative = nan"), "`relative` is nan"),
    "a relative threshold in words": (("max_norm = 1.0", 'relative = "x"'), "`relative` is 'x'"),
    "no relative threshold": (("max_norm = 1.0", "relative = []"), "empty list"),
    "a negative lr": (("[0.01, 0.03]", "-0.1"), "[run]", "`lr` is -0.1", "positive number"),
    "one negative of several lrs": (("0.03]", "-0.03]"), "[run]", "-0.03", "positive number"),
    "an lr of zero": (("[0.01, 0.03]", "0"), "[run]", "`lr` is 0", "positive number"),
    "an lr that is NaN": (("[0.01, 0.03]", "nan"), "[run]", "`lr` is nan", "positive number"),
    "an infinite lr": (("[0.01, 0.03]", "inf"), "[run]", "`lr` is inf", "positive number"),
    "an lr in words": (("[0.01, 0.03]", '"fast"'), "[run]", "`lr` is 'fast'", "positive number"),
    "an lr that is a truth": (("[0.01, 0.03]", "true"), "[run]", "`lr` is True", "positive number"),
    "no lr at all": (("[0.01, 0.03]", "[]"), "[run]", "`lr`", "empty list"),
    "an lr left out": (("lr = [0.01, 0.03]", ""), "no lr is given", '"sgd"', '"cosh"'),
    "an lr for nobody": (
        ('"cosh"', '"cosh"\nlr = { sgdd = 0.1 }'),
        "first [[workload]]",
        '"sgdd"',
        "Did you mean sgd?",
    ),
    "a clip twice": (
        ('name = "none"', 'name = "none"\n[[clip]]\nname = "none"'),
        "asked for twice",
        "cosh, sgd",
    ),
    "no clips": (
        ('[[clip]]\nname = "none"\n\n[[clip]]\nname = "norm"\nmax_norm = 1.0\n', ""),
        "`clip`",
        "at least one [[clip]]",
    ),
    "no steps": (("steps = 8", "steps = 0"), "[run]", "`steps` is 0"),
    "steps left out": (("steps = 8", ""), "[run]", "`steps` is missing"),
    "no device": (("batch = 8", "batch = 8\ndevice = []"), "[run]", "`device`", "empty list"),
    "an unknown device": (("batch = 8", 'batch = 8\ndevice = "tpu"'), "[run]", "'tpu'"),
    "an unknown rule": (
        ("batch = 8", "batch = 8\nevents = { blow = 2.0 }"),
        "`blow`",
        "Did you mean blow_up?",
    ),
    "no TOML": (("[run]", "[run"), "not TOML", "line 2"),
    "a name with a line break": (('"norm"', '"no\\nrm"'), "no clip"),
    "a missing plug-in": (("use = []", 'use = ["gone.py"]'), "use: there is no file", "gone.py"),
    "a plug-in that is no list": (("use = []", 'use = "ema.py"'), "`use`", "list of file names"),
    "a plug-in that is no Python": (
        ("use = []", 'use = ["tiny.toml"]'),
        "tiny.toml is not a Python file",
    ),
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("fault", BAD)
def test_a_page_with(written, tmp_path, fault, command):
    """…is refused in one sentence that says where, what came and what was wanted, before a
    folder is made.
    """
    change, *fragments = BAD[fault]
    path = written(change)
    assert refused(clipbench(command, path, "--out", tmp_path / "out"), "tiny.toml", *fragments)
    assert not (tmp_path / "out").exists()


PLUGINS = {
    "a syntax error": ("def broken(:\n", "line 1", "SyntaxError"),
    "an import that fails": (
        "\n\nimport there_is_no_such_module\n",
        "line 3",
        "there_is_no_such_module",
    ),
    "an exception of many lines": (
        "raise ValueError('one\\ntwo\\n\\nthree')\n",
        "line 1",
        "one two three",
    ),
    "an exit": ("raise SystemExit(0)\n", "SystemExit"),
    "a name that is taken": (
        'from clipbench import Positive, clip\n@clip("norm")\nclass Mine:\n    c: Positive = 1.0\n',
        'the clip name "norm" is taken',
    ),
    "a name no study can write": (
        'from clipbench import clip\n@clip("My Clip")\nclass Mine:\n    pass\n',
        "lower-case words",
    ),
    "a setting that means something else": (
        (
            'from clipbench import Positive, clip\n@clip("mine")\n'
            "class Mine:\n    lr: Positive = 1.0\n"
        ),
        "a setting cannot be called `lr`",
    ),
}


@pytest.mark.parametrize("fault", PLUGINS)
def test_a_plug_in_with(written, tmp_path, fault):
    """…is wrong use: nothing runs."""
    content, *fragments = PLUGINS[fault]
    (tmp_path / "mine.py").write_text(content)
    assert refused(
        clipbench("run", written(("use = []", 'use = ["mine.py"]')), "--out", tmp_path / "out"),
        *fragments,
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("quik", ['no packaged study "quik"', "Did you mean quick?", "smoke"]),
        ("../quick", ['"../quick" is no study']),
        ("/quick", ['"/quick" is no study']),
        (".", ['"." is no study']),
        ("", ["no packaged study"]),
        ("no\nsuch", ["no packaged study"]),
        ("gone.toml", ["gone.toml: there is no such file"]),
        ("../gone.toml", ["../gone.toml: there is no such file"]),
        ("x" * 300 + ".toml", []),
    ],
)
def test_a_study_that_is_not_there_is_refused(name, fragments):
    for command in ("run", "plan", "throughput"):
        assert refused(clipbench(command, name), *fragments)


@pytest.mark.parametrize(
    "name", ["con", "NUL", "com1", "x" * 65, "-x", "_x", "a b", "a.b", "ä", ""]
)
def test_a_study_name_that_no_folder_should_bear_is_refused(written, name):
    assert refused(clipbench("run", written(name=name)), "a study's name is up to 64 letters")


def test_a_study_page_that_is_a_folder_or_no_text_is_refused(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("folder.toml", "bytes.toml"):
        assert refused(clipbench("run", tmp_path / name), name, "cannot be read")


def test_folders_that_hold_something_else_are_refused_and_left_alone(written, tmp_path, done):
    page, (_, folder, _) = written(name="other"), done
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    before = sorted(folder.rglob("*"))
    for command in (["run"], ["run", "--anew"], ["plan"], ["throughput"]):
        assert refused(
            clipbench(*command, page, "--out", folder), 'holds the study "tiny", not "other"'
        )
    assert refused(
        clipbench("run", page, "--out", tmp_path / "mine"), "not empty and holds no study"
    )
    assert refused(
        clipbench("run", page, "--anew", "--out", tmp_path / "mine"), "not empty and holds no study"
    )
    assert refused(
        clipbench("throughput", page, "--out", tmp_path / "mine"), "not empty and holds no study"
    )
    assert refused(clipbench("run", page, "--out", page), "this is a file")
    for command in ("report", "verify"):
        assert refused(clipbench(command, tmp_path / "mine"), "this is no results folder")
        assert refused(clipbench(command, tmp_path / "gone"), "this is no results folder")
    assert sorted(folder.rglob("*")) == before
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made_is_one_sentence(written):
    page = written()
    assert refused(clipbench("run", page, "--out", page / "out"), "nothing that was stored is lost")
    assert refused(
        clipbench("run", page, "--out", "/proc/clipbench/out"), "nothing that was stored is lost"
    )


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EIO]
)
@pytest.mark.parametrize(
    "what", ["os.fsync", "os.replace", "pyarrow.parquet.ParquetWriter.write_table"]
)
def test_a_disk_that_takes_nothing_more_is_one_sentence_and_loses_nothing(
    written, done, tmp_path, monkeypatch, number, what
):
    """In the middle of a run that would add cells to stored ones. Real ones name the file, all
    but the ones that are full.
    """
    folder = shutil.copytree(done[1], tmp_path / "out")
    before = {path: path.read_bytes() for path in folder.glob("*/*")}

    def broken(*_, **__):
        raise OSError(
            number, os.strerror(number), *([] if number in cli_.leaving.FULL else ["the/file"])
        )

    def ended(jobs, store, *_, **__):
        store.commit("select-0009", {"cells": []})

    page = written(("0.03]", "0.03, 0.1]"))
    with monkeypatch.context() as patch:
        patch.setattr("clipbench.execute.run", ended)
        patch.setattr(what, broken)
        result = clipbench("run", page, "--out", folder, "--no-throughput")
    words = "the disk is full" if number in cli_.leaving.FULL else os.strerror(number).lower()
    assert refused(result, words, "nothing that was stored is lost")
    assert {path: path.read_bytes() for path in folder.glob("*/*")} == before
    assert not list(folder.rglob(".writing-*"))


@pytest.mark.parametrize(
    "args",
    [
        ["frobnicate"],
        ["run"],
        ["run", "quick", "--frob"],
        ["run", "quick", "--workers", "0"],
        ["list", "clip", "wdbc"],
        ["list", "clips", "norm", "value"],
    ],
)
def test_a_command_or_option_that_is_not_there_is_wrong_use(args):
    result = clipbench(*args)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_a_real_process_says_the_same_and_no_more(written, tmp_path):
    assert refused(process("run", "quik"), "Did you mean quick?")
    wrong = written(('"norm"', '"nrom"'))
    result = new_process("-m", "clipbench", "run", wrong, "--out", tmp_path / "out")
    assert refused(result, "Did you mean norm?")
    assert result.stdout == ""


# ----------------------------------------------------------------------------------------- commands


def test_run_says_what_it_did_and_then_that_all_is_stored(done):
    """Nothing on stderr: it is no terminal here."""
    page, folder, said = done
    cells = len(Store(folder).read("cells"))
    assert said.stderr == ""
    assert said.stdout.startswith(f"out: {cells} cells, 0 kept, {cells} run; ")
    again = clipbench("run", page, "--out", folder, "--no-throughput")
    assert (again.exit_code, again.stderr) == (0, "")
    assert f"everything is stored, all {cells} cells kept" in again.stdout


def test_verify_holds_or_lists_what_is_broken(done, tmp_path):
    _, folder, _ = done
    sound = clipbench("verify", folder)
    assert (sound.exit_code, sound.stderr) == (0, "")
    assert "every promise holds" in sound.stdout
    copy = shutil.copytree(folder, tmp_path / "copy")
    victim = min((copy / "curves").iterdir())
    victim.write_bytes(victim.read_bytes()[:-1])
    broken = clipbench("verify", copy)
    assert broken.exit_code == 1
    assert f"curves/{victim.name} does not match the hash in its name" in broken.stdout
    assert broken.stderr.startswith("clipbench: ")
    assert broken.stderr.count("\n") == 1


def test_anew_renames_the_old_results_and_deletes_nothing(done, tmp_path):
    """A damaged page included."""
    page, folder, _ = done
    old = shutil.copytree(folder, tmp_path / "out")
    (old / "environment.json").write_text("{")
    before = {path.relative_to(old): path.read_bytes() for path in old.rglob("*") if path.is_file()}
    result = clipbench("run", page, "--out", old, "--anew", "--no-throughput", "--workers", 1)
    assert result.exit_code == 0, result.stderr
    assert "the old results are now" in result.stdout
    renamed = tmp_path / "out.old-1"
    assert {
        path.relative_to(renamed): path.read_bytes()
        for path in renamed.rglob("*")
        if path.is_file()
    } == before
    assert Store(old).problems() == []


@pytest.mark.parametrize("command", ["run", "throughput"])
def test_a_page_named_like_a_packaged_study_needs_a_folder_of_its_own(
    written, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    assert refused(
        clipbench(command, written(name="quick")),
        '"quick" is the name of a packaged study',
        "--out",
    )
    assert not (tmp_path / "results").exists()


def test_a_folder_whose_cells_are_all_others_is_left_alone(done, written, tmp_path, monkeypatch):
    """Unless it is named: then somebody means it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(done[1], tmp_path / "results" / "tiny")
    before = sorted(path.name for path in (tmp_path / "results").rglob("*"))
    longer = written(("steps = 8", "steps = 9"))
    assert refused(
        clipbench("run", longer, "--no-throughput"),
        "results/tiny",
        "asks for none of them",
        "--out",
        "--anew",
    )
    assert sorted(path.name for path in (tmp_path / "results").rglob("*")) == before
    said = clipbench("run", written(), "--no-throughput")
    assert (said.exit_code, "everything is stored" in said.stdout) == (0, True)


def test_pack_says_how_much_smaller_a_folder_is_and_what_report_writes_there(done, tmp_path):
    folder = shutil.copytree(done[1], tmp_path / "out")
    said = clipbench("pack", folder, "--curves", "none", "--formats", "md,svg", "--largest", "1kB")
    assert (said.exit_code, "MB became" in said.stdout) == (0, True)
    assert clipbench("report", folder).exit_code == 0
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "This copy of the results keeps no curves" in text
    assert "(This figure is not kept here" in text
    assert {path.suffix for path in (folder / "report").rglob("*") if path.is_file()} <= {
        ".md",
        ".svg",
        ".txt",
    }
    assert clipbench("verify", folder).exit_code == 0
    assert refused(clipbench("pack", folder, "--formats", "pgn"), "Did you mean png?")


def test_plan_runs_nothing_and_makes_no_folder(done, tmp_path, monkeypatch):
    page, folder, _ = done
    monkeypatch.chdir(tmp_path)
    result = clipbench("plan", page)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "selection: 4 cells in about 1 shard; report settings: to be chosen." in result.stdout
    assert "at most: 17 cells with extended axes and the report" in result.stdout
    assert list(tmp_path.iterdir()) == []
    before = sorted(folder.rglob("*"))
    assert clipbench("plan", page, "--out", folder).exit_code == 0
    assert sorted(folder.rglob("*")) == before


def test_cells_for_an_absent_device_are_named_in_plan_and_run(written, tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    page = written(
        ("batch = 8", 'batch = 8\ndevice = ["cpu", "cuda"]'), ("report = 1", "report = 0")
    )
    line = "not run: 4 cuda cells, because this machine has no CUDA device."
    assert line in clipbench("plan", page).stdout
    assert line in clipbench("run", page, "--out", tmp_path / "out", "--no-throughput").stdout
    assert refused(
        clipbench("run", page, "--device", "cuda", "--out", tmp_path / "out"), "leave --device out"
    )
    alone = written(("batch = 8", 'batch = 8\ndevice = "cuda"'))
    planned = clipbench("plan", alone)
    assert planned.exit_code == 0
    assert line in planned.stdout
    assert refused(
        clipbench("run", alone, "--out", tmp_path / "none"), "every cell is for an absent device"
    )
    assert not (tmp_path / "none").exists()


def test_a_failed_cell_is_a_finding(written, tmp_path):
    """Exit 1; it is run again next time, and so it is missing, and no broken promise."""
    (tmp_path / "never.py").write_text(
        'from clipbench import Positive, clip\n@clip("never")\nclass Never:\n    c: '
        "Positive = 1.0\n"
        "    def update(self, grads, state, params):\n        raise ValueError('never')\n"
    )
    page = written(
        ("use = []", 'use = ["never.py"]'),
        ('"norm"\nmax_norm', '"never"\nc'),
        ("report = 1", "report = 0"),
    )
    result = clipbench("run", page, "--out", tmp_path / "out", "--no-throughput")
    assert result.exit_code == 1
    assert "failed" in result.stdout
    assert " 0 failed" not in result.stdout
    checked = clipbench("verify", tmp_path / "out")
    assert (
        checked.exit_code,
        "failed (ValueError: never); the next run tries it again" in checked.stdout,
    ) == (0, True)


def test_list_prints_every_registered_name():
    registry.load_packaged()
    result = clipbench("list")

    def first_words(text):
        return {
            line.split()[0]
            for line in text.splitlines()
            if line.startswith("  ") and line[2:3].strip()
        }

    named = first_words(result.stdout)
    assert {name for kind in registry.KINDS for name in registry.names(kind)} | set(
        study.packaged()
    ) <= named
    for section in ("workloads", "optimizers", "clips"):
        assert first_words(clipbench("list", section).stdout) == set(
            registry.names(section.removesuffix("s"))
        )
    assert first_words(clipbench("list", "studies").stdout) == set(study.packaged())


@pytest.mark.parametrize("kind", registry.KINDS)
def test_list_tells_the_source_of_every_packaged_component(kind):
    """And of a workload what a step costs, and whether it has lanes."""
    registry.load_packaged()
    listed = clipbench("list", f"{kind}s").stdout
    ours = [
        cls
        for name in registry.names(kind)
        if (cls := registry.find(kind, name)).__module__.startswith("clipbench.")
    ]
    assert listed.count("Source: ") == len([cls for cls in ours if cls.name != "none"])
    assert listed.count("a step of the loop takes") == (len(ours) if kind == "workload" else 0)
    assert all(registry.source(cls) in listed for cls in ours)


def test_list_takes_singular_words_and_names():
    for several, one in (("workloads", "workload"), ("studies", "study"), ("clips", "clip")):
        assert clipbench("list", one).stdout == clipbench("list", several).stdout
    by_name = clipbench("list", "norm").stdout
    assert by_name == clipbench("list", "clip", "norm").stdout
    assert by_name.startswith("clip norm\n")
    assert "max_norm (positive number), norm_type (2 or 'inf'; 2 if not given)." in by_name
    assert clipbench("list", "study", "smoke").stdout == study.packaged()["smoke"]
    assert clipbench("list", "smoke").stdout == study.packaged()["smoke"]
    assert refused(clipbench("list", "nrom"), 'there is no "nrom". Did you mean norm?')
    assert refused(clipbench("list", "clip", "wdbc"), 'there is no clip "wdbc".')


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell):
    said = clipbench(env={"_CLIPBENCH_COMPLETE": f"{shell}_source"})
    assert said.exit_code == 0
    assert f"_CLIPBENCH_COMPLETE={shell}_complete" in said.stdout


def test_a_shell_completes_studies_folders_and_words(done, tmp_path, monkeypatch):
    def completed(words):
        asked = {"COMP_WORDS": f"clipbench {words}", "COMP_CWORD": str(len(words.split(" ")))}
        said = clipbench(env={"_CLIPBENCH_COMPLETE": "bash_complete", **asked})
        return said.stdout.splitlines()

    monkeypatch.chdir(tmp_path)
    (tmp_path / "qualms.toml").write_text(PAGE)
    shutil.copytree(done[1], tmp_path / "results" / "mine")
    (tmp_path / "results" / "notes").mkdir()
    assert completed("run qu") == ["plain,qualms.toml", "plain,quick"]
    assert completed("report results/") == ["plain,results/mine"]
    assert completed("compare results/mine results/") == ["plain,results/mine"]
    assert completed("verify elsewhere/") == ["dir,elsewhere/"]
    assert completed("list wo") == ["plain,workloads", "plain,workload"]
    assert completed("expo") == ["plain,export"]


def test_nothing_is_coloured_with_or_without_no_color(done):
    """So that NO_COLOR has nothing to turn off, on a terminal and in a pipe."""
    commands = (["--help"], ["list"], ["list", "norm"], ["verify", done[1]], ["frobnicate"])
    for args in (*commands, ["compare", done[1], done[1]]):
        shown = clipbench(*args, color=True)
        assert "\x1b[" not in shown.output
        assert clipbench(*args, color=True, env={"NO_COLOR": "1"}).output == shown.output


def test_throughput_times_again_beside_what_is_stored(done, tmp_path):
    page, folder, _ = done
    copy = shutil.copytree(folder, tmp_path / "copy")
    counts = []
    for _ in range(2):
        result = clipbench(
            "throughput", page, "--out", copy, "--sizes", "none", "--implementation", "torch"
        )
        assert result.exit_code == 0, result.stderr
        counts.append(len(Store(copy).read("throughput")))
    assert counts[0] > 0
    assert counts[1] == 2 * counts[0]
    assert Store(copy).problems() == []


@pytest.mark.usefixtures("costly")
def test_throughput_fills_a_new_folder_from_which_run_and_report_go_on(written, tmp_path):
    """In a process of its own, with the compiled program among what is timed; nothing but
    sentences comes out.
    """
    page, folder = written(name="timed"), tmp_path / "timed"
    asked = [
        "-m",
        "clipbench",
        "throughput",
        page,
        "--out",
        folder,
        "--sizes",
        "1k,tiny",
        "--implementation",
        "torch,fused,compiled",
    ]
    said = new_process(*asked)
    assert said.returncode == 0, said.stderr
    assert all(line.startswith("clipbench: ") for line in said.stderr.splitlines())
    timed = Store(folder).read("throughput")
    assert f"{len(timed):,} blocks timed" in said.stdout
    assert {"cosh", "993 in 4 tensors", "9.6k in 150 tensors"} == set(timed["problem"])
    assert {"torch", "fused"} <= set(timed["implementation"])
    assert timed.loc[timed["part"] == "update", "floor_bytes"].notna().all()
    report = clipbench("report", folder)
    assert report.exit_code == 0, report.stderr
    assert "Which implementation to use" in (folder / "report" / "report.md").read_text(
        encoding="utf-8"
    )
    assert clipbench("run", page, "--out", folder).exit_code == 0
    assert len(Store(folder).read("throughput")) == len(timed)
    assert Store(folder).problems() == []


@pytest.mark.parametrize(
    ("option", "fragments"),
    [
        (("--sizes", "1k,12M"), ('--sizes: there is no size "12M".', "There are: 1k, 10k, tiny")),
        (("--sizes", ""), ('there is no size ""',)),
        (("--implementation", "Flat"), ('there is no implementation "Flat". Did you mean flat?',)),
    ],
)
def test_throughput_refuses_what_it_does_not_know_and_makes_no_folder(
    written, tmp_path, option, fragments
):
    assert refused(
        clipbench("throughput", written(), "--out", tmp_path / "new", *option), *fragments
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "command", [["--help"], ["run", "--help"], ["--version"], ["verify"], ["report"]]
)
def test_what_needs_no_torch_does_not_import_it(done, command):
    """Help, ``verify`` and ``report``; a user of a laptop without CUDA waits for nothing."""
    if command[0] in ("verify", "report"):
        command = [*command, str(done[1])]
    code = f"""
import sys
from clipbench.cli import cli
try:
    cli({command!r}, prog_name="clipbench")
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules
"""
    result = new_process("-c", code)
    assert result.returncode == 0, result.stderr


def test_a_broken_entry_point_is_a_warning_and_the_rest_goes_on(tmp_path):
    """Three installed packages: one raises, one names what is not there, one is sound."""
    for name, target, content in (
        ("broken", "broken_clips", "raise ValueError('half\\ninstalled')"),
        ("absent", "absent_clips:Clip", ""),
        ("sound", "sound_clips", EMA),
    ):
        information = tmp_path / f"{name}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        (information / "entry_points.txt").write_text(
            f"[clipbench.components]\n{name} = {target}\n"
        )
        (tmp_path / f"{name}_clips.py").write_text(content)
    result = process("list", "clips", path=[tmp_path])
    assert result.returncode == 0
    assert {"ema", "norm", "none"} <= {line.split()[0] for line in result.stdout.splitlines()}
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert all(
        line.startswith("clipbench: warning: the entry point ") and "was left out" in line
        for line in lines
    )
    assert '"absent"' in lines[0]
    assert '"broken"' in lines[1]


# ----------------------------------------------------------------------------------------- progress


class Screen:
    """A stderr that is, or is not, a terminal."""

    def __init__(self, terminal):
        self.terminal, self.text = terminal, ""

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_drawn_on_a_terminal_and_nowhere_else(monkeypatch, terminal):
    from clipbench.engines import Job, Record

    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    cell = study.parse("tiny", PAGE, None).cells()[0]
    with cli_.Bars() as bars:
        bars.phase("select", 2)
        bars.record(Record(Job(cell, {}), failure="killed"))
        bars.record(Record(Job(cell, {})))
        bars.phase("report", 0)
    if terminal:
        assert "select" in screen.text
        assert "2/2" in screen.text
        assert "failed=1" in screen.text
    else:
        assert screen.text == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_what_takes_seconds_says_so_on_a_terminal_and_its_clock_goes_on(monkeypatch, terminal):
    """A phase of one long call has a bar that stands still otherwise; elsewhere nothing is said."""
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "SECOND", 0.02)
    with progress.waiting("drawing the report of DIR"):
        time.sleep(0.2)
    line, screen.text = screen.text, ""
    with cli_.Bars() as bars:
        bars.phase("calibrate", 1)
        time.sleep(0.2)
    assert (line.count("clipbench: drawing the report of DIR 00:00") > 1) == terminal
    assert (screen.text.count("0/1") > 1) == terminal
    assert terminal or line + screen.text == ""


def read_all(screen):
    """What is written at the other end until that is closed."""
    shown = b""
    with suppress(OSError):
        while part := os.read(screen, 4096):
            shown += part
    return shown


def test_a_run_at_a_terminal_draws_its_bars(done):
    """A real pseudo-terminal: cells done, diverged and failed."""
    page, folder, _ = done
    screen, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    asked = ("run", page, "--out", folder.with_name("seen"), "--no-throughput")
    with ThreadPoolExecutor(1) as reader:
        shown = reader.submit(read_all, screen)
        run = process(*asked, stderr=os.ttyname(end))
        os.close(end)
    os.close(screen)
    shown = shown.result()
    assert run.returncode == 0
    assert b"select" in shown
    assert b"diverged=" in shown
    assert b"failed=0" in shown


# ------------------------------------------------------------------------------------------ conform


@pytest.mark.parametrize("name", ["norm", "momentum", "cosh"])
def test_a_packaged_component_of_each_kind_conforms(name):
    """That all of them keep every claim, and not only what the command says of it, is tested in
    test_conformance.py.
    """
    result = clipbench("conform", name)
    assert result.exit_code == 0, result.stdout + result.stderr
    assert "BROKEN" not in result.stdout
    assert "holds" in result.stdout
    assert "Not tested: that " in result.stdout


@pytest.mark.parametrize("name", ["ema", "signum", "my-xrays"])
def test_a_strangers_file_conforms(tmp_path, name):
    """The three of the style page, whole."""
    import numpy as np

    draw = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = draw.integers(0, 256, (40, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(40, dtype=np.uint8)[:, None] % 2
    np.savez(tmp_path / "x.npz", **arrays)
    content = {
        "ema": EMA,
        "signum": SIGNUM,
        "my-xrays": XRAYS.format(path=str(tmp_path / "x.npz")),
    }[name]
    (tmp_path / f"{name}.py").write_text(content)
    result = clipbench("conform", tmp_path / f"{name}.py")
    assert result.exit_code == 0, result.stdout + result.stderr
    assert name in result.stdout


def test_a_broken_component_is_a_finding_that_names_the_promise(tmp_path):
    (tmp_path / "doubler.py").write_text(BROKEN)
    result = clipbench("conform", tmp_path / "doubler.py")
    assert result.exit_code == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout
    assert result.stderr.startswith("clipbench: ")


def test_conform_refuses_what_it_cannot_find(tmp_path):
    (tmp_path / "empty.py").write_text("")
    assert refused(clipbench("conform", tmp_path / "gone.py"), "there is no file")
    assert refused(clipbench("conform", tmp_path / "empty.py"), "registers no component")
    assert refused(clipbench("conform", "nrom"), 'no component "nrom"', "Did you mean norm?")


# ------------------------------------------------------------------------------------------- report


def test_a_fresh_run_has_a_report(done):
    _, folder, _ = done
    result = clipbench("report", folder)
    assert result.exit_code == 0, result.stdout + result.stderr
    page = folder / "report" / "report.html"
    assert page.read_text(encoding="utf-8").startswith("<!")
    assert str(page) in result.stdout
    assert json.loads((folder / "plan.json").read_text())["not_run"] == []


def test_a_report_in_no_known_format_is_refused(done):
    assert refused(clipbench("report", done[1], "--format", "htm"), "htm", "Did you mean html?")


# ------------------------------------------------------------------------------------------ engines


@pytest.mark.parametrize("size", ["0GB", "much", "-1GB", "2XB"])
def test_a_memory_that_is_no_size_is_one_sentence(tmp_path, size):
    result = clipbench("run", "smoke", "--out", tmp_path / "out", f"--memory={size}")
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"clipbench: --memory is {size!r}, and must be a positive size such as 2GB or 500MB.\n"
    )
    assert not (tmp_path / "out").exists()


def test_lanes_asked_for_where_there_are_none_is_one_sentence(tmp_path):
    """An optimizer of torch's own has no pure rule; by default the loop runs it."""
    page = tmp_path / "tiny.toml"
    page.write_text(
        study_page("cosh", "torch.optim.NAdam", steps=4, batch=4, lr=0.01).replace(
            'name = "torch', 'torch = "torch'
        )
    )
    asked = clipbench(
        "run", page, "--out", tmp_path / "out", "--engine", "batched", "--no-throughput"
    )
    refused(
        asked,
        "--engine batched: ",
        'optimizer "torch.optim.NAdam" has no pure rule',
        "leave --engine out",
    )
    assert clipbench("run", page, "--out", tmp_path / "out", "--no-throughput").exit_code == 0
