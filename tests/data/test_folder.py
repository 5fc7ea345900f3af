"""A user's own images, of every kind that Pillow reads, and the ways such folders go wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.data import images as module
from secateur.data import load_data


def picture(path: Path, seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (9, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten training images in each of two classes, and two test images each."""
    for label, name in enumerate(("cats", "dogs")):
        for number in range(10):
            picture(tmp_path / "own" / "train" / name / f"{number}.png", 100 * label + number)
        for number in range(2):
            picture(tmp_path / "own" / "test" / name / f"{number}.jpg", 100 * label + 50 + number)
    return tmp_path / "own"


def load(root: Path, size: int = 8, **options):
    return load_data("image-folder", path=str(root), size=size, **({"validation": 2} | options))


def test_both_splits(root: Path) -> None:
    (root / "train" / ".DS_Store").write_bytes(b"hidden")
    (root / "train" / "cats" / ".hidden").write_bytes(b"hidden")
    data = load(root)
    assert tuple(data.train.inputs.shape) == (18, 3, 8, 8)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.classes == ("cats", "dogs")
    assert load(root).fingerprint == data.fingerprint != load(root, size=9).fingerprint


def test_pixels_are_kept_where_the_size_fits(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for part, number in (("train", 0), ("train", 1), ("train", 2), ("test", 3)):
            picture(tmp_path / part / name / f"{number}.png", number, size=(6, 6))
    data = load(tmp_path, 6)
    expected = np.random.default_rng(3).integers(0, 256, (6, 6, 3), dtype=np.uint8).transpose(2, 0, 1) / 255
    back = (
        data.test.inputs[0] * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
    )
    np.testing.assert_allclose(back, expected, atol=1e-6)


def test_without_a_test_folder_a_fixed_fifth_is_test_data(root: Path) -> None:
    for file in root.glob("test/*/*"):
        file.unlink()
    for folder in [*root.glob("test/*"), root / "test"]:
        folder.rmdir()
    one, other = load(root), load(root, seed=5)
    assert [len(one.train), len(one.validation), len(one.test)] == [14, 2, 4]
    assert one.test.labels.tolist() == other.test.labels.tolist()
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", "png"),
        ("P", "gif"),
        ("1", "bmp"),
        ("RGBA", "webp"),
        ("CMYK", "jpg"),
        ("LA", "png"),
        ("RGB", "tiff"),
    ],
)
def test_every_8_bit_kind_is_read(root: Path, mode: str, suffix: str) -> None:
    picture(root / "train" / "cats" / f"more.{suffix}", mode=mode)
    assert len(load(root).train) == 19


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    read = module.read_image(tmp_path / "turned.png", "turned")
    assert read[:, 3].min() == 255
    assert read[:, 0].max() == 0


def _write(path: str, data: bytes):
    def act(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)

    return act


def _truncate(root: Path) -> None:
    path = root / "test" / "dogs" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-150])


def _sixteen_bits(root: Path) -> None:
    Image.fromarray(np.full((4, 4), 60_000, np.uint16)).save(root / "train" / "cats" / "deep.png")


def _remove(folder: str):
    def act(root: Path) -> None:
        for file in (root / folder).iterdir():
            file.unlink()
        (root / folder).rmdir()

    return act


def _empty(folder: str):
    return lambda root: (root / folder).mkdir()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (_truncate, r"test/dogs/1.jpg: not a whole image that Pillow can read: OSError"),
        (_write("train/cats/notes.txt", b"hello"), r"train/cats/notes.txt: not a whole image.*Unidentified"),
        (_write("train/cats/x.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n"), r"x.eps: not a whole image"),
        (_write("train/cats/x.png", b""), r"x.png: not a whole image"),
        (_sixteen_bits, r"train/cats/deep.png: pixels of mode I;16; 8 bits a channel are right"),
        (_remove("test/dogs"), r"own: class 'dogs' is missing in test; both need every class"),
        (_remove("train/dogs"), r"own: class 'dogs' is missing in train; both need every class"),
        (_write("test/cows/1.png", b""), r"own: class 'cows' is missing in train; both need every class"),
        (_empty("train/cows"), r"own/train/cows: no images in it; every class needs one at least"),
        (
            _empty("train/cats/more"),
            r"own/train/cats/more: no file; images lie directly in their class folder",
        ),
        (_write("train/list.csv", b""), r"own/train/list.csv: a file among the class folders"),
    ],
)
def test_folders_refused(root: Path, act, message: str, refused) -> None:
    act(root)
    with refused(message):
        load(root)


def test_no_folder(tmp_path: Path, refused) -> None:
    with refused(r"train: no such folder; <path>/train/<class>/<image> is right"):
        load(tmp_path)
    (tmp_path / "train").mkdir()
    with refused(r"train: 0 class folders; two at least are right"):
        load(tmp_path)


def test_bombs(root: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(r"own: 24 images of 4096 x 4096 are over 2147483648 values|own: 24 images"):
        monkeypatch.setattr("secateur.data.folder.MAX_VALUES", 2**20)
        load(root, size=4096)
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    picture(root / "train" / "cats" / "big.png", size=(11, 10))
    with refused(r"big.png: 11 x 10 pixels; at most 100 are right"):
        load(root)


def test_a_header_that_claims_a_huge_picture(root: Path, refused) -> None:
    for size in (10_000, 60_000):  # over our limit, and over Pillow's
        header = b"P5 " + f"{size} {size}".encode() + b" 255\n"
        (root / "train" / "cats" / "big.pgm").write_bytes(header)
        with refused(r"big.pgm: (10000 x 10000 pixels; at most|not a whole image.*DecompressionBombError)"):
            load(root)
