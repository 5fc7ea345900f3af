"""Trains as the test does, and dies after a step of which no checkpoint tells."""

from __future__ import annotations

import sys

import killed
import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_lightning import QUIET, Batches, Module, pruning


class Dies(lightning.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 22:
            killed.now()


if __name__ == "__main__":
    saves = ModelCheckpoint(sys.argv[1], save_top_k=-1, every_n_train_steps=6)
    trainer = lightning.Trainer(max_epochs=4, callbacks=[pruning(), saves, Dies()], **QUIET)
    trainer.fit(Module(), Batches())
