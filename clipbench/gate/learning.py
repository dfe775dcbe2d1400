"""The learning part of the gate: a study is run anew, and its cells are compared with the committed
results of earlier code, its baseline. `gate.comparison` says how they are compared.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipbench import execute, protocol, registry
from clipbench.cell import identity
from clipbench.errors import UsageError
from clipbench.gate.comparison import Row, Run, compare, number, value_or_none
from clipbench.gate.limits import Limits
from clipbench.gate.verdict import INCONCLUSIVE, REGRESSION, Finding, Reason
from clipbench.protocol import pages
from clipbench.protocol.watcher import Watcher
from clipbench.schema import RULES
from clipbench.store import Store
from clipbench.study import Study


class Unusable(Exception):  # noqa: N818 - an answer, not an error
    """A baseline says nothing here, for this reason; ``details`` are values for the reason's
    sentence.
    """

    def __init__(self, reason: Reason, **details: Any) -> None:
        super().__init__(reason)
        self.reason, self.details = reason, details


def findings(limits: Limits, workers: int | None, watcher: Watcher) -> Iterator[Finding]:
    """A finding for each study of the page."""
    for learning in limits.learnings:
        folder, page = limits.baselines / learning.baseline, limits.studies[learning.study]
        name = f"{page.name}, {learning.engine}"
        try:
            before, engines = _baseline(folder, page)
        except Unusable as unusable:
            command = {"folder": folder, "study": learning.study, "engine": learning.engine}
            yield Finding(
                "learning", name, INCONCLUSIVE, unusable.reason, details=command | unusable.details
            )
            continue
        now = _trained_anew(page, learning.engine, engines, workers, watcher)
        if lost := {paired(cell.canonical) for cell in protocol.runnable(page).cells} - set(
            now.cells
        ):
            yield Finding("learning", name, REGRESSION, Reason.NOT_RUN, details={"lost": len(lost)})
            continue
        yield compare(name, before, now, learning.metric)


def _baseline(folder: Path, page: Study) -> tuple[Run, dict[str, Any]]:
    """The committed cells, and the stored choices of their engines.

    :raises Unusable: there are none, or they are of another study, schema, machine or device.
    """
    if not (folder / "study.toml").is_file():
        raise Unusable(Reason.NO_BASELINE)
    store = Store(folder)
    try:
        run = run_of(store)
        calibration = store.page("calibration")
    # all but the first: settings of cells that are no such document
    except (UsageError, KeyError, ValueError, TypeError) as error:
        raise Unusable(Reason.UNREADABLE, error=_short(error)) from None
    if store.bad:
        file, why = min(store.bad.items())
        raise Unusable(Reason.DAMAGED, files=len(store.bad), file=file, error=why)
    if store.name != page.name:
        raise Unusable(Reason.OTHER_STUDY, there=store.name, here=page.name)
    asked = protocol.runnable(page)
    here = execute.environment(
        "cuda" if any(cell.device == "cuda" for cell in asked.cells) else "cpu"
    )
    for environment in run.environments.values():
        for what in ("machine", "system", "cuda"):
            if environment.get(what) != here.get(what):
                raise Unusable(
                    Reason.OTHER_MACHINE,
                    what=what,
                    there=environment.get(what),
                    here=here.get(what),
                )
    if versions := _other_versions(run.components, pages.components(asked.cells)):
        raise Unusable(Reason.OTHER_VERSIONS, versions=versions)
    rules = {
        int(number(row["rules"])) if value_or_none(row["rules"]) else 1
        for row in run.cells.values()
    }
    if rules != {RULES}:
        raise Unusable(Reason.OTHER_RULES, there=min(rules), here=RULES)
    if {paired(cell.canonical) for cell in asked.cells} - set(run.cells):
        devices = {row["device"] for row in run.cells.values()}
        if {cell.device for cell in asked.cells} - devices:
            raise Unusable(Reason.OTHER_DEVICE, there=", ".join(sorted(devices)))
        raise Unusable(Reason.OTHER_PAGE)
    return run, calibration.get("engines", {})


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _other_versions(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The components that both runs have in different versions, as ``(label, version before,
    version now)``.

    Plug-ins are left out: their version is the hash of their file, and an edit of it is what the
    gate judges.
    """
    return [
        (label, before[kind][label]["version"], one["version"])
        for kind, known in now.items()
        for label, one in known.items()
        if label in before.get(kind, {})
        and before[kind][label]["version"] != one["version"]
        and not (
            isinstance(one["version"], str) and isinstance(before[kind][label]["version"], str)
        )
    ]


def _trained_anew(
    page: Study, engine: str, engines: dict[str, Any], workers: int | None, watcher: Watcher
) -> Run:
    """The study, run anew in a folder that is thrown away. The engines are chosen as they were
    for the baseline.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / page.name, page.name, page.text)
        store.write_page("calibration", {"engines": engines})
        with store.claim():
            protocol.run(
                page,
                store,
                protocol.Options(engine=engine, workers=workers, throughput=False),
                watcher,
            )
        return run_of(store)


def run_of(store: Store) -> Run:
    """The run in a store; each cell also has its evaluations' losses, and its curve if that was
    kept.

    If an edited plug-in has made a cell twice, the later one is taken.
    """
    rows: dict[str, Row] = {
        row["cell"]: row for row in store.read("cells").sort_values("created").to_dict("records")
    }
    evals, curves = store.read("evals"), store.read("curves")
    losses = evals[evals["metric"] == "loss"].sort_values(["cell", "split", "step"])
    for name, frame, column in (
        ("evaluations", losses, "value"),
        ("curve", curves.sort_values(["cell", "step"]), "loss"),
    ):
        for cell, some in frame.groupby("cell"):
            if cell in rows:
                rows[cell][name] = some[column].to_numpy(float, na_value=np.nan)
    cells = {paired(row["settings"]): row for row in rows.values()}
    return Run(cells, store.page("environment").get("environments", {}), store.page("components"))


def paired(canonical: str) -> str:
    """The identity of a cell without the versions of plug-ins, which are hashes of files: the
    edited file is what is judged.
    """
    document = json.loads(canonical)
    parts = {kind: document[kind] for kind in registry.KINDS}
    opened = {
        kind: component | {"version": ""}
        for kind, component in parts.items()
        if isinstance(component["version"], str)
    }
    return identity(
        json.dumps(document | opened, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    )
