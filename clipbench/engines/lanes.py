"""Lanes: many cells at once, as one program.

Cells that share workload, batch size and step count become lanes of stacked tensors. One program
takes the loss and the gradient of all lanes; then each *structure*, an optimizer and a clip with
the settings that are no plain numbers, updates its own lanes. Plain numbers, lr and thresholds
among them, differ from lane to lane.

The weights of a lane are one row of a matrix, lanes × elements: what treats all elements alike
takes one operation, whatever the model's number of tensors. No operation mixes rows: a lane's
result does not depend on its companions, nor on their NaN.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from clipbench import events, feed, lr_schedules, measures, metrics, registry, step
from clipbench.engines import program, shares
from clipbench.engines.evaluating import evaluate
from clipbench.engines.native import NotCompiled, Stepper, Untranslated, drawn
from clipbench.engines.program import Nested, flat
from clipbench.engines.record import Job, Record, conclude, stops
from clipbench.engines.stacked import programs
from clipbench.engines.structure import Lane, Pass, Segment, Structure, arranged
from clipbench.streams import each

EAGER, NATIVE = "batched", "batched, native"
AT_ONCE = 2**15  # native steps, of all lanes together, whose products stay in a cache
WARM_UP = 3  # steps on CUDA before one is recorded: libraries make room for themselves in the first


class Lanes:
    """Some cells in training, a lane each.

    :param jobs: cells of one `structure.shape`, those of one structure next to each other; at least
        `FEWEST_LANES`.
    :param native: whether their steps are a program of this machine.
    :raises NoLanes: the workload, or a rule, cannot have lanes.
    :raises Untranslated: there is no program of this machine.
    :raises NotCompiled: there is no compiler, or it fails.
    """

    def __init__(self, jobs: Sequence[Job], native: bool = False) -> None:
        cell = jobs[0].cell
        self.jobs = list(jobs)
        self.structures = [Structure.of(job) for job in jobs]
        self.workload = registry.build("workload", cell.workload.name, cell.workload.own)
        shares.refuse(self.workload, cell)
        self.dtype, self.device = feed.DTYPES[cell.dtype], cell.device
        self.programs = programs(self.workload, self.dtype, self.device, Pass.of(cell))
        self.model = self.programs.model
        self.least = measures.least(step.precision(self.dtype), self.model.elements)
        self.seeds = list(dict.fromkeys(job.cell.seed for job in jobs))
        self.sources = [
            feed.source(self.workload, seed, cell.batch, cell.steps, self.dtype, self.device)
            for seed in self.seeds
        ]
        self.batches = [each(source, cell.steps) for source in self.sources]
        modules = [
            feed.model(
                self.workload, seed, self.dtype, self.device, self.model.how.mixed, cell.replica
            )
            for seed in self.seeds
        ]
        self.seed_index = self._seed_indices()
        self.weights = torch.stack([self.model.flat(module) for module in modules])[self.seed_index]
        kept = [self.model.kept(module) for module in modules]
        self.fixed = tuple(
            torch.stack(tensors)[self.seed_index] for tensors in zip(*kept, strict=True)
        )
        self.segments = list(self._segments())
        self.taken = 0  # steps
        self.pending: list[list[Tensor]] = []
        self.ended: set[int] = set()
        self.measured: list[np.ndarray] = []  # by native steps: loss and products × steps × lanes
        self.stepper = self._stepper() if native else None
        self._forget()

    def _stepper(self) -> Stepper:
        """What takes native steps, built for the shapes of these lanes."""
        batch = tuple(tensor[None] for tensor in self._one_batch())
        self.batch_bytes = sum(tensor.nbytes for tensor in batch)
        return Stepper(self.programs, self.weights, batch, self.fixed, self.segments)  # type: ignore[arg-type]

    def _one_batch(self) -> tuple[Tensor, Tensor]:
        """A batch as the lanes are given them, which none of them trains on."""
        size = self.jobs[0].cell.batch
        drawn = feed.batches(self.workload, self.seeds[0], size, 1, self.dtype, self.device)
        return next(drawn)

    def _forget(self) -> None:
        """Drop the CUDA graph of a step: the tensors that it was recorded with are no longer in
        use.
        """
        self.warm = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.recorded_batch: tuple[Tensor, ...] = ()
        self.recorded_products: list[Tensor] = []

    def _seed_indices(self) -> Tensor:
        """The index of each lane's seed in ``seeds``."""
        return torch.tensor(
            [self.seeds.index(job.cell.seed) for job in self.jobs], device=self.device
        )

    def _segments(self) -> Iterator[Segment]:
        begin = 0
        for structure, group in groupby(self.jobs, key=Structure.of):
            jobs = list(group)
            end = begin + len(jobs)
            settings = [structure.numbers(job) for job in jobs]
            optimizer, clip = (
                tuple(
                    self._numbers(row)
                    for row in zip(*(numbers[kind] for numbers in settings), strict=True)
                )
                for kind in ("optimizer", "clip")
            )
            lane = Lane(self._numbers([job.cell.lr for job in jobs]), optimizer, clip, state=())
            lane = self.programs.begun(structure, self.weights[begin:end], lane)
            yield Segment(structure, begin, end, lane, self._course(jobs))
            begin = end

    def _course(self, jobs: Sequence[Job]) -> Tensor | None:
        schedules = {job.cell.schedule for job in jobs}
        if schedules == {lr_schedules.CONSTANT}:
            return None
        shares = {
            schedule: lr_schedules.factors(schedule, jobs[0].cell.steps) for schedule in schedules
        }
        rows = [[job.cell.lr * share for share in shares[job.cell.schedule]] for job in jobs]
        return torch.tensor(rows, dtype=torch.float64, device=self.device)

    def _numbers(self, values: Sequence[float]) -> Tensor:
        # In float64 whatever the weights are, as a plain number is: 1 - .999 in float32 is 2e-5
        # off.
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def draw(self) -> tuple[Tensor, Tensor]:
        """The next batch of every lane; lanes of one seed have the same."""
        drawn = [next(stream) for stream in self.batches]
        if len(drawn) == 1:
            return tuple(
                tensor.expand(len(self.jobs), *tensor.shape).contiguous() for tensor in drawn[0]
            )  # type: ignore[return-value]
        inputs, targets = (
            torch.stack(tensors)[self.seed_index] for tensors in zip(*drawn, strict=True)
        )
        return inputs, targets

    def advance(self, steps: int) -> None:
        """Some training steps of every lane, measured."""
        if self.stepper is None:
            for _ in range(steps):
                self.step(*self.draw())
            return
        while steps:
            most = min(steps, max(1, AT_ONCE // len(self.jobs)))
            batch = drawn(self.sources, most, self.batch_bytes)
            self.measured.append(
                self.stepper.advance(
                    batch,
                    self.weights,
                    self.segments,
                    self.seed_index.tolist(),
                    self.ended,
                    self.taken,
                )
            )
            self.taken += batch.steps
            steps -= batch.steps

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """One training step of every lane, measured; nothing waits for the device."""
        for segment in self.segments:
            if segment.course is not None:
                segment.lane.lr.copy_(segment.course[:, self.taken])
        self.taken += 1
        self.pending.append(
            self._take_step_on_cuda(inputs, targets)
            if self.device == "cuda"
            else self._take_step(inputs, targets)
        )

    def _take_step_on_cuda(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """The losses and products of a step on CUDA: after the first few steps one graph, a
        single launch for the host.
        """
        if self.warm < WARM_UP:
            self.warm += 1
            return self._take_step(inputs, targets)
        if self.graph is None:
            self.recorded_batch = inputs.clone(), targets.clone()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # records the step and does not take it
                self.recorded_products = self._take_step(*self.recorded_batch)
        for buffer, tensor in zip(self.recorded_batch, (inputs, targets), strict=True):
            buffer.copy_(tensor, non_blocking=True)
        self.graph.replay()
        return [tensor.clone() for tensor in self.recorded_products]

    def _take_step(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """The losses of a step that is taken here, and its products in the order of
        ``measures.PRODUCTS``.
        """
        batch = (self.weights, inputs, targets, self.fixed)
        grads, losses = self.programs.gradient(*batch)(*flat(batch))
        moved, rows, stepped = [], [], []
        for segment in self.segments:
            lanes = slice(segment.begin, segment.end)
            arguments = (self.weights[lanes], grads[lanes], segment.lane)
            weights, products, lane = self._update(segment, arguments, wide=self.device == "cuda")
            moved.append(weights)
            rows.append(self._exact(products, segment, arguments))
            stepped.append(lane)
        self._move(moved[0] if len(moved) == 1 else torch.cat(moved), stepped)
        joined = (
            rows[0] if len(rows) == 1 else [torch.cat(column) for column in zip(*rows, strict=True)]
        )
        return [losses, *joined]

    def _update(
        self, segment: Segment, arguments: Sequence[Nested], *, wide: bool
    ) -> tuple[Any, ...]:
        """The update of a segment, by its program: pure, so that it can be taken again."""
        return self.programs.update(segment.structure, *arguments, wide=wide)(*flat(arguments))

    def _exact(
        self, products: Sequence[Tensor], segment: Segment, arguments: Sequence[Nested]
    ) -> Sequence[Tensor]:
        """The products; those of a lane whose squares left the range come from the same update
        in float64, the others stay.
        """
        lost = None if self.device == "cuda" else step.lost(products, self.least)
        if lost is None:
            return products
        _, wide, _ = self._update(segment, arguments, wide=True)
        return [
            torch.where(lost, exact, plain) for exact, plain in zip(wide, products, strict=True)
        ]

    def _move(self, weights: Tensor, stepped: Sequence[Lane]) -> None:
        """Keep the weights and states after a step; on CUDA in place, because a graph knows
        tensors by their address.
        """
        if self.device == "cuda":
            olds = [
                self.weights,
                *(tensor for segment in self.segments for tensor in segment.lane.remembered),
            ]
            news = [weights, *(tensor for lane in stepped for tensor in lane.remembered)]
            program.write(olds, news)
            return
        self.weights = weights
        for segment, lane in zip(self.segments, stepped, strict=True):
            # A value that is the same in every lane comes as one number for all: to freeze one lane
            # would change the others.
            state, memory = (
                tuple(tensor.contiguous() for tensor in some) for some in (lane.state, lane.memory)
            )
            segment.lane = segment.lane._replace(state=state, memory=memory)

    def rows(self) -> np.ndarray:
        """The rows of the steps since the last call, steps × lanes × measures: the one moment
        that waits for the device.
        """
        if self.stepper is not None:
            (loss, *products), self.measured = np.concatenate(self.measured, 1), []
            return self._measures(loss, products)
        loss, *products = (
            torch.stack(column).double().cpu().numpy() for column in zip(*self.pending, strict=True)
        )
        self.pending = []
        return self._measures(loss, products)

    def _measures(self, loss: np.ndarray, products: Sequence[np.ndarray]) -> np.ndarray:
        return measures.rows(loss, products, self.model.elements, step.precision(self.dtype))

    def look(self) -> None:
        """Note the grain of the next step's programs, which is one of a CPU's registers."""
        if self.device == "cuda":
            met = [None, *(segment.structure for segment in self.segments)]
            self.programs.grain.update(dict.fromkeys(met, 1))
            return
        inputs, targets = (torch.stack([tensor] * len(self.jobs)) for tensor in self._one_batch())
        grain = self.programs.grain
        if None not in grain:
            grain[None] = program.grain(
                self.programs.gradient(self.weights, inputs, targets, self.fixed)
            )
        for segment in self.segments:
            if segment.structure not in grain:
                weights = self.weights[segment.begin : segment.end]
                grads = self.model.like_gradient(weights, inputs)
                update = self.programs.update(
                    segment.structure, weights, grads, segment.lane, wide=False
                )
                grain[segment.structure] = program.grain(update)

    def freeze(self, lanes: Sequence[int]) -> None:
        """Set ended lanes to zeros: arithmetic with NaN and denormals may be slow."""
        self.ended |= set(lanes)
        for lane in lanes:
            segment = next(
                segment for segment in self.segments if segment.begin <= lane < segment.end
            )
            self.weights[lane] = 0
            for tensor in (
                segment.lane.lr,
                *([] if segment.course is None else [segment.course]),
                *segment.lane.remembered,
            ):
                tensor[lane - segment.begin] = 0

    def keep(self, lanes: Sequence[int]) -> None:
        """Go on with some of the lanes only, those of one segment together; one may be named
        twice.
        """
        self.ended = {at for at, lane in enumerate(lanes) if lane in self.ended}
        self.jobs = [self.jobs[lane] for lane in lanes]
        self.structures = [self.structures[lane] for lane in lanes]
        index = torch.tensor(lanes, device=self.device)
        self.weights, self.seed_index = self.weights[index], self.seed_index[index]
        self.fixed = tuple(tensor[index] for tensor in self.fixed)
        begin, segments = 0, []
        for segment in self.segments:
            mine = [lane - segment.begin for lane in lanes if segment.begin <= lane < segment.end]
            if not mine:
                continue
            own = torch.tensor(mine, device=self.device)
            lane = pytree.tree_map(operator.itemgetter(own), segment.lane)
            course = None if segment.course is None else segment.course[own]
            segments.append(Segment(segment.structure, begin, begin + len(mine), lane, course))
            begin += len(mine)
        self.segments = segments
        self._forget()


def run(jobs: Sequence[Job], native: bool = False) -> list[Record]:
    """Train cells of one `structure.shape` as lanes; their records, in the order of ``jobs``.

    :param native: whether by a program of this machine; if there is none, as without.
    :raises NoLanes: the workload, or a rule, cannot have lanes.
    """
    start = time.perf_counter()
    try:
        together, cells = begin(jobs, native)
    except (Untranslated, NotCompiled):
        together, cells = begin(jobs)
    engine = EAGER if together.stepper is None else NATIVE
    records = [
        Record(job, threshold=job.threshold, threads=torch.get_num_threads(), engine=engine)
        for job in jobs
    ]
    _train(records, together, cells)
    for record in records:
        record.seconds = (time.perf_counter() - start) / len(jobs)
    return records


def begin(jobs: Sequence[Job], native: bool = False) -> tuple[Lanes, list[int]]:
    """The lanes of some jobs, and which job each lane has.

    :param native: whether their steps are a program of this machine.
    :raises NoLanes: the workload, or a rule, cannot have lanes.
    :raises Untranslated: there is no such program.
    :raises NotCompiled: there is no compiler, or it fails.
    """
    cell = jobs[0].cell
    workload = registry.build("workload", cell.workload.name, cell.workload.own)
    structures = [Structure.of(job) for job in jobs]
    if native:
        order = arranged(structures, {})
        return Lanes([jobs[number] for number in order], native), order
    grain = programs(workload, feed.DTYPES[cell.dtype], cell.device, Pass.of(cell)).grain
    order = arranged(structures, grain)
    together = Lanes([jobs[number] for number in order])
    together.look()
    # the programs were new, and ask for more
    if order != (again := arranged(structures, grain)):
        return Lanes([jobs[number] for number in again]), again
    return together, order


def _train(records: Sequence[Record], lanes: Lanes, cells: Sequence[int]) -> None:
    """Train to the end, or until every cell has ended. Lane n trains record ``cells[n]``; of
    several the first counts.
    """
    cell = records[0].job.cell
    curves: list[list[np.ndarray]] = [[] for _ in records]
    # of every record that has not ended
    lane_of = {number: cells.index(number) for number in range(len(records))}

    def note(updates: int) -> None:
        evaluations = evaluate(lanes, lane_of.values(), updates)
        for number, lane in lane_of.items():
            records[number].evaluations += evaluations[lane]

    note(0)
    done = 0
    for stop in stops(cell):
        lanes.advance(stop - done)
        done, rows = stop, lanes.rows()
        ended = {number: events.ends(rows[:, lane]) for number, lane in lane_of.items()}
        for number, last in ended.items():
            curves[number].append(
                rows[: int(np.argmax(last)) + 1 if last.any() else None, lane_of[number]]
            )
        lanes.freeze(
            [lane for lane, number in enumerate(cells) if number in ended and ended[number].any()]
        )
        lane_of = {number: lane for number, lane in lane_of.items() if not ended[number].any()}
        if not lane_of:
            break
        note(done)
        live = list(lane_of)
        again = arranged(
            [lanes.structures[lane_of[number]] for number in live], lanes.programs.grain
        )
        if lanes.stepper is None and len(again) <= len(lanes.jobs) // 2:
            lanes.keep([lane_of[live[position]] for position in again])
            cells = [live[position] for position in again]
            lane_of = {number: cells.index(number) for number in live}
    for record, curve in zip(records, curves, strict=True):
        record.metric = metrics.name_of(lanes.workload.metric)
        record.rows = np.concatenate(curve)
        conclude(record, lanes.workload)
