"""From a source's arrays to a Dataset: take validation off, normalise, fingerprint.

All in numpy: its sums do not depend on the number of threads, so neither do the tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from secateur.data.checks import check_whole
from secateur.data.dataset import Dataset, Split
from secateur.errors import DataError

FORMAT = 1  # part of every fingerprint: raise it when the arithmetic here changes
CHUNK = 2**20  # values taken to float64 at a time

Array = np.ndarray[Any, Any]


Inputs = Array | dict[str, Array]


@dataclass(frozen=True, eq=False)
class Arrays:
    """Examples as their source gives them, before any arithmetic: inputs (N, F) or (N, C, H, W)
    of real numbers, or several by name, and labels (N, ...), int64 for classes and floats for numbers.
    Raises DataError where test examples have another shape.
    """

    train_inputs: Inputs
    train_labels: Array
    test_inputs: Inputs
    test_labels: Array

    def __post_init__(self) -> None:
        tests = by_name(self.test_inputs)
        for name, array in by_name(self.train_inputs).items():
            train, test = array.shape[1:], tests[name].shape[1:]
            if train != test:
                raise DataError(
                    f"test examples have shape {test}, the training ones {train}; the same is right"
                )


def by_name(inputs: Inputs) -> dict[str, Array]:
    """Return several inputs by their names; one alone has none."""
    return inputs if isinstance(inputs, dict) else {"": inputs}


def each_of(change: Callable[[Array], Array], inputs: Inputs) -> Inputs:
    """Return one input, or several by name, changed."""
    if isinstance(inputs, dict):
        return {name: change(array) for name, array in inputs.items()}
    return change(inputs)


def assemble(
    name: str,
    arrays: Arrays,
    classes: tuple[str, ...],
    *,
    validation: int | float,
    seed: int,
    options: Mapping[str, Any] | None = None,
    scale: float = 1.0,
    normalise: bool = True,
    note: str = "",
    whole: Collection[str] = (),
) -> Dataset:
    """Take ``validation`` examples off the training ones and normalise all three splits.

    Each channel (dim 1) gets mean 0 and standard deviation 1 over what is left for training; a
    constant one is only centred. ``scale`` is the source's unit (255 for 8-bit images): it shows in
    the Dataset's ``mean`` and ``std``, and is divided by where ``normalise`` is off. ``classes``: none where
    labels are numbers or lie over pixels. ``whole``: the names of inputs that stay whole numbers (tokens).
    ``options``: the loader's other options that determine the data. Raises DataError for an impossible
    ``validation`` or ``seed``, and for data that are not finite.
    """
    check_whole("seed", seed, 0, 2**32 - 1)
    number = len(arrays.train_labels)
    held = validation_count(name, validation, number)
    kept, taken = hold_out(number, held, seed)
    if classes:
        _check_classes(name, arrays.train_labels[kept], classes)
    whole_test = np.arange(len(arrays.test_labels))
    determining = dict(options or {}) | ({} if normalise else {"normalise": False})
    settings = {"name": name, "seed": seed, "validation": held, "options": determining}
    with np.errstate(over="ignore", invalid="ignore"):  # Split refuses what is not finite
        scales = {
            own: _moments(name, array, kept) if normalise else (np.zeros(1), np.full(1, scale))
            for own, array in by_name(arrays.train_inputs).items()
            if own not in whole
        }
        train, held_out = (
            _split(name, arrays.train_inputs, arrays.train_labels, index, scales) for index in (kept, taken)
        )
        test = _split(name, arrays.test_inputs, arrays.test_labels, whole_test, scales)
    means, stds = (
        (np.concatenate(part) / scale for part in zip(*scales.values(), strict=True)) if scales else ([], [])
    )
    return Dataset(
        name,
        train,
        held_out,
        test,
        classes,
        note=note,
        fingerprint=_fingerprint(arrays, settings),
        mean=tuple(map(float, means)) if normalise else (),
        std=tuple(map(float, stds)) if normalise else (),
    )


def hold_out(number: int, held: int, seed: int) -> tuple[Array, Array]:
    """Draw ``held`` of ``number`` examples; return (the others', theirs), both in rising order."""
    # RandomState's stream is frozen by numpy's policy; default_rng's may change
    order = np.random.RandomState(seed).permutation(number)
    return np.sort(order[held:]), np.sort(order[:held])


def fifth_as_test(name: str, inputs: Inputs, labels: Array, share: float = 0.2) -> Arrays:
    """Set a fixed 20 % (or another share) aside as test data, whatever the validation seed is."""
    held = round(len(labels) * share)
    if not 1 <= held < len(labels):
        least = "" if share != 0.2 else " needs at least 3"
        raise DataError(f"{name}: {len(labels)} examples; {100 * share:g} % of them as test data{least}")
    kept, taken = hold_out(len(labels), held, 0)
    parts = [each_of(lambda array, at=index: array[at], inputs) for index in (kept, taken)]
    return Arrays(parts[0], labels[kept], parts[1], labels[taken])


def validation_count(name: str, validation: int | float, number: int) -> int:
    """Return how many of ``number`` training examples ``validation`` (a count or share) means."""
    share = isinstance(validation, float)
    whole = isinstance(validation, int) and not isinstance(validation, bool)
    if not (share and 0 < validation < 1) and not (whole and validation > 0):
        raise DataError(
            f"{name}: validation is {validation!r}; a share between 0 and 1 or a number of examples from 1 "
            "is right: choices are made on validation data"
        )
    held = round(validation * number) if share else int(validation)
    if not 1 <= held < number:
        raise DataError(
            f"{name}: validation={validation!r} takes {held} of {number} training examples; "
            f"1 to {number - 1} are right"
        )
    return held


def _check_classes(name: str, labels: Array, classes: tuple[str, ...]) -> None:
    absent = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if absent.size:
        raise DataError(
            f"{name}: no example of class {classes[absent[0]]!r} is left for training; "
            "each class needs one at least: more data, less validation or another seed"
        )


def _chunks(inputs: Array, index: Array) -> Iterator[tuple[int, int, Array]]:
    step = max(1, CHUNK // max(1, math.prod(inputs.shape[1:])))
    for start in range(0, len(index), step):
        # in C order whatever the source's is, or the sums would differ in their last digits
        part = inputs[index[start : start + step]].astype(np.float64, order="C")
        yield start, start + len(part), part.reshape(len(part), inputs.shape[1], -1)


def _moments(name: str, inputs: Array, index: Array) -> tuple[Array, Array]:
    """Mean and population standard deviation of each channel, in two float64 passes."""
    number = len(index) * math.prod(inputs.shape[2:])
    total = np.zeros(inputs.shape[1])
    for _, _, part in _chunks(inputs, index):
        total += part.sum(axis=(0, 2))
    mean = total / number
    squares = np.zeros(inputs.shape[1])
    for _, _, part in _chunks(inputs, index):
        squares += np.square(part - mean[:, None]).sum(axis=(0, 2))
    std = np.sqrt(squares / number)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise DataError(f"{name}: inputs hold a NaN or an infinity, or numbers too large to be squared")
    # a constant channel's deviation is rounding noise: dividing by it would make noise of size 1
    return mean, np.where(std <= 1e-12 * np.abs(mean), 1.0, std)


def _split(
    name: str, inputs: Inputs, labels: Array, index: Array, scales: Mapping[str, tuple[Array, Array]]
) -> Split:
    tensors = {
        own: _scaled(array, index, *scales[own])
        if own in scales
        else torch.from_numpy(array[index].astype(np.int64))
        for own, array in by_name(inputs).items()
    }
    kind = np.float32 if labels.dtype.kind == "f" else np.int64
    try:
        ready = tensors if isinstance(inputs, dict) else tensors[""]
        return Split(ready, torch.from_numpy(labels[index].astype(kind)))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _scaled(inputs: Array, index: Array, mean: Array, std: Array) -> torch.Tensor:
    result = np.empty((len(index), *inputs.shape[1:]), np.float32)
    flat = result.reshape(len(index), inputs.shape[1], -1)
    for start, stop, part in _chunks(inputs, index):
        part -= mean[:, None]
        part /= std[:, None]
        flat[start:stop] = part
    return torch.from_numpy(result)


def _fingerprint(arrays: Arrays, settings: Mapping[str, Any]) -> str:
    text = json.dumps({"format": FORMAT, **settings}, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(text.encode())
    for part in vars(arrays).values():
        for name, array in by_name(part).items():
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]
