"""Fine-tune a small BERT with the Trainer of transformers while it is pruned to 90 %.

pip install 'secateur[transformers]'
The task: are these 24 letters prose or a program? The prose is $SECATEUR_DATA/tinyshakespeare where that is
there, else Python's own manual; the program is Python's argparse.
"""

import argparse
import inspect
import os
from pathlib import Path
from pydoc_data.topics import topics

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

import secateur as sc
from secateur.integrations.transformers import PruningCallback

LENGTH = 24
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
QUIET = {"report_to": "none", "logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True}


def examples() -> list[dict]:
    files = sorted(Path(os.environ.get("SECATEUR_DATA", "."), "tinyshakespeare").glob("*.txt"))
    program = inspect.getsource(argparse)
    prose = (files[0].read_text() if files else "".join(topics.values()))[: len(program)]
    letters = torch.tensor([[min(ord(c), 127) for c in text] for text in (prose, program)])
    pieces = letters[:, : len(program) // LENGTH * LENGTH].view(2, -1, LENGTH).transpose(0, 1).flatten(0, 1)
    return [{"input_ids": piece, "labels": number % 2} for number, piece in enumerate(pieces)]


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": (prediction.predictions.argmax(1) == prediction.label_ids).mean()}


def trained(schedule=None) -> tuple[torch.nn.Module, float]:
    set_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=128, max_position_embeddings=LENGTH, **SIZES))
    args = TrainingArguments(
        "runs", max_steps=120, per_device_train_batch_size=32, learning_rate=1e-3, use_cpu=True, **QUIET
    )
    data = examples()
    trainer = Trainer(model, args, None, data[800:], data[:800], compute_metrics=accuracy)
    if schedule is not None:
        trainer.add_callback(PruningCallback(sc.Magnitude(), sc.Global(0.9), schedule, every=8))
    trainer.train()
    return model, trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    ways = {
        "dense": None,
        "pruned at once at the start": sc.OneShot(),
        "pruned little by little": sc.Cubic(10),
    }
    rows = {name: trained(schedule) for name, schedule in ways.items()}
    for name, (model, right) in rows.items():
        print(f"{name:<28} {sc.sparsity(model):6.1%} zeros   {right:6.1%} right")
