"""``clipbench gate``: speed and learning against what they were."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from clipbench.cli.leaving import command, writable
from clipbench.errors import UsageError
from clipbench.progress import Bars

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option(
    "--limits",
    "page",
    type=FILE,
    default=None,
    help="A page of limits of your own; the packaged one if not given.",
)
@click.option(
    "--baseline",
    type=FOLDER,
    default=None,
    help="Folder of the baselines; results/gate, or beside your own page.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=None,
    help="Processes that train; one per core if not given.",
)
@click.option(
    "--markdown",
    type=FILE,
    default=None,
    help="Write the verdict there, for a comment on a pull request.",
)
@click.option(
    "--json",
    "json_",
    type=FILE,
    default=None,
    help="Write verdict and numbers there, for machines.",
)
@click.option(
    "--self-test",
    is_flag=True,
    help="Measure instead how often the gate is wrong, with load running beside.",
)
@click.option(
    "--checks",
    type=click.IntRange(4),
    default=400,
    help="Of the self-test: checks of equals; a quarter as many slower.",
)
@command
def gate(
    page: Path | None,
    baseline: Path | None,
    workers: int | None,
    markdown: Path | None,
    json_: Path | None,
    self_test: bool,
    checks: int,
) -> None:
    """Is this tree slower, or does it learn worse? Exit 0 no, 1 yes, 3 cannot be told here.

    Speed is compared with frozen references, learning with committed results; both are named in a
    page of limits.
    """
    from clipbench import gate as gate_
    from clipbench.gate import self_test as self_test_
    from clipbench.gate import sentences, verdict

    for option, path in (("--markdown", markdown), ("--json", json_)):
        writable(option, path)
    if markdown is not None and json_ is not None and markdown.resolve() == json_.resolve():
        raise UsageError(f"--json: {json_} is the file of --markdown.")
    limits = gate_.read(page, baseline)
    here = gate_.environment()
    with Bars() as bars:
        if self_test:
            rates = self_test_.run(limits, checks, bars)
            told, code = self_test_.text(rates), rates.code
            table, document = self_test_.markdown(rates, here), self_test_.document(rates, here)
        else:
            findings = gate_.run(limits, workers, bars)
            told, code = sentences.text(findings), verdict.CODES[verdict.overall(findings)]
            table, document = sentences.markdown(findings, here), sentences.document(findings, here)
    click.echo(told)
    for path, content in ((markdown, table), (json_, document)):
        if path is not None:
            # an error's text may hold half a character
            path.write_text(content, encoding="utf-8", errors="backslashreplace")
    sys.exit(code)
