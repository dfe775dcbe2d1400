"""Records that come back from an executor, on their way into the store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from clipbench import measures, summary
from clipbench.engines import Record
from clipbench.events import Evaluation
from clipbench.execute.executor import Portion
from clipbench.execute.machine import key_of
from clipbench.schema import RULES, Status
from clipbench.store import Store, keeps_curve

SHARD_CELLS, SHARD_SECONDS = 64, 30.0
# A commit waits for the disk: cells that end faster than 64 a second share one.
LEAST_SECONDS, MOST_CELLS = 1.0, 4096


class Archive:
    """Gathers records into shards of 64 cells and a second, or of half a minute, and commits
    them.
    """

    def __init__(self, store: Store, role: str, here: Mapping[str, Any]) -> None:
        """An empty archive of cells of one role.

        :param here: this machine's environment, for records that come without one because the
            cell's process died.
        """
        self.store, self.role, self.here = store, role, here
        self.page = store.page("environment")
        stored = store.read("cells")
        self.attempts = dict(zip(stored["cell"], stored["attempt"], strict=True))
        self.number = len(list((store.folder / "cells").glob("*.parquet")))
        self.records: list[tuple[Record, int, str]] = []
        self.keys: list[tuple[Mapping[str, Any], str]] = []  # environments met, each with its key
        self.since = time.monotonic()

    def add(self, record: Record, portion: Portion) -> None:
        self.records.append(
            (record, portion.worker, self._environment_key(portion.environment or self.here))
        )
        waited, held = time.monotonic() - self.since, len(self.records)
        enough = held >= SHARD_CELLS and waited >= LEAST_SECONDS
        if enough or waited > SHARD_SECONDS or held >= MOST_CELLS:
            self.flush()

    def _environment_key(self, environment: Mapping[str, Any]) -> str:
        """The key of an environment; it is written to the page before a row names it."""
        for known, key in self.keys:
            if known == environment:
                return key
        key = key_of(environment)
        self.keys.append((environment, key))
        if key not in self.page.setdefault("environments", {}):
            self.page["environments"][key] = dict(environment)
            self.store.write_page("environment", self.page)
        return key

    def flush(self) -> None:
        self.since = time.monotonic()
        if not self.records:
            return
        self.number += 1
        # Taken before they are written: if the disk fails after the commit, a second try would
        # store them twice.
        records, self.records = self.records, []
        tables: dict[str, Any] = {"cells": []}
        ran: list[Record] = []
        curves: list[Record] = []
        for record, worker, environment in records:
            cell = record.job.cell
            row = cell_row(record, worker, environment, int(self.attempts.get(cell.id, 0)) + 1)
            tables["cells"].append(row)
            if record.failure is not None:
                continue
            ran.append(record)
            if keeps_curve(self.page, cell.role, row["status"], cell.seed):
                curves.append(record)
        tables["evals"] = eval_columns(ran)
        tables["events"] = [
            {"cell": record.job.cell.id, **vars(event)} for record in ran for event in record.events
        ]
        if curves:
            tables["curves"] = curve_columns(curves)
        self.store.commit(f"{self.role}-{self.number:04d}", tables)


def cell_row(record: Record, worker: int, environment: str, attempt: int) -> dict[str, Any]:
    """One row of the ``cells`` table."""
    cell, verdict, rows = record.job.cell, record.verdict, record.rows
    diverged_at = verdict.diverged_at if verdict else None
    evaluated = summary.of_evaluations(
        record.evaluations, record.metric, record.about, cell.steps, diverged_at
    )
    return {
        "cell": cell.id,
        "workload": cell.workload.name,
        "optimizer": cell.optimizer.name,
        "clip": cell.clip.name,
        "threshold": record.threshold,
        "relative": cell.relative,
        "percentile": cell.percentile,
        "lr": cell.lr,
        "seed": cell.seed,
        "role": cell.role,
        "extended": cell.extended,
        "problem": cell.problem,
        "arm": cell.arm,
        "batch": cell.batch,
        "device": cell.device,
        "dtype": cell.dtype,
        "engine": record.engine,
        "status": verdict.status if verdict else Status.FAILED,
        "outcome": verdict.outcome if verdict else None,
        "reason": verdict.reason if verdict else record.failure,
        "diverged_at": diverged_at,
        **summary.of_curve(rows),
        "metric": record.metric,
        **evaluated,
        "peak_ratio": record.peak_ratio,
        "rules": RULES,
        "seconds": record.seconds,
        "settings": cell.canonical,
        "attempt": attempt,
        "threads": record.threads,
        "worker": worker,
        "environment": environment,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def eval_columns(records: Sequence[Record]) -> dict[str, Any]:
    """The ``evals`` table of some records, by column; empty if none was evaluated."""
    columns = zip(*(one for record in records for one in record.evaluations), strict=True)
    table = dict(zip(Evaluation._fields, columns, strict=False))
    cells = [record.job.cell.id for record in records for _ in record.evaluations]
    return {"cell": cells, **table} if cells else {}


def curve_columns(records: Sequence[Record]) -> dict[str, Any]:
    """The ``curves`` table of some records, by column."""
    rows = np.concatenate([record.rows for record in records])
    columns: dict[str, Any] = {
        "cell": np.repeat(
            [record.job.cell.id for record in records], [len(record.rows) for record in records]
        ),
        "step": np.concatenate([np.arange(len(record.rows)) for record in records]),
    }
    return columns | dict(zip(measures.COLUMNS, rows.T, strict=True))
