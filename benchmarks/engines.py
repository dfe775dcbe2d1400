"""What one cell and step costs, by each engine, by a plain script and by JAX, on the packaged
workloads.

``python benchmarks/engines.py --out engines`` trains with momentum and the norm clip: in the script
that a user writes, in the engines ``loop`` and ``batched`` with every measure recorded, in
native lanes, and in lanes written in JAX (`jax_peer.py`). All run in processes of one thread, two
of one contender at a time, as a study's workers do on two cores; the contenders take turns, three
rounds of them. The table shows the median of the rounds, the least and the largest; of several
numbers of lanes the best.
"""

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import BrokenBarrierError
from unittest import mock

import torch
from timing import timed
from torch import nn

from clipbench import execute, feed, registry
from clipbench import step as measures
from clipbench.cell import Cell, Part
from clipbench.engines import Components, Job, Trainer, lanes, stacked
from clipbench.figures import style

PAIR = 2  # processes that run a contender at the same time
BLOCK = 50  # steps, after which the rows are read
STEPS = 2000  # of a cell: then its batches begin anew
POOL = 2000  # sequences of which the script's batches are taken
PATIENCE = 300.0  # seconds that one process waits for the other, which may be compiling
LR, MAX_NORM, MOMENTUM = 0.01, 0.5, 0.9
LADDER = (16, 32, 64, 128)
NATIVE = (16, 64)  # lanes: more make a program of this machine no faster
FIXED = 64  # lanes, where no ladder of them is climbed


@dataclass(frozen=True)
class Problem:
    """A workload with its settings, and with how many examples, in how many lanes, it is
    trained.
    """

    workload: str
    settings: dict = field(default_factory=dict)
    batch: int = 32
    ladder: tuple = LADDER
    native: tuple = NATIVE
    in_jax: bool = True

    def build(self):
        return registry.build("workload", self.workload, self.settings)

    def jobs(self, count):
        """Cells of momentum and the norm clip, each with a learning rate and a threshold of its
        own, of three seeds.
        """
        version = registry.find("workload", self.workload).version
        parts, jobs = (Part(self.workload, version, self.settings), Part("momentum", 1)), []
        for number in range(count):
            spread = 2 ** (number / count)
            settings = {"max_norm": MAX_NORM * spread}
            clip = Part("norm", 1, settings, "max_norm")
            jobs.append(
                Job(
                    Cell(*parts, clip, LR * spread, number % 3, STEPS, self.batch, evaluations=1),
                    settings,
                )
            )
        return jobs

    def batches(self, workload, seed):
        """A cell's batches, over and over."""
        while True:
            yield from feed.batches(workload, seed, self.batch, STEPS)


class Endless:
    """A source of batches that begins anew when it ends."""

    def __init__(self, *asked):
        self.asked, self.left = asked, 0

    def take(self, steps):
        if self.left < steps:
            self.source, self.left = feed.source(*self.asked, STEPS), STEPS
        self.left -= steps
        return self.source.take(steps)


class Held:
    """A source of batches that are drawn already, as JAX's are: the same again and again."""

    def __init__(self, *asked):
        self.batches, self.at = feed.source(*asked, STEPS).take(BLOCK), 0

    def take(self, steps):
        begin = self.at if self.at + steps <= BLOCK else 0
        self.at = begin + steps
        return tuple(part[begin : self.at] for part in self.batches)


PROBLEMS = {
    "wdbc": Problem("wdbc"),
    "digits": Problem("digits"),
    "temporal-order": Problem("temporal-order", batch=20),
    "temporal-order-50": Problem("temporal-order", {"length": 50}, batch=20),
    "text": Problem("text", ladder=(8, 16), native=(8,)),
    "cosh": Problem("cosh", batch=1, ladder=(64, 128, 256), native=(64, 256, 512)),
    "origin": Problem("origin", ladder=(2,), native=(2,), in_jax=False),
}


def pieces(problem):
    """Of the plain script: the parameters, and a function that takes a batch and gives the loss."""
    torch.manual_seed(0)
    if problem.workload == "cosh":
        x = nn.Parameter(4 + 4 * torch.rand(10))
        return [x], lambda: x.cosh().sum()
    workload = problem.build()
    if hasattr(workload, "sample"):
        inputs, targets = workload.sample(torch.Generator().manual_seed(0), POOL)
    if problem.workload == "temporal-order":
        rnn, last = nn.RNN(6, 50, batch_first=True), nn.Linear(50, 4)
        params, model = (
            [*rnn.parameters(), *last.parameters()],
            lambda given: last(rnn(given)[1][0]),
        )
    else:
        if not hasattr(workload, "sample"):
            inputs, targets = feed.splits(workload, 0)["train"]
        model = workload.model()
        params = list(model.parameters())
    whole = len(inputs) // problem.batch * problem.batch
    index = (
        batch
        for _ in itertools.count()
        for batch in torch.randperm(len(inputs))[:whole].split(problem.batch)
    )

    def loss():
        batch = next(index)
        return workload.loss(model(inputs[batch]), targets[batch])

    return params, loss


