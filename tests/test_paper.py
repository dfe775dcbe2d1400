"""Tables and figures for a paper: LaTeX compiles them. Needs pdflatex with booktabs; `tox -e paper`
runs it where they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pandas as pd
import pytest
import synthetic

from clipbench import report
from clipbench.report import latex
from clipbench.report.parts import Table

LATEX = shutil.which("pdflatex")
HEAD = r"""\documentclass[10pt]{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{array,booktabs,longtable,graphicx}
\extrafloats{100}
\begin{document}
"""


@pytest.mark.skipif(LATEX is None, reason="no pdflatex on this machine")
def test_every_table_and_every_figure_compiles_and_none_is_wider_than_the_text(tmp_path):
    """In an article that takes all of them, each as it was written; no sign is missing."""
    store = synthetic.build(
        tmp_path / "small",
        problems=("digits", "temporal-order"),
        optimizers=("sgd", "adam"),
        relative=(1.0,),
    )
    written = report.write(store, ("tex", "pdf"), tmp_path / "paper", style="column")
    tables = [path for path in written if path.suffix == ".tex"]
    figures = [path for path in written if path.suffix == ".pdf"]
    assert len(tables) > 8
    assert len(figures) > 8
    body = [rf"\input{{{path}}}\clearpage" for path in tables]
    body += [rf"\includegraphics{{{path}}}\clearpage" for path in figures]
    page = tmp_path / "all.tex"
    page.write_text(HEAD + "\n".join(body) + "\n\\end{document}\n", encoding="utf-8")
    ran = subprocess.run(
        [LATEX, "-interaction=nonstopmode", "-halt-on-error", page.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
    log = (tmp_path / "all.log").read_text(errors="replace")
    assert "Missing character" not in log
    beyond = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log)]
    assert max(beyond, default=0.0) < 3  # a letter of 345 pt
    assert (tmp_path / "all.pdf").stat().st_size > 50_000


def test_a_wide_table_stands_in_blocks_that_each_name_their_rows():
    """Every column is there once, beside those that name a row; none is scaled."""
    head = ["problem", "clip", *(f"measure {number}" for number in range(9))]
    rows = [
        [problem, clip, *(f"{number}.5 [0.25, 0.75]" for number in range(9))]
        for problem in ("digits", "wdbc")
        for clip in ("value", "norm")
    ]
    table = Table("wide", "wide", head, rows, pd.DataFrame(), words=2)
    blocks = latex.blocks(table)
    assert len(blocks) > 1
    assert [name for block in blocks for name in block.head[2:]] == head[2:]
    for block in blocks:
        assert [row[:2] for row in block.rows] == [row[:2] for row in rows]
    assert len({len(block.head) for block in blocks}) <= 2  # as even as may be
    assert "resizebox" not in report.render(
        "table.tex.j2", {"table": table, "blocks": blocks, "long": True}
    )


def test_what_latex_would_take_for_its_own_is_text():
    from clipbench.report.prose import environment

    tex = environment().filters["tex"]
    assert tex("a_b & 5 % of #1 {x} \\y ~ ^") == (
        r"a\_b \& 5 \% of \#1 \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{}"
    )
    assert tex("−0.5 → ∞ ≥ δ") == r"$-$0.5 $\to$ $\infty$ $\ge$ $\delta$"
    assert tex("é 漢") == "é U+6F22"
