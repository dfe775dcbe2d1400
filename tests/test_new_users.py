"""What somebody new meets: why cells failed, how far a run is, what it may become, and words for
what does not fit.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_cli import PAGE, clipbench, refused

from clipbench import cli as cli_
from clipbench import execute, feed, progress, protocol, registry, study
from clipbench.engines.rates import Choice
from clipbench.errors import UsageError
from clipbench.store import Store

MINE = '''
import os
import signal

import torch

from clipbench import Positive, clip


@clip("mine")
class Mine:
    """Raises at 2, is killed at 3; its size raises."""

    act: Positive = 1.0

    @staticmethod
    def size(grads):
        raise ValueError("no size today")

    def update(self, grads, state, params):
        if self.act == 2:
            raise RuntimeError("boom\\n\\x1b[31m")
        if self.act == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return grads, state
'''


@pytest.fixture
def page(tmp_path):
    """A function that writes a page with clips of one's own, and returns its path."""

    def write(acts, *changes, clip="act"):
        (tmp_path / "mine.py").write_text(MINE)
        text = (
            PAGE.replace("use = []", 'use = ["mine.py"]')
            + f'\n[[clip]]\nname = "mine"\n{clip} = {acts}\n'
        )
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "tiny.toml").write_text(text)
        return tmp_path / "tiny.toml"

    return write


def run(page, folder, *options):
    return clipbench("run", page, "--out", folder, "--no-throughput", "--engine", "loop", *options)


# ----------------------------------------------------------------------------------------- failures


def test_the_reasons_of_failed_cells_end_the_output_and_their_tracebacks_are_kept(page, tmp_path):
    result = run(page([1.0, 2.0]), tmp_path / "out")
    assert result.exit_code == 1
    last = result.stdout.splitlines()[-1]
    [file] = (tmp_path / "out" / "failures").iterdir()
    assert last.startswith("4 cells failed at mine.py, line 22: RuntimeError: boom")
    assert last.endswith(f"(traceback: {file}).")
    assert "\x1b" not in last
    assert 'mine.py", line 22, in update' in file.read_text()
    assert run(page([1.0]), tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out" / "failures").exists()


def test_nothing_is_chosen_while_a_seed_was_lost_to_a_kill_and_the_next_run_chooses(
    page, tmp_path, monkeypatch
):
    """By somebody else: were it chosen without that seed, other cells would be reported on than
    in an undisturbed run.
    """
    folder = tmp_path / "out"
    result = run(page([1.0, 3.0]), folder)
    assert result.exit_code == 1
    [note] = result.stderr.splitlines()
    assert note.startswith(
        "clipbench: 2 cells of sgd + mine on cosh were killed, took too long or ran out of "
        "memory: nothing"
    )
    cells = Store(folder).read("cells")
    assert set(cells.loc[cells["role"] == "report", "arm"]) == {"sgd", "sgd + norm"}
    assert set(cells.loc[cells["extended"], "arm"]) == {"sgd", "sgd + norm"}
    assert run(page([1.0]), folder).exit_code == 0
    cells = Store(folder).read("cells")
    assert set(cells.loc[cells["role"] == "report", "arm"]) == {"sgd", "sgd + norm", "sgd + mine"}


def test_a_strangers_fault_in_a_pilot_is_one_sentence_and_its_empty_folder_goes(page, tmp_path):
    mine = page([1.0], clip="relative")
    result = run(mine, tmp_path / "new" / "out")
    assert refused(
        result,
        (
            "the pilot of cosh, batch 8, cpu, float32 failed at mine.py, line 18: ValueError: no "
            "size today."
        ),
    )
    assert not (tmp_path / "new").exists()
    (tmp_path / "kept").mkdir()
    assert refused(run(mine, tmp_path / "kept"))
    assert (tmp_path / "kept").is_dir()


def test_a_bug_of_ours_is_a_traceback_and_exit_70(page, tmp_path, monkeypatch):
    def mistaken(*_, **__):
        raise execute.Bug("the pilot has met a mistake")

    monkeypatch.setattr(protocol, "run", mistaken)
    result = run(page([1.0]), tmp_path / "out")
    assert result.exit_code == 70
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("Bug: the pilot has met a mistake\n")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["interrupt", "terminate"],
)
def test_an_interruption_while_the_command_imports_is_one_sentence(page, tmp_path, number, code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    started = tmp_path / "started"
    hook = (
        "import sys, pathlib; sys.argv[1:] = ['run', 'quick', '--out', 'out']; import "
        "clipbench.cli.leaving as l\n"
    )
    hook += (
        f"real = l._import\nl._import = lambda m: (pathlib.Path({str(started)!r}).touch(), "
        f"real(m))\n"
    )
    hook += "from clipbench.__main__ import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", hook],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    ) as command:
        while not started.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        command.send_signal(number)
        _, said = command.communicate(timeout=60)
    assert said == "clipbench: interrupted; nothing that was stored is lost.\n"
    assert command.returncode == code


# -------------------------------------------------------------------------------------- the outlook


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    with cli_.Bars() as bars:
        bars.phase("select", 4)
        bars.tick()
        time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert lines[0].startswith("clipbench: select: 1 of 4 done, 0 diverged, 0 failed, about ")


