"""The gate's own error rates, measured here and now: how often an alarm is false, and how often a
slowdown is missed.

A check is the whole decision on one benchmark, its confirmation in fresh processes included. In
most checks the reference is compared with itself: an alarm is false. In the others work that takes
5 or 10 % of its time is added to every sample: no alarm is a miss. Every second batch of checks
runs beside processes that only take the processor's time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clipbench import statistics
from clipbench.errors import UsageError
from clipbench.gate import decision, sentences, speed
from clipbench.gate.limits import Limits
from clipbench.gate.sampling import Broken, Measurement
from clipbench.gate.verdict import CODES, INCONCLUSIVE, PASS, REGRESSION
from clipbench.protocol.watcher import Watcher

SLOWDOWNS = (0.0, 0.05, 0.10)
BATCHES = 4
HOGS = 3  # processes beside a loaded batch
# the share of alarms must be below the first, and at least the second
MOST, LEAST = 0.01, {0.05: 0.95, 0.10: 0.99}
# ends with its parent
HOG = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"


@dataclass(frozen=True)
class Rate:
    """How often the gate alarmed in checks of one kind.

    :param slowdown: the share of work added, 0 for none.
    :param load: whether other processes ran beside; None for both kinds together.
    :param least_ratio: the median of the first least ratios, about 1 + slowdown if the work was
        really added; None without any.
    """

    slowdown: float
    load: bool | None
    checks: int
    alarms: int
    inconclusive: int
    low: float
    high: float
    least_ratio: float | None

    @property
    def share(self) -> float:
        """The share of checks that alarmed, 0 to 1."""
        return self.alarms / self.checks

    @property
    def holds(self) -> bool:
        """Whether the share is within what the gate must reach."""
        return self.share < MOST if self.slowdown == 0 else self.share >= LEAST[self.slowdown]


@dataclass(frozen=True)
class Rates:
    """All rates; the first are of both kinds of batches together."""

    rates: tuple[Rate, ...]

    @property
    def hold(self) -> bool:
        """Whether the gate is as good as it must be."""
        return all(rate.holds for rate in self.rates if rate.load is None)

    @property
    def measured(self) -> bool:
        """Whether each kind has a check that was not inconclusive: without one its share of
        alarms says nothing.
        """
        return all(rate.inconclusive < rate.checks for rate in self.rates if rate.load is None)

    @property
    def code(self) -> int:
        """The exit code: 0 if the gate is as good as it must be, 1 if not, 3 if nothing could be
        measured.
        """
        return CODES[INCONCLUSIVE if not self.measured else PASS if self.hold else REGRESSION]


Check = tuple[float, bool, str, float | None]  # slowdown, load, decision, least ratio


def run(limits: Limits, checks: int, watcher: Watcher) -> Rates:
    """The rates from ``checks`` checks without a slowdown and a quarter as many of each slowdown,
    over all the page's references.

    :raises UsageError: the page has no benchmarks, or one that gives no samples here.
    """
    if not limits.benches:
        raise UsageError(
            "--self-test: the page has no [[bench]], whose reference could be measured."
        )
    wanted = [
        slowdown for slowdown in SLOWDOWNS for _ in range(checks // 4 if slowdown else checks)
    ]
    order = np.random.default_rng(0).permutation(len(wanted))
    asked = [
        Measurement(limits.benches[number % len(limits.benches)], wanted[index])
        for number, index in enumerate(order)
    ]
    watcher.phase("self-test", len(asked))
    taken: list[Check] = []
    for batch_number in range(BATCHES):
        batch, load = asked[batch_number::BATCHES], bool(batch_number % 2)
        with hogs(HOGS if load else 0):
            results = speed.decisions(batch, limits.files)
        for measurement, (decided, (first, *_)) in zip(batch, results, strict=True):
            if isinstance(first, Broken) and first.fault != "machine":
                raise UsageError(
                    f'--self-test: "{measurement.bench.name}" gave no samples: '
                    f"{sentences.why(first)}."
                )
            least = None if isinstance(first, Broken) else first.ratios[0]
            taken.append((float(measurement.slowdown or 0), load, decided, least))
            watcher.tick()
    return Rates(tuple(_rates(taken)))


@contextmanager
def hogs(number: int) -> Iterator[None]:
    """Within it, so many other processes run, each of which takes all the processor's time it
    gets.
    """
    running = [subprocess.Popen([sys.executable, "-c", HOG]) for _ in range(number)]  # noqa: S603 - our own interpreter and text
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def _rates(checks: Sequence[Check]) -> Iterator[Rate]:
    for load in (None, False, True):
        for slowdown in sorted({check[0] for check in checks}):
            some = [check for check in checks if check[0] == slowdown and load in (None, check[1])]
            alarms = sum(decided == decision.ALARM for _, _, decided, _ in some)
            unsure = sum(decided == decision.INCONCLUSIVE for _, _, decided, _ in some)
            if some:
                ratios = [ratio for *_, ratio in some if ratio is not None]
                interval = statistics.share_interval(alarms, len(some))
                middle = float(np.median(ratios)) if ratios else None
                yield Rate(
                    slowdown, load, len(some), alarms, unsure, interval.low, interval.high, middle
                )


def _kind(rate: Rate) -> str:
    what = "false alarms" if rate.slowdown == 0 else f"{rate.slowdown:.0%} slowdowns found"
    return (
        what
        + {None: "", False: ", no load added", True: f", {HOGS} busy processes beside"}[rate.load]
    )


def text(rates: Rates) -> str:
    """For a terminal: a line each, and whether the gate is as good as it must be."""
    lines = [
        f"{_kind(rate):<44} {rate.alarms:>4} of {rate.checks:<4} {rate.share:7.2%}  "
        f"[{rate.low:.2%}, {rate.high:.2%}]  {rate.inconclusive} inconclusive"
        for rate in rates.rates
    ]
    end = (
        "How good the gate is cannot be told here: of a kind of checks all were inconclusive."
        if not rates.measured
        else "The gate is as good as it must be."
        if rates.hold
        else "The gate is not as good as it must be: "
        + "; ".join(_kind(rate) for rate in rates.rates if rate.load is None and not rate.holds)
    )
    return "\n".join([*lines, end])


def markdown(rates: Rates, environment: dict[str, Any]) -> str:
    """The rates as a table, with the machine below."""
    rows = [
        f"| {_kind(rate)} | {rate.alarms} of {rate.checks} | {rate.share:.2%} | {rate.low:.2%} to "
        f"{rate.high:.2%} | {rate.inconclusive} | "
        f"{'–' if rate.least_ratio is None else f'{rate.least_ratio:.3f}'} |"
        for rate in rates.rates
    ]
    head = [
        "| | alarms | share | 95 % interval | inconclusive | median least ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    where = (
        f"{environment['processor']}, {environment['cores']} cores, torch "
        f"{environment['libraries']['torch']}; Wilson's intervals."
    )
    return "\n".join(
        [
            "# The gate's own error rates",
            "",
            "`clipbench gate --self-test`",
            "",
            *head,
            *rows,
            "",
            where,
            "",
        ]
    )


def document(rates: Rates, environment: dict[str, Any]) -> str:
    """The rates for machines."""
    page = {
        "holds": rates.hold if rates.measured else None,
        "rates": [asdict(rate) for rate in rates.rates],
        "environment": environment,
    }
    return json.dumps(page, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
