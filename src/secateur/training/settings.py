"""What determines a training run besides the network, the data and the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from secateur.errors import RecipeError


@dataclass(frozen=True)
class Training:
    """Settings of one training run.

    ``batch_size`` None is full batch. ``l1`` times the sum of |w| over the target weights is added
    to the batch's mean loss; under Adam its gradient is scaled as Adam scales any gradient.
    ``shift`` (pixels) and ``flip`` are drawn for each image. ``keep``: the weights handed back are
    those of the best epoch on validation, or of the last. ``patience``: epochs without a better
    validation accuracy before it stops. ``clip``: the gradients' largest L2 norm. ``distill``: the share of
    the loss that is the divergence from a teacher's outputs at ``temperature`` (Hinton et al. 2015).
    ``slimming`` times the sum of |scale| of all BatchNorm layers is added to the loss.
    """

    epochs: int = 10
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: float = 1e-3
    lr_schedule: Literal["constant", "linear", "cosine", "onecycle", "step"] = "constant"
    batch_size: int | None = 128
    weight_decay: float = 0.0
    momentum: float = 0.9
    l1: float = 0.0
    label_smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    amp: bool = False
    clip: float | None = None
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    distill: float = 0.0
    temperature: float = 4.0
    slimming: float = 0.0

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, low in (
            ("epochs", 0),
            ("lr", 0),
            ("weight_decay", 0),
            ("l1", 0),
            ("shift", 0),
            ("slimming", 0),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= low):
                raise RecipeError(f"{name} is {value}; it is a finite number from {low}")
        if self.batch_size is not None and self.batch_size < 1:
            raise RecipeError(f"batch_size is {self.batch_size}; it counts from 1 (null: full batch)")
        if not 0 <= self.momentum < 1:
            raise RecipeError(f"momentum is {self.momentum}; it is a share under 1")
        if self.clip is not None and not self.clip > 0:
            raise RecipeError(f"clip is {self.clip}; it is the largest norm, above 0 (null: no limit)")
        if self.patience is not None and self.patience < 1:
            raise RecipeError(f"patience is {self.patience}; it counts epochs from 1 (null: no limit)")
        if not 0 <= self.distill <= 1:
            raise RecipeError(f"distill is {self.distill}; it is a share of the loss, from 0 to 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise RecipeError(f"temperature is {self.temperature}; it is a positive number")
        if not 0 <= self.label_smoothing < 1:
            raise RecipeError(f"label_smoothing is {self.label_smoothing}; it is a share under 1")

    def with_epochs(self, epochs: int) -> Training:
        return replace(self, epochs=epochs)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a fresh optimizer over the model's trainable parameters."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay, foreach=True
            )
        make = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return make(parameters, self.lr, weight_decay=self.weight_decay, foreach=True)

    def lr_at(self, progress: float) -> float:
        """Return the learning rate when the share ``progress`` of the run's steps has been taken."""
        if self.lr_schedule == "linear":
            return self.lr * (1 - progress)
        if self.lr_schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        if self.lr_schedule == "step":
            return self.lr * (1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
        if self.lr_schedule == "onecycle":
            up = 0.3
            if progress < up:
                return self.lr * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * progress / up)))
            return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - up) / (1 - up)))
        return self.lr
