"""What a reader of a results folder should know although no promise of it is broken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from clipbench.schema import Status
from clipbench.store.reading import Contents
from clipbench.task import TASK


def remarks(store: Contents) -> list[str]:
    """The remarks, a sentence each."""
    cells, environments = store.read("cells"), store.page("environment").get("environments", {})
    sentences = []
    for label, rows in _tasks(cells):
        keys = sorted(rows["environment"].dropna().unique())
        if len(keys) > 1:
            sentences.append(
                f"{label}: its cells come from {len(keys)} environments ({', '.join(keys)})"
            )
    sentences += apart(cells, environments, store.page("plan").get("parts", []))
    sentences += [
        f"environment {environment}: {page['lost']}"
        for environment, page in environments.items()
        if "lost" in page
    ]
    if store.pages.unlisted():
        sentences.append(
            "the pages have no hashes, as in every folder from before format 2; the next run gives "
            "them some"
        )
    return sentences


def apart(cells: pd.DataFrame, environments: Mapping[str, Any], parts: Sequence[str]) -> list[str]:
    """Where arms of one seed, which are compared, did not run together, a sentence each.

    :param environments: the machines' pages, by the key that cells name.
    :param parts: the parts that the folder was merged of, such as ``3/20``.
    """
    sentences = []
    for label, rows in _tasks(cells):
        if (told := _between_machines(rows, environments)) is not None:
            sentences.append(f"{label}: {told}")
    asked = max((int(part.partition("/")[2]) for part in parts), default=0)
    for role, rows in cells.groupby("role"):
        units = len(rows.groupby([*TASK, "seed"], dropna=False))
        if asked > units:
            sentences.append(
                f"the {role} cells were run in {asked} parts and have {units} pairs of a task and "
                "a seed: the arms of one seed were split among machines"
            )
    return sentences


def _tasks(cells: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The label and the cells of every task, without those that failed."""
    for task, rows in cells[cells["status"] != Status.FAILED].groupby(TASK, dropna=False):
        yield ", ".join(map(str, task)), rows


def _between_machines(rows: pd.DataFrame, environments: Mapping[str, Any]) -> str | None:
    """On how many seeds of a task cells ran on unlike processors or GPUs: what is compared within
    a seed differs there by more than its settings. None if on none.
    """
    names = {key: _machine(page) for key, page in environments.items()}
    machines = rows["environment"].map(names)
    of_seeds = [set(some.dropna()) for _, some in machines.groupby(rows["seed"])]
    mixed = [names for names in of_seeds if len(names) > 1]
    if not mixed:
        return None
    return (
        f"on {len(mixed)} of {len(of_seeds)} seeds the arms that are compared ran on different "
        f"processors or GPUs ({', '.join(sorted(set().union(*mixed)))})"
    )


def _machine(page: Mapping[str, Any]) -> str:
    """The processor's name, and the GPU's if one was used."""
    gpu = (page.get("cuda") or {}).get("device")
    return str(page.get("processor") or "an unnamed processor") + (f" with {gpu}" if gpu else "")
