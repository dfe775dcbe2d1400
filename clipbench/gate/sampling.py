"""Samples of a benchmark's sides, taken in a process of its own: work found by name, warmed up, and
timed in turn.

A sample is so many calls as take half a millisecond: short enough that most fall between two
interruptions, long enough for the clock. Longer ones are all disturbed on a busy machine, and no
statistic mends that.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum, auto
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipbench import execute, registry
from clipbench.errors import UsageError, nearest
from clipbench.gate.decision import Samples
from clipbench.gate.limits import Bench

Work = Callable[[], object]

# seconds of a sample; a single call may take no more than the second
TARGET, LONGEST = 0.5e-3, 2e-3
WARM_UP = 10  # calls
ROUNDS, MOST_ROUNDS = 40, 200  # the second if forty do not settle it
# whose work is timed: ours, the reference, and the reference once more
SIDES = ("ours", "reference", "reference")
PATIENCE = 120.0  # seconds a benchmark may take, most of which a busy machine gives to others


class Failure(StrEnum):
    """Why a benchmark gave no samples."""

    NOT_IMPORTED = auto()
    NO_FACTORY = auto()
    NOT_CALLABLE = auto()
    RAISED = auto()
    NOT_FINITE = auto()
    NOT_FINITE_IN = auto()  # a container of numbers
    ENDED = auto()
    HUNG = auto()
    TOO_LONG = auto()


@dataclass(frozen=True)
class Broken:
    """A benchmark that gave no samples.

    :param fault: what is to blame: ``ours``, ``page`` (wrong use), or ``machine`` (a call is too
        slow).
    :param details: values for the failure's sentence, by name.
    """

    failure: Failure
    fault: str = "ours"
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """A benchmark to be measured. With a ``slowdown``, 0 too, the reference stands in for ours,
    with that share of work added.
    """

    bench: Bench
    slowdown: float | None = None

    @property
    def ratio(self) -> float:
        """Ours / reference, as it is expected to be."""
        return self.bench.ratio if self.slowdown is None else 1.0

    @property
    def limits(self) -> tuple[float, float]:
        """The least ratio and the paired median above which there is an alarm."""
        return self.bench.min_ratio * self.ratio, self.bench.paired_median * self.ratio


def measure(measurements: Sequence[Measurement], files: Path) -> list[Samples | Broken]:
    """The samples of every measurement, in order, or why there are none; all come from one fresh
    process.

    A measurement that ends the process, or hangs, is broken, and the rest goes on in another
    process.
    """
    results: list[Samples | Broken] = []
    while len(results) < len(measurements):
        results += _in_a_process(measurements[len(results) :], files)
    return results


def _in_a_process(measurements: Sequence[Measurement], files: Path) -> list[Samples | Broken]:
    """The results of the first measurements, at least of one."""
    # Spawned, not forked: memory laid out anew is the point of a second process.
    server = multiprocessing.get_context("spawn")
    pipe, end = server.Pipe()
    # whose code runs, an index in SIDES: code that ends its process can report nothing
    turn = server.RawValue("b")
    process = server.Process(target=_serve, args=(end, turn, tuple(measurements), files))
    process.start()
    end.close()
    results: list[Samples | Broken] = []
    try:
        pipe.recv()  # ready: importing torch is no part of any benchmark
        while len(results) < len(measurements):
            if not pipe.poll(PATIENCE):
                return [*results, _broken(SIDES[turn.value], Failure.HUNG, seconds=PATIENCE)]
            if type(result := pipe.recv()) is str:
                raise RuntimeError(f"in the process that measures:\n{result}")
            results.append(result)
    except (EOFError, OSError):
        process.join()
        return [*results, _broken(SIDES[turn.value], Failure.ENDED, code=process.exitcode)]
    finally:
        process.terminate()
        process.join()
    return results


# in the measuring process: the value shared with the parent that says whose code runs
_turn: Any = None


def _serve(
    pipe: connection.Connection, turn: Any, measurements: Sequence[Measurement], files: Path
) -> None:
    global _turn  # noqa: PLW0603 - one process, one measurement at a time
    _turn = turn
    os.dup2(2, 1)  # what a benchmark prints is no part of the verdict
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    execute.prepare(execute.Setting())
    # as a script has its folder there: files beside the page may import each other
    sys.path.insert(0, str(files))
    with suppress(BrokenPipeError):
        pipe.send(None)
        for measurement in measurements:
            try:
                pipe.send(_sampled(measurement, files))
            except BrokenPipeError:
                raise
            except Exception:  # noqa: BLE001 - a bug of ours, for nobody is to blame: not of a benchmark
                pipe.send(traceback.format_exc())
                return


def _sampled(measurement: Measurement, files: Path) -> Samples | Broken:
    bench, slowdown = measurement.bench, measurement.slowdown
    side, name = ("ours", bench.ours) if slowdown is None else ("reference", bench.reference)
    try:
        reference, again = (_work(bench.reference, "reference", files) for _ in range(2))
        works = _work(name, side, files), reference, again
        return timed(works, measurement.limits, slowdown or 0.0, (side, *SIDES[1:]))
    except _NoSamples as error:
        return error.broken


class _NoSamples(Exception):  # noqa: N818 - an answer, not an error
    def __init__(self, broken: Broken) -> None:
        super().__init__(broken)
        self.broken = broken


def _broken(side: str, failure: Failure, **details: Any) -> Broken:
    """The failure of a side; a reference's is the page's fault."""
    return Broken(failure, "ours" if side == "ours" else "page", details)


@contextmanager
def _blaming(side: str) -> Iterator[None]:
    """Blame a side for what its code raises, and note whose code runs, in case it ends the
    process or hangs.
    """
    if _turn is not None:
        _turn.value = SIDES.index(side)
    try:
        yield
    except _NoSamples:
        raise
    except Exception as error:  # a user-defined benchmark may raise anything; the others go on
        told = f"{type(error).__name__}: {error}".rstrip(": ").replace("\n", " ")[:293]
        raise _NoSamples(_broken(side, Failure.RAISED, error=told)) from error


def _work(name: str, side: str, files: Path) -> Work:
    """The work that a factory named in the page returns."""
    module_name, _, function = name.rpartition(":")
    try:
        with _blaming(side):
            is_file = module_name.endswith(".py")
            module: Any = (
                registry.load_file(files / module_name, side)
                if is_file
                else importlib.import_module(module_name)
            )
    except _NoSamples as broken:
        error = broken.__cause__
        if isinstance(error, (UsageError, ImportError)):
            told = str(error).rstrip(".")
            raise _NoSamples(_broken(side, Failure.NOT_IMPORTED, work=name, error=told)) from error
        raise
    if not hasattr(module, function):
        near = nearest(function, vars(module)).strip()
        raise _NoSamples(
            # whoever's name it is, the page is wrong
            Broken(Failure.NO_FACTORY, "page", {"work": name, "hint": f" ({near})" if near else ""})
        )
    with _blaming(side):
        work = getattr(module, function)()
    if not callable(work):
        raise _NoSamples(_broken(side, Failure.NOT_CALLABLE, work=name, kind=type(work).__name__))
    return work


def timed(
    works: Sequence[Work],
    limits: tuple[float, float],
    slowdown: float = 0.0,
    sides: Sequence[str] = SIDES,
) -> Samples:
    """Samples of three works in turn, in an order shuffled anew every round; up to `MOST_ROUNDS` of
    them if a few settle nothing.

    :param works: ours, the reference, and the reference once more.
    :param limits: the least ratio and the paired median above which there is an alarm.
    :param slowdown: the share of a sample's time that is added to every sample of ours, as work.
    :param sides: whose each work is, to blame it for an error, or for results that are not finite.
    """
    reference = works[1]
    for work, side in zip(works, sides, strict=True):
        _check(work, side)
        with _blaming(side):
            for _ in range(WARM_UP - 1):
                work()
    with _blaming(sides[1]):
        single = min(_sample(reference, 1) for _ in range(2 * WARM_UP))
    if single > LONGEST:
        took = {"milliseconds": 1e3 * single, "most": 1e3 * LONGEST}
        raise _NoSamples(Broken(Failure.TOO_LONG, "machine", took))
    calls = max(1, round(TARGET / single))
    with _blaming(sides[1]):
        loops = (
            _loops(slowdown * min(_sample(reference, calls) for _ in range(2 * WARM_UP)))
            if slowdown
            else 0
        )
    shuffle = np.random.default_rng(0)
    rounds: list[tuple[float, ...]] = []
    gc.collect()
    gc.disable()
    try:
        while True:
            for _ in range(ROUNDS):
                seconds = [0.0, 0.0, 0.0]
                for index in shuffle.permutation(3):
                    with _blaming(sides[index]):
                        seconds[index] = _sample(works[index], calls, loops if index == 0 else 0)
                rounds.append(tuple(seconds))
            samples = Samples(*np.array(rounds).T)
            if samples.settled(*limits) or len(rounds) >= MOST_ROUNDS:
                break
    finally:
        gc.enable()
    for work, side in zip(works, sides, strict=True):
        _check(work, side)
    return samples


def _sample(work: Work, calls: int, loops: int = 0) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    if loops:
        _spend(loops)
    return time.perf_counter() - start


def _spend(loops: int) -> int:
    """Work that takes time and nothing else."""
    total = 0
    for number in range(loops):
        total += number & 3
    return total


def _loops(seconds: float) -> int:
    """The number of loops that take so many seconds if nothing disturbs them."""
    some = 2000
    least = float("inf")
    for _ in range(30):
        start = time.perf_counter()
        _spend(some)
        least = min(least, time.perf_counter() - start)
    return round(some * seconds / least)


def _check(work: Work, side: str) -> None:
    """Call some work once and check that all numbers in its result are finite: the speed of
    computing NaN means nothing.

    :raises _NoSamples: one is not finite, or the work raises.
    """
    with _blaming(side):
        result = work()
        wrong = next(_not_finite(result), None)
    if wrong is not None:
        failure = Failure.NOT_FINITE if isinstance(result, float) else Failure.NOT_FINITE_IN
        raise _NoSamples(_broken(side, failure, number=str(wrong), kind=type(result).__name__))


def _not_finite(result: object) -> Iterator[float | complex]:
    """The numbers in tensors, arrays, and containers of such, that are not finite."""
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, (tuple, list)):
        for one in result:
            yield from _not_finite(one)
    elif (
        isinstance(result, torch.Tensor)
        and result.layout is torch.strided
        and not result.is_quantized
    ):
        yield from result[~torch.isfinite(result)].tolist()
    elif (
        isinstance(result, (float, complex, np.ndarray, np.generic))
        and np.asarray(result).dtype.kind in "fc"
    ):
        values = np.asarray(result)
        yield from values[~np.isfinite(values)].tolist()
