"""A whole ``clipbench run`` beside the script that its user would write, on a workload that is not
packaged (`held_out.py`).

``python benchmarks/whole_run.py`` trains 520 cells of 3,000 steps in two worker processes, and
counts from the start of the command to its end: store, evaluations and events are included. In each
round it does so twice, into new folders: at first with an empty cache, in which no program is built
yet, then once more. The script runs in two processes at the same time, for some seconds before,
between and after the runs; its time for all cells follows from that of a step.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from engines import PAIR, number, pair, written
from held_out import TRAIN, examples, network
from timing import ready, timed
from torch import nn

from clipbench import execute

SEEDS, STEPS, BATCH = 13, 3000, 32
BLOCK = 50  # steps of the script, after which its clock is read
LRS, NORMS, OPTIMIZERS = (0.003, 0.01, 0.03, 0.1, 0.3), (0.1, 0.3, 1.0), ("sgd", "momentum")
HERE = Path(__file__).parent
RUNS = ("an empty cache", "once more")


def page(seeds, steps):
    """The study, and how many cells it has."""
    parts = [
        f'use = ["{HERE / "held_out.py"}"]',
        f"[run]\nsteps = {steps}\nbatch = {BATCH}\nlr = {list(LRS)}\nevaluations = 20",
        f"seeds = {{ select = {seeds}, report = 0 }}",
        '[[workload]]\nname = "held-out"',
        *(f'[[optimizer]]\nname = "{name}"' for name in OPTIMIZERS),
        '[[clip]]\nname = "none"',
        f'[[clip]]\nname = "norm"\nmax_norm = {list(NORMS)}',
    ]
    return "\n\n".join(parts), len(OPTIMIZERS) * (1 + len(NORMS)) * len(LRS) * seeds


def whole(folder, text, name, cache):
    """Seconds of one run of the command."""
    study = folder / "whole.toml"
    study.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "clipbench", "run", str(study), "--out", str(folder / name)]
    command += ["--no-throughput", "--workers", str(PAIR)]
    begin = time.perf_counter()
    subprocess.run(
        command,
        env={**os.environ, "CLIPBENCH_CACHE": str(cache)},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - begin


def script(seconds):
    """What a step of the script takes in this process, as JSON, once it was told to go on."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs, labels = (part[:TRAIN] for part in examples())
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    whole = TRAIN // BATCH * BATCH
    batches = (
        batch for _ in itertools.count() for batch in torch.randperm(TRAIN)[:whole].split(BATCH)
    )

    def block():
        losses = []
        for _ in range(BLOCK):
            batch = next(batches)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            losses.append(loss.item())
        return losses

    sys.stdout.write(json.dumps(timed(block, BLOCK, seconds, ready)) + "\n")


def scripts(seconds):
    """Microseconds of a step of the script, the mean of two processes."""
    found = pair([sys.executable, __file__, "--script", "--seconds", str(seconds)])
    if isinstance(found, str):
        raise SystemExit(found)
    return sum(one["microseconds"] for one in found) / len(found)


def measure(rounds, seconds, seeds=SEEDS, steps=STEPS):
    """Of each round the seconds of the runs, the script's microseconds around them, and the ratio
    that follows for each run.
    """
    text, cells = page(seeds, steps)
    found = []
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            taken, beside = {}, [scripts(seconds)]
            for name in RUNS:
                sys.stderr.write(f"round {turn + 1} of {rounds}: {name}\n")
                taken[name] = whole(folder, text, name.replace(" ", "-"), folder / "cache")
                beside.append(scripts(seconds))
        step = median(beside)
        ratios = {name: step * 1e-6 * cells * steps / PAIR / took for name, took in taken.items()}
        found.append({"seconds": taken, "script": beside, "ratios": ratios})
    return {"cells": cells, "steps": steps, "rounds": found}


def table(found):
    """Run, seconds, and how many times as long the script takes: the median, the least and the
    largest of the rounds.
    """
    lines = ["| run | seconds | script / run |", "| --- | ---: | ---: |"]
    for name in RUNS:
        columns = [[one[key][name] for one in found["rounds"]] for key in ("seconds", "ratios")]
        cells = [
            f"{number(median(values))} ({number(min(values))}–{number(max(values))})"
            for values in columns
        ]
        lines.append(" | ".join([f"| {name}", *cells]) + " |")
    steps = [value for one in found["rounds"] for value in one["script"]]
    lines += ["", f"A step of the script: {number(median(steps))} µs in each of two processes."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=2, help="how often all is measured")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="how long the script is measured each time"
    )
    parser.add_argument("--out", type=Path, help="a folder for whole_run.json and whole_run.md")
    parser.add_argument("--script", action="store_true", help="be one process of the script")
    given = parser.parse_args()
    if given.script:
        script(given.seconds)
        return
    found = measure(given.rounds, given.seconds)
    found["environment"] = execute.environment("cpu")
    sys.stdout.write(table(found))
    if given.out:
        written(given.out, "whole_run", found, table(found))


if __name__ == "__main__":
    main()
