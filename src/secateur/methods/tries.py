"""The examples that removals are tried on: in batches of one size, with what judges outputs on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from secateur.errors import CriterionError, NonFiniteError
from secateur.methods.ablation import Example
from secateur.pruning.calibration import Batches, batches
from secateur.running import arguments, call, denormals_flushed
from secateur.structure.labels import Array
from secateur.task.base import Task, ratio
from secateur.text import first_line

Judge = Callable[[Any, Any], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Judging:
    """How outputs are judged: ``counted`` gives by example what it adds to the sums of a score and its loss,
    ``value`` the score of such sums, and ``oriented`` a score so that larger is better."""

    counted: Callable[[Any, Any], tuple[Tensor, Tensor]]
    value: Callable[[Tensor], float]
    oriented: Callable[[float], float]

    def figures(self, sums: Array, number: int) -> tuple[Array, Array]:
        """Return the scores and the mean losses of sums, (sums and loss, units)."""
        counts = torch.from_numpy(sums[:-1])
        if self.value is ratio:
            return (counts[0] / counts[1]).numpy(), sums[-1] / number
        scores = [float(self.value(column)) for column in counts.unbind(1)]
        if not np.isfinite(scores).all():
            raise NonFiniteError("the score without some unit is not a finite number")
        return np.array(scores), sums[-1] / number


def judging(judge: Judge | None, task: Task) -> Judging:
    """Return how a task judges, or a ``judge`` of one's own that gives (scores, losses) by example.

    Raises CriterionError for a task that cannot judge one example: without losses, or counts of its score.
    """
    if judge is not None:

        def both(outputs: Any, labels: Any) -> tuple[Tensor, Tensor]:
            scores, losses = judge(outputs, labels)
            return torch.stack((scores, torch.ones_like(scores)), -1), losses

        return Judging(both, ratio, lambda score: score)
    losses, score = task.losses, task.score
    if losses is None or score.counts is None:
        lacking = "losses= of each example" if losses is None else "a score with counts="
        raise CriterionError(
            f"a greedy search by score tries units on each example: the task {task.name} needs {lacking}"
        )

    def counted(outputs: Any, labels: Any) -> tuple[Tensor, Tensor]:
        return score.counted(outputs, labels), losses(outputs, labels)

    return Judging(counted, score.value, score.oriented)


@dataclass(frozen=True)
class Tries:
    """What units are tried on: the ``pairs`` of (inputs, labels) as given, and the same in ``chunks``."""

    pairs: list[tuple[Any, Any]]
    chunks: list[Chunk]
    judge: Judging

    @property
    def number(self) -> int:
        return sum(chunk.number for chunk in self.chunks)

    def evaluated(self, model: nn.Module) -> tuple[float, float]:
        """Return (score, loss) of a network; NaN where there are no labels."""
        if self.chunks[0].labels is None:
            return math.nan, math.nan
        sums: Any = 0
        for chunk in self.chunks:
            with denormals_flushed():
                outputs = _pytree.tree_map(lambda t: t[None], call(model, *chunk.example))
            sums = sums + chunk.judged(outputs, 1, self.judge)
        scores, losses = self.judge.figures(sums, self.number)
        return float(scores[0]), float(losses[0])


@dataclass(frozen=True)
class Chunk:
    """A batch of the size that all have, of which the first ``number`` examples count."""

    example: Example
    labels: Any
    number: int

    def judged(self, outputs: Any, units: int, judge: Judging) -> Array:
        """Return the sums of what a score counts and of losses, (sums, unit), of outputs stacked as (unit,
        example, ...)."""
        flat = _pytree.tree_map(lambda t: t.flatten(0, 1), outputs)
        labels = _pytree.tree_map(lambda t: torch.cat([t] * units), self.labels)
        counts, losses = (part.detach().double().cpu() for part in judge.counted(flat, labels))
        number = len(_pytree.tree_leaves(labels)[0])
        if counts.dim() != 2 or len(counts) != number or losses.shape != (number,):
            raise CriterionError(
                f"the judge gave scores {[*counts.shape]} and losses {[*losses.shape]}; one for each of the "
                f"{number} examples is right"
            )
        both = torch.cat((counts.T, losses[None]))
        sums = both.unflatten(1, (units, -1))[..., : self.number].sum(-1)
        if not sums.isfinite().all():
            raise NonFiniteError("the loss or the score without some unit is not a finite number")
        return sums.numpy()


def tries_of(
    data: Batches,
    model: nn.Module,
    judge: Judging,
    *,
    size: int,
    labelled: bool,
    kwargs: Mapping[str, Any] | None = None,
) -> Tries:
    """Return the data as ``Tries``, in batches of ``size``, the last filled up with its own first
    examples. ``kwargs`` go with each that does not give them itself; ``labelled``: labels are needed."""
    pairs = list(batches(data, "prune_greedily", model, inside=False))
    if labelled and any(labels is None for _, labels in pairs):
        raise CriterionError("prune_greedily needs batches of (inputs, labels); got inputs alone")
    conv = any(isinstance(module, nn.Conv2d) for module in model.modules())
    inputs = _joined([_called(inputs, kwargs or {}) for inputs, _ in pairs])
    whole = inputs, _joined([labels for _, labels in pairs])
    sizes = {len(leaf) for leaf in _pytree.tree_leaves(whole) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(sizes) != 1:
        raise CriterionError(
            f"the data have {sorted(sizes)} inputs and labels; a label for each input is right"
        )
    (number,) = sizes
    size = min(size, number)
    chunks = []
    for start in range(0, number, size):
        index = torch.arange(start, start + size)
        index[index >= number] = start
        example, labels = _pytree.tree_map_only(Tensor, lambda t, i=index: t[i.to(t.device)], whole)
        example = _pytree.tree_map(_channels_last, example) if conv else example
        chunks.append(Chunk(example, labels, min(size, number - start)))
    return Tries(pairs, chunks, judge)


def _called(inputs: Any, kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), {**kwargs, **inputs}
    return arguments(inputs, kwargs)


def _joined(parts: list[Any]) -> Any:
    """Join nested tensors along their first dim; whatever else there is, the first."""
    leaves = [_pytree.tree_flatten(part) for part in parts]
    try:
        columns = zip(*(flat for flat, _ in leaves), strict=True)
        joined = [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    except (RuntimeError, TypeError, ValueError) as error:
        raise CriterionError(f"the batches of the data cannot be joined: {first_line(error)}") from error
    return _pytree.tree_unflatten(joined, leaves[0][1])


def _channels_last(value: Any) -> Any:
    image = isinstance(value, Tensor) and value.dim() == 4
    return value.contiguous(memory_format=torch.channels_last) if image else value