def script(problem, seconds, meet):
    """The plain script: no measure but the loss, read at every step."""
    params, loss = pieces(problem)
    optimizer = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM)

    def block():
        losses = []
        for _ in range(BLOCK):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            nn.utils.clip_grad_norm_(params, MAX_NORM)
            optimizer.step()
            losses.append(value.item())
        return losses

    return {1: timed(block, BLOCK, seconds, meet)}


def loop(problem, seconds, meet):
    """The engine ``loop``."""
    (job,) = problem.jobs(1)
    components = Components.of(job)
    trainer, batches = Trainer(components, job.cell), problem.batches(components.workload, 0)

    def block():
        for _ in range(BLOCK):
            trainer.step(*next(batches))
        return trainer.meter.rows()[:, 0]

    return {1: timed(block, BLOCK, seconds, meet)}


def together(problem, count, native, source=Endless):
    """So many lanes, with batches that do not end; and their block of steps, the rows read with
    ``read``.
    """
    made = lanes.Lanes(problem.jobs(count), native)
    made.batches = [problem.batches(made.workload, seed) for seed in made.seeds]
    made.sources = [source(made.workload, seed, problem.batch) for seed in made.seeds]

    def block(read=made.rows):
        made.advance(BLOCK)
        return read()[-1, :, 0]

    return made, block


def batched(problem, seconds, meet, native=False):
    """The engine ``batched``, at each number of lanes; or at two of them as a program of this
    machine.
    """
    counts = problem.native if native else problem.ladder
    return {
        count: timed(together(problem, count, native)[1], BLOCK * count, seconds, meet)
        for count in counts
    }


def drawn_before(problem, seconds, meet):
    """Native lanes, whose batches are drawn as JAX's are: beforehand."""
    return {
        count: timed(together(problem, count, True, Held)[1], BLOCK * count, seconds, meet)
        for count in problem.native
    }


def recording(problem, seconds, meet, native=False):
    """The time of a step of lanes with every measure over that of one without any but the loss,
    blocks of both in turn.
    """
    _, measured = together(problem, FIXED, native)
    stacked.programs.cache_clear()  # the bare step is another program under the same key
    as_it_is = mock.patch.object(lanes.Lanes, "_exact", lambda _self, products, *_: products)

    def lone(before, after, raw, handed, clipped, memory, **_how):
        # each product is one number that is there already
        return (clipped[:, 0].clone(),) * len(measures.PRODUCTS), ()

    with mock.patch.object(measures, "products", lone):
        bare, block = together(problem, FIXED, native)

    def losses():
        if native:
            found, bare.measured = bare.measured, []
            return found[-1]
        found = torch.stack([losses for losses, *_ in bare.pending]).double().numpy()
        bare.pending = []
        return found[..., None]

    def unmeasured():
        with mock.patch.object(measures, "products", lone), as_it_is:
            return block(losses)

    def taken(steps):
        begin = time.perf_counter()
        steps()
        return (time.perf_counter() - begin) / BLOCK / FIXED * 1e6

    taken(measured), taken(unmeasured)
    meet()
    pairs, start = [], time.perf_counter()
    while not pairs or time.perf_counter() - start < 2 * seconds:
        pairs.append((taken(measured), taken(unmeasured)))
    return {FIXED: {"ratio": median(one / other for one, other in pairs), "pairs": pairs}}


CONTENDERS = {
    "script": script,
    "loop": loop,
    "batched": batched,
    "alone": batched,
    "native": functools.partial(batched, native=True),
    "native, drawn before": drawn_before,
    "recording": recording,
    "recording, native": functools.partial(recording, native=True),
}
SHOWN = {
    "script": "#4d4d4d",
    "loop": style.SKY,
    "batched": style.BLUE,
    "native": style.GREEN,
    "jax": style.ORANGE,
}


def prepare(barrier, contender):
    """What a worker process does first: the engines' as a study's do."""
    global meeting  # noqa: PLW0603 - a barrier can only be handed to a process when it starts
    meeting = barrier
    if contender != "script":
        execute.prepare(execute.Setting())
    torch.set_num_threads(1)
    registry.load_packaged()


def work(contender, problem, seconds):
    """What one worker process measures."""
    try:
        return CONTENDERS[contender](problem, seconds, lambda: meeting.wait(PATIENCE))
    except Exception:
        meeting.abort()
        raise


