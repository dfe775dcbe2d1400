"""What is said to Slurm and what it answers: the options, the batch script, ``sbatch``, ``squeue``
and ``scancel``.

Nothing here knows of shards or portions.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipbench.errors import UsageError

OPTIONS = (
    "jobs",
    "time",
    "partition",
    "account",
    "gpus",
    "setup",
    "python",
    "sbatch",
    "folder",
)
NAMED = re.compile(r"[\w.,:+@-]+", re.ASCII)  # a partition, an account, a number of GPUs
LONGEST_ARRAY = 500  # Slurm's own limit is 1000 unless a site has set another
ANSWER = 60.0  # seconds that a command of Slurm may take
# what sbatch says if its controller is busy or restarting
PASSING = ("timed out", "Unable to contact", "temporarily", "Zero Bytes", "try again")
TRIES, PAUSE = 4, 5.0
SEEN, EXIT, LOG = "seen", "exit", "log"

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
AT_WORK = {"CONFIGURING", "RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING"}
SUSPENDED, GONE = "SUSPENDED", "GONE"
# reasons for which a job waits for ever
HOPELESS = {
    "AccountNotAllowed",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "QOSNotAllowed",
}


@dataclass(frozen=True)
class Wishes:
    """The options of the executor: ``--executor-option KEY=VALUE``.

    :param jobs: how many jobs at a time.
    :param time: minutes that a job may take.
    :param gpus: what ``--gpus`` is for work on CUDA: a number, or a kind with it.
    :param setup: a line of shell before Python starts, such as ``module load``.
    :param python: the interpreter on a compute node.
    :param sbatch: other words for sbatch, such as ``--qos=low --mem=4G``.
    :param folder: what this machine and the compute nodes both see; None for the results folder.
    """

    jobs: int = 20
    time: int = 60
    partition: str | None = None
    account: str | None = None
    gpus: str = "1"
    setup: str = ""
    python: str = sys.executable
    sbatch: str = ""
    folder: Path | None = None

    @classmethod
    def of(cls, options: Mapping[str, str], workers: int | None = None) -> Wishes:
        """The options as they were given.

        :param workers: ``--workers``, which says the same as ``jobs``.
        :raises UsageError: one is not what it must be.
        """
        numbers = {
            name: _number(name, options[name]) for name in ("jobs", "time") if name in options
        }
        if workers is not None:
            numbers.setdefault("jobs", workers)
        for name in ("partition", "account", "gpus"):
            if name in options and not NAMED.fullmatch(options[name]):
                raise UsageError(
                    f'--executor-option {name}="{options[name]}": it must be a word for sbatch '
                    f"--{name}."
                )
        try:
            shlex.split(options.get("sbatch", ""))
        except ValueError as error:
            raise UsageError(f"--executor-option sbatch: {error}.") from error
        texts = {
            name: options[name]
            for name in ("partition", "account", "gpus", "setup", "python", "sbatch")
            if name in options
        }
        folder = Path(options["folder"]).expanduser() if "folder" in options else None
        return cls(**numbers, **texts, folder=folder)  # type: ignore[arg-type]

    def script(self, name: str, batch: Path, jobs: int, threads: int, cuda: bool) -> str:
        """The batch script of an array of jobs; job i has the folder ``BATCH-i``."""
        asked = {
            "job-name": name,
            "array": f"0-{jobs - 1}",
            "time": self.time,
            "ntasks": 1,
            "cpus-per-task": threads,
            "partition": self.partition,
            "account": self.account,
            "gpus": self.gpus if cuda else None,
            # the folder may not be there: the script opens its own log
            "output": "/dev/null",
        }
        lines = [f"--{word}={value}" for word, value in asked.items() if value is not None]
        # Slurm would begin a shard from its start: what is left of it comes as a new job
        lines += ["--no-requeue", *map(shlex.quote, shlex.split(self.sbatch))]
        return "\n".join(
            [
                "#!/bin/bash",
                *(f"#SBATCH {line}" for line in lines),
                f'folder={shlex.quote(str(batch))}-"$SLURM_ARRAY_TASK_ID"',
                f'hostname > "$folder/{SEEN}" || exit 66  # this node does not see the folder',
                f'exec >> "$folder/{LOG}" 2>&1',
                *([self.setup] if self.setup else []),
                f'{shlex.quote(self.python)} -P -m clipbench.execute.slurm_job "$folder"',
                f'echo $? > "$folder/{EXIT}.unfinished"',
                f'mv "$folder/{EXIT}.unfinished" "$folder/{EXIT}"',
                "",
            ]
        )


def _number(name: str, text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,6}", text, re.ASCII):
        what = "minutes" if name == "time" else "a number of jobs"
        raise UsageError(f'--executor-option {name}="{text}": it must be {what}, from 1.')
    return int(text)


@dataclass(frozen=True)
class Standing:
    """What squeue says of a job: its state, why it waits, and its node."""

    state: str
    reason: str = ""
    node: str = ""


class Cluster:
    """Slurm, by its commands; a test has another."""

    def submit(self, script: Path) -> str:
        """The number of the array of jobs that a script asks for.

        :raises UsageError: Slurm refuses it.
        """
        for tried in range(1, TRIES + 1):
            done = _run("sbatch", "--parsable", str(script))
            if done.returncode == 0:
                return done.stdout.strip().partition(";")[0]
            said = " ".join(done.stderr.split())
            if tried == TRIES or not any(word in said for word in PASSING):
                break
            time.sleep(PAUSE)
        raise UsageError(
            f"--executor slurm: sbatch refused a job: {said or 'without a word'} (the script is "
            f"{script})."
        )

    def standing(self, name: str) -> dict[str, Standing] | None:
        """Job → what squeue says of it, for all jobs of a name that it still knows; None if it
        does not answer.
        """
        done = _run(
            "squeue",
            "--noheader",
            "--array",
            "--states=all",
            f"--name={name}",
            "--format=%i|%T|%r|%N",
        )
        return standings(done.stdout) if done.returncode == 0 else None

    def cancel(self, *words: str) -> None:
        """End jobs: those of these numbers, or of ``--name=…``. One that is gone is no error."""
        _run("scancel", "--quiet", *words)


def _run(command: str, *words: str) -> subprocess.CompletedProcess[str]:
    path = shutil.which(command)
    if path is None:
        raise UsageError(
            f"--executor slurm: there is no {command} on PATH; start the run on a machine that "
            f"submits to Slurm, such as a login node."
        )
    try:
        return subprocess.run(  # noqa: S603 - Slurm's own commands
            [path, *words], capture_output=True, text=True, timeout=ANSWER, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "it timed out")


def standings(text: str) -> dict[str, Standing]:
    """What squeue printed as ``%i|%T|%r|%N``, job → standing; a line that is none is left out."""
    found = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 4 and fields[0]:
            found[fields[0]] = Standing(*fields[1:])
    return found


def exit_code(text: str) -> int | None:
    """The code that a script has written, below zero for a signal as Python has it; None if it is
    no number.
    """
    if not text.strip().isdigit():
        return None
    code = int(text)
    return 128 - code if code > 128 else code


def chunks(number: int) -> Sequence[range]:
    """Arrays that so many jobs are submitted as."""
    return [range(at, min(at + LONGEST_ARRAY, number)) for at in range(0, number, LONGEST_ARRAY)]
