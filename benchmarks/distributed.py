"""What a clip costs on several processes: what its norm sends, and the time of a step.

``python benchmarks/distributed.py --out results/distributed/communication`` trains an MLP with gloo
on this machine, by DDP and by FSDP2, and writes what a clip adds to a step. Calls and bytes are
counted on 2 and 4 processes; seconds are taken on 2 only, since more of them on two cores measure
contention.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

WIDTH, LAYERS, BATCH = 256, 4, 64
BLOCKS, STEPS = 15, 10
RANKS, TIMED = (2, 4), 2  # numbers of processes, and the one whose seconds mean something
LOCAL = ("wait_tensor", "_wrap_tensor_autograd")  # of the operations between processes
CLIPS: dict[str, Callable[[Iterable[Tensor]], object]] = {
    "none": lambda _: None,
    "norm": lambda params: clip_grad_norm_(params, 0.1),
    "value": lambda params: clip_grad_value_(params, 0.01),
}
COLUMNS = ["way", "clip", "processes", "tensors", "calls", "bytes", "milliseconds", "low", "high"]


class Collectives(TorchDispatchMode):
    """Counts operations between processes, and the bytes that each process puts into them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(one, DTensor) for one in types):
            return NotImplemented  # its own operations, which follow, are those of its shards
        named = func._schema.name.partition("::")[2]
        if func.namespace in ("c10d", "_c10d_functional") and named not in LOCAL:
            self.calls += 1
            given = [one for one in pytree.tree_leaves(args) if isinstance(one, Tensor)]
            self.bytes += sum(one.nbytes for one in given[:1])
        return func(*args, **(kwargs or {}))


def trainer(way: str, ranks: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model on several processes, and its optimizer."""
    torch.manual_seed(0)
    module: nn.Module = nn.Sequential(
        *(layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU()))
    )
    if way == "ddp":
        module = DistributedDataParallel(module)
    else:
        fully_shard(module, mesh=init_device_mesh("cpu", (ranks,)))
    return module, torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)


def stepped(module: nn.Module, optimizer: torch.optim.Optimizer, clip: str) -> Collectives:
    """One step; what the clip sent."""
    optimizer.zero_grad()
    module(torch.ones(BATCH, WIDTH)).square().mean().backward()
    with Collectives() as sent:
        CLIPS[clip](list(module.parameters()))
    optimizer.step()
    return sent


def timed(way: str, ranks: int) -> dict[str, list[float]]:
    """Milliseconds a step of each clip, block by block in turn."""
    built = {clip: trainer(way, ranks) for clip in CLIPS}
    found: dict[str, list[float]] = {clip: [] for clip in CLIPS}
    for _ in range(BLOCKS):
        for clip, (module, optimizer) in built.items():
            dist.barrier()
            start = time.perf_counter()
            for _ in range(STEPS):
                optimizer.zero_grad()
                module(torch.ones(BATCH, WIDTH)).square().mean().backward()
                CLIPS[clip](list(module.parameters()))
                optimizer.step()
            found[clip].append(1e3 * (time.perf_counter() - start) / STEPS)
    return found


def process(rank: int, ranks: int, folder: str, out: Any) -> None:
    """One process of ``ranks``; the first one sends the rows."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{ranks}", rank=rank, world_size=ranks
    )
    rows = []
    for way in ("ddp", "fsdp2"):
        times = timed(way, ranks) if ranks == TIMED else {}
        for clip in CLIPS:
            module, optimizer = trainer(way, ranks)
            stepped(module, optimizer, clip)
            sent = stepped(module, optimizer, clip)
            taken = times.get(clip, [])
            cuts = statistics.quantiles(taken, n=4) if taken else ["", "", ""]
            tensors = len(list(module.parameters()))
            rows.append(
                [way, clip, ranks, tensors, sent.calls, sent.bytes]
                + [f"{cut:.3f}" if taken else "" for cut in (cuts[1], cuts[0], cuts[2])]
            )
    if rank == 0:
        out.send(rows)
    dist.barrier()
    dist.destroy_process_group()


def measured(ranks: int) -> list[list[Any]]:
    """The rows of a number of processes."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        started = [
            context.Process(target=process, args=(rank, ranks, folder, there))
            for rank in range(ranks)
        ]
        for one in started:
            one.start()
        rows: list[list[Any]] = here.recv()
        for one in started:
            one.join()
    return rows


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for communication.csv")
    asked = parser.parse_args()
    rows = [row for ranks in RANKS for row in measured(ranks)]
    for row in [COLUMNS, *rows]:
        sys.stdout.write("\t".join(map(str, row)) + "\n")
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        with (asked.out / "communication.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
