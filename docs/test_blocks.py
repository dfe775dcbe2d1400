"""Every block of code on a page holds: Python runs, a study is one, a command exists.

Sybil finds the blocks. A block whose first line is a comment with a file's name is that file, for
the blocks after it. On the pages of ``RUN`` the commands are run.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import torch
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from clipbench import registry, study
from clipbench.cli import cli

DOCS = Path(__file__).parent
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
RUN = {"start.md"}
NAME = re.compile(r"^# (\w+\.\w+)$", re.MULTILINE)


def python(example):
    """Run it, or keep it if it is a file: the study that uses it reads it."""
    if not _written(example):
        PythonEvaluator()(example)


def toml(example):
    """A study is parsed as one, with the files that it uses; another page as TOML."""
    _written(example)
    if re.search(r"^(\[run\]|run +=)", example.parsed, re.MULTILINE):
        study.parse("shown", example.parsed, Path.cwd()).cells()
    else:
        tomllib.loads(example.parsed)


def sh(example):
    """Its commands of clipbench are known with their options; on some pages they are run."""
    for line in re.split(r"\n|&&", example.parsed):
        words = shlex.split(line, comments=True)
        if words[:1] != ["clipbench"]:
            continue
        _check(words[1:])
        if Path(example.path).name in RUN:
            subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True)


def _check(words):
    """:raises click.ClickException: there is no such command, or no such option."""
    group, context = cli, click.Context(cli)
    while isinstance(group, click.Group):
        name, group, words = group.resolve_command(context, words)
        context = click.Context(group, info_name=name, parent=context)
    group.make_parser(context).parse_args(list(words))


def _written(example):
    """Whether a block is a file, which is written."""
    if named := NAME.match(example.parsed):
        Path(named[1]).write_text(example.parsed, encoding="utf-8")
    return named is not None


def reader():
    """What a reader of the README has: a model, its optimizer and a loop."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(model, optimizer):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    return {"model": model, "optimizer": optimizer, "train": train}


SYBIL = Sybil(
    parsers=[
        CodeBlockParser(language="python", evaluator=python),
        CodeBlockParser(language="toml", evaluator=toml),
        CodeBlockParser(language="sh", evaluator=sh),
    ]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_holds(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "quick").symlink_to(DOCS.parent / "results" / "quick")
    registry.load_packaged()
    document = SYBIL.parse(page)
    if page.name == "README.md":
        document.namespace |= reader()
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize("line", ["clipbench rnu quick", "clipbench run quick --sedes 3"])
def test_a_command_that_does_not_exist_is_found(line):
    with pytest.raises(click.ClickException):
        _check(shlex.split(line)[1:])
