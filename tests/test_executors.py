"""The contract of executors: one battery for worker processes, for everything in this process, and
for a hostile one; and the executors that are offered by name.
"""

from dataclasses import replace

import pytest
from battery import (  # noqa: F401 - the tests that it brings are found here
    PAGE,
    carried_out,
    test_a_call_returns_its_value_or_one_sentence,
    test_a_study_ends_with_the_same_rows_whoever_runs_it,
    test_calls_come_with_their_keys,
    test_what_is_left_when_a_run_is_stopped_is_nothing_of_the_executors,
    wanted,
)
from executors import Hostile, InProcess

from clipbench import execute, protocol, registry, study
from clipbench.errors import UsageError
from clipbench.execute import Call, Local, Setting
from clipbench.store import Store

EXECUTORS = {"processes": lambda: Local(2), "in-process": InProcess, "hostile": Hostile}


@pytest.fixture(params=EXECUTORS)
def executor(request):
    with EXECUTORS[request.param]() as made:
        yield made


def test_a_row_names_the_machine_that_made_it(tmp_path):
    """As on a cluster, where no two need be alike."""

    class Elsewhere(InProcess):
        def __init__(self):
            super().__init__()
            self.here = {**self.here, "processor": "another"}

    with Elsewhere() as executor:
        _, store = carried_out(tmp_path / "out", executor)
    known = store.page("environment")["environments"]
    made_by = set(store.read("cells")["environment"])
    assert [known[key]["processor"] for key in made_by] == ["another"]
    assert len(known) == 2  # this machine's, which planned the run
    assert store.problems() == []


def test_the_next_shard_is_handed_out_before_the_last_one_is_archived(monkeypatch, tmp_path):
    """No worker waits for the disk."""
    steps, add = [], execute.archive.Archive.add

    class Watched(InProcess):
        slots = 1

        def results(self, timeout):
            if self.queue and not isinstance(self.queue[0][1], Call):
                steps.append("handed out")
            return super().results(timeout)

    def noted(self, *record):
        steps.append("archived")
        add(self, *record)

    monkeypatch.setattr(execute.archive.Archive, "add", noted)
    with Watched() as executor:
        carried_out(tmp_path / "out", executor)
    assert steps[: steps.index("archived")] == ["handed out"] * 2
    assert steps[-1] == "archived"


def test_pages_and_timings_of_a_run_elsewhere_know_nothing_of_this_machine(monkeypatch, tmp_path):
    """They are asked for where cells run."""
    asked = study.parse("executors", PAGE, tmp_path)
    store = Store.create(tmp_path / "out", asked.name, asked.text)
    options = protocol.Options(engine="loop", executor="stranger")
    registry.load_packaged()
    row = {"workload": "cosh", "block": 0, "seconds": 0.1, "valid": True}

    class Elsewhere(InProcess):
        """Another processor, whatever is called there."""

        def __init__(self):
            super().__init__()
            self.here = {**self.here, "processor": "another"}

        def results(self, timeout):
            with monkeypatch.context() as there:
                there.setattr("clipbench.execute.machine.processor", lambda: "another")
                there.setattr("clipbench.throughput.measure", lambda _: [row])
                return super().results(timeout)

    with store.claim(), Elsewhere() as executor:
        assert protocol.run(asked, store, options, executor=executor).failed == 0
    known = store.page("environment")["environments"]
    assert [page["processor"] for page in known.values()] == ["another"]
    assert set(store.read("throughput")["environment"]) == set(known)


def test_as_many_calls_are_under_way_as_there_are_slots():
    """Pilots and rates: one that is at work alone leaves the other processors idle."""

    class Counting(InProcess):
        most = 0

        def submit(self, work, setting):
            ticket = super().submit(work, setting)
            self.most = max(self.most, len(self.queue))
            return ticket

    works = {str(number): (Call(abs, (-number,)), Setting()) for number in range(5)}
    with Counting() as executor:
        assert dict(execute.calls(executor, works)) == {str(number): number for number in range(5)}
    assert executor.most == executor.slots == 3


# -------------------------------------------------------------------------------------------- cores


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    free = execute.cores()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert execute.cores() == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(free + 7))
    assert execute.cores() == free
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3}, raising=False)
    assert execute.cores() == 1


# -------------------------------------------------------------------------------- offered by a name


class Point:
    """An entry point of an installed package."""

    def __init__(self, value):
        self.name, self.value = "stranger", value


@pytest.fixture
def installed(monkeypatch):
    """A function that installs an executor under the name ``stranger``."""

    def install(value):
        monkeypatch.setattr(
            "importlib.metadata.entry_points",
            lambda group: [Point(value)] if group == "clipbench.executors" else [],
        )

    return install


def strange(request):
    """The executor of another package; it has the option ``size``."""
    request.known("stranger", ("size",))
    return InProcess()


def test_a_study_runs_on_the_executor_of_another_package(installed, tmp_path):
    registry.load_packaged()
    installed("test_executors:strange")
    asked = study.parse("executors", PAGE, tmp_path)
    store = Store.create(tmp_path / "out", asked.name, asked.text)
    options = protocol.Options(engine="loop", throughput=False, executor="stranger")
    with store.claim():
        assert protocol.run(asked, store, options).failed == 0
    assert Store(tmp_path / "out").missing() == []
    with pytest.raises(UsageError, match=r"has no such option; it has size\. Did you mean size"):
        protocol.run(asked, store, replace(options, executor_options={"sise": "1"}))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, r'^--executor "stranger": there is no such executor'),
        ("no_such_module:it", r"no_such_module:it cannot be imported \(ModuleNotFoundError"),
        ("test_executors:absent", r"absent cannot be imported \(AttributeError"),
    ],
)
def test_an_executor_that_is_not_there_is_one_sentence(value, sentence, installed):
    if value is not None:
        installed(value)
    with pytest.raises(UsageError, match=sentence):
        execute.offered("stranger")


@pytest.mark.parametrize("text", ["size", "=3", ""])
def test_an_option_of_an_executor_has_a_value(text):
    with pytest.raises(UsageError, match="write KEY=VALUE"):
        execute.options_named([text])
