"""Results in Python: what `load` and `run` give, and what they refuse."""

import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.figure import Figure
from test_cli import environment, new_process

import clipbench
from clipbench import schema, store, study
from clipbench.analysis import headline
from clipbench.errors import UsageError
from clipbench.report.evidence import read
from clipbench.store import files
from clipbench.study.writing import as_toml


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    built = synthetic.build(
        tmp_path_factory.mktemp("loading") / "small",
        problems=("digits", "wdbc"),
        optimizers=("sgd", "momentum"),
        clips=("none", "norm"),
        relative=(0.3,),
        percentile=90.0,
        report=5,
    )
    return built.folder


@pytest.fixture
def results(folder):
    return clipbench.load(folder)


def test_every_table_is_a_frame_as_the_stores_readers_see_it(results, folder):
    for table in schema.TABLES:
        pd.testing.assert_frame_equal(getattr(results, table), store.Store(folder).read(table))


@pytest.mark.parametrize("table", ["cells", "curves", "evals", "events"])
def test_filters_give_the_rows_of_the_cells_that_have_these_values(results, table):
    where = {"problem": "digits", "optimizer": ["sgd", "momentum"], "seed": 1}
    cells = results.cells
    mine = cells[(cells["problem"] == "digits") & (cells["seed"] == 1)]
    whole = getattr(results, table)
    wanted = whole[whole["cell"].isin(mine["cell"])].reset_index(drop=True)
    read = results.read(table, **where)
    assert 0 < len(read) < len(whole)
    pd.testing.assert_frame_equal(read, wanted)
    some = results.read(table, columns=["cell"], cell=mine["cell"])
    pd.testing.assert_frame_equal(some, wanted[["cell"]])


def test_filters_by_a_tables_own_columns(results):
    first = results.read("curves", step=0, columns=["loss"])
    assert len(first) == len(results.cells)
    assert list(first) == ["loss"]
    assert set(results.read("events", kind="blow_up")["kind"]) == {"blow_up"}
    assert set(results.read("throughput", clip="norm")["clip"]) == {"norm"}
    assert results.read("cells", threshold=None)["clip"].eq("none").all()


def test_no_other_row_of_a_large_table_is_taken_apart(results, monkeypatch):
    """The file holds hundreds of cells; of it come the rows of one, in the columns asked for."""
    came = []

    def watched(*args):
        came.append(files.table_of(*args))
        return came[-1]

    monkeypatch.setattr(store.reading, "table_of", watched)
    one = results.cells["cell"][0]
    read = results.read("curves", cell=one, columns=["loss"])
    assert [len(rows) for rows in came] == [len(read)]
    assert came[0].column_names == ["loss", "cell"]


