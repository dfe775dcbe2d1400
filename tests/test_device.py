"""``clipbench device``: what becomes of its steps, its folder and its time, and how bounds are
judged.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from clipbench import registry
from clipbench.cli import cli
from clipbench.device import bounds, course, folder, measuring, run, steps, told
from clipbench.device.course import Course, State
from clipbench.device.steps import Step
from clipbench.errors import UsageError

FACTS = 'import sys; open(sys.argv[1], \'w\').write(\'{"key": "KEY", "environment": {}}\')'
NOTE = "open('ran', 'a').write(sys.argv[1] + ' ')"
HEEDS = """
import sys, time
open('ran', 'a').write('slow ')
try:
    time.sleep(60)
except KeyboardInterrupt:
    open('kept', 'w').close()
    sys.exit(130)
"""
DEAF = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
print(child.pid, flush=True)
time.sleep(60)
"""
INTERRUPTS = f"import os, signal; os.kill({{parent}}, signal.SIGINT){HEEDS}"


def python(name, code, *, share=1.0, after=(), **more):
    return Step(name, ("python", "-c", f"import sys; {code}", name), share, after=after, **more)


def good(name, **more):
    return python(name, NOTE, **more)


def bad(name, **more):
    return python(name, f"{NOTE}; print('no such thing'); sys.exit(1)", **more)


def slow(name, code=HEEDS, share=1.0):
    return Step(name, ("python", "-c", code), share)


@pytest.fixture
def done(tmp_path, monkeypatch):
    """A function: what came of some steps on a machine, in the same folder each time."""

    def done(*planned, key="aaaa", seconds=30.0):
        words = ("python", "-c", FACTS.replace("KEY", key), "DIR/facts.json")
        monkeypatch.setattr(steps, "facts", lambda _: Step("facts", words, 0, makes="facts.json"))
        monkeypatch.setattr(steps, "planned", lambda *_: list(planned))
        return run("cpu", tmp_path / "out", seconds, lambda _: None, time.monotonic())

    done.folder = tmp_path / "out"
    return done


def state(done):
    return json.loads((done.folder / "device.json").read_text("utf-8"))


def states(done):
    return states_of(state(done))


def states_of(found):
    return {name: entry["state"] for name, entry in found["steps"].items()}


def ran(done):
    return (done.folder / "ran").read_text("utf-8").split()


# ---------------------------------------------------------------------------------------- the steps


def test_a_step_that_fails_ends_no_other_and_is_named(done):
    ending = done(bad("one"), good("two"))
    assert states(done) == {"facts": "done", "one": "failed", "two": "done"}
    assert ending.failed == ["one"]
    entry = state(done)["steps"]["one"]
    assert (entry["code"], entry["said"]) == (1, "no such thing")
    assert "no such thing" in (done.folder / entry["log"]).read_text("utf-8")


def test_a_step_at_its_limit_is_told_to_end_and_no_failure(done):
    ending = done(slow("one"), good("two"), seconds=6.0)
    assert states(done) == {"facts": "done", "one": "ended at its limit", "two": "done"}
    assert (done.folder / "kept").exists()
    assert ending.failed == []


def test_a_step_that_does_not_heed_is_killed_with_all_that_it_started(tmp_path):
    with (tmp_path / "log").open("w") as log:
        end = course.process([sys.executable, "-c", DEAF], tmp_path, log.fileno(), 2.0, 0.1)
    assert end == (-signal.SIGKILL, True)
    child, until = int((tmp_path / "log").read_text("utf-8")), time.monotonic() + 30
    while _lives(child):
        assert time.monotonic() < until
        time.sleep(0.05)


def _lives(process):
    """Whether it runs; one that waits for its end to be noted does not."""
    try:
        return " Z " not in Path("/proc", str(process), "stat").read_text("utf-8")
    except OSError:
        return False


