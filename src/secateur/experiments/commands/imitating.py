"""What a network without labels is trained by: what the dense one puts out on the same examples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.copying import copied
from secateur.data.dataset import Split, rows_of
from secateur.graph.compare import tensors_in
from secateur.running import evaluating, uncached
from secateur.task.base import Score, Task
from secateur.training.evaluate import called


def imitation(dense: nn.Module, batches: Iterable[tuple[Any, Any]]) -> tuple[Split, Split, Task]:
    """Return the inputs of batches with what the dense network puts out as their labels, every fifth of them
    apart for validation, and the task of coming near: each output tensor's squared difference over the mean
    square of the dense network's.

    Raises DataError where the first dim of an output is not the examples.
    """
    given = [inputs for inputs, _ in batches]
    work = copied(dense)  # forwards keep things
    with evaluating(work), uncached(work), torch.no_grad():
        found = [_numbers(called(work, inputs, False)) for inputs in given]
    wanted = tuple(torch.cat(parts) for parts in zip(*found, strict=True))
    inputs = _joined(given)
    sizes = [float(tensor.square().mean()) or 1.0 for tensor in wanted]

    def losses(outputs: Any, labels: Any) -> Tensor:
        pairs = zip(_numbers(outputs), labels, sizes, strict=True)
        return sum((((a - b).square() / size).flatten(1).mean(1) for a, b, size in pairs), torch.tensor(0.0))

    def root(sums: Tensor) -> float:
        return math.sqrt(float(sums[0] / sums[1]) / len(sizes))

    score = Score("difference from dense", "%", higher_is_better=False, counts=losses, value=root)
    task = Task("imitation", lambda outputs, labels: losses(outputs, labels).mean(), score, losses=losses)
    every = torch.arange(rows_of(inputs))
    held = every % 5 == 4
    whole = Split(inputs, wanted)
    return Split(*whole.taken(every[~held])), Split(*whole.taken(every[held])), task


def _joined(parts: list[Any]) -> Any:
    flat = [tree_flatten(part) for part in parts]
    leaves = zip(*(leaves for leaves, _ in flat), strict=True)
    return tree_unflatten([torch.cat(each) for each in leaves], flat[0][1])


def _numbers(outputs: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]