def workers(contender, problem, seconds):
    """What each of the processes measured; or the reason, a string, why there is nothing."""
    start, count = multiprocessing.get_context("spawn"), 1 if contender == "alone" else PAIR
    with ProcessPoolExecutor(count, start, prepare, (start.Barrier(count), contender)) as pool:
        running = [pool.submit(work, contender, problem, seconds) for _ in range(count)]
    errors = [error for one in running if (error := one.exception()) is not None]
    # that one says only that the other process failed
    errors.sort(key=lambda error: isinstance(error, BrokenBarrierError))
    if errors:
        return f"{type(errors[0]).__name__}: {' '.join(str(errors[0]).split())[:200]}"
    return [one.result() for one in running]


def peers(python, problem, seconds):
    """As `workers`, of the peer in JAX."""
    command = [
        python,
        str(Path(__file__).with_name("jax_peer.py")),
        problem.workload,
        "--together",
        "--seconds",
        str(seconds),
    ]
    command += [
        "--lanes",
        ",".join(map(str, problem.ladder)),
        "--length",
        str(problem.settings.get("length", 20)),
    ]
    said = pair(command)
    if isinstance(said, str):
        return said
    return [{int(count): value for count, value in one["lanes"].items()} for one in said]


def pair(command):
    """What a program prints as JSON, of each of two processes that run it; they are told to go on
    when both are ready. Or the reason, a string, why there is nothing.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(PAIR)]
    while (said := [process.stdout.readline() for process in processes]) == ["ready\n"] * PAIR:
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
    for process in processes:
        process.communicate()
    if any(process.returncode for process in processes):
        named = " ".join(Path(one).name for one in command[1:3])
        return f"{named} ended with {[process.returncode for process in processes]}"
    return [json.loads(line) for line in said]


def jax_versions(python):
    """What the peer needs, as an interpreter has it; nothing where it cannot run the peer."""
    code = (
        "import json, jax, optax; print(json.dumps({'jax': jax.__version__, 'optax': "
        "optax.__version__}))"
    )
    run = subprocess.run([python, "-c", code], capture_output=True, check=False)
    return {} if run.returncode else json.loads(run.stdout)


def contenders(name, python):
    """Who runs on a problem, in the order of a round."""
    names = ["script", "loop", "batched"] + ["alone"] * (name == "temporal-order")
    names += (
        ["native"]
        + ["native, drawn before"] * (name == "cosh")
        + ["jax"] * bool(python and PROBLEMS[name].in_jax)
    )
    return names + ["recording", "recording, native"] * (name == "wdbc")


def measure(names, seconds, python, rounds):
    """All rounds, ``{problem: {contender: [what each process measured, …]}}``; and what is
    missing, and why.
    """
    found, missing = {name: {} for name in names}, {}
    for number, name in itertools.product(range(rounds), names):
        for contender in contenders(name, python):
            if f"{name}, {contender}" in missing:
                continue
            sys.stderr.write(f"round {number + 1} of {rounds}: {name}, {contender}\n")
            problem = PROBLEMS[name]
            measured = (
                peers(python, problem, seconds)
                if contender == "jax"
                else workers(contender, problem, seconds)
            )
            if isinstance(measured, str):
                missing[f"{name}, {contender}"] = measured
            else:
                found[name].setdefault(contender, []).append(measured)
    return found, missing


def best(rounds, key="microseconds"):
    """The number of lanes with the least median of the rounds, that median, the least and the
    largest round.
    """
    each = {
        count: [median(one[count][key] for one in measured) for measured in rounds]
        for count in rounds[0][0]
    }
    count = min(each, key=lambda count: median(each[count]))
    return count, median(each[count]), min(each[count]), max(each[count])


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(count, middle, least, most):
    return f"{number(middle)} ({number(least)}–{number(most)})" + (
        f", {count} lanes" if count > 1 else ""
    )


def table(found, missing, footer):
    """The page: what a cell and step costs, and the ratios beside it."""
    columns = [
        "workload",
        "parameters",
        "script µs",
        "loop µs",
        "batched µs",
        "native µs",
        "jax µs",
    ]
    columns += ["script / best of ours", "best of ours / jax"]
    lines, extra = [" | ".join(columns), " | ".join(["---"] + ["---:"] * (len(columns) - 1))], []
    for name, by in found.items():
        top = {contender: best(by[contender]) for contender in SHOWN if contender in by}
        cells = [spread(*top[one]) if one in top else "–" for one in SHOWN]
        ours = min(
            (top[one][1] for one in ("loop", "batched", "native") if one in top), default=math.nan
        )
        cells.append(number(top["script"][1] / ours) if "script" in top else "–")
        cells.append(number(ours / top["jax"][1]) if "jax" in top else "–")
        parameters = sum(param.numel() for param in PROBLEMS[name].build().model().parameters())
        lines.append(" | ".join([name, f"{parameters}", *cells]))
        if {"alone", "batched"} <= by.keys():
            count = top["batched"][0]
            pairs = zip(by["batched"], by["alone"], strict=False)
            gains = [
                sum(alone[0][count]["microseconds"] / one[count]["microseconds"] for one in pair)
                for pair, alone in pairs
            ]
            extra.append(
                "two workers against one: "
                f"{spread(count, median(gains), min(gains), max(gains))}, {name}"
            )
        if "native, drawn before" in by:
            found_so = best(by["native, drawn before"])
            beside = f", {number(found_so[1] / top['jax'][1])} of jax" if "jax" in top else ""
            extra.append(f"native, batches drawn before: {spread(*found_so)}{beside}, {name}")
        for one, bound in (("recording", 1.5), ("recording, native", 1.1)):
            if one in by:
                extra.append(f"{one}: {spread(*best(by[one], 'ratio'))}, at most {bound}, {name}")
    said = [f"- {line}" for line in extra] + [
        f"- left out: {what}: {why}" for what, why in missing.items()
    ]
    rows = "\n".join(f"| {line} |" for line in lines)
    return "\n".join([rows, "", *said, "", footer, ""])


@style.styled
def chart(found, footer):
    """One group a workload, one colour a contender: a dot at the median of the rounds, a line
    from the least to the largest.
    """
    figure = style.blank(
        6.5, 1 + 0.17 * sum(len(by.keys() & SHOWN.keys()) + 1 for by in found.values()), footer
    )
    axes, place, groups, legend = figure.add_subplot(), 0, {}, {}
    for name, by in found.items():
        for one in (one for one in SHOWN if one in by):
            count, middle, least, most = best(by[one])
            axes.plot([least, most], [place, place], color=SHOWN[one], linewidth=2, alpha=0.5)
            (legend[one],) = axes.plot(
                [middle], [place], "osD^v"[list(SHOWN).index(one)], markersize=5, color=SHOWN[one]
            )
            words = number(middle) + (f", {count} lanes" if count > 1 else "")
            axes.annotate(
                words, (most, place), (5, 0), textcoords="offset points", va="center", fontsize=6
            )
            place += 1
        groups[name] = place - (1 + len(by.keys() & SHOWN.keys())) / 2
        place += 1
    style.decades(axes, "x")
    axes.set(
        xlabel="µs of one cell and step",
        yticks=list(groups.values()),
        yticklabels=list(groups),
        xmargin=0.12,
    )
    axes.invert_yaxis()
    known = [one for one in SHOWN if one in legend]
    figure.legend([legend[one] for one in known], known, loc="outside upper left", ncols=5)
    return figure


def written(folder, name, found, page):
    """``NAME.json`` and ``NAME.md`` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in {"json": json.dumps(found, indent=1) + "\n", "md": page}.items():
        (folder / f"{name}.{ending}").write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="how long each contender is measured, at each number of lanes",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often the contenders take turns")
    parser.add_argument(
        "--workloads", default=",".join(PROBLEMS), help=f"some of {','.join(PROBLEMS)}"
    )
    parser.add_argument(
        "--jax",
        default=os.environ.get("CLIPBENCH_JAX_PYTHON", sys.executable),
        help="an interpreter that has jax",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="a folder for engines.json, engines.md, engines.svg and engines.png",
    )
    given = parser.parse_args()
    registry.load_packaged()
    machine, peer = execute.environment("cpu"), jax_versions(given.jax)
    versions = {
        "torch": torch.__version__,
        **peer,
        "python": machine["python"],
        "processor": machine["processor"],
    }
    python = given.jax if peer else None
    found, missing = measure(given.workloads.split(","), given.seconds, python, given.rounds)
    if not peer:
        missing["jax"] = (
            f"{given.jax} has no jax and optax; name another interpreter with --jax or "
            f"CLIPBENCH_JAX_PYTHON"
        )
    footer = ", ".join(f"{key} {value}" for key, value in versions.items())
    page = table(found, missing, footer)
    sys.stdout.write(page)
    if given.out:
        whole = {
            "seconds": given.seconds,
            "environment": machine,
            "versions": versions,
            "missing": missing,
            "rounds": found,
        }
        written(given.out, "engines", whole, page)
        for ending, content in style.render(chart(found, footer), ("svg", "png")).items():
            (given.out / f"engines.{ending}").write_bytes(content)


if __name__ == "__main__":
    main()
