"""The loop: one cell at a time, as a user would write it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from clipbench import events, feed, lr_schedules, metrics, optimizers, trees
from clipbench.cell import Cell
from clipbench.engines import shares
from clipbench.engines.record import (
    CHUNK,
    Components,
    Job,
    Record,
    conclude,
    graded,
    stops,
)
from clipbench.engines.sharded import Sharded
from clipbench.errors import UsageError
from clipbench.events import Evaluation
from clipbench.step import Meter, Unmeasured
from clipbench.vocabulary import APART, SHARD, UPDATE


def run(job: Job) -> Record:
    """Train one cell; whatever it raises becomes a record that says why it failed."""
    start = time.perf_counter()
    record = Record(job, threads=torch.get_num_threads())
    try:
        record.threshold = job.threshold
        components = Components.of(job)
        # for dropout and the like
        with trees.seeded(components.workload.name, job.cell.seed, "training", job.cell.device):
            _loop(record, components)
    except Exception as error:  # noqa: BLE001 - a user-defined component may raise anything; the matrix goes on
        record.fail(error)
    record.seconds = time.perf_counter() - start
    return record


def _loop(record: Record, components: Components) -> None:
    cell, workload = record.job.cell, components.workload
    record.metric = metrics.name_of(workload.metric)
    trainer = Trainer(components, cell)
    batches = feed.batches(workload, cell.seed, cell.batch, cell.steps, trainer.dtype, cell.device)
    record.evaluations += evaluate(workload, trainer.module, cell, 0)
    done, blocks = 0, []
    for stop in stops(cell):
        raised = None
        try:
            for _ in range(done, stop):
                trainer.step(*next(batches))
        except Exception as error:  # noqa: BLE001 - steps after a non-finite one may raise anything; the run ended before them
            raised = error
        rows = trainer.meter.rows()
        ended = events.ends(rows)
        if raised is not None and not ended.any():
            raise raised
        blocks.append(rows[: int(np.argmax(ended)) + 1] if ended.any() else rows)
        if ended.any():
            break
        done = stop
        record.evaluations += evaluate(workload, trainer.module, cell, done)
    record.rows = np.concatenate(blocks)
    conclude(record, workload)


class Trainer:
    """One module in training: a real ``torch.optim`` object, ``loss.backward()``, the clip,
    ``optimizer.step()``.

    :param metered: whether its steps are measured; a step that is timed is not.
    """

    def __init__(self, components: Components, cell: Cell, metered: bool = True) -> None:
        self.workload, self.parts = components.workload, cell.accumulate
        shares.refuse(self.workload, cell)
        self.dtype = feed.DTYPES[cell.dtype]
        self.module = feed.model(
            self.workload,
            cell.seed,
            self.dtype,
            cell.device,
            mixed=cell.dtype == feed.MIXED,
            replica=cell.replica,
        )
        named = {
            name: param for name, param in self.module.named_parameters() if param.requires_grad
        }
        self.meter = Meter(list(named.values())) if metered else Unmeasured()
        self.backward = self._backward
        if cell.on == UPDATE:
            self.clip: Callable[[], bool] = untouched
            pure = optimizers.Rule(components.optimizer, named.items(), cell.lr)
            pure.between = _on_update(components.clip, named, self.meter)
            self.optimizer: torch.optim.Optimizer = pure
        else:
            self.optimizer = optimizers.torch_optimizer(
                components.optimizer, list(named.values()), cell.lr, named
            )
            # The clip "none" must cost nothing: its rule would be handed a copy of the weights in
            # vain.
            clips = getattr(components.clip, "name", None) != "none"
            rule = Sharded(components.clip, cell.ranks) if cell.on == SHARD else components.clip
            self.clip = self._on_dense(clipper(rule, named), named) if clips else untouched
        if cell.on in APART:
            if reason := feed.sparse_at_first(self.workload):
                raise UsageError(f'workload "{self.workload.name}": {reason}')
            size = cell.batch // cell.pieces
            pieces = ByPiece(self.workload, self.module, components.clip, named, self.parts, size)
            self.backward, self.clip = pieces.backward, pieces.clip
        # From the start again for a caller who takes more steps than the cell has, as a timing
        # does.
        lrs = [cell.lr * factor for factor in lr_schedules.factors(cell.schedule, cell.steps)]
        self.lrs = itertools.cycle(lrs) if cell.schedule != lr_schedules.CONSTANT else None

    def _on_dense(
        self, clip: Callable[[], bool], named: Mapping[str, nn.Parameter]
    ) -> Callable[[], bool]:
        """``clip``, but it refuses a sparse gradient and names the parameter: torch would name
        its own back ends.
        """
        looked = False

        def checked() -> bool:
            nonlocal looked
            if not looked and (reason := feed.sparse(named.items())):
                raise UsageError(f'workload "{self.workload.name}": {reason}')
            looked = True
            return clip()

        return checked

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """One training step, measured."""
        if self.lrs is not None:
            lr = next(self.lrs)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        self.optimizer.zero_grad()
        loss = self.backward(inputs, targets)
        self.meter.raw()
        if self.clip():
            self.meter.clipped()
        self.optimizer.step()
        self.meter.step(loss)

    def _backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch; its gradient goes into ``.grad``, part after part if the batch is
        taken in parts.
        """
        if self.parts == 1:
            loss = feed.loss_of(self.workload, self.module(inputs), targets)
            loss.backward()
            return loss
        total = torch.zeros((), dtype=self.dtype, device=inputs.device)
        for share, some, wanted in feed.parts(self.workload, inputs, targets, self.parts):
            loss = share * feed.loss_of(self.workload, self.module(some), wanted)
            loss.backward()
            total += loss.detach()
        return total


