"""One cell, one world: what a cell changes of its process fails it or is put back, and no other
cell notices.
"""

import gc
import importlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from test_execute import gone, jobs, new_store, outcomes, supervise, text_of

from clipbench import registry, study
from clipbench.engines import structure
from clipbench.engines.rates import Choice, versioned
from clipbench.execute.names import Names
from clipbench.execute.world import World

GUILTY = '''
"""A clip that does something to its process at every threshold but 1."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from clipbench import Positive, clip, trees

HERE = Path(__file__).parent
held = []
dead = False


def files():
    held.append(open(os.devnull, "w"))


def child():
    (HERE / "child").write_text(str(subprocess.Popen(["sleep", "300"]).pid))


def fork():
    if os.fork() == 0:
        time.sleep(1.0)  # then this copy of the worker goes on as if it were one


def sticky(first=False):
    global dead
    dead = True
    raise torch.AcceleratorError("CUDA error: device-side assert triggered")


def unspeakable():
    class Unspeakable(Exception):
        def __str__(self):
            raise ValueError("no words")

    raise Unspeakable


ACTS = {
    2: lambda: torch.set_default_dtype(torch.float64),
    3: lambda: torch.set_num_threads(2),
    4: lambda: setattr(torch.nn.functional, "mse_loss", None),
    5: lambda: setattr(trees, "scale", None),
    6: lambda: torch.manual_seed(1),
    7: lambda: os.chdir("/"),
    8: lambda: os.environ.update(GUILTY="1"),
    9: files,
    10: child,
    11: fork,
    12: sticky,
    13: lambda: sys.exit(3),
    14: unspeakable,
    15: lambda: setattr(torch.optim.SGD, "zero_grad", lambda *_, **__: None),
}


@clip("guilty")
class Guilty:
    """What the threshold says; at 1 nothing, if the process is as it should be."""

    act: Positive

    def update(self, grads, state, params):
        if dead:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        ACTS.get(int(self.act), lambda: None)()
        return grads, state


@clip("widening")
class Widening:
    """Changes the default dtype as soon as it is traced for lanes."""

    act: Positive = 1.0

    def update(self, grads, state, params):
        torch.set_default_dtype(torch.float64)
        return grads, state
'''

