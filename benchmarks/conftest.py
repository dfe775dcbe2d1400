"""The suite's own comparison: ratios taken within one process, printed below pytest-benchmark's tables."""

import statistics

import pytest
import torch

from clipbench import registry

ratios = pytest.StashKey[list[tuple[str, float, float, float]]]()


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
    """``ratio(name, numerator, denominator)``: the two in turn, the quotient of each pair, and their median for the comparison."""

    def take(name, numerator, denominator, pairs=25):
        numerator(), denominator()
        quotients = sorted(numerator() / denominator() for _ in range(pairs))
        low, high = quotients[pairs // 4], quotients[-1 - pairs // 4]
        request.config.stash[ratios].append((name, statistics.median(quotients), low, high))
        return statistics.median(quotients)

    return take


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[ratios]:
        terminalreporter.section("ratios, paired within this process: median (quartiles)")
        for name, middle, low, high in config.stash[ratios]:
            terminalreporter.write_line(f"{name:<80} {middle:5.2f}  ({low:.2f} to {high:.2f})")
