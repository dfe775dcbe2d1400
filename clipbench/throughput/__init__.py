"""What a clip costs: real torch code, timed alone, each method side by side with the same step
without a clip.

``measure`` times the training steps of a study, as every run does. ``surveys`` are the long form,
each in a process of its own: every implementation, at model sizes from 1k to 25.6M parameters and
in the study's own training steps.
"""

from clipbench.throughput.implementations import (
    DEFAULT,
    IMPLEMENTATIONS,
    Unfit,
    implementations_named,
)
from clipbench.throughput.sizes import SIZES, sizes_named
from clipbench.throughput.survey import AFTER_RUN, STEP, UPDATE, Survey, carry_out, measure, surveys
from clipbench.throughput.training import BATCHES, LR, Step, benches

__all__ = [
    "AFTER_RUN",
    "BATCHES",
    "DEFAULT",
    "IMPLEMENTATIONS",
    "LR",
    "SIZES",
    "STEP",
    "UPDATE",
    "Step",
    "Survey",
    "Unfit",
    "benches",
    "carry_out",
    "implementations_named",
    "measure",
    "sizes_named",
    "surveys",
]
