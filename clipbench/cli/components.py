"""``clipbench list`` and ``clipbench conform``: the components there are, and whether they keep
what all must keep.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clipbench.cli.leaving import FINDING, command, leave
from clipbench.errors import UsageError, nearest


@click.command("list")
@click.argument(
    "kind", type=click.Choice(["workloads", "optimizers", "clips", "studies"]), required=False
)
@command
def list_(kind: str | None) -> None:
    """The workloads, optimizers, clips and packaged studies there are."""
    import tomllib

    from clipbench import registry, study

    if kind != "studies":
        registry.load_packaged()
    for number, section in enumerate(
        [kind] if kind else ["workloads", "optimizers", "clips", "studies"]
    ):
        if number:
            click.echo()
        if not kind:
            click.echo(section)
        if section == "studies":
            rows = [
                (name, [tomllib.loads(text).get("title", "")])
                for name, text in study.packaged().items()
            ]
        else:
            singular: Any = section.removesuffix("s")
            rows = [
                (name, _setting_lines(registry.find(singular, name)))
                for name in registry.names(singular)
            ]
        width = max(len(name) for name, _ in rows)
        for name, (first, *others) in rows:
            click.echo(f"  {name:<{width}}  {first}")
            for line in others:
                click.echo(f"  {'':<{width}}  {line}")


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
    with the broken ones.
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
            click.echo(
                f"  {'holds ' if check.passed else 'BROKEN'}  "
                f"{check.claim}{f': {check.detail}' if check.detail else ''}"
            )
    if broken:
        leave(f"{broken} broken promises.", FINDING)
