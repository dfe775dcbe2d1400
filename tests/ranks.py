"""Real processes that train one model together, with gloo: DDP, FSDP2, and the mistakes that people
make with a clip in them.
"""

import multiprocessing
import os
import sys
from types import ModuleType

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from clipbench import feed, registry

STEPS, BATCH, LR, NORM, VALUE = 5, 32, 0.1, 0.3, 0.01


def clipped_together(params, clip):
    """The clip of the whole gradient: after the all-reduce, with the norm of all shards."""
    if clip == "norm":
        clip_grad_norm_(params, NORM)
    elif clip == "value":
        clip_grad_value_(params, VALUE)


def reduce(params):
    for param in params:
        dist.all_reduce(param.grad)
        param.grad /= dist.get_world_size()


def trained(rank, ranks, how, clip, workload):
    """The weights after some steps, whole, on every rank."""
    problem = registry.build("workload", workload, {})
    module = feed.model(problem, 0, torch.float64)
    if how == "ddp":
        module = DistributedDataParallel(module)
    elif how in ("fsdp2", "shard"):
        fully_shard(module, mesh=init_device_mesh("cpu", (ranks,)))
    params = list(module.parameters())
    optimizer = torch.optim.SGD(params, lr=LR, momentum=0.9)
    for inputs, targets in feed.batches(problem, 0, BATCH, STEPS, torch.float64):
        optimizer.zero_grad()
        mine = (tensor.chunk(ranks)[rank] for tensor in (inputs, targets))
        output = module(next(mine))
        feed.loss_of(problem, output, next(mine)).backward()
        if how == "rank":  # before the all-reduce
            clipped_together(params, clip)
            reduce(params)
        elif how == "shard":  # each by the norm of its own shard
            local = [param.grad.to_local() for param in params]
            size = torch.sqrt(sum(grad.square().sum() for grad in local))
            for grad in local:
                grad.mul_((NORM / (size + 1e-6)).clamp(max=1.0))
        else:
            clipped_together(params, clip)
        optimizer.step()
    whole = [param.full_tensor() if hasattr(param, "full_tensor") else param for param in params]
    return torch.cat([one.detach().flatten() for one in whole])


def process(rank, ranks, store, asked, end):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    registry.load_packaged()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    found = {one: trained(rank, ranks, *one).numpy() for one in asked}
    if rank == 0:
        end.send(found)
    dist.barrier()
    dist.destroy_process_group()


def together(ranks, folder, asked):
    """``(how, clip, workload)`` → the weights that so many processes reach."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        ["torch.distributed.fsdp", "torch._dynamo", "clipbench.workloads"]
    )
    here, there = server.Pipe()
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        started = [
            server.Process(target=process, args=(rank, ranks, folder / f"{ranks}", asked, there))
            for rank in range(ranks)
        ]
        for one in started:
            one.start()
    finally:
        sys.modules["__main__"] = main
    found = here.recv() if here.poll(120) else None
    for one in started:
        one.join(20)
        one.kill()
    return found