def untouched() -> bool:
    """False: stands in for a clip if the gradient is not clipped."""
    return False


class ByPiece:
    """Clips the gradient of every piece of a batch by itself and takes the mean: of every example,
    as private training does without its noise, or of what each of several processes has.

    The raw gradient is the mean of the pieces' gradients. ``torch.func`` takes them, for one part
    of the batch at a time: a module that mixes the examples of a batch, as BatchNorm does, cannot
    be trained so. The number of parts changes the memory that this takes, and nothing else.

    :param size: examples of a piece.

    **Source**: Abadi et al. 2016; Menon, Rawat, Reddi & Kumar 2020 against label noise.
    """

    def __init__(
        self,
        workload: Any,
        module: nn.Module,
        clip: Any,
        named: Mapping[str, nn.Parameter],
        parts: int,
        size: int,
    ) -> None:
        self.workload, self.named, self.clipper, self.parts = workload, named, clip, parts
        self.size = size
        self.clipped = dict[str, Tensor]()

        def loss(params: trees.Tree, inputs: Tensor, targets: Tensor) -> Tensor:
            output = torch.func.functional_call(module, params, (inputs,))
            return feed.loss_of(workload, output, targets)

        self.each = torch.func.vmap(
            torch.func.grad_and_value(loss), in_dims=(None, 0, 0), randomness="different"
        )

    def backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss; the raw gradient goes into ``.grad``."""
        params = {name: param.detach() for name, param in self.named.items()}
        sums = [self._part(params, *piece) for piece in self._pieces(inputs, targets)]
        raw, self.clipped, loss = sums[0]
        for more, clipped, further in sums[1:]:
            raw, self.clipped = (
                trees.map(torch.add, raw, more),
                trees.map(torch.add, self.clipped, clipped),
            )
            loss = loss + further
        for name, param in self.named.items():
            param.grad = raw[name]
        return loss

    def _pieces(self, inputs: Tensor, targets: Tensor) -> list[tuple[Any, Tensor, Tensor]]:
        """The parts of a batch, each as ``(share, inputs, targets)``; one share an example if
        the workload weighs its examples.
        """
        if not hasattr(self.workload, "weight"):
            return feed.parts(self.workload, inputs, targets, self.parts)
        weights = torch.stack([feed.weight(self.workload, one) for one in targets.split(1)])
        return list(
            zip(
                *(
                    tensor.chunk(self.parts)
                    for tensor in (weights / weights.sum(), inputs, targets)
                ),
                strict=True,
            )
        )

    def _part(
        self, params: trees.Tree, share: Any, inputs: Tensor, targets: Tensor
    ) -> tuple[trees.Tree, trees.Tree, Tensor]:
        """What a part of the batch adds to the raw gradient, to the clipped gradient and to the
        loss.
        """
        try:
            apart = (tensor.unflatten(0, (-1, self.size)) for tensor in (inputs, targets))
            grads, losses = self.each(params, *apart)
        # torch's own message is about transforms that the user did not write
        except RuntimeError as error:
            raise RuntimeError(
                f"the model has no gradient of a single example, which the clip is applied to "
                f"({error})"
            ) from error
        clipped = torch.func.vmap(lambda tree: self.clipper.update(tree, {}, params)[0])(grads)
        raw, clipped = (trees.map(partial(_contribution, share), tree) for tree in (grads, clipped))
        return raw, clipped, _contribution(share, losses)

    def clip(self) -> bool:
        """True; the mean of the clipped gradients goes into ``.grad``."""
        for name, param in self.named.items():
            param.grad = self.clipped[name]
        return True


def _contribution(share: Any, values: Tensor) -> Tensor:
    """What some examples add to the mean: their mean times one share, or each value times its
    own; at share 0 it may be NaN.
    """
    if not isinstance(share, Tensor):
        return values.mean(0) * share
    shares = share.to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    return torch.where(shares == 0, torch.zeros_like(values), shares * values).sum(0)


def _on_update(
    clip: Any, named: Mapping[str, nn.Parameter], meter: Meter
) -> Callable[[trees.Tree, trees.Tree], trees.Tree]:
    """A function ``(direction, params) → clipped direction``, which a pure rule calls before it
    steps.
    """
    state = (
        clip.init({name: param.detach().clone() for name, param in named.items()})
        if hasattr(clip, "init")
        else {}
    )

    def between(direction: trees.Tree, params: trees.Tree) -> trees.Tree:
        nonlocal state
        clipped, state = clip.update(direction, state, params)
        meter.update([direction[name] for name in named], [clipped[name] for name in named])
        return clipped

    return between


def clipper(clip: Any, named: Mapping[str, nn.Parameter]) -> Callable[[], bool]:
    """A function that clips the gradients of ``named`` in place, and says whether any clip touched
    them.

    It takes torch's own in-place path if the clip has one, and the pure rule otherwise.
    """
    params = list(named.values())
    if hasattr(clip, "clip_"):

        def in_place() -> bool:
            clip.clip_(params)
            return True

        return in_place

    def weights_now() -> trees.Tree:
        """Not copies; looked up at every step, for an optimizer may give a parameter other
        memory.
        """
        return {name: param.detach() for name, param in named.items()}

    state = (
        _unshared_state(clip.init(weights_now()), weights_now()) if hasattr(clip, "init") else {}
    )

    @torch.no_grad()
    def pure() -> bool:
        nonlocal state
        weights = weights_now()
        # A parameter without a gradient counts as one whose gradient is zero, and stays without
        # one.
        grads = {
            name: torch.zeros_like(param) if param.grad is None else param.grad
            for name, param in named.items()
        }
        clipped, state = clip.update(grads, state, weights)
        state = _unshared_state(state, weights)
        if clipped is grads:
            return False
        for name, param in named.items():
            if param.grad is not None:
                param.grad = clipped[name]
        return True

    return pure


def _unshared_state(state: Any, weights: trees.Tree) -> Any:
    """A clip's state; a tensor that shares memory with the weights is copied: the weights
    change, and the state must not.
    """
    if not state:
        return state
    moving = {weight.untyped_storage().data_ptr() for weight in weights.values()}
    return pytree.tree_map_only(
        Tensor,
        lambda leaf: leaf.clone() if leaf.untyped_storage().data_ptr() in moving else leaf,
        state,
    )


@torch.no_grad()
def evaluate(workload: Any, module: nn.Module, cell: Cell, updates: int) -> list[Evaluation]:
    """Loss and metrics of ``module`` over whole splits, graded by the host."""
    splits, on_host = (
        feed.splits(workload, cell.seed, feed.DTYPES[cell.dtype], device)
        for device in (cell.device, "cpu")
    )
    evaluations: list[Evaluation] = []
    module.eval()
    for split in feed.SPLITS:
        inputs, targets = splits[split][0], on_host[split][1]
        outputs = torch.cat([torch.atleast_1d(module(chunk)) for chunk in inputs.split(CHUNK)])
        outputs = outputs.cpu()  # the one wait
        evaluations += graded(workload, outputs, targets, updates, split, updates == cell.steps)
    module.train()
    return evaluations
