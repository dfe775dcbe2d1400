"""A trainer for nnU-Net: `nnUNetv2_train 1 2d 0 -tr WatchedTrainer`, if a file that nnU-Net finds
imports it.
"""

from __future__ import annotations

from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from clipbench.recording import watching


class WatchedTrainer(nnUNetTrainer):  # type: ignore[misc]  # the library may be absent
    """nnU-Net's own trainer, whose training is recorded into the folder ``watched`` beside its
    checkpoints.
    """

    def on_train_start(self) -> None:
        super().on_train_start()
        self.watch_training()

    def watch_training(self) -> None:
        """Begin to record."""
        out = Path(self.output_folder) / "watched"
        self.watch = watching.Watch(self.network, self.optimizer, out).start()

    def on_train_end(self) -> None:
        self.watch.stop()
        super().on_train_end()