NUMBERS = {
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's gradient mode": lambda: torch.set_grad_enabled(False),
    "the number of torch's threads": lambda: torch.set_num_threads(3),
    "the deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "the precision of float32 products": lambda: torch.set_float32_matmul_precision("medium"),
    "TF32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "the libraries that torch calls": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "the kernels of attention": lambda: torch.backends.cuda.enable_math_sdp(False),
    "torch's modes": lambda: torch.overrides.TorchFunctionMode().__enter__(),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "the search for anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "the flushing of denormals or the rounding": lambda: torch.set_flush_denormal(False),
    "NumPy's handling of errors": lambda: np.seterr(all="raise"),
    "hooks of all modules or optimizers": lambda: (
        torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    ),
    "Python's random generator": random.random,
    "NumPy's random generator": np.random.random,
    "torch's random generator": lambda: torch.rand(1),
    "`torch.nn.functional.cross_entropy`": lambda: setattr(
        torch.nn.functional, "cross_entropy", None
    ),
    "`torch.where`": lambda: setattr(torch, "where", None),
    "`torch.Tensor.add`": lambda: setattr(torch.Tensor, "add", None),
    "`torch.nn.modules.linear.Linear.forward`": lambda: setattr(torch.nn.Linear, "forward", None),
    "`torch.optim.sgd.SGD.step`": lambda: setattr(torch.optim.SGD, "step", None),
    "`torch.nn.init.kaiming_uniform_`": lambda: setattr(torch.nn.init, "kaiming_uniform_", None),
    "`torch.linalg.vector_norm`": lambda: setattr(torch.linalg, "vector_norm", None),
    "`clipbench.trees.norm`": lambda: setattr(sys.modules["clipbench.trees"], "norm", None),
    "`builtins.sum`": lambda: setattr(sys.modules["builtins"], "sum", lambda *_: 0),
}
PUT_BACK = {
    "the working folder": (lambda: os.chdir("/"), os.getcwd),
    "the environment variables": (lambda: os.environ.pop("PATH"), lambda: os.environ.get("PATH")),
    "the mask of new files": (lambda: os.umask(0o777), lambda: os.umask(0o022)),
    "the handlers of signals": (
        lambda: signal.signal(signal.SIGUSR1, print),
        lambda: signal.getsignal(signal.SIGUSR1),
    ),
    "an alarm": (
        lambda: signal.setitimer(signal.ITIMER_REAL, 60),
        lambda: signal.getitimer(signal.ITIMER_REAL),
    ),
    "the limits of the process": (
        lambda: resource.setrlimit(
            resource.RLIMIT_NOFILE, (99, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        ),
        lambda: resource.getrlimit(resource.RLIMIT_NOFILE),
    ),
    "the path of imports": (sys.path.clear, lambda: list(sys.path)),
    "the standard streams": (lambda: setattr(sys, "stdout", None), lambda: sys.stdout),
    "the hooks of exceptions": (lambda: setattr(sys, "excepthook", print), lambda: sys.excepthook),
    "the depth of recursion": (lambda: sys.setrecursionlimit(500), sys.getrecursionlimit),
    "the collector of garbage": (gc.disable, gc.isenabled),
    "warnings errors": (
        lambda: warnings.simplefilter("error"),
        lambda: [one[0] for one in warnings.filters].count("error"),
    ),
}


def print_changes():
    """Each change of ``NUMBERS``, made in a fork of its own: what the fork finds changed."""
    registry.load_packaged()
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    for number, act in enumerate([lambda: None, *NUMBERS.values()]):
        sys.stdout.flush()
        if os.fork() == 0:
            world = World()  # not before: a fork seeds Python's generator anew
            act()
            sys.stdout.write(f"{number} | {', '.join(world.compare().numbers)}\n")
            sys.stdout.flush()
            os._exit(0)
        os.wait()


def print_returns():
    for words, (act, read) in PUT_BACK.items():
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            out, world, before = sys.stdout, World(), read()
            act()
            change = world.compare()
            held = read() == before and not world.compare().notes
            out.write(
                f"{words} | {held} {change.lasting} {change.numbers} {' '.join(change.notes)}\n"
            )
            out.flush()
            os._exit(0)
        os.waitpid(child, 0)


def print_what_wakes_up():
    registry.load_packaged()
    late = ("sklearn.datasets", "torch._dynamo", "torch.fx.experimental.proxy_tensor")
    assert "torch._dynamo" not in sys.modules, "it has woken up early"
    world = World()
    for cls in (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop):
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = cls([weight], lr=0.1)
        weight.square().sum().backward()
        optimizer.step()
    for name in late:
        importlib.import_module(name)
    sys.modules["sklearn.datasets"].load_digits()
    sys.stdout.write(f"{world.compare()}\n")


def print_what_is_left():
    world = World()
    with Path(os.devnull).open("w", encoding="utf-8"):
        said = [world.compare().lasting]
    with Path(__file__).open(encoding="utf-8"):
        said.append(world.compare())
    child = subprocess.Popen(["sh", "-c", "sleep 300 & sleep 300"])
    time.sleep(0.3)
    said.append(" ".join([*world.compare().notes, str(child.poll() is not None)]))
    threading.Thread(target=time.sleep, args=(300,), daemon=True).start()
    said.append(world.compare().lasting)
    sys.stdout.write("".join(f"{line}\n" for line in said))


PROGRAMS = (print_changes, print_returns, print_what_wakes_up, print_what_is_left)


def print_all():
    """What every program says, each in a fork of one process, in which it may do anything."""
    for program in PROGRAMS:
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            sys.stdout.write(f"begin of {program.__name__}\n")
            program()
            sys.stdout.write(f"end of {program.__name__}\n")
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)


