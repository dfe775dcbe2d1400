"""What clipbench itself costs a cell: scheduler, store and report, for cells of nothing.

``python benchmarks/scale.py --cells 1000 10000 100000 --out results/scale`` runs studies whose
cells are not trained: an executor gives the record of one cell for each. Every size has a process
of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipbench import engines, execute, protocol, registry, report, study
from clipbench.engines import Job
from clipbench.execute import Cards, Setting
from clipbench.execute.executor import Done, Portion
from clipbench.execute.shards import Shard
from clipbench.store import Store

COLUMNS = ["cells", "what", "seconds", "milliseconds a cell", "peak MB"]
SEEDS, RATES, TASK = 20, 10, 1000  # a thousand cells a task
PAGE = """
[run]
steps = 20
batch = [{batches}]
lr = [{rates}]
seeds = {{ select = {seeds}, report = 0 }}
evaluations = 5
engine = "loop"
extend = false

[[workload]]
name = "wdbc"

[[optimizer]]
name = "sgd"

[[clip]]
name = "none"

[[clip]]
name = "norm"
max_norm = [0.03, 0.1, 0.3, 1.0]
"""


class Nothing:
    """An executor that trains one cell, and gives its record for every other."""

    slots, seconds, patience, cards = 64, 0.05, 60.0, Cards()

    def __init__(self, job: Job) -> None:
        execute.prepare(Setting())
        self.record, self.here = engines.run(job), execute.environment("cpu")
        self.held: list[tuple[int, Shard]] = []
        self.tickets = self.shards = 0

    def submit(self, work: Any, _: Setting) -> int:
        self.tickets += 1
        self.held.append((self.tickets, work))
        return self.tickets

    def results(self, _: float) -> list[Portion]:
        portions = [
            Portion(
                ticket,
                [replace(self.record, job=job) for job in shard.jobs],
                environment=self.here,
                end=Done(),
            )
            for ticket, shard in self.held
        ]
        self.shards += len(self.held)
        self.held = []
        return portions

    def cancel(self, ticket: int) -> None:
        self.held = [one for one in self.held if one[0] != ticket]

    def stop(self) -> None:
        self.held = []


def measured(cells: int, pipe: Any) -> None:
    """The rows of one size."""
    registry.load_packaged()
    rates = ", ".join(f"{1e-3 * 1.5**n:.3g}" for n in range(RATES))
    batches = ", ".join(str(4 + n) for n in range(max(1, cells // TASK)))
    rows: list[list[Any]] = []

    def clock(what: str, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        taken = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append([cells, what, f"{taken:.2f}", f"{1e3 * taken / cells:.3f}", f"{peak:.0f}"])

    with tempfile.TemporaryDirectory() as folder:
        asked = study.parse(
            "scale", PAGE.format(rates=rates, batches=batches, seeds=SEEDS), Path(folder)
        )
        store = Store.create(Path(folder) / "scale", asked.name, asked.text)
        plan = protocol.runnable(asked)
        executor = Nothing(Job(plan.cells[0], plan.cells[0].clip_settings()))
        options = protocol.Options(throughput=False)
        with store.claim():
            clock("run", lambda: protocol.run(asked, store, options, executor=executor))
        with store.claim():
            clock("run again", lambda: protocol.run(asked, store, options, executor=executor))
        clock("read cells", lambda: Store(store.folder).read("cells"))
        clock("verify", lambda: Store(store.folder).problems())
        clock("report, page alone", lambda: report.write(Store(store.folder), ["html"]))
    pipe.send(rows)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--out", type=Path, help="folder for scale.csv")
    asked = parser.parse_args()
    rows: list[list[Any]] = [list(COLUMNS)]
    context = multiprocessing.get_context("spawn")
    for cells in asked.cells:
        here, there = context.Pipe()
        process = context.Process(target=measured, args=(cells, there))
        process.start()
        there.close()
        rows += here.recv()
        process.join()
    for row in rows:
        sys.stdout.write("\t".join(map(str, row)) + "\n")
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        with (asked.out / "scale.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
