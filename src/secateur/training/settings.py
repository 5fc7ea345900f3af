"""What determines a training run besides the network, the data and the seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch import nn, optim

from secateur.errors import RecipeError
from secateur.numeric import is_real, is_whole

Optimizer = Literal["sgd", "adam", "adamw"]
LRSchedule = Literal["constant", "linear", "cosine", "onecycle", "step"]
Keep = Literal["best", "last"]
_Rule = tuple[Callable[[Any], bool], str]


def _one_of(choices: Any) -> _Rule:
    return lambda value: isinstance(value, str) and value in get_args(choices), "one of " + ", ".join(
        get_args(choices)
    )


def _count(low: int, most: int, null: str = "") -> _Rule:
    right = f"a whole number from {low} to {most:,}" + (f" (null: {null})" if null else "")
    return lambda value: (null and value is None) or (is_whole(value) and low <= value <= most), right


def _number(right: str, fits: Callable[[float], bool], null: str = "") -> _Rule:
    right += f" (null: {null})" if null else ""
    return lambda value: (null and value is None) or (is_real(value) and fits(value)), right


_FLAG: _Rule = lambda value: isinstance(value, bool), "true or false"
_FROM_0 = _number("a finite number from 0", lambda value: value >= 0)
_UNDER_1 = _number("a share under 1", lambda value: 0 <= value < 1)
_RULES: dict[str, _Rule] = {
    "epochs": _count(0, 1_000_000),
    "optimizer": _one_of(Optimizer),
    "lr": _FROM_0,
    "lr_schedule": _one_of(LRSchedule),
    "batch_size": _count(1, 10**9, null="full batch"),
    "weight_decay": _FROM_0,
    "momentum": _UNDER_1,
    "l1": _FROM_0,
    "label_smoothing": _UNDER_1,
    "shift": _count(0, 10_000),
    "flip": _FLAG,
    "amp": _FLAG,
    "clip": _number("the largest norm, above 0", lambda value: value > 0, null="no limit"),
    "patience": _count(1, 1_000_000, null="no limit"),
    "keep": _one_of(Keep),
    "distill": _number("a share of the loss, from 0 to 1", lambda value: 0 <= value <= 1),
    "temperature": _number("a positive number", lambda value: value > 0),
    "slimming": _FROM_0,
    "average": _number("a share of the epochs, from 0 to 1", lambda value: 0 <= value <= 1),
}


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
    ``average``: over the last epochs, this share of all, the weights after each are averaged (Izmailov et al.
    2018), and the statistics of norms are taken anew on the training data; ``keep`` "last" hands that network
    back, "best" whichever is better on validation.
    """

    epochs: int = 10
    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    lr_schedule: LRSchedule = "constant"
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
    keep: Keep = "best"
    distill: float = 0.0
    temperature: float = 4.0
    slimming: float = 0.0
    average: float = 0.0

    def __post_init__(self) -> None:
        for name, (fits, right) in _RULES.items():
            if not fits(value := getattr(self, name)):
                raise RecipeError(f"{name} is {value!r}; it is {right}")

    def with_epochs(self, epochs: int) -> Training:
        return replace(self, epochs=epochs)

    @property
    def averaged_from(self) -> int:
        """The first epoch, from 1, whose weights are averaged; one after the last where none is."""
        return self.epochs + 1 - math.ceil(self.average * self.epochs - 1e-9)

    def make_optimizer(self, model: nn.Module) -> optim.Optimizer:
        """Return a fresh optimizer over the model's trainable parameters."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        make = {"sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW}[self.optimizer]
        momentum = {"momentum": self.momentum} if self.optimizer == "sgd" else {}
        return make(parameters, self.lr, weight_decay=self.weight_decay, foreach=True, **momentum)

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
