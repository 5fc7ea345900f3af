"""Accuracy and loss of a classifier on a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.data.dataset import Split
from secateur.errors import ModelError
from secateur.running import denormals_flushed, evaluating


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
    with evaluating(model), denormals_flushed(), torch.inference_mode():
        for inputs, labels in zip(
            split.inputs.split(batch_size), split.labels.split(batch_size), strict=True
        ):
            inputs, labels = inputs.to(device), labels.to(device)
            if channels_last and inputs.dim() == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            outputs = model(inputs)
            loss += float(loss_of(outputs, labels, reduction="sum"))
            right += int((predictions(outputs) == labels).sum())
    return Evaluation(right / len(split), loss / len(split), len(split))


def loss_of(outputs: Tensor, labels: Tensor, label_smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
    """Cross-entropy over classes; binary cross-entropy where the network has one output (a logit)."""
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(labels):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(f"a classifier gives (batch, classes); this network gave {shape}")
    if outputs.shape[1] == 1:
        smooth = labels.to(outputs.dtype) * (1 - label_smoothing) + 0.5 * label_smoothing
        return F.binary_cross_entropy_with_logits(outputs[:, 0], smooth, reduction=reduction)
    return F.cross_entropy(outputs, labels, label_smoothing=label_smoothing, reduction=reduction)


def distillation_loss(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of a classifier's outputs from a teacher's, both softened by
    ``temperature``, times its square (Hinton et al. 2015); (batch, classes), or one logit of two classes."""
    if outputs.shape != teacher.shape:
        raise ModelError(f"the teacher gives {tuple(teacher.shape)}, the network {tuple(outputs.shape)}")
    if outputs.shape[1] == 1:
        outputs, teacher = (F.pad(logits, (1, 0)) for logits in (outputs, teacher))
    own, wanted = (F.log_softmax(logits / temperature, 1) for logits in (outputs, teacher))
    return temperature**2 * F.kl_div(own, wanted, reduction="batchmean", log_target=True)


def predictions(outputs: Tensor) -> Tensor:
    if outputs.shape[1] == 1:
        return (outputs[:, 0] > 0).long()
    return outputs.argmax(1)


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def prefers_channels_last(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in model.modules())
