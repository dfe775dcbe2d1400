"""The pages of a store: the study, the machine, the components, pilots and choices, and the plan;
each with a hash.

The hashes lie in ``pages.json``, which has a hash of its own. While a page is replaced both its
hashes are listed, so that a process that dies between two writes leaves no damage behind. A folder
from before ``pages.json`` has no hashes: only the form of its pages is checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from clipbench import schema
from clipbench.schema import Role, Status
from clipbench.store.commits import refuse_newer
from clipbench.store.files import Damaged, content, replace_text, set_aside
from clipbench.task import FIRST_REPORT_SEED

PAGES = ("environment", "components", "calibration", "plan", "preregistered")
STUDY, LIST = "study.toml", "pages.json"
CURVES = ("all", "report", "first", "none")  # whose curves a folder keeps, most first
# Of each page, the keys whose values others rely on: what they are, and what they hold.
SHAPES: dict[str, dict[str, tuple[type, type]]] = {
    "environment": {"study": (str, str), "environments": (dict, dict), "curves": (str, str)},
    "components": {"workloads": (dict, dict), "optimizers": (dict, dict), "clips": (dict, dict)},
    "calibration": {"pilots": (dict, dict), "engines": (dict, dict)},
    "plan": {
        "cells": (dict, list),
        "phases": (list, str),
        "protocol": (dict, object),
        "not_run": (list, dict),
    },
    "preregistered": {"versions": (list, dict)},
}


class Pages:
    """The pages of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def study(self) -> str:
        """The study's page, as it was last run.

        :raises Damaged: it is not what was written.
        """
        return self._text(STUDY)

    def read(self, name: str) -> dict[str, Any]:
        """One of the JSON pages, empty if it was never written.

        :raises Damaged: it is not what was written, or no such page.
        """
        file = f"{name}.json"
        if not (self.folder / file).exists() and not self._hashes().get(file):
            return {}
        try:
            page = json.loads(self._text(file))
        except (ValueError, RecursionError) as error:
            raise Damaged(f"is no JSON ({error})") from None
        if not isinstance(page, dict):
            raise Damaged("is no JSON object")
        for key, (outer, inner) in SHAPES[name].items():
            value = page.get(key, outer())
            inside = value.values() if isinstance(value, dict) else value
            if not isinstance(value, outer) or not all(isinstance(one, inner) for one in inside):
                raise Damaged(f'has a key "{key}" that is no such thing')
        return page

    def write(self, name: str, page: Mapping[str, Any]) -> None:
        """Replace one of the JSON pages, atomically, if it changed."""
        self.write_text(f"{name}.json", as_json(page))

    def write_text(self, file: str, text: str) -> None:
        """Replace a page, atomically, if it changed."""
        new, hashes = _hash(text.encode()), self._hashes()
        try:
            if hashes.get(file) == [new] and _hash(content(self.folder / file)) == new:
                return
        except Damaged:
            pass  # whatever lies there makes way
        self._list({**hashes, file: [*hashes.get(file, [])[-1:], new]})
        replace_text(self.folder / file, text)
        self._list({**hashes, file: [new]})

    def damage(self) -> dict[str, str]:
        """File → what is wrong with it, of all pages and of their list; empty if all is well.

        :raises UsageError: a newer clipbench wrote them.
        """
        damage = {}
        try:
            self._listed()
        except Damaged as wrong:
            damage[LIST] = str(wrong)
        reads: dict[str, Callable[[], object]] = {STUDY: self.study}
        reads |= {f"{name}.json": partial(self.read, name) for name in PAGES}
        for file, read in reads.items():
            try:
                read()
            except Damaged as wrong:
                damage[file] = str(wrong)
        return damage

    def unlisted(self) -> list[str]:
        """The pages that are there and have no hash."""
        files = [STUDY, *(f"{name}.json" for name in PAGES)]
        return [
            file for file in files if (self.folder / file).exists() and file not in self._hashes()
        ]

    def adopt(self) -> None:
        """Give every page that has no hash the one it has now."""
        if files := self.unlisted():
            self._list(
                self._hashes() | {file: [_hash(content(self.folder / file))] for file in files}
            )

    def put_aside(self, file: str) -> None:
        """Move a damaged page to ``aside/pages`` and forget its hash."""
        hashes = {} if file == LIST else self._hashes()
        if (self.folder / file).exists() or (self.folder / file).is_symlink():
            set_aside(self.folder / file, self.folder / "aside" / "pages")
        if hashes.pop(file, None):
            self._list(hashes)

    def _text(self, file: str) -> str:
        data, hashes = content(self.folder / file), self._hashes().get(file)
        if hashes and _hash(data) not in hashes:
            raise Damaged("does not match its hash in pages.json")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise Damaged(f"is no text ({error.reason} at byte {error.start})") from None

    def _hashes(self) -> dict[str, list[str]]:
        """File → its hash, two of them while it is replaced; empty if the list cannot be
        trusted.
        """
        try:
            return self._listed()
        except Damaged:
            return {}

    def _listed(self) -> dict[str, list[str]]:
        path = self.folder / LIST
        if not path.exists() and not path.is_symlink():
            return {}
        try:
            page = json.loads(content(path))
            own = page.pop("sha256")
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"is no list of pages ({type(error).__name__})") from None
        if own != _own_hash(page):
            raise Damaged("does not match its own hash")
        refuse_newer(path, page["schema"])
        return dict(page["pages"])

    def _list(self, hashes: Mapping[str, list[str]]) -> None:
        page = {"pages": dict(hashes), "schema": schema.VERSION}
        replace_text(self.folder / LIST, as_json({**page, "sha256": _own_hash(page)}))


