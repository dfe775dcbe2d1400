"""Files of a store are hashed once a process and read in pieces; damage is found all the same."""

from __future__ import annotations

import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_store import STEPS, cell_of, settle, tables_of, the

from clipbench import measures, schema
from clipbench.store import SHARD_TABLES, Store, files, tidy
from clipbench.store.by_cell import ByCell
from clipbench.store.commits import REPLACES
from clipbench.store.files import grouped, write_table

TICK = 20_000_000  # ns, so that a test need not wait for the coarsest of file systems


@pytest.fixture
def filled(tmp_path):
    new = settle(tmp_path / "tiny")
    new.commit("select-0001", tables_of(0, 1))
    return new


@pytest.fixture
def settled(filled, monkeypatch):
    """A store whose files are older than a tick."""
    monkeypatch.setattr(files, "TICK", TICK)
    files.forget()
    time.sleep(3 * TICK / 1e9)
    return filled


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that were hashed."""
    names, digest = [], files._digest
    monkeypatch.setattr(files, "_digest", lambda path: names.append(path.name) or digest(path))
    return names


def read_all(folder):
    opened = Store(folder)
    return [len(opened.read(table)) for table in SHARD_TABLES], opened.bad


# ----------------------------------------------------------------------------------- once a process


def test_a_file_is_hashed_once_a_process(settled, hashed):
    """However often its tables are read, by whichever object."""
    first = read_all(settled.folder)
    assert len(hashed) == 4
    assert read_all(settled.folder) == first
    assert len(hashed) == 4


def test_verify_takes_no_file_for_sound_because_it_was(settled, hashed):
    read_all(settled.folder)
    assert settled.problems() == []
    assert sorted(hashed) == sorted(2 * [path.name for path in settled.folder.glob("*/*.parquet")])


def flipped(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    return bytes(whole)


def in_place(path):
    """The size and the time of the last change stay."""
    about, damaged = path.stat(), flipped(path)
    with path.open("r+b") as file:
        file.write(damaged)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def replaced(path):
    """Another file of the same size and time under its name."""
    about, other = path.stat(), path.with_name("other")
    other.write_bytes(flipped(path))
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("damage", [in_place, replaced])
@pytest.mark.parametrize("table", ["cells", *SHARD_TABLES])
def test_damage_after_a_read_is_found_by_the_next(settled, table, damage):
    path = the(settled, table)
    assert read_all(settled.folder)[1] == {}
    damage(path)
    again = Store(settled.folder)
    assert len(again.read(table)) == 0
    assert list(again.bad) == [f"{table}/{path.name}"]
    assert len(settled.read(table)) == 0  # by the object that has read it, too


def test_a_file_that_is_younger_than_a_tick_is_hashed_at_every_read(filled, hashed):
    """A change within the tick of the last one would leave no trace in its times."""
    files.forget()
    filled.read("evals")
    before = len(hashed)
    filled.read("evals")
    assert len(hashed) > before


def test_a_sweep_takes_only_commits_apart(settled, monkeypatch):
    """Of all other files the hash and the columns say whether they are sound."""
    apart, read = [], pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda *a, **k: apart.append(a) or read(*a, **k))
    monkeypatch.setattr(pq, "ParquetFile", None)
    fresh = Store(settled.folder)
    with fresh.claim():
        assert fresh.sweep() == []
    assert len(apart) == 1


# ---------------------------------------------------------------------------------------- in pieces


def curve_file(folder, cells, steps):
    columns = {
        "cell": cells,
        "step": steps,
        **dict.fromkeys(measures.COLUMNS, np.arange(len(cells), dtype=float)),
    }
    folder.mkdir()
    return write_table(folder, "curves", "select-0001", columns, {})


@pytest.mark.parametrize("piece", [1, 2, 3, 100])
def test_the_rows_of_a_cell_come_whole_and_in_order_wherever_they_are(tmp_path, monkeypatch, piece):
    """In two files, between the rows of others, the last step first."""
    monkeypatch.setattr(files, "PIECE", piece)
    one = curve_file(tmp_path / "one", [*"abacbb"], [1, 2, 0, 0, 1, 0])
    two = curve_file(tmp_path / "two", [*"dba"], [0, 3, 2])
    rows = ByCell("curves", [one, two], {"a", "b", "d", "e"})
    took = {cell: rows.take(cell) for cell in "bade"}
    assert took.pop("e") is None
    assert {cell: columns["step"].tolist() for cell, columns in took.items()} == {
        "b": [0, 1, 2, 3],
        "a": [0, 1, 2],
        "d": [0],
    }
    assert took["a"]["loss"].tolist() == [2.0, 0.0, 2.0]
    assert rows.bad == {}


def test_no_more_than_a_piece_is_held_of_cells_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 8)
    ids = [f"cell-{number:03d}" for number in range(50)]
    path = curve_file(tmp_path / "one", np.repeat(ids, 4).tolist(), [*range(4)] * 50)
    rows = ByCell("curves", [path], set(ids))
    held = []
    for cell in ids:
        assert len(rows.take(cell)["step"]) == 4
        held.append(len(rows._held))
    assert max(held) == 1


def test_a_damaged_file_costs_its_own_rows_alone(tmp_path):
    one = curve_file(tmp_path / "one", ["a", "b"], [0, 0])
    two = curve_file(tmp_path / "two", ["a", "c"], [1, 0])
    in_place(two)
    rows = ByCell("curves", [one, two], {"a", "b", "c"})
    assert [rows.take("a")["step"].tolist(), rows.take("c")] == [[0], None]
    assert rows.bad == {two: "does not match the hash in its name"}


def test_verify_says_the_same_of_pieces(tmp_path, monkeypatch):
    """Of a store with several faults, and of one with none."""
    new = settle(tmp_path / "tiny")
    new.commit("select-0001", tables_of(0, 1, final_loss=3.0))
    new.commit("select-0002", tables_of(2, steps=STEPS + 1))
    in_place(next((new.folder / "evals").iterdir()))
    wanted = new.problems()
    assert len(wanted) > 3
    monkeypatch.setattr(files, "PIECE", 2)
    assert new.problems() == wanted


def test_rows_are_grouped_by_number_whatever_pieces_they_come_in():
    rows = pa.table({"a": [*range(8)]})
    pieces = [rows.slice(0, 7), rows.slice(7, 0), rows.slice(7)]
    groups = [*grouped(pieces, 3)]
    assert [len(group) for group in groups] == [3, 3, 2]
    assert pa.concat_tables(groups)["a"].to_pylist() == [*range(8)]
    assert [len(group) for group in grouped(pieces, 8)] == [8]
    assert [*grouped([pieces[1]], 3)] == []


# ------------------------------------------------------------------------------------------ packing


def names(store):
    return {path.relative_to(store.folder).as_posix() for path in store.folder.glob("*/*.parquet")}


def packed(folder, curves=None):
    store = Store(folder)
    with store.claim():
        store.compact(curves)
    return store


def test_packing_in_pieces_keeps_every_row(filled, monkeypatch):
    filled.commit("report-0002", tables_of(1000, 1001))
    monkeypatch.setattr(files, "PIECE", 2)
    before = {table: filled.arrow(table).to_pylist() for table in ("cells", "evals", "events")}
    store = packed(filled.folder, "report")
    assert {table: store.arrow(table).to_pylist() for table in before} == before
    assert set(store.read("curves")["cell"]) == {cell_of(1000).id, cell_of(1001).id}
    assert len(names(store)) == 4
    assert store.problems() == []


def test_a_packed_folder_is_not_looked_through_again(filled, monkeypatch):
    """Its commit says for which curves it was made; fewer are another matter."""
    files_of = names(packed(filled.folder))
    monkeypatch.setattr(tidy, "_of_kept", None)
    assert names(packed(filled.folder)) == files_of
    with pytest.raises(TypeError):
        packed(filled.folder, "none")


def test_a_folder_packed_by_an_older_version_is_looked_through_and_stays(filled, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(tidy, "PACKED", b"unknown")
        files_of = names(packed(filled.folder))
    assert names(packed(filled.folder)) == files_of
    assert REPLACES in pq.read_schema(the(filled, "cells")).metadata


def test_damage_stops_a_packing_before_anything_is_written(filled):
    filled.commit("select-0002", tables_of(2))
    for table in schema.TABLES:
        for path in (filled.folder / table).glob("select-0002*"):
            if table == "evals":
                in_place(path)
    before = names(filled)
    assert [name.partition("/")[0] for name in packed(filled.folder).bad] == ["evals"]
    assert names(filled) == before
