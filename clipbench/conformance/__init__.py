"""The claims that every component must keep, a user-defined one included: each is kept or broken,
and none crashes.

Inputs are small and random, from seeded generators; every claim hands the component copies, so that
one fault breaks one claim. Numbers are compared in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from clipbench import registry, trees
from clipbench.conformance import clipping, device, lanes, rules, workloads
from clipbench.conformance.findings import Doubt, Fault, one_thread, told
from clipbench.conformance.settings import UNCLIPPED, settings_validate
from clipbench.errors import counted
from clipbench.registry import Kind

Test = Callable[[type[Any]], str | None]


@dataclass(frozen=True)
class Check:
    """One claim about one component; ``detail`` says how it is broken, or what is worth knowing
    although it is kept. A ``doubtful`` one is kept, and results may still mislead.
    """

    claim: str
    passed: bool
    detail: str = ""
    doubtful: bool = False


PURE: dict[str, Test] = {
    "no global random state": rules.draws_nothing,
    "no in-place change of its inputs": rules.changes_nothing_in_place,
    "update under vmap equals the loop": rules.lanes_agree,
    "as one vector, updates as it does as named tensors": rules.flat_agrees,
}
SETTINGS = "settings validate"
ANSWERS = "update returns a tree and a state"
CLIPS = "clips at some threshold"
LARGER = "a larger threshold keeps no less"
UNITS = "clips alike in another unit of the gradient"
HOOKS = "hooks present"
SPLITS = "splits present, inputs and targets alike in number"
START = "loss and gradient finite at the start"
DEVICE = "works on a device"
# without one of these the claims after it have nothing to look at
GROUND = (SETTINGS, ANSWERS, HOOKS, SPLITS, START)
CLAIMS: dict[Kind, dict[str, Test]] = {
    "clip": {
        SETTINGS: settings_validate,
        ANSWERS: rules.answers,
        "shapes and dtypes kept": rules.shapes_kept,
        CLIPS: clipping.clips_somewhere,
        LARGER: clipping.larger_keeps_no_less,
        "treats a gradient and its opposite alike": clipping.signs_alike,
        UNITS: clipping.units_kept,
        "never lengthens": rules.never_lengthens,
        "zero stays zero and finite": rules.zero_stays_zero,
        "turns no sign, though a norm overflows": rules.signs_kept,
        "clips again after a gradient out of range": rules.clips_again,
        "hides no divergence": rules.divergence_shown,
        **PURE,
        "clip_ equals update": rules.in_place_equals_update,
        "size is one number": rules.size_is_a_number,
        DEVICE: device.works,
    },
    "optimizer": {
        SETTINGS: settings_validate,
        ANSWERS: rules.answers,
        "shapes and dtypes kept": rules.shapes_kept,
        "finite on a zero gradient": rules.finite_on_zero,
        **PURE,
        "torch equals update": rules.torch_equals_update,
        DEVICE: device.works,
    },
    "workload": {
        SETTINGS: settings_validate,
        HOOKS: workloads.hooks_present,
        SPLITS: workloads.splits_match,
        START: workloads.finite_start,
        "no global random state": workloads.draws_nothing,
        "every split finite, and the first loss on it": workloads.splits_finite,
        "a batch in parts adds up to the whole, or says why not": workloads.parts_add_up,
        "the seed decides weights and batches": workloads.seeds_decide,
        "batches drawn together are those drawn one by one": workloads.draws_alike,
        "the metric is a number": workloads.metric_is_a_number,
        "reference_loss declared": workloads.reference_declared,
        "runs are judged by the metric, or it says why not": workloads.judged_by_metric,
        DEVICE: device.works,
        "runs in lanes, or says why not": lanes.refused,
        "a step in lanes is the loop's": lanes.step_locked,
        "a run in lanes is the loop's": lanes.free_running,
        "a program of this machine is the loop": lanes.native_steps,
    },
}
OPTIONAL = {
    "as one vector, updates as it does as named tensors": "flat",
    "clip_ equals update": "clip_",
    "size is one number": "size",
    "torch equals update": "torch",
}  # claim → hook
# What a component that keeps every claim may still do wrong.
UNTESTED: dict[Kind, str] = {
    "clip": (
        "that the threshold is cut at exactly, that the rule is the one you mean, dtypes other "
        "than float32 and float64, numbers of a GPU, torch.compile, sharded tensors, speed, and "
        "whether training gets better"
    ),
    "optimizer": (
        "that the rule is the one you mean, that it learns, dtypes other than float32 and "
        "float64, numbers of a GPU, torch.compile, sharded tensors, and speed"
    ),
    "workload": (
        "that the data and its labels are right, that the model learns, dtypes other than float32 "
        "and float64, numbers of a GPU, and speed"
    ),
}


def conform(kind: Kind, name: str) -> list[Check]:
    """Every claim that the component must keep, in order, up to one without which those after it
    cannot be judged; if there are such, it says how many.

    :raises UsageError: no such component, or a workload whose data is not there.
    """
    cls = registry.find(kind, name)
    if kind == "workload":
        registry.ready(name, {})
    asked = {
        claim: test
        for claim, test in CLAIMS[kind].items()
        if claim not in OPTIONAL or hasattr(cls, OPTIONAL[claim])
    }
    if kind == "clip":
        if not registry.threshold_field(cls):
            del asked[LARGER], asked[UNITS]
        if name == UNCLIPPED:
            del asked[CLIPS]
    if kind == "optimizer" and hasattr(cls, "torch") and not hasattr(cls, "update"):
        asked = {claim: asked[claim] for claim in (SETTINGS, "torch equals update", DEVICE)}
    # Seeded and put back: a component that draws from the global random state does not move the
    # caller's. In one thread, as the workers train.
    with trees.seeded("conformance", 0, name), one_thread():
        checks: list[Check] = []
        for claim, test in asked.items():
            checks.append(_check(claim, test, cls))
            if claim in GROUND and not checks[-1].passed:
                checks[-1] = _alone(checks[-1], len(asked) - len(checks))
                break
        return checks


def _alone(check: Check, others: int) -> Check:
    """A broken claim without which the others cannot be judged."""
    said = f"{check.detail}; not judged for it: {counted(others, 'claim')}" if others else ""
    return replace(check, detail=said or check.detail)


def _check(claim: str, test: Callable[[type[Any]], str | None], cls: type[Any]) -> Check:
    try:
        return Check(claim, passed=True, detail=test(cls) or "")
    except Doubt as doubt:
        return Check(claim, passed=True, detail=str(doubt), doubtful=True)
    except Fault as fault:
        return Check(claim, passed=False, detail=str(fault))
    except Exception as error:  # noqa: BLE001 - a user-defined component may raise anything
        return Check(claim, passed=False, detail=told(error))