@pytest.fixture(scope="module")
def said():
    """``said(program)``: its lines."""
    head = (
        f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}; import test_world "
        f"as t; t.print_all()"
    )
    run = subprocess.run([sys.executable, "-c", head], capture_output=True, text=True, check=False)

    def lines(program):
        name = program.__name__
        assert f"end of {name}\n" in run.stdout, run.stderr
        return (
            run.stdout.partition(f"begin of {name}\n")[2]
            .partition(f"end of {name}\n")[0]
            .splitlines()
        )

    return lines


@pytest.fixture(scope="module")
def every_change(said):
    return dict(line.split(" | ") for line in said(print_changes))


def test_nothing_has_changed_where_nothing_was_done(every_change):
    assert every_change["0"] == ""


@pytest.mark.parametrize(("number", "words"), [*enumerate(NUMBERS, 1)])
def test_what_changes_numbers_is_named(every_change, number, words):
    assert words in every_change[str(number)]


@pytest.fixture(scope="module")
def every_return(said):
    return dict(line.split(" | ") for line in said(print_returns))


@pytest.mark.parametrize("words", PUT_BACK)
def test_the_rest_is_put_back_and_told_once(every_return, words):
    """Told: were it not, nobody would mend the component."""
    assert every_return[words].startswith("True False () it ")
    assert words in every_return[words]


def test_what_wakes_up_late_is_no_change(said):
    """Optimizers patch their classes, torch._dynamo and sklearn come with the first use."""
    assert said(print_what_wakes_up) == ["Change(numbers=(), notes=(), lasting=False)"]


def test_what_is_left_open_or_running_ends_the_process_or_is_ended(said):
    assert said(print_what_is_left) == [
        "True",
        "Change(numbers=(), notes=(), lasting=False)",
        "it left processes running, which were ended True",
        "True",
    ]


# --------------------------------------------------------------------------------------- whole runs


def guilty_page(folder, acts, seeds=1, steps=3):
    folder.mkdir(exist_ok=True)
    (folder / "guilty.py").write_text(GUILTY)
    text = text_of("guilty", "act", [float(act) for act in acts], seeds, "wdbc", steps)
    return study.parse("tiny", text, folder)


def curves_of(store, threshold):
    cells = store.read("cells")
    mine = cells.loc[cells["threshold"] == threshold, "cell"]
    found = store.read("curves")
    return found[found["cell"].isin(mine)].sort_values(["cell", "step"]).reset_index(drop=True)


@pytest.fixture(scope="module")
def in_company(tmp_path_factory):
    """Innocent cells among guilty ones, in one worker; and what was noted."""
    registry.load_packaged()
    folder, notes = tmp_path_factory.mktemp("company"), []
    asked = guilty_page(folder, [2, 1, 3, 5, 6, 7, 8, 16, 9, 10, 11, 12, 17, 13, 14, 15, 18])
    store = supervise(asked, new_store(folder / "out"), workers=1, on_note=notes.append)
    return folder, store, notes


def test_innocent_cells_have_the_bits_of_a_run_without_the_guilty(in_company, tmp_path):
    _, store, _ = in_company
    alone_ = supervise(
        guilty_page(tmp_path, [1, 16, 17, 18]), new_store(tmp_path / "out"), workers=1
    )
    for threshold in (1.0, 16.0, 17.0, 18.0):
        pd.testing.assert_frame_equal(
            curves_of(store, threshold), curves_of(alone_, threshold), check_exact=True
        )


