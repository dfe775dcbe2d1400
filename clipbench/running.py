"""A study run from Python, as the command runs it; its results are returned."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from clipbench import protocol, registry
from clipbench import study as study_
from clipbench.errors import UsageError, counted, nearest, one_of
from clipbench.loading import Results
from clipbench.progress import Bars
from clipbench.protocol import place
from clipbench.protocol.campaign import Counts, Options
from clipbench.store import CURVES
from clipbench.study import Study
from clipbench.study.writing import as_toml

CHOICES: dict[str, Sequence[Any]] = {
    "engine": (None, "auto", "loop", "batched"),
    "curves": CURVES,
}


def run(  # noqa: PLR0913 - an option each, as of the command
    study: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    name: str | None = None,
    device: str | None = None,
    workers: int | None = None,
    engine: str | None = None,
    memory: int | None = None,
    limit: float | None = None,
    curves: str = "all",
    throughput: bool = True,
    anew: bool = False,
    progress: bool = True,
) -> Results:
    """The `Results` of a study, after what is missing of it was run, as ``clipbench run`` does it.

    An interruption leaves every cell that has ended in the folder, and the same call goes on from
    there, as it does with cells that failed.

    >>> clipbench.run({"run": {"steps": 100, "lr": [0.01, 0.1]}, "workload": [{"name": "digits"}],
    ...     "optimizer": [{"name": "sgd"}], "clip": [{"name": "none"}, {"name": "norm",
    ...     "relative": 1.0}]}, name="first")  # doctest: +SKIP

    :param study: a path ending in ``.toml``, the name of a packaged study, or a page as a dict.
    :param out: the results folder; ``results/NAME`` if not given.
    :param name: the study's name if it is a dict; made from its title if not given.
    :param device: ``cpu``, ``cuda``, ``cuda:1`` or ``auto``; what the page says if not given.
    :param workers: worker processes; one per core, and one per CUDA device, if not given.
    :param engine: ``auto``, ``loop`` or ``batched``; what the page says if not given.
    :param memory: bytes that the lanes of one worker may take; 2 GB on the CPU if not given.
    :param limit: seconds that a shard may take before it is ended.
    :param curves: curves to keep: ``all``, ``report`` (and diverged cells) or ``none``.
    :param throughput: whether every method is timed after the training.
    :param anew: whether the old folder is renamed first.
    :param progress: whether stderr tells how the run goes on.
    :raises UsageError: anything is wrong with the study, the folder or an option.
    """
    options = Options(
        device="study" if device is None else device,
        engine=engine,
        memory=memory,
        limit=limit,
        workers=workers,
        curves=curves,
        throughput=throughput,
    )
    _refuse_unfit(options)
    page = _page(study, name)
    protocol.check(page, options)
    _refuse_homeless(page)
    folder = place.own_folder(page, _packaged(study), anew) if out is None else Path(out)
    if anew:
        place.moved_aside(folder, page)
    watched = Bars() if progress else nullcontext(protocol.Silent())
    with place.claimed(folder, page) as store, watched as watcher:
        counts = protocol.run(page, store, options, watcher)
    if counts.failed:
        warnings.warn(_failures(folder, counts), stacklevel=2)
    return Results(folder)


def _failures(folder: Path, counts: Counts) -> str:
    first = f": {counts.reasons[0].words}" if counts.reasons else ""
    return (
        f"{folder}: {counted(counts.failed, 'cell')} failed{first}; the column `reason` of the "
        f"cells tells why, and the next run tries again."
    )


def _packaged(study: str | Path | Mapping[str, Any]) -> bool:
    return isinstance(study, str) and not study.endswith(".toml")


def _page(study: str | Path | Mapping[str, Any], name: str | None) -> Study:
    if not isinstance(study, Mapping):
        if name is not None:
            raise UsageError(f"{study}: a page has its file's name; `name` is for a dict.")
        return study_.read(str(study))
    if name is None:
        title = str(study.get("title", ""))
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:64].strip("-")
    if not name:
        raise UsageError(
            "a study that is a dict needs a name, after which its folder is called: give `name`, "
            "or a `title`."
        )
    return study_.parse(name, as_toml(study, f"{name}.toml"), Path.cwd())


def _refuse_homeless(page: Study) -> None:
    """Refuse a component that no worker would find: workers import files, and not the program
    that called them.
    """
    for kind in registry.KINDS:
        for table in getattr(page.document, kind):
            if registry.find(kind, table.name).__module__ == "__main__":
                raise UsageError(
                    f'{page.where}: the {kind} "{table.name}" is defined in the program that is '
                    f"running; write it into a file of its own, and name that in `use`."
                )


def _refuse_unfit(options: Options) -> None:
    """Refuse an option that the command would refuse."""
    for option, known in CHOICES.items():
        value = getattr(options, option)
        if value not in known:
            words = [one for one in known if one not in (None, "study")]
            raise UsageError(
                f"`{option}` is {value!r}, and must be {one_of(words)}.{nearest(str(value), words)}"
            )
    for option, kind in (("workers", int), ("memory", int), ("limit", int | float)):
        value = getattr(options, option)
        fits = isinstance(value, kind) and not isinstance(value, bool) and value > 0
        if value is not None and not fits:
            whole = "whole " * (kind is int)
            raise UsageError(f"`{option}` is {value!r}, and must be a positive {whole}number.")
