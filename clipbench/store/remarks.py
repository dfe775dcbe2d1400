"""What a reader of a results folder should know although no promise of it is broken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from clipbench.schema import Status
from clipbench.store.reading import Contents
from clipbench.task import TASK


def remarks(store: Contents) -> list[str]:
    """The remarks, a sentence each."""
    cells, environments = store.read("cells"), store.page("environment").get("environments", {})
    sentences = []
    for task, rows in cells[cells["status"] != Status.FAILED].groupby(TASK, dropna=False):
        label = ", ".join(map(str, task))
        keys = sorted(rows["environment"].dropna().unique())
        if len(keys) > 1:
            sentences.append(
                f"{label}: its cells come from {len(keys)} environments ({', '.join(keys)})"
            )
            if (told := _between_machines(rows, environments)) is not None:
                sentences.append(f"{label}: {told}")
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
