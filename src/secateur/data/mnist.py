"""MNIST and Fashion-MNIST, from their four IDX files each, checked against the canonical bytes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from secateur.data.assemble import Arrays, assemble
from secateur.data.checks import check_flag
from secateur.data.dataset import Dataset
from secateur.data.files import download as fetch
from secateur.data.files import local, missing
from secateur.data.idx import read_idx
from secateur.errors import DataError

# md5 of the uncompressed bytes: training images and labels, test images and labels
STEMS = tuple(
    f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
MD5 = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion-mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
MIRRORS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
CLOTHES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

Array = np.ndarray[Any, Any]


class OtherSetError(DataError):
    """A whole file, of the other data set: the two give their files the same names."""


def mnist(
    *, validation: int | float = 0.1, seed: int = 0, download: bool = True, normalise: bool = True
) -> Dataset:
    """MNIST: handwritten digits, 60,000 + 10,000 grey images of 28x28, 10 classes.

    Images are (N, 1, 28, 28). Looks in $SECATEUR_DATA/mnist, then the cache, then downloads unless
    ``download`` is off. ``normalise``: to mean 0 and deviation 1 by the training split; otherwise pixels
    are 0 to 1. Raises DataError for files that are missing or are not the canonical ones.
    """
    return _load("mnist", tuple("0123456789"), download, normalise, validation=validation, seed=seed)


def fashion_mnist(
    *, validation: int | float = 0.1, seed: int = 0, download: bool = True, normalise: bool = True
) -> Dataset:
    """Fashion-MNIST: pieces of clothing, 60,000 + 10,000 grey images of 28x28, 10 classes.

    Images are (N, 1, 28, 28). Looks in $SECATEUR_DATA/fashion-mnist, then the cache, then downloads
    unless ``download`` is off. ``normalise`` as in ``mnist``. Raises DataError for files that are
    missing or not the canonical ones.
    """
    return _load("fashion-mnist", CLOTHES, download, normalise, validation=validation, seed=seed)


def _load(name: str, classes: tuple[str, ...], download: bool, normalise: bool, **drawn: Any) -> Dataset:
    check_flag("normalise", normalise)
    arrays = arrays_of(name, len(classes), download)
    return assemble(name, arrays, classes, **drawn, scale=255.0, normalise=normalise)


def arrays_of(name: str, classes: int, download: bool) -> Arrays:
    """Return the images (N, 1, 28, 28) and labels of a data set as its files give them."""
    check_flag("download", download)
    x, y, test_x, test_y = (_obtain(name, number, download) for number in range(4))
    for images, labels in ((x, y), (test_x, test_y)):
        check_pair(name, images, labels, classes)
    return Arrays(x[:, None], y.astype(np.int64), test_x[:, None], test_y.astype(np.int64))


def check_pair(name: str, images: Array, labels: Array, classes: int) -> None:
    """Raise DataError unless images (N, H, W) and labels (N,) under ``classes`` belong together."""
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{name}: images of shape {images.shape} and labels of shape {labels.shape}; "
            "(N, H, W) and (N,) are right"
        )
    if labels.max() >= classes:
        raise DataError(f"{name}: label {labels.max()}; 0 to {classes - 1} are right")


def _obtain(name: str, number: int, download: bool) -> Array:
    stem = STEMS[number]
    read = partial(read_pinned, name=name, number=number)
    for path in local((f"{stem}.gz", stem), name):
        try:
            return read(path)
        except OtherSetError:
            continue  # it lies directly in the data folder, where both sets' files may
    if not download:
        raise missing(f"{stem}.gz", name, "download is off")
    return fetch(f"{MIRRORS[name]}{stem}.gz", f"{stem}.gz", name, read)


def read_pinned(path: Path, name: str, number: int) -> Array:
    """Read file ``number`` of data set ``name``; raise DataError where it is not the canonical one."""
    array, md5 = read_idx(path)
    if md5 == MD5[name][number]:
        return array
    for other, pins in MD5.items():
        if md5 == pins[number]:
            raise OtherSetError(f"{path}: this is the file of {other}; {name}'s is needed")
    raise DataError(f"{path}: uncompressed md5 {md5}; {name}'s is {MD5[name][number]}; get it again")
