"""Engines train cells: ``loop`` one at a time, as a user would write it; ``lanes`` many at once,
the engine called batched.
"""

from clipbench.engines.loop import Trainer, clipper, evaluate, run
from clipbench.engines.pilot import PILOT_LR, PILOT_SEED, PILOT_STEPS, Gauge, pilot
from clipbench.engines.record import Components, Job, Record, conclude
from clipbench.events import Evaluation

__all__ = [
    "PILOT_LR",
    "PILOT_SEED",
    "PILOT_STEPS",
    "Components",
    "Evaluation",
    "Gauge",
    "Job",
    "Record",
    "Trainer",
    "clipper",
    "conclude",
    "evaluate",
    "pilot",
    "run",
]
