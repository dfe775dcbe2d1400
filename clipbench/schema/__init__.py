"""Every column of the store: its name, type, unit and meaning; and the words that status,
outcome and kind may take.

It must not know of files.
"""

from clipbench.schema.tables import (
    CELLS,
    CURVES,
    EVALS,
    EVENTS,
    FLAG,
    FLOAT,
    INT,
    RULES,
    TABLES,
    TEXT,
    THROUGHPUT,
    VERSION,
    WATCHED,
    Column,
    arrow,
)
from clipbench.schema.terms import (
    NONFINITE,
    UNSTABLE,
    Kind,
    Outcome,
    Reading,
    Role,
    Sighting,
    Status,
    Term,
    Verdict,
)

__all__ = [
    "CELLS",
    "CURVES",
    "EVALS",
    "EVENTS",
    "FLAG",
    "FLOAT",
    "INT",
    "NONFINITE",
    "RULES",
    "TABLES",
    "TEXT",
    "THROUGHPUT",
    "UNSTABLE",
    "VERSION",
    "WATCHED",
    "Column",
    "Kind",
    "Outcome",
    "Reading",
    "Role",
    "Sighting",
    "Status",
    "Term",
    "Verdict",
    "arrow",
]
