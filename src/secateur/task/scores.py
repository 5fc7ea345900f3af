"""The losses and the sums of scores that the built-in tasks are made of; all give one row an example."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import ModelError
from secateur.running import shapes
from secateur.task.base import Loss, Score, tensor_of
from secateur.task.classifying import by_example, distillation_loss

_ROUNDING = 1e-13  # a difference of sums of squares under this share of them is what adding them up left


def numbers_of(outputs: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Return outputs and labels as (examples, numbers); raises ModelError where they do not fit.

    A network with one output may have labels (examples,).
    """
    found = tensor_of(outputs)
    if not isinstance(labels, Tensor) or found.numel() != labels.numel() or len(found) != len(labels):
        raise ModelError(
            f"outputs {shapes(outputs)} and labels {shapes(labels)} do not fit: one number a label is right"
        )
    return found.flatten(1) if found.dim() > 1 else found[:, None], labels.to(found.dtype).reshape(
        len(labels), -1
    )


def _error(kind: Any) -> Loss:
    def losses(outputs: Any, labels: Any) -> Tensor:
        return kind(*numbers_of(outputs, labels), reduction="none").mean(1)

    return losses


ERRORS = {"mse": _error(F.mse_loss), "l1": _error(F.l1_loss), "huber": _error(F.huber_loss)}


def rmse(unit: str) -> Score:
    counts = lambda outputs, labels: ERRORS["mse"](outputs, labels)  # noqa: E731
    return Score("RMSE", unit, False, counts, lambda sums: math.sqrt(float(sums[0] / sums[1])))


def mae(unit: str) -> Score:
    return Score("mean absolute error", unit, False, ERRORS["l1"])


def r2(unit: str) -> Score:
    """The share of the labels' variance that the outputs explain: 1 - residual / total sum of squares.

    Of labels that are all one number, which have no variance, it is 1 where the outputs are that number and
    else 0, as in scikit-learn: a search and a mean over seeds go on with it.
    """
    del unit
    return Score("R2", counts=_squares, value=_explained)


def _squares(outputs: Any, labels: Any) -> Tensor:
    found, wanted = (part.double() for part in numbers_of(outputs, labels))
    parts = (found - wanted).square(), wanted, wanted.square(), torch.ones_like(wanted)
    return torch.cat(parts, 1)


def _explained(sums: Tensor) -> float:
    residual, total, squares, number = sums.reshape(4, -1)
    spread = squares - total.square() / number
    constant = spread <= _ROUNDING * squares
    share = torch.where(constant, (residual == 0).double(), 1 - residual / spread)
    return float(share.mean())  # of several numbers an example the mean, as scikit-learn


def hits(outputs: Any, labels: Any) -> Tensor:
    """Return by example how many labels are rightly found, found, and there."""
    logits, there = _binary(outputs, labels)
    found = logits > 0
    return torch.stack([part.double().sum(1) for part in (found & there.bool(), found, there)], 1)


def f1(sums: Tensor) -> float:
    right, found, there = sums.tolist()
    return 2 * right / (found + there) if found + there else 1.0


def binary_losses(outputs: Any, labels: Any, weights: Tensor | None = None) -> Tensor:
    logits, there = _binary(outputs, labels)
    weights = None if weights is None else weights.to(logits)
    return F.binary_cross_entropy_with_logits(logits, there, weights, reduction="none").mean(1)


def binary_divergence(outputs: Any, teacher: Any, temperature: float, labels: Any = None) -> Tensor:
    """Binary cross-entropy with a teacher's probabilities, both softened, times the temperature's square."""
    del labels
    mine, wanted = tensor_of(outputs) / temperature, tensor_of(teacher) / temperature
    return temperature**2 * F.binary_cross_entropy_with_logits(mine, wanted.sigmoid())


def _binary(outputs: Any, labels: Any) -> tuple[Tensor, Tensor]:
    logits = tensor_of(outputs)
    if not isinstance(labels, Tensor) or logits.shape != labels.shape or logits.dim() != 2:
        raise ModelError(
            f"outputs {shapes(outputs)} and labels {shapes(labels)}: with multi_label both are (examples, "
            "classes)"
        )
    return logits, labels.to(logits.dtype)


