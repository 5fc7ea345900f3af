"""Batches from tensors in memory, shuffled and augmented from an epoch's own seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from secateur.data.dataset import Split
from secateur.training.settings import Training

Batches = Iterable[tuple[Tensor, Tensor]]


def seed_of(*parts: Any) -> int:
    """Return a 63-bit seed that depends on every part: the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def training_batches(
    data: Split | Batches, settings: Training, seed: int, epoch: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch's (inputs, labels) on ``device``.

    A Split is permuted and indexed, every image shifted and flipped by its own draw. Anything
    else that gives batches again and again (a DataLoader) is taken as it comes.
    """
    if not isinstance(data, Split):
        for inputs, labels in data:
            yield inputs.to(device), labels.to(device)
        return
    generator = torch.Generator().manual_seed(seed_of(seed, "epoch", epoch))
    number = len(data)
    order = torch.randperm(number, generator=generator).to(data.inputs.device)
    for indices in order.split(settings.batch_size or number):
        inputs = data.inputs[indices].to(device)
        if settings.shift or settings.flip:
            inputs = augment(inputs, settings.shift, settings.flip, generator)
        yield inputs, data.labels[indices].to(device)


def count_batches(data: Split | Batches, settings: Training) -> int:
    if isinstance(data, Split):
        return -(-len(data) // (settings.batch_size or len(data)))
    return len(data)  # type: ignore[arg-type]


def augment(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image (N, C, H, W) by up to ``shift`` pixels both ways, its border repeated, and
    mirror it left to right with probability 1/2 where ``flip``; every image has its own draw."""
    number, _, height, width = images.shape
    device = images.device
    dy, dx = torch.randint(-shift, shift + 1, (2, number, 1), generator=generator).to(device)
    mirrored = torch.rand(number, 1, generator=generator).to(device) < (0.5 if flip else 0.0)
    across = torch.arange(width, device=device).expand(number, width)
    across = torch.where(mirrored, width - 1 - across, across)
    rows = (torch.arange(height, device=device) + dy).clamp(0, height - 1)
    columns = (across + dx).clamp(0, width - 1)
    index = torch.arange(number, device=device)[:, None, None]
    return images[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
