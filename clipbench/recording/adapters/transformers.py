"""A callback for Hugging Face's Trainer: ``Trainer(callbacks=[Watch("runs/mine")])``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from clipbench.recording import watching


class Watch(transformers.TrainerCallback):  # type: ignore[misc]  # the library may be absent
    """Watches a training; its four numbers stand in the trainer's history of logs as well, and
    reach the trackers whose callbacks come later: to be the first, put it into
    ``trainer.callback_handler.callbacks``. ``options`` are those of `clipbench.watch`.
    """

    def __init__(self, out: Path | str = watching.OUT, **options: Any) -> None:
        self._out, self._options = out, options
        self._shown: dict[str, Any] = {}
        self._watch: watching.Watch | None = None

    def on_train_begin(self, *_: Any, model: Any = None, optimizer: Any = None, **__: Any) -> None:
        log = self._shown.update
        self._watch = watching.Watch(model, optimizer, self._out, log=log, **self._options).start()

    def on_log(
        self, _: Any, state: Any, __: Any, logs: dict[str, Any] | None = None, **___: Any
    ) -> None:
        if logs is not None and "loss" in logs:
            numbers = {name: float(value) for name, value in self._shown.items()}
            logs |= numbers
            state.log_history[-1] |= numbers

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
