"""Accuracy and loss of a classifier on a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from secateur.data.dataset import Split
from secateur.running import denormals_flushed, evaluating
from secateur.task import cross_entropy, logits_of, predictions


@dataclass(frozen=True)
class Evaluation:
    """``accuracy`` (a fraction) and mean ``loss`` over ``number`` examples."""

    accuracy: float
    loss: float
    number: int

    @property
    def score(self) -> tuple[float, float]:
        """What choices compare: accuracy first, ties by the smaller loss."""
        return self.accuracy, -self.loss


def evaluate_on(model: nn.Module, split: Split, batch_size: int = 1000) -> Evaluation:
    """Evaluate ``model`` in eval mode on ``split``, on the model's device."""
    device = device_of(model)
    channels_last = prefers_channels_last(model)
    right, loss = 0, 0.0
    batches = zip(split.inputs.split(batch_size), split.labels.split(batch_size), strict=True)
    with evaluating(model), denormals_flushed(), torch.inference_mode():
        for inputs, labels in batches:
            inputs, labels = inputs.to(device), labels.to(device)
            if channels_last and inputs.dim() == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            outputs = model(inputs)
            loss += float(cross_entropy(outputs, labels, reduction="sum"))
            right += int((predictions(logits_of(outputs, labels)) == labels).sum())
    number = split.labels.numel()
    return Evaluation(right / number, loss / number, len(split))


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def prefers_channels_last(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in model.modules())
