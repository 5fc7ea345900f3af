"""What a task is: a loss, a score with its name and unit, and what one example is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from secateur.errors import ModelError, TaskError
from secateur.running import shapes

Loss = Callable[[Any, Any], Tensor]


class Meter(Protocol):
    """What adds a split up, batch by batch: torchmetrics' metrics are such."""

    def update(self, outputs: Any, labels: Any) -> Any: ...
    def compute(self) -> Any: ...


@dataclass(frozen=True)
class Scale:
    """How a score is read: its ``name``, its ``unit`` ("%" for shares, which are shown times 100; "" where
    it has none) and whether a higher one is better."""

    name: str
    unit: str = ""
    higher_is_better: bool = True

    @property
    def factor(self) -> float:
        """What a score is multiplied by where it is shown."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def title(self) -> str:
        """The name with the unit, as an axis has it."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def points(self) -> str:
        """What a difference of two scores is measured in."""
        return "percentage points" if self.unit == "%" else self.unit or f"of {self.name}"

    def oriented(self, value: float) -> float:
        """Return the score so that larger is better."""
        return value if self.higher_is_better else -value

    def drop(self, dense: float, value: float) -> float:
        """Return how much worse than ``dense`` a score is, in ``points``."""
        return self.factor * (self.oriented(dense) - self.oriented(value))

    def lowered(self, value: float, points: float) -> float:
        """Return the score that is so many ``points`` worse."""
        return self.oriented(self.oriented(value) - points / self.factor)

    def number(self, value: float, sign: str = "") -> str:
        """Return a score, or a difference of scores with the ``sign`` "+", as a table shows it."""
        return f"{self.factor * value:{sign}{'.2f' if self.unit == '%' else '.4g'}}"

    def text(self, value: float) -> str:
        """Return a score with its unit: "98.31 %"."""
        return f"{self.number(value)} {self.unit}".rstrip()


ACCURACY = Scale("accuracy", "%")


def ratio(sums: Tensor) -> float:
    """Return the first sum over the second: a mean."""
    return float(sums[0] / sums[1])


@dataclass(frozen=True)
class Score(Scale):
    """What a network is judged by: one figure made of sums over all examples, or a metric of torchmetrics.

    Sums make it exact however the examples are cut into batches, and let a greedy search try many units in
    one go.

    Args:
        name: as reports say it, like "mean IoU".
        unit: "%" for a share, which is shown times 100, or the figure's own unit.
        higher_is_better: False for errors and perplexities.
        counts: ``counts(outputs, labels)`` gives what each example adds to the sums, (examples, sums), or
            (examples,) of which the mean is the score.
        value: ``value(sums)`` gives the score; by default the first sum over the second.
        metric: in place of ``counts``: makes what has ``update(outputs, labels)`` and ``compute()``, such
            as ``lambda: torchmetrics.AUROC("binary")``.

    Raises:
        TaskError: where neither of the two is given, or both.

    Example:
        >>> import torch, secateur as sc
        >>> def miss(outputs, labels):  # by example
        ...     return (outputs[:, 0] - labels).abs()
        >>> score = sc.Score("mean absolute error", "cm", higher_is_better=False, counts=miss)
        >>> meter = score.meter()
        >>> meter.update(torch.tensor([[1.0], [2.0]]), torch.tensor([1.5, 2.5]))
        >>> meter.update(torch.tensor([[4.0]]), torch.tensor([2.0]))
        >>> score.text(meter.compute())
        '1 cm'
    """

    counts: Callable[[Any, Any], Tensor] | None = None
    value: Callable[[Tensor], float] = ratio
    metric: Callable[[], Meter] | None = None

    def __post_init__(self) -> None:
        if (self.counts is None) == (self.metric is None):
            raise TaskError(f"the score {self.name!r} has either counts= or metric=, and one of them")

    def meter(self) -> Meter:
        """Return what adds up a split, from nothing."""
        return self.metric() if self.metric is not None else _Sums(self)

    def counted(self, outputs: Any, labels: Any) -> Tensor:
        """Return what each example adds to the sums, (examples, sums) in float64.

        Raises TaskError for a score that has no ``counts``, or whose counts are of another shape.
        """
        if self.counts is None:
            raise TaskError(f"the score {self.name!r} is a metric over all examples, without counts= of each")
        counts = self.counts(outputs, labels).detach().double()
        if counts.dim() == 1:
            counts = torch.stack((counts, torch.ones_like(counts)), 1)
        if counts.dim() != 2:
            raise TaskError(
                f"the score {self.name!r} gave counts {shapes(counts)}; (examples,) or (examples, sums) "
                "is right"
            )
        return counts


