"""Trains as the test does, and dies after a step of which no checkpoint tells."""

from __future__ import annotations

import sys

import killed
from tiny_bert import bert, pruning, sentences, settings
from transformers import Trainer, TrainerCallback


class Dies(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 14:
            killed.now()


if __name__ == "__main__":
    arguments = settings(sys.argv[1], save_strategy="steps", save_steps=6)
    Trainer(bert(), arguments, train_dataset=sentences(64), callbacks=[pruning(), Dies()]).train()
