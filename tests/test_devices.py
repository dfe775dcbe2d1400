"""The CPU against a CUDA device: what agrees, what parts, and whether rounding explains it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import synthetic
from executors import InProcess
from pages import study_page

from clipbench import protocol, registry, report
from clipbench import study as pages
from clipbench.analysis import devices as analysis
from clipbench.cell import Cell, Part
from clipbench.conformance import lanes
from clipbench.conformance.pretended import pretended
from clipbench.engines import Job
from clipbench.execute import machine
from clipbench.report import devices, evidence, parts
from clipbench.schema import Verdict
from clipbench.store import Store
from clipbench.tolerance import along

BOTH = ({"device": "cpu", "dtype": "float64"}, {"device": "cuda", "dtype": "float64"})
CALM = np.linspace(2.0, 1.0, 60)  # a loss that falls


def on_cuda(one, disturb=lambda loss: loss, kind="learned", **overrides):
    """The rows of a CUDA cell: those of the same cell on the CPU, its loss disturbed."""
    made = synthetic.rows(replace(one, device="cpu"), kind, **overrides)
    loss = disturb(np.array([row["loss"] for row in made["curves"]]))
    row = {**made["cells"][0], "device": "cuda", "settings": one.canonical, "environment": "e2"}
    for row_of_step, value in zip(made["curves"], loss, strict=True):
        row_of_step["loss"] = float(value)
    named = {"cells": [row], **{name: made[name] for name in ("curves", "evals", "events")}}
    return {
        name: [{**each, "cell": one.id} for each in of_table] for name, of_table in named.items()
    }


def study(folder, cuda=on_cuda, cpu=lambda one: synthetic.rows(one, "learned"), **about):
    """A study of one problem and one clip on both devices; ``cuda`` and ``cpu`` make a cell's
    rows.
    """
    about = {"variants": BOTH, "report": 4, "with_throughput": False, **about}
    store = synthetic.build(
        folder,
        optimizers=("sgd",),
        clips=("none", "norm"),
        relative=(1.0,),
        change=lambda one: (cuda if one.device == "cuda" else cpu)(one),
        **about,
    )
    page = store.page("environment")
    page["environments"] |= {
        "e1": {**synthetic.ENVIRONMENT, "processor": "Xeon"},
        "e2": {**synthetic.ENVIRONMENT, "processor": "Xeon", "cuda": {"device": "H100"}},
        "e3": {**synthetic.ENVIRONMENT, "processor": "Xeon", "cuda": {"device": "T4"}},
    }
    store.write_page("environment", page)
    return store


def told(store):
    """The section's words, and its tables by name."""
    found = list(parts.flattened(devices.section(evidence.read(store)).parts))
    words = " ".join(part.words for part in found if isinstance(part, parts.Text))
    return words, {part.name: part for part in found if isinstance(part, parts.Table)}


def shown(table):
    """The rows as dicts; a head that stands twice has its last value."""
    return [dict(zip(table.head, row, strict=True)) for row in table.rows]


# ------------------------------------------------------------------------------------------- curves


def test_two_devices_with_the_same_curves_agree_in_everything(tmp_path):
    words, tables = told(study(tmp_path / "s"))
    n = 2 * 6 * 7  # arms, learning rates, seeds: all are in the headline's reading
    assert f"{n} pairs of cells are alike in everything but the device" in words
    assert "none like them" not in words
    assert f"Of {n} pairs {n} can be compared step by step." in words
    assert f"In {n} of {n} the losses stay within 1e−8 at every step (0 at most)." in words
    assert f"{n} of {n} pairs end alike." in words
    assert "On CUDA, 1 of 1 comparisons have the same words. Of 1 that are decided in both" in words
    assert "none turns" in words
    assert "at once" not in words
    assert "devices-parted" not in tables


def jolted(step, share):
    def disturb(loss):
        return loss * (1 + share * (np.arange(len(loss)) >= step))

    return disturb


def grown(loss):
    """From rounding, by a factor of three a step."""
    return loss + loss[0] * np.minimum(1e-15 * 3.0 ** np.arange(len(loss)), 0.1)


