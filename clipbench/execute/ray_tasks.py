"""Work on a Ray cluster, or on one that is started on this machine: an actor for each slot.

An actor keeps one worker process as `Local` does, on whatever machine Ray has put it, and says what
that process says as it comes. So a component that kills, stops or spoils its process meets the same
there as here, and nothing but Ray's own code runs beside Ray's. No folder is shared: files of
components travel as content, and records come back through Ray.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import ray
from ray import exceptions

from clipbench.errors import UsageError, counted
from clipbench.execute.cards import CUDA, ONE_CARD, Cards
from clipbench.execute.executor import Died, Portion, Setting, Work
from clipbench.execute.local import FAREWELL, Local
from clipbench.execute.offered import Request
from clipbench.execute.ray_cluster import connected, last_line

OPTIONS = ("address", "gpus")
LOOK = 0.5  # seconds after which an actor looks whether its process still lives
# name and content of each file of components
Files = tuple[tuple[str, bytes], ...]


class Host:
    """What an actor does: it keeps one worker process, which does all the work."""

    def __init__(self, files: Files) -> None:
        """A host whose processes load these files of components, from a folder of its own."""
        self.folder = Path(tempfile.mkdtemp(prefix="clipbench-"))
        # an actor is killed, and what multiprocessing keeps in files would stay
        tempfile.tempdir = str(self.folder)
        self.paths = []
        for number, (name, content) in enumerate(files):
            path = self.folder / str(number) / name
            path.parent.mkdir()
            path.write_bytes(content)
            self.paths.append(path)
        self.local = Local(1)

    def begun(self) -> None:
        """Nothing; it comes back when the host is there."""

    def carry_out(self, work: Work, setting: Setting) -> Iterator[list[Portion] | UsageError]:
        """The portions of a piece of work, as they come."""
        used = tuple(
            (path, digest) for path, (_, digest) in zip(self.paths, setting.use, strict=True)
        )
        # the one device that Ray lets this process see
        self.local.submit(work, replace(setting, use=used, card=0))
        ended = False
        while not ended:
            try:
                portions = self.local.results(LOOK)
            except UsageError as error:
                yield error
                return
            if portions:
                yield portions
            ended = any(portion.end is not None for portion in portions)

    def stop(self) -> None:
        """End what is under way after its current cell."""
        self.local.stop()

    def leave(self) -> None:
        """Leave neither a process nor a file; then this actor can be killed."""
        for worker in list(self.local.crew):
            worker.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Place:
    """What an actor is there for: the files that it loads, and a CUDA device, if it has one."""

    use: tuple[Any, ...]
    card: int | None

    @classmethod
    def of(cls, setting: Setting) -> Place:
        return cls(setting.use, setting.card if setting.device == CUDA else None)


@dataclass
class Actor:
    """The driver's side of a host, and the ticket of the work in its hand."""

    number: int
    place: Place
    handle: Any
    stream: Any  # of portions; the reference to `Host.begun` before it has begun
    begun: bool = False
    ticket: int | None = None
    environment: Mapping[str, Any] | None = None  # of its machine, once that has been said

    @classmethod
    def hired(cls, number: int, place: Place) -> Self:
        """A new actor, of which nothing is tried again: a retry would hide who was to blame.

        :raises UsageError: a file of components cannot be read.
        """
        host: Any = ray.remote(Host).options(
            num_cpus=1,
            num_gpus=0 if place.card is None else 1,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,  # `stop` and `leave` are heard while work is under way
        )
        handle = host.remote(_contents(place.use))
        return cls(number, place, handle, handle.begun.remote())

    @property
    def idle(self) -> bool:
        return self.ticket is None

    def take(self, ticket: int, work: Work, setting: Setting) -> None:
        """Put work into its hand."""
        method = self.handle.carry_out.options(num_returns="streaming")
        self.ticket, self.stream = ticket, method.remote(work, setting)

    def portion(self, one: Portion) -> Portion:
        """A portion of its host, under the ticket that is known here; an end makes it idle."""
        self.environment = one.environment or self.environment
        portion = replace(one, ticket=cast("int", self.ticket), worker=self.number)
        if one.end is not None:
            self.ticket = None
        return portion


def _contents(use: Sequence[tuple[Path, str]]) -> Files:
    try:
        return tuple((path.name, path.read_bytes()) for path, _ in use)
    except OSError as error:
        raise UsageError(f"use: {error.filename} cannot be read ({error.strerror}).") from error


