"""The gate: its decisions on samples with known answers, its page, and planted faults that real
runs of it must find.
"""

import json
import os
import re
import shutil
import sys
import time
import warnings
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import warm
from click.testing import CliRunner
from pages import study_page

import clipbench
from clipbench import cell, gate, registry, study
from clipbench import cli as cli_
from clipbench.errors import UsageError
from clipbench.gate import (
    comparison,
    current,
    decision,
    frozen,
    learning,
    limits,
    names,
    sampling,
    self_test,
    sentences,
    speed,
    verdict,
)
from clipbench.gate.decision import ALARM, INCONCLUSIVE, PASS, Samples
from clipbench.gate.frozen import loop
from clipbench.gate.limits import Bench, Machine
from clipbench.gate.sampling import Broken, Failure, Measurement
from clipbench.gate.sentences import sentence, why
from clipbench.gate.verdict import Finding, Reason
from clipbench.schema import RULES
from clipbench.store import Store

HERE = Machine("a processor", "2.0")
TINY = Bench("tiny", "mine.py:ours", "mine.py:reference")


def process(*args, cwd, tree=None):
    """The command line as a process of its own in ``cwd``, which Python looks into first;
    ``tree`` holds the package.
    """
    places = os.pathsep.join(
        [str(tree or Path(clipbench.__file__).parents[1]), *filter(None, sys.path)]
    )
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    return warm.run("-m", "clipbench", *map(str, args), env=environment, cwd=cwd)


def decided(*args, **where):
    """The same, again where the machine was too busy for it to tell: that it says so then is
    claimed elsewhere.
    """
    for _ in range(4):
        done = process(*args, **where)
        if "INCONCLUSIVE" not in done.stdout:
            break
    return done


def drawn(slower=1.0, noise=0.01, spikes=0.2, rounds=40, seed=0, again=1.0):
    """Samples of a machine with jitter, and with interruptions that cost a sample up to four
    times its length.
    """
    draw = np.random.default_rng(seed)

    def side(level):
        jitter = 1 + noise * draw.exponential(size=rounds)
        return (
            1e-3
            * level
            * jitter
            * np.where(draw.random(rounds) < spikes, draw.uniform(1, 4, rounds), 1)
        )

    return Samples(side(slower), side(1.0), side(again))


def judged(samples, ratio=1.0):
    return decision.decide(samples, *Measurement(replace(TINY, ratio=ratio)).limits)


# ---------------------------------------------------------------------------------------- decisions


def test_equals_are_no_alarm_however_often_they_are_interrupted():
    assert [judged(drawn(seed=seed)) for seed in range(200)].count(ALARM) == 0


@pytest.mark.parametrize("slower", [1.05, 1.1, 1.5])
def test_a_slowdown_is_an_alarm_through_interruptions(slower):
    assert [judged(drawn(slower, seed=seed)) for seed in range(200)].count(ALARM) >= 190


def test_both_statistics_must_exceed_their_limit():
    steady = np.full(40, 1e-3)
    # one sample as short as ever: the least ratio is 1
    few = np.where(np.arange(40) == 0, 1e-3, 1.1e-3)
    most = np.where(np.arange(40) < 30, 1.01e-3, 1.2e-3)
    assert judged(Samples(few, steady, steady)) == PASS
    assert judged(Samples(most, steady * 0.96, steady * 0.96)) == ALARM
    assert (
        judged(Samples(np.full(40, 1.04e-3), np.where(np.arange(40) == 0, 1e-3, 1.03e-3), steady))
        == PASS
    )


def test_a_slowdown_is_one_above_the_expected_ratio():
    assert judged(drawn(1.5), ratio=1.5) == PASS
    assert judged(drawn(1.65), ratio=1.5) == ALARM
    assert judged(drawn(0.8), ratio=0.7) == ALARM


@pytest.mark.parametrize("again", [0.95, 1.05])
def test_where_the_reference_does_not_find_itself_only_what_exceeds_that_by_far_is_said(again):
    said = [judged(drawn(slower, again=again)) for slower in (0.5, 1.0, 1.05, 1.15, 2.0)]
    assert said == [INCONCLUSIVE, INCONCLUSIVE, INCONCLUSIVE, ALARM, ALARM]


def test_rounds_without_a_sample_of_each_side_are_refused():
    with pytest.raises(ValueError, match="one sample of each"):
        Samples(np.ones(3), np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="one sample of each"):
        Samples(np.ones(0), np.ones(0), np.ones(0))


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([ALARM, ALARM, ALARM], ALARM),
        ([ALARM, PASS], PASS),
        ([ALARM, INCONCLUSIVE, ALARM], INCONCLUSIVE),
        ([INCONCLUSIVE, PASS], PASS),
    ],
)
def test_an_alarm_stands_where_every_fresh_process_repeats_it(others, expected):
    assert decision.confirmed(ALARM, others) == expected
    assert decision.confirmed(PASS, []) == PASS


# --------------------------------------------------------------------- what is made of measurements


@pytest.fixture
def measured(monkeypatch):
    """``measured(first, *fresh)``: what the gate says of a benchmark whose processes gave these."""

    def told(*results, bench=TINY, machine=None):
        given = iter(results)
        monkeypatch.setattr(speed, "measure", lambda asked, _: [next(given) for _ in asked])
        page = limits.Limits(Path(), Path(), (bench,), machine=machine)
        [found] = speed.findings(page, HERE)
        return found

    return told


def test_an_alarm_repeated_by_three_fresh_processes_is_a_regression(measured):
    found = measured(*[drawn(1.1, seed=seed) for seed in range(4)])
    assert found.verdict == verdict.REGRESSION
    assert "slower in 4 of 4 processes" in sentence(found)


def test_an_alarm_that_one_fresh_process_does_not_repeat_passes_and_is_told(measured):
    found = measured(drawn(1.1), drawn(1.1), drawn(1.0), drawn(1.1))
    assert found.verdict == verdict.PASS
    assert "did not repeat it" in sentence(found)