class _Sums:
    """The sums of a score so far."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self._sums: Tensor | None = None

    def update(self, outputs: Any, labels: Any) -> None:
        new = self._score.counted(outputs, labels).sum(0).cpu()
        self._sums = new if self._sums is None else self._sums + new

    def compute(self) -> float:
        return float("nan") if self._sums is None else float(self._score.value(self._sums))


def distances(outputs: Any, teacher: Any, temperature: float, labels: Any = None) -> Tensor:
    """Return the mean square difference of a network's outputs from its teacher's; a task without classes
    has no temperature."""
    del temperature, labels
    mine, wanted = tensor_of(outputs), tensor_of(teacher)
    if mine.shape != wanted.shape:
        raise ModelError(f"the teacher gives {tuple(wanted.shape)}, the network {tuple(mine.shape)}")
    return torch.nn.functional.mse_loss(mine, wanted)


def tensor_of(outputs: Any) -> Tensor:
    """Return the one tensor that a network's outputs are: their ``logits``, or else themselves.

    Raises ModelError for outputs of another kind.
    """
    found = getattr(outputs, "logits", outputs)
    if isinstance(found, (tuple, list)) and len(found) == 1:
        found = found[0]
    if not isinstance(found, Tensor):
        raise ModelError(f"outputs are {shapes(outputs)[:200]}; one tensor, or what has logits, is right")
    return found


@dataclass(frozen=True)
class Task:
    """What a network is trained and judged by, wherever secateur trains or judges.

    ``secateur.build_task`` makes the usual ones; one of your own is this class with your functions.

    Args:
        name: as recipes say it.
        loss: ``loss(outputs, labels)`` is what training minimises, the mean over a batch.
        score: what networks are judged and chosen by.
        example: what one example is, in a word or two, like "image".
        losses: ``losses(outputs, labels)``, the loss of each example: a greedy search breaks ties by it.
        weights: ``weights(labels)``, how much each example counts in the mean loss; default all alike.
        divergence: ``divergence(outputs, teacher_outputs, temperature, labels)`` is what distillation
            minimises; labels are None where the batches have none.
        smoothed: ``smoothed(share)`` gives the loss with label smoothing; None where there is no such thing.
        of_inputs: the labels are the inputs themselves, as in reconstruction.
        in_eval: False where a network gives its loss in training mode alone, as detectors do.
        classes: ``classes(outputs, labels)``, where there are any: for each label (its class, whether it is
            right), from which a report says which class lost most.

    Raises:
        TaskError: for a loss that is no function, or a score that is no ``secateur.Score``.

    Example:
        >>> import torch, secateur as sc
        >>> score = sc.Score("error", higher_is_better=False, counts=lambda y, t: (y[:, 0] - t).abs())
        >>> task = sc.Task("counting", lambda y, t: (y[:, 0] - t).square().mean(), score, "photograph")
        >>> net = torch.nn.Linear(3, 1)
        >>> sc.evaluate(net, [(torch.zeros(4, 3), torch.full((4,), net.bias.item()))], task)
        error 0, loss 0, 4 photographs
    """

    name: str
    loss: Loss
    score: Score
    example: str = "example"
    losses: Loss | None = None
    weights: Callable[[Any], Tensor] | None = None
    divergence: Callable[[Any, Any, float, Any], Tensor] = field(default=distances)
    smoothed: Callable[[float], Loss] | None = None
    of_inputs: bool = False
    in_eval: bool = True
    classes: Callable[[Any, Any], tuple[Tensor, Tensor]] | None = None

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise TaskError(
                f"the loss of {self.name!r} is {self.loss!r}; it is a function of (outputs, labels)"
            )
        if not isinstance(self.score, Score):
            raise TaskError(f"the score of {self.name!r} is {self.score!r}; it is a secateur.Score")
