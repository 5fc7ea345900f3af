"""What a user's own function gives: a Dataset, or loaders that are read anew each time."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree

from secateur.data.assemble import hold_out, validation_count
from secateur.data.dataset import Dataset, Split, Stream
from secateur.errors import DataError
from secateur.running import seeded
from secateur.storage import sha256_of

_SHARED = ("validation", "seed")


def called(loader: Callable[..., Any], drawn: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Call a loader with ``validation`` and ``seed`` where it takes them, and with its options."""
    parameters = inspect.signature(loader).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return loader(**{name: drawn[name] for name in _SHARED if anything or name in parameters}, **options)


def of_loaders(
    name: str, found: Any, function: Callable[..., Any], drawn: Mapping[str, Any], options: Mapping[str, Any]
) -> Dataset:
    """Return the data set of what a function gave: (train, validation, test), or (train, test).

    Each is what gives batches again and again, such as a DataLoader, or a Split. Of two loaders, ``drawn``
    says how much of the first's dataset becomes validation. Raises DataError for anything else.
    """
    if not isinstance(found, (tuple, list)) or len(found) not in (2, 3):
        raise DataError(
            f"{name} gave a {type(found).__name__}; a secateur.data.dataset.Dataset, or loaders (train, "
            "validation, test) or (train, test), are right"
        )
    parts: Sequence[Any] = found if len(found) == 3 else (*_halved(name, found[0], **drawn), found[1])
    splits = [
        _split(f"{name}: {part}", loader)
        for part, loader in zip(("train", "validation", "test"), parts, strict=True)
    ]
    settings = {"name": name, "options": dict(options), "source": _source(function)}
    if len(found) == 2:
        settings |= dict(drawn)
    train, validation, test = splits
    return Dataset(name, train, validation, test, fingerprint=_fingerprint(settings, splits))


def _split(what: str, loader: Any) -> Split | Stream:
    if isinstance(loader, (Split, Stream)):
        return loader
    if not isinstance(loader, Iterable):
        raise DataError(f"{what} is a {type(loader).__name__}; a DataLoader, or what gives batches, is right")
    return Stream(loader)


def _halved(name: str, loader: Any, validation: int | float, seed: int) -> tuple[Any, Any]:
    """Return two DataLoaders of one's dataset; raises DataError for what cannot be drawn from."""
    from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

    plain = isinstance(loader, DataLoader) and isinstance(loader.sampler, (RandomSampler, SequentialSampler))
    if not plain or loader.batch_size is None or not hasattr(loader.dataset, "__len__"):
        raise DataError(
            f"{name} gave two loaders, and no validation part can be drawn from the first; three loaders, "
            "(train, validation, test), are right"
        )
    number = len(loader.dataset)  # type: ignore[arg-type]
    kept, taken = hold_out(number, validation_count(name, validation, number), seed)
    same = {
        "batch_size": loader.batch_size,
        "collate_fn": loader.collate_fn,
        "num_workers": loader.num_workers,
        "pin_memory": loader.pin_memory,
    }
    shuffle = isinstance(loader.sampler, RandomSampler)
    return (
        DataLoader(
            Subset(loader.dataset, kept.tolist()), shuffle=shuffle, drop_last=loader.drop_last, **same
        ),
        DataLoader(Subset(loader.dataset, taken.tolist()), **same),
    )


def _source(function: Callable[..., Any]) -> str | None:
    file = getattr(inspect.getmodule(inspect.unwrap(function)), "__file__", None)
    return None if file is None else sha256_of(Path(file))


def _fingerprint(settings: Mapping[str, Any], splits: Sequence[Split | Stream]) -> str:
    """Return a hash of the settings and of the first batch of each part, as it comes with seed 0."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for split in splits:
        digest.update(f"{len(split)}".encode())
        with seeded(0):
            batch = next(iter(split.batches(64)))
        for leaf in _pytree.tree_leaves(batch):
            tensor = leaf.detach().cpu().contiguous()
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
