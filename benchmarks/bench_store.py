"""What the store's promises take: a shard of 64 cells of 300 steps, written, read and verified."""

import numpy as np
import pytest

from clipbench import execute
from clipbench.cell import Cell, Part
from clipbench.engines import Job, Record
from clipbench.events import Evaluation, Verdict
from clipbench.execute.archive import eval_columns
from clipbench.measures import COLUMNS
from clipbench.store import Store

STUDY = "[run]\nsteps = 300\n"


@pytest.fixture
def shard():
    drawn = np.random.default_rng(0)
    records = []
    for seed in range(64):
        cell = Cell(Part("wdbc", 1), Part("sgd", 1), Part("none", 1), 0.1, seed, 300, 32)
        rows = drawn.lognormal(size=(300, len(COLUMNS))).astype(np.float32).astype(np.float64)
        evaluations = [Evaluation(step, "validation", "loss", 1.0) for step in range(0, 301, 15)]
        records.append(
            Record(
                Job(cell, {}),
                rows=rows,
                evaluations=evaluations,
                metric="roc_auc",
                verdict=Verdict("completed", "learned"),
            )
        )
    return {
        "cells": [execute.cell_row(record, 0, "machine", 1) for record in records],
        "evals": eval_columns(records),
        "curves": execute.curve_columns(records),
    }


@pytest.fixture
def store(tmp_path):
    made = Store.create(tmp_path / "bench", "bench", STUDY)
    made.write_page("environment", {"study": "bench", "environments": {"machine": {"cores": 2}}})
    for page in ("components", "calibration", "plan"):
        made.write_page(page, {"bench": True})
    return made


@pytest.mark.benchmark(group="store, 64 cells of 300 steps")
def test_commit(benchmark, store, shard):
    benchmark(store.commit, "select-0001", shard)
    assert len(store.read("cells")) == 64


@pytest.mark.benchmark(group="store, 64 cells of 300 steps")
def test_read_curves(benchmark, store, shard):
    store.commit("select-0001", shard)
    assert len(benchmark(store.read, "curves")) == 64 * 300


@pytest.mark.benchmark(group="store, 64 cells of 300 steps")
def test_verify(benchmark, store, shard):
    store.commit("select-0001", shard)
    assert benchmark(store.problems) == []