def test_a_step_hears_an_interrupt_also_if_the_command_itself_ignores_it(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with (tmp_path / "log").open("w") as log:
            course.process([sys.executable, "-c", HEEDS], tmp_path, log.fileno(), 2.0, 20.0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "kept").exists()


def test_what_is_done_stays_done_and_the_rest_is_tried_again(done):
    done(good("one"), bad("two"), slow("three", share=0.08), good("four"))
    assert states(done)["three"] == State.AT_LIMIT
    assert ran(done) == ["one", "two", "slow", "four"]
    done(good("one"), good("two"), good("three"), good("four"))
    assert ran(done) == ["one", "two", "slow", "four", "two", "three"]
    assert set(states(done).values()) == {"done"}


def test_a_look_is_taken_again_once_what_it_looks_at_goes_on_and_only_then(done):
    looks = [good("look at one", after=("one",)), good("look at two", after=("two",))]
    done(good("one"), bad("two"), *looks)
    done(good("one"), bad("two"), *looks)
    assert " ".join(ran(done)) == "one two look at one look at two two look at two"


def test_a_look_from_before_its_step_went_on_is_not_taken_for_done(done):
    """Also if the command was killed while the step went on."""
    look = good("look", after=("one",))
    done(bad("one"), look)
    killed = Course(done.folder, state(done), 30.0, lambda _: None)
    killed._begin(bad("one"), [bad("one"), look])
    assert "look" not in states(done)
    assert states(done)["one"] == State.UNDER_WAY
    done(good("one"), look)
    assert ran(done) == ["one", "look", "one", "look"]


def test_a_step_that_cannot_be_is_left_out_with_its_reason(done):
    ending = done(good("one", absent=lambda: "it is not here"))
    assert state(done)["steps"]["one"] == {"state": "left out", "said": "it is not here"}
    assert ending.failed == []
    done(good("one"))
    assert states(done)["one"] == "done"


def test_without_time_nothing_is_begun(done):
    done(good("one"), seconds=1.5)
    assert states(done)["one"] == "not reached"
    assert not (done.folder / "ran").exists()


def test_a_call_without_time_leaves_what_is_known(done):
    done(bad("one"))
    done(good("one"), seconds=1.5)
    assert states(done)["one"] == "failed"


def test_without_facts_nothing_is_begun(done, monkeypatch):
    done(good("one"))
    monkeypatch.setattr(folder, "read_json", lambda _: {})
    ending = run("cpu", done.folder.with_name("new"), 30.0, lambda _: None, time.monotonic())
    found = json.loads((done.folder.with_name("new") / "device.json").read_text("utf-8"))
    assert found["steps"]["one"]["state"] == "not reached"
    assert ending.judged == 0


@pytest.fixture
def heard():
    """Interrupts are heard, also if whoever started the tests had them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_an_interrupt_ends_the_step_under_way_and_the_page_is_written(done, monkeypatch):
    done(good("one"))  # so that the command below finds stand-ins
    planned = [good("one"), slow("two", INTERRUPTS.format(parent=os.getpid())), good("three")]
    monkeypatch.setattr(steps, "planned", lambda *_: planned)
    command = ["device", "--device", "cpu", "--minutes", "1", "--out", str(done.folder)]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 130, result.output
    assert "the same command goes on from there" in result.stderr
    assert states(done) == {
        "facts": "done",
        "one": "done",
        "two": "interrupted",
        "three": "not reached",
    }
    assert "interrupted" in (done.folder / "device.md").read_text("utf-8")
    assert (done.folder / "kept").exists()
    done(good("one"), good("two"), good("three"))
    assert set(states(done).values()) == {"done"}


def test_what_an_early_step_does_not_need_goes_to_the_later_ones(tmp_path):
    planned = [good("a", share=1), good("b", share=1), good("c", share=2, after=("a",))]
    whole = Course(tmp_path, {"steps": {}}, 0.0, lambda _: None)
    whole.seconds, whole.begun = 101.0, time.monotonic()  # one is the grace's
    limits = [whole._limit(planned[number:]) for number in range(3)]
    assert limits == pytest.approx([24.25, 32.3, 97], abs=1)


def test_a_short_budget_gives_the_first_steps_what_they_need_and_keeps_the_looks_share(tmp_path):
    planned = [good("a", least=9.0), good("b"), good("look", share=2, after=("a",))]
    short = Course(tmp_path, {"steps": {}}, 13.0, lambda _: None)
    assert short._limit(planned) == pytest.approx(6, abs=0.5)  # half is the look's


# --------------------------------------------------------------------------------------- the folder


def test_results_of_another_machine_are_moved_aside_whole(done):
    done(good("one"), key="aaaa")
    before = {path.name for path in done.folder.iterdir()}
    done(good("one"), key="bbbb")
    aside = done.folder / "earlier-aaaa"
    assert {path.name for path in aside.iterdir()} >= before - {"facts.json"}
    assert json.loads((aside / "device.json").read_text("utf-8"))["key"] == "aaaa"
    assert state(done)["key"] == "bbbb"
    assert ran(done) == ["one"]
    done(good("one"), key="aaaa")
    done(good("one"), key="bbbb")
    assert {path.name for path in done.folder.glob("earlier-*")} == {
        *("earlier-aaaa", "earlier-aaaa-2", "earlier-bbbb"),
    }


def test_a_folder_of_something_else_is_refused_and_untouched(done):
    done.folder.mkdir()
    (done.folder / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"holds files, and no device\.json of"):
        done(good("one"))
    assert [path.name for path in done.folder.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"what": "clipbench device", "steps": 3}'])
def test_a_state_that_is_not_ours_is_refused(done, text):
    done.folder.mkdir()
    (done.folder / "device.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="name a new folder"):
        done(good("one"))
    assert (done.folder / "device.json").read_text("utf-8") == text


def test_a_file_in_place_of_the_folder_is_refused(done):
    done.folder.write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="is no folder"):
        done(good("one"))


def test_the_folder_of_another_kind_of_device_is_refused(done):
    done(good("one"))
    with pytest.raises(UsageError, match="is of --device cpu, and --device cuda was asked for"):
        run("cuda", done.folder, 30.0, lambda _: None, time.monotonic())


def test_two_commands_in_one_folder_are_refused(done):
    with (
        folder.held(done.folder),
        pytest.raises(UsageError, match="another `clipbench device` is at work here"),
    ):
        done(good("one"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda_the_command_is_refused_before_the_folder_is_touched(tmp_path):
    result = CliRunner().invoke(cli, ["device", "--minutes", "8", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "has no CUDA device; `--device cpu` is a trial" in result.stderr
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ what is begun


def test_the_steps_are_commands_that_exist_and_name_no_path(tmp_path):
    planned = [steps.facts("cuda"), *steps.planned("cuda", tmp_path)]
    for step in planned:
        assert str(tmp_path) not in " ".join(step.words)
        if step.words[0] == "clipbench":
            command = cli.get_command(click.Context(cli), step.words[1])
            command.make_parser(click.Context(command)).parse_args(list(step.words[2:]))
    assert str(tmp_path / "bounds.json") in planned[5].command(tmp_path)
    names = {step.name for step in planned}
    assert all(set(step.after) <= names for step in planned)


def test_the_tests_are_left_out_of_an_installed_package(tmp_path, monkeypatch):
    first = steps.planned("cuda", tmp_path)[0]
    assert first.absent() == ""
    monkeypatch.setattr(steps, "NEEDED", ("pytest", "no_such_library"))
    assert first.absent() == "no_such_library cannot be imported"
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    assert "does not lie beside the package" in first.absent()


def test_the_tests_that_a_device_needs_are_chosen_by_name(checkout):
    """As pytest's ``-k`` does: all of one file, and of the other those for a device."""
    marked = re.findall(
        r"@on_device\n(?:@.+\n)*def (\w+)", (checkout / "tests/test_fast.py").read_text("utf-8")
    )
    assert len(marked) >= 3
    assert all("on_a_device" in name for name in marked)


def test_tests_are_counted_with_the_names_of_those_that_failed(tmp_path):
    cases = (
        '<testcase name="a"/><testcase name="b"><failure/></testcase>'
        '<testcase name="c"><skipped/></testcase><testcase name="d"><error/></testcase>'
    )
    counts = 'tests="4" failures="1" errors="1" skipped="1"'
    file = tmp_path / "tests.xml"
    file.write_text(f"<testsuites><testsuite {counts}>{cases}</testsuite></testsuites>", "utf-8")
    assert told.tests(file) == "1 passed, 2 failed, 1 skipped: b, d"
    assert told.tests(tmp_path / "absent.xml") == ""


# --------------------------------------------------------------------------------------- the bounds

ROW = {
    "part": "update",
    "device": "cuda",
    "implementation": "flat",
    "optimizer": "momentum",
    "clip": "norm",
    "parameters": 11_700_000,
    "size": "11.7M in 62 tensors",
    "threads": 1,
    "share": 0.9,
    "synchronisations": 0.0,
}


def verdict(name, rows=(), measured=None, device="cuda"):
    found = {one.name: one for one in bounds.judged(rows, measured or {}, device)}
    return found[name]


@pytest.mark.parametrize(("share", "holds"), [(0.8, True), (0.7999, False), (1.1, True)])
def test_the_floor_at_its_border(share, holds):
    found = verdict("floor", [{**ROW, "share": share}])
    assert (found.seen, found.holds) == (share, holds)


def test_the_floor_is_judged_by_the_best_implementation_of_the_worst_pair():
    rows = [
        {**ROW, "implementation": "origin", "share": 0.1},
        {**ROW, "share": 0.9},
        {**ROW, "clip": "value", "share": 0.85},
        {**ROW, "clip": "none", "share": 0.2},
        {**ROW, "clip": "value", "parameters": 250_000, "share": 0.3},
        {**ROW, "clip": "layer", "share": float("nan")},
    ]
    found = verdict("floor", rows)
    assert (found.seen, found.holds) == (0.85, True)
    assert "momentum + value, 11.7M" in found.where


@pytest.mark.parametrize(("waits", "holds"), [(0, True), (1, False)])
def test_one_wait_is_one_too_many(waits, holds):
    theirs = {**ROW, "implementation": "origin", "synchronisations": 62}
    found = verdict("waits", [ROW, {**ROW, "synchronisations": waits}, theirs])
    assert (found.seen, found.holds) == (waits, holds)


@pytest.mark.parametrize(("many", "holds"), [(3, True), (4, False), (2, False)])
def test_kernels_of_flat_memory_must_not_grow(many, holds):
    taken = {
        "flat": {"norm": {"10": 3, "150": 3}, "value": {"150": many, "10": 3}},
        "loop": {"norm": {"10": 30, "150": 450}},
    }
    found = verdict("kernels", measured={"kernels": taken})
    assert (found.seen, found.holds) == (abs(many - 3), holds)
    assert "kernels at 10 and 150 tensors" in found.where
    assert "loop + norm 30 → 450" in found.where


@pytest.mark.parametrize(("rate", "holds"), [(5000.0, True), (4999.0, False)])
def test_lanes_at_their_border(rate, holds):
    """Fewer than 256 lanes do not count."""
    lanes = {"64": 1e9, "256": 10.0, "1024": rate}
    found = verdict("lanes", measured={"script": 100.0, "lanes": lanes})
    assert (found.seen, found.holds) == (rate / 100, holds)


@pytest.mark.parametrize(("share", "holds"), [(0.05, True), (0.0501, False)])
def test_evaluations_at_their_border(share, holds):
    found = verdict("evaluations", measured={"evaluations": {**EVALUATED, "share": share}})
    assert (found.seen, found.holds) == (share, holds)


EVALUATED = {"lanes": 256, "steps": 300, "times": 10} | dict.fromkeys(
    ("evaluation_seconds", "step_seconds"), 0.001
)


def test_what_was_not_measured_is_not_judged():
    assert {(one.seen, one.holds, one.verdict) for one in bounds.judged([], {}, "cuda")} == {
        (None, None, "not measured yet")
    }


def test_on_a_cpu_numbers_are_shown_and_not_judged():
    rows = [{**ROW, "device": "cpu", "share": 0.1, "synchronisations": float("nan")}]
    measured = {"evaluations": {**EVALUATED, "share": 0.5}, "script": 1.0, "lanes": {"256": 2.0}}
    found = {one.name: one for one in bounds.judged(rows, measured, "cpu")}
    assert {one.holds for one in found.values()} == {None}
    assert {one.verdict for one in found.values()} == {"not judged: bounds are for CUDA"}
    assert {name: one.seen for name, one in found.items()} == {
        "waits": None,
        "kernels": None,
        "floor": 0.1,
        "lanes": 2.0,
        "evaluations": 0.5,
    }


def test_a_bound_that_does_not_hold_on_cuda_is_a_finding(done, monkeypatch):
    broken = bounds.asdict(verdict("floor", [{**ROW, "share": 0.1}]))
    monkeypatch.setattr(bounds, "of_folder", lambda *_: [broken])
    ending = done(good("one"))
    assert (ending.failed, ending.broken, ending.judged) == ([], ["floor"], 1)
    command = ["device", "--device", "cpu", "--minutes", "1", "--out", str(done.folder)]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 1, result.output
    assert "of 1 judged bound 1 did not hold" in result.stdout


def test_what_the_bounds_need_is_measured_on_a_cpu_too(monkeypatch):
    monkeypatch.setattr(measuring, "SECONDS", 0.0)
    registry.load_packaged()
    taken = measuring.kernels("cpu")
    assert set(taken) == {"flat", "fast", "loop"}
    assert taken["flat"]["norm"] == {"10": None, "150": None}
    made = measuring.ready("cpu", 4)
    speed = measuring.speed("cpu", {4: made})
    assert speed["script"] > 0
    assert set(speed["lanes"]) == {"4"}
    found = measuring.evaluations("cpu", made)
    spent = found["times"] * found["evaluation_seconds"]
    assert found["share"] == pytest.approx(spent / (spent + 300 * found["step_seconds"]))
    assert found["times"] == 10  # of a cell of `quick`


# ----------------------------------------------------------------------------------- from the start


def test_real_commands_learn_the_machine_and_verify_a_study(tmp_path, monkeypatch, checkout):
    """The study is a committed one."""
    out = tmp_path / "out"
    copy = f"import shutil; shutil.copytree({str(checkout / 'results/gate/smoke')!r}, 'smoke')"
    (look,) = (one for one in steps.planned("cpu", out) if one.name == "verify smoke")
    monkeypatch.setattr(steps, "planned", lambda *_: [python("smoke", copy), look])
    ending = run("cpu", out, 60.0, lambda _: None, time.monotonic())
    found = json.loads((out / "device.json").read_text("utf-8"))
    assert states_of(found) == {"facts": "done", "smoke": "done", "verify smoke": "done"}
    assert found["environment"]["libraries"]["torch"] == torch.__version__
    said = found["steps"]["verify smoke"]["said"]
    assert said.startswith("smoke: ")
    assert f"{found['studies'][0]['cells']} cells" in said
    page = ending.page.read_text("utf-8")
    assert all(f"| {name} |" in page for name in found["steps"])
    assert str(tmp_path) not in page.replace(copy, "")


def test_the_whole_within_a_third_of_a_minute_and_again(tmp_path, costly):
    """Steps end at their limits; the second call does not take again what was done."""
    command = ["device", "--device", "cpu", "--minutes", "0.3", "--out", str(tmp_path / "out")]
    for _ in range(2):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, result.output
        found = json.loads((tmp_path / "out" / "device.json").read_text("utf-8"))
    assert found["steps"]["tests"]["state"] == "done"
    assert State.FAILED not in {entry["state"] for entry in found["steps"].values()}
    assert (tmp_path / "out" / "logs" / "tests.log").read_text("utf-8").count("$ python") == 1
    assert (tmp_path / "out" / "logs" / "smoke.log").read_text("utf-8").count("$ clipbench") >= 1
    assert found["seconds"] < 60 * 0.3 + 20
