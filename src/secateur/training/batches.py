"""Batches of an epoch: of tensors in memory shuffled and augmented from its own seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from secateur.data.dataset import Split, Stream, each_tensor
from secateur.errors import DataError
from secateur.running import shapes
from secateur.training.settings import Training

Batches = Iterable[tuple[Any, Any]]


def seed_of(*parts: Any) -> int:
    """Return a 63-bit seed that depends on every part: the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def training_batches(
    data: Split | Stream | Batches, settings: Training, seed: int, epoch: int, device: torch.device
) -> Iterator[tuple[Any, Any]]:
    """Yield an epoch's (inputs, labels) on ``device``.

    A Split is permuted and indexed, every image shifted and flipped by its own draw, and so are labels that
    lie over its pixels. Anything else that gives batches again and again (a DataLoader) is taken as it comes.
    """
    if not isinstance(data, Split):
        for pair in data:
            yield each_tensor(lambda tensor: tensor.to(device), tuple(pair))
        return
    generator = torch.Generator().manual_seed(seed_of(seed, "epoch", epoch))
    number = len(data)
    order = torch.randperm(number, generator=generator)
    for indices in order.split(settings.batch_size or number):
        inputs, labels = each_tensor(lambda tensor: tensor.to(device), data.taken(indices))
        if settings.shift or settings.flip:
            inputs, labels = augment(inputs, settings.shift, settings.flip, generator, labels)
        yield inputs, labels


def count_batches(data: Split | Stream | Batches, settings: Training) -> int:
    if isinstance(data, Split):
        return -(-len(data) // (settings.batch_size or len(data)))
    return len(data.loader if isinstance(data, Stream) else data)  # type: ignore[arg-type]


def augment(
    images: Any, shift: int, flip: bool, generator: torch.Generator, labels: Any = None
) -> tuple[Tensor, Any]:
    """Shift each image (N, C, H, W) by up to ``shift`` pixels both ways, its border repeated, and
    mirror it left to right with probability 1/2 where ``flip``; every image has its own draw, which labels
    (N, H, W) or (N, C, H, W) over its pixels take part in."""
    if not isinstance(images, Tensor) or images.dim() != 4:
        raise DataError(
            f"shift and flip move images (N, C, H, W); inputs are {shapes(images)}: leave them out"
        )
    number, _, height, width = images.shape
    device = images.device
    dy, dx = torch.randint(-shift, shift + 1, (2, number, 1), generator=generator).to(device)
    mirrored = torch.rand(number, 1, generator=generator).to(device) < (0.5 if flip else 0.0)
    across = torch.arange(width, device=device).expand(number, width)
    across = torch.where(mirrored, width - 1 - across, across)
    rows = (torch.arange(height, device=device) + dy).clamp(0, height - 1)
    columns = (across + dx).clamp(0, width - 1)
    index = torch.arange(number, device=device)[:, None, None]
    rows, columns = rows[:, :, None], columns[:, None, :]

    def moved(pixels: Tensor) -> Tensor:
        if pixels.dim() == 3:
            return pixels[index, rows, columns]
        return pixels[index, :, rows, columns].permute(0, 3, 1, 2)

    over = isinstance(labels, Tensor) and labels.dim() > 2 and labels.shape[-2:] == images.shape[-2:]
    return moved(images), moved(labels) if over else labels
