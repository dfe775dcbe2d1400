"""The phases of a run: what each asks for, what a second run keeps, and what an edited study
adds.
"""

import hashlib
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from pages import study_page
from restored import registry_restored
from running import called
from strangers import EMA

from clipbench import execute, protocol, registry, selection, store, study
from clipbench.analysis.clips import against_lower_lr
from clipbench.errors import UsageError
from clipbench.execute import local
from clipbench.protocol import plans
from clipbench.protocol.preregister import preregister
from clipbench.report import evidence
from clipbench.store import Store
from clipbench.task import Threshold

PAGE = study_page(
    "cosh",
    clips={"none": {}, "norm": {"relative": [0.1, 0.3]}},
    steps=12,
    batch=8,
    evaluations=2,
    device="cpu",
    lr=[0.01, 0.1],
    report=2,
)
WORKER = local.Worker
PILOT = "cosh, batch 8, cpu, float32, version 1"


SCALED = """
import torch
from torch import nn

from clipbench import metrics, workload

SCALE = 1.0


@workload("scaled")
class Scaled:
    metric = metrics.log10_gap
    reference_loss = None

    def sample(self, generator):
        return torch.randn(1, generator=generator), torch.zeros(1)

    def model(self):
        return Bowl()


class Bowl(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.full((3,), 5.0))

    def forward(self, noise):
        return SCALE * (self.x - noise.mean()).square().sum()
"""


def parsed(text, folder):
    registry.load_packaged()
    return study.parse("tiny", text, folder)


def carried_out(text, folder, watcher=None, **options):
    """``run`` of a page into ``folder``: the counts, and the store as a reader opens it."""
    asked = parsed(text, folder.parent)
    made = Store.create(folder, asked.name, asked.text)
    with made.claim():
        counts = protocol.run(
            asked, made, protocol.Options(**{"workers": 2, "throughput": False, **options}), watcher
        )
    return counts, Store(folder)


def rows(frame):
    """Rows in an order of their own, to compare tables whose shards differ."""
    return frame.sort_values("cell").reset_index(drop=True)


@pytest.fixture(scope="module")
def started():
    """The call of each process that `whole` started; None for one that is there for shards."""
    return []


