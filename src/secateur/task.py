"""What a network is trained and judged by: its loss, its predictions, and which of them are right.

The task is classification: logits (examples, classes), or with positions (examples, positions, classes), or
as torch's own losses take them (examples, classes, positions); one class means one logit of two classes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from secateur.errors import ModelError
from secateur.running import shapes


def cross_entropy(outputs: Any, labels: Any, label_smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of logits, or of anything that has ``logits``; binary where there is one.

    ``reduction``: "mean" or "sum" over all labels, or "none". Labels may be probabilities, shaped as logits.
    Raises ModelError for what is no classification.
    """
    logits = getattr(outputs, "logits", outputs)
    both = isinstance(logits, Tensor) and isinstance(labels, Tensor)
    if both and logits.shape == labels.shape and labels.is_floating_point():
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction=reduction)
    logits = logits_of(outputs, labels)
    if logits.shape[1] == 1:
        if labels.numel() and int(labels.max()) > 1:
            raise ModelError(f"one logit is for two classes; the labels go up to {int(labels.max())}")
        smooth = labels.to(logits.dtype) * (1 - label_smoothing) + 0.5 * label_smoothing
        return F.binary_cross_entropy_with_logits(logits[:, 0], smooth, reduction=reduction)
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction=reduction)


def logits_of(outputs: Any, labels: Any) -> Tensor:
    """Return the logits for ``labels``, classes in dim 1; raises ModelError for what is no classification."""
    logits = getattr(outputs, "logits", outputs)
    if isinstance(logits, Tensor) and isinstance(labels, Tensor) and logits.dim() > 1 and _counts(labels):
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


def judged(outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return by example whether it is right (1.0 or 0.0; of several positions the share) and its loss."""
    right = (predictions(logits_of(outputs, labels)) == labels).double()
    losses = cross_entropy(outputs, labels, reduction="none")
    return tuple(part.flatten(1).mean(1) if part.dim() > 1 else part for part in (right, losses))  # type: ignore[return-value]


def distillation_loss(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of a classifier's outputs from a teacher's, both softened by
    ``temperature``, times its square (Hinton et al. 2015); (batch, classes), or one logit of two classes."""
    if outputs.shape != teacher.shape:
        raise ModelError(f"the teacher gives {tuple(teacher.shape)}, the network {tuple(outputs.shape)}")
    if outputs.shape[1] == 1:
        outputs, teacher = (F.pad(logits, (1, 0)) for logits in (outputs, teacher))
    own, wanted = (F.log_softmax(logits / temperature, 1) for logits in (outputs, teacher))
    return temperature**2 * F.kl_div(own, wanted, reduction="batchmean", log_target=True)
