"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

from clipbench.cli import completion

STUDY = click.argument("study", metavar="STUDY", shell_complete=completion.studies)
FOLDER = click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path), shell_complete=completion.folders
)
DEVICE = click.option(
    "--device",
    metavar="[cpu|cuda|cuda:N|auto]",
    default=None,
    shell_complete=completion.devices,
    help="Run every cell there, whatever the page says; cuda is all CUDA devices, cuda:N one.",
)
ENGINE = click.option(
    "--engine",
    type=click.Choice(["auto", "loop", "batched"]),
    default=None,
    help=(
        "One cell at a time, many as lanes of one program, or whichever is faster here; what the "
        "study says if not given."
    ),
)
CHANGES = click.option(
    "-o",
    "--set",
    "changes",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help=(
        "Change a value of the page, which the results folder then holds as it was run: "
        "run.steps=100, 'clip.norm.relative=[1]' (all tables of that clip), "
        "workload.digits.seeds.report=5. A value is TOML, or a bare word. May be given again."
    ),
)
ONLY = click.option(
    "--only",
    "parts",
    multiple=True,
    metavar="KEY=NAME,…",
    help=(
        "A part of the study: problem=wdbc,optimizer=adam; names of the same key add up. Keys are "
        "problem, optimizer and clip, for an arm is compared and tuned on all its learning rates, "
        "thresholds and seeds; an optimizer without a clip stays beside those with one. The rest "
        "of the study is left for another run."
    ),
)
OUT = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Results folder; results/NAME if not given.",
)
