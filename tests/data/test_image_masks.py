"""Images and their masks by the names of the files; what does not fit is named before anything is trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.data import load_data


def write(folder: Path, number: int, size: int = 8) -> None:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(number):
        mask = np.zeros((size, size), np.uint8)
        mask[: size // 2] = index % 3
        mask[-1, -1] = 255
        image = np.stack([mask * 80] * 3, -1)
        Image.fromarray(image).save(folder / "images" / f"{index:02}.jpg")
        kind = Image.fromarray(mask, mode="P") if index % 2 else Image.fromarray(mask)
        if index % 2:
            kind.putpalette(list(range(256)) * 3)
        kind.save(folder / "masks" / f"{index:02}.png")


def test_masks_are_class_numbers_of_the_nearest_pixels(tmp_path: Path) -> None:
    write(tmp_path, 20)
    data = load_data("image-masks", path=tmp_path, size=4, classes=3, validation=4)
    assert data.train.inputs.shape == (12, 3, 4, 4)
    assert data.train.labels.shape == (12, 4, 4)
    assert data.train.labels.dtype == torch.int64
    assert set(data.train.labels.unique().tolist()) <= {0, 1, 2, 255}
    assert len(data.test) == 4
    again = load_data("image-masks", path=tmp_path, size=4, classes=3, validation=4)
    assert again.fingerprint == data.fingerprint


def test_parts_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path / "train", 6)
    write(tmp_path / "test", 3)
    data = load_data("image-masks", path=tmp_path, size=8, classes=3, validation=2)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [4, 2, 3]
    assert int(data.test.labels[1, 0, 0]) == 1


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "masks" / "00.png").unlink(), r"images: '00' has none of its name in masks"),
        (lambda root: (root / "images" / "00.jpg").unlink(), r"masks: '00' has none of its name in images"),
        (lambda root: (root / "masks" / "00.png").write_text("x"), r"00\.png: not a whole image"),
        (
            lambda root: Image.new("RGB", (8, 8)).save(root / "masks" / "00.png"),
            r"00\.png: pixels of mode RGB; a class number each \(L, P\) is right",
        ),
        (
            lambda root: Image.new("L", (8, 8), 7).save(root / "masks" / "00.png"),
            r"00\.png: a pixel of class 7; 0 to 2, and 255, which counts nowhere, are right",
        ),
        (lambda root: (root / "images" / "00.png").touch(), r"00\.png: a folder, or a second of its name"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, harm, message: str, refused) -> None:
    write(tmp_path, 5)
    harm(tmp_path)
    with refused(message):
        load_data("image-masks", path=tmp_path, size=4, classes=3)


def test_a_folder_of_another_kind(tmp_path: Path, refused) -> None:
    with refused(r"images: no such folder; <path>/images/\* and <path>/masks/\* are right"):
        load_data("image-masks", path=tmp_path, size=4, classes=3)