def test_a_noisy_machine_is_inconclusive(measured):
    found = measured(drawn(1.1, again=1.2))
    assert found.verdict == verdict.INCONCLUSIVE
    assert "too noisy" in sentence(found)


def test_a_benchmark_without_samples_fails(measured):
    found = measured(Broken(Failure.RAISED, details={"error": "ValueError: no {way}"}))
    assert (found.verdict, sentence(found)) == (
        verdict.REGRESSION,
        "it raised ValueError: no {way}.",
    )


def test_every_reason_and_every_failure_has_its_sentence():
    assert set(sentences.SENTENCES) == set(Reason)
    assert set(sentences.FAILURES) == set(Failure)


def test_a_ratio_measured_on_another_machine_proves_nothing(measured):
    bench = replace(TINY, ratio=1.5)
    slow = [drawn(1.8, seed=seed) for seed in range(4)]
    assert measured(*slow, bench=bench, machine=HERE).verdict == verdict.REGRESSION
    elsewhere = measured(*slow, bench=bench, machine=Machine("another processor", "2.0"))
    assert elsewhere.verdict == verdict.INCONCLUSIVE
    assert "the 1.5 expected was measured on another processor, torch 2.0" in sentence(elsewhere)
    assert (
        measured(drawn(1.4), bench=bench, machine=Machine("another processor", "2.0")).verdict
        == verdict.INCONCLUSIVE
    )


def test_one_regression_is_one_and_one_open_question_leaves_the_whole_open():
    def code(*verdicts):
        return verdict.CODES[
            verdict.overall([Finding("speed", "x", one, Reason.AS_FAST) for one in verdicts])
        ]

    assert code("pass", "pass") == 0
    assert code("pass", "inconclusive", "regression") == 1
    assert code("inconclusive", "pass") == 3


def test_a_name_with_a_bar_does_not_break_the_table():
    broken = Broken(Failure.NOT_IMPORTED, details={"work": "x", "error": "no\nway"})
    found = Finding("speed", "a|b", "regression", Reason.NO_SAMPLES, details={"broken": broken})
    page = sentences.markdown([found], gate.environment())
    assert "| speed | a\\|b | REGRESSION | x is not there: no way. |" in page


# -------------------------------------------------------------------------------- real measurements

MINE = """
import os
import time


def work(loops):
    def spin():
        for _ in range(loops):
            pass
    return spin


def ours():
    return work(2000)


def slow():
    return work(4000)


def reference():
    return work(2000)


def long():
    return lambda: time.sleep(0.003)


def nan():
    return lambda: float("nan")


def late():
    calls = iter(range(10**9))
    return lambda: {"loss": [0.0 if next(calls) < 100 else float("nan")]}


def later():
    calls = iter(range(100))
    return lambda: next(calls)


def number():
    return 3.0


def dies():
    return lambda: os._exit(7)


def raises():
    raise ValueError("no\\nway")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "mine.py").write_text(MINE)
    return folder


@pytest.fixture
def forked(monkeypatch):
    """Processes that measure are forks of this one, for what is told of a benchmark: that a process
    is new matters to the numbers alone.
    """
    monkeypatch.setattr(
        sampling, "multiprocessing", SimpleNamespace(get_context=lambda _: get_context("fork"))
    )
    with warnings.catch_warnings():
        # newer Pythons warn of threads, of which this process has those of pytest-xdist
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.mark.usefixtures("forked")
def test_what_can_be_wrong_with_a_benchmark_is_told_and_the_others_are_measured(files):
    names = ("ours", "nan", "vanished", "dies", "raises", "number", "late", "later", "reference")
    sides = [(name, f"mine.py:{name}", "reference") for name in names]
    sides += [
        ("absent", "absent.py:x", "reference"),
        ("long", "mine.py:ours", "long"),
        ("module", "mine_absent:x", "reference"),
    ]
    asked = [
        Measurement(Bench(name, ours, f"mine.py:{reference}")) for name, ours, reference in sides
    ]
    first, nan, vanished, dies, raises, number, late, later, last, absent, long, module = (
        sampling.measure(asked, files)
    )
    assert isinstance(first, Samples)
    assert isinstance(last, Samples)
    assert len(last.ours) >= sampling.ROUNDS
    assert why(nan) == "it returned nan"
    assert (vanished.fault, why(vanished)[:31]) == ("page", "mine.py:vanished is not there (")
    assert why(dies) == "it ended its process, with code 7"
    assert why(raises) == "it raised ValueError: no way"
    assert why(late) == "it returned nan in a dict"
    assert why(later) == "it raised StopIteration"
    assert why(number) == "mine.py:number returned float, not a function to be timed"
    assert why(absent).startswith("absent.py:x is not there")
    assert why(module).startswith("mine_absent:x is not there")
    assert (long.fault, "2 ms is the most" in why(long)) == ("machine", True)


@pytest.mark.usefixtures("forked")
def test_files_beside_the_page_import_each_other(files, tmp_path):
    shutil.copy(files / "mine.py", tmp_path / "signum_of_mine.py")
    (tmp_path / "both.py").write_text("from signum_of_mine import ours, reference\n")
    [found] = sampling.measure(
        [Measurement(Bench("x", "both.py:ours", "signum_of_mine:reference"))], tmp_path
    )
    assert isinstance(found, Samples), found


WORKS = """
import multiprocessing
import torch

print("imported")


def prints():
    return lambda: print("called")


def uses_processes():
    worker = multiprocessing.get_context("fork").Process(target=int)
    worker.start()
    worker.join()
    return int


def quantizes():
    return lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
