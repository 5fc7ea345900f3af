"""A user's own images: a folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from secateur.data.assemble import Arrays, assemble, fifth_as_test
from secateur.data.checks import MAX_VALUES, check_path, check_whole
from secateur.data.dataset import Dataset
from secateur.data.images import read_image
from secateur.errors import DataError

Array = np.ndarray[Any, Any]


def image_folder(*, path: str | Path, size: int, validation: int | float = 0.1, seed: int = 0) -> Dataset:
    """Your own images: a folder with train/<class>/*, and test/<class>/* or else 20 % of train as test.

    Images are squeezed to ``size`` x ``size``, RGB, (N, 3, size, size); classes are in the order of
    their names; hidden files are passed over. The 20 % do not depend on ``seed``.
    Raises DataError for a file that is no whole image, a class that only one split has, an empty class.
    """
    root = check_path("path", path)
    check_whole("size", size, 1, 4096)
    train = _listed(root / "train")
    test = _listed(root / "test") if (root / "test").exists() else None
    if test is not None:
        for lone in sorted(train.keys() ^ test.keys()):
            lacking = "test" if lone in train else "train"
            raise DataError(f"{root}: class {lone!r} is missing in {lacking}; both need every class")
    if len(train) < 2:
        raise DataError(f"{root / 'train'}: {len(train)} class folders; two at least are right")
    _check_size(root, size, train, test or {})
    decoded: list[Any] = [*_decoded(train, size), *(_decoded(test, size) if test else ())]
    arrays = Arrays(*decoded) if test else fifth_as_test(str(root), *decoded)
    drawn = {"validation": validation, "seed": seed}
    return assemble("image-folder", arrays, tuple(train), **drawn, options={"size": size}, scale=255.0)


def _listed(folder: Path) -> dict[str, list[Path]]:
    """The files of each class of one split, all in the order of their names."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; <path>/train/<class>/<image> is right")
    files: dict[str, list[Path]] = {}
    for inside in _visible(folder):
        if not inside.is_dir():
            raise DataError(f"{inside}: a file among the class folders; {folder}/<class>/<image> is right")
        files[inside.name] = _visible(inside)
        if not files[inside.name]:
            raise DataError(f"{inside}: no images in it; every class needs one at least")
    return files


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error}") from error


def _check_size(root: Path, size: int, *splits: dict[str, list[Path]]) -> None:
    number = sum(len(files) for split in splits for files in split.values())
    if number * 3 * size * size > MAX_VALUES:
        raise DataError(
            f"{root}: {number} images of {size} x {size} are over {MAX_VALUES} values in memory; "
            "a smaller size is right"
        )


def _decoded(split: dict[str, list[Path]], size: int) -> tuple[Array, Array]:
    files = [(label, file) for label, name in enumerate(split) for file in split[name]]
    pixels = np.empty((len(files), 3, size, size), np.uint8)
    for number, (_, file) in enumerate(files):
        if not file.is_file():
            raise DataError(f"{file}: no file; images lie directly in their class folder")
        pixels[number] = read_image(file, str(file), size=size)
    return pixels, np.array([label for label, _ in files], np.int64)
