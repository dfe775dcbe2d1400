"""A callback for Lightning: ``Trainer(callbacks=[Watch("runs/mine")])``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning

from clipbench.errors import UsageError
from clipbench.recording import watching


class Watch(lightning.Callback):  # type: ignore[misc]  # the library may be absent
    """Watches all optimizers of a training; with ``log`` its four numbers go to the trainer's
    loggers. ``options`` are those of `clipbench.watch`.

    :raises UsageError: the module optimises by hand and makes its optimizers anew.
    """

    def __init__(
        self, out: Path | str = watching.OUT, *, log: bool = False, **options: Any
    ) -> None:
        self._out, self._options = out, options
        self._shown: dict[str, Any] | None = {} if log else None
        self._watch: watching.Watch | None = None

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if not trainer.optimizers:
            raise UsageError("watch: this training has no optimizer.")
        log = None if self._shown is None else self._shown.update
        self._watch = watching.Watch(
            pl_module, trainer.optimizers, self._out, log=log, **self._options
        ).start()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self._shown:
            for logger in trainer.loggers:
                numbers = {name: float(value) for name, value in self._shown.items()}
                logger.log_metrics(numbers, step=trainer.global_step)
            self._shown.clear()

    def on_train_end(self, *_: Any) -> None:
        self._stop()

    def on_exception(self, *_: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
