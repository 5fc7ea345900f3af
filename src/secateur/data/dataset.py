"""What a data set is once it is loaded: three splits of tensors that fit together."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from secateur.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Examples and their classes: ``inputs`` (N, ...) floats, ``labels`` (N,) int64 from 0.

    Raises DataError where the two do not fit, are empty, or hold a NaN or an infinity.
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if not self.inputs.is_floating_point() or self.inputs.dim() < 2:
            raise DataError(
                f"inputs are {self.inputs.dtype} of shape {tuple(self.inputs.shape)}; "
                "floats of shape (N, features) or (N, C, H, W) are right"
            )
        if self.labels.dtype != torch.int64 or self.labels.dim() != 1:
            raise DataError(
                f"labels are {self.labels.dtype} of shape {tuple(self.labels.shape)}; int64 of (N,) is right"
            )
        if len(self.inputs) != len(self.labels):
            raise DataError(f"{len(self.inputs)} inputs and {len(self.labels)} labels; one label an input")
        if not self.inputs.numel():
            raise DataError(f"a split is empty: its inputs have shape {tuple(self.inputs.shape)}")
        # aminmax passes a NaN on and, unlike isfinite, makes no copy: CIFAR-10 takes 600 MB
        low, high = self.inputs.aminmax()
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise DataError("inputs hold a NaN or an infinity, or a number too large for float32")
        if self.labels.amin() < 0:
            raise DataError(f"labels hold {int(self.labels.amin())}; classes count from 0")

    def __len__(self) -> int:
        return len(self.labels)

    def drawn(self, number: int, seed: int) -> Split:
        """Return ``number`` examples drawn with ``seed`` (all where there are no more): splits may be
        sorted by class."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:number]
        return Split(self.inputs[chosen], self.labels[chosen])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory, ready for training.

    ``classes``: a name for each label. ``note``: what a report must say beside its figures.
    ``fingerprint``: a hash of all that determines the tensors. ``mean`` and ``std``: what was
    subtracted from each channel (or feature) and what it was divided by, both taken on the
    training split after validation was taken off; empty where the inputs are as they came.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    _: KW_ONLY
    note: str = ""
    fingerprint: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        shape = self.train.inputs.shape[1:]
        for part in ("train", "validation", "test"):
            split: Split = getattr(self, part)
            if split.inputs.shape[1:] != shape:
                raise DataError(
                    f"{self.name}: {part} examples have shape {tuple(split.inputs.shape[1:])}, "
                    f"the training ones {tuple(shape)}"
                )
            if split.labels.amax() >= len(self.classes):
                raise DataError(
                    f"{self.name}: {part} holds label {int(split.labels.amax())}; "
                    f"{len(self.classes)} classes have labels 0 to {len(self.classes) - 1}"
                )