@pytest.fixture(scope="module")
def whole(tmp_path_factory, started):
    def noted(number, setting, call):
        started.append(call)
        return WORKER(number, setting, call)

    folder = tmp_path_factory.mktemp("protocol") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipbench.execute.local.Worker", noted)
        counts, done = carried_out(PAGE, folder)
    assert counts.kept == 0
    return done


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the finished store to go on with."""
    return shutil.copytree(whole.folder, tmp_path / "tiny")


def goes_on(copy, whole, *changes):
    """Run an edited page over a copy; asserts that every stored row is kept, in every table. The
    counts and the new cells.
    """
    text = PAGE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    counts, done = carried_out(text, copy)
    before, after = rows(whole.read("cells")), rows(done.read("cells"))
    pd.testing.assert_frame_equal(
        after[after["cell"].isin(before["cell"])].reset_index(drop=True), before
    )
    for table in store.SHARD_TABLES:
        kept = done.read(table)
        kept = kept[kept["cell"].isin(before["cell"])]
        names = [name for name in ("cell", "step", "split", "kind", "metric") if name in kept]
        pairs = (
            frame.sort_values(names).reset_index(drop=True) for frame in (kept, whole.read(table))
        )
        pd.testing.assert_frame_equal(*pairs)
    assert done.problems() == []
    new = after[~after["cell"].isin(before["cell"])]
    assert counts.ran == len(new)
    return counts, new


# ------------------------------------------------------------------------------------------ one run


def test_every_phase_is_written_down_and_every_cell_of_it_stored(whole):
    cells = whole.read("cells")
    phases = whole.page("plan")["cells"]
    assert list(phases) == ["extend", "report", "select"]
    assert all(phases.values())
    assert set(cells["cell"]) == {cell for phase in phases.values() for cell in phase}
    role = dict(zip(cells["cell"], cells["role"], strict=True))
    assert {role[cell] for cell in (*phases["select"], *phases["extend"])} == {"select"}
    assert {role[cell] for cell in phases["report"]} == {"report"}
    assert len(phases["select"]) == 6
    assert whole.problems() == []


def test_workers_stay_from_one_phase_to_the_next(whole, started):
    """What they have traced and compiled stays with them: three phases, and no more processes for
    shards than there are workers.
    """
    assert whole.missing() == []
    assert 0 < started.count(None) <= 2


def test_report_cells_are_the_choices_on_seeds_of_their_own(whole):
    cells = whole.read("cells")
    report, select = cells[cells["role"] == "report"], cells[cells["role"] == "select"]
    assert set(report["seed"]) == {1000, 1001}
    assert set(select["seed"]) == {0}
    chosen = selection.choose(selection.score(cells))
    assert len(chosen) == 2
    for choice in chosen.to_dict("records"):
        mine = report[(report["arm"] == choice["arm"]) & (report["lr"] == choice["lr"])]
        if (word := Threshold.of(choice).word) is not None:
            mine = mine[mine[word] == choice[word]]
        assert set(mine["seed"]) == {1000, 1001}


def test_what_a_study_commits_itself_to_is_written_before_it_reports_and_a_change_is_kept(copy):
    """With the number of report cells that were stored by then."""
    copy = Store(copy)
    [first] = copy.page("preregistered")["versions"]
    assert first["report_cells"] == 0
    assert first["margins"] == {"cosh": 0.5}
    assert first["families"] == {
        "clips on sgd, functions": {
            "level": 0.05,
            "pairs": ["cosh, batch 8, cpu, float32: sgd + norm against sgd"],
        }
    }
    cells = study.parse("tiny", PAGE, copy.folder).cells()
    protocol = copy.page("plan")["protocol"]
    preregister(copy, cells, protocol)
    assert copy.page("preregistered")["versions"] == [first]
    preregister(copy, cells, {**protocol, "percentile": 80.0})
    kept, second = copy.page("preregistered")["versions"]
    assert kept == first
    assert second["hash"] != first["hash"]
    assert second["report_cells"] == (copy.read("cells")["role"] == "report").sum() > 0


def test_the_untuned_row_is_run_beside_the_choices(whole):
    cells = whole.read("cells")
    report = cells[(cells["role"] == "report") & (cells["lr"] == 0.01)]
    assert set(report.loc[report["arm"] == "sgd + norm", "threshold"]) >= {1.0}


def test_a_clip_that_fires_in_most_steps_is_set_against_a_lower_lr_without_it(tmp_path):
    """The lower lr is the clip's, times the share of the gradient that it left: by hand from the
    rows. It is run on the report seeds, and the difference is theirs.
    """
    text = study_page(
        "cosh",
        clips={"none": {}, "norm": {"max_norm": 0.5}},
        steps=20,
        evaluations=2,
        lr=[0.1, 0.3],
        select=2,
        report=4,
        extend=False,
    )
    _, done = carried_out(text, tmp_path / "tiny")
    seen = evidence.read(done)
    cells = done.read("cells")
    [lr] = set(seen.choices.loc[seen.choices["arm"] == "sgd + norm", "lr"])
    chosen = cells[(cells["arm"] == "sgd + norm") & (cells["lr"] == lr)]
    kept = chosen.loc[chosen["role"] == "select", "kept_median"].astype(float).mean()
    assert 0 < kept < 0.1
    lower = float(f"{lr * kept:.2g}")
    ran = cells[(cells["arm"] == "sgd") & (cells["lr"] == lower)]
    assert sorted(ran["seed"]) == [1000, 1001, 1002, 1003]
    [row] = against_lower_lr(seen.drawn, seen.lowered, seen.components).to_dict("records")
    value = {
        name: rows.set_index("seed")["metric_value"]
        for name, rows in (("it", ran), ("clip", chosen))
    }
    gain = (
        (value["it"] - value["clip"].loc[ran["seed"]]).astype(float).mean()
    )  # a gap: less is better
    assert (row["arm"], row["lr"], row["n"]) == ("sgd + norm", lower, 4)
    assert row["estimate"] == pytest.approx(gain)


def test_an_edge_is_extended_by_two_half_decades_once_and_flagged(whole):
    """The choice of 0.01 … 0.1 can only be at an end of the axis."""
    cells = whole.read("cells")
    flagged = cells[cells["extended"]]
    assert set(flagged["cell"]) == set(whole.page("plan")["cells"]["extend"])
    plain = cells[(cells["role"] == "select") & (cells["arm"] == "sgd")]
    new = set(plain.loc[plain["extended"], "lr"])
    assert new in ({0.003, 0.001}, {0.3, 1.0})
    assert set(plain.loc[~plain["extended"], "lr"]) == {0.01, 0.1}
    assert set(flagged["role"]) == {"select"}
    assert set(flagged["relative"].dropna()) <= {0.01, 0.03, 0.1, 0.3, 1.0, 3.0}


def test_an_axis_is_not_extended_beyond_the_range_of_its_threshold(tmp_path):
    """The more of the gradient the better, at so small an lr; but there is no share above 1."""
    (tmp_path / "share.py").write_text(
        "from clipbench import Unit, clip, trees\n\n\n@clip('share')\nclass Share:\n    share: "
        "Unit = 1.0\n\n    def update(self, grads, state, params):\n        return "
        "trees.scale(grads, self.share), state\n"
    )
    page = PAGE.replace(
        'name = "norm"\nrelative = [0.1, 0.3]', 'name = "share"\nshare = [0.2, 0.5]'
    )
    counts, done = carried_out(
        'use = ["share.py"]\n' + page.replace("[0.01, 0.1]", "[1e-5, 1e-4]"), tmp_path / "tiny"
    )
    found = done.read("cells")
    shared = found[found["arm"] == "sgd + share"]
    assert set(shared.loc[shared["extended"], "lr"]) >= {3e-4, 1e-3}
    assert set(shared["threshold"]) == {0.2, 0.5}
    assert counts.failed == 0


def test_relative_thresholds_are_resolved_with_the_stored_pilot(whole):
    """To three digits; the multiple stays beside the number, and in the identity."""
    size = whole.page("calibration")["pilots"][PILOT]["norm, version 1"]
    cells = whole.read("cells")
    clipped = cells[cells["relative"].notna()]
    assert len(clipped) >= 4
    assert all(row.threshold == float(f"{row.relative * size:.3g}") for row in clipped.itertuples())
    assert all(f'"relative":{row.relative}' in row.settings for row in clipped.itertuples())
    assert cells.loc[cells["arm"] == "sgd", "threshold"].isna().all()


def test_percentiles_are_those_of_the_pilot_and_nothing_is_tried_beyond_them(tmp_path):
    page = study_page(
        "cosh",
        clips={"value": {"percentile": [50, 90]}},
        steps=4,
        batch=8,
        lr=[0.01, 0.1],
        report=1,
    )
    counts, done = carried_out(page, tmp_path / "tiny")
    sizes = done.page("calibration")["pilots"][PILOT]
    cells = done.read("cells")
    assert set(zip(cells["percentile"], cells["threshold"], strict=True)) >= {
        (p, sizes[f"value, version 1, percentile {p:g}"]) for p in (50.0, 90.0)
    }
    selected = cells[cells["role"] == "select"]
    assert selected["threshold"].nunique() == 2
    assert set(selected.loc[selected["extended"], "lr"]) in ({0.003, 0.001}, {0.3, 1.0})
    assert counts.failed == 0
    assert done.problems() == []
    # the fixed threshold runs along the whole axis on the report seed as well
    fresh = cells[(cells["role"] == "report") & (cells["percentile"] == 90)]
    assert set(fresh["lr"]) >= {0.01, 0.1}


def test_the_environment_names_the_machine_and_no_person(whole):
    page = whole.page("environment")
    [key] = page["environments"]
    assert set(whole.read("cells")["environment"]) == {key}
    assert page["environments"][key]["libraries"]["torch"]
    assert str(whole.folder.parent) not in (whole.folder / "environment.json").read_text()


def test_the_same_study_elsewhere_gives_the_same_rows(whole, tmp_path):
    _, again = carried_out(PAGE, tmp_path / "tiny", workers=1)
    columns = [name for name in whole.read("cells") if name not in ("seconds", "worker", "created")]
    pd.testing.assert_frame_equal(
        rows(again.read("cells"))[columns], rows(whole.read("cells"))[columns]
    )
    for table in ("plan", "components", "environment"):
        assert again.page(table) == whole.page(table)
    assert again.page("calibration")["pilots"] == whole.page("calibration")["pilots"]


# ------------------------------------------------------------------------------------- the next run


def test_a_second_run_runs_nothing_and_starts_nothing(whole, copy, monkeypatch):
    """No worker, no pilot; not a file changes."""
    monkeypatch.setattr("clipbench.execute.local.context", None)
    before = {
        path: path.read_bytes()
        for path in copy.rglob("*")
        if path.is_file() and path.name != ".claim"
    }
    counts, _ = carried_out(PAGE, copy)
    assert counts.ran == 0
    assert counts.kept == len(whole.read("cells"))
    assert {
        path: path.read_bytes()
        for path in copy.rglob("*")
        if path.is_file() and path.name != ".claim"
    } == before


def test_more_report_seeds_run_the_new_seeds_only(whole, copy):
    counts, new = goes_on(copy, whole, ("report = 2", "report = 4"))
    assert set(new["seed"]) == {1002, 1003}
    assert counts.kept == len(whole.read("cells"))


def test_more_selection_seeds_keep_what_is_stored(whole, copy):
    _, new = goes_on(copy, whole, ("select = 1", "select = 2"))
    assert len(new[(new["seed"] == 1) & ~new["extended"]]) == 6
    assert new.loc[new["role"] == "select", "seed"].isin([0, 1]).all()


def test_an_edited_study_runs_what_is_missing(whole, copy):
    _, new = goes_on(copy, whole, ("lr = [0.01, 0.1]", "lr = [0.01, 0.03, 0.1]"))
    assert len(new[(new["lr"] == 0.03) & (new["role"] == "select") & ~new["extended"]]) == 3


def test_a_shard_that_was_damaged_is_run_again_and_nothing_else(whole, copy):
    [lost] = (copy / "cells").iterdir()  # a finished study is one file a table
    cells = set(pq.read_table(lost)["cell"].to_pylist())
    lost.write_bytes(lost.read_bytes()[:-1])

    class Notes(protocol.Silent):
        said = ()

        def note(self, sentence):
            self.said = (*self.said, sentence)

    notes = Notes()
    counts, done = carried_out(PAGE, copy, watcher=notes)
    assert counts.ran == len(cells)
    assert notes.said == (f"set aside: cells/{lost.name}: does not match the hash in its name",)
    columns = [name for name in whole.read("cells") if name not in ("seconds", "worker", "created")]
    pd.testing.assert_frame_equal(
        rows(done.read("cells"))[columns], rows(whole.read("cells"))[columns]
    )
    assert done.problems() == []


def test_a_stored_pilot_is_used_and_never_run_again(tmp_path, monkeypatch):
    """Another number than a pilot would give, planted before the first cell; and with the loop
    no rate is measured.
    """
    page = (
        PAGE.replace("[0.01, 0.1]", "0.01")
        .replace("report = 2", "report = 0")
        .replace("[run]", '[run]\nengine = "loop"')
    )
    planted = {"pilots": {PILOT: {"norm, version 1": 12.3}}}
    Store.create(tmp_path / "tiny", "tiny", page).write_page("calibration", planted)
    monkeypatch.setattr(
        execute, "calls", lambda _, works, __: pytest.fail("a pilot") if works else iter(())
    )
    _, done = carried_out(page, tmp_path / "tiny")
    cells = done.read("cells")
    assert {
        (row.relative, row.threshold)
        for row in cells[cells["relative"].notna() & ~cells["extended"]].itertuples()
    } == {
        (0.1, 1.23),
        (0.3, 3.69),
    }
    assert done.page("calibration") == planted


def test_no_report_seeds_mean_no_report_cells(tmp_path):
    page = (
        PAGE.replace("[0.01, 0.1]", "0.01")
        .replace("report = 2", "report = 0")
        .replace("[0.1, 0.3]", "0.3")
    )
    counts, done = carried_out(page, tmp_path / "tiny")
    assert counts.ran == 2
    assert done.page("plan")["cells"]["report"] == []
    assert done.problems() == []


def test_without_report_seeds_nothing_is_chosen_and_no_axis_extended(tmp_path):
    """With them, the same page has a choice at an edge."""
    counts, done = carried_out(PAGE.replace("report = 2", "report = 0"), tmp_path / "tiny")
    assert counts.ran == len(done.page("plan")["cells"]["select"]) == 6
    assert done.page("plan")["cells"]["extend"] == []


def test_curves_of_report_and_diverged_cells_only_where_that_is_asked_for(tmp_path):
    """And it stays so: a later run that would keep all cannot bring the others back."""
    page = PAGE.replace("[0.01, 0.1]", "[0.1, 3.0]")
    counts, done = carried_out(page, tmp_path / "tiny", curves="report")
    assert counts.diverged
    cells = done.read("cells").set_index("cell")
    kept = set(done.read("curves")["cell"])
    assert kept == set(cells.index[(cells["role"] == "report") | (cells["status"] == "diverged")])
    assert kept != set(cells.index)
    assert done.problems() == []
    _, again = carried_out(page, tmp_path / "tiny", curves="all")
    assert again.page("environment")["curves"] == "report"
    assert again.problems() == []


# ------------------------------------------------------------------------------------------ devices

without_cuda = pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has a CUDA device"
)


@without_cuda
def test_cells_for_an_absent_device_are_listed_with_the_reason(tmp_path):
    page = PAGE.replace('device = "cpu"', 'device = ["cpu", "cuda"]').replace("[0.01, 0.1]", "0.01")
    page = page.replace("report = 2", "report = 1")
    asked = protocol.plan(parsed(page, tmp_path))
    absent = [{"device": "cuda", "cells": 3, "reason": "this machine has no CUDA device"}]
    assert asked.not_run == absent
    assert {cell.device for cell in asked.cells} == {"cpu"}
    counts, done = carried_out(page, tmp_path / "tiny")
    assert counts.not_run == 3
    assert done.page("plan")["not_run"] == absent
    assert set(done.read("cells")["device"]) == {"cpu"}
    assert done.problems() == []


@without_cuda
def test_a_study_for_absent_devices_alone_is_refused(tmp_path):
    with pytest.raises(UsageError, match="every cell is for an absent device"):
        carried_out(PAGE.replace('device = "cpu"', 'device = "cuda"'), tmp_path / "tiny")
    with pytest.raises(UsageError, match=r"--device cuda: .*; leave --device out, or say cpu"):
        protocol.plan(parsed(PAGE, tmp_path), "cuda")


def test_a_device_on_the_command_line_takes_every_cell_there_once(tmp_path):
    both = parsed(PAGE.replace('device = "cpu"', 'device = ["cpu", "cuda"]'), tmp_path)
    asked = protocol.plan(both, "cpu")
    assert {cell.id for cell in asked.cells} == {
        cell.id for cell in protocol.plan(parsed(PAGE, tmp_path)).cells
    }
    assert asked.not_run == []


# -------------------------------------------------------------------------------- a stranger's clip


def test_a_strangers_clip_joins_the_matrix_under_its_files_hash(tmp_path):
    (tmp_path / "ema.py").write_text(EMA)
    page = 'use = ["ema.py"]\n' + PAGE.replace(
        'name = "norm"\nrelative = [0.1, 0.3]', 'name = "ema"\nratio = [0.5, 1.0]'
    )
    counts, done = carried_out(page, tmp_path / "tiny")
    assert counts.failed == 0
    cells = done.read("cells")
    ema = cells[cells["clip"] == "ema"]
    assert set(ema["arm"]) == {"sgd + ema"}
    assert {0.5, 1.0} <= set(ema["threshold"])
    assert set(ema["role"]) == {"select", "report"}
    assert (ema["clipped_fraction"] > 0).any()
    version = hashlib.sha256(EMA.encode()).hexdigest()[:16]
    assert ema["settings"].str.contains(f'"version":"{version}"').all()
    assert done.page("components")["clips"]["ema"]["version"] == version
    assert done.problems() == []

    before = {cell.id for cell in parsed(page, tmp_path).cells()}
    (tmp_path / "ema.py").write_text(EMA + "\n# another thought\n")
    after = {cell.id for cell in parsed(page, tmp_path).cells()}
    stay = {cell.id for cell in parsed(PAGE, tmp_path).cells() if cell.clip.name == "none"}
    assert before & after == stay
    assert len(after - before) == 4


def test_the_default_threshold_of_a_clip_is_stored_as_a_number(tmp_path):
    (tmp_path / "ema.py").write_text(EMA)
    page = 'use = ["ema.py"]\n' + PAGE.replace(
        'name = "norm"\nrelative = [0.1, 0.3]', 'name = "ema"'
    )
    _, done = carried_out(
        page.replace("[0.01, 0.1]", "0.01").replace("report = 2", "report = 0"), tmp_path / "tiny"
    )
    cells = done.read("cells")
    assert set(cells.loc[cells["clip"] == "ema", "threshold"]) == {1.0}


# ------------------------------------------------------------------------------------------ outlook


def test_the_outlook_counts_what_is_stored(whole, tmp_path):
    asked = parsed(PAGE, tmp_path)
    [row] = protocol.predict(asked, protocol.plan(asked), whole)
    assert (row["task"], row["select"], row["stored"]) == (PILOT.removesuffix(", version 1"), 6, 6)
    assert row["seconds"] == 0
    [row] = protocol.predict(asked, protocol.plan(asked), None)
    assert row["stored"] == 0
    assert row["seconds"] > 0
    assert row["report"] >= len(whole.page("plan")["cells"]["report"])


# ----------------------------------------------------------------------- what must not pass quietly


def test_a_run_cut_short_between_its_phases_is_not_called_complete(whole, copy):
    """As an interrupt leaves it: the selection phase is stored, and the phases after it were
    never asked for.
    """
    plan = whole.page("plan")
    Store(copy).write_page("plan", {**plan, "cells": {"select": plan["cells"]["select"]}})
    assert Store(copy).missing() == ["the extend phase has not run", "the report phase has not run"]
    assert Store(copy).problems() == []


def test_another_version_of_a_workload_has_a_pilot_of_its_own(tmp_path):
    """A threshold of once the median gradient must not stay where it was when the loss is a
    hundred times larger.
    """
    page = study_page(
        "scaled", clips={"norm": {"relative": 1}}, use=["scaled.py"], steps=4, lr=1e-4, report=1
    )
    thresholds = []
    for scale in ("1.0", "100.0"):
        (tmp_path / "scaled.py").write_text(SCALED.replace("SCALE = 1.0", f"SCALE = {scale}"))
        with registry_restored():
            _, done = carried_out(page, tmp_path / "tiny")
        planned = done.page("plan")["cells"]["select"]
        cells = done.read("cells")
        thresholds += cells.loc[cells["cell"].isin(planned), "threshold"].tolist()
    assert thresholds[1] == pytest.approx(100 * thresholds[0], rel=0.01)


def test_a_file_edited_while_the_study_runs_stops_it(tmp_path):
    """Its cells would be stored under the hash of the file as it was."""
    (tmp_path / "ema.py").write_text(EMA)
    asked = parsed('use = ["ema.py"]\n' + PAGE, tmp_path)
    used = asked.used
    (tmp_path / "ema.py").write_text(EMA.replace("0.95", "0.9"))
    with pytest.raises(UsageError, match=r"ema\.py was edited while the study ran"):
        called(abs, 1, use=used)


def test_an_edge_of_an_edited_study_is_extended_beyond_its_new_end(whole, copy):
    """Cells that were an extension once are the study's own when the page asks for them."""
    cells = whole.read("cells")
    lrs = sorted(set(cells.loc[cells["role"] == "select", "lr"]))
    assert cells["extended"].any()
    plan = {"select": whole.page("plan")["cells"]["select"] + whole.page("plan")["cells"]["extend"]}
    scores = selection.score(selection.planned(cells, plan))
    assert not scores["extended"].any()
    extended = selection.extend(scores)
    assert all(row.lr not in lrs or row.relative not in {0.1, 0.3} for row in extended.itertuples())