class RayTasks:
    """An executor whose work runs in actors of a Ray cluster; at the end of its ``with`` block
    none is left.

    Actors stay from one shard to the next; each call has a process of its own in one of them.
    """

    seconds = 0.5
    patience = math.inf  # work waits here, and a full cluster is no fault of it

    def __init__(self, slots: int, cards: Cards = ONE_CARD) -> None:
        self.slots, self.cards = slots, cards
        self.crew: list[Actor] = []
        self.queue: deque[tuple[int, Work, Setting]] = deque()
        self.tickets = itertools.count()
        # what says that an actor has left nothing behind → the actor
        self.leaving: dict[Any, Any] = {}
        self.stopped = False
        self.stillborn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in list(self.crew):
            self._dismiss(actor)
        self._see_off(FAREWELL)
        for handle in self.leaving.values():
            ray.kill(handle)

    def submit(self, work: Work, setting: Setting) -> int:
        ticket = next(self.tickets)
        self.queue.append((ticket, work, setting))
        return ticket

    def results(self, timeout: float) -> list[Portion]:
        self._see_off(0)
        self._hand_out()
        heard = {actor.stream: actor for actor in self.crew if not (actor.begun and actor.idle)}
        if not heard:
            time.sleep(timeout)
            return []
        ready, _ = ray.wait(list(heard), timeout=timeout)
        if ready and len(heard) > 1:
            ready, _ = ray.wait(list(heard), num_returns=len(heard), timeout=0)
        portions = [portion for stream in ready for portion in self._hear(heard[stream])]
        self._hand_out()
        return portions

    def cancel(self, ticket: int) -> None:
        self.queue = deque(one for one in self.queue if one[0] != ticket)
        for actor in [one for one in self.crew if one.ticket == ticket]:
            self._dismiss(actor)

    def stop(self) -> None:
        self.stopped = True
        self.queue.clear()
        for actor in self.crew:
            actor.handle.stop.remote()

    def _hand_out(self) -> None:
        """Hand each piece of work to an actor that is free for it, the oldest first; its host says
        when it has begun.
        """
        waiting = deque[tuple[int, Work, Setting]]()
        wanted: dict[Place, int] = {}
        for ticket, work, setting in self.queue:
            place = Place.of(setting)
            free = (one for one in self.crew if one.idle and one.begun and one.place == place)
            if (actor := next(free, None)) is not None:
                actor.take(ticket, work, setting)
            else:
                waiting.append((ticket, work, setting))
                wanted[place] = wanted.get(place, 0) + 1
        self.queue = waiting
        for place, number in wanted.items():
            coming = sum(not one.begun and one.place == place for one in self.crew)
            for _ in range(number - coming):
                self._hire(place)

    def _hire(self, place: Place) -> None:
        """Ask for an actor, unless all slots are taken; an idle one of another place makes room."""
        if len(self.crew) >= self.slots:
            spare = (one for one in self.crew if one.idle and one.begun and one.place != place)
            if (other := next(spare, None)) is None:
                return
            self._dismiss(other)
        taken = {one.number for one in self.crew}
        number = next(number for number in itertools.count() if number not in taken)
        self.crew.append(Actor.hired(number, place))

    def _dismiss(self, actor: Actor) -> None:
        """End an actor, whatever it does."""
        self.crew.remove(actor)
        if actor.begun:
            self.leaving[actor.handle.leave.remote()] = actor.handle
        else:
            ray.kill(actor.handle)

    def _see_off(self, timeout: float) -> None:
        """Kill the actors that have left nothing behind."""
        if self.leaving:
            gone, _ = ray.wait([*self.leaving], num_returns=len(self.leaving), timeout=timeout)
            for one in gone:
                ray.kill(self.leaving.pop(one))

    def _hear(self, actor: Actor) -> list[Portion]:
        """The portions that follow from what an actor says next."""
        try:
            if not actor.begun:
                ray.get(actor.stream)
                actor.begun, self.stillborn = True, False
                return []
            said = ray.get(next(actor.stream))
        except StopIteration:
            return []
        except exceptions.RayTaskError:
            raise
        except exceptions.RayError as error:
            return self._bury(actor, error)
        if isinstance(said, UsageError):
            raise said
        return [actor.portion(one) for one in said]

    def _bury(self, actor: Actor, error: exceptions.RayError) -> list[Portion]:
        """The portion that tells of an actor that is gone with the work in its hand; none if it had
        no work.

        :raises UsageError: it could not be set up, or was the second in a row to end before it
            had begun.
        """
        self.crew.remove(actor)
        ray.kill(actor.handle)  # it may only be out of reach
        if actor.ticket is not None:
            died = Died("its Ray actor is gone, or its machine", lost=True, killed=True)
            return [actor.portion(Portion(0, environment=actor.environment, end=died))]
        if not self.stopped:
            failed = getattr(error, "actor_init_failed", False)
            if failed or self.stillborn or not isinstance(error, exceptions.RayActorError):
                raise UsageError(
                    f"--executor ray: no process could be set up on the cluster "
                    f"({last_line(error)}); clipbench must be installed on each of its machines."
                )
            self.stillborn = True
        return []


# ------------------------------------------------------------------------------------- the cluster


@contextmanager
def ray_tasks(request: Request) -> Iterator[RayTasks]:
    """Actors of the cluster at the option ``address``, or at Ray's own variable RAY_ADDRESS; of
    one that is started on this machine, for as long as it is used, if neither is given.

    One actor a CPU of the cluster works, and one a GPU, unless the options say less.

    :raises UsageError: no cluster answers there, or it has too few GPUs.
    """
    request.known("ray", OPTIONS)
    gpus = _count(request.options.get("gpus"))
    address = request.options.get("address") or os.environ.get("RAY_ADDRESS")
    with connected(address, request):
        there = ray.cluster_resources()
        where = f"the cluster at {address}" if address else "this machine"
        slots = request.workers or max(1, int(there.get("CPU", 1)))
        with RayTasks(slots, _cards(request, int(there.get("GPU", 0)), gpus, where)) as made:
            yield made


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or not int(text):
        raise UsageError(f'--executor-option gpus="{text}": it must be a whole number from 1.')
    return int(text)


def _cards(request: Request, there: int, asked: int | None, where: str) -> Cards:
    """The GPUs of a cluster; each is the only one that its actor sees.

    :raises UsageError: there are fewer than are asked for, or none, and a cell needs one.
    """
    if asked is not None and asked > there:
        raise UsageError(
            f"--executor-option gpus={asked}: {where} has {counted(there, 'GPU')} for Ray."
        )
    if request.device == CUDA and not there:
        raise UsageError(
            f"--executor ray: the study has cells for CUDA, and {where} has no GPU for Ray; say "
            f"--device cpu."
        )
    return Cards(tuple(range(asked or there))) if there else ONE_CARD
