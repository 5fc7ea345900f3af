"""What a network without labels is trained by: what the dense one puts out on the same examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.copying import copied
from secateur.data.dataset import Split, rows_of
from secateur.errors import DataError
from secateur.graph.compare import tensors_in
from secateur.running import evaluating, shapes, uncached
from secateur.task.base import Score, Task
from secateur.training.evaluate import called


def imitation(
    dense: nn.Module, train: Iterable[tuple[Any, Any]], validation: Iterable[tuple[Any, Any]]
) -> tuple[Split, Split, Task]:
    """Return the inputs of two sets of batches with what the dense network puts out as their labels, and the
    task of coming near: each output tensor's squared difference over the mean square of the dense network's.

    Raises DataError where there are no outputs to come near, or their first dim is not the examples.
    """
    splits = [_taught(dense, [inputs for inputs, _ in batches]) for batches in (train, validation)]
    sizes = [float(tensor.square().mean()) or 1.0 for tensor in splits[0].labels]

    def losses(outputs: Any, labels: Any) -> Tensor:
        pairs = zip(_numbers(outputs), labels, sizes, strict=True)
        each = [((a - b).square() / size).reshape(len(b), -1).mean(1) for a, b, size in pairs]
        return torch.stack(each).sum(0)

    def root(sums: Tensor) -> float:
        return math.sqrt(float(sums[0] / sums[1]) / len(sizes))

    score = Score("difference from dense", "%", higher_is_better=False, counts=losses, value=root)
    task = Task("imitation", lambda outputs, labels: losses(outputs, labels).mean(), score, losses=losses)
    return splits[0], splits[1], task


@contextmanager
def in_eval(network: nn.Module) -> Iterator[None]:
    """Train a network in eval mode: what it comes near was put out so, and few examples would move the norms'
    statistics away from those of the data that it was trained on."""
    network.eval()
    network.train = lambda mode=True: network  # type: ignore[method-assign]
    try:
        yield
    finally:
        del network.train


def _taught(dense: nn.Module, batches: list[Any]) -> Split:
    work = copied(dense)  # forwards keep things
    with evaluating(work), uncached(work), torch.no_grad():
        found = [_numbers(called(work, inputs, False)) for inputs in batches]
    for inputs, outputs in zip(batches, found, strict=True):
        if not outputs or any(not out.dim() or len(out) != rows_of(inputs) for out in outputs):
            what = shapes(outputs) if outputs else "no numbers"
            raise DataError(f"it puts out {what} for {rows_of(inputs)} examples, not one output each")
    return Split(_joined(batches), tuple(torch.cat(parts) for parts in zip(*found, strict=True)))


def _joined(parts: list[Any]) -> Any:
    flat = [tree_flatten(part) for part in parts]
    leaves = zip(*(leaves for leaves, _ in flat), strict=True)
    return tree_unflatten([torch.cat(each) for each in leaves], flat[0][1])


def _numbers(outputs: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]
