"""Cells onto processes, and what comes back into the store.

Cells are packed into *shards*: a few cells for the loop, or as many as are lanes together. The
`supervisor` says what is run next and who is to blame; an `executor` runs it somewhere; here that
is `local`, worker processes of this machine. The supervisor's side alone writes into the store.
"""

from clipbench.cores import cores
from clipbench.execute.archive import SHARD_CELLS, cell_row, curve_columns
from clipbench.execute.cards import ONE_CARD, Cards
from clipbench.execute.executor import (
    Broken,
    Call,
    Died,
    Done,
    Executor,
    Left,
    Portion,
    Raised,
    Returned,
    Setting,
    Used,
    abreast,
)
from clipbench.execute.local import Local, context
from clipbench.execute.machine import environment, key_of
from clipbench.execute.offered import LOCAL, Request, offered, options_named
from clipbench.execute.shards import IN_HAND, Shard, has_user_component, pack
from clipbench.execute.supervisor import LIMIT, SLACK, Bug, call, calls, run
from clipbench.execute.worker import answers, carried_out, prepare
from clipbench.execute.world import World

__all__ = [
    "IN_HAND",
    "LIMIT",
    "LOCAL",
    "ONE_CARD",
    "SHARD_CELLS",
    "SLACK",
    "Broken",
    "Bug",
    "Call",
    "Cards",
    "Died",
    "Done",
    "Executor",
    "Left",
    "Local",
    "Portion",
    "Raised",
    "Request",
    "Returned",
    "Setting",
    "Shard",
    "Used",
    "World",
    "abreast",
    "answers",
    "call",
    "calls",
    "carried_out",
    "cell_row",
    "context",
    "cores",
    "curve_columns",
    "environment",
    "has_user_component",
    "key_of",
    "offered",
    "options_named",
    "pack",
    "prepare",
    "run",
]
