"""What the pages take from the code when they are built: the columns of the store and the commands.

Two directives for Sphinx, `store-columns` and `commands`; each gives Markdown, in a function of its
own.
"""

from __future__ import annotations

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from clipbench import schema
from clipbench.cli import cli


def columns() -> str:
    """A table for each table of the store, from `schema.TABLES`."""
    lines: list[str] = []
    for name, table in schema.TABLES.items():
        lines += ["", f"## {name}", "", *_table(["column", "type", "unit", "what it holds"], [
            [f"`{one.name}`", str(one.type), one.unit, one.meaning] for one in table
        ])]  # fmt: skip
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
        records = [one.get_help_record(own) for one in command.get_params(own)]
        lines += [
            "",
            f"## {own.command_path}",
            "",
            *(command.help or "").replace("\b\n", "").splitlines(),
            "",
            f"`{' '.join([own.command_path, *command.collect_usage_pieces(own)])}`",
            "",
            *_table(["option", "what it does"], [
                [f"`{option}`", said] for option, said in filter(None, records)
            ]),
        ]  # fmt: skip
    return "\n".join(lines)


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
    app.add_directive("commands", _directive(commands))
    return {"parallel_read_safe": True}