def pixels_of(outputs: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Return logits (N, classes, ...) and labels (N, ...); one logit is made two. Raises ModelError."""
    if isinstance(outputs, Mapping) and "out" in outputs:  # as torchvision's networks give it
        outputs = outputs["out"]
    logits = tensor_of(outputs)
    if isinstance(labels, Tensor) and labels.dim() == logits.dim() and labels.shape[1] == 1:
        labels = labels[:, 0]
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or (logits.shape[:1] + logits.shape[2:] != labels.shape)
    ):
        raise ModelError(
            f"outputs {shapes(outputs)} and labels {shapes(labels)} are no segmentation: logits are (N, "
            "classes, H, W), labels whole numbers (N, H, W)"
        )
    logits = torch.cat((torch.zeros_like(logits), logits), 1) if logits.shape[1] == 1 else logits
    return logits, labels.long()


def overlaps(outputs: Any, labels: Any, *, ignore: int) -> Tensor:
    """Return by example, for each class, in how many pixels it is rightly found, found, and there."""
    logits, labels = pixels_of(outputs, labels)
    counted = labels != ignore
    classes = torch.arange(logits.shape[1], device=logits.device).reshape(1, -1, *[1] * (labels.dim() - 1))
    found = (logits.argmax(1, keepdim=True) == classes) & counted.unsqueeze(1)
    there = (labels.unsqueeze(1) == classes) & counted.unsqueeze(1)
    return torch.cat([part.flatten(2).double().sum(2) for part in (found & there, found, there)], 1)


def mean_iou(sums: Tensor) -> float:
    right, found, there = sums.reshape(3, -1)
    union = found + there - right
    return _mean_where(right, union)


def mean_dice(sums: Tensor) -> float:
    right, found, there = sums.reshape(3, -1)
    return _mean_where(2 * right, found + there)


def _mean_where(part: Tensor, whole: Tensor) -> float:
    """Return the mean over the classes that are there or found at all."""
    return float((part / whole)[whole > 0].mean())


def dice_losses(outputs: Any, labels: Any, *, ignore: int) -> Tensor:
    """Return 1 - the mean Dice coefficient over the classes, of the probabilities, by example."""
    logits, labels = pixels_of(outputs, labels)
    counted = (labels != ignore).unsqueeze(1)
    shares = logits.softmax(1) * counted
    there = F.one_hot(labels.where(counted[:, 0], 0), logits.shape[1]).movedim(-1, 1) * counted
    both, sizes = ((part.flatten(2)).sum(2) for part in (shares * there, shares + there))
    return 1 - ((2 * both + 1) / (sizes + 1)).mean(1)  # + 1: an absent class that is not found is right


def _tokens(outputs: Any, labels: Any, shift: bool) -> tuple[Tensor, Tensor]:
    logits = tensor_of(outputs)
    if not isinstance(labels, Tensor) or logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise ModelError(
            f"outputs {shapes(outputs)} and labels {shapes(labels)} are no language modelling: logits are "
            "(N, T, vocabulary), labels (N, T)"
        )
    return (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)


def _each_token(outputs: Any, labels: Any, shift: bool, ignore: int) -> tuple[Tensor, Tensor]:
    logits, labels = _tokens(outputs, labels, shift)
    each = F.cross_entropy(logits.movedim(-1, 1), labels, ignore_index=ignore, reduction="none")
    return each, labels != ignore


def token_loss(outputs: Any, labels: Any, *, shift: bool, ignore: int) -> Tensor:
    """Return the mean cross-entropy over all tokens of a batch."""
    logits, labels = _tokens(outputs, labels, shift)
    return F.cross_entropy(logits.movedim(-1, 1), labels, ignore_index=ignore)


def token_losses(outputs: Any, labels: Any, *, shift: bool, ignore: int) -> Tensor:
    return by_example(*_each_token(outputs, labels, shift, ignore))


def tokens_counted(labels: Any, *, shift: bool, ignore: int) -> Tensor:
    """Return by example how many tokens count."""
    return ((labels[:, 1:] if shift else labels) != ignore).double().sum(1)


def token_counts(outputs: Any, labels: Any, *, shift: bool, ignore: int) -> Tensor:
    """Return by example the cross-entropy of its tokens, and how many they are."""
    each, counted = _each_token(outputs, labels, shift, ignore)
    return torch.stack(((each * counted).double().sum(1), counted.double().sum(1)), 1)


def perplexity(sums: Tensor) -> float:
    mean = float(sums[0] / sums[1])
    return math.exp(mean) if mean < 700 else 1e300


def token_divergence(outputs: Any, teacher: Any, temperature: float, labels: Any = None) -> Tensor:
    del labels
    mine, wanted = (tensor_of(part).movedim(-1, 1) for part in (outputs, teacher))
    return distillation_loss(mine, wanted, temperature)


def loss_within(outputs: Any) -> Tensor:
    """Return the loss among a network's outputs: ``loss``, the sum of several losses, or a number."""
    if isinstance(found := getattr(outputs, "loss", None), Tensor):
        return found
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, Tensor) and outputs.numel() == 1:
        return outputs.reshape(())
    if isinstance(outputs, (list, tuple)) and outputs:
        if all(isinstance(part, Tensor) and part.numel() == 1 for part in outputs):
            return torch.stack([part.reshape(()) for part in outputs]).sum()
        if isinstance(outputs[0], Tensor) and outputs[0].numel() == 1:  # (loss, ...)
            return outputs[0].reshape(())
    raise ModelError(
        f"outputs {shapes(outputs)[:200]} hold no loss: `loss`, a dict of losses or one number is right"
    )


class Mapped:
    """Mean average precision as one number: torchmetrics gives a dict of many."""

    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def update(self, outputs: Any, labels: Any) -> None:
        self._metric.update(outputs, labels)

    def compute(self) -> float:
        return float(self._metric.compute()["map"])
