"""The gate's page, a TOML file: which work is timed against which reference, and which study is
compared with which results.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from clipbench import registry, study
from clipbench.errors import UsageError, describe, nearest
from clipbench.gate.names import missing
from clipbench.registry import Finite, NonNegative
from clipbench.study.sentences import ordinal

BASELINES = Path("results/gate")  # of the packaged page, seen from a checkout
PACKAGED = "limits.toml"

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """The machine on which a ratio other than 1 was measured."""

    processor: str
    torch: str


@dataclass(frozen=True)
class Bench:
    """Work of ours beside a reference, each named as ``package.module:function`` or
    ``file.py:function``.
    """

    name: str
    ours: str
    reference: str
    ratio: Finite = 1.0
    min_ratio: Finite = 1.03
    paired_median: Finite = 1.02


@dataclass(frozen=True)
class Learning:
    """A study, and the folder of results that it is compared with; ``metric`` is the least
    difference that counts.
    """

    study: str
    baseline: str
    engine: Literal["loop", "batched"] = "loop"
    metric: NonNegative = 0.01


@dataclass(frozen=True)
class Limits:
    """A parsed page. ``files`` is the folder of its ``file.py``, ``baselines`` the folder of its
    baselines.
    """

    files: Path
    baselines: Path
    benches: tuple[Bench, ...] = ()
    learnings: tuple[Learning, ...] = ()
    machine: Machine | None = None
    studies: dict[str, study.Study] = field(default_factory=dict)


TABLES: dict[str, type[Any]] = {"bench": Bench, "learning": Learning, "machine": Machine}


def read(path: Path | None = None, baselines: Path | None = None) -> Limits:
    """The page in a file, or the packaged one; its studies are read.

    :param baselines: the folder of the baselines; the page's own if not given.
    :raises UsageError: one sentence on the first thing that is wrong.
    """
    if path is None:
        text, where, folder = (
            (resources.files(__package__) / PACKAGED).read_text(encoding="utf-8"),
            PACKAGED,
            Path.cwd(),
        )
        return _parse(text, where, folder, baselines or BASELINES)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            "there is no such file"
            if isinstance(error, FileNotFoundError)
            else f"this file cannot be read ({error})"
        )
        raise UsageError(f"{path}: {reason}.") from None
    folder = path.resolve().parent
    return _parse(text, path.name, folder, baselines or folder)


def _parse(text: str, where: str, folder: Path, baselines: Path) -> Limits:
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: this is no TOML ({error}).") from None
    for name in raw:
        if name not in TABLES:
            raise UsageError(
                f"{where}: there is no table `{name}`. There are: "
                f"{', '.join(TABLES)}.{nearest(name, TABLES)}"
            )
    benches = tuple(_tables(Bench, raw.get("bench", []), where, "bench"))
    learnings = tuple(_tables(Learning, raw.get("learning", []), where, "learning"))
    if not benches and not learnings:
        raise UsageError(f"{where}: nothing is gated; give a [[bench]] or a [[learning]].")
    machine = _table(Machine, raw["machine"], f"{where}, [machine]") if "machine" in raw else None
    names = [bench.name for bench in benches]
    for bench in benches:
        if names.count(bench.name) > 1:
            raise UsageError(
                f'{where}: two benches are called "{bench.name}"; a verdict must say which.'
            )
        _refuse_wrong(bench, machine, where, folder)
    # A study's page beside this page is found from every working folder.
    studies = {
        one.study: study.read(str(folder / one.study) if one.study.endswith(".toml") else one.study)
        for one in learnings
    }
    return Limits(folder, baselines, benches, learnings, machine, studies)


def _refuse_wrong(bench: Bench, machine: Machine | None, where: str, folder: Path) -> None:
    """:raises UsageError: a benchmark cannot be measured or judged as it is written."""
    if bench.ratio != 1 and machine is None:
        raise UsageError(
            f'{where}: the ratio {bench.ratio:g} of "{bench.name}" holds where it was '
            f"measured; name that in [machine]."
        )
    for setting in ("min_ratio", "paired_median"):
        if getattr(bench, setting) <= 1:
            raise UsageError(
                f'{where}: `{setting}` of "{bench.name}" is {getattr(bench, setting):g}, and '
                f"must be above 1."
            )
    for setting in ("ours", "reference"):
        if not all(getattr(bench, setting).rpartition(":")):
            raise UsageError(
                f'{where}: `{setting}` of "{bench.name}" is {getattr(bench, setting)!r}, and '
                'must be "package.module:function" or "file.py:function".'
            )
        if wrong := missing(getattr(bench, setting), folder):
            raise UsageError(
                f'{where}: `{setting}` of "{bench.name}" is {getattr(bench, setting)!r}, and '
                f"{wrong}"
            )


def _tables(cls: type[T], tables: Any, where: str, name: str) -> Iterator[T]:
    if not isinstance(tables, list):
        raise UsageError(f"{where}: write [[{name}]], with two brackets: there may be several.")
    for number, table in enumerate(tables):
        yield _table(cls, table, f"{where}, {ordinal(number)} [[{name}]]")


def _table(cls: type[T], table: Any, where: str) -> T:
    hints = typing.get_type_hints(cls, include_extras=True)
    if not isinstance(table, dict):
        raise UsageError(f"{where}: this must be a table with {', '.join(hints)}.")
    for name in table:
        if name not in hints:
            raise UsageError(
                f"{where}: there is no setting `{name}`. There are: "
                f"{', '.join(hints)}.{nearest(name, hints)}"
            )
    for one in dataclasses.fields(cls):  # type: ignore[arg-type]
        if one.name not in table and one.default is dataclasses.MISSING:
            raise UsageError(
                f"{where}: `{one.name}` is missing; it must be {describe(hints[one.name])}."
            )
    return cls(
        **{
            name: registry.fit(value, hints[name], f"{where}: `{name}`")
            for name, value in table.items()
        }
    )
