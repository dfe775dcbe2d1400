"""What the pages take from the code when they are built: the columns of the store, the components,
the commands and the public names.

Each is a directive for Sphinx that gives Markdown, in a function of its own.
"""

from __future__ import annotations

from inspect import cleandoc, isclass, isfunction

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import clipbench
from clipbench import registry, schema
from clipbench.cli import cli

SHOWN = ("clipbench.registry", "clipbench.errors")  # modules whose names the page has anyway


def columns() -> str:
    """A table for each table of the store, from `schema.TABLES`."""
    lines: list[str] = []
    for name, table in schema.TABLES.items():
        rows = [[f"`{one.name}`", str(one.type), one.unit, one.meaning] for one in table]
        head = ["column", "type", "unit", "what it holds"]
        lines += ["", f"## {name}", "", *_table(head, rows)]
    return "\n".join(lines)


def components() -> str:
    """A table for each kind of component, from the registry."""
    registry.load_packaged()
    lines: list[str] = []
    for kind in registry.KINDS:
        found = [registry.find(kind, name) for name in registry.names(kind)]
        rows = [
            [
                f"`{one.name}`",
                registry.about(one),
                registry.settings_in_words(one),
                registry.source(one),
            ]
            for one in found
        ]
        head = ["name", "what it is", "settings", "source"]
        lines += ["", f"## {kind.capitalize()}s", "", *_table(head, rows)]
    return "\n".join(lines)


def commands(group: click.Group = cli, parent: click.Context | None = None) -> str:
    """A section for each command of a group, and of the groups within it, with its options."""
    context = click.Context(
        group, info_name="clipbench" if parent is None else group.name, parent=parent
    )
    lines: list[str] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            lines.append(commands(command, context))
            continue
        own = click.Context(command, info_name=name, parent=context)
        usage = " ".join([own.command_path, *command.collect_usage_pieces(own)])
        lines += ["", f"## {own.command_path}", "", f"`{usage}`", "", cleandoc(command.help or "")]
        options = [one.get_help_record(own) for one in command.params]
        rows = [[f"`{option}`", said] for option, said in filter(None, options) if said]
        lines += ["", *_table(["option", "what it does"], rows)] if rows else []
    return "\n".join(lines)


def results() -> str:
    """What `clipbench` offers beside components and the modules with a section of their own."""
    members = {name: getattr(clipbench, name) for name in clipbench.__all__}
    lines = [
        f".. auto{'class' if isclass(member) else 'function'}:: {member.__module__}.{name}\n"
        + ("   :members:\n" if isclass(member) else "")
        for name, member in members.items()
        if (isclass(member) or isfunction(member)) and member.__module__ not in SHOWN
    ]
    return "\n".join(["## Results", "", "```{eval-rst}", *lines, "```"]) if lines else ""


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        for row in (head, ["---"] * len(head), *rows)
    ]


def _directive(markdown) -> type[SphinxDirective]:
    class Generated(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            return self.parse_text_to_nodes(markdown(), allow_section_headings=True)

    return Generated


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("store-columns", _directive(columns))
    app.add_directive("components", _directive(components))
    app.add_directive("commands", _directive(commands))
    app.add_directive("results", _directive(results))
    return {"parallel_read_safe": True}
