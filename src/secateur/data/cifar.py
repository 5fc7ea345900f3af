"""CIFAR-10, from its canonical binary archive or from an archive of JPEG files, decoded once and cached."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.data.archive import members
from secateur.data.assemble import Arrays, assemble
from secateur.data.checks import check_flag
from secateur.data.dataset import Dataset
from secateur.data.files import cache_folder, local, missing
from secateur.data.files import download as fetch
from secateur.data.images import read_image
from secateur.errors import DataError, StorageError, WriteError
from secateur.storage import load_tensors, save_tensors

BINARY = "cifar-10-binary.tar.gz"
BINARY_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
IMAGES = "cifar10-images.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{BINARY}"
FOLDER = "cifar10"

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
PER_BATCH = 10_000
PER_CLASS = {"train": 5_000, "test": 1_000}
MAX_JPEG = 2**18
JPEG_NOTE = (
    "CIFAR-10 decoded from JPEG files: JPEG is lossy, so figures differ slightly from those of the "
    "canonical batches"
)

logger = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]


def cifar10(
    *, validation: int | float = 0.1, seed: int = 0, download: bool = True, normalise: bool = True
) -> Dataset:
    """CIFAR-10: photographs, 50,000 + 10,000 colour images of 32x32, 10 classes.

    Images are (N, 3, 32, 32). Looks for cifar-10-binary.tar.gz, then cifar10-images.tar.gz (JPEG: the
    note says so), in $SECATEUR_DATA and the cache, then downloads the first unless ``download`` is
    off. ``normalise``: each channel to mean 0 and deviation 1 by the training split; otherwise pixels are
    0 to 1. Raises DataError for an archive that is missing, damaged or another one.
    """
    return _load("cifar10", 10, 32, download, normalise, validation=validation, seed=seed)


def cifar10_first5(
    *, validation: int | float = 0.1, seed: int = 0, download: bool = True, normalise: bool = True
) -> Dataset:
    """The first five CIFAR-10 classes, airplane to deer, as central crops of 25x25: 25,000 + 5,000.

    Images are (N, 3, 25, 25), rows and columns 3 to 27 of the originals. Found as ``cifar10`` is.
    """
    return _load("cifar10-first5", 5, 25, download, normalise, validation=validation, seed=seed)


def _load(name: str, classes: int, size: int, download: bool, normalise: bool, **drawn: Any) -> Dataset:
    check_flag("normalise", normalise)
    arrays, note = obtain(download)
    kept = first_classes(arrays, classes, size)
    return assemble(name, kept, CLASSES[:classes], **drawn, scale=255.0, normalise=normalise, note=note)


def first_classes(arrays: Any, classes: int, size: int) -> Arrays:
    """Keep the examples of the first ``classes`` classes, and the central ``size`` x ``size`` of each."""
    start = (arrays.train_inputs.shape[-1] - size) // 2
    crop = slice(start, start + size)
    train, test = arrays.train_labels < classes, arrays.test_labels < classes
    return Arrays(
        arrays.train_inputs[:, :, crop, crop][train],
        arrays.train_labels[train],
        arrays.test_inputs[:, :, crop, crop][test],
        arrays.test_labels[test],
    )


def obtain(download: bool) -> tuple[Arrays, str]:
    """Return CIFAR-10 as its archive gives it, and what is to be said of it."""
    check_flag("download", download)
    for path in local((BINARY, IMAGES), FOLDER):
        return (read_pinned(path), "") if path.name == BINARY else (read_cached(path), JPEG_NOTE)
    if not download:
        raise missing(BINARY, "", f"neither is {IMAGES}, and download is off")
    return fetch(URL, BINARY, "", read_pinned), ""


def read_pinned(path: Path) -> Arrays:
    """Read the canonical binary archive; raise DataError where its md5 is another."""
    md5 = _file_hash(path, "md5")
    if md5 != BINARY_MD5:
        raise DataError(f"{path}: md5 {md5}; the canonical archive's is {BINARY_MD5}; get it again")
    return read_binary(path, PER_BATCH)


def read_binary(path: Path, per_batch: int) -> Arrays:
    """Read five training batches and a test batch of ``per_batch`` records: a label, then 3,072 bytes."""
    size = per_batch * RECORD
    found: dict[str, Array] = {}
    for name, data in members(path, max(size, 2**16)):
        if name.name in BATCHES:
            if len(data) != size:
                raise DataError(
                    f"{path}: {name} has {len(data)} bytes; {per_batch} records of {RECORD} bytes are right"
                )
            found[name.name] = np.frombuffer(data, np.uint8).reshape(per_batch, RECORD)
        elif name.name == "batches.meta.txt":
            _check_meta(data, f"{path}: {name}")
    absent = [batch for batch in BATCHES if batch not in found]
    if absent:
        raise DataError(f"{path}: {absent[0]} is not in it; the archive holds {', '.join(BATCHES)}")
    wrong = next((batch for batch in BATCHES if found[batch][:, 0].max() >= len(CLASSES)), None)
    if wrong:
        raise DataError(f"{path}: {wrong} holds label {found[wrong][:, 0].max()}; 0 to 9 are right")
    train = [found[batch] for batch in BATCHES[:5]]
    test = found[BATCHES[5]]
    return Arrays(
        np.concatenate([batch[:, 1:] for batch in train]).reshape(-1, *SHAPE),
        np.concatenate([batch[:, 0] for batch in train]).astype(np.int64),
        np.ascontiguousarray(test[:, 1:]).reshape(-1, *SHAPE),
        test[:, 0].astype(np.int64),
    )


def _check_meta(data: bytes, shown: str) -> None:
    names = tuple(data.decode("utf-8", "replace").split())
    if names != CLASSES:
        raise DataError(f"{shown} names the classes {' '.join(names)[:120]}; {' '.join(CLASSES)} is right")


def read_images(path: Path, per_class: dict[str, int]) -> Arrays:
    """Decode an archive of cifar10/{train,test}/<class>/NNNN.jpg, in the order of class and name.

    ``per_class``: how many images each class has in each of the two splits.
    """
    decoded: dict[str, list[tuple[int, str, Array]]] = {part: [] for part in per_class}
    for name, data in members(path, MAX_JPEG):
        shown = f"{path}: {name}"
        parts = name.parts
        if len(parts) != 4 or parts[1] not in per_class or name.suffix != ".jpg":
            raise DataError(f"{shown} is not expected; cifar10/train|test/<class>/NNNN.jpg is right")
        if parts[2] not in CLASSES:
            raise DataError(f"{shown}: no class {parts[2]!r}; the classes are {', '.join(CLASSES)}")
        pixels = read_image(data, shown, formats=("JPEG",))
        if pixels.shape != SHAPE:
            raise DataError(f"{shown} has {pixels.shape[2]} x {pixels.shape[1]} pixels; 32 x 32 are right")
        decoded[parts[1]].append((CLASSES.index(parts[2]), parts[3], pixels))
    splits: list[Array] = []
    for part, examples in decoded.items():
        examples.sort(key=lambda example: example[:2])
        labels = np.array([label for label, _, _ in examples], np.int64)
        counts = np.bincount(labels, minlength=len(CLASSES))
        for label, count in enumerate(counts):
            if count != per_class[part]:
                raise DataError(
                    f"{path}: {count} images in {part}/{CLASSES[label]}; {per_class[part]} are right"
                )
        splits += [np.stack([pixels for _, _, pixels in examples]), labels]
    return Arrays(*splits)


def read_cached(path: Path) -> Arrays:
    """Decode the archive of JPEG files, or read what was decoded from the same archive before."""
    archive = _file_hash(path, "sha256")
    cached = cache_folder() / f"cifar10-images-{archive[:16]}.safetensors"
    if cached.is_file():
        try:
            return _load_decoded(cached, archive)
        except StorageError as error:
            logger.warning("decoding again: %s", error)
    logger.info("decoding %s into %s, once", path, cached)
    arrays = read_images(path, PER_CLASS)
    fields = {name: torch.from_numpy(array) for name, array in vars(arrays).items()}
    try:
        save_tensors(cached, fields, {"archive": archive, "pixels": _pixels_hash(arrays)})
    except WriteError as error:
        logger.warning("the decoded images cannot be kept, so every load decodes again: %s", error)
    return arrays


def _load_decoded(cached: Path, archive: str) -> Arrays:
    tensors, metadata = load_tensors(cached)
    try:
        arrays = Arrays(**{name: tensor.numpy() for name, tensor in tensors.items()})
    except (TypeError, DataError) as error:
        raise StorageError(f"{cached}: not the four arrays of decoded images") from error
    # safetensors has no checksum of its own; a bit that fell over in the cache would go unseen
    if metadata != {"archive": archive, "pixels": _pixels_hash(arrays)}:
        raise StorageError(f"{cached}: its content is not what was decoded; it is written anew")
    return arrays


def _pixels_hash(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for array in vars(arrays).values():
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _file_hash(path: Path, algorithm: str) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return digest.hexdigest()
