"""What the report takes: a small store read, analysed and rendered, beside one figure of the
same kind written by hand.
"""

import io
import time

import matplotlib as mpl
import pyarrow.parquet as pq
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clipbench import protocol, report, study
from clipbench.store import Store

PAGE = """
[run]
steps = 60
lr = [0.01, 0.1, 1.0]
seeds = { select = 3, report = 5 }
[[workload]]
name = "wdbc"
[[optimizer]]
name = "sgd"
[[clip]]
name = "none"
[[clip]]
name = "norm"
max_norm = [0.1, 1.0]
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A finished study of one workload, two arms and nine settings."""
    page = study.parse("bench", PAGE, tmp_path_factory.getbasetemp())
    made = Store.create(tmp_path_factory.mktemp("report") / "bench", "bench", PAGE)
    with made.claim():
        protocol.run(page, made, protocol.Options(engine="loop", workers=1, throughput=False))
    return made


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def by_hand():
    """Ten curves of sixty points, to SVG and PNG: what nobody who draws can do without."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number in range(10):
        axes.plot([number + step / 60 for step in range(60)], label=str(number))
    axes.legend()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(io.StringIO(), format="svg")
        figure.savefig(io.BytesIO(), format="png", dpi=150)


@pytest.mark.benchmark(group="report of 45 cells")
def test_report_as_a_page(benchmark, store):
    benchmark.pedantic(report.write, (store, ("html",)), rounds=3, warmup_rounds=1)
    assert (store.folder / "report" / "report.html").exists()


@pytest.mark.benchmark(group="report of 45 cells")
def test_one_figure_by_hand(benchmark):
    benchmark(by_hand)


def test_a_report_in_figures_by_hand(ratio, store):
    """Per figure drawn: 1 would be a report that costs nothing but its figures."""

    def each():
        took = seconds(lambda: report.write(store, ("html",)))
        return took / len(list((store.folder / "report" / "figures").glob("*.svg")))

    assert (
        ratio(
            "report, a figure of it / one figure by hand", each, lambda: seconds(by_hand), pairs=5
        )
        > 0
    )


def test_reading_with_every_check_beside_a_plain_read(ratio, store):
    """The store reads each file's hash and page checksums; pyarrow alone trusts what it finds."""
    files = sorted((store.folder / "curves").glob("*.parquet"))
    plain = ratio(
        "store, curves read with every check / by pyarrow without",
        lambda: seconds(lambda: store.read("curves")),
        lambda: seconds(lambda: [pq.read_table(file).to_pandas() for file in files]),
    )
    assert plain > 0
