"""MNIST's digits on CIFAR-10's photographs, with a class for each pixel."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.data.assemble import Arrays, assemble
from secateur.data.checks import check_flag, check_whole
from secateur.data.cifar import obtain
from secateur.data.dataset import Dataset
from secateur.data.mnist import arrays_of

INK = 128  # a pixel of a digit at least so dark is the digit's
Array = np.ndarray[Any, Any]


def digits_on_cifar10(
    *,
    train: int = 10_000,
    test: int = 2_000,
    digits: bool = True,
    download: bool = True,
    validation: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """MNIST digits on CIFAR-10 photographs, 32x32 in colour, with a class for each pixel: 11 or 2.

    Inputs are (N, 3, 32, 32), labels (N, 32, 32): 0 is the photograph, 1 to 10 the digits 0 to 9 (without
    ``digits`` all of them 1). Each has its own colour and place, drawn whatever ``seed`` is. ``train`` and
    ``test``: how many, of 50,000 and 10,000; every digit and every photograph stands in one image alone, and
    those of the test split are the sources' own test images.
    """
    check_whole("train", train, 2, 50_000)
    check_whole("test", test, 1, 10_000)
    check_flag("digits", digits)
    written = arrays_of("mnist", 10, download)
    photographs, note = obtain(download)
    x, y = _placed(written.train_inputs, written.train_labels, photographs.train_inputs, train, 0)
    test_x, test_y = _placed(written.test_inputs, written.test_labels, photographs.test_inputs, test, 1)
    if not digits:
        y, test_y = (y > 0).astype(np.int64), (test_y > 0).astype(np.int64)
    drawn, options = (
        {"validation": validation, "seed": seed},
        {"train": train, "test": test, "digits": digits},
    )
    arrays = Arrays(x, y, test_x, test_y)
    return assemble("digits-on-cifar10", arrays, (), **drawn, options=options, scale=255.0, note=note)


def _placed(digits: Any, labels: Array, photographs: Any, number: int, state: int) -> tuple[Array, Array]:
    """Return images (number, 3, 32, 32) uint8 and maps (number, 32, 32): each digit on its own photograph."""
    draw = np.random.RandomState(state)
    which = draw.permutation(len(digits))[:number]
    images = photographs[draw.permutation(len(photographs))[:number]].copy()
    places, colours = draw.randint(0, 5, (number, 2)), draw.randint(0, 256, (number, 3))
    maps = np.zeros((number, *images.shape[2:]), np.int64)
    for at, (index, (top, left), colour) in enumerate(zip(which, places, colours, strict=True)):
        ink = digits[index, 0].astype(np.int64)
        inside = slice(top, top + ink.shape[0]), slice(left, left + ink.shape[1])
        behind = images[at, :, *inside].astype(np.int64)
        images[at, :, *inside] = (behind * (255 - ink) + colour[:, None, None] * ink) // 255
        maps[at][inside] = np.where(ink >= INK, labels[index] + 1, 0)
    return images, maps
