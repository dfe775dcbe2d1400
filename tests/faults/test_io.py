"""Every call that changes a file fails, or the process dies at it: through run, resume, --anew,
report, throughput and packing.
"""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import signal
import sys
from functools import cache
from multiprocessing import forkserver

import pytest
from pages import study_page
from shim import KINDS, Shim

from clipbench import execute, registry
from clipbench.cli import cli
from clipbench.errors import UsageError
from clipbench.report import parts
from clipbench.report.folder import LIST, replace
from clipbench.store import PAGES, SHARD_TABLES, Store

TABLES = ("cells", *SHARD_TABLES)
PAGE = study_page(
    "cosh",
    clips={"none": {}, "norm": {"relative": 0.5}},
    title="faults",
    steps=6,
    batch=16,
    evaluations=2,
    lr=[0.01, 0.1],
    extend=False,
    report=1,
)
KEPT = "a stored cell is read again, with the same numbers"
WHOLE = "the next run finishes the study, and every promise of the folder holds"
SENTENCE = "a fault is one sentence and exit code 2, never a traceback"
OLD = "what --anew sets aside is whole, under the old name or the new one"
REPORT = "a report is the old one or the new one, whole"


def sketch(figure, forms):
    """A figure that is not painted, in the place of `parts.render`."""
    return dict.fromkeys(forms, b'<svg width="9pt" height="9pt"/>')


