"""The usual tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import TaskError
from secateur.numeric import is_whole
from secateur.task import scores
from secateur.task.base import ACCURACY, Loss, Meter, Score, Task
from secateur.task.classifying import (
    by_example,
    class_divergence,
    cross_entropy,
    distillation_loss,
    logits_of,
    predictions,
    ranked,
)

_IGNORED = -100  # of labels, as torch has it: what counts nowhere


def classification(
    *, class_weights: Sequence[float] | None = None, top_k: int = 1, multi_label: bool = False
) -> Task:
    """Cross-entropy of logits and accuracy; class weights, top-k, or several labels an example.

    ``class_weights``: how much each class counts in the loss. ``top_k``: right is what is among the k largest
    logits. ``multi_label``: labels are (N, classes) of 0 and 1; binary cross-entropy, and F1 over all.
    """
    weights = _weights(class_weights)
    if multi_label:
        if top_k != 1:
            raise TaskError("top_k counts one label an example; with multi_label leave it out")
        losses = partial(scores.binary_losses, weights=weights)
        score = Score("F1", "%", counts=scores.hits, value=scores.f1)
        return Task(
            "classification", _mean(losses), score, losses=losses, divergence=scores.binary_divergence
        )
    if not is_whole(top_k) or top_k < 1:
        raise TaskError(f"top_k is {top_k!r}; it counts from 1")
    name = ACCURACY.name if top_k == 1 else f"top-{top_k} accuracy"
    return Task(
        "classification",
        partial(cross_entropy, weights=weights),
        Score(name, "%", counts=partial(_right, top_k=top_k)),
        losses=partial(_class_losses, weights=weights),
        weights=partial(_class_weights, weights=weights),
        divergence=class_divergence,
        smoothed=lambda share: partial(cross_entropy, weights=weights, label_smoothing=share),
        classes=_by_class,
    )


def regression(
    *,
    loss: Literal["mse", "l1", "huber"] = "mse",
    score: Literal["r2", "rmse", "mae"] = "r2",
    unit: str = "",
) -> Task:
    """Numbers: mean square, absolute or Huber error; R2, or the root mean square or mean absolute error.

    ``unit``: of the labels, which RMSE and MAE are in.
    """
    losses = _one_of("loss", loss, scores.ERRORS)
    figure = _one_of("score", score, {"r2": scores.r2, "rmse": scores.rmse, "mae": scores.mae})
    return Task("regression", _mean(losses), figure(unit), losses=losses)


def reconstruction(*, loss: Literal["mse", "l1", "huber"] = "mse") -> Task:
    """The inputs themselves as labels, as autoencoders have it: RMSE."""
    losses = _one_of("loss", loss, scores.ERRORS)
    return Task("reconstruction", _mean(losses), scores.rmse(""), losses=losses, of_inputs=True)


def segmentation(
    *,
    loss: Literal["cross_entropy", "dice", "both"] = "cross_entropy",
    score: Literal["iou", "dice"] = "iou",
    class_weights: Sequence[float] | None = None,
    ignore: int = -100,
) -> Task:
    """A class for each pixel: cross-entropy, Dice or their sum; mean IoU, or mean Dice, over the classes.

    Logits are (N, classes, H, W), or (N, 1, H, W) of two classes; labels (N, H, W); ``ignore`` is the label
    that counts nowhere.
    """
    weights = _weights(class_weights)
    kinds = {
        "cross_entropy": partial(_pixel_losses, weights=weights, ignore=ignore),
        "dice": partial(scores.dice_losses, ignore=ignore),
        "both": lambda outputs, labels: (
            _pixel_losses(outputs, labels, weights=weights, ignore=ignore)
            + scores.dice_losses(outputs, labels, ignore=ignore)
        ),
    }  # fmt: skip
    losses = _one_of("loss", loss, kinds)
    whole = partial(_pixel_loss, weights=weights, ignore=ignore) if loss == "cross_entropy" else _mean(losses)
    named = {"iou": ("mean IoU", scores.mean_iou), "dice": ("mean Dice", scores.mean_dice)}
    name, value = _one_of("score", score, named)
    return Task(
        "segmentation",
        whole,
        Score(name, "%", counts=partial(scores.overlaps, ignore=ignore), value=value),
        example="image",
        losses=losses,
        weights=partial(_pixel_weights, weights=weights, ignore=ignore) if loss == "cross_entropy" else None,
        divergence=distillation_loss,
    )


def language(*, shift: bool = False, ignore: int = -100) -> Task:
    """The next token: cross-entropy and perplexity.

    Logits are (N, T, vocabulary), labels (N, T), the token after each; ``shift``: they are the tokens
    themselves, as transformers has it. ``ignore`` is the label that counts nowhere.
    """
    losses = partial(scores.token_losses, shift=shift, ignore=ignore)

    def counts(outputs: Any, labels: Any) -> Tensor:
        return scores.token_counts(outputs, labels, shift=shift, ignore=ignore)

    return Task(
        "language",
        partial(scores.token_loss, shift=shift, ignore=ignore),
        Score("perplexity", higher_is_better=False, counts=counts, value=scores.perplexity),
        example="text",
        losses=losses,
        weights=partial(scores.tokens_counted, shift=shift, ignore=ignore),
        divergence=scores.token_divergence,
    )


def detection() -> Task:
    """The loss that the network itself returns in training, the sum of several; mAP of torchmetrics."""

    def metric() -> Meter:
        try:
            from torchmetrics.detection import MeanAveragePrecision  # pyright: ignore
        except ImportError as error:
            raise TaskError(
                "mAP needs more than torchmetrics alone: pip install 'torchmetrics[detection]'"
            ) from error
        return scores.Mapped(MeanAveragePrecision())

    return Task("detection", own_loss, Score("mAP", "%", metric=metric), example="image", in_eval=False)


def own_loss(outputs: Any, labels: Any = None) -> Tensor:
    """Return the loss that a network returned itself: its ``loss``, the sum of a dict of losses, or a number.

    Raises ModelError for outputs that hold none.
    """
    del labels
    return scores.loss_within(outputs)


def smoothed(task: Task, share: float) -> Task:
    """Return a task with label smoothing in its loss; raises TaskError for one that has no such thing."""
    if not share:
        return task
    if task.smoothed is None:
        raise TaskError(f"label_smoothing: the loss of {task.name} has none; 0 is right")
    return replace(task, loss=task.smoothed(share))


def _mean(losses: Loss) -> Loss:
    return lambda outputs, labels: losses(outputs, labels).mean()


def _weights(given: Sequence[float] | None) -> Tensor | None:
    if given is None:
        return None
    try:
        weights = torch.tensor([float(weight) for weight in given])
    except (TypeError, ValueError) as error:
        raise TaskError(f"class_weights is {given!r}; it is a list of numbers, one a class") from error
    if not len(weights) or not bool((weights >= 0).all()) or not bool(torch.isfinite(weights).all()):
        raise TaskError(f"class_weights is {given!r}; each is a finite number from 0")
    return weights


def _one_of(option: str, chosen: str, known: dict[str, Any]) -> Any:
    if chosen not in known:
        raise TaskError(f"{option} is {chosen!r}; it is one of {', '.join(known)}")
    return known[chosen]


def _right(outputs: Any, labels: Tensor, top_k: int) -> Tensor:
    logits = logits_of(outputs, labels)
    if top_k > logits.shape[1]:
        raise TaskError(f"top_k is {top_k}, and there are {logits.shape[1]} classes")
    right = (predictions(logits) == labels) if top_k == 1 else ranked(logits, labels, top_k)
    parts = (right.double(), (labels != _IGNORED).double())
    return torch.stack([part.flatten(1).sum(1) if part.dim() > 1 else part for part in parts], 1)


def _by_class(outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    right = predictions(logits_of(outputs, labels)) == labels
    counted = labels != _IGNORED
    return labels[counted], right[counted]


def _class_losses(outputs: Any, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the loss of each example, over its positions the mean by their classes' weights."""
    each = cross_entropy(outputs, labels, reduction="none")
    return by_example(each, _of_each(labels, weights))


def _class_weights(labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return how much each example counts in the mean loss, as torch's cross-entropy has it."""
    each = _of_each(labels, weights)
    return each.flatten(1).sum(1) if each.dim() > 1 else each


def _of_each(labels: Tensor, weights: Tensor | None, ignore: int = _IGNORED) -> Tensor:
    counted = labels != ignore
    each = counted.double()
    return each if weights is None else each * weights.to(each)[labels.where(counted, 0)]


def _pixel_loss(outputs: Any, labels: Any, *, weights: Tensor | None, ignore: int) -> Tensor:
    logits, labels = scores.pixels_of(outputs, labels)
    weights = None if weights is None else weights.to(logits)
    return F.cross_entropy(logits, labels, weight=weights, ignore_index=ignore)


def _pixel_losses(outputs: Any, labels: Any, *, weights: Tensor | None, ignore: int) -> Tensor:
    logits, labels = scores.pixels_of(outputs, labels)
    each = F.cross_entropy(logits, labels, ignore_index=ignore, reduction="none")
    return by_example(each, _of_each(labels, weights, ignore))


def _pixel_weights(labels: Any, *, weights: Tensor | None, ignore: int) -> Tensor:
    return _of_each(labels, weights, ignore).flatten(1).sum(1)
