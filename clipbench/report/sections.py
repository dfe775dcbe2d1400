"""The page, section by section, in the order in which it is read.

A section's file has the name of its question, which is also the section's anchor, and a function
``section``. No section knows which others there are.
"""

from __future__ import annotations

from clipbench.analysis.cells import counts
from clipbench.report import (
    adaptive,
    article,
    budget,
    clips,
    cost,
    curves,
    devices,
    distributed,
    divergence,
    fired,
    form,
    grid,
    headline,
    instead,
    methods,
    missing,
    overfit,
    profile,
    provenance,
    published,
    replicas,
    robust,
    strict,
    target,
    threats,
    transfer,
    vanishing,
    whatif,
)
from clipbench.report.evidence import Evidence
from clipbench.report.parts import Section
from clipbench.report.words import census

SECTIONS = (
    published,
    headline,
    divergence,
    robust,
    form,
    distributed,
    budget,
    fired,
    whatif,
    strict,
    instead,
    adaptive,
    target,
    overfit,
    vanishing,
    profile,
    cost,
    article,
    replicas,
    devices,
    clips,
    transfer,
    curves,
    grid,
    missing,
    threats,
    methods,
    provenance,
)


def subtitle(evidence: Evidence) -> str:
    """The line below the title: the study, its hash, and how its cells ended."""
    store, ended = evidence.store, counts(evidence.cells)
    return f"Study {store.name} ({store.study_hash}) · {census(ended)}"


def told(evidence: Evidence, name: str = "") -> list[Section]:
    """All sections that this store can fill; only the one of this name, if there is one."""
    if not len(evidence.cells):
        timed = [cost.section(evidence)] if len(evidence.throughput) else []
        return [*timed, missing.section(evidence), provenance.section(evidence)]
    named = {question.__name__.rpartition(".")[2]: question for question in SECTIONS}
    asked = [named[name]] if name in named else SECTIONS
    sections = (question.section(evidence) for question in asked)
    return [section for section in sections if section.parts]
