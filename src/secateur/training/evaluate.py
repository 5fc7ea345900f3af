"""The score and the loss of a network on a split, or on batches of anybody's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.copying import copied, fresh
from secateur.data.dataset import Examples, Split, Stream, each_tensor, rows_of
from secateur.errors import ModelError, SecateurError
from secateur.graph.names import unwrapped
from secateur.pruning.batches import batches
from secateur.running import arguments, denormals_flushed, evaluating, shapes, uncached
from secateur.task.base import Scale, Task
from secateur.task.built_in import classification
from secateur.text import first_line


@dataclass(frozen=True)
class Evaluation:
    """The ``score`` of a network and its mean ``loss`` over ``number`` examples.

    Attributes:
        score: a share (not times 100) where its unit is "%".
        loss: 0 where a task's network gives none in eval mode.
        number: how many examples were seen.
        scale: the score's name, its unit and its better way.
        example: what one example is.
        classes: by class how many of its labels there were and how many were right; empty without classes.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Identity()
        >>> found = sc.evaluate(net, [(torch.eye(4), torch.tensor([0, 1, 2, 2]))])
        >>> found.score, found.number, found.classes[3 - 1]
        (0.75, 4, (2, 1))
    """

    score: float
    loss: float
    number: int
    scale: Scale
    example: str = "example"
    classes: tuple[tuple[int, int], ...] = ()

    @property
    def rank(self) -> tuple[float, float]:
        """What choices compare, larger being better: the score first, ties by the smaller loss."""
        return self.scale.oriented(self.score), -self.loss

    def __repr__(self) -> str:
        score = f"{self.scale.name} {self.scale.text(self.score)}"
        return f"{score}, loss {self.loss:.4g}, {self.number:,} {self.example}{'s' * (self.number != 1)}"


def evaluate(
    model: nn.Module,
    data: Examples | Iterable[Any],
    task: Task | None = None,
    *,
    batch_size: int = 1000,
) -> Evaluation:
    """Judge a network in eval mode by a task's score and loss, on the network's device.

    A copy runs, so that the network is left as it was. Scores are exact however examples are cut into
    batches.

    Args:
        model: the network.
        data: batches as everywhere: (inputs, labels), or dicts of the forward's arguments with labels.
        task: what it is judged by; default classification: accuracy and cross-entropy.
        batch_size: of data in memory that have no batches of their own.

    Returns:
        ``score``, ``loss``, ``number`` of examples; printed it is a line.

    Raises:
        ModelError: where outputs and labels are not those of the task.
        CriterionError: for data without a batch, or that can be read in two ways.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(net.weight)
        >>> batches = [(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[3.5], [7.5]]))]
        >>> sc.evaluate(net, batches, sc.build_task("regression", score="rmse", unit="kg"))
        RMSE 0.5 kg, loss 0.25, 2 examples
    """
    return evaluated(copied(unwrapped(model)), data, classification() if task is None else task, batch_size)


def evaluated(
    model: nn.Module, data: Examples | Iterable[Any], task: Task, batch_size: int = 1000
) -> Evaluation:
    """Do what ``evaluate`` does with the network itself, which keeps what its forward keeps."""
    meter, loss, weights, number = task.score.meter(), 0.0, 0.0, 0
    by_class = torch.zeros(2, 0, dtype=torch.int64)
    channels_last = prefers_channels_last(model)
    with evaluating(model), denormals_flushed(), uncached(model), torch.no_grad():
        for inputs, labels in _pairs(model, data, batch_size):
            outputs = called(model, inputs, channels_last)
            rows = rows_of(labels)
            number += rows
            with _judging(task, outputs, labels):
                meter.update(outputs, labels)
                if task.in_eval:
                    each, weight = _loss_of(task, outputs, labels, rows)
                    loss, weights = loss + each, weights + weight
                if task.classes is not None:
                    by_class = _added(by_class, *task.classes(outputs, labels))
    return Evaluation(
        float(meter.compute()),
        loss / max(weights, 1e-12),
        number,
        Scale(task.score.name, task.score.unit, task.score.higher_is_better),
        task.example,
        tuple(map(tuple, by_class.T.tolist())),
    )


def _loss_of(task: Task, outputs: Any, labels: Any, rows: int) -> tuple[float, float]:
    """Return the loss of a batch times the weight of its examples, and that weight."""
    if task.losses is None:
        return float(task.loss(outputs, labels)) * rows, float(rows)
    losses = task.losses(outputs, labels).double()
    weights = torch.ones_like(losses) if task.weights is None else task.weights(labels).to(losses)
    return float((losses * weights).sum()), float(weights.sum())


@contextmanager
def _judging(task: Task, outputs: Any, labels: Any) -> Iterator[None]:
    """Whatever a loss or a score raises on what a network gave is one ModelError that shows it."""
    try:
        yield
    except SecateurError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ModelError(
            f"the task {task.name} cannot judge outputs {shapes(outputs)[:200]} by labels "
            f"{shapes(labels)[:200]}: {first_line(error)}"
        ) from error


def _pairs(model: nn.Module, data: Any, size: int) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, (Split, Stream)):
        device = device_of(model)
        for pair in data.batches(size):
            yield each_tensor(lambda tensor: tensor.to(device), pair)
    else:
        yield from (fresh(pair) for pair in batches(data, "evaluate", model))


def _added(by_class: Tensor, labels: Tensor, right: Tensor) -> Tensor:
    """Return (labels there, of them right) by class with those of one more batch."""
    labels, right = labels.cpu(), right.cpu()
    classes = max(by_class.shape[1], int(labels.max()) + 1 if labels.numel() else 0)
    new = torch.stack([torch.bincount(part, minlength=classes) for part in (labels, labels[right])])
    new[:, : by_class.shape[1]] += by_class
    return new


def called(model: nn.Module, inputs: Any, channels_last: bool) -> Any:
    """Run a network on one tensor, a tuple of them, or a dict of keyword arguments."""
    if channels_last and isinstance(inputs, Tensor) and inputs.dim() == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def prefers_channels_last(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in model.modules())
