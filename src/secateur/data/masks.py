"""A user's own images with a map of classes for each: segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from secateur.data.assemble import Arrays, assemble, fifth_as_test
from secateur.data.checks import MAX_VALUES, check_path, check_whole
from secateur.data.dataset import Dataset
from secateur.data.images import read_image, read_map
from secateur.errors import DataError

Array = np.ndarray[Any, Any]


def image_masks(
    *,
    path: str | Path,
    size: int,
    classes: int,
    ignore: int = 255,
    validation: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Your own images with masks: images/* and masks/* of the same stems, or both in train/ and test/.

    Images are squeezed to ``size`` x ``size``, RGB, (N, 3, size, size); masks, whose pixels are the number of
    their class (palette or grey), take the nearest pixel, (N, size, size). Labels are 0 to ``classes`` - 1,
    and ``ignore``, which counts nowhere (as the task says it). Without test/ 20 % are set aside,
    whatever ``seed`` is. Raises DataError for an image without its mask, and a class beyond ``classes``.
    """
    root = check_path("path", path)
    check_whole("size", size, 1, 4096)
    check_whole("classes", classes, 2, 255)
    check_whole("ignore", ignore, 0, 255)
    parted = (root / "train").is_dir()
    train = _pairs(root / "train" if parted else root)
    test = _pairs(root / "test") if parted and (root / "test").is_dir() else None
    number = len(train) + len(test or [])
    if number * 4 * size * size > MAX_VALUES:
        raise DataError(
            f"{root}: {number} images of {size} x {size} are over {MAX_VALUES} values in memory; a smaller "
            "size is right"
        )
    read = [_read(pairs, size, classes, ignore) for pairs in (train, test) if pairs is not None]
    arrays = Arrays(*read[0], *read[1]) if len(read) == 2 else fifth_as_test(str(root), *read[0])
    options = {"size": size, "classes": classes, "ignore": ignore}
    return assemble("image-masks", arrays, (), validation=validation, seed=seed, options=options, scale=255.0)


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Return the images of a folder with their masks, in the order of their names."""
    images, masks = (_by_stem(folder / part) for part in ("images", "masks"))
    for lone in sorted(images.keys() ^ masks.keys()):
        there, lacking = ("images", "masks") if lone in images else ("masks", "images")
        raise DataError(f"{folder / there}: {lone!r} has none of its name in {lacking}; one each is right")
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; <path>/images/* and <path>/masks/* are right")
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    found: dict[str, Path] = {}
    for file in files:
        if not file.is_file() or file.stem in found:
            raise DataError(f"{file}: a folder, or a second of its name; one file a stem is right")
        found[file.stem] = file
    if not found:
        raise DataError(f"{folder}: no images in it")
    return found


def _read(pairs: list[tuple[Path, Path]], size: int, classes: int, ignore: int) -> tuple[Array, Array]:
    pixels = np.empty((len(pairs), 3, size, size), np.uint8)
    maps = np.empty((len(pairs), size, size), np.int64)
    for index, (image, mask) in enumerate(pairs):
        pixels[index] = read_image(image, str(image), size=size)
        maps[index] = read_map(mask, str(mask), size=size)
        beyond = maps[index][(maps[index] >= classes) & (maps[index] != ignore)]
        if beyond.size:
            raise DataError(
                f"{mask}: a pixel of class {int(beyond[0])}; 0 to {classes - 1}, and {ignore}, which counts "
                "nowhere, are right"
            )
    return pixels, maps
