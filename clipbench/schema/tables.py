"""Every column of the store: its name, type, unit and meaning."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from clipbench.errors import one_of
from clipbench.measures import MEASURES
from clipbench.schema.terms import Kind, Outcome, Role, Sighting, Status

VERSION = "2.0"  # of the store's format; a reader refuses a higher major number
# counts the rules by which runs are judged and graded: rows of older ones are kept, and not
# compared. 2: outcomes by the validation metric; 3: test is evaluated at every evaluation
RULES = 3


TEXT, INT, FLOAT, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()


@dataclass(frozen=True)
class Column:
    """One column of one table; ``unit`` is empty for a bare number or a word.

    ``later`` is one that older files lack: they are read with nulls in it.
    """

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    later: bool = False


CELLS = (
    Column(
        "cell",
        TEXT,
        "",
        "identity: the first 16 hex digits of SHA-256 over the canonical JSON in `settings`",
    ),
    Column("workload", TEXT, "", "registered name of the learning problem"),
    Column(
        "optimizer",
        TEXT,
        "",
        "registered name of the update rule, or the dotted path of a torch class",
    ),
    Column("clip", TEXT, "", "registered name of the clip"),
    Column(
        "threshold",
        FLOAT,
        "gradient",
        "the clip's first setting, resolved to a number; null for none",
    ),
    Column(
        "relative",
        FLOAT,
        "median raw size",
        "the multiple of the pilot's median size the study gave; null for a plain number",
    ),
    Column(
        "percentile",
        FLOAT,
        "",
        "the percentile of the pilot's sizes the study gave; null for a plain number or a multiple",
        later=True,
    ),
    Column("lr", FLOAT, "", "learning rate"),
    Column("seed", INT, "", "selection seeds count from 0, report seeds from 1000"),
    Column("role", TEXT, "", f"{one_of([*Role])}: which phase of the protocol asked for the cell"),
    Column(
        "extended",
        FLAG,
        "",
        "true where the cell lies beyond the study's own axes, on a once-extended edge",
    ),
    Column("problem", TEXT, "", "the workload with the settings that are not at their defaults"),
    Column(
        "arm",
        TEXT,
        "",
        "the optimizer and the clip with their settings other than lr and threshold",
    ),
    Column("batch", INT, "examples", "batch size"),
    Column("device", TEXT, "", "cpu or cuda"),
    Column("dtype", TEXT, "", "float32, tf32, float64 or bfloat16-mixed"),
    Column("engine", TEXT, "", "which engine made the row"),
    Column("status", TEXT, "", one_of([*Status])),
    Column("outcome", TEXT, "", f"{one_of([*Outcome])}; null for a failed cell"),
    Column(
        "reason",
        TEXT,
        "",
        "the event that ended or spoiled the run, or why it failed; null where nothing did",
    ),
    Column(
        "diverged_at",
        INT,
        "step",
        "first step of the event named in `reason`; null where the run did not diverge",
    ),
    Column("steps", INT, "steps", "rows of the curve: steps taken"),
    Column("initial_loss", FLOAT, "loss", "training loss of step 0"),
    Column("final_loss", FLOAT, "loss", "training loss of the last step"),
    Column("best_loss", FLOAT, "loss", "smallest training loss of any step"),
    Column("metric", TEXT, "", "name of the workload's metric"),
    Column(
        "metric_value",
        FLOAT,
        "metric",
        "the metric on the test split after the last step; null where a value was not finite",
    ),
    Column(
        "validation_value",
        FLOAT,
        "loss",
        "best validation loss over the evaluations: what selection judges by",
    ),
    Column(
        "validation_metric",
        FLOAT,
        "",
        (
            "what outcomes are judged by, the metric or the loss, on validation after the last "
            "step; null where a run ended before it"
        ),
        later=True,
    ),
    Column(
        "best_step",
        INT,
        "updates",
        (
            "updates before the best checkpoint, by the same value on validation; of equals that "
            "of the lower loss, then the later; before the event if the run diverged; null for a "
            "function"
        ),
        later=True,
    ),
    Column("best_validation", FLOAT, "", "that value at the best checkpoint", later=True),
    Column(
        "best_metric",
        FLOAT,
        "metric",
        "the metric on the test split at the best checkpoint; null where it was not finite",
        later=True,
    ),
    Column(
        "steps_to_target",
        INT,
        "steps",
        "updates until the validation loss first met the target; null where it never did",
    ),
    Column(
        "clipped_fraction",
        FLOAT,
        "share of steps",
        "share of steps in which the clip altered at least one element",
    ),
    Column(
        "grad_norm_median", FLOAT, "gradient", "median over the steps of the raw gradient's 2-norm"
    ),
    Column("kept_median", FLOAT, "ratio", "median over the steps of `kept`", later=True),
    Column("cosine_median", FLOAT, "", "median over the steps of `cosine`", later=True),
    Column(
        "peak_ratio",
        FLOAT,
        "ratio",
        (
            "largest loss of the last half of the steps over the median there, both above the "
            "optimum where it is known"
        ),
        later=True,
    ),
    Column(
        "stationary_at",
        INT,
        "step",
        "first step whose raw gradient's norm is at most 1e-3; null where none is",
        later=True,
    ),
    Column(
        "rules",
        INT,
        "",
        "the rules by which the run was judged and graded, counted from 1; null in rows of rules 1",
        later=True,
    ),
    Column(
        "seconds",
        FLOAT,
        "s",
        "wall time of the cell in its worker; says nothing of a method's cost",
    ),
    Column("settings", TEXT, "", "canonical JSON of everything the identity is made of"),
    Column("attempt", INT, "", "counts from 1; the highest attempt of a cell wins"),
    Column("threads", INT, "threads", "torch threads of the worker"),
    Column("worker", INT, "", "which worker of the run made the row"),
    Column("environment", TEXT, "", "key into environment.json: machine and library versions"),
    Column("created", TEXT, "UTC", "when the row was written, ISO 8601"),
)
# What only the curve of a watched loop has.
WATCHED = (
    Column("lr", FLOAT, "", "learning rate of the first group of parameters", later=True),
    Column("threshold", FLOAT, "gradient", "what the clip was called with; null for none", True),
    Column("accumulated", INT, "", "backward passes of the update", later=True),
    Column("seconds", FLOAT, "s", "wall time since the step before; null for the first", True),
    Column("clip_seconds", FLOAT, "s", "of them in torch's clip; null where it was not seen", True),
)
CURVES = (
    Column("cell", TEXT, "", "the cell's identity"),
    Column("step", INT, "step", "counts from 0"),
    *(
        Column(measure.name, FLOAT, measure.unit, measure.meaning, measure.later)
        for measure in MEASURES
    ),
    *WATCHED,
)
EVALS = (
    Column("cell", TEXT, "", "the cell's identity"),
    Column("step", INT, "updates", "updates made before the evaluation: 0 is the untrained model"),
    Column("split", TEXT, "", "validation, or test (before the last step the metric alone)"),
    Column("metric", TEXT, "", "loss, or a metric's name"),
    Column("value", FLOAT, "", "its value over the whole split"),
    Column(
        "error",
        FLOAT,
        "",
        (
            "its standard error over the examples of the split; null but for what outcomes are "
            "judged by, on validation"
        ),
        later=True,
    ),
)
EVENTS = (
    Column("cell", TEXT, "", "the cell's identity"),
    Column(
        "step", INT, "step", "first step of the event; of an evaluation the updates made before it"
    ),
    Column("kind", TEXT, "", one_of([*Kind, *Sighting])),
    Column("value", FLOAT, "", "the quantity the rule looked at, at that step"),
    Column("detail", TEXT, "", "the rule in words, with its line"),
)
THROUGHPUT = (
    Column(
        "workload",
        TEXT,
        "",
        "registered name of the learning problem; null for a model size without one",
    ),
    Column(
        "problem",
        TEXT,
        "",
        (
            "the workload with the settings that are not at their defaults, or a size: 11.7M in "
            "62 tensors"
        ),
    ),
    Column("optimizer", TEXT, "", "the optimizer with the settings that are not at their defaults"),
    Column("clip", TEXT, "", "the clip with its settings other than the threshold"),
    Column("threshold", FLOAT, "gradient", "the threshold the timed step used; null for none"),
    Column(
        "implementation",
        TEXT,
        "",
        "which code path was timed: torch is what torch does where nothing is asked",
    ),
    Column("device", TEXT, "", "cpu or cuda"),
    Column("dtype", TEXT, "", "float32 or float64"),
    Column("batch", INT, "examples", "batch size; null for an update"),
    Column(
        "block", INT, "", "number of the timed block; blocks of the same number ran side by side"
    ),
    Column("seconds", FLOAT, "s", "wall time of the block"),
    Column("steps", INT, "steps", "training steps in the block"),
    Column(
        "peak_bytes",
        INT,
        "bytes",
        "peak memory: of the device on CUDA, the process's growth on CPU; null where not measured",
    ),
    Column(
        "valid",
        FLAG,
        "",
        "false where the block cannot be trusted; the report leaves it out and counts it",
    ),
    Column(
        "part",
        TEXT,
        "",
        (
            "step: the whole training step, as is null; update: the clip and the optimizer's step "
            "alone, on given gradients"
        ),
        later=True,
    ),
    Column("parameters", INT, "parameters", "elements of all trained tensors", later=True),
    Column("tensors", INT, "tensors", "trained tensors", later=True),
    Column("threads", INT, "threads", "torch threads of the process; null for one", later=True),
    Column(
        "floor_bytes",
        INT,
        "bytes",
        "what one update must read and write at least; null where it was not counted",
        later=True,
    ),
    Column(
        "floor_seconds",
        FLOAT,
        "s",
        (
            "what moving floor_bytes takes at the rate of an add_ (CPU) or a copy (CUDA) of as "
            "much memory in the same round"
        ),
        later=True,
    ),
    Column(
        "kernels",
        INT,
        "kernels",
        "kernels that one step launches on CUDA; null on the CPU",
        later=True,
    ),
    Column(
        "synchronisations",
        INT,
        "",
        "times in one step that the host waits for a CUDA device; null on the CPU",
        later=True,
    ),
    Column("environment", TEXT, "", "key into environment.json: machine and library versions"),
    Column("created", TEXT, "UTC", "when the block was timed, ISO 8601"),
)
TABLES = {
    "cells": CELLS,
    "curves": CURVES,
    "evals": EVALS,
    "events": EVENTS,
    "throughput": THROUGHPUT,
}


def arrow(table: str) -> pa.Schema:
    """The Parquet schema of one table, its columns' units and meanings in the field metadata."""
    return pa.schema(
        [
            pa.field(
                column.name, column.type, metadata={"unit": column.unit, "meaning": column.meaning}
            )
            for column in TABLES[table]
        ]
    )
