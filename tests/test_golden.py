"""The first losses of every packaged component, as they were when its version was counted last.

The numbers lie in golden.json. Where one moves, the component's version has to move with it, or
stored cells would be compared with cells of another mathematics under the same name. `python
tests/test_golden.py` records them anew; it refuses to do so for a component whose numbers moved and
whose version did not.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import packaged
import pytest
import torch

from clipbench import clips, feed, optimizers, registry, workloads
from clipbench.cell import Cell, Part
from clipbench.engines import Components, Job, Trainer
from clipbench.measures import LOSS
from clipbench.workloads import text

__all__ = ["clips", "optimizers", "workloads"]  # imported because that registers them

FILE = Path(__file__).with_name("golden.json")
STEPS, FEW = 20, 3  # origin takes 40 ms a step
TOLERANCE = 1e-9  # processors round differently in the last digits

# workload, optimizer, clip, lr, steps: every workload under something typical, every optimizer and
# every clip at least once
CASES = {
    "wdbc, rmsprop": ("wdbc", "rmsprop", ("none", {}), 0.003, STEPS),
    "wdbc, adam + norm": ("wdbc", "adam", ("norm", {"max_norm": 0.3}), 0.01, STEPS),
    "digits, momentum + value": ("digits", "momentum", ("value", {"max_value": 0.01}), 0.03, STEPS),
    "digits, adamw + layer": ("digits", "adamw", ("layer", {"max_norm": 0.1}), 0.01, STEPS),
    "temporal-order, sgd + norm": (
        "temporal-order",
        "sgd",
        ("norm", {"max_norm": 0.3, "norm_type": "inf"}),
        0.3,
        STEPS,
    ),
    "cosh, nesterov + norm": ("cosh", "nesterov", ("norm", {"max_norm": 100.0}), 0.003, STEPS),
    "wdbc, sgd + adaptive": ("wdbc", "sgd", ("adaptive", {}), 0.3, STEPS),
    "wdbc, momentum + normalised": ("wdbc", "momentum", ("normalised", {}), 0.01, STEPS),
    "digits, sgd + block-rms": ("digits", "sgd", ("block-rms", {"max_rms": 1e-3}), 0.3, STEPS),
    "wdbc, momentum + quantile": ("wdbc", "momentum", ("quantile", {"window": 9}), 0.03, STEPS),
    "wdbc, adam + adagc": ("wdbc", "adam", ("adagc", {"warmup": 5}), 0.01, STEPS),
    "cliff, sgd + norm": ("cliff", "sgd", ("norm", {"max_norm": 0.1}), 0.5, STEPS),
    "heavy-tails, sgd + norm": ("heavy-tails", "sgd", ("norm", {"max_norm": 10.0}), 1e-3, STEPS),
    "label-noise, sgd": ("label-noise", "sgd", ("none", {}), 1.0, STEPS),
    "clipping-bias, sgd + norm": ("clipping-bias", "sgd", ("norm", {"max_norm": 1.0}), 0.1, STEPS),
    "sign-bias, sgd + value": ("sign-bias", "sgd", ("value", {"max_value": 0.5}), 0.0025, STEPS),
    "non-smooth, sgd + norm": ("non-smooth", "sgd", ("norm", {"max_norm": 0.5}), 0.01, STEPS),
    "phantom, nesterov + norm": ("phantom", "nesterov", ("norm", {"max_norm": 1.0}), 0.03, FEW),
    "lesions, momentum + norm": ("lesions", "momentum", ("norm", {"max_norm": 0.5}), 0.03, FEW),
    "text, adam + norm": ("text", "adam", ("norm", {"max_norm": 0.3}), 0.01, STEPS),
    "tissue, adam": ("tissue", "adam", ("none", {}), 0.003, FEW),
    "origin, momentum + value": ("origin", "momentum", ("value", {"max_value": 0.01}), 0.01, FEW),
}
CASES |= {
    f"wdbc, sgd + {clip}": ("wdbc", "sgd", (clip, settings), 0.3, STEPS)
    for clip, settings in packaged.CLIPS.items()
    if clip not in {clip for *_, (clip, _), _, _ in CASES.values()}
}


def cell(case):
    problem, rule, (method, settings), lr, steps = CASES[case]
    threshold = registry.threshold_field(registry.find("clip", method))
    return Cell(
        Part(problem, registry.find("workload", problem).version),
        Part(rule, registry.find("optimizer", rule).version),
        Part(method, registry.find("clip", method).version, settings, threshold),
        lr, seed=0, steps=steps, batch=16, dtype="float64", evaluations=1,
    )  # fmt: skip


def losses(case):
    one = cell(case)
    trainer = Trainer(Components.of(Job(one, one.clip_settings())), one)
    for batch in feed.batches(trainer.workload, one.seed, one.batch, one.steps, trainer.dtype):
        trainer.step(*batch)
    return trainer.meter.rows()[:, LOSS].tolist()


def differences(case, stored):
    """What is wrong with one case, as sentences: another cell than the stored one, or other
    losses.
    """
    document, found = cell(case).document(), losses(case)
    if stored is None:
        return [f"{case}: nothing is recorded; run `python tests/test_golden.py`."]
    if document != stored["cell"]:
        return [
            (
                f"{case}: the recorded cell is another one; if that is meant, run `python "
                f"tests/test_golden.py`."
            )
        ]
    pairs = zip(found, stored["losses"], strict=True)
    moved = [
        step for step, (new, old) in enumerate(pairs) if new != pytest.approx(old, rel=TOLERANCE)
    ]
    if not moved:
        return []
    step, names = moved[0], ", ".join(document[kind]["name"] for kind in registry.KINDS)
    sentence = (
        f"{case}: from step {step} on the losses moved ({stored['losses'][step]!r} became "
        f"{found[step]!r}). Undo the change, or raise `version` of the component whose "
        f"mathematics changed ({names}) and run `python tests/test_golden.py`."
    )
    return [sentence]


def recorded():
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


@pytest.mark.parametrize("case", CASES)
def test_the_first_losses_are_those_of_this_version(case):
    """In float64, to nine digits."""
    if case.startswith("text") and registry.find("workload", "text").version != text.VERSION:
        pytest.skip("this Python has another text in its help topics")
    wrong = differences(case, recorded().get(case))
    assert not wrong, wrong[0]


def test_every_packaged_component_is_recorded():
    cells = [cell(case).document() for case in CASES]
    for kind in registry.KINDS:
        ours = set(packaged.names(kind))
        # whose data is not always here
        assert {document[kind]["name"] for document in cells} == ours - {"medmnist"}


def test_nothing_is_recorded_that_no_case_asks_for():
    assert recorded().keys() == CASES.keys()


def test_losses_that_moved_are_told_with_the_way_out():
    """By a billionth and a bit, at one step only."""
    case = "cosh, nesterov + norm"
    stored = recorded()[case]
    stored["losses"][7] *= 1 + 3 * TOLERANCE
    [sentence] = differences(case, stored)
    assert "from step 7 on" in sentence
    assert (
        "Undo the change, or raise `version` of the component whose mathematics changed (cosh, "
        "nesterov, norm)"
    ) in sentence


def test_a_new_version_asks_to_be_recorded():
    case = "cosh, nesterov + norm"
    stored = recorded()[case]
    stored["cell"]["optimizer"]["version"] -= 1
    assert "run `python tests/test_golden.py`" in differences(case, stored)[0]


# Processors that this one can be asked to act as: what each library is told → a word in what it
# then says of itself. All of them at once, as on such a processor; each is a claim of its own, for
# one of them may not be in force here.
PROCESSORS = {
    "old": {
        "MKL_CBWR=COMPATIBLE": "CNR:COMPATIBLE",
        "ATEN_CPU_CAPABILITY=default": "ATen:DEFAULT",
        "ONEDNN_MAX_CPU_ISA=SSE41": "isa:Intel SSE4.1",
    },
    "with AVX2": {
        "MKL_CBWR=AVX2": "CNR:AVX2",
        "ATEN_CPU_CAPABILITY=avx2": "ATen:AVX2",
        "ONEDNN_MAX_CPU_ISA=AVX2": "isa:Intel AVX2",
    },
    "of two threads": {"OMP_NUM_THREADS=2": "threads:2"},
}
VARIANTS = {
    variant: processor for processor, variants in PROCESSORS.items() for variant in variants
}


@pytest.fixture(scope="module")
def losses_on(tmp_path_factory):
    """``losses_on(processor)``: what the libraries said, and the losses of every case, from a
    process of its own, once.
    """
    folder = tmp_path_factory.mktemp("processors")

    @cache
    def told_and_found(processor):
        told = dict(variant.split("=") for variant in PROCESSORS[processor])
        command = [
            sys.executable,
            __file__,
            str(folder / f"{processor}.json"),
            told.get("OMP_NUM_THREADS", "1"),
        ]
        env = os.environ | told | {"ONEDNN_VERBOSE": "1"}
        said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
        return said, json.loads((folder / f"{processor}.json").read_text(encoding="utf-8"))

    return told_and_found


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_losses_do_not_depend_on_the_processor(variant, losses_on):
    """As far as one processor can be asked to act as another; a variant that is not in force
    here proves nothing.
    """
    processor = VARIANTS[variant]
    told, found = losses_on(processor)
    if PROCESSORS[processor][variant] not in told:
        pytest.skip(f"{variant} is not in force on this processor")
    wrong = [
        case
        for case, row in found.items()
        if row != pytest.approx(recorded()[case]["losses"], rel=TOLERANCE)
    ]
    assert not wrong, (
        f"on a processor {processor} ({', '.join(PROCESSORS[processor])}) other losses come of "
        f"{'; '.join(wrong)}"
    )


def on_a_processor(file, threads):
    """The losses of every case into ``file``; what the libraries run on is printed."""
    torch.set_num_threads(threads)
    with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):
        torch.eye(4, dtype=torch.float64) @ torch.eye(4, dtype=torch.float64)
    # large enough for oneDNN
    torch.nn.functional.conv2d(torch.ones(16, 16, 32, 32), torch.ones(16, 16, 3, 3))
    sys.stdout.write(
        f"ATen:{torch.backends.cpu.get_cpu_capability()} threads:{torch.get_num_threads()}\n"
    )
    cases = [
        case
        for case in CASES
        if not case.startswith("text") or registry.find("workload", "text").version == text.VERSION
    ]
    Path(file).write_text(json.dumps({case: losses(case) for case in cases}), encoding="utf-8")


def main():
    """Record anew what is new, has another version, or another cell; refuse where only the
    numbers moved.
    """
    torch.set_num_threads(1)
    old = recorded()
    moved = [
        one
        for case in CASES
        if case in old
        for one in differences(case, old[case])
        if "losses moved" in one
    ]
    if moved:
        sys.exit("\n".join(moved))
    page = {case: {"cell": cell(case).document(), "losses": losses(case)} for case in CASES}
    FILE.write_text(json.dumps(page, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    on_a_processor(sys.argv[1], int(sys.argv[2])) if sys.argv[1:] else main()
