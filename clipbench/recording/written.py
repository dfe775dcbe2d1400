"""What a watched loop leaves in a folder: a cell of a store, written block by block.

It must not know how a loop is listened to.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from clipbench import events, schema
from clipbench.cell import identity
from clipbench.errors import UsageError
from clipbench.execute.machine import environment, key_of
from clipbench.measures import COLUMNS, GRAD_NORM, LOSS, UPDATE_NORM
from clipbench.recording.loop import Loop
from clipbench.schema import Role
from clipbench.store import STUDY, Store, watched_page
from clipbench.store.growing import Growing

ENGINE = "watch"
MEASURED = [column.name for column in schema.CURVES if column.name not in ("cell", "step")]


class Folder:
    """A results folder of watched loops, held for writing until it is closed.

    :raises UsageError: it holds something else, or another process writes into it.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.name = path.resolve().name
        self._held = ExitStack()
        # before anything is written: a study may have the folder's name
        if (path / STUDY).is_file() and not (held := Store(path)).watched:
            raise UsageError(f'{path}: this folder holds the study "{held.name}"; choose another.')
        self.store = Store.create(path, self.name, watched_page(self.name))
        self._held.enter_context(self.store.claim())
        self.store.sweep()
        page, about = self.store.page("environment"), environment(device)
        del about["denormals"]  # what is set for cells is not set for somebody's training
        self.environment = key_of(about)
        known = {**page.get("environments", {}), self.environment: about}
        self.store.write_page("environment", {**page, "environments": known})
        self.attempts = len(self.store.read("cells", ["cell"]))

    def close(self) -> None:
        """Let others write into the folder."""
        self._held.close()


class Written:
    """One loop's cell."""

    def __init__(self, folder: Folder, about: Mapping[str, Any], loop: Loop) -> None:
        folder.attempts += 1
        self._folder, self._loop = folder, loop
        self._settings = json.dumps(dict(about), sort_keys=True, separators=(",", ":"))
        self._cell = identity(self._settings)
        self._about, self._attempt = about, folder.attempts
        self._growing = Growing(folder.store, f"{Role.WATCHED}-{folder.attempts}")
        self._rows = dict.fromkeys(MEASURED, np.ma.masked_array(np.empty(0), np.empty(0, bool)))
        self._written = 0
        self._warned = False

    def block(self) -> None:
        """Write the steps since the last block. If that fails, the training goes on: they are
        tried again with the next block, and a warning tells of it once.
        """
        for name, column in self._loop.taken().items():
            self._rows[name] = _joined(self._rows[name], column)
        steps = np.arange(self._written, len(self._rows["loss"]))
        curve = {
            "cell": [self._cell] * len(steps),
            "step": steps,
            **{name: _with_nulls(column[self._written :]) for name, column in self._rows.items()},
        }
        try:
            self._growing.add(self._row(), curve, self._events())
            self._written += len(steps)
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self._folder.store.folder}: clipbench cannot write here "
                    f"({error.strerror or error}); the training goes on, and what was written "
                    "before stays.",
                    stacklevel=2,
                )

    def _row(self) -> dict[str, Any]:
        measured, kinds = self._rows, sorted(self._loop.clips)
        clip = kinds[0] if len(kinds) == 1 else "mixed" if kinds else "none"
        found = events.judge(self._derived(), "")
        thresholds = measured["threshold"].compressed()
        optimizer = str(self._about["optimizer"])
        losses = measured["loss"].compressed()
        some, lr = len(losses) > 0, measured["lr"]
        return {
            **dict.fromkeys(column.name for column in schema.CELLS),
            "cell": self._cell,
            "workload": self._folder.name,
            "problem": self._folder.name,
            "optimizer": optimizer,
            "clip": clip,
            "arm": optimizer + (f" + {clip}" if kinds else ""),
            "threshold": float(thresholds[-1]) if len(thresholds) else None,
            "lr": float(lr[0]) if len(lr) else None,
            "role": Role.WATCHED,
            "extended": False,
            "device": self._about["device"],
            "dtype": self._about["dtype"],
            "engine": ENGINE,
            "status": found.status,
            "reason": found.reason,
            "diverged_at": found.diverged_at,
            "steps": len(lr),
            "initial_loss": float(losses[0]) if some else None,
            "final_loss": float(losses[-1]) if some else None,
            "best_loss": float(np.fmin.reduce(losses)) if some else None,
            "clipped_fraction": float(fired(measured).mean()) if len(lr) else None,
            "grad_norm_median": _median(measured["grad_norm"]),
            "kept_median": _median(measured["kept"]),
            "cosine_median": _median(measured["cosine"]),
            "seconds": float(measured["seconds"].sum() or 0.0),
            "settings": self._settings,
            "attempt": self._attempt,
            "threads": self._about["threads"],
            "environment": self._folder.environment,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _derived(self) -> list[events.Event]:
        return derived(self._rows, str(self._about["dtype"]))

    def _events(self) -> list[dict[str, Any]]:
        seen = [
            {"cell": self._cell, "step": step, "kind": kind, "value": times, "detail": str(detail)}
            for (kind, detail), (step, times) in self._loop.sightings.seen.items()
        ]
        return seen + [{"cell": self._cell, **vars(event)} for event in self._derived()]


def derived(curve: Mapping[str, np.ma.MaskedArray], dtype: str) -> list[events.Event]:
    """The events of a watched curve, by the rules of cells and from its first loss: nobody told a
    reference.

    :param curve: its columns, masked where a value was not seen.
    """
    losses = curve["loss"].compressed()
    rows = np.zeros((len(curve["loss"]), len(COLUMNS)))
    rows[:, LOSS] = curve["loss"].filled(losses[0] if len(losses) else 0.0)
    rows[:, GRAD_NORM] = curve["grad_norm"].filled(0.0)
    rows[:, UPDATE_NORM] = curve["update_norm"].filled(0.0)
    return events.derive(rows, None, dtype=dtype)


def fired(curve: Mapping[str, np.ma.MaskedArray]) -> np.ndarray:
    """In which steps a clip altered the gradient, as far as it was seen."""
    shorter = (curve["kept"] != 1).filled(False)
    return shorter | (curve["changed"] > 0).filled(False)


def _joined(*columns: np.ma.MaskedArray) -> np.ma.MaskedArray:
    return np.ma.masked_array(
        np.concatenate([column.data for column in columns]),
        np.concatenate([np.ma.getmaskarray(column) for column in columns]),
    )


def _with_nulls(column: np.ma.MaskedArray) -> list[float | None]:
    absent = np.ma.getmaskarray(column)
    return [None if one else value for value, one in zip(column.data.tolist(), absent, strict=True)]


def _median(values: np.ma.MaskedArray) -> float | None:
    known = values.compressed()
    known = known[~np.isnan(known)]
    return float(np.median(known)) if len(known) else None
