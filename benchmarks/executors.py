"""What an executor costs: a shard without work, 10,000 of them, and a study.

``python benchmarks/executors.py`` prints a table of the executors that are named (``local`` and
``ray``, if nothing is said), with two slots each: milliseconds for a shard of cells that do
nothing, handed over and back; the most memory of the driver, with so many cells in all; and the
cells a second of a packaged study, without its pilots and without the time to start.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from clipbench import execute, protocol, registry, study
from clipbench.engines import Job, Record
from clipbench.execute import Done, Request, Setting, Shard
from clipbench.store import Store

SLOTS, CELLS = 2, 4  # cells of a shard, as they are packed if nothing is known of their time


class Idle(Shard):
    """A shard whose cells do nothing."""

    def run(self):
        yield from ([Record(job, seconds=0.0)] for job in self.jobs)


class Clock(protocol.Silent):
    """The time of the first and of the last cell of a run."""

    def __init__(self):
        self.times = []

    def record(self, record):
        self.times.append(time.perf_counter())


def idle(executor, cells):
    """Seconds for so many cells that do nothing, once the processes are there."""
    page = study.read("smoke")
    jobs = [Job(cell, cell.clip_settings(1.0)) for cell in page.cells()[:CELLS]]
    shard = Idle(tuple(jobs))
    seconds = 0.0
    for wanted in (SLOTS * 50, cells // CELLS):
        begin, left, under_way = time.perf_counter(), wanted, set()
        while left or under_way:
            while left and len(under_way) < SLOTS:
                under_way.add(executor.submit(shard, Setting()))
                left -= 1
            for portion in executor.results(0.2):
                if portion.end is not None:
                    assert isinstance(portion.end, Done), portion.end
                    under_way.remove(portion.ticket)
        seconds = time.perf_counter() - begin
    return seconds


def say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def measured(name, cells, named, engine):
    """The row of one executor, in a process of its own."""
    registry.load_packaged()
    with execute.offered(name)(Request(SLOTS)) as executor:
        seconds = idle(executor, cells)
        driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        clock, page = Clock(), study.read(named)
        with tempfile.TemporaryDirectory() as folder:
            store = Store.create(Path(folder) / "out", page.name, page.text)
            options = protocol.Options(engine=engine, throughput=False)
            with store.claim():
                protocol.run(page, store, options, clock, executor)
    rate = (len(clock.times) - 1) / (clock.times[-1] - clock.times[0])
    say(f"| {name} | {1000 * seconds / (cells // CELLS):.2f} | {driver:.0f} | {rate:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["local", "ray"])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--study", default="smoke")
    parser.add_argument("--engine", default="loop")
    asked = parser.parse_args()
    say(f"| executor | ms a shard | MB of the driver | cells/s of {asked.study} |")
    say("|---|---|---|---|")
    # a process finds `Idle` by its module's name
    around = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.getenv('PYTHONPATH', '')}"}
    for one in asked.names:
        wanted = (one, asked.cells, asked.study, asked.engine)
        row = f"import executors; executors.measured(*{wanted!r})"
        subprocess.run([sys.executable, "-c", row], env=around, check=True)
