"""Classification: the loss of logits, the class that they choose, and what a teacher's outputs teach.

Logits are (examples, classes), or with positions (examples, positions, classes), or as torch's own losses
take them (examples, classes, positions); one class means one logit of two classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import ModelError
from secateur.running import shapes
from secateur.task.base import tensor_of


def cross_entropy(
    outputs: Any,
    labels: Any,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """Return the cross-entropy of logits, or of anything that has ``logits``; binary where there is one.

    ``reduction``: "mean" or "sum" over all labels, or "none". Labels may be probabilities, shaped as logits.
    ``weights``: how much each class counts. Raises ModelError for what is no classification.
    """
    logits = getattr(outputs, "logits", outputs)
    both = isinstance(logits, Tensor) and isinstance(labels, Tensor)
    if both and logits.shape == labels.shape and labels.is_floating_point():
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction=reduction)
    logits = logits_of(outputs, labels)
    if weights is not None and len(weights) != max(2, logits.shape[1]):
        raise ModelError(
            f"class_weights has {len(weights)} numbers; {max(2, logits.shape[1])} classes have one each"
        )
    weights = None if weights is None else weights.to(logits)
    if logits.shape[1] == 1:
        if labels.numel() and int(labels.max()) > 1:
            raise ModelError(f"one logit is for two classes; the labels go up to {int(labels.max())}")
        smooth = labels.to(logits.dtype) * (1 - label_smoothing) + 0.5 * label_smoothing
        each = None if weights is None else weights[labels]
        return F.binary_cross_entropy_with_logits(logits[:, 0], smooth, each, reduction=reduction)
    return F.cross_entropy(logits, labels, weights, label_smoothing=label_smoothing, reduction=reduction)


def logits_of(outputs: Any, labels: Any) -> Tensor:
    """Return the logits for ``labels``, classes in dim 1; raises ModelError for what is no classification."""
    logits = getattr(outputs, "logits", outputs)
    if isinstance(logits, Tensor) and isinstance(labels, Tensor) and logits.dim() > 1 and _counts(labels):
        if logits.dim() == 3 and logits.shape[1] == logits.shape[2] == labels.shape[-1] and labels.dim() == 2:
            raise ModelError(
                f"outputs {shapes(outputs)} have as many classes as positions: which dim is which can only "
                "be guessed; the task language has (examples, positions, classes), segmentation (examples, "
                "classes, positions)"
            )
        if logits.shape[:-1] == labels.shape:
            return logits.movedim(-1, 1)
        if logits.shape[:1] + logits.shape[2:] == labels.shape:
            return logits
    raise ModelError(
        f"outputs {shapes(outputs)} and labels {shapes(labels)} are no classification: logits are (examples, "
        "classes), labels whole numbers (examples,); give the task's own loss= or judge="
    )


def _counts(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex())


def predictions(logits: Tensor) -> Tensor:
    """Return the class that logits, classes in dim 1, are largest for."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def ranked(logits: Tensor, labels: Tensor, top_k: int) -> Tensor:
    """Return whether each label is among the ``top_k`` classes, in dim 1, of the largest logits."""
    return (logits.topk(top_k, 1).indices == labels.unsqueeze(1)).any(1)


def by_example(each: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over the positions of each example, where they have ``weights`` the weighted one."""
    if each.dim() < 2:
        return each
    if weights is None:
        return each.flatten(1).mean(1)
    weights = weights.flatten(1).to(each)
    return (each.flatten(1) * weights).sum(1) / weights.sum(1).clamp(min=1e-12)


def judged(outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return by example whether it is right (1.0 or 0.0; of several positions the share) and its loss."""
    right = (predictions(logits_of(outputs, labels)) == labels).double()
    return by_example(right), by_example(cross_entropy(outputs, labels, reduction="none"))


def class_divergence(outputs: Any, teacher: Any, temperature: float, labels: Any = None) -> Tensor:
    """Return ``distillation_loss`` of logits whose classes lie as ``logits_of`` finds them.

    Raises ModelError for logits with positions, where no labels say which dim is which.
    """
    mine, wanted = tensor_of(outputs), tensor_of(teacher)
    if mine.dim() == 3 and isinstance(labels, Tensor) and _counts(labels) and labels.dim() == 2:
        mine, wanted = logits_of(mine, labels), logits_of(wanted, labels)
    elif mine.dim() == 3:
        raise ModelError(
            f"outputs {shapes(outputs)}: which dim are the classes is not known without labels; use the task "
            "language for (examples, positions, classes), segmentation for (examples, classes, positions)"
        )
    return distillation_loss(mine, wanted, temperature)


def distillation_loss(outputs: Any, teacher: Any, temperature: float, labels: Any = None) -> Tensor:
    """Kullback-Leibler divergence of a classifier's outputs from a teacher's, both softened by
    ``temperature``, times its square (Hinton et al. 2015); classes in dim 1, or one logit of two classes."""
    del labels
    outputs, teacher = tensor_of(outputs), tensor_of(teacher)
    if outputs.shape != teacher.shape:
        raise ModelError(f"the teacher gives {tuple(teacher.shape)}, the network {tuple(outputs.shape)}")
    if outputs.shape[1] == 1:
        outputs, teacher = (torch.cat((torch.zeros_like(logits), logits), 1) for logits in (outputs, teacher))
    own, wanted = (F.log_softmax(logits / temperature, 1) for logits in (outputs, teacher))
    positions = own[0, 0].numel()
    return temperature**2 * F.kl_div(own, wanted, reduction="batchmean", log_target=True) / positions
