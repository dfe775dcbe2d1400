"""What makes the suite strict: no test may leave a trace in the process, and every test meets
the same luck.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import pkgutil
import random
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sets
import torch
from hypothesis import settings
from restored import registry_restored

from clipbench import datasets

# Rates are measured, and nothing of a user's is read or written. All processes of a run inherit one
# folder: what one has compiled serves the others.
AMONG_OTHERS = "PYTEST_XDIST_WORKER" in os.environ
if not AMONG_OTHERS:
    os.environ["CLIPBENCH_CACHE"] = tempfile.mkdtemp(prefix="clipbench-cache-")
os.environ["CLIPBENCH_RATES"] = "anew"

torch.set_num_threads(1)  # the number of threads changes the last bits of a sum

settings.register_profile(
    "clipbench", derandomize=True, deadline=None, database=None, print_blob=False
)
settings.load_profile("clipbench")


def pytest_unconfigure():
    if not AMONG_OTHERS:
        shutil.rmtree(os.environ["CLIPBENCH_CACHE"], ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption(
        "--whole",
        action="store_true",
        help="Run what `tox -e whole` runs: every seed and every rate of a claim.",
    )


@pytest.fixture(scope="session")
def whole(request):
    """Whether every seed and rate of a claim is run, and not only as many as show that the code
    still makes them.
    """
    return request.config.getoption("--whole")


@pytest.fixture
def costly(whole):
    """For a test that takes longer than its claim is worth at every change: `tox -e whole` runs it,
    and a workflow that once a week.
    """
    if not whole:
        pytest.skip("costly: only with --whole")


@pytest.fixture(autouse=True)
def _process_unchanged():
    """Fail a test that draws from a global generator, or that leaves torch set up differently
    than it found it.
    """
    before = _process_state()
    yield
    after = _process_state()
    changed = [what for what in before if before[what] != after[what]]
    assert not changed, f"the test changed {', '.join(changed)} of the whole process"


def _process_state() -> dict[str, object]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  (the state that must not move)
    subnormal = sys.float_info.min
    return {
        "Python's random state": random.getstate(),
        "NumPy's random state": (name, keys.tobytes(), *rest),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "the number of torch threads": torch.get_num_threads(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "the flushing of denormals": subnormal * 0.5 == 0,
    }


@pytest.fixture(autouse=True)
def _registry_unchanged():
    with registry_restored():
        yield


@pytest.fixture(autouse=True, scope="module")
def _registry_unchanged_by_the_module():
    """What the module's own shared runs have registered goes with the module."""
    with registry_restored():
        yield


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder with pyproject.toml, README.md and tox.ini."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def data_folder(tmp_path_factory, monkeypatch):
    """A data folder with a tiny ``pneumoniamnist``, which passes for the published file."""
    folder = tmp_path_factory.mktemp("data")
    file = sets.write(folder / "pneumoniamnist.npz")
    md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    known = datasets.FAMILIES["pneumoniamnist"]
    monkeypatch.setitem(
        datasets.FAMILIES, "pneumoniamnist", replace(known, md5s=(md5, *known.md5s[1:]))
    )
    monkeypatch.setenv("CLIPBENCH_DATA", str(folder))
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """A report's figures are not made, for what is claimed of its words and tables: whether they
    can be made of unusual studies is claimed elsewhere, and it takes most of the time.
    """
    from clipbench import report
    from clipbench.report import parts

    for section in pkgutil.iter_modules(report.__path__):
        module = importlib.import_module(f"clipbench.report.{section.name}")
        for name, drawing in vars(module).copy().items():
            ours = getattr(drawing, "__module__", "").startswith("clipbench.figures.")
            if ours and hasattr(drawing, "__wrapped__"):
                monkeypatch.setattr(module, name, lambda *_, **__: None)
    empty = b'<svg width="9pt" height="9pt"/>'
    monkeypatch.setattr(parts, "render", lambda _, forms: dict.fromkeys(forms, empty))


@pytest.fixture
def foreign(monkeypatch, tmp_path):
    """For a test that runs the training of another library, which draws from global generators,
    logs, and writes where it stands.
    """
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    drawn = random.getstate(), np.random.get_state()  # noqa: NPY002 - what libraries draw from
    logging.disable(logging.WARNING)
    with torch.random.fork_rng(devices=[]):
        yield
    logging.disable(logging.NOTSET)
    random.setstate(drawn[0])
    np.random.set_state(drawn[1])  # noqa: NPY002
