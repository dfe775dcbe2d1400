"""A question's prose: a template of paragraphs, a line each, which numbers and words are passed to.

Shared by the sections. It knows none of them.
"""

from __future__ import annotations

from functools import cache
from itertools import groupby
from typing import Any

import jinja2

from clipbench.report.parts import List, Text
from clipbench.report.words import percent, plural, short

BULLET, CODE = "- ", "    "


@cache
def environment() -> jinja2.Environment:
    """The templates; an undefined name is an error, and nothing is escaped but in HTML."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("clipbench"),
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"cell": _cell, "flat": _flat, "tex": _tex}
    found.filters |= {"short": short, "percent": percent, "count": _count, "plural": plural}
    return found


def _cell(text: object) -> str:
    """The text as a cell of a Markdown table."""
    told = str(text).replace("\\", "\\\\").replace("|", "\\|")
    return told.replace("<", "&lt;").replace("\n", " ")


def _flat(text: object) -> str:
    """The text on one line of Markdown."""
    return " ".join(str(text).split()).replace("<", "&lt;")


def _count(value: int) -> str:
    return f"{value:,}"


TEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "→": r"$\to$",
    "×": r"$\times$",
    "∞": r"$\infty$",
    "δ": r"$\delta$",
    "½": r"$\frac12$",
    "μ": r"$\mu$",
    "µ": r"$\mu$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "₂": r"$_2$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
    "…": r"\dots{}",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "“": "``",
    "”": "''",
}


LATIN = 0x180  # below it are the letters that LaTeX prints by itself


def _tex(text: object) -> str:
    """The text for LaTeX; a sign that it would not print stands as its number."""
    told = (TEX.get(sign, sign) for sign in " ".join(str(text).split()))
    return "".join(
        one if one.isascii() or ord(one) < LATIN else f"U+{ord(one):04X}" for one in told
    )


def paragraphs(question: str, **told: Any) -> list[Text | List]:
    """The paragraphs, lists and code of one question; a line that is empty after rendering is left
    out, and lines that begin with four spaces are code.

    :param told: what the template names.
    """
    rendered = environment().get_template(f"prose/{question}.md.j2").render(told)
    lines = [
        line if line.startswith(CODE) else " ".join(line.split()) for line in rendered.splitlines()
    ]
    parts: list[Text | List] = []
    for kind, group in groupby(filter(str.strip, lines), key=_kind):
        texts = [line.removeprefix(kind) for line in group]
        if kind == CODE:
            parts.append(Text("\n".join(texts), kind="code"))
        else:
            parts += [List([*map(Text, texts)])] if kind == BULLET else map(Text, texts)
    return parts


def _kind(line: str) -> str:
    return next((mark for mark in (BULLET, CODE) if line.startswith(mark)), "")
