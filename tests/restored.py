"""The tables of components, put back as they were."""

from __future__ import annotations

import sys
from contextlib import contextmanager

from clipbench import registry


@contextmanager
def registry_restored():
    """Take what was registered within out of the tables again; the packaged components stay, for
    they are imported only once.
    """
    tables = {kind: dict(table) for kind, table in registry._tables.items()}
    used, modules = dict(registry._used), set(sys.modules)
    yield
    for kind, table in registry._tables.items():
        kept = tables[kind] | {
            name: cls for name, cls in table.items() if cls.__module__.startswith("clipbench.")
        }
        table.clear()
        table.update(kept)
    registry._used.clear()
    registry._used.update(used)
    for module in set(sys.modules) - modules:
        if module.startswith("clipbench_use_"):
            del sys.modules[module]
