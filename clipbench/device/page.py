"""The page of the command: what was measured on which device, in Markdown, from the state of its
folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbench.device.steps import STUDIES, has_cells
from clipbench.errors import UsageError, counted, duration
from clipbench.store import Store

SHOWN = {"waits": "{:.0f}", "kernels": "{:.0f}", "evaluations": "{:.1%}"}  # of the numbers seen


def studies(folder: Path) -> list[dict[str, Any]]:
    """What lies in the folders of studies: cells, those that diverged and failed, the report."""
    found = []
    for name in STUDIES:
        if not has_cells(folder / name):
            continue
        try:
            cells = Store(folder / name).read("cells")
        except UsageError:  # damaged: verify says how
            continue
        report = f"{name}/report/report.html"
        found.append(
            {
                "study": name,
                "cells": len(cells),
                "diverged": int((cells["status"] == "diverged").sum()),
                "failed": int((cells["status"] == "failed").sum()),
                "report": report if (folder / report).is_file() else None,
            }
        )
    return found


def text(state: Mapping[str, Any]) -> str:
    """The page."""
    environment = state.get("environment", {})
    name = environment.get("cuda", {}).get("device") or environment.get("processor", "this machine")
    first = (
        f"`clipbench device --device {state['device']} --minutes {state['minutes']:g}`, whose last "
        f"call took {duration(state['seconds'])}. Called again on the same machine it goes on with "
        "what is not done. `device.json` has the same facts."
    )
    return "\n".join(
        [
            f"# clipbench on {name}",
            "",
            first,
            *_section("Bounds", _bounds(state["bounds"])),
            *_section("Steps", _steps(state["steps"])),
            *_section("Results", _studies(state["studies"])),
            *_section("Machine", _machine(state)),
            "",
        ]
    )


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def _bounds(bounds: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            one["name"],
            one["claim"],
            one["must"],
            "–" if one["seen"] is None else SHOWN.get(one["name"], "{:.3g}").format(one["seen"]),
            one["verdict"],
            one["where"],
        )
        for one in bounds
    ]
    return _table(("bound", "what it says", "must be", "seen", "verdict", "where measured"), rows)


def _steps(steps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            name,
            entry["state"],
            f"{entry['seconds']:.0f} of {entry['limit']:.0f} s" if "seconds" in entry else "",
            entry.get("said", ""),
            f"[log]({entry['log']})" if "log" in entry else "",
            f"`{shlex.join(entry['words'])}`" if "words" in entry else "",
        )
        for name, entry in steps.items()
    ]
    return _table(("step", "state", "time", "what it said", "output", "command"), rows)


def _studies(found: Iterable[Mapping[str, Any]]) -> list[str]:
    return [
        f"- `{one['study']}`: {counted(one['cells'], 'cell')}, {one['diverged']} diverged, "
        f"{one['failed']} failed; "
        + (f"[the report]({one['report']})." if one["report"] else "no report yet.")
        for one in found
    ]


def _machine(state: Mapping[str, Any]) -> list[str]:
    environment = {**state.get("environment", {})}
    cuda, libraries = environment.pop("cuda", {}), environment.pop("libraries", {})
    facts = {
        **environment,
        "usable cores": state.get("usable_cores"),
        **{f"cuda {name}": value for name, value in cuda.items()},
        **{f"nvidia-smi {name}": value for name, value in (state.get("nvidia_smi") or {}).items()},
        **libraries,
        "key of the environment": state.get("key"),
    }
    known = [(name, str(value)) for name, value in facts.items() if value is not None]
    return _table(("fact", "value"), known)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    if not lines:
        return []
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines)]
