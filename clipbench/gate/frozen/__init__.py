"""The frozen references: what today's code does, written by hand with torch's own calls.

Never edit a function here: every ratio ever measured is to it as it stands. What has to be done in
another way gets a reference of its own, under a new name. Nothing else of clipbench is imported, so
that no change of ours can reach in here. `loop` holds the step, the clips, the rules and the
batches of one model, `fused` the step of fused kernels, `lanes` the step of many models at once.

Each function of these modules is a factory: it returns work to be timed, a function without
arguments. Where nothing else is said, sizes are those of ``wdbc``: an MLP 30–64–64–2, 6,274
parameters in 6 tensors, batches of 32.
"""

from __future__ import annotations

from collections.abc import Callable

Work = Callable[[], object]

SHAPES = ((64, 30), (64,), (64, 64), (64,), (2, 64), (2,))
BATCH, BATCHES, FED, LANES = 32, 16, 160, 8