def as_json(page: Mapping[str, Any]) -> str:
    """The text of a page, so that people can compare two: keys sorted, each on a line, a list of
    words on one line.
    """
    text = json.dumps(page, indent=1, sort_keys=True, ensure_ascii=False)
    return re.sub(r'\[\s+("[^"\\]*"(?:,\s+"[^"\\]*")*)\s+\]', _on_one_line, text) + "\n"


def _on_one_line(words: re.Match[str]) -> str:
    return "[" + re.sub(r",\s+", ", ", words[1]) + "]"


def _own_hash(page: Mapping[str, Any]) -> str:
    """The hash of what a list of pages says, whatever its white space and order."""
    return _hash(json.dumps(page, sort_keys=True, separators=(",", ":")).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def watched_page(name: str) -> str:
    """The page that stands in a folder of watched loops in place of a study."""
    return (
        "# A training loop that was watched; `clipbench doctor` says what its clip does.\n"
        f"title = {json.dumps(name)}\nwatched = true\n"
    )


# --------------------------------------------------------------------------------- from the commits


def context(
    pages: Mapping[str, Mapping[str, Any]], rows: list[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the pages say of some rows of ``cells``: the contexts of all commits are enough to
    rebuild the pages.

    :param pages: environment, components and calibration.
    """
    environment, components = pages["environment"], pages["components"]
    labels = {
        "workloads": {row["problem"] for row in rows},
        "optimizers": {(row["arm"] or "").partition(" + ")[0] for row in rows},
        "clips": {(row["arm"] or "").partition(" + ")[2] or "none" for row in rows},
    }
    keys, known = {row["environment"] for row in rows}, environment.get("environments", {})
    return {
        "schema": schema.VERSION,
        "study": environment.get("study"),
        "curves": environment.get("curves", "all"),
        "environments": {key: known[key] for key in sorted(keys & set(known))},
        "components": {
            kind: {label: one for label, one in components.get(kind, {}).items() if label in wanted}
            for kind, wanted in labels.items()
        },
        "pilots": pages["calibration"].get("pilots", {}),
    }


def merged(contexts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """One context of several: later commits add to earlier ones; its format is the oldest of
    theirs.
    """
    known = [one for one in contexts if one]
    combined: dict[str, Any] = {
        "environments": {},
        "components": {"workloads": {}, "optimizers": {}, "clips": {}},
        "pilots": {},
    }
    for one in known:
        combined |= {name: one[name] for name in ("study", "curves") if one.get(name) is not None}
        combined["environments"] |= one.get("environments", {})
        for kind, entries in one.get("components", {}).items():
            combined["components"].setdefault(kind, {}).update(entries)
        for key, sizes in one.get("pilots", {}).items():
            combined["pilots"].setdefault(key, {}).update(sizes)
    combined["schema"] = (
        min((one.get("schema", "1.0") for one in contexts), default=schema.VERSION)
        if all(contexts)
        else "1.0"
    )
    return combined


def rebuilt(
    name: str, from_commits: Mapping[str, Any], rows: list[Mapping[str, Any]]
) -> dict[str, Any]:
    """A page, rebuilt as far as the commits know it; the plan is empty, and the next run derives
    it anew.
    """
    if name == "environment":
        lost = {"lost": "the page that told of this machine was damaged"}
        keys = {row["environment"] for row in rows}
        environments = {key: from_commits["environments"].get(key, lost) for key in sorted(keys)}
        return {
            "environments": environments,
            **{key: from_commits[key] for key in ("study", "curves") if key in from_commits},
        }
    if name == "components":
        return dict(from_commits["components"])
    if name == "calibration":
        return {"pilots": dict(from_commits["pilots"])}
    return {}


def keeps_curve(environment: Mapping[str, Any], role: str, status: str, seed: int) -> bool:
    """Whether the store keeps the curve of such a cell (``--curves``): every one; those of report
    and diverged cells; of the first report seed and diverged cells; or none.
    """
    kept = environment.get("curves", "all")
    if kept in ("report", "first") and status == Status.DIVERGED:
        return True
    return kept == "all" or (
        role == Role.REPORT
        and (kept == "report" or (kept == "first" and seed == FIRST_REPORT_SEED))
    )
