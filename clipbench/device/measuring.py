"""What is measured of a device beside the commands: what it is, how many kernels a step takes, and
how fast lanes are beside a plain script. Called in processes of their own.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import torch

from clipbench import execute, registry, throughput
from clipbench.cell import Cell, Part
from clipbench.engines import Job, lanes
from clipbench.engines.evaluating import evaluate
from clipbench.engines.record import stops
from clipbench.throughput.updates import Given, Update, Weights

Found = dict[str, Any]

# the number of kernels is taken at both; the tensors are as small as those of many models' norms
TENSORS, SHAPE = (10, 150), (8, 8)
TAKEN = ("flat", "fast", "loop")  # implementations whose kernels are counted
WORKLOAD, OPTIMIZER, CLIP, MAX_NORM = "wdbc", "momentum", "norm", 0.5
MANY = (256, 1024)  # lanes
# of a cell of `quick`, on that workload
STEPS, BATCH, EVALUATIONS = 300, 32, 10
BLOCK = 30  # steps between two readings of the rows: as many as between two evaluations
WARM = 5  # steps: three before the step of lanes is one graph, and one in it
# blocks of each in turn, at most, and seconds for all of them, about
ROUNDS, SECONDS = 50, 6.0
LONG = (ROUNDS + 10) * BLOCK  # steps of a cell that does not end while it is measured
SMI = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit", "ecc.mode.current")


def facts(device: str) -> Iterator[Found]:
    """The machine as every row of a store has it, its key there, and what the driver's own tool
    says.
    """
    # as whoever trains is: the environment tells of what it sets
    execute.prepare(execute.Setting(device=device))
    environment = execute.environment(device)
    yield {
        "environment": environment,
        "key": execute.key_of(environment),
        "usable_cores": execute.cores(),
        "nvidia_smi": _smi() if device == "cuda" else None,
    }


def _smi() -> dict[str, str] | None:
    """The first device as ``nvidia-smi`` describes it; None without that tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = [tool, f"--query-gpu={','.join(SMI)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603 - the driver's tool
    except (OSError, subprocess.SubprocessError):
        return None
    values = done.stdout.splitlines()[0].split(", ") if done.stdout else []
    return dict(zip(SMI, values, strict=False))


def bounds(device: str) -> Iterator[Found]:
    """All that the bounds need beside timings, part after part: what was measured is kept if the
    time is over.
    """
    execute.prepare(execute.Setting(device=device))
    found: Found = {"kernels": kernels(device)}
    yield found
    made = {count: ready(device, count) for count in MANY}
    found |= speed(device, made)
    yield found
    found["evaluations"] = evaluations(device, made[MANY[0]])
    yield found


def kernels(device: str) -> dict[str, dict[str, dict[str, int | None]]]:
    """Implementation → clip → number of tensors → kernels of a clip and a step, None on a CPU."""
    rule = registry.build("optimizer", OPTIMIZER, {})
    clips = {
        "norm": registry.build("clip", "norm", {"max_norm": 0.1}),
        "value": registry.build("clip", "value", {"max_value": 0.01}),
    }

    def taken(implementation: str, clip: Any, tensors: int) -> int | None:
        given = Given([SHAPE] * tensors, torch.float32, device)
        update = Update(Weights(implementation, rule, throughput.LR, given), clip)
        update.block(2)  # what is made once is made
        return update.footprint().kernels

    return {
        name: {
            label: {str(tensors): taken(name, clip, tensors) for tensors in TENSORS}
            for label, clip in clips.items()
        }
        for name in TAKEN
    }


def speed(device: str, made: Mapping[int, lanes.Lanes]) -> Found:
    """Steps of cells a second, of a plain script (``script``) and in ``lanes``, number → lanes.

    The script is the loop that a user writes, on batches that were made before, and reads no
    number; lanes draw their batches and record every measure. Blocks of both take turns.
    """
    script = throughput.Step(_jobs(device, 1)[0])
    blocks: dict[str, Callable[[], float]] = {
        str(count): _block_of(together, device) for count, together in made.items()
    }
    blocks["script"] = lambda: script.block(BLOCK)
    for block in blocks.values():
        block()
    taken: dict[str, list[float]] = {name: [] for name in blocks}
    start = time.perf_counter()
    for number in range(ROUNDS):
        if number and time.perf_counter() - start > SECONDS:
            break
        for name, block in blocks.items():
            taken[name].append(block())
    rates = {name: BLOCK / median(seconds) for name, seconds in taken.items()}
    return {
        "script": rates.pop("script"),
        "lanes": {count: int(count) * rate for count, rate in rates.items()},
        "rounds": len(taken["script"]),
    }


def evaluations(device: str, together: lanes.Lanes) -> Found:
    """Seconds of an evaluation of some lanes, of a step of them, and the share of a run of
    `STEPS` steps that evaluations take.
    """
    count, block = len(together.jobs), _block_of(together, device)

    def evaluation() -> float:
        return _timed(lambda: evaluate(together, range(count), 0), device)

    block(), evaluation()
    steps, evaluated = (median(take() for _ in range(3)) for take in (block, evaluation))
    step = steps / BLOCK
    times = 1 + len(stops(_cell(device, 0, STEPS)))  # one before the first step
    spent = times * evaluated
    return {
        "lanes": count,
        "steps": STEPS,
        "times": times,
        "evaluation_seconds": evaluated,
        "step_seconds": step,
        "share": spent / (spent + STEPS * step),
    }


def _cell(device: str, seed: int, steps: int) -> Cell:
    def part(kind: registry.Kind, name: str) -> Part:
        return Part(name, registry.find(kind, name).version)

    clip = Part(CLIP, registry.find("clip", CLIP).version, {"max_norm": MAX_NORM}, "max_norm")
    return Cell(
        part("workload", WORKLOAD),
        part("optimizer", OPTIMIZER),
        clip,
        lr=0.01,
        seed=seed,
        steps=steps,
        batch=BATCH,
        device=device,
        evaluations=EVALUATIONS,
    )


def _jobs(device: str, count: int) -> list[Job]:
    return [
        Job(_cell(device, number % 3, LONG), {"max_norm": MAX_NORM * 2 ** (number / count)})
        for number in range(count)
    ]


def ready(device: str, count: int) -> lanes.Lanes:
    """So many lanes, past the steps in which they are made ready."""
    together, _ = lanes.begin(_jobs(device, count))
    for _ in range(WARM):
        together.step(*together.draw())
    together.rows()
    return together


def _block_of(together: lanes.Lanes, device: str) -> Callable[[], float]:
    def steps() -> None:
        for _ in range(BLOCK):
            together.step(*together.draw())
        together.rows()

    return lambda: _timed(steps, device)


def _timed(work: Callable[[], object], device: str) -> float:
    """Seconds of some work; a CUDA device has finished before the clock starts and before it
    stops.
    """
    wait = torch.cuda.synchronize if device == "cuda" else _nothing
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def _nothing() -> None:
    """A CPU has nothing to wait for."""
