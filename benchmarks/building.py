"""What it takes to build the native lanes of a workload, with every packaged optimizer and every
packaged clip.

``python benchmarks/building.py --out engines`` measures each workload in processes of their own,
one after the other: with an empty cache, and once more with what that has left. It counts from the
lanes' weights to their programs; what a process loads is loaded before.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median

from engines import number, written

from clipbench import execute, registry
from clipbench.cell import Cell, Part
from clipbench.engines import Job, lanes

WORKLOADS = ("cosh", "wdbc", "digits", "temporal-order", "lesions", "text")
CACHES = ("an empty cache", "once more")


def jobs(workload):
    """A cell of every arm that is packaged."""
    registry.load_packaged()
    version = registry.find("workload", workload).version
    arms = product(registry.names("optimizer"), registry.names("clip"))
    found = []
    for optimizer, clip in arms:
        threshold = registry.threshold_field(registry.find("clip", clip))
        settings = {} if threshold is None else {threshold: 0.1}
        cell = Cell(
            Part(workload, version),
            Part(optimizer, 1),
            Part(clip, 1, settings, threshold),
            *(0.01, 0, 100, 32),
        )
        found.append(Job(cell, settings))
    return found


def built(workload):
    """Seconds until the lanes of all arms have their programs, in this process; and how many arms
    they are.
    """
    asked = jobs(workload)
    lanes.begin(asked[:1])  # what a process does once: the data, and torch's first trace
    begin = time.perf_counter()
    lanes.begin(asked, native=True)
    return time.perf_counter() - begin, len(asked)


def measured(workload):
    """The seconds of each of ``CACHES``, by processes that begin afresh; and how many arms."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", workload]
        environment = {**os.environ, "CLIPBENCH_CACHE": folder}
        found = []
        for _ in CACHES:
            sys.stderr.write(f"{workload}\n")
            run = subprocess.run(command, env=environment, check=True, capture_output=True)
            found.append(json.loads(run.stdout))
    return [seconds for seconds, _ in found], found[0][1]


def table(found):
    """A row for each workload: seconds, the median, the least and the largest of the rounds."""
    lines = [f"| workload | arms | {' | '.join(f'{name} s' for name in CACHES)} |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for workload, one in found["workloads"].items():
        cells = [
            f"{number(median(taken))} ({number(min(taken))}–{number(max(taken))})"
            for taken in zip(*one["rounds"], strict=True)
        ]
        lines.append(f"| {workload} | {one['arms']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=2, help="how often all is measured")
    parser.add_argument(
        "--workloads", default=",".join(WORKLOADS), help=f"some of {','.join(WORKLOADS)}"
    )
    parser.add_argument("--out", type=Path, help="a folder for building.json and building.md")
    parser.add_argument("--one", help="build this workload here, and print seconds as JSON")
    given = parser.parse_args()
    if given.one:
        importlib.import_module("torch._dynamo")  # as the processes have it of which workers fork
        execute.prepare(execute.Setting())
        sys.stdout.write(json.dumps(built(given.one)))
        return
    names = given.workloads.split(",")
    found = {name: {"rounds": [], "arms": 0} for name in names}
    for _ in range(given.rounds):
        for name in names:
            taken, found[name]["arms"] = measured(name)
            found[name]["rounds"].append(taken)
    whole = {"environment": execute.environment("cpu"), "workloads": found}
    sys.stdout.write(table(whole))
    if given.out:
        written(given.out, "building", whole, table(whole))


if __name__ == "__main__":
    main()
