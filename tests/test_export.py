"""A results folder as files for other programs: what is in them, and that they are whole or not
there.
"""

import csv
import json
import math
import sys
import types

import numpy as np
import pytest
import synthetic
from test_cli import clipbench, refused

from clipbench import export, schema
from clipbench.errors import UsageError
from clipbench.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A small study in which some runs have diverged, and NaN is another thing than nothing."""

    def odd(one):
        rows = synthetic.rows(one, "diverged" if one.lr > 1 else None)
        rows["cells"][0]["grad_norm_median"] = math.nan
        rows["cells"][0]["kept_median"] = None
        return rows

    return synthetic.build(
        tmp_path_factory.mktemp("export") / "small",
        optimizers=("sgd",),
        clips=("none", "norm"),
        relative=(0.3,),
        report=0,
        change=odd,
    )


def exported(store, kind, folder):
    written = export.export(store, kind, folder)
    assert written == sorted(path for path in folder.rglob("*") if path.is_file())
    return folder


def test_csv_is_a_file_a_table_that_reads_back(store, tmp_path):
    folder = exported(store, "csv", tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {f"{table}.csv" for table in schema.TABLES}
    for table in schema.TABLES:
        wanted = store.arrow(table).to_pylist()
        with (folder / f"{table}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(wanted)
        for back, row in zip(rows, wanted, strict=True):
            assert [text == "" for text in back.values()] == [one is None for one in row.values()]
            numbers = {name: value for name, value in row.items() if isinstance(value, float)}
            np.testing.assert_array_equal(
                [float(back[name]) for name in numbers], [*numbers.values()]
            )
    assert any(math.isnan(row["grad_norm_median"]) for row in store.arrow("cells").to_pylist())


def test_json_is_an_object_a_line_without_what_json_does_not_have(store, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ROWS", 7)  # rows are written some at a time
    folder = exported(store, "json", tmp_path / "out")

    def refuse(word):
        raise AssertionError(word)

    for table in schema.TABLES:
        frame = store.read(table)
        lines = (folder / f"{table}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line, parse_constant=refuse) for line in lines]
        assert len(rows) == len(frame)
        assert all(list(row) == list(frame) for row in rows)
        if table == "curves":
            losses = frame["loss"].to_list()
            assert [row["loss"] for row in rows] == [
                value if math.isfinite(value) else None for value in losses
            ]
    assert not all(map(math.isfinite, losses))


class Writer:
    """What takes the place of the writer of event files: it writes what it is told, as text."""

    def __init__(self, folder):
        self.folder, self.lines = folder, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        from pathlib import Path

        Path(self.folder).mkdir(parents=True)
        (Path(self.folder) / "events").write_text(json.dumps(self.lines), encoding="utf-8")

    def add_scalar(self, tag, value, step, walltime):
        self.lines.append([tag, value, step, walltime])

    add_text = add_scalar


@pytest.fixture
def installed(monkeypatch):
    """As if the package were installed."""
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(export, "find_spec", lambda name: name == "tensorboard")


def test_tensorboard_has_a_run_a_cell_with_its_curve_its_evaluations_and_its_events(
    store, tmp_path, installed
):
    folder = exported(store, "tensorboard", tmp_path / "out")
    cells = store.read("cells").set_index("cell")
    files = {path.parent.name.rpartition(",")[2]: path for path in folder.rglob("events")}
    assert set(files) == set(cells.index)
    name = next(cell for cell in cells.index if cells.loc[cell, "status"] == "diverged")
    run = files[name].parent.relative_to(folder).parts
    row = cells.loc[name]
    assert run[:2] == ("digits", row["arm"].replace(" ", "_"))
    assert run[2].startswith(f"lr={row['lr']:g}")
    assert run[3] == f"seed={row['seed']},{name}"
    told = json.loads(files[name].read_text())
    curve = store.read("curves", cells=[name])
    assert [value for tag, value, _, _ in told if tag == "training/loss"] == list(curve["loss"])
    assert [step for tag, _, step, _ in told if tag == "training/loss"] == list(curve["step"])
    assert any(tag == "events/nonfinite_loss" for tag, *_ in told)
    assert {when for *_, when in told} == {1767225600.0}  # the row's own date


def test_real_event_files_hold_the_curve(store, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = exported(store, "tensorboard", tmp_path / "out")
    cell = store.read("cells")["cell"][0]
    [run] = [path for path in folder.rglob("*") if path.is_dir() and path.name.endswith(cell)]
    events = EventAccumulator(str(run))
    events.Reload()
    losses = [event.value for event in events.Scalars("training/loss")]
    assert losses == pytest.approx(store.read("curves", cells=[cell])["loss"].to_list(), rel=1e-6)


def test_without_the_package_it_is_one_sentence_and_nothing_is_moved(store, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    (tmp_path / "out").mkdir()
    asked = ("export", store.folder, "--to", "tensorboard", "--out", tmp_path / "out", "--anew")
    assert refused(clipbench(*asked), "pip install 'clipbench[tensorboard]'")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_half_way_leaves_nothing(store, tmp_path, monkeypatch):
    def broken(store, folder):
        (folder / "cells.csv").write_text("half")
        raise OSError(28, "No space left on device", str(folder / "cells.csv"))

    monkeypatch.setitem(export.KINDS, "csv", broken)
    with pytest.raises(OSError, match="No space"):
        export.export(store, "csv", tmp_path / "out")
    assert not any(tmp_path.iterdir())
    said = clipbench("export", store.folder, "--to", "csv", "--out", tmp_path / "out")
    assert refused(said, "the disk is full")


def test_what_is_there_stays_unless_it_is_renamed(store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        export.export(store, "csv", tmp_path / "out")
    asked = ("export", store.folder, "--to", "csv", "--out", tmp_path / "out")
    assert refused(clipbench(*asked), "--anew")
    said = clipbench(*asked, "--anew")
    assert said.exit_code == 0, said.stderr
    assert (tmp_path / "out.old-1" / "mine").read_text() == "mine"
    assert (tmp_path / "out" / "cells.csv").is_file()


def test_by_default_files_lie_in_the_results_folder_which_keeps_its_promises(tmp_path):
    built = synthetic.build(tmp_path / "small", optimizers=("sgd",), clips=("none",), report=0)
    said = clipbench("export", built.folder, "--to", "json")
    assert said.exit_code == 0, said.stderr
    assert said.stdout == f"{built.folder}/export-json: 5 files.\n"
    before = built.problems()
    assert Store(built.folder).problems() == before