"""


def test_what_a_benchmark_may_do(tmp_path):
    (tmp_path / "mine.py").write_text(WORKS)
    works = ("prints", "uses_processes", "quantizes")
    (tmp_path / "gate.toml").write_text(
        "".join(bench(work, work).replace("mine.py:reference", f"mine.py:{work}") for work in works)
    )
    done = process("gate", "--limits", "gate.toml", cwd=tmp_path)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(works)


@pytest.mark.usefixtures("forked")
def test_a_package_that_raises_as_it_is_imported_is_told_as_whose_it_is(files, tmp_path):
    (tmp_path / "broken_of_mine.py").write_text("raise ValueError('no package')\n")
    shutil.copy(files / "mine.py", tmp_path)
    sides = [("broken_of_mine:x", "mine.py:ours"), ("mine.py:ours", "broken_of_mine:x")]
    found = sampling.measure(
        [Measurement(Bench("x", ours, reference)) for ours, reference in sides], tmp_path
    )
    assert [one.fault for one in found] == ["ours", "page"]
    assert [why(one).removeprefix("it ") for one in found] == ["raised ValueError: no package"] * 2


NAN = float("nan")
NOT_FINITE = [
    *(
        torch.tensor(-np.inf),
        torch.tensor([1.0, NAN], dtype=torch.bfloat16),
        torch.tensor(complex(0, NAN)),
    ),
    *(
        np.float32(NAN),
        np.array([[1.0, NAN]]),
        (1, [NAN]),
        {"w": torch.tensor([NAN]), "b": 1.0},
        (torch.ones(2), {"x": (np.inf,)}),
    ),
]


@pytest.mark.parametrize("result", NOT_FINITE, ids=str)
def test_a_number_that_is_not_finite_is_found_wherever_it_is(result):
    steady = iter(range(10**9)).__next__
    for works, fault, said in (
        ([lambda: result, steady, steady], "ours", r"it returned .*(inf|nan)"),
        ([steady, steady, lambda: result], "page", r"returned .*(inf|nan)"),
    ):
        with pytest.raises(sampling._NoSamples) as error:
            sampling.timed(works, (1.03, 1.02))
        assert error.value.broken.fault == fault
        assert re.match(said, why(error.value.broken))


def test_what_is_no_number_or_finite_is_let_be():
    things = [
        "nan",
        None,
        object(),
        True,
        np.array(["nan"]),
        torch.ones(2, dtype=torch.int32),
        np.datetime64("NaT"),
        {"a": [(), {}]},
    ]
    assert [list(sampling._not_finite(thing)) for thing in [*things, things]] == [[]] * (
        len(things) + 1
    )


def test_work_is_added_that_takes_the_time_asked_for():
    def spent(loops):
        start = time.perf_counter()
        sampling._spend(loops)
        return time.perf_counter() - start

    loops = sampling._loops(1e-3)
    assert 0.3e-3 < min(spent(loops) for _ in range(50)) < 3e-3


@pytest.fixture
def page(files, tmp_path):
    """A function that writes a page of limits beside ``mine.py`` and returns its path."""

    def write(text):
        shutil.copy(files / "mine.py", tmp_path)
        (tmp_path / "limits.toml").write_text(text)
        return tmp_path / "limits.toml"

    return write


def bench(name, of="ours", **settings):
    lines = [f'[[bench]]\nname = "{name}"\nours = "mine.py:{of}"\nreference = "mine.py:reference"']
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in settings.items())]) + "\n"


def test_work_that_takes_twice_as_long_fails_and_is_told_everywhere(page, tmp_path):
    path = page(bench("twice", "slow") + bench("broken", "raises"))
    done = decided(
        "gate", "--limits", path, "--markdown", "gate.md", "--json", "gate.json", cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "The gate found a regression."
    document = json.loads((tmp_path / "gate.json").read_text())
    twice, broken = document["findings"]
    assert (document["exit_code"], twice["verdict"], broken["verdict"]) == (
        1,
        "regression",
        "regression",
    )
    assert 1.5 < twice["numbers"]["least_ratio"] < 2.5
    ratio = re.search(r"write ratio = ([\d.]+) and \[machine\] processor = ", twice["sentence"])
    assert twice["numbers"]["least_ratio"] * 0.7 < float(ratio[1]) < 2.6
    assert broken["sentence"] == "it raised ValueError: no way."
    assert (
        "| speed | twice | REGRESSION | slower in 4 of 4 processes"
        in (tmp_path / "gate.md").read_text()
    )


def test_the_self_test_counts_what_it_finds(page, tmp_path, monkeypatch):
    """On made-up samples: those of 5 % are found in this process, and not in fresh ones."""
    passes = iter(range(100))

    def measure(asked, _):
        number = next(passes)
        shares = [0.0 if number % 4 and one.slowdown == 0.05 else one.slowdown for one in asked]
        return [drawn(1 + share, seed=seed) for seed, share in enumerate(shares)]

    monkeypatch.setattr(speed, "measure", measure)
    given = [
        "gate",
        "--limits",
        str(page(bench("tiny"))),
        "--self-test",
        "--checks",
        "40",
        "--json",
        str(tmp_path / "rates.json"),
    ]
    done = CliRunner().invoke(cli_.cli, given, prog_name="clipbench")
    assert done.exit_code == 1, done.stderr
    rates = json.loads((tmp_path / "rates.json").read_text())["rates"]
    whole = [
        (rate["slowdown"], rate["checks"], rate["alarms"]) for rate in rates if rate["load"] is None
    ]
    assert whole == [(0.0, 40, 0), (0.05, 10, 0), (0.1, 10, 10)]
    assert {rate["load"] for rate in rates} == {None, False, True}
    assert done.stdout.endswith("The gate is not as good as it must be: 5% slowdowns found\n")


def test_rates_are_told_with_their_bounds():
    checks = (
        [(0.0, False, PASS, 1.0)] * 399
        + [(0.0, True, INCONCLUSIVE, 1.0)]
        + [(0.1, False, ALARM, 1.1)] * 98
    )
    checks += [(0.1, False, PASS, 1.1)] * 2
    rates = self_test.Rates(tuple(self_test._rates(checks)))
    false, found = rates.rates[:2]
    assert (false.alarms, false.checks, false.inconclusive) == (0, 400, 1)
    assert false.high == pytest.approx(0.0095, abs=1e-4)  # Wilson's bound for 0 of 400
    assert (found.share, found.holds, rates.hold) == (0.98, False, False)
    assert "not as good as it must be: 10% slowdowns found" in self_test.text(rates)


def test_a_machine_on_which_nothing_can_be_measured_gives_no_rates(page, tmp_path, monkeypatch):
    broken = Broken(Failure.TOO_LONG, "machine", {"milliseconds": 3.0, "most": 2.0})
    monkeypatch.setattr(speed, "measure", lambda asked, _: [broken] * len(asked))
    given = [
        "gate",
        "--limits",
        str(page(bench("tiny"))),
        "--self-test",
        "--checks",
        "4",
        "--json",
        str(tmp_path / "rates.json"),
    ]
    done = CliRunner().invoke(
        cli_.cli, [*given, "--markdown", str(tmp_path / "rates.md")], prog_name="clipbench"
    )
    assert done.exit_code == 3, done.stdout + done.stderr
    stored = json.loads((tmp_path / "rates.json").read_text(), parse_constant=pytest.fail)
    assert (stored["holds"], {rate["least_ratio"] for rate in stored["rates"]}) == (None, {None})
    assert "cannot be told here" in done.stdout


@pytest.mark.parametrize("option", ["--markdown", "--json"])
def test_a_file_that_could_not_be_written_is_refused_before_anything_is_measured(
    page, tmp_path, option, monkeypatch
):
    monkeypatch.setattr(gate, "run", lambda *_: pytest.fail("it was measured"))
    given = [
        "gate",
        "--limits",
        str(page(bench("tiny"))),
        option,
        str(tmp_path / "absent" / "gate.txt"),
    ]
    done = CliRunner().invoke(cli_.cli, given, prog_name="clipbench")
    assert done.exit_code == 2, done.stdout + done.stderr
    assert f"{option}: there is no folder" in done.stderr


def test_load_ends_with_the_self_test():
    with self_test.hogs(2):
        pass
    with pytest.raises(KeyboardInterrupt), self_test.hogs(1):
        raise KeyboardInterrupt


# ------------------------------------------------------------------------------ frozen, and current


@pytest.mark.parametrize("bench", limits.read().benches, ids=lambda bench: bench.name)
def test_the_packaged_benchmarks_work_on_both_sides(bench):
    """Each side gives the same kind of thing, and goes on giving it."""
    denormals = torch.tensor([1e-40]).mul(1.0).item() == 0
    mine, theirs = (sampling._work(name, "ours", Path()) for name in (bench.ours, bench.reference))
    for _ in range(3):
        sampling._check(mine, "ours")
        sampling._check(theirs, "reference")
    assert (torch.tensor([1e-40]).mul(1.0).item() == 0) == denormals


@pytest.mark.parametrize("name", ["value_rule", "norm_rule", "adam_rule"])
def test_a_frozen_rule_gives_the_bits_of_ours(name):
    """On the same gradients: then the two do the same work."""
    mine, theirs = getattr(current, name)(), getattr(loop, name)()
    cells = {"value_rule": "clip", "norm_rule": "clip", "adam_rule": "grads"}
    variables = dict(zip(mine.__code__.co_freevars, mine.__closure__, strict=True))
    other = dict(zip(theirs.__code__.co_freevars, theirs.__closure__, strict=True))
    assert cells[name] in variables
    for key in ("grads", "params"):
        if key in other:
            other[key].cell_contents = variables[key].cell_contents
    one, two = mine(), theirs()
    one, two = (result[0] if isinstance(result, tuple) else result for result in (one, two))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_frozen_references_import_nothing_of_ours():
    sources = [
        path.read_text(encoding="utf-8") for path in Path(frozen.__file__).parent.glob("*.py")
    ]
    assert len(sources) == 4
    for source in sources:
        assert "import clipbench" not in source
        assert "from clipbench" not in source
        assert "from .." not in source


# ----------------------------------------------------------------------------------------- the page


WRONG = {
    "nothing": ("", ["nothing is gated"]),
    "no TOML": ("x = [", ["this is no TOML"]),
    "a table": ("[[bnech]]\n", ["there is no table `bnech`", "Did you mean bench?"]),
    "one bracket": ('[bench]\nname = "x"\n', ["write [[bench]], with two brackets"]),
    "a setting": (
        bench("x", mni_ratio=1.1),
        ["first [[bench]]: there is no setting `mni_ratio`", "Did you mean min_ratio?"],
    ),
    "no reference": ('[[bench]]\nname = "x"\nours = "a:b"\n', ["`reference` is missing"]),
    "a word for a number": (
        bench("x", ratio='"1"'),
        ["`ratio` is '1', and must be a positive, finite number"],
    ),
    "a ratio of no machine": (
        bench("x", ratio=1.2),
        ['the ratio 1.2 of "x" holds where it was measured; name that in [machine]'],
    ),
    "a limit below 1": (
        bench("x", min_ratio=0.9),
        ['`min_ratio` of "x" is 0.9, and must be above 1'],
    ),
    "a name twice": (bench("x") + bench("x"), ['two benches are called "x"']),
    "no function in a name": (
        '[[bench]]\nname = "x"\nours = "a"\nreference = "a:b"\n',
        ["`ours` of \"x\" is 'a', and must be"],
    ),
    "a study": (
        '[[learning]]\nstudy = "smke"\nbaseline = "x"\n',
        ['no packaged study "smke"', "Did you mean smoke?"],
    ),
    "an engine": (
        '[[learning]]\nstudy = "smoke"\nbaseline = "x"\nengine = "lop"\n',
        ["`engine` is 'lop', and must be 'loop' or 'batched'"],
    ),
    "a number for a word": (
        "[[learning]]\nstudy = 3\nbaseline = 'x'\n",
        ["`study` is 3, and must be text"],
    ),
    "a reference that is not there": (
        bench("x").replace(":reference", ":refrence"),
        ["`reference` of \"x\" is 'mine.py:refrence', and mine.py has no refrence. Did you mean "],
    ),
    "work that is not there": (
        bench("x", "solw"),
        ["`ours` of \"x\" is 'mine.py:solw', and mine.py has no solw. Did you mean slow?"],
    ),
    "a file that is not there": (
        bench("x").replace("mine.py:ours", "mien.py:ours"),
        ["there is no file ", "Did you mean mine.py?"],
    ),
    "a module that is not there": (
        bench("x").replace("mine.py:ours", "clipbench.gate.curent:step"),
        ["and there is no module clipbench.gate.curent."],
    ),
    "a package that is not there": (
        bench("x").replace("mine.py:ours", "mine_absent.gate:step"),
        ["and there is no module mine_absent."],
    ),
}


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("case", WRONG)
def test_a_page_that_is_wrong_is_refused_in_one_sentence(page, case):
    text, fragments = WRONG[case]
    done = CliRunner().invoke(
        cli_.cli, ["gate", "--limits", str(page(text))], prog_name="clipbench"
    )
    assert done.exit_code == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert all(fragment in done.stderr for fragment in fragments), done.stderr


def test_a_page_that_names_nothing_is_refused_before_anything_is_measured(page, monkeypatch):
    monkeypatch.setattr(sampling, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(UsageError, match="has no solw"):
        gate.read(page(bench("x") + bench("y", "solw")))


DYNAMIC = {
    "raise ValueError\nwork = 1": None,
    "if True:\n    def work(): pass": None,
    "from os.path import *": None,
    "def __getattr__(name): return 1": None,
    "globals()['work'] = 1": None,
    "import os as work": None,
    "no Python (": None,
    "def wrok(): pass": "mine.py has no work. Did you mean wrok?",
}


@pytest.mark.parametrize(("source", "said"), DYNAMIC.items(), ids=DYNAMIC)
def test_a_name_that_may_be_there_is_left_to_the_measurement(source, said, tmp_path):
    """And no source is run to see."""
    (tmp_path / "mine.py").write_text(source)
    assert names.missing("mine.py:work", tmp_path) == said
    module = said.replace("mine.py", "mine") if said else None
    assert names.missing("mine:work", tmp_path) == module


def test_a_folder_beside_the_page_hides_no_package_of_its_name(tmp_path):
    """A workflow checks clipbench out there."""
    (tmp_path / "clipbench").mkdir()
    assert names.missing("clipbench.gate.current:step", tmp_path) is None


@pytest.mark.usefixtures("forked")
def test_a_bug_of_ours_in_the_process_that_measures_is_no_regression(page, monkeypatch):
    def planted(*_):
        raise LookupError("planted")

    monkeypatch.setattr(sampling, "timed", planted)
    given = ["gate", "--limits", str(page(bench("x")))]
    done = CliRunner().invoke(cli_.cli, given, prog_name="clipbench")
    assert done.exit_code == 70, done.stdout + done.stderr
    assert "in planted" in done.stderr
    assert "LookupError: planted" in done.stderr


FAILS = {
    "raises": "raised ValueError: no way",
    "later": "raised StopIteration",
    "late": "returned nan in a dict",
    "dies": "ended its process, with code 7",
}


@pytest.mark.usefixtures("forked")
def test_a_reference_that_fails_is_the_pages_fault(page, monkeypatch):
    monkeypatch.setattr(sampling, "MOST_ROUNDS", sampling.ROUNDS)  # no samples are looked at
    path = page(bench("x").replace(":reference", ":late"))
    asked = [Measurement(Bench(name, "mine.py:ours", f"mine.py:{name}")) for name in FAILS]
    found = sampling.measure(asked, path.parent)
    assert [(one.fault, why(one)) for one in found] == [("page", said) for said in FAILS.values()]
    done = CliRunner().invoke(cli_.cli, ["gate", "--limits", str(path)], prog_name="clipbench")
    assert done.exit_code == 2, done.stdout + done.stderr
    assert '"x": its reference returned nan in a dict' in done.stderr


def test_a_page_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no such file"):
        gate.read(tmp_path / "absent.toml")


# ----------------------------------------------------------------------------------------- learning

STUDY = study_page(
    "wdbc",
    clips={"none": {}, "norm": {"max_norm": 0.3}},
    steps=30,
    batch=32,
    lr=0.3,
    evaluations=3,
    select=12,
)
LEARNING = '[[learning]]\nstudy = "mine.toml"\nbaseline = "before"\nengine = "{engine}"\n'


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """A folder with a study, a page of limits for it, and the baseline of the tree as it is."""
    folder = tmp_path_factory.mktemp("baseline")
    (folder / "mine.toml").write_text(STUDY)
    done = process(
        "run", "mine.toml", "--engine", "loop", "--no-throughput", "--out", "before", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    (folder / "loop.toml").write_text(LEARNING.format(engine="loop"))
    (folder / "both.toml").write_text(
        LEARNING.format(engine="loop") + LEARNING.format(engine="batched")
    )
    return folder


@pytest.fixture
def copied(baseline, tmp_path):
    """The same, to be spoiled."""
    return Path(shutil.copytree(baseline, tmp_path / "copy"))


@pytest.fixture
def planted(tmp_path):
    """A function that returns a copy of the tree with lines of a file changed, each ``(old,
    new)``.
    """

    def plant(file, *changes):
        tree = tmp_path / "tree"
        shutil.copytree(
            Path(clipbench.__file__).parent,
            tree / "clipbench",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        path = tree / "clipbench" / file
        text = path.read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
        return tree

    return plant


def test_an_unchanged_tree_learns_as_it_did_and_the_other_engine_is_within_a_tolerance(baseline):
    done = process("gate", "--limits", baseline / "both.toml", cwd=baseline)
    assert done.returncode == 0, done.stdout + done.stderr
    loop, batched, _ = done.stdout.splitlines()
    assert "24 cells, 24 same bits" in loop
    assert "24 same bits" not in batched


IN_PLACE, PURE = (
    "clip_grad_norm_(_measurable(params, self.norm_type), self.max_norm, float(self.norm_type))",
    "trees.scale(grads, factor(self.max_norm, self.size",
)
SIGN = {
    "loop": (
        f"self, params: Iterable[Tensor]) -> None:\n        {IN_PLACE}",
        IN_PLACE,
        "clip_grad_norm_(params, -self.max_norm)",
    ),
    "batched": (PURE, "factor(", "-factor("),
}


def test_a_sign_error_in_a_clip_fails(baseline, planted):
    """In the in-place path of the loop, which alone the loop takes, and in the pure rule of
    lanes, which alone they take.
    """
    tree = planted(
        "clips/fixed.py", *((line, line.replace(old, new)) for line, old, new in SIGN.values())
    )
    done = process("gate", "--limits", baseline / "both.toml", cwd=baseline, tree=tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert all("wdbc, sgd + norm, lr 0.3" in line for line in done.stdout.splitlines()[:2])


def test_a_clip_that_fires_no_more_fails_though_nothing_got_worse(baseline, planted):
    line, old, _ = SIGN["loop"]
    tree = planted("clips/fixed.py", (line, line.replace(old, "list(params)")))
    done = process("gate", "--limits", baseline / "loop.toml", cwd=baseline, tree=tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "wdbc, sgd + norm, lr 0.3: the clip fires in other steps" in done.stdout


PLUGIN = """
from clipbench import Positive, optimizer