KINDS = {  # what disturbs the loss → within the bound, grown apart, apart at once
    "nothing": (lambda loss: loss, (1, 0, 0)),
    "rounding": (lambda loss: loss * (1 + 1e-15), (1, 0, 0)),
    "rounding that grows": (grown, (0, 1, 0)),
    "a jolt at step 1": (jolted(1, 1e-3), (0, 0, 1)),
    "a jolt in the middle": (jolted(40, 1e-6), (0, 0, 1)),
    "a small fault that was there from the first step on": (
        lambda loss: loss * (1 + 1e-11 * 1.5 ** np.arange(len(loss))),
        (0, 0, 1),
    ),
    "a value that is not finite": (
        lambda loss: np.where(np.arange(len(loss)) == 30, np.nan, loss),
        (0, 0, 1),
    ),
    "an end that comes too early": (lambda loss: loss[:30], (0, 0, 1)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_rounding_does_is_told_from_what_it_does_not(kind):
    disturb, expected = KINDS[kind]
    judged = analysis._judged(CALM, disturb(CALM), "float64")
    parted, at_once = not np.isnan(judged["parted"]), judged["at_once"]
    assert (not parted, parted and not at_once, at_once) == tuple(map(bool, expected))
    assert not analysis._judged(CALM, disturb(CALM), "float32")["at_once"]


def test_a_loss_that_blows_up_may_part_in_one_step():
    hot = CALM * 100.0 ** np.arange(60)
    assert not analysis._judged(hot, jolted(3, 1e-3)(hot), "float64")["at_once"]


def test_two_runs_that_leave_finite_numbers_at_the_same_step_are_not_apart():
    ends = np.array([1.0, -1e308, np.inf, np.nan])
    assert along(ends, ends).tolist() == [0, 0, 0, 0]
    assert along(ends, np.array([1.0, 1e308, np.inf])).tolist() == [0, np.inf, 0, np.inf]


def test_a_difference_is_a_share_of_the_largest_loss_until_then():
    falling, rising = np.array([2.0, 1.0, 0.5]), np.array([1.0, 10.0, 1e6])
    assert along(falling, falling + 0.2) == pytest.approx([0.1, 0.1, 0.1])
    assert along(rising, rising + 0.2) == pytest.approx([0.2, 0.02, 2e-7])


def test_rounding_made_on_purpose_parts_no_run_at_once(whole):
    """The weights of a run are moved by 1e-15 of themselves, in float64: 100 steps at learning
    rates up to those that diverge.
    """
    registry.load_packaged()
    problems = ("wdbc", "digits", "temporal-order", "cosh", "heavy-tails", "label-noise")
    problems += ("non-smooth", "sign-bias", "cliff")
    lrs = {"sgd": (0.03, 0.3, 1.0, 3.0, 30.0), "momentum": (0.03, 0.3, 3.0)}
    lrs |= dict.fromkeys(("rmsprop", "adamw"), (0.003, 0.03, 0.3))
    clips = {"none": {}, "norm": {"max_norm": 0.1}, "value": {"max_value": 0.01}}
    if not whole:
        problems, lrs, clips = ("temporal-order",), {"rmsprop": (0.3,)}, dict([*clips.items()][:2])
    judged = []
    for seed, problem, (optimizer, rates), (clip, settings) in itertools.product(
        (1, 2, 3) if whole else (1,), problems, lrs.items(), clips.items()
    ):
        for lr in rates:
            names = Part(problem, 1), Part(optimizer, 1)
            part = Part(clip, 1, settings, next(iter(settings), None))
            job = Job(
                Cell(*names, part, lr, seed, lanes.STEPS, 32, dtype="float64"), dict(settings)
            )
            here, there = (lanes._curve(job, moved) for moved in (0.0, lanes.DISTURBANCE))
            judged.append(analysis._judged(here, there, "float64"))
    parted = [one for one in judged if not np.isnan(one["parted"])]
    assert len(parted) >= (100 if whole else 1)
    assert not any(one["at_once"] for one in parted)


def test_the_section_counts_what_grew_apart_and_names_what_parted_at_once(tmp_path):
    disturbed = {1000: grown, 1001: jolted(1, 1e-3), 1002: lambda loss: loss * (1 + 1e-15)}

    def cuda(one):
        hit = one.lr == 0.1 and one.clip.name == "norm"
        return on_cuda(one, disturbed.get(one.seed, lambda loss: loss) if hit else lambda x: x)

    words, tables = told(study(tmp_path / "s", cuda))
    assert "In 82 of 84 the losses stay within 1e−8 at every step" in words
    assert "2 pairs part by more: the first at step 1, the median at step 8." in words
    assert "**1 pair parts at once**: rounding does not explain it." in words
    [row] = shown(tables["devices-curves"])
    assert (row["pairs"], row["within it"], row["grown apart"]) == ("84", "82", "1")
    assert (row["apart at once"], row["part at step, first"]) == ("1", "1")
    assert "CPU: Xeon (environment e1); CUDA: H100 (environment e2)" in (
        tables["devices-curves"].caption
    )
    first, second = shown(tables["devices-parted"])
    assert (first["seed"], first["parts at step"]) == ("report 1001", "1 (at once)")
    assert (second["seed"], second["parts at step"]) == ("report 1000", "15")


def test_in_float32_the_steps_are_told_and_no_fault_is_claimed(tmp_path):
    def cuda(one):
        return on_cuda(one, jolted(1, 0.01) if one.seed == 1001 else lambda loss: loss * (1 + 2e-7))

    variants = ({"device": "cpu"}, {"device": "cuda"})
    words, tables = told(study(tmp_path / "s", cuda, variants=variants))
    assert "the first losses, from equal weights, are 2e−7 apart in the median" in words
    assert "In 72 of 84 the losses stay within 0.001 at every step" in words
    assert "12 pairs part by more: the first at step 1" in words
    assert "cannot be told in float32" in words
    assert shown(tables["devices-curves"])[0]["apart at once"] == "–"


def test_curves_that_are_not_kept_are_counted_and_nothing_is_said_of_them(tmp_path):
    words, tables = told(study(tmp_path / "s", curves="report"))
    assert "Of 84 pairs 48 can be compared step by step." in words
    assert "Of 36 this folder does not keep both curves" in words
    words, tables = told(study(tmp_path / "t", curves="report", report=0))
    assert "Of 36 pairs 0 can be compared step by step." in words
    assert "36 of 36 pairs end alike." in words
    assert "devices-curves" not in tables


# ------------------------------------------------------------------------- outcomes and verdicts


def test_runs_that_end_otherwise_fail_or_have_no_partner_are_counted_apart(tmp_path):
    nothing = {"cells": [], "curves": [], "evals": [], "events": []}

    def cuda(one):
        if one.lr != 0.3 or one.clip.name == "norm":
            return on_cuda(one)
        named = {"cell": one.id, "device": "cuda", "environment": "e2", "settings": one.canonical}
        failed = synthetic.failed(one)
        failed["cells"][0] |= named
        other = on_cuda(one, kind="collapsed")
        return {1000: other, 1001: failed, 1002: nothing}.get(one.seed, on_cuda(one))

    words, tables = told(study(tmp_path / "s", cuda))
    assert "83 pairs of cells" in words
    assert "1 cell of the CPU and 0 of CUDA have none like them on the other device" in words
    assert "Of 83 pairs 82 can be compared step by step. In 1 a run failed." in words
    assert "81 of 83 pairs end alike, **2** otherwise." in words
    [row] = shown(tables["devices-outcomes"])
    assert row == {
        "on the CPU": "learned",
        "collapsed on CUDA": "1",
        "failed on CUDA": "1",
        "learned on CUDA": "81",
    }


def valued(better):
    def columns(one):
        clipped = one.clip.name == "norm"
        value = 0.9 + better * clipped + 1e-3 * (one.seed * (3 if clipped else 1) % 7)
        return {"best_metric": value, "metric_value": value}

    return columns


def test_a_verdict_that_turns_between_the_devices_is_said_to(tmp_path):
    def cuda(one):
        return on_cuda(one, **valued(-0.05)(one))

    def cpu(one):
        return synthetic.rows(one, "learned", **valued(0.05)(one))

    words, tables = told(study(tmp_path / "s", cuda, cpu))
    assert "On CUDA, 0 of 1 comparisons have the same words." in words
    assert "Of 1 that are decided in both **1 turns**" in words
    [row] = tables["devices-verdicts-digits"].rows
    assert row[-2:] == [str(Verdict.BETTER), f"{Verdict.WORSE} (turned)"]


def test_a_pair_whose_pilots_gave_other_thresholds_is_no_difference_of_curves(tmp_path):
    def cuda(one):
        about = {} if one.clip.name == "none" else {"threshold": 0.301}
        return on_cuda(one, jolted(1, 0.1) if about else lambda loss: loss, **about)

    words, _ = told(study(tmp_path / "s", cuda))
    assert "In 42 the clip has another threshold on each device" in words
    assert "Of 84 pairs 42 can be compared step by step." in words
    assert "at once" not in words


# -------------------------------------------------------------------------------------------- speed


def test_times_are_ratios_with_the_machine_of_each_and_two_gpus_have_tables_of_their_own(tmp_path):
    def cuda(one):
        gpu, spent = ("e3", 0.4) if one.seed == 1000 else ("e2", 0.02)
        made = on_cuda(one, seconds=spent)
        return {**made, "cells": [{**row, "environment": gpu} for row in made["cells"]]}

    store = study(tmp_path / "s", cuda, with_throughput=True)
    for gpu, faster in (("e2", 0.1), ("e3", 2.0)):
        timed = synthetic.timing("digits", "sgd", {"none": faster, "norm": faster})
        about = {"dtype": "float32", "device": "cuda", "environment": gpu}
        store.add_throughput([{**row, **about} for row in timed])
    words, tables = told(store)
    first, second = (tables[name] for name in ("devices-seconds", "devices-seconds-2"))
    assert "H100 (environment e2)" in first.caption
    assert "T4 (environment e3)" in second.caption
    assert shown(first)[0]["pairs"] == "72"
    assert shown(first)[0]["CUDA / CPU [95 %]"] == "0.20 [0.20, 0.20]"
    assert shown(second)[0]["CUDA / CPU [95 %]"] == "4.00 [4.00, 4.00]"
    first, second = (tables[name] for name in ("devices-throughput", "devices-throughput-2"))
    assert [row["CUDA / CPU"] for row in shown(first)] == ["0.10", "0.09"]
    assert "T4 (environment e3)" in second.caption
    assert shown(second)[0]["CUDA / CPU"] == "2.00"
    assert "timed apart, with nothing else running" in words


# --------------------------------------------------------------------------------------------- page


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_study_of_one_device_has_no_such_section(tmp_path, device):
    """Though its plan may name cells of the other one that were not run."""
    store = study(tmp_path / "s", variants=({"device": device},))
    assert store.page("plan")["not_run"]
    assert devices.section(evidence.read(store)).parts == []


def test_devices_without_a_pair_are_said_to_have_none(tmp_path):
    """Such as a study that has another dtype on each."""
    variants = ({"device": "cpu", "dtype": "float64"}, {"device": "cuda", "dtype": "float32"})
    words, tables = told(study(tmp_path / "s", variants=variants))
    assert "0 pairs of cells are alike in everything but the device" in words
    assert "84 cells of the CPU and 84 of CUDA have none like them on the other device" in words
    assert not tables


def test_a_study_run_on_a_pretended_device_agrees_with_the_cpu_to_the_last_digit(tmp_path):
    registry.load_packaged()
    about = {"steps": 4, "batch": 16, "evaluations": 1, "lr": [0.1], "dtype": "float64"}
    text = study_page("wdbc", clips={"norm": {"percentile": 90}}, device=["cpu", "cuda"], **about)
    with pretended(), InProcess() as executor:
        executor.here = machine.environment("cuda")
        page = pages.parse("both", text, tmp_path)
        store = Store.create(tmp_path / "both", page.name, page.text)
        options = protocol.Options(throughput=False, engine="loop")
        with store.claim():
            protocol.run(page, store, options, protocol.Silent(), executor)
    words, tables = told(store)
    assert "1 pair of cells is alike in everything but the device" in words
    assert "In 1 of 1 the losses stay within 1e−8 at every step (0 at most)." in words
    assert "1 of 1 pair end alike." not in words
    assert "CUDA: pretended (environment " in tables["devices-curves"].caption


@pytest.mark.usefixtures("undrawn")
def test_the_page_has_the_section_and_its_tables_as_files(tmp_path):
    store = study(tmp_path / "s")
    written = {path.name for path in report.write(store, ("html", "md", "csv", "tex"))}
    assert {"devices-curves.csv", "devices-outcomes.csv", "devices-verdicts-digits.tex"} <= written
    page = (store.folder / "report" / "report.html").read_text(encoding="utf-8")
    assert 'id="devices"' in page
    assert "CPU against CUDA" in page
