"""The suite's own comparison: ratios taken within one process, printed below pytest-benchmark's
tables.
"""

import statistics
from dataclasses import dataclass

import pytest
import torch

from clipbench import registry


@dataclass(frozen=True)
class Ratio:
    """The median quotient of two timings, its quartiles, and the bound it is to keep."""

    name: str
    median: float
    low: float
    high: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def verdict(self):
        """The bound and whether it was met, or nothing."""
        if self.at_most is not None:
            return (
                f"at most {self.at_most:.2f}  {'met' if self.median <= self.at_most else 'missed'}"
            )
        if self.at_least is not None:
            return (
                f"at least {self.at_least:.2f}  "
                f"{'met' if self.median >= self.at_least else 'missed'}"
            )
        return ""

    def __str__(self):
        return (
            f"{self.name:<80} {self.median:6.3f}  ({self.low:.3f} to {self.high:.3f})  "
            f"{self.verdict}"
        ).rstrip()


# programs of their own, looked into for doctests
collect_ignore = [
    "engines.py",
    "families.py",
    "intervals.py",
    "jax_peer.py",
    "laws.py",
    "targets.py",
    "timing.py",
    "verdicts.py",
]
ratios = pytest.StashKey[list[Ratio]]()


def pytest_configure(config):
    config.stash[ratios] = []


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """As the workers train: one thread, denormals flushed."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    registry.load_packaged()


@pytest.fixture
def ratio(request):
    """``ratio(name, numerator, denominator)``: the two in turn, the quotient of each pair, and
    their median for the comparison.

    ``at_most`` or ``at_least`` is the bound: told with the ratio, never asserted, for a shared
    machine's clock decides no test.
    """

    def take(name, numerator, denominator, pairs=25, **bound):
        if request.config.getoption("benchmark_disable"):  # only whether it runs is asked then
            pairs = 1
        else:
            numerator(), denominator()
        quotients = sorted(numerator() / denominator() for _ in range(pairs))
        low, high = quotients[pairs // 4], quotients[-1 - pairs // 4]
        request.config.stash[ratios].append(
            Ratio(name, statistics.median(quotients), low, high, **bound)
        )
        return statistics.median(quotients)

    return take


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[ratios]:
        terminalreporter.section("ratios, paired within this process: median (quartiles), bound")
        for one in config.stash[ratios]:
            terminalreporter.write_line(str(one))