@optimizer("signum-of-mine")
class Signum:
    \"\"\"The sign of the gradient.\"\"\"

    def init(self, params):
        return {}

    def update(self, grads, state, params):
        return {name: grad.sign() for name, grad in grads.items()}, state
"""


def test_an_edited_component_of_the_users_own_is_judged(tmp_path):
    """Its version is the hash of its file: an edit that changes no number passes, a flipped sign
    is a regression.
    """
    (tmp_path / "signum.py").write_text(PLUGIN)
    study_ = STUDY.replace('"sgd"', '"signum-of-mine"').replace("lr = 0.3", "lr = 0.01")
    (tmp_path / "mine.toml").write_text('use = ["signum.py"]\n' + study_)
    (tmp_path / "gate.toml").write_text(LEARNING.format(engine="loop"))
    done = process(
        "run", "mine.toml", "--engine", "loop", "--no-throughput", "--out", "before", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "signum.py").write_text(PLUGIN + "# an edit\n")
    done = process("gate", "--limits", "gate.toml", cwd=tmp_path)
    assert (done.returncode, "24 cells, 24 same bits" in done.stdout) == (0, True), (
        done.stdout + done.stderr
    )
    (tmp_path / "signum.py").write_text(PLUGIN.replace("grad.sign()", "-grad.sign()"))
    done = process("gate", "--limits", "gate.toml", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "wdbc, signum-of-mine" in done.stdout


def test_other_last_bits_are_told_and_do_not_fail(baseline, planted):
    """The loss a hair larger and its gradient with it: every number moves, and nothing is worse."""
    tree = planted(
        "workloads/tabular.py",
        (
            "        return nn.functional.cross_entropy(output, target)\n",
            "        return nn.functional.cross_entropy(output, target) * (1 + 2e-7)\n",
        ),
    )
    done = process("gate", "--limits", baseline / "loop.toml", cwd=baseline, tree=tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "within a tolerance" in done.stdout


def test_a_slower_step_fails(page, planted):
    """As with every planted speed fault of a test, a large one: the machine may be busy."""
    tree = planted(
        "engines/loop.py",
        (
            "        self.optimizer.zero_grad()\n",
            (
                "        self.optimizer.zero_grad()\n        for _ in range(10):\n            "
                "self.module(inputs)\n"
            ),
        ),
    )
    path = page(
        '[[bench]]\nname = "step"\nours = "clipbench.gate.current:step"\nreference = '
        '"clipbench.gate.frozen.loop:step"\n'
    )
    done = decided("gate", "--limits", path, tree=tree, cwd=tree)
    assert done.returncode == 1, done.stdout + done.stderr


def spoil_nothing_there(folder):
    shutil.rmtree(folder / "before")
    return "there is no baseline"


def spoil_schema(folder):
    import pyarrow.parquet as pq

    [path] = (folder / "before" / "cells").glob("*.parquet")
    table = pq.read_table(path)
    rewrite(path, table.drop_columns("outcome"))
    return "another schema"


def spoil_bytes(folder):
    path = next((folder / "before" / "evals").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-1])
    return "are damaged"


def spoil_machine(folder):
    store = Store(folder / "before")
    page = store.page("environment")
    for environment in page["environments"].values():
        environment["machine"] = "pdp11"
    store.write_page("environment", page)
    return "another machine (pdp11, here"


def spoil_version(folder):
    store = Store(folder / "before")
    page = store.page("components")
    page["clips"]["norm"]["version"] = 0
    store.write_page("components", page)
    return "another version of norm (0, now"


def spoil_study(folder):
    path = folder / "mine.toml"
    path.write_text(path.read_text().replace("lr = 0.3", "lr = 0.2"))
    return "another page of this study"


def spoil_device(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in [*(folder / "before" / "cells").glob("*.parquet")]:
        table = pq.read_table(path)
        names = table.column_names
        table = table.set_column(names.index("device"), "device", pa.array(["cuda"] * len(table)))
        settings = [
            text.replace('"device":"cpu"', '"device":"cuda"')
            for text in table.column("settings").to_pylist()
        ]
        table = table.set_column(names.index("settings"), "settings", pa.array(settings))
        table = table.set_column(
            names.index("cell"), "cell", pa.array([cell.identity(text) for text in settings])
        )
        rewrite(path, table)
    return "another device (cuda)"


def rewrite(path, table):
    """A file in the place of another, with the hash of its own in its name."""
    import hashlib

    import pyarrow.parquet as pq

    path.unlink()
    pq.write_table(table, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    path.rename(path.with_name(f"{path.stem.rpartition('-')[0]}-{digest}.parquet"))


def spoil_rules(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in [*(folder / "before" / "cells").glob("*.parquet")]:
        table = pq.read_table(path)
        rewrite(
            path,
            table.set_column(
                table.column_names.index("rules"), "rules", pa.nulls(len(table), pa.int64())
            ),
        )
    return f"judged by rules 1 (now {RULES})"


SPOILED = [
    spoil_rules,
    spoil_nothing_there,
    spoil_schema,
    spoil_bytes,
    spoil_machine,
    spoil_version,
    spoil_study,
    spoil_device,
]


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__.removeprefix("spoil_"))
def test_a_baseline_that_says_nothing_is_inconclusive_and_told_why(copied, spoil, tmp_path):
    reason = spoil(copied)
    done = CliRunner().invoke(
        cli_.cli,
        ["gate", "--limits", str(copied / "loop.toml"), "--json", str(tmp_path / "gate.json")],
        prog_name="clipbench",
    )
    assert done.exit_code == 3, done.stdout + done.stderr
    assert reason in done.stdout
    assert json.loads((tmp_path / "gate.json").read_text())["verdict"] == "inconclusive"


# ------------------------------------------------------------------- what a difference is taken for


def settings_of(version):
    """Of a cell whose clip has this version."""
    parts = {
        kind: {"name": "x", "version": 1, "settings": {}}
        for kind in ("workload", "optimizer", "clip")
    }
    return json.dumps(parts | {"clip": {"name": "x", "version": version, "settings": {}}})


def run_of(changes=None, seeds=12, processor="a processor"):
    """One setting of a study: AUC .9, 20 updates to the target, stable; ``changes`` is a
    function of the seed.
    """
    cells = {}
    for seed in range(seeds):
        row = {
            **dict(
                problem="wdbc",
                batch=32,
                device="cpu",
                dtype="float32",
                arm="sgd",
                relative=None,
                lr=0.1,
                threads=1,
            ),
            **dict(
                engine="loop",
                environment="e",
                status="completed",
                outcome="learned",
                reason=None,
                metric="roc_auc",
            ),
            **dict(
                threshold=None,
                percentile=None,
                initial_loss=0.7,
                final_loss=0.1,
                best_loss=0.1,
                metric_value=0.9,
                validation_value=0.1,
            ),
            **dict(
                grad_norm_median=1.0,
                steps_to_target=20.0,
                steps=30,
                clipped_fraction=0.4,
                settings=settings_of(1),
            ),
        }
        cells[f"{seed:016x}"] = row | (changes(seed) if changes else {})
    environments = {"e": {"processor": processor, "libraries": {"torch": "2.0"}}}
    return comparison.Run(cells, environments, {"workloads": {"wdbc": {"higher_is_better": True}}})


def compared(changes, **where):
    return comparison.compare("x", run_of(), run_of(changes, **where), 0.01)


ELSEWHERE = dict(processor="another")  # where the same bits are not asked for


def test_luck_that_falls_on_both_sides_is_no_regression():
    found = compared(
        lambda seed: dict(final_loss=0.3, metric_value=0.9 + 0.05 * (-1) ** seed), **ELSEWHERE
    )
    assert found.verdict == verdict.PASS
    assert found.numbers["moved"] == 12
    assert "nothing worse" in sentence(found)


def test_most_seeds_that_moved_with_no_version_raised_are_a_regression_though_they_got_better():
    """On the platform of the baseline; last bits move few of them."""
    better = dict(metric_value=0.97, final_loss=0.05)
    found = compared(lambda seed: better if seed < 7 else {})
    assert found.verdict == verdict.REGRESSION
    assert "7 cells of stable runs moved, wdbc, sgd, lr 0.1 first, and nobody said so" in sentence(
        found
    )
    assert compared(lambda seed: better if seed < 6 else {}).verdict == verdict.PASS
    assert few(lambda _: better, version="0123456789abcdef", seeds=12).verdict == verdict.PASS


def test_cells_chosen_by_the_same_numbers_are_the_same():
    now = run_of()
    assert (
        comparison.compare(
            "x", run_of(), replace(now, cells=dict(list(now.cells.items())[2:])), 0.01
        ).verdict
        == verdict.REGRESSION
    )


WORSE = {
    "a metric": (lambda seed: dict(metric_value=0.85 - 0.001 * seed), "roc_auc is worse"),
    "no metric": (lambda _: dict(metric_value=None), "roc_auc is worse"),
    "a later target": (
        lambda seed: dict(steps_to_target=24.0 + seed % 2),
        "updates to the target are more",
    ),
    "no target": (lambda _: dict(steps_to_target=None), "updates to the target are more"),
    "a metric, alike in all": (lambda _: dict(metric_value=0.5), "roc_auc is worse"),
    "a metric, one far off": (
        lambda seed: dict(metric_value=0.85 if seed else 0.0),
        "roc_auc is worse",
    ),
    "a later target, alike in all": (
        lambda _: dict(steps_to_target=30.0),
        "updates to the target are more",
    ),
    "a collapse": (lambda _: dict(outcome="collapsed"), "unstable runs are more"),
    "a clip that is silent": (
        lambda _: dict(final_loss=0.05, clipped_fraction=0.0),
        "the clip fires in other steps",
    ),
    "a clip that fires more": (
        lambda seed: dict(final_loss=0.05, clipped_fraction=0.5 + 0.01 * seed),
        "the clip fires in other steps",
    ),
}


@pytest.mark.parametrize("case", WORSE)
def test_every_seed_for_the_worse_is_a_regression(case):
    changes, measure = WORSE[case]
    found = compared(changes, **ELSEWHERE)
    assert found.verdict == verdict.REGRESSION
    [told] = [test for test in found.numbers["worse"] if test["measure"] == measure]
    assert told["p"] <= found.numbers["tests"] * 2 / 2**12 * (1 + 1e-9)
    assert json.loads(sentences.document([found], gate.environment()))["exit_code"] == 1


def few(changes, version=1, outcome="learned", seeds=5, **where):
    """A setting of five seeds before and now, by a workload of this version."""
    settings = dict(settings=settings_of(version), outcome=outcome)
    before, now = (
        run_of(lambda seed, c=c: settings | c(seed), seeds=seeds, **w)
        for c, w in ((lambda _: {}, {}), (changes, where))
    )
    return comparison.compare("x", before, now, 0.01)


def halved(seed):
    return dict(metric_value=0.5 + 0.001 * seed, final_loss=0.3)


def test_few_seeds_that_moved_with_no_version_raised_are_a_regression():
    found = few(halved)
    assert (found.verdict, found.numbers["moved"], found.numbers["tests"]) == (
        verdict.REGRESSION,
        5,
        0,
    )
    assert "5 cells of stable runs moved, wdbc, sgd, lr 0.1 first, and nobody said so" in sentence(
        found
    )


@pytest.mark.parametrize(
    "case",
    [dict(processor="another"), dict(version="0123456789abcdef")],
    ids=["elsewhere", "a plug-in"],
)
def test_few_seeds_that_moved_for_another_reason_are_inconclusive(case):
    found = few(halved, **case)
    assert found.verdict == verdict.INCONCLUSIVE
    assert "5 seeds are too few to tell worse from luck. " in sentence(found)


def test_few_seeds_within_the_tolerance_or_unstable_before_pass():
    assert few(lambda _: dict(final_loss=0.1 + 1e-7)).verdict == verdict.PASS
    assert few(halved, outcome="collapsed").verdict == verdict.PASS


def test_seeds_too_few_for_the_number_of_tests_are_inconclusive():
    """Six pairs of one sign give 2/2⁶: enough for one test, not for two."""
    one = few(lambda _: dict(metric_value=0.5), seeds=6, **ELSEWHERE)
    two = few(lambda _: dict(metric_value=0.5, steps_to_target=30.0), seeds=6, **ELSEWHERE)
    assert (one.verdict, two.verdict) == (verdict.REGRESSION, verdict.INCONCLUSIVE)
    assert "6 seeds are too few to tell worse from luck in 2 tests" in sentence(two)


def test_every_seed_for_the_better_is_told_and_passes():
    found = compared(lambda seed: dict(metric_value=0.95 + 0.001 * seed), **ELSEWHERE)
    assert (found.verdict, found.numbers["better"]) == (verdict.PASS, 1)


def test_one_seed_far_worse_does_not_turn_the_others_into_worse():
    found = compared(
        lambda seed: dict(metric_value=0.95 + 0.001 * seed if seed else 0.0), **ELSEWHERE
    )
    assert (found.verdict, found.numbers["worse"]) == (verdict.PASS, [])


def test_a_difference_below_the_margin_does_not_count_however_regular():
    found = compared(
        lambda seed: dict(final_loss=0.2, metric_value=0.895 - 1e-4 * seed, clipped_fraction=0.395),
        **ELSEWHERE,
    )
    assert found.verdict == verdict.PASS


def test_a_cell_that_fails_now_is_a_regression():
    found = compared(lambda seed: dict(status="failed", reason="it raised") if seed == 3 else {})
    assert found.verdict == verdict.REGRESSION
    assert "1 cells fail now, wdbc, sgd first (it raised)" in sentence(found)


def test_a_machine_that_draws_other_weights_is_not_judged():
    def changes(seed):
        return dict(initial_loss=0.8, metric_value=0.8 + 0.001 * seed)

    assert compared(changes).verdict == verdict.REGRESSION
    found = compared(changes, processor="another")
    assert found.verdict == verdict.INCONCLUSIVE
    assert "began otherwise" in sentence(found)


# -------------------------------------------------------------------------------- what is committed


def test_the_committed_baselines_are_whole_and_those_of_the_packaged_page(checkout):
    page = limits.read(baselines=checkout / "results" / "gate")
    for one in page.learnings:
        before, _ = learning._baseline(page.baselines / one.baseline, study.read(one.study))
        assert {row["engine"] for row in before.cells.values()} <= {"loop", one.engine}
        assert Store(page.baselines / one.baseline).problems() == []


def test_the_packaged_study_meets_every_clip_and_has_the_seeds_for_all_its_tests():
    cells = study.read("gate").cells()
    assert {one.clip.name for one in cells} == set(registry.names("clip"))
    settings = {}
    for one in cells:
        settings.setdefault((one.problem, one.arm, one.lr), set()).add(one.seed)
    fewest = min(len(seeds) for seeds in settings.values())
    assert comparison.least_p(fewest) * 4 * len(settings) < comparison.LEVEL


def test_the_committed_rates_reach_what_they_must(checkout):
    stored = json.loads(
        (checkout / "results" / "gate" / "self-test.json").read_text(encoding="utf-8")
    )
    whole = {rate["slowdown"]: rate for rate in stored["rates"] if rate["load"] is None}
    assert whole[0.0]["checks"] >= 400
    assert whole[0.05]["checks"] >= 100
    assert whole[0.1]["checks"] >= 100
    assert whole[0.0]["alarms"] / whole[0.0]["checks"] < 0.01
    assert whole[0.05]["alarms"] / whole[0.05]["checks"] >= 0.95
    assert whole[0.1]["alarms"] / whole[0.1]["checks"] >= 0.99
    rates = self_test.Rates(tuple(self_test.Rate(**rate) for rate in stored["rates"]))
    page = (checkout / "results" / "gate" / "self-test.md").read_text(encoding="utf-8")
    assert page == self_test.markdown(rates, stored["environment"])
