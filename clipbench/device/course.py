"""The course of the command: each step a process under its own limit of time, its output a log,
its end in the state of the folder.

It knows nothing of what a step does.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from clipbench.device import bounds, folder, page, steps, told
from clipbench.device.folder import FACTS, LOGS, STATE
from clipbench.device.steps import Step
from clipbench.errors import duration
from clipbench.store.files import replace_text

GRACE = 20.0  # seconds that a step may take to end once it is told to; a shard under way is kept
GRACE_SHARE = 0.04  # of the whole time, if that is less
LEAST = 1.0  # seconds: a step with less would only be started to be ended

Say = Callable[[str], None]


class State(StrEnum):
    """What became of a step."""

    UNDER_WAY = "under way"
    DONE = "done"
    AT_LIMIT = "ended at its limit"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    LEFT_OUT = "left out"
    NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Ending:
    """Where the page is, the names of the steps that failed, those of the bounds that do not hold,
    and how many bounds were judged.
    """

    page: Path
    failed: Sequence[str]
    broken: Sequence[str]
    judged: int


def run(device: str, into: Path, seconds: float, say: Say, begun: float) -> Ending:
    """What came of all steps; what is done on this machine already is not done again.

    :param begun: when the time began, by ``time.monotonic``.
    :raises UsageError: the folder holds something else.
    :raises KeyboardInterrupt: after the step under way has ended and the page is written.
    """
    state = folder.opened(into, device)
    with folder.held(into):
        course = Course(into.resolve(), state or _new(device), seconds, say, begun)
        planned = steps.planned(device, course.into)
        try:
            if course.learn(steps.facts(device)):
                course.take(planned)
        finally:
            course.end([step.name for step in (steps.facts(device), *planned)])
    entries, found = course.state["steps"], course.state["bounds"]
    return Ending(
        into / folder.PAGE,
        [name for name, entry in entries.items() if entry["state"] == State.FAILED],
        [one["name"] for one in found if one["holds"] is False],
        sum(one["holds"] is not None for one in found),
    )


def _new(device: str) -> dict[str, Any]:
    return {"what": folder.WHAT, "format": 1, "device": device, "steps": {}}


@dataclass
class Course:
    """The steps of one call, and the state of the folder ``into``.

    :param seconds: for all of them, from ``begun`` on.
    """

    into: Path
    state: dict[str, Any]
    seconds: float
    say: Say
    begun: float = field(default_factory=time.monotonic)

    @property
    def grace(self) -> float:
        """Seconds that a step has to end once it is told to."""
        return min(GRACE, max(LEAST, GRACE_SHARE * self.seconds))

    @property
    def left(self) -> float:
        """Seconds that are left, without those that the last step may need to end."""
        return self.begun + self.seconds - self.grace - time.monotonic()

    def keep(self) -> None:
        """Write the state."""
        folder.write_json(self.into / STATE, self.state)

    def learn(self, step: Step) -> bool:
        """Whether it is known what machine this is. What another machine, or other versions, left
        in the folder is moved aside, and every step begins anew.
        """
        entry = self._done(step, max(LEAST, min(steps.FACTS_LIMIT, self.left)))
        found = folder.read_json(self.into / FACTS)
        if "key" not in found:
            self._note(step.name, entry)
            return False
        if self.state.get("key", found["key"]) != found["key"]:
            new = (FACTS, str(_log(step.name)))
            aside = folder.set_aside(self.into, str(self.state["key"]), new)
            self.say(f"{self.into.name}: the results of another machine are now in {aside.name}.")
            self.state = _new(self.state["device"])
        self.state |= found
        self._note(step.name, entry)
        return True

    def take(self, planned: Sequence[Step]) -> None:
        """Take the steps that are not done, in their order.

        :raises KeyboardInterrupt: one was interrupted.
        """
        for number, step in enumerate(planned):
            before = self._state_of(step)
            if before == State.DONE:
                continue
            if reason := step.absent():
                self._note(step.name, {"state": State.LEFT_OUT, "said": reason})
            elif self.left >= LEAST:
                self._begin(step, planned)
                open_ = [one for one in planned[number:] if self._is_to_come(one, step)]
                self._note(step.name, self._done(step, self._limit(open_)))
            elif before in (None, State.UNDER_WAY):  # else what it came to before is still true
                self._note(step.name, {"state": State.NOT_REACHED})

    def end(self, names: Sequence[str]) -> None:
        """Write the page: of every step, in this order, what became of it, and of the bounds."""
        entries, missing = self.state["steps"], {"state": State.NOT_REACHED}
        self.state |= {
            "steps": {name: entries.get(name, missing) for name in names},
            "minutes": self.seconds / 60,
            "bounds": bounds.of_folder(self.into, self.state["device"]),
            "studies": page.studies(self.into),
            "seconds": _since(self.begun),
        }
        self.keep()
        replace_text(self.into / folder.PAGE, page.text(self.state))

    def _is_to_come(self, step: Step, now: Step) -> bool:
        """Whether a step will need time; whether there is anything to look at is known once only
        looks are to come.
        """
        return self._state_of(step) != State.DONE and not (now.after and step.absent())

    def _state_of(self, step: Step) -> str | None:
        state: str | None = self.state["steps"].get(step.name, {}).get("state")
        return state

    def _limit(self, open_: Sequence[Step]) -> float:
        """Seconds that the first of these steps may take, which are all that are to come."""
        each = max(0.0, self.left) / sum(one.share for one in open_)
        besides = each * sum(one.share for one in open_ if not one.after)
        return max(each * open_[0].share, min(open_[0].least, besides))

    def _begin(self, step: Step, planned: Sequence[Step]) -> None:
        """Note that a step begins, and that those which look at what it makes are not done."""
        for one in planned:
            if step.name in one.after:
                self.state["steps"].pop(one.name, None)
        self.state["steps"][step.name] = {"state": State.UNDER_WAY, "words": list(step.words)}
        self.keep()

    def _note(self, name: str, entry: Mapping[str, Any]) -> None:
        self.state["steps"][name] = dict(entry)
        self.keep()
        took = f" after {entry['seconds']:.0f} s" if "seconds" in entry else ""
        said = f": {entry['said']}" if entry.get("said") else ""
        self.say(f"{name}: {entry['state']}{took}{said}")

    def _done(self, step: Step, limit: float) -> dict[str, Any]:
        """The entry of a step that is carried out here.

        :raises KeyboardInterrupt: it was interrupted, and has ended; its entry is noted.
        """
        log = self.into / _log(step.name)
        log.parent.mkdir(exist_ok=True)
        if step.makes:
            (self.into / step.makes).unlink(missing_ok=True)
        self.say(f"{step.name}: at most {duration(limit)}")
        where, start = steps.ROOT if step.in_tree else self.into, time.monotonic()
        entry: dict[str, Any] = {
            "words": list(step.words),
            "log": str(_log(step.name)),
            "limit": round(limit, 1),
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with log.open("a", encoding="utf-8") as output:
            output.write(f"$ {shlex.join(step.words)}\n")
            output.flush()
            first = output.tell()
            try:
                command = step.command(self.into)
                code, cut = process(command, where, output.fileno(), limit, self.grace)
            except KeyboardInterrupt:
                entry |= {"state": State.INTERRUPTED, "seconds": _since(start)}
                self._note(step.name, entry)
                raise
        entry |= {"state": _state(code, cut), "code": code, "seconds": _since(start)}
        return entry | {"said": told.said(step, self.into, log, first)}


def _state(code: int, cut: bool) -> State:
    """A step that had ended well before it heard that it should is done."""
    if code == 0:
        return State.DONE
    return State.AT_LIMIT if cut else State.FAILED


def _since(start: float) -> float:
    return round(time.monotonic() - start, 1)


def _log(name: str) -> Path:
    return Path(LOGS, f"{name.replace(' ', '-')}.log")


def process(
    command: Sequence[str], where: Path, output: int, limit: float, grace: float
) -> tuple[int, bool]:
    """The exit code of a process, and whether its time was over.

    At its limit it gets SIGINT, upon which a command of clipbench keeps what has ended; after the
    grace it is killed, with all processes that it has started.

    :raises KeyboardInterrupt: this process was told to end; the other one has ended in the same
        way.
    """
    with _interrupts_heard():
        started = subprocess.Popen(  # noqa: S603 - our own commands
            list(command),
            cwd=where,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,  # Ctrl+C comes from here, and only once
        )
    try:
        return started.wait(limit), False
    except subprocess.TimeoutExpired:
        return _told_to_end(started, grace), True
    except KeyboardInterrupt:
        _told_to_end(started, grace)
        raise
    finally:
        if started.poll() is None:
            _kill(started)


def _told_to_end(started: subprocess.Popen[bytes], grace: float) -> int:
    started.send_signal(signal.SIGINT)
    try:
        return started.wait(grace)
    except subprocess.TimeoutExpired:
        return _kill(started)


def _kill(started: subprocess.Popen[bytes]) -> int:
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    return started.wait()


@contextmanager
def _interrupts_heard() -> Iterator[None]:
    """A process that is started here hears SIGINT, also if this one ignores it as what a shell
    starts in the background does.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _environment() -> dict[str, str]:
    """That of a process that finds the same clipbench as this one."""
    if not steps.in_tree():
        return dict(os.environ)
    places = [str(steps.ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