def test_guilty_cells_fail_with_what_they_changed(in_company):
    rows = outcomes(in_company[1].read("cells")).droplevel("seed")
    reasons = rows["reason"].fillna("")
    assert reasons[2.0].startswith(
        "it changed torch's default dtype (torch.float32 before, torch.float64 now)"
    )
    assert reasons[3.0].startswith("it changed the number of torch's threads")
    assert reasons[5.0].startswith("it changed `clipbench.trees.scale`")
    assert reasons[15.0].startswith("it changed `torch.optim.sgd.SGD.zero_grad`")
    assert reasons[12.0].startswith("AcceleratorError: CUDA error")
    assert reasons[13.0] == "SystemExit: 3"
    assert reasons[14.0] == "Unspeakable"
    assert set(rows.loc[[2.0, 3.0, 5.0, 12.0, 13.0, 14.0, 15.0], "status"]) == {"failed"}


def test_cells_that_changed_what_can_be_put_back_are_kept_and_noted(in_company):
    folder, store, notes = in_company
    rows = outcomes(store.read("cells")).droplevel("seed")
    assert set(rows.loc[[1.0, 7.0, 8.0, 9.0, 10.0, 11.0, 16.0, 17.0, 18.0], "status"]) == {
        "completed"
    }
    assert notes == list(dict.fromkeys(notes))
    for words in ("working folder", "environment variables", "/dev/null", "processes running"):
        assert (
            len([note for note in notes if words in note and note.startswith("sgd + guilty: it ")])
            == 1
        )
    assert gone(int((folder / "child").read_text()))


def test_a_forked_copy_of_a_worker_stores_nothing(in_company):
    assert not in_company[1].read("cells").duplicated("cell").any()
    assert len(in_company[1].read("cells")) == 17


def test_lanes_beside_a_guilty_cell_have_the_bits_they_have_without_it(tmp_path):
    registry.load_packaged()
    stores = {}
    for name in ("company", "alone"):
        asked = guilty_page(tmp_path / name, [1], seeds=2)
        text = asked.text.replace('"guilty"\nact = [1.0]', '"norm"\nmax_norm = [0.1, 1.0]')
        text += '\n[[clip]]\nname = "widening"\n' * (name == "company")
        asked = study.parse("tiny", text, tmp_path / name)
        arms = [versioned(job) for job in jobs(asked)]
        choices = {
            structure.shape(cell): Choice("batched", lanes=8, arms=arms) for cell in asked.cells()
        }
        stores[name] = supervise(
            asked, new_store(tmp_path / name / "out"), choices=choices, workers=1
        )
    rows = stores["company"].read("cells").set_index("arm").sort_index()
    assert list(rows.loc["sgd + widening", "status"]) == ["failed"] * 2
    assert list(rows.loc["sgd + norm", "status"]) == ["completed"] * 4
    assert set(rows.loc["sgd + norm", "engine"]) == {"batched"}
    for threshold in (0.1, 1.0):
        found, wanted = (curves_of(stores[name], threshold) for name in ("company", "alone"))
        pd.testing.assert_frame_equal(
            found[found["cell"].isin(wanted["cell"])].reset_index(drop=True),
            wanted,
            check_exact=True,
        )
        assert len(wanted)


def test_torchs_wrapper_of_an_inherited_step_is_no_change_and_another_one_is(monkeypatch):
    """torch wraps ``step`` in the class whose first object is made, as in AdamW, which has it from
    Adam; a user's workload was failed for it.
    """

    class Parent(torch.optim.Optimizer):
        def step(self):
            pass

    class Child(Parent):
        pass

    planted = ModuleType("torch.optim.planted")
    for made in (Parent, Child):
        made.__module__ = planted.__name__
        setattr(planted, made.__name__, made)
    monkeypatch.setitem(sys.modules, planted.__name__, planted)
    names = Names()
    Child([torch.nn.Parameter(torch.zeros(1))], {})
    assert "step" in vars(Child)
    assert names.changed() == []
    Child.step = Parent.step
    assert names.changed() == ["torch.optim.planted.Child.step"]
