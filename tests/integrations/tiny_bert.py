"""A BERT of two thousand weights, and sentences of which it can learn something."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import secateur as sc
from secateur.integrations.transformers import PruningCallback

VOCABULARY, LENGTH = 24, 6


def sentences(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences of tokens, labelled by whether the first token is of the vocabulary's upper half."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (number, LENGTH), generator=generator)
    return [
        {
            "input_ids": row,
            "attention_mask": torch.ones(LENGTH, dtype=torch.long),
            "labels": int(row[0] >= VOCABULARY // 2),
        }
        for row in tokens
    ]


def bert(**settings: Any) -> BertForSequenceClassification:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=LENGTH, num_labels=2, **settings,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def settings(folder: Any, **other: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8, "max_steps": 24, "learning_rate": 5e-3, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "logging_steps": 4, "save_strategy": "no",
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **(defaults | other))


def pruning(**options: Any) -> PruningCallback:
    """To 90 % in five steps, one every four of the optimizer."""
    arguments = {"criterion": sc.Magnitude(), "budget": sc.Global(0.9), "schedule": sc.Cubic(5), "every": 4}
    return PruningCallback(**(arguments | options))