def test_a_study_may_leave_its_axes_as_they_are(page, tmp_path):
    extended = run(page([1.0]), tmp_path / "plain")
    assert extended.exit_code == 0
    assert Store(tmp_path / "plain").read("cells")["extended"].any()
    short = page([1.0], ("steps = 8", "steps = 8\nextend = false"))
    assert run(short, tmp_path / "short").exit_code == 0
    cells = Store(tmp_path / "short").read("cells")
    assert not cells["extended"].any()
    assert set(cells["role"]) == {"select", "report"}
    assert set(cells.loc[cells["role"] == "select", "cell"]) <= set(
        Store(tmp_path / "plain").read("cells")["cell"]
    )


def test_the_outlook_bounds_what_a_run_becomes(page, tmp_path):
    registry.load_packaged()
    for changes in ((), (("steps = 8", "steps = 8\nextend = false"),)):
        asked = study.read(str(page([0.5, 1.0], *changes)))
        [row] = protocol.predict(asked, protocol.plan(asked), None)
        most = row["select"] + row["extended"] + row["report"]
        folder = tmp_path / f"out{len(changes)}"
        assert run(tmp_path / "tiny.toml", folder).exit_code == 0
        assert len(Store(folder).read("cells")) <= most
        assert (row["extended"] > 0) == (not changes)
        assert row["at_most"] >= row["seconds"]


def test_a_plan_does_not_write_out_its_seeds(page, monkeypatch):
    """Of 100,000 seeds it would take half a minute: no cell is made beside one for each setting."""
    rate = Choice("loop", rates={"loop": 1e-4})
    monkeypatch.setattr(
        "clipbench.execute.calls", lambda _, works, __: ((key, rate) for key in works)
    )
    text = page([1.0], ("select = 1", "select = 100000")).read_text()
    asked = protocol.plan(study.parse("tiny", text, page([1.0]).parent))
    monkeypatch.setattr(protocol.Plan, "cells", None)
    study_ = study.parse("tiny", text, page([1.0]).parent)
    [row] = protocol.predict(study_, asked, None)
    assert (row["select"], row["extended"]) == (600000, 600000)
    assert len(asked.templates) == 6


# -------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 8", "step = 8", "there is no setting `step`"),
        (
            '[[workload]]\nname = "cosh"',
            '[[workloads]]\nname = "cosh"',
            "there is no setting `workloads`",
        ),
        ('name = "sgd"', 'nam = "sgd"', "Did you mean it by `nam`?"),
    ],
)
def test_a_word_that_is_not_known_is_named_before_one_that_is_missing(old, new, words):
    with pytest.raises(UsageError) as raised:
        study.parse("tiny", PAGE.replace(old, new), None)
    assert words in str(raised.value)
    assert "Did you mean" in str(raised.value)


class Odd:
    """A workload whose data are what they are told to be."""

    name = "odd"

    def __init__(self, found):
        self.found = found if found is None else {**found, "validation": (), "test": ()}

    def data(self, generator):
        return self.found


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "`data` returned nothing, and must return a dict"),
        (
            {"train": torch.ones(3)},
            "`data` for train returned a Tensor of shape (3,), and must return a pair of tensors",
        ),
        (
            {"train": (torch.ones(3), [1, 2, 3])},
            "for train returned a tuple of Tensor and list, and must return a pair of tensors",
        ),
        (
            {"train": (torch.ones(3),) * 3},
            "for train returned a tuple of Tensor and Tensor and Tensor, and must",
        ),
    ],
)
def test_data_that_are_no_pair_of_tensors_say_what_came(found, words):
    with pytest.raises(UsageError, match=r'^workload "odd": ') as raised:
        feed.splits(Odd(found), 0)
    assert words in str(raised.value)


def test_a_sample_that_is_no_pair_says_so():
    class Sampling:
        name = "sampling"

        def sample(self, generator):
            return torch.ones(3)

    with pytest.raises(
        UsageError, match=r'^workload "sampling": `sample` returned a Tensor of shape'
    ):
        next(feed.batches(Sampling(), 0, 8, 1))


def test_a_metric_is_a_function_and_not_its_name(tmp_path):
    (tmp_path / "named.py").write_text(
        "from clipbench import workload\n\n\n@workload('named')\nclass Named:\n    metric = "
        "'dice'\n"
    )
    with pytest.raises(
        UsageError,
        match=r"""^@workload\("named"\): `metric` is 'dice', and must be a function such as""",
    ):
        registry.load_file(tmp_path / "named.py")


def test_a_number_and_its_noun_agree(page):
    lone = (
        ("lr = [0.01, 0.03]", "lr = 0.01"),
        ('[[clip]]\nname = "none"\n\n[[clip]]\nname = "norm"\nmax_norm = 1.0\n', ""),
    )
    said = clipbench("plan", page([1.0], *lone)).stdout
    assert "selection: 1 cell in about 1 shard;" in said
    said = clipbench("plan", page([1.0])).stdout
    assert "selection: 6 cells in about 1 shard;" in said
