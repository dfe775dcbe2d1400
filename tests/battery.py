"""The contract of executors, as tests: whatever an executor does, the study ends with the same
rows, and what it loses is run again.

A module that imports them has a fixture ``executor``.
"""

import pytest
from executors import Hostile, InProcess
from pages import study_page

from clipbench import execute, protocol, registry, study
from clipbench.engines import Job
from clipbench.errors import UsageError
from clipbench.execute import Call, Local, Setting
from clipbench.store import Store

PAGE = study_page(
    ["cosh", "wdbc"],
    ["sgd", "momentum"],
    {"none": {}, "norm": {"relative": 0.3}},
    title="executors",
    steps=6,
    batch=16,
    evaluations=2,
    lr=[0.01, 0.1],
    report=1,
)
UNLIKE = ("seconds", "worker", "created", "attempt")  # columns that say how a row came about


def rows(store):
    """Cell → all that its rows say, its curve, evaluations and events included."""
    found = {}
    cells = store.read("cells")
    for row in (
        cells.drop(columns=[name for name in UNLIKE if name in cells])
        .astype(object)
        .to_dict("records")
    ):
        found[row["cell"]] = [repr(row)]
    for table in ("curves", "evals", "events"):
        for cell, some in store.read(table).groupby("cell"):
            found[cell].append(
                (
                    table,
                    [
                        column.to_numpy().astype(object).tolist()
                        for _, column in some.drop(columns="cell").items()
                    ],
                )
            )
    return {cell: repr(values) for cell, values in found.items()}


def carried_out(folder, executor):
    registry.load_packaged()
    asked = study.parse("executors", PAGE, folder.parent)
    store = Store.create(folder, asked.name, asked.text)
    options = protocol.Options(throughput=False, engine="loop")
    with store.claim():
        counts = protocol.run(asked, store, options, protocol.Silent(), executor)
    return counts, Store(folder)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """What one worker process makes of the study."""
    with Local(1) as executor:
        counts, store = carried_out(tmp_path_factory.mktemp("wanted") / "out", executor)
    assert counts.failed == 0
    return rows(store)


def test_a_study_ends_with_the_same_rows_whoever_runs_it(executor, wanted, tmp_path):
    counts, store = carried_out(tmp_path / "out", executor)
    assert store.problems() == []
    # a cell that was lost twice is one that failed, and the next run tries it again
    if counts.failed:
        assert isinstance(executor, Hostile)
        with InProcess() as kind:
            counts, store = carried_out(tmp_path / "out", kind)
    assert counts.failed == 0
    assert rows(store) == wanted
    if isinstance(executor, Hostile):
        assert executor.seen == set(Hostile.fates)


def test_a_call_returns_its_value_or_one_sentence(executor):
    assert execute.call(executor, Call(pow, (2, 5), "the sum"), Setting()) == 32
    with pytest.raises(UsageError, match=r'^there is no clip "nrm"'):
        execute.call(executor, Call(registry.find, ("clip", "nrm"), "the sum"), Setting())
    with pytest.raises(execute.Bug, match=r"^the sum has met a mistake in clipbench itself:"):
        execute.call(executor, Call(pow, (0, -1), "the sum"), Setting())


def test_calls_come_with_their_keys(executor):
    works = {str(number): (Call(pow, (2, number), "the sum"), Setting()) for number in range(5)}
    assert dict(execute.calls(executor, works)) == {str(number): 2**number for number in range(5)}


def test_what_is_left_when_a_run_is_stopped_is_nothing_of_the_executors(executor, tmp_path):
    """A disk that is full ends the run at once; the executor holds no work of it any more."""
    registry.load_packaged()
    asked = study.parse("executors", PAGE.replace("relative = 0.3", "max_norm = 0.3"), tmp_path)
    store = Store.create(tmp_path / "out", asked.name, asked.text)

    def full(_):
        raise OSError(28, "No space left on device")

    jobs = [Job(cell, cell.clip_settings()) for cell in asked.cells()]
    with pytest.raises(OSError, match="No space left"):
        execute.run(jobs, store, "select", executor, Setting(), on_record=full)
    assert not executor.queue
    assert execute.call(executor, Call(pow, (2, 5), "the sum"), Setting()) == 32