def command(*arguments, shim=None):
    """``clipbench ARGUMENTS`` in a fork of this process: its exit code, −9 if it was killed, and
    what it said.
    """
    heard, told = os.pipe()
    child = os.fork()
    if not child:
        gc.freeze()  # it would copy what it looks through for garbage
        os.close(heard)
        os.dup2(told, 1)
        os.dup2(told, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        # it runs, but a fork may not wait for its parent's children
        forkserver.ensure_running = forkserver._forkserver.ensure_running = int
        code = 70
        try:
            if shim is not None:
                shim.arm()
            cli.main([str(one) for one in arguments], prog_name="clipbench", standalone_mode=True)
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:  # noqa: BLE001 - a fork of the tests must not go on as they do
            sys.stdout.write(f"Traceback: {type(error).__name__}: {error}\n")
        if shim is not None:
            sys.stdout.write(f"CALLS {shim.calls}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(told)
    with os.fdopen(heard, encoding="utf-8", errors="replace") as stream:
        said = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, said


def count(*arguments, folder):
    code, said = command(*arguments, shim=Shim(folder))
    assert code == 0, said
    calls = int(said.rpartition("CALLS ")[2])
    assert calls >= 6, "the shim sees nothing"
    return calls


def numbers(folder):
    """Cell → its losses and evaluations, of what a reader sees."""
    store = Store(folder)
    found = {}
    for row in store.read("cells").itertuples():
        found[row.cell] = (row.status, row.seed, row.lr, row.final_loss, row.metric_value)
    for table in SHARD_TABLES:
        frame = store.read(table)
        for cell, rows in frame.groupby("cell"):
            found[cell] += (rows.drop(columns="cell").to_numpy(object).tolist(),)
    return {cell: repr(values).replace("nan", "NaN") for cell, values in found.items()}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The study; what its commands import is loaded, so that no fork of `command` has to."""
    registry.load_packaged()
    for name in ("protocol", "report", "replay"):
        importlib.import_module(f"clipbench.{name}")
    file = tmp_path_factory.mktemp("page") / "faults.toml"
    file.write_text(PAGE)
    return file


@pytest.fixture(scope="module", params=["loop", "batched"])
def engine(request):
    """The faults strike the main process, which stores what comes of a worker whatever its engine:
    the second one is for the whole suite.
    """
    if request.param == "batched" and not request.config.getoption("--faults", default=False):
        pytest.skip("the store does not know the engine: only with --faults")
    return request.param


@pytest.fixture(scope="module")
def done(page, engine, tmp_path_factory):
    """A finished run; the forkserver that it started serves all that follow."""
    execute.context("cpu").Process(target=int).start()
    folder = tmp_path_factory.mktemp(engine) / "done"
    code, said = run(page, engine, folder)
    assert code == 0, said
    return folder


def filling(page, engine, folder):
    """The arguments of a run by one worker, whose calls come in one order."""
    where = ("--out", folder, "--engine", engine)
    return "run", page, *where, "--workers", "1", "--no-throughput"


def run(page, engine, folder, *more, shim=None):
    return command(*filling(page, engine, folder), *more, shim=shim)


def at_each(every, calls, few):
    """Kind and number of every fault to try: kills at sixty calls, the other kinds at ten;
    `test_a_shard` tries more.
    """
    return [
        (kind, at)
        for kind in KINDS
        for at in every(
            calls, few if kind == "kill" else max(1, few // 2), 60 if kind == "kill" else 10
        )
    ]


def told_well(code, said):
    return code in (0, -signal.SIGKILL) or (code in (1, 2, 130) and "Traceback" not in said)


def finished(page, engine, folder, reference):
    """Whether the next run of the study ends well, with the numbers of one that was never
    disturbed.
    """
    code, said = run(page, engine, folder)
    store = Store(folder)
    return code == 0 and not store.problems() and not store.missing() and numbers(
        folder
    ) == numbers(reference), said


def test_a_run_that_fails_or_dies_at_any_call(page, engine, done, tmp_path, every, tally):
    folder = tmp_path / "faults"
    calls = count(*filling(page, engine, folder), folder=folder)
    wrong = []
    for kind, at in at_each(every, calls, 3):
        shutil.rmtree(folder)
        code, said = run(page, engine, folder, shim=Shim(folder, kind, at))
        well, again = finished(page, engine, folder, done)
        if tally(SENTENCE, lost=not told_well(code, said)) | tally(WHOLE, lost=not well):
            wrong.append((kind, at, code, said[-300:], again[-300:]))
    assert not wrong, wrong[:3]


class Dying(Shim):
    """Kills a run where the selection is committed and the first shard of the report is written."""

    def _strike(self, place, write=None) -> None:
        if "report-" in os.fspath(place):
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_resumed_run_that_fails_or_dies_at_any_call(page, engine, done, tmp_path, every, tally):
    """One that was killed between its phases goes on: what it had stored is there whatever
    happens.
    """
    half, folder = tmp_path / "half", tmp_path / "faults"
    code, said = run(page, engine, half, shim=Dying(half))
    assert code == -signal.SIGKILL, said
    before, wrong = numbers(half), []
    assert before
    shutil.copytree(half, folder)
    calls = count(*filling(page, engine, folder), folder=folder)
    for kind, at in at_each(every, calls, 3):
        shutil.rmtree(folder)
        shutil.copytree(half, folder)
        code, said = run(page, engine, folder, shim=Shim(folder, kind, at))
        now = numbers(folder)
        lost = any(now.get(cell) != row for cell, row in before.items())
        well, again = finished(page, engine, folder, done)
        if (
            tally(SENTENCE, lost=not told_well(code, said))
            | tally(KEPT, lost=lost)
            | tally(WHOLE, lost=not well)
        ):
            wrong.append((kind, at, code, lost, said[-300:], again[-300:]))
    assert not wrong, wrong[:3]


def test_anew_that_fails_or_dies_at_any_call(page, engine, done, tmp_path, every, tally):
    """The calls before the first cell: the old results are renamed, and the pages of the new
    ones written.
    """
    before, wrong = numbers(done), []
    for kind, at in [(kind, at) for kind in KINDS for at in every(40, 2, 40)]:
        folder = tmp_path / f"{kind}-{at}" / "faults"
        shutil.copytree(done, folder)
        code, said = run(page, engine, folder, "--anew", shim=Shim(folder.parent, kind, at))
        places = [
            one
            for one in (folder.with_name("faults.old-1"), folder)
            if (one / "study.toml").is_file()
        ]
        lost = not any(numbers(one) == before for one in places)
        if tally(SENTENCE, lost=not told_well(code, said)) | tally(OLD, lost=lost):
            wrong.append((kind, at, code, said[-300:]))
        shutil.rmtree(folder.parent)
    assert not wrong, wrong[:3]


@cache
def contents_of(done):
    """A store's rows, by table, and its pages."""
    source = Store(done)
    frames = {table: source.read(table) for table in TABLES}
    rows = {  # a NaN stays one: it is not nothing
        table: frame.astype(object).where(frame.notna(), None).to_dict("records")
        for table, frame in frames.items()
    }
    return rows, {name: source.page(name) for name in PAGES}


def in_two_shards(done, page, folder):
    """A store of what ``done`` holds, in the two shards that its run committed before it packed
    them.
    """
    rows, pages = contents_of(done)
    store = Store.create(folder, "faults", page.read_text())
    for name, content in pages.items():
        store.write_page(name, content)
    with store.claim():
        for shard, role in enumerate(("select", "report")):
            mine = {row["cell"] for row in rows["cells"] if row["role"] == role}
            store.commit(
                f"{role}-{shard:04d}",
                {table: [row for row in rows[table] if row["cell"] in mine] for table in TABLES},
            )
    return store


def test_a_shard_its_pages_and_its_packing_at_every_call(
    page, done, engine, tmp_path, every, tally
):
    """Without a process for each: what is committed is whole, whatever the call, and the next
    sweep leaves nothing over.
    """
    if engine == "batched":
        pytest.skip("the store does not know the engine")
    before, wrong = numbers(done), []
    contents_of(done)  # before the forks

    def filled(folder):
        store = in_two_shards(done, page, folder)
        with store.claim():
            store.sweep()
            store.compact()

    calls = in_a_fork(filled, tmp_path / "count", Shim(tmp_path / "count"))
    for kind in KINDS:
        for at in every(calls, 2, 160):  # of some 800, most of them writes to one file
            folder = tmp_path / "faults"
            shutil.rmtree(folder, ignore_errors=True)
            in_a_fork(filled, folder, Shim(folder, kind, at))
            committed = numbers(folder) if (folder / "study.toml").is_file() else {}
            filled(folder)
            lost = any(before[cell] != row for cell, row in committed.items())
            well = (
                numbers(folder) == before
                and Store(folder).problems() == Store(folder).missing() == []
            )
            if tally(KEPT, lost=lost) | tally(WHOLE, lost=not well):
                wrong.append((kind, at, Store(folder).problems()[:2]))
    assert not wrong, wrong[:3]


def in_a_fork(function, folder, shim):
    """``function(folder)`` in a fork with the shim armed; how many calls it made."""
    heard, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            shim.arm()
            function(folder)
        except (OSError, UsageError):
            pass
        os.write(told, str(shim.calls).encode())
        os._exit(0)
    os.close(told)
    with os.fdopen(heard) as stream:
        calls = int(stream.read() or 0)
    os.waitpid(child, 0)
    return calls


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_report_that_fails_or_dies_at_any_call(done, engine, tmp_path, every, tally, monkeypatch):
    """What `report` puts in the place of an older one, without the drawing of both for each."""
    if engine == "batched":
        pytest.skip("a report does not know the engine")
    monkeypatch.setattr(parts, "render", sketch)
    folder, wrong = shutil.copytree(done, tmp_path / "faults"), []
    both = []
    for formats in ("md,svg", "md,csv,svg"):
        assert command("report", folder, "--format", formats)[0] == 0
        both.append(
            {name: content for name, content in contents(folder / "report").items() if name != LIST}
        )
    old, new = both
    calls = in_a_fork(lambda place: replace(place, new), folder / "report", Shim(folder))
    assert calls > len(new)
    for kind, at in [(kind, at) for kind in KINDS for at in every(calls, 3)]:
        replace(folder / "report", old)
        in_a_fork(lambda place: replace(place, new), folder / "report", Shim(folder, kind, at))
        left = contents(folder / "report") if (folder / "report").is_dir() else None
        replace(folder / "report", new)
        whole = left is None or {
            name: content for name, content in left.items() if name != LIST
        } in (old, new)
        after = {
            name: content for name, content in contents(folder / "report").items() if name != LIST
        }
        if tally(REPORT, lost=not whole or after != new):
            wrong.append((kind, at))
    assert not wrong, wrong[:3]


@pytest.mark.parametrize("what", ["pack", "throughput"])
def test_packing_and_timing_that_fail_or_die_at_any_call(
    what, page, engine, done, tmp_path, every, tally
):
    if engine == "batched":
        pytest.skip("neither knows the engine")
    folder, before, start = tmp_path / "faults", numbers(done), tmp_path / "start"
    if what == "pack":
        in_two_shards(done, page, start)  # a run has packed its own already
    else:
        shutil.copytree(done, start)
    arguments = (
        ("pack", folder)
        if what == "pack"
        else ("throughput", page, "--out", folder, "--sizes", "none", "--implementation", "torch")
    )
    shutil.copytree(start, folder)
    calls, wrong = count(*arguments, folder=folder), []
    for kind, at in (
        at_each(every, calls, 2)
        if what == "pack"
        else [(KINDS[kind], at) for kind in every(len(KINDS), 3) for at in every(calls, 1, 6)]
    ):
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
        code, said = command(*arguments, shim=Shim(folder, kind, at))
        lost = numbers(folder) != before
        again = command(*arguments)
        well = again[0] == 0 and not Store(folder).problems() and numbers(folder) == before
        if (
            tally(SENTENCE, lost=not told_well(code, said))
            | tally(KEPT, lost=lost)
            | tally(WHOLE, lost=not well)
        ):
            wrong.append((kind, at, code, lost, said[-300:], again, Store(folder).problems()[:2]))
    assert not wrong, wrong[:3]
