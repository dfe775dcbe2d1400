"""Several folders of one study as one: their files as they are, their pages as one.

A folder that is merged twice adds nothing the second time. If two folders hold the same cell, one
of its rows counts, as everywhere in a store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipbench.errors import UsageError, counted
from clipbench.store.files import TEMPORARY, hash_damage, sync_folder
from clipbench.store.pages import CURVES
from clipbench.store.reading import Contents

PART = re.compile(r"(\d+)/(\d+)")
WritePage = Callable[[str, Mapping[str, Any]], None]


def refuse_others(folders: Sequence[Contents]) -> None:
    """Refuse folders that are no parts of one study, by the first that is not.

    :raises UsageError: one is of another study, damaged, or made with other pilots or versions.
    """
    first = folders[0]
    for one in folders:
        one.of_study()
        if one.name != first.name:
            raise UsageError(
                f'{one.folder}: this folder holds the study "{one.name}", and {first.folder} holds '
                f'"{first.name}"; parts of one study are merged.'
            )
        if one.study != first.study:
            raise UsageError(
                f"{one.folder}: its study.toml is not that of {first.folder}; run this part again "
                f"with the same page."
            )
        for file, why in _damage(one):
            raise UsageError(f"{one.folder}/{file}: it {why}; run this part again.")
    _refuse_differing(
        folders,
        "components",
        ("workloads", "optimizers", "clips"),
        "component",
        "run all parts with one version of it",
    )
    _refuse_differing(
        folders,
        "calibration",
        ("pilots",),
        "pilot",
        "part 0/N makes the pilots for all parts, and --after names it",
    )


def _damage(one: Contents) -> Iterator[tuple[str, str]]:
    """The damaged files of a folder, each with what is wrong with it."""
    commits = one.commits
    yield from one.bad.items()
    for commit in commits:
        for path in commit.beside:
            if why := hash_damage(path):
                yield f"{path.parent.name}/{path.name}", why


def _refuse_differing(
    folders: Sequence[Contents], page: str, keys: Sequence[str], what: str, remedy: str
) -> None:
    met: dict[tuple[str, str], tuple[Any, Path]] = {}
    for one in folders:
        for key in keys:
            for name, value in one.page(page).get(key, {}).items():
                before, folder = met.setdefault((key, name), (value, one.folder))
                shared = before.keys() & value.keys()
                if any(before[field] != value[field] for field in shared):
                    raise UsageError(
                        f'{one.folder}: its {what} "{name}" is not that of {folder}; {remedy}.'
                    )


def merge(folder: Path, write_page: WritePage, parts: Sequence[Contents]) -> int:
    """The number of commits that were copied, under a claim of the folder; its pages tell of all
    parts afterwards.
    """
    present = {path.name for path in (folder / "cells").glob("*.parquet")}
    copied = 0
    _merge_pages(Contents(folder), write_page, parts)
    for part in parts:
        for commit in part.commits:
            if commit.path.name in present:
                continue
            for path in (*commit.beside, commit.path):  # the commit last
                _copy(path, folder / path.parent.name)
            copied += 1
        for path in part.reader.files("throughput"):
            _copy(path, folder / "throughput")
    return copied


def _copy(path: Path, folder: Path) -> None:
    """A file of a store in another one's folder, whole or not at all; its name has its hash."""
    target = folder / path.name
    if target.exists():
        return
    temporary = folder / f"{TEMPORARY}{path.stem}-{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            file.write(path.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(folder)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _merge_pages(here: Contents, write_page: WritePage, parts: Sequence[Contents]) -> None:
    stores = [here, *parts]
    pages = {
        name: [store.page(name) for store in stores]
        for name in ("environment", "components", "calibration", "plan", "preregistered")
    }
    environment = pages["environment"]
    write_page(
        "environment",
        {
            "study": here.name,
            "environments": _union(environment, "environments"),
            "curves": max((one.get("curves", "all") for one in environment), key=CURVES.index),
        },
    )
    write_page(
        "components",
        {kind: _union(pages["components"], kind) for kind in ("workloads", "optimizers", "clips")},
    )
    pilots: dict[str, dict[str, float]] = {}
    for one in pages["calibration"]:
        for key, sizes in one.get("pilots", {}).items():
            pilots[key] = {**pilots.get(key, {}), **sizes}
    engines = _union(pages["calibration"], "engines")
    write_page("calibration", {"pilots": pilots, "engines": engines})
    write_page("plan", _plan(pages["plan"]))
    versions: dict[str, Any] = {}
    for one in pages["preregistered"]:
        for version in one.get("versions", []):
            versions.setdefault(version["hash"], version)
    write_page("preregistered", {"versions": [*versions.values()]})


def _union(pages: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """The entries of a key of several pages; of two with one name the first."""
    found: dict[str, Any] = {}
    for page in pages:
        found = {**page.get(key, {}), **found}
    return found


def _plan(pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The plan of those that went furthest, with the parts that there are."""
    known = [page for page in pages if page.get("protocol")]
    furthest = max(known, key=lambda page: len(page.get("cells", {})))
    cells: dict[str, list[str]] = {}
    for page in known:
        for phase, asked in page.get("cells", {}).items():
            cells[phase] = list(dict.fromkeys([*cells.get(phase, []), *asked]))
    merged = sorted(
        {
            *(page["part"] for page in known if "part" in page),
            *(part for page in known for part in page.get("parts", [])),
        },
        key=lambda part: [int(number) for number in part.split("/")],
    )
    plan = {key: value for key, value in furthest.items() if key not in ("part", "parts")}
    order = [phase for phase in plan.get("phases", []) if phase in cells]
    return {**plan, "cells": {phase: cells[phase] for phase in order}, "parts": merged}


def absent(parts: Sequence[str]) -> list[str]:
    """What is wrong with the parts that were merged, a sentence each: some are missing, or of
    another number of parts.
    """
    numbers: dict[int, set[int]] = {}
    for part in parts:
        if found := PART.fullmatch(part):
            numbers.setdefault(int(found[2]), set()).add(int(found[1]))
    sentences = []
    for of, have in numbers.items():
        lacking = [str(number) for number in range(1, of + 1) if number not in have]
        if lacking:
            sentences.append(
                f"of {counted(of, 'part')}, {', '.join(lacking[:10])}"
                f"{' and others' if len(lacking) > 10 else ''} "
                f"{'is' if len(lacking) == 1 else 'are'} missing."
            )
    return sentences
