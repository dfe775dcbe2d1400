"""Executors that start no process: one runs everything here, one does to its results what a
network and a cluster may do.
"""

import itertools
import time
from collections import deque

import torch

from clipbench.execute import Cards, environment
from clipbench.execute.executor import Call, Died, Done, Portion
from clipbench.execute.worker import answers, carried_out
from clipbench.execute.world import World


class InProcess:
    """Runs work where it is submitted, one piece at each look for results."""

    slots, seconds, patience, cards = 3, 0.0, 60.0, Cards()

    def __init__(self):
        self.queue, self.tickets, self.stopped, self.here = (
            deque(),
            itertools.count(),
            False,
            environment("cpu"),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # as every process that trains is prepared, this one is for a while
        torch.set_flush_denormal(False)

    def submit(self, work, setting):
        ticket = next(self.tickets)
        self.queue.append((ticket, work, setting))
        return ticket

    def results(self, timeout):
        if not self.queue:
            time.sleep(0.001)
            return []
        ticket, work, setting = self.queue.popleft()
        if isinstance(work, Call):
            return [Portion(ticket), Portion(ticket, end=carried_out(work, setting))]
        portions = [Portion(ticket)]
        for answer in answers(work, World()):
            if not isinstance(answer.said, list):
                return [
                    *portions,
                    Portion(ticket, notes=answer.notes, environment=self.here, end=answer.said),
                ]
            portions.append(Portion(ticket, answer.said, answer.notes, self.here))
        return [*portions, Portion(ticket, environment=self.here, end=Done())]

    def cancel(self, ticket):
        self.queue = deque(one for one in self.queue if one[0] != ticket)

    def stop(self):
        self.stopped = True
        self.queue.clear()


class Hostile(InProcess):
    """Loses, repeats, delays, reorders and corrupts what comes of a ticket; each fate befalls
    every few tickets.
    """

    patience = 0.3
    fates = (
        "kind",
        "never begins",
        "repeats",
        "is late",
        "dies at the end",
        "another cell",
        "kind",
        "no record",
        "rubbish",
    )

    def __init__(self):
        super().__init__()
        self.late, self.before, self.seen = [], [], set()

    def results(self, timeout):
        if not self.queue:
            time.sleep(0.02)
            late, self.late = self.late, []
            return late
        ticket, work, _ = self.queue[0]
        portions = super().results(timeout)
        fate = self.fates[ticket % len(self.fates)]
        self.seen.add(fate)
        before, self.before = self.before, portions
        if isinstance(work, Call):
            return portions
        if fate == "is late":
            self.late += portions[1:]
        return {
            "kind": portions,
            "never begins": [],
            "repeats": [*portions, *before, *portions],
            "is late": portions[:1],
            "dies at the end": [
                *portions[:-1],
                Portion(ticket, end=Died("the machine is gone", lost=True, killed=True)),
            ],
            "another cell": [
                Portion(ticket, [one for portion in before for one in portion.records]),
                *portions,
            ],
            "no record": [portions[0], portions[-1]],
            "rubbish": [Portion(ticket, ["rubbish", None]), *portions],
        }[fate]