WRONG = {
    "a table": (dict(table="curvs"), "no table", "Did you mean curves?"),
    "a column": (dict(table="cells", columns=["final_los"]), "Did you mean final_loss?"),
    "a filter": (dict(table="curves", optimiser="sgd"), "nor have the cells", "optimizer?"),
    "a filter of timings": (dict(table="throughput", seed=1), 'no column "seed".'),
    "a word": (dict(table="curves", optimizer="sdg"), "Did you mean sgd?"),
    "a number": (dict(table="cells", lr=0.011), "no cell has the lr 0.011", "There are: 0.003,"),
    "a word of the table": (dict(table="evals", split="valid"), "Did you mean validation?"),
    "a type": (dict(table="cells", seed="first"), "no cell has the seed 'first'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_there_is_not_is_refused_with_the_nearest_name(results, what):
    asked, *fragments = WRONG[what]
    with pytest.raises(UsageError) as refused:
        results.read(**asked)
    for fragment in fragments:
        assert fragment in str(refused.value)


def test_a_word_that_no_cell_has_and_one_could_have_gives_no_rows(results):
    assert results.read("cells", status="failed").empty
    assert results.read("curves", status="failed").empty


def test_the_headline_says_what_the_analysis_says(results, folder):
    told, (*_, levels, gaps) = results.headline(), headline.of_store(store.Store(folder))
    assert list(told["verdict"]) == list(gaps["verdict"])
    assert len(told) == 4  # a clip on each of two optimizers, on two problems
    for row in told.to_dict("records"):
        assert row["difference"] == pytest.approx(row["estimate"] - row["estimate_partner"])
        [level] = levels[
            (levels["problem"] == row["problem"])
            & (levels["arm"] == row["arm"])
            & (levels["grade"] == row["grade"])
        ].to_dict("records")
        assert (row["lr"], row["percentile"]) == (level["lr"], 90.0)
        assert row["arm"] == f"{row['optimizer']} + {row['clip']}"


def test_the_headline_has_the_bounds_of_its_family_and_the_threshold_in_medians(folder, tmp_path):
    """The report's table of the answer has the same; every column has its line in the docstring."""
    copy = store.Store(shutil.copytree(folder, tmp_path / "small"))
    pilots = {f"{task.label}, version 1": {"norm, version 1": 0.25} for task in read(copy).tasks}
    copy.write_page("calibration", {"pilots": pilots})
    results = clipbench.load(copy.folder)
    told, answers = results.headline(), read(copy).answers
    keys = ["problem", "arm"]
    both = told.merge(answers, on=keys, suffixes=("", "_report"))
    assert len(both) == len(told)
    for name in ("family_low", "family_high", "of_median"):
        pd.testing.assert_series_equal(both[name], both[f"{name}_report"], check_names=False)
    assert (told["of_median"] == told["threshold"] / 0.25).all()
    assert (told["family_low"] <= told["low"]).all()
    assert (told["optimizer_label"] + " + " + told["clip_label"] == told["arm"]).all()
    for name in told.columns:
        assert f"\n- ``{name}``: " in type(results).headline.__doc__


def test_a_figure_of_the_report_is_one_of_matplotlib_which_a_notebook_shows(results):
    """By its section's name or its own; asked for twice it is the same."""
    first, again = (results.figure("grid", problem="digits") for _ in range(2))
    assert isinstance(first, Figure)
    assert first._repr_png_() == again._repr_png_()
    assert first._repr_png_().startswith(b"\x89PNG")
    assert results.figure("heat-wdbc").axes
    with pytest.raises(UsageError, match=r'several figures "grid"\..* heat-digits, heat-wdbc\.'):
        results.figure("grid")
    with pytest.raises(UsageError, match=r'no figure "gird"\. Did you mean grid\?'):
        results.figure("gird")


def test_a_folder_without_a_cell_has_a_headline_without_a_row(tmp_path):
    store.Store.create(tmp_path / "empty", "empty", "[run]\nsteps = 1\n")
    empty = clipbench.load(tmp_path / "empty")
    assert empty.headline().empty
    assert "0 cells" in repr(empty)


def test_help_says_what_every_column_is():
    for table, columns in schema.TABLES.items():
        told = getattr(clipbench.Results, table).__doc__.replace("\\_", "_")
        assert all(f"``{column.name}``" in told and column.meaning in told for column in columns)


def test_a_notebook_shows_a_summary_in_which_names_are_text(tmp_path):
    page = 'title = "<script>alert(1)</script>"\n[run]\nsteps = 1\n'
    store.Store.create(tmp_path / "a&b", "odd", page)
    shown = clipbench.load(tmp_path / "a&b")._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "a&amp;b" in shown
    assert all(f".{table}</code>" in shown for table in schema.TABLES)


def test_damage_is_a_warning_and_its_rows_are_left_out(tmp_path):
    built = synthetic.build(
        tmp_path / "s", optimizers=("sgd",), clips=("none",), report=0, with_throughput=False
    )
    [file] = (built.folder / "curves").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="does not match the hash in its name"):
        assert clipbench.load(built.folder).curves.empty


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no results folder"):
        clipbench.load(tmp_path)


def test_loading_imports_no_torch(folder):
    code = (
        f"import sys, clipbench; results = clipbench.load({str(folder)!r}); results.headline(); "
        "print(results, 'torch' in sys.modules)"
    )
    said = new_process("-c", code)
    assert said.stdout.endswith(" False\n"), said.stderr


# ----------------------------------------------------------------------------------- a page as dict

PAGE = {
    "title": "My first study",
    "run": {
        "steps": 8,
        "batch": 8,
        "evaluations": 2,
        "lr": [0.01, 0.03],
        "seeds": {"select": 1, "report": 0},
    },
    "workload": [{"name": "cosh"}],
    "optimizer": [{"name": "sgd"}],
    "clip": [{"name": "none"}, {"name": "norm", "max_norm": 1.0}],
}


@pytest.mark.parametrize(
    "document",
    [
        PAGE,
        {"title": 'say "no"\n\tto \\ and \x7f', "run": {}, "clip": [{"a b": True, "c": {}}]},
        {"run": {"lr": [1e-5, 1e300, 3], "deep": {"x": {"y": [[1], ["α"]]}}}, "use": []},
    ],
)
def test_a_page_is_the_toml_of_the_same_values(document):
    assert tomllib.loads(as_toml(document, "page")) == document


def test_numbers_of_numpy_are_numbers():
    text = as_toml({"run": {"lr": np.array([0.1, 0.2]), "steps": np.int64(3), "x": range(2)}}, "p")
    assert tomllib.loads(text) == {"run": {"lr": [0.1, 0.2], "steps": 3, "x": [0, 1]}}


@pytest.mark.parametrize("value", [None, {1: 2}, [None], object])
def test_what_toml_does_not_have_is_refused(value):
    with pytest.raises(UsageError, match=r"page: `run`"):
        as_toml({"run": {"steps": value} if value is not None else {"steps": None}}, "page")


SCRIPT = f"""
import clipbench
results = clipbench.run({PAGE!r}, "out", workers=1, throughput=False)
print(len(results.cells), len(results.curves) > 8)
again = clipbench.run({PAGE!r}, "out", workers=1, throughput=False, progress=False)
print(again)
"""


def test_a_script_without_a_guard_runs_a_study(tmp_path):
    """In its workers the script is not run again; they are processes that are started afresh."""
    (tmp_path / "script.py").write_text(SCRIPT)
    said = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    first, again = said.stdout.splitlines()
    assert first == "4 True"
    assert re.match(r"<Results of my-first-study in out: 4 cells: .*>", again)
    assert tomllib.loads((tmp_path / "out" / "study.toml").read_text()) == PAGE


REFUSED = {
    "no name": (({**PAGE, "title": ""},), {}, "needs a name"),
    "a name for a page": (("quick",), dict(name="slow"), "a page has its file's name"),
    "a device": (
        (PAGE,),
        dict(device="gpu"),
        "`device` is 'gpu', and must be cpu, cuda, cuda:0 (by its index) or auto",
    ),
    "an engine": ((PAGE,), dict(engine="batch"), "Did you mean batched?"),
    "curves": ((PAGE,), dict(curves="some"), "all, report, first or none"),
    "workers": ((PAGE,), dict(workers=0), "`workers` is 0"),
    "memory": ((PAGE,), dict(memory="2GB"), "`memory` is '2GB'"),
    "a word": (({**PAGE, "runn": {}},), {}, "Did you mean run?"),
    "the name of a packaged study": ((PAGE,), dict(name="quick"), "name of a packaged study"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_run_refuses_in_one_sentence_and_makes_no_folder(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    args, options, fragment = REFUSED[what]
    with pytest.raises(UsageError) as refused:
        clipbench.run(*args, **options)
    assert fragment in str(refused.value)
    assert not any(tmp_path.iterdir())


def test_a_component_of_the_running_program_is_refused(tmp_path, monkeypatch):
    """No worker could import it: it is said before anything is run."""
    made = type("Mine", (), {"__module__": "__main__", "__doc__": "Nothing."})
    made.__annotations__ = {}
    made.update = lambda *told: told[1:3]
    clipbench.clip("mine")(made)
    monkeypatch.chdir(tmp_path)
    page = {**PAGE, "clip": [{"name": "none"}, {"name": "mine"}]}
    with pytest.raises(UsageError, match=r'clip "mine" is defined in the program.*name that in'):
        clipbench.run(page, "out")
    assert not (tmp_path / "out").exists()


def test_failed_cells_are_a_warning_and_the_results_are_returned(tmp_path, monkeypatch):
    from clipbench import protocol, running

    def ran(page, claimed, options, watcher):
        return protocol.Counts(failed=2)

    monkeypatch.setattr(running.protocol, "run", ran)
    with pytest.warns(UserWarning, match="2 cells failed"):
        results = clipbench.run(PAGE, tmp_path / "out", progress=False)
    assert results.title == "My first study"


def test_an_interruption_is_one_and_what_has_ended_is_kept(tmp_path, monkeypatch):
    from clipbench import running

    def interrupted(page, claimed, options, watcher):
        one = study.parse("x", as_toml(PAGE, "x"), tmp_path).cells()[0]
        synthetic.commit(claimed, "one", [synthetic.rows(one, "learned")])
        raise KeyboardInterrupt

    monkeypatch.setattr(running.protocol, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clipbench.run(PAGE, tmp_path / "out", progress=False)
    assert len(clipbench.load(tmp_path / "out").cells) == 1
