"""Figures that several processes draw: the same bytes, and the same errors, as if one drew."""

from __future__ import annotations

import errno
import os
from functools import partial
from multiprocessing.context import SpawnProcess
from types import SimpleNamespace

import pytest

from clipbench import report
from clipbench.figures.panels import draw
from clipbench.figures.style import COLUMN, PAGE, looking
from clipbench.report.drawing import Drawers
from clipbench.report.parts import Picture

FORMS = ("svg", "png")


def panel(number):
    line = {"label": f"arm {number}", "clip": "none", "x": [1.0, 2.0], "y": [0.1, number / 10]}
    return {"title": f"figure {number}", "x": "step", "y": "loss", "lines": [line]}


def pictures(*draws):
    return [Picture(f"figure-{number}", "", "", one) for number, one in enumerate(draws)]


def good(number):
    return partial(draw, [panel(number)], "study 12345678")


class Fatal:
    """What ends the process that it is sent to, and is drawn here."""

    def __reduce__(self):
        return os._exit, (1,)

    def __call__(self):
        return good(3)()


def test_a_process_draws_the_same_bytes_in_the_same_order(monkeypatch):
    """In the look that is asked for; what cannot be sent is drawn here, and a page has the SVG."""
    draws = [*map(good, range(5)), lambda number=5: good(number)(), good(6)]
    with looking(COLUMN):
        wanted = [one.files(FORMS) for one in pictures(*draws)]
        here, files = [], Picture.files
        monkeypatch.setattr(
            Picture, "files", lambda one, forms: here.append(one.name) or files(one, forms)
        )
        asked = pictures(*draws)
        with Drawers(COLUMN, 1) as drawers:
            assert [*drawers.files(asked, FORMS)] == wanted
        assert "figure-5" in here
        assert len(here) < len(draws)
        monkeypatch.undo()
        assert [one.svg for one in asked] == [one["svg"].decode() for one in wanted]


def test_the_first_figure_that_cannot_be_drawn_raises_what_it_raises_here():
    """With its own traceback, whichever process met it and whatever fails after it."""
    asked = pictures(good(0), partial(int, "first"), good(1), partial(int, "second"))
    with (
        Drawers(PAGE, 1) as drawers,
        pytest.raises(ValueError, match="'first'") as raised,
    ):
        list(drawers.files(asked, FORMS))
    assert raised.value.__cause__ is raised.value.__context__ is None


def test_a_process_that_dies_costs_no_figure():
    asked = pictures(*(Fatal() for _ in range(3)))
    with Drawers(PAGE, 1) as drawers:
        assert len({made["svg"] for made in drawers.files(asked, FORMS)}) == 1
        assert not any(process.is_alive() for process in drawers._processes)


@pytest.mark.parametrize("count", [0, 2])
def test_without_processes_all_is_drawn_here(count, monkeypatch):
    """None is asked for, or the machine has no room for one."""

    def full(_):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(SpawnProcess, "start", full)
    with Drawers(PAGE, count) as drawers:
        assert [*drawers.files(pictures(good(0)), ("svg",))] == [
            pictures(good(0))[0].files(("svg",))
        ]


@pytest.mark.parametrize(
    ("tasks", "processes", "told"), [(1, 8, 0), (4, 1, 0), (4, 2, 1), (4, 8, 2), (40, 8, 7)]
)
def test_as_many_processes_help_as_there_are_cores_and_tasks(tasks, processes, told):
    assert report._helpers(SimpleNamespace(tasks=range(tasks)), processes) == told
