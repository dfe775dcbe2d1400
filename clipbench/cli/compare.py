"""``clipbench compare``: two folders of one study beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipbench.cli import completion
from clipbench.cli.leaving import command, writable
from clipbench.errors import UsageError, counted

if TYPE_CHECKING:
    from clipbench.compare import Beside

ERRORS = 0.05  # share of 95 % intervals that leave out what is true
NAME = 40  # letters of a column at most: so lines stay under 100
FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("first", metavar="A", type=FOLDER, shell_complete=completion.folders)
@click.argument("second", metavar="B", type=FOLDER, shell_complete=completion.folders)
@click.option(
    "--csv",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write the differences of all arms there, with their verdicts.",
)
@command
def compare(first: Path, second: Path, file: Path | None) -> None:
    """What differs between two results folders of one study: of two revisions, devices or machines.

    A is what was before. A difference is B less A, above zero if B is better, with its 95 %
    interval; it is paired by seed where both have the same settings.
    """
    from clipbench.compare import beside
    from clipbench.store import Store

    writable("--csv", file)
    if first.resolve() == second.resolve():
        raise UsageError(
            f"A and B are the same folder, {first}: nothing differs; name two folders of one study."
        )
    stores = [Store(folder).of_study() for folder in (first, second)]
    found = beside(*stores)
    for store in stores:
        for name, damage in sorted(store.bad.items()):
            click.echo(
                f"clipbench: warning: {store.folder}/{name} {damage}; its rows are left out.",
                err=True,
            )
    click.echo(_told(found, str(first), str(second)))
    if file is not None:
        file.write_text(found.table().to_csv(index=False), encoding="utf-8")


def _told(found: Beside, first: str, second: str) -> str:
    """All of it: the verdicts and the size of the differences first, the cells after them."""
    lines = [f"A: {first}", f"B: {second}", *_summed(found)]
    if found.settings:
        lines += ["", "What the two say otherwise", *_columns(("", "A", "B"), found.settings, 30)]
    short = _shortened([*found.estimates["arm"], *found.times["optimizer"]])
    for label, rows in _by_task(found.estimates):
        lines += ["", f"{label}: what tuning on three seeds reaches", *_estimates(rows, short)]
    for label, rows in _by_task(found.verdicts):
        lines += ["", f"{label}: each clip against none", *_verdicts(rows, short)]
    for problem, times in found.times.groupby("problem", sort=True):
        lines += ["", f"{problem}: a training step, and what a clip costs over none"]
        lines += _times(times.to_dict("records"), short)
    return "\n".join(line.rstrip() for line in lines)


def _summed(found: Beside) -> list[str]:
    """What the differences come to, in lines."""
    cells, better = found.cells, found.estimates["low"] > 0
    worse = found.estimates["high"] < 0
    turned, decided = (int(found.verdicts[name].sum()) for name in ("turned", "decided"))
    lines = [
        (
            f"{counted(turned, 'verdict') if turned else 'No verdict'} turned; {decided} of "
            f"{len(found.verdicts)} are decided in both."
        )
    ]
    margins = found.verdicts[found.verdicts["margin"] > 0]
    sizes = (margins["moved"].abs() / margins["margin"]).dropna().sort_values()
    if len(sizes):
        lines.append(
            f"What a clip gains moved by {sizes.median():.2g} of the margin in the median, and by "
            f"{sizes.iloc[-1]:.2g} at most."
        )
    lines += [
        (
            f"{counted(len(found.estimates), 'arm')} in both: by intervals without zero B is "
            f"better in {int(better.sum())}, worse in {int(worse.sum())}"
        ),
        f"  (in about {ERRORS * len(found.estimates):.0f} if nothing differed but luck).",
        (
            f"{counted(cells['equal'] + cells['different'], 'cell')} of the same settings: "
            f"{cells['equal']} came to the same to the last digit, {cells['different']} did not."
        ),
        f"{counted(cells['only_a'], 'cell')} only in A, {cells['only_b']} only in B.",
    ]
    return lines


def _shortened(labels: Iterable[str]) -> Callable[[str], str]:
    """How a label is shown: without the schedule, if there is only one."""
    from clipbench.task import schedule_of, without_schedule

    schedules = set(map(schedule_of, labels))
    if len(schedules) != 1:
        return str
    [schedule] = schedules
    return lambda label: without_schedule(label, schedule)


def _estimates(rows: Iterable[dict[str, Any]], short: Callable[[str], str]) -> list[str]:
    return _columns(
        ("arm", "A", "B", "B less A, +: B better", "95 %", "n", "paired"),
        [
            (
                short(row["arm"]),
                _number(row["estimate"]),
                _number(row["estimate_b"]),
                _number(row["difference"], sign=True),
                _bounds(row),
                str(row["n"]),
                "yes" if row["paired"] else "no",
            )
            for row in rows
        ],
    )


def _verdicts(rows: Iterable[dict[str, Any]], short: Callable[[str], str]) -> list[str]:
    return _columns(
        ("clip", "A", "B", ""),
        [
            (
                short(row["arm"]),
                str(row["verdict"]),
                str(row["verdict_again"]),
                "TURNED" if row["turned"] else "",
            )
            for row in rows
        ],
    )


def _times(rows: Iterable[dict[str, Any]], short: Callable[[str], str]) -> list[str]:
    """The median of a step's time, and what a clip costs over none."""
    return _columns(
        ("method", "A, µs", "B, µs", "B / A", "cost A", "cost B"),
        sorted(
            (
                f"{short(row['optimizer'])} + {row['clip']}",
                _number(1e6 * row["step"]),
                _number(1e6 * row["step_b"]),
                f"{row['ratio']:.2f}",
                _percent(row["cost"]),
                _percent(row["cost_b"]),
            )
            for row in rows
        ),
    )


def _by_task(frame: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of each task, under its label."""
    from clipbench.task import Task, labels

    rows = frame.to_dict("records")
    named = labels({Task.of(row): None for row in rows})
    return [(label, [row for row in rows if Task.of(row) == task]) for task, label in named.items()]


def _columns(heads: Sequence[str], rows: Iterable[Sequence[str]], widest: int = NAME) -> list[str]:
    """Rows with aligned columns; what is too wide for the line is cut in its middle."""
    table = [tuple(_short(cell, widest) for cell in row) for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in table
    ]


def _short(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[-end:]}"


def _number(value: float, sign: bool = False) -> str:
    return "–" if math.isnan(value) else f"{value:{'+' * sign}.4g}"


def _bounds(row: dict[str, Any]) -> str:
    if math.isnan(row["low"]):
        return "–"
    return f"{row['low']:+.2g} to {row['high']:+.2g}"


def _percent(ratio: float) -> str:
    return "–" if math.isnan(ratio) else f"{100 * (ratio - 1):+.1f} %"
