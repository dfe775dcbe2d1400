"""Flipped bits in pages and tables, and folders of strangers: named, set aside or mended;
nothing outside the folder is touched.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_io import KEPT, SENTENCE, WHOLE, command, finished, numbers, page, run, sketch, told_well

from clipbench import execute, registry
from clipbench.report import parts
from clipbench.store import PAGES, Store
from clipbench.store.commits import COMMITS, CONTEXT
from clipbench.store.files import write_table

__all__ = ["page"]
FOUND = "one flipped bit anywhere is found by verify"
MENDED = "a damaged page is rebuilt as it was"
ELSEWHERE = "nothing outside the folder is changed, and no command hangs"
FILES = ("study.toml", "pages.json", *(f"{name}.json" for name in PAGES))
PATIENCE = 120  # seconds


@pytest.fixture(scope="module")
def done(page, tmp_path_factory):
    registry.load_packaged()
    execute.context("cpu").Process(target=int).start()
    folder = tmp_path_factory.mktemp("damage") / "done"
    code, said = run(page, "loop", folder)
    assert code == 0, said
    assert Store(folder).problems() == Store(folder).missing() == []
    return folder


def flip(path, drawn):
    data = bytearray(path.read_bytes())
    data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_in_a_page(file, page, done, tmp_path, every, tally):
    drawn, wrong = random.Random(file), []
    before = {
        name: (done / name).read_bytes()
        for name in ("study.toml", "environment.json", "components.json")
    }
    pilots = json.loads((done / "calibration.json").read_text())["pilots"]
    for _ in every(20, 3):
        folder = tmp_path / "flipped"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(done, folder)
        flip(folder / file, drawn)
        found = Store(folder).problems()
        store = Store.create(folder, "faults", page.read_text())
        with store.claim():
            store.sweep()
        after = Store(folder)
        same = all((folder / name).read_bytes() == content for name, content in before.items())
        same &= after.page("calibration")["pilots"] == pilots and after.problems() == []
        if (
            tally(FOUND, lost=not found)
            | tally(MENDED, lost=not same)
            | tally(KEPT, lost=numbers(folder) != numbers(done))
        ):
            wrong.append((found, after.problems()))
    assert not wrong, wrong[:3]


@pytest.mark.parametrize("table", ["cells", "curves", "evals", "throughput"])
def test_a_flipped_bit_in_a_table(table, page, done, tmp_path, every, tally):
    """The run makes again what was lost, with the same numbers."""
    drawn, wrong = random.Random(table), []
    if table == "throughput":
        done = shutil.copytree(done, tmp_path / "timed")
        Store(done).add_throughput(
            [{"workload": "cosh", "block": 0, "seconds": 0.1, "valid": True, "created": "now"}]
        )
    for number in every(50, 2):
        folder = tmp_path / "flipped"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(done, folder)
        [path] = (folder / table).iterdir()
        flip(path, drawn)
        found = Store(folder).problems()
        lost = not any(path.name in problem for problem in found)
        well, said = finished(page, "loop", folder, done) if number % 10 == 0 else (True, "")
        if tally(FOUND, lost=lost) | tally(WHOLE, lost=not well):
            wrong.append((found, said[-300:]))
    assert not wrong, wrong[:3]


# ----------------------------------------------------------------------------- folders of strangers


def the(folder, table):
    return next((folder / table).iterdir())


def recommitted(folder, **changes):
    """The commit with other metadata, its hash in its name as it must be."""
    path = the(folder, "cells")
    rows = pq.read_table(path)
    metadata = dict(rows.schema.metadata) | changes.pop("metadata", {})
    path.unlink()
    return write_table(
        folder / "cells",
        "cells",
        "select-0001",
        rows,
        {key: metadata[key] for key in (COMMITS, CONTEXT)},
    )


def naming(table, name):
    return lambda folder, _: recommitted(
        folder, metadata={COMMITS: json.dumps({table: name}).encode()}
    )


def of_context(**changes):
    def plant(folder, home):
        context = json.loads(pq.read_schema(the(folder, "cells")).metadata[CONTEXT])
        recommitted(folder, metadata={CONTEXT: json.dumps(context | changes).encode()})

    return plant


def linked(place, target):
    def plant(folder, home):
        path = folder / place
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(home / target)

    return plant


def old_page(text):
    """A page as a folder from before hashes may have it."""

    def plant(folder, home):
        (folder / "pages.json").unlink()
        file = "study.toml" if text.startswith("use") else "plan.json"
        (folder / file).write_text(
            text + (folder / file).read_text() if file == "study.toml" else text
        )

    return plant


PLANTS = {
    "a curve among the cells": lambda folder, _: shutil.copy(
        the(folder, "curves"), folder / "cells"
    ),
    "a curve among the timings": lambda folder, _: shutil.copy(
        the(folder, "curves"), folder / "throughput"
    ),
    "a copy of a commit": lambda folder, _: shutil.copy(
        the(folder, "cells"),
        folder / "cells" / f"copy-{the(folder, 'cells').name.rpartition('-')[2]}",
    ),
    "a shard of another study": of_context(study="another"),
    "a newer format": of_context(schema="3.0"),
    "a context that is none": of_context(environments=[1], components="x", pilots=None),
    "a commit that names a dot": naming("curves", "."),
    "a commit that names two dots": naming("curves", ".."),
    "a commit that names a file elsewhere": naming("curves", "/etc/passwd"),
    "a commit that names a file of the user": naming("curves", "../../home/photo.png"),
    "a commit that names nothing": naming("curves", ""),
    "a commit of a table that is none": naming("cells", "x.parquet"),
    "a dangling link": linked("cells/a-000000000000.parquet", "nothing"),
    "a link to a file of the user": linked("curves/a-000000000000.parquet", "photo.png"),
    "a link to itself": linked(
        "curves/a-000000000000.parquet", "../faults/curves/a-000000000000.parquet"
    ),
    "a pipe among the cells": lambda folder, _: os.mkfifo(
        folder / "cells" / "a-000000000000.parquet"
    ),
    "a pipe among the curves": lambda folder, _: os.mkfifo(
        folder / "curves" / "a-000000000000.parquet"
    ),
    "a pipe as a page": lambda folder, _: (
        (folder / "plan.json").unlink(),
        os.mkfifo(folder / "plan.json"),
    ),
    "a pipe as the claim": lambda folder, _: (
        (folder / ".claim").unlink(missing_ok=True),
        os.mkfifo(folder / ".claim"),
    ),
    "a folder among the cells": lambda folder, _: (
        folder / "cells" / "a-000000000000.parquet"
    ).mkdir(),
    "a folder that looks unfinished": lambda folder, _: (folder / "cells" / ".writing-x").mkdir(),
    "a table that is a link": linked("events", "pictures"),
    "a page that is a link": linked("environment.json", "photo.png"),
    "a report that is a link": linked("report", "pictures"),
    "figures that are a link": linked("report/figures", "pictures"),
    "a claim that is a link": linked(".claim", "photo.png"),
    "a study that uses a file": old_page('use = ["../home/evil.py"]\n'),
    "a study that uses a name with NUL": old_page('use = ["a\\u0000b.py"]\n'),
    "a page of 100,000 brackets": old_page("[" * 100_000),
    "a page with a number of 5,000 digits": old_page('{"cells": ' + "9" * 5_000 + "}"),
    "a page of other things": old_page('{"cells": [1, 2], "phases": {"a": 1}}'),
}


# Told by the same lines as another one: for the whole suite.
ALIKE = {
    "a curve among the timings",
    "a commit that names two dots",
    "a commit that names nothing",
    "a pipe among the curves",
}


def outside(home):
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("plant", PLANTS)
def test_a_strangers_folder(plant, page, done, tmp_path, tally, monkeypatch, request):
    if plant in ALIKE and not request.config.getoption("--faults", default=False):
        pytest.skip("another one is like it: only with --faults")
    monkeypatch.setattr(parts, "render", sketch)  # painted in memory, wherever the folder is
    folder, home = tmp_path / "faults", tmp_path / "home"
    shutil.copytree(done, folder)
    (home / "pictures").mkdir(parents=True)
    for name in ("photo.png", "pictures/a.png", "pictures/a.parquet"):
        (home / name).write_bytes(b"mine")
    (home / "evil.py").write_text(f"open({str(home / 'ran')!r}, 'w').write('ran')")
    before = outside(home)
    PLANTS[plant](folder, home)
    cell = next(iter(numbers(done)))
    wrong = []
    before_ours = signal.signal(signal.SIGALRM, _late)
    signal.alarm(PATIENCE)
    for arguments in (
        ("verify", folder),
        ("report", folder, "--format", "md"),
        ("replay", folder, cell),
        ("run", page, "--out", folder, "--engine", "loop", "--workers", "1", "--no-throughput"),
        ("verify", folder),
    ):
        code, said = command(*arguments)
        if tally(SENTENCE, lost=not told_well(code, said)) | tally(
            ELSEWHERE, lost=outside(home) != before
        ):
            wrong.append((arguments[0], code, said[-600:]))
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before_ours)
    assert not wrong, wrong
    refused = (
        "a newer format",
        "a table that is a link",
        "a pipe as the claim",
        "a claim that is a link",
    )
    assert (code == 0) or plant in refused, said


def _late(*_):
    raise TimeoutError("a command hangs")


def test_a_folder_from_before_the_hashes_says_what_is_lost(page, done, tmp_path, tally):
    """A page of it that is damaged cannot be rebuilt from commits that say nothing: it is told,
    and the run goes on.
    """
    folder = tmp_path / "faults"
    shutil.copytree(done, folder)
    path = the(folder, "cells")
    rows = pq.read_table(path)
    commits = rows.schema.metadata[COMMITS]
    path.unlink()
    write_table(folder / "cells", "cells", "select-0001", rows, {COMMITS: commits})
    (folder / "pages.json").unlink()
    (folder / "environment.json").write_text("{")
    code, said = command(
        "run", page, "--out", folder, "--engine", "loop", "--workers", "1", "--no-throughput"
    )
    assert code == 0, said
    assert "environment.json is no JSON" in said
    assert "is lost" in said
    assert Store(folder).problems() == []
    tally(KEPT, lost=numbers(folder) != numbers(done))
    assert Path(folder / "aside" / "pages" / "environment.json").read_text() == "{"
