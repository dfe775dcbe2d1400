"""Records on their way into the store: nothing is worked out twice, and no row is lost."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from clipbench import cell as cell_
from clipbench.cell import Cell, Part
from clipbench.engines import Job, Record
from clipbench.events import Evaluation, Event, Verdict
from clipbench.execute import archive as archive_
from clipbench.execute.archive import Archive
from clipbench.execute.executor import Portion
from clipbench.measures import COLUMNS
from clipbench.store import Store

HERE = {"processor": "one", "cores": 2}


def record(seed, evaluations=3):
    cell = Cell(Part("wdbc", 1), Part("sgd", 1), Part("none", 1), 0.1, seed, 4, 32)
    made = Record(
        Job(cell, {}),
        rows=np.full((4, len(COLUMNS)), 0.5),
        evaluations=[
            Evaluation(step, "validation", "loss", step / 10, 0.1 if step else None)
            for step in range(evaluations)
        ],
        events=[Event(1, "spike", 2.0, "above")] if seed else [],
        metric="roc_auc",
        verdict=Verdict("completed", "learned"),
    )
    return pickle.loads(pickle.dumps(made))  # noqa: S301 - as it comes from a worker


@pytest.fixture
def archive(tmp_path):
    store = Store.create(tmp_path / "tiny", "tiny", "[run]\nsteps = 4\n")
    return Archive(store, "select", HERE)


def counted(monkeypatch, module, name):
    calls, real = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda value: calls.append(value) or real(value))
    return calls


def test_a_cell_is_hashed_once_a_record(archive, monkeypatch):
    """However many rows of evaluations, events and curves carry its id."""
    hashed = counted(monkeypatch, cell_, "identity")
    for seed in range(3):
        archive.add(record(seed), Portion(0))
    archive.flush()
    assert len(archive.store.read("evals")) == 9
    assert len(hashed) == 3


def test_an_environment_is_hashed_once(archive, monkeypatch):
    """Not for each record that comes from it; one that differs has a key of its own."""
    hashed = counted(monkeypatch, archive_, "key_of")
    for seed in range(4):
        archive.add(record(seed), Portion(0, environment={**HERE, "cores": seed // 2}))
    archive.flush()
    assert len(hashed) == 2
    assert archive.store.read("cells")["environment"].nunique() == 2


def test_evaluations_and_events_are_stored_as_they_were_recorded(archive):
    """Row by row, with null where nothing is known; a cell without any adds none."""
    records = [record(0), record(1, evaluations=0), record(2)]
    for one in records:
        archive.add(one, Portion(0))
    archive.flush()
    names = ["cell", *Evaluation._fields]
    stored = archive.store.arrow("evals").select(names).to_pylist()
    assert stored == [
        {"cell": one.job.cell.id, **row._asdict()} for one in records for row in one.evaluations
    ]
    assert archive.store.read("events")["cell"].to_list() == [
        one.job.cell.id for one in records if one.events
    ]


def test_records_without_evaluations_make_a_shard(archive):
    archive.add(record(0, evaluations=0), Portion(0))
    archive.flush()
    assert len(archive.store.read("cells")) == 1
    assert not any((archive.store.folder / "evals").iterdir())
