"""Measures: the table says all there is to know, and one entry more is a measure everywhere."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import one_more
import pyarrow as pa
import pytest
import warm
from pages import study_page

import clipbench
from clipbench import engines, measures, protocol, registry, schema, study
from clipbench.measures import MEASURES, PRODUCTS, Taken, square
from clipbench.store import Store

PAGE = study_page(
    "wdbc",
    "momentum",
    {"none": {}, "norm": {"max_norm": 0.1}},
    steps=12,
    batch=8,
    evaluations=3,
    lr=[0.01, 0.03],
)

# The one entry: how far the gradient turned since the step before.
TURNED = """
def _turned(taken: Taken) -> np.ndarray:
    both = taken.norm(RAW) * taken.norm(last(RAW)) + 0 * taken[peak(RAW)]
    return np.where(both > 0, np.clip(taken[inner(RAW, last(RAW))] / both, -1.0, 1.0), np.nan)


MEASURES += (
    Measure(
        "turned",
        "ratio",
        "cosine between this step's raw gradient and the last; NaN at step 0, and of a zero",
        (square(RAW), square(last(RAW)), inner(RAW, last(RAW)), peak(RAW)),
        _turned,
        later=True,
    ),
)
"""
END_OF_TABLE = "COLUMNS = tuple("


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What `one_more` sees: a study is written here, and the rest is done where the table has
    one entry more.
    """
    folder = tmp_path_factory.mktemp("measured")
    registry.load_packaged()
    page = study.parse("measured", PAGE, folder)
    older = Store.create(folder / "older", page.name, page.text)
    with older.claim():
        protocol.run(page, older, protocol.Options(engine="loop", workers=1, throughput=False))
    package = folder / "with" / "clipbench"
    shutil.copytree(
        Path(clipbench.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    table = package / "measures.py"
    text = table.read_text(encoding="utf-8")
    assert text.count(END_OF_TABLE) == 1
    table.write_text(text.replace(END_OF_TABLE, TURNED + END_OF_TABLE), encoding="utf-8")
    (folder / "page.toml").write_text(PAGE, encoding="utf-8")
    places = [package.parent, Path(one_more.__file__).parent]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    asked = ("one_more", str(folder), str(folder / "page.toml"))
    # Workers import from where they begin.
    done = warm.run("-m", *asked, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_entry_more_is_a_measure_with_memory_in_every_engine(said):
    assert said["columns"] == [*measures.COLUMNS, "turned"]
    expected = np.array(said["by hand"])
    assert np.isnan(expected[:, 0]).all()
    assert np.ptp(expected[:, 1:]) > 0.1
    for engine in ("loop", "lanes", "native"):
        np.testing.assert_allclose(said[engine], expected, rtol=1e-9, err_msg=engine)


def test_one_entry_more_changes_no_other_measure(said):
    """Down to the bit, at the first step too, of which there is none before."""
    assert said["others"] == engines.run(one_more.job(0.01, "float32")).rows.tolist()


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_one_entry_more_is_a_column_that_is_stored_verified_and_replayed(said, engine):
    found = said[f"by {engine}"]
    assert (found["rows"], found["null"], found["null, compacted"]) == (48, 0, 0)
    assert found["verify"] == found["verify, compacted"] == []
    matches, sentence = found["replay"]
    assert matches, sentence
    assert sentence.endswith("Asked for was the same bits.")


def test_rows_older_than_a_measure_are_null_in_it_and_hold(said):
    found = said["older"]
    assert (found["rows"], found["null"], found["null, compacted"]) == (48, 48, 48)
    assert found["verify"] == found["verify, compacted"] == []
    matches, sentence = found["replay"]
    assert matches, sentence


# ---------------------------------------------------------------------------------------- the table


def test_the_stored_columns_are_those_of_the_table_and_old_files_have_them_in_this_order():
    """Their names and units lie in every Parquet file that was ever written."""
    columns = [column for column in schema.CURVES if column not in schema.WATCHED]
    found = [(column.name, column.unit) for column in columns]
    assert found == [
        ("cell", ""),
        ("step", "step"),
        ("loss", "loss"),
        ("grad_norm", "gradient"),
        ("kept", "ratio"),
        ("cosine", "ratio"),
        ("changed", "share of elements"),
        ("update_norm", "parameter"),
    ]
    assert {column.type for column in columns[2:]} == {pa.float64()}


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_measure_needs_what_it_says_and_no_more(measure):
    """Each is worked out from its own products alone, and every one of them matters to it, or to
    whether it is known.
    """
    some = {product: np.array([1 / (2 + place)]) for place, product in enumerate(measure.needs)}

    def derived(products):
        with np.errstate(all="ignore"):
            return measure.derive(Taken(np.array([0.5]), products, 10, "float32"))

    assert np.isfinite(derived(some)).all()
    for product in measure.needs:
        others = [
            derived({**some, product: np.array([other])}) for other in (0.0, 40.0, np.nan, np.inf)
        ]
        assert any(not np.array_equal(other, derived(some), equal_nan=True) for other in others), (
            product
        )


def test_what_has_a_peak_is_squared():
    """Where squares stayed in range the engines take the peak for zero."""
    assert {square(product.left) for product in PRODUCTS if product.kind == measures.PEAK} <= set(
        PRODUCTS
    )
