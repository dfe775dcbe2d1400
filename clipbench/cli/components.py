"""``clipbench list`` and ``clipbench conform``: the components there are, and whether they keep
what all must keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from clipbench.cli.leaving import FINDING, command, leave
from clipbench.errors import UsageError, counted, nearest

SECTIONS = ("workloads", "optimizers", "clips", "studies")
SINGULAR = {"workload": "workloads", "optimizer": "optimizers", "clip": "clips", "study": "studies"}


def _words(_context: click.Context, _option: click.Parameter, begun: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in (*SECTIONS, *SINGULAR) if word.startswith(begun)]


@click.command("list")
@click.argument("words", metavar="[KIND] [NAME]", nargs=-1, shell_complete=_words)
@command
def list_(words: tuple[str, ...]) -> None:
    """The workloads, optimizers, clips and packaged studies there are.

    KIND is one of these words, or its singular; NAME is one of them. A study by its name is its
    page, to begin one of your own with.
    """
    from clipbench import registry, study

    kind = SINGULAR.get(words[0], words[0]) if words else None
    names = words[1:] if kind in SECTIONS else words
    if len(names) > 1:
        raise UsageError(f"list {' '.join(words)}: give a kind, a name, or a kind and a name.")
    sections = [kind] if kind in SECTIONS else SECTIONS
    if sections != ["studies"]:
        registry.load_packaged()
    rows = {
        section: study.packaged()
        if section == "studies"
        else {name: name for name in registry.names(_singular(section))}
        for section in sections
    }
    if names:
        _show(rows, names[0])
        return
    for number, (section, found) in enumerate(rows.items()):
        if number:
            click.echo()
        if len(rows) > 1:
            click.echo(section)
        width = max(map(len, found))
        for name, text in found.items():
            first, *others = _lines(section, name, text)
            click.echo(f"  {name:<{width}}  {first}")
            for line in others:
                click.echo(f"  {'':<{width}}  {line}")


def _show(rows: Mapping[str, Mapping[str, str]], name: str) -> None:
    """What has this name, of each kind: its lines, and of a study its page."""
    met = [section for section, found in rows.items() if name in found]
    if not met:
        known = [one for found in rows.values() for one in found]
        words = [*known, *SECTIONS, *SINGULAR] if len(rows) > 1 else known
        what = f"{_singular(next(iter(rows)))} " if len(rows) == 1 else ""
        raise UsageError(
            f'list: there is no {what}"{name}".{nearest(name, words)} `clipbench list` names all.'
        )
    for section in met:
        if section == "studies":
            click.echo(rows[section][name], nl=False)
            continue
        click.echo(f"{_singular(section)} {name}")
        for line in _lines(section, name, ""):
            click.echo(f"  {line}")


def _singular(section: str) -> Any:
    return next(one for one, several in SINGULAR.items() if several == section)


def _lines(section: str, name: str, text: str) -> list[str]:
    """What is said of a component, or of a study by its page."""
    import tomllib

    from clipbench import registry

    if section == "studies":
        return [tomllib.loads(text).get("title", "")]
    return _setting_lines(registry.find(_singular(section), name))


def _setting_lines(cls: Any) -> list[str]:
    """What a component does, its settings and its source; of a workload also what a step costs,
    and whether it has lanes.
    """
    from clipbench import registry

    settings = registry.settings_in_words(cls)
    lines = [
        registry.about(cls),
        "No settings." if settings == "no settings" else f"Settings: {settings}.",
    ]
    if hasattr(cls, "step_seconds"):
        lanes = "many at once, as lanes" if cls.lanes else "one at a time, in the loop"
        lines.append(
            f"Trains {lanes}; a step of the loop takes {1e3 * cls.step_seconds:.2g} ms on one core."
        )
    if source := registry.source(cls):
        lines.append(f"Source: {source}")
    return lines


@click.command()
@click.argument("component", metavar="NAME|FILE.py")
@command
def conform(component: str) -> None:
    """Test a component, packaged or in a plug-in, against the claims that all must keep; exit 1
    with the broken ones. One that is kept begins with WARN if results may still mislead.
    """
    from clipbench import conformance, registry

    registry.load_packaged()
    known = {(kind, name) for kind in registry.KINDS for name in registry.names(kind)}
    if component.endswith(".py"):
        registry.load_file(Path(component), "conform")
        chosen = sorted(
            {(kind, name) for kind in registry.KINDS for name in registry.names(kind)} - known
        )
        if not chosen:
            raise UsageError(
                f"conform: {component} registers no component; decorate a class with @clip, "
                f"@optimizer or @workload."
            )
    else:
        chosen = sorted((kind, name) for kind, name in known if name == component)
        if not chosen:
            names = sorted(name for _, name in known)
            raise UsageError(
                f'conform: there is no component "{component}".{nearest(component, names)} There '
                f"are: {', '.join(names)}."
            )
    broken = 0
    for kind, name in chosen:
        click.echo(f"{kind} {name}")
        for check in conformance.conform(kind, name):
            broken += not check.passed
            word = "BROKEN" if not check.passed else "WARN  " if check.doubtful else "holds "
            click.echo(f"  {word}  {check.claim}{f': {check.detail}' if check.detail else ''}")
        click.echo(f"  Not tested: {conformance.UNTESTED[kind]}.")
    if broken:
        leave(f"{counted(broken, 'broken promise')}.", FINDING)
