"""The committed results: what a clone holds is whole, and its reports are what the store gives."""

import filecmp

import pytest

from clipbench import report
from clipbench.store import Store

STUDIES = ("quick", "origin")


@pytest.fixture(params=STUDIES)
def folder(request, checkout):
    return checkout / "results" / request.param


def test_committed_results_keep_every_promise(folder):
    assert Store(folder).problems() == []


def test_committed_reports_are_rendered_anew_byte_for_byte(folder, tmp_path):
    """Figures, tables and pages: no one has edited them by hand, and no change of the code has left them behind."""
    report.write(Store(folder), folder=tmp_path)
    committed = {path.relative_to(folder / "report") for path in (folder / "report").rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == committed
    _, different, unread = filecmp.cmpfiles(folder / "report", tmp_path, sorted(map(str, committed)), shallow=False)
    assert (different, unread) == ([], [])


def test_the_headline_is_drawn_from_thousands_of_cells_of_which_some_diverged(checkout):
    cells = Store(checkout / "results" / "quick").read("cells")
    assert len(cells) >= 2000
    assert (cells["status"] == "diverged").any()
    assert not (cells["status"] == "failed").any()
