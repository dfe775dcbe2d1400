"""A stored row, run again: the same bits by the same engine, nearly the same by the other, a
sentence where it does not match.
"""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pages import study_page
from restored import registry_restored
from running import called
from strangers import EMA

from clipbench import feed, measures, protocol, registry, replay, schema, study, tolerance
from clipbench.engines import Job
from clipbench.engines.record import Record
from clipbench.errors import UsageError
from clipbench.execute.archive import Archive
from clipbench.execute.executor import Portion
from clipbench.store import Store

PAGE = study_page(
    "wdbc",
    "momentum",
    {"none": {}, "norm": {"relative": 0.3}},
    steps=12,
    batch=8,
    evaluations=3,
    dtype="float64",
    lr=[0.01, 0.03],
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same study by either engine: engine → store."""
    registry.load_packaged()
    folder = tmp_path_factory.mktemp("replayed")
    found = {}
    for engine in ("loop", "batched"):
        page = study.parse("tiny", PAGE, folder)
        store = Store.create(folder / engine, page.name, page.text)
        with store.claim():
            protocol.run(page, store, protocol.Options(engine=engine, throughput=False))
        found[engine] = Store(store.folder)
    return found


def a_clipped_cell(store):
    """The identity of a cell with a relative threshold: it was resolved once, and must be again."""
    cells = store.read("cells")
    return cells.loc[cells["relative"].notna(), "cell"].iloc[0]


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_the_engine_that_made_a_row_gives_its_bits_again(stores, engine):
    found = replay.replay(stores[engine], a_clipped_cell(stores[engine]))
    assert found.matches, found.sentence
    assert "the 12 steps of its curve" in found.sentence
    assert found.sentence.endswith("Asked for was the same bits.")


def test_the_other_engine_matches_within_a_tolerance_and_says_so(stores):
    found = replay.replay(stores["loop"], a_clipped_cell(stores["loop"])[:8], engine="batched")
    assert found.matches, found.sentence
    assert "no more than a tolerance, because the row was made by loop" in found.sentence


@pytest.mark.parametrize("made_by", ["loop", "batched"])
def test_a_mixed_cell_matches_in_either_engine(made_by, tmp_path):
    registry.load_packaged()
    text = PAGE.replace("float64", "bfloat16-mixed").replace("[0.01, 0.03]", "0.01")
    page = study.parse("tiny", text, tmp_path)
    store = Store.create(tmp_path / "tiny", page.name, page.text)
    with store.claim():
        protocol.run(page, store, protocol.Options(engine=made_by, throughput=False))
    for engine in ("loop", "batched") if made_by == "batched" else ("batched",):
        found = replay.replay(Store(store.folder), a_clipped_cell(store), engine=engine)
        assert found.matches, found.sentence


def test_every_dtype_has_a_tolerance():
    assert tolerance.TOLERANCE.keys() == feed.DTYPES.keys()


@pytest.mark.parametrize("gone", ["null", "absent"])
def test_a_column_that_came_later_breaks_no_older_row(stores, gone, monkeypatch):
    """The format has a column more than the row: the others are compared."""
    store, read = stores["loop"], Store.read
    later = [
        replace(column, later=column.name in ("cosine", "update_norm")) for column in schema.CURVES
    ]
    monkeypatch.setitem(schema.TABLES, "curves", tuple(later))

    def older(self, table):
        frame = read(self, table)
        if table != "curves":
            return frame
        return frame.drop(columns="cosine") if gone == "absent" else frame.assign(cosine=pd.NA)

    monkeypatch.setattr(Store, "read", older)
    found = replay.replay(store, a_clipped_cell(store))
    assert found.matches, found.sentence
    assert found.sentence.endswith("Asked for was the same bits.")


@pytest.mark.parametrize("rules", [schema.RULES, None], ids=["today's rules", "older rules"])
def test_an_outcome_is_compared_only_if_the_same_rules_judged_it(stores, monkeypatch, rules):
    whole = Store.read

    def otherwise(store, table):
        rows = whole(store, table)
        return rows.assign(outcome="collapsed", rules=rules) if table == "cells" else rows

    monkeypatch.setattr(Store, "read", otherwise)
    found = replay.replay(stores["loop"], a_clipped_cell(stores["loop"]))
    assert found.matches == (rules is None)
    assert ("outcome was collapsed" in found.sentence) == (rules is not None)
    assert ("(other rules judged its outcome)" in found.sentence) == (rules is None)


def test_a_row_that_came_about_otherwise_does_not_match(stores, tmp_path):
    """The curve of one learning rate under the name of another."""
    registry.load_packaged()
    page = study.parse("tiny", PAGE.replace("[0.01, 0.03]", "0.01"), tmp_path)
    cell = next(cell for cell in page.cells() if cell.clip.name == "none")
    (record,) = called(_run_all, [Job(replace(cell, lr=0.011), {})])
    store = Store.create(tmp_path / "tiny", page.name, page.text)
    store.write_page("environment", stores["loop"].page("environment"))
    here = next(iter(stores["loop"].page("environment")["environments"].values()))
    planted = Record(**{**vars(record), "job": Job(cell, {})})
    archive = Archive(store, "select", here)
    archive.add(planted, Portion(0))
    archive.flush()
    found = replay.replay(Store(store.folder), cell.id)
    assert not found.matches
    assert "the curve's loss has other bits" in found.sentence


@pytest.mark.parametrize("measure", measures.COLUMNS)
def test_a_measure_that_was_stored_otherwise_does_not_match(stores, measure, monkeypatch):
    """Each of them, one bit away at one step."""
    store, read = stores["loop"], Store.read
    cell = a_clipped_cell(store)

    def altered(self, table):
        frame = read(self, table)
        if table == "curves":
            at = frame.index[(frame["cell"] == cell) & (frame["step"] == 5)][0]
            frame.loc[at, measure] = np.nextafter(frame.loc[at, measure], 2.0)
        return frame

    monkeypatch.setattr(Store, "read", altered)
    found = replay.replay(store, cell)
    assert not found.matches
    assert f"the curve's {measure} has other bits" in found.sentence


def _run_all(jobs):
    from clipbench import engines

    return [engines.run(job) for job in jobs]


@pytest.mark.parametrize(
    ("cell", "words"),
    [("zz", 'no cell begins with "zz"'), ("", 'no cell begins with ""')],
    ids=["unknown", "nothing"],
)
def test_a_cell_that_is_not_there_is_the_users_mistake(stores, cell, words):
    with pytest.raises(UsageError, match=words):
        replay.replay(stores["loop"], cell)


def test_digits_that_several_cells_begin_with_are_too_few(stores, monkeypatch):
    cells = stores["loop"].read("cells").assign(cell=lambda frame: "ab" + frame["cell"])
    monkeypatch.setattr(Store, "read", lambda *_: cells)
    with pytest.raises(UsageError, match=r"\d+ cells begin with \"ab\"; give more of its digits"):
        replay.replay(stores["loop"], "ab")


def test_a_row_of_another_version_is_not_compared(stores, monkeypatch):
    monkeypatch.setattr(registry.find("clip", "norm"), "version", 2)
    with pytest.raises(UsageError, match='was written by version 1 of "norm" \\(now 2\\)'):
        replay.replay(stores["loop"], a_clipped_cell(stores["loop"]))


@pytest.fixture
def of_a_file(tmp_path):
    """A store whose clip comes from a file, ``clips.py`` beside its page."""
    registry.load_packaged()
    (tmp_path / "clips.py").write_text(EMA)
    text = 'use = ["clips.py"]\n' + PAGE.replace(
        'name = "norm"\nrelative = 0.3', 'name = "ema"'
    ).replace("lr = [0.01, 0.03]", "lr = 0.01")
    with registry_restored():
        page = study.parse("tiny", text, tmp_path)
        store = Store.create(tmp_path / "tiny", page.name, page.text)
        with store.claim():
            protocol.run(page, store, protocol.Options(engine="loop", throughput=False))
    return Store(store.folder)


def cell_of(store, clip):
    cells = store.read("cells")
    return cells.loc[cells["clip"] == clip, "cell"].iloc[0]


def test_the_file_that_made_a_row_is_run_wherever_it_lies(of_a_file, tmp_path, monkeypatch):
    """Beside the results or in the working folder; or anywhere, if it is named."""
    with pytest.raises(
        UsageError, match=r'"ema" of .* comes from a file that is not here; name it with --use'
    ):
        replay.replay(of_a_file, cell_of(of_a_file, "ema"))
    assert replay.replay(of_a_file, cell_of(of_a_file, "ema"), use=[tmp_path / "clips.py"]).matches
    shutil.copy(tmp_path / "clips.py", of_a_file.folder)
    assert replay.replay(of_a_file, cell_of(of_a_file, "ema")).matches


def test_a_file_that_only_the_page_names_is_not_run(of_a_file, tmp_path):
    """One that was edited, and for a row that needs none any."""
    spoiled = f"open({str(tmp_path / 'ran')!r}, 'w')\n" + EMA
    (of_a_file.folder / "clips.py").write_text(spoiled)
    with pytest.raises(UsageError, match="name it with --use"):
        replay.replay(of_a_file, cell_of(of_a_file, "ema"))
    assert replay.replay(of_a_file, cell_of(of_a_file, "none")).matches
    assert not (tmp_path / "ran").exists()
