"""The page, section by section."""

from __future__ import annotations

from clipbench import analysis
from clipbench.report.comparisons import clips, headline
from clipbench.report.evidence import Evidence
from clipbench.report.parts import Section
from clipbench.report.pictures import curves, fired, heat, stable
from clipbench.report.published import published
from clipbench.report.records import cost, events, methods, not_run, provenance
from clipbench.report.transfer import transfer
from clipbench.report.words import census


def subtitle(evidence: Evidence) -> str:
    """What the page stands on, in one line."""
    store, ended = evidence.store, analysis.counts(evidence.cells)
    return f"Study {store.name} ({store.study_hash}) · {census(ended)}"


def told(evidence: Evidence) -> list[Section]:
    """All sections that this store can fill."""
    if not len(evidence.cells):
        timed = [cost(evidence)] if len(evidence.throughput) else []
        return [*timed, not_run(evidence), provenance(evidence)]
    parts = [
        published(evidence),
        headline(evidence),
        stable(evidence),
        clips(evidence),
        transfer(evidence),
        curves(evidence),
        heat(evidence),
        fired(evidence),
        cost(evidence),
        events(evidence),
        not_run(evidence),
        methods(evidence),
        provenance(evidence),
    ]
    return [section for section in parts if section.parts]
