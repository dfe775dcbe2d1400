"""Tables and figures for a paper: LaTeX compiles them. Needs pdflatex with booktabs; `tox -e paper`
runs it where they are.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest
import synthetic

from clipbench import report

LATEX = shutil.which("pdflatex")
HEAD = r"""\documentclass[10pt]{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage[a2paper,landscape,margin=2cm]{geometry}
\usepackage{booktabs,graphicx}
\extrafloats{100}
\begin{document}
"""


@pytest.mark.skipif(LATEX is None, reason="no pdflatex on this machine")
def test_every_table_and_every_figure_compiles(tmp_path):
    """In a document that takes all of them, each as it was written; no sign is missing."""
    store = synthetic.build(
        tmp_path / "small",
        problems=("digits", "temporal-order"),
        optimizers=("sgd", "adam"),
        relative=(1.0,),
    )
    written = report.write(store, ("tex", "pdf"), tmp_path / "paper", style="paper")
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
    assert "Missing character" not in (tmp_path / "all.log").read_text(errors="replace")
    assert (tmp_path / "all.pdf").stat().st_size > 50_000


def test_what_latex_would_take_for_its_own_is_text():
    from clipbench.report.prose import environment

    tex = environment().filters["tex"]
    assert tex("a_b & 5 % of #1 {x} \\y ~ ^") == (
        r"a\_b \& 5 \% of \#1 \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{}"
    )
    assert tex("−0.5 → ∞ ≥ δ") == r"$-$0.5 $\to$ $\infty$ $\ge$ $\delta$"
    assert tex("é 漢") == "é U+6F22"
