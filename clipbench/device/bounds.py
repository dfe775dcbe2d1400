"""What a CUDA device should reach, each bound judged from numbers that were seen.

It measures nothing; why the numbers are what they are is told in ``docs/gpu.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipbench.analysis.implementations import implementations
from clipbench.device.folder import BOUNDS, read_json
from clipbench.errors import UsageError
from clipbench.store import Store

OURS = ("fast", "flat")  # implementations that must not wait; torch's own may
FLAT = "flat"
LARGE = 10**7  # parameters, from which on a clip and a step should be near the floor
FLOOR, FASTER, FEWEST_LANES, EVALUATING = 0.8, 50.0, 256, 0.05

NOT_HERE = "not judged: bounds are for CUDA"
NOT_YET = "not measured yet"
HOLDS, BROKEN = "holds", "does not hold"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Bound:
    """One bound: what must be, the number that was seen, None if none was, and where.

    ``holds`` is None if it is not judged; ``verdict`` says it in words.
    """

    name: str
    claim: str
    must: str
    seen: float | None
    where: str
    holds: bool | None = None
    verdict: str = NOT_YET


def of_folder(folder: Path, device: str) -> list[dict[str, Any]]:
    """All bounds, from what the steps have left in the folder."""
    try:
        timed = implementations(Store(folder / "quick").read("throughput"))
    except UsageError:  # no results there yet
        rows: list[dict[str, Any]] = []
    else:
        rows = [{str(name): one for name, one in row.items()} for row in timed.to_dict("records")]
    return [asdict(one) for one in judged(rows, read_json(folder / BOUNDS), device)]


def judged(rows: Sequence[Row], measured: Mapping[str, Any], device: str) -> list[Bound]:
    """The five bounds.

    :param rows: of `analysis.implementations`.
    :param measured: what `measuring.bounds` gives.
    """
    mine = [row for row in rows if row["part"] == "update" and row["device"] == device]
    clipped = [row for row in mine if row["clip"] != "none"]
    return [
        _waits(clipped, device),
        _kernels(measured.get("kernels", {}), device),
        _floor(clipped, device),
        _lanes(measured, device),
        _evaluations(measured.get("evaluations", {}), device),
    ]


def _bound(
    name: str,
    claim: str,
    must: str,
    seen: float | None,
    where: str,
    holds: Callable[[float], bool],
    device: str,
) -> Bound:
    known = seen is not None and not math.isnan(seen)
    if device != "cuda":
        return Bound(name, claim, must, seen if known else None, where, None, NOT_HERE)
    if seen is None or not known:
        return Bound(name, claim, must, None, where)
    answer = holds(seen)
    return Bound(name, claim, must, seen, where, answer, HOLDS if answer else BROKEN)


def _waits(clipped: Sequence[Row], device: str) -> Bound:
    ours = [
        row
        for row in clipped
        if row["implementation"] in OURS and _number(row["synchronisations"]) is not None
    ]
    worst = max(ours, key=lambda row: row["synchronisations"], default=None)
    return _bound(
        "waits",
        "the host does not wait for the device in a clip and a step",
        "0",
        None if worst is None else float(worst["synchronisations"]),
        "the step throughput"
        if worst is None
        else f"the most of {len(ours)} timings of {' and '.join(OURS)}: {_method(worst)}",
        lambda seen: seen == 0,
        device,
    )


def _kernels(taken: Mapping[str, Any], device: str) -> Bound:
    grown, told = [], []
    for implementation, clips in taken.items():
        for clip, of in clips.items():
            few, many = (of[tensors] for tensors in sorted(of, key=int))
            told.append(f"{implementation} + {clip} {few} → {many}")
            if implementation == FLAT and None not in (few, many):
                grown.append(abs(many - few))
    tensors = " and ".join(sorted({one for clips in taken.values() for of in clips.values()
                                   for one in of}, key=int))  # fmt: skip
    counted = f"kernels at {tensors} tensors: {', '.join(told)}" if device == "cuda" else ""
    return _bound(
        "kernels",
        "a clip and a step over flat memory take as many kernels for many tensors as for few",
        "0 more",
        float(max(grown)) if grown else None,
        counted or ("kernels are counted on CUDA only" if taken else "the step bounds"),
        lambda seen: seen == 0,
        device,
    )


def _floor(clipped: Sequence[Row], device: str) -> Bound:
    best: dict[tuple[str, ...], Row] = {}
    large = [
        row
        for row in clipped
        if row["parameters"] >= LARGE
        and _number(row["share"]) is not None
        and row["clip"] in ("value", "norm")
    ]
    for row in large:
        key = (row["size"], row["optimizer"], row["clip"], str(row["threads"]))
        if key not in best or row["share"] > best[key]["share"]:
            best[key] = row
    worst = min(best.values(), key=lambda row: float(row["share"]), default=None)
    return _bound(
        "floor",
        "a clip and a step of 10 M parameters and more, in the best implementation, are near the "
        "time in which the least bytes can move",
        f"at least {FLOOR:g} of it",
        None if worst is None else float(worst["share"]),
        "the step throughput"
        if worst is None
        else f"the least of {len(best)} pairs of an optimizer and a clip: {_method(worst)}",
        lambda seen: seen >= FLOOR,
        device,
    )


def _lanes(measured: Mapping[str, Any], device: str) -> Bound:
    script = measured.get("script")
    rates = {
        count: rate
        for count, rate in measured.get("lanes", {}).items()
        if int(count) >= FEWEST_LANES
    }
    most = max(rates, key=lambda count: rates[count], default=None)
    told = ", ".join(f"{rate:,.0f} in {count} lanes" for count, rate in rates.items())
    return _bound(
        "lanes",
        f"a small model in {FEWEST_LANES} lanes and more trains many times as fast as a plain "
        "script",
        f"at least {FASTER:g} times",
        rates[most] / script if script and most else None,
        f"wdbc, momentum and norm, steps of a cell a second: {script:,.0f} in the script, {told}"
        if script
        else "the step bounds",
        lambda seen: seen >= FASTER,
        device,
    )


def _evaluations(found: Mapping[str, Any], device: str) -> Bound:
    where = "the step bounds"
    if found:
        where = (
            f"wdbc, {found['lanes']} lanes: {found['times']} evaluations of "
            f"{1e3 * found['evaluation_seconds']:.3g} ms beside {found['steps']} steps of "
            f"{1e3 * found['step_seconds']:.3g} ms"
        )
    return _bound(
        "evaluations",
        "evaluations take little of a run in lanes",
        f"at most {100 * EVALUATING:g} %",
        found.get("share"),
        where,
        lambda seen: seen <= EVALUATING,
        device,
    )


def _method(row: Row) -> str:
    return f"{row['implementation']}, {row['optimizer']} + {row['clip']}, {row['size']}"


def _number(value: Any) -> float | None:
    """A number that may be missing, as tables write that."""
    return None if value is None or math.isnan(float(value)) else float(value)