def test_one_schedule_for_all_is_no_reason_to_have_no_headline():
    """Its methods are the arms with the schedule; if there are several, with the first that all
    optimizers share.
    """
    page = """
run = {{ steps = 5, lr = 0.1, schedule = {schedule} }}
workload = [{{ name = "wdbc" }}]
optimizer = [{{ name = "sgd" }}, {{ name = "sgd", weight_decay = 0.1 }}, {{ name = "rmsprop" }}]
clip = [
  {{ name = "none" }}, {{ name = "norm", max_norm = 1.0 }},
  {{ name = "norm", max_norm = 1.0, on = "update" }}
]
"""
    found = {
        schedule: protocol.headline(
            study.parse("page", page.format(schedule=schedule), Path()).cells()
        )
        for schedule in ('"step"', '["step", "constant"]', '["constant", "step"]', '"constant"')
    }
    assert (
        found.pop('"step"')
        == found.pop('["step", "constant"]')
        == {
            "plain SGD": "sgd(schedule=step)",
            "momentum": "momentum",
            "RMSprop": "rmsprop(schedule=step)",
            "value clip": "sgd + value",
            "norm clip": "sgd(schedule=step) + norm",
        }
    )
    assert all(methods == selection.METHODS for methods in found.values())


def test_the_schedule_of_the_headline_is_one_that_every_optimizer_has():
    page = """
run = { steps = 5, lr = 0.1, schedule = ["step", "cosine"] }
workload = [{ name = "wdbc" }]
optimizer = [
  { name = "sgd" }, { name = "sgd", schedule = "warm-up" },
  { name = "rmsprop", schedule = "cosine" }
]
clip = [{ name = "none" }]
"""
    assert plans.schedule(study.parse("page", page, Path()).cells()) == "cosine"
    none = page.replace('"rmsprop", schedule = "cosine"', '"rmsprop", schedule = "polynomial"')
    assert plans.schedule(study.parse("page", none, Path()).cells()) is None
    # one workload alone has it
    other = page.replace('"wdbc"', '"wdbc", schedule = "step" }, { name = "digits"')
    other = other.replace(', { name = "sgd", schedule = "warm-up" }', "").replace(
        '"rmsprop", schedule = "cosine"', '"rmsprop"'
    )
    assert plans.schedule(study.parse("page", other, Path()).cells()) == "step"
    apart = other.replace('schedule = ["step", "cosine"]', 'schedule = "cosine"')
    assert plans.schedule(study.parse("page", apart, Path()).cells()) is None


def test_defaults_by_name_are_for_the_arms_of_the_headline_that_they_name():
    page = """
run = { steps = 5, lr = 0.1, schedule = ["step", "constant"] }
untuned = { lr = { sgd = 0.01, adam = 0.001 }, threshold = { norm = 1.0 } }
workload = [{ name = "wdbc" }]
optimizer = [{ name = "sgd" }, { name = "adam" }, { name = "rmsprop" }]
clip = [
  { name = "none" }, { name = "norm", max_norm = [0.1, 2.0] }, { name = "value", max_value = 0.1 }
]
"""
    parsed = study.parse("page", page, Path())
    said = plans.untuned(parsed.document.untuned, parsed.cells())
    assert said["points"] == {
        "sgd(schedule=step)": {"lr": 0.01},
        "sgd(schedule=step) + norm": {"lr": 0.01, "threshold": 1.0},
        "adam(schedule=step)": {"lr": 0.001},
        "adam(schedule=step) + norm": {"lr": 0.001, "threshold": 1.0},
    }
    assert said["arms"] == list(said["points"])
