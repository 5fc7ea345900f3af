"""CIFAR-10: tiny archives of both kinds, and, slowly, the real one."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samples import plain, tar

from secateur.data import cifar, load_data
from secateur.data.cifar import BATCHES, BINARY, CLASSES, IMAGES, read_binary, read_images

META = "\n".join([*CLASSES, ""]).encode()


def records(batch: int, number: int = 20) -> np.ndarray:
    data = np.random.default_rng(batch).integers(0, 256, (number, cifar.RECORD), dtype=np.uint8)
    data[:, 0] = np.arange(number) % 10
    return data


def binary(**changes: bytes) -> bytes:
    """The canonical archive in small; ``changes`` by the stem of a member, b"" leaving it out."""
    files = {name: records(number).tobytes() for number, name in enumerate(BATCHES)}
    files |= {"batches.meta.txt": META, "readme.html": b"<html>"}
    files |= {
        f"{stem}.txt" if stem == "batches.meta" else f"{stem}.bin": data for stem, data in changes.items()
    }
    return tar(*(plain(f"cifar-10-batches-bin/{name}", data) for name, data in files.items() if data))


def jpeg(seed: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def images(**changes: bytes) -> dict[str, bytes]:
    """Two training images and a test image a class, in no order of use."""
    files = {
        f"cifar10/{part}/{name}/{number:04d}.jpg": jpeg(100 * label + 10 * number + (part == "test"))
        for number in (1, 0)
        for part in ("test", "train")
        for label, name in reversed(list(enumerate(CLASSES)))
        if part == "train" or number == 0
    }
    return files | changes


def packed(files: dict[str, bytes]) -> bytes:
    return tar(*(plain(name, data) for name, data in files.items() if data))


SMALL = {"train": 2, "test": 1}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder whose archives are small ones."""
    path = tmp_path / "data"
    path.mkdir()
    monkeypatch.setenv("SECATEUR_DATA", str(path))
    monkeypatch.setattr(cifar, "PER_CLASS", SMALL)
    monkeypatch.setattr(cifar, "PER_BATCH", 20)
    return path


def pin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "BINARY_MD5", cifar._file_hash(path, "md5"))


def test_binary_archive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / BINARY).write_bytes(binary())
    pin(folder / BINARY, monkeypatch)
    data = load_data("cifar10", validation=10)
    assert tuple(data.train.inputs.shape) == (90, 3, 32, 32)
    assert len(data.test) == 20
    assert data.classes == CLASSES
    assert data.note == ""
    third = records(5)[3]
    assert data.test.labels[3] == third[0]
    back = (
        data.test.inputs[3] * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
    )
    np.testing.assert_allclose(back, third[1:].reshape(3, 32, 32) / 255, atol=1e-6)


def test_binary_goes_before_jpeg(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / IMAGES).write_bytes(packed(images()))
    assert "JPEG" in load_data("cifar10", validation=1).note
    (folder / BINARY).write_bytes(binary())
    pin(folder / BINARY, monkeypatch)
    assert load_data("cifar10", validation=1).note == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data_batch_3": records(3)[:-1].tobytes()},
            r"data_batch_3.bin has 58387 bytes; 20 records of 3073 bytes",
        ),
        ({"test_batch": records(3).tobytes() + b"x"}, r"test_batch.bin has 61461 bytes; 20 records"),
        ({"data_batch_2": b""}, r"data_batch_2.bin is not in it; the archive holds data_batch_1.bin, "),
        (
            {"data_batch_1": b"\x0a" + records(1).tobytes()[1:]},
            r"data_batch_1.bin holds label 10; 0 to 9 are right",
        ),
        ({"batches.meta": b"cat dog"}, r"batches.meta.txt names the classes cat dog; airplane automobile"),
    ],
)
def test_binary_archives_refused(tmp_path: Path, changes: dict[str, bytes], message: str, refused) -> None:
    path = tmp_path / BINARY
    path.write_bytes(binary(**changes))
    with refused(rf"{BINARY}: .*{message}"):
        read_binary(path, 20)


def test_binary_archive_with_another_hash(folder: Path, refused) -> None:
    (folder / BINARY).write_bytes(binary())
    with refused(
        rf"{BINARY}: md5 [0-9a-f]{{32}}; the canonical archive's is c32a1d4ab5d03f1284b67883e8d87530"
    ):
        load_data("cifar10")


def test_missing(folder: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(
        rf"^{BINARY} is neither .* and neither is {IMAGES}, and download is off; put {BINARY} into \$SECA"
    ):
        load_data("cifar10", download=False)
    monkeypatch.setattr(cifar, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    with refused(rf"^{BINARY} is neither .*could not be downloaded \(ConnectionError: .*put {BINARY} into"):
        load_data("cifar10")


def test_jpeg_archive_is_decoded_once(folder: Path, cache: Path, caplog, monkeypatch) -> None:
    (folder / IMAGES).write_bytes(packed(images()))
    with caplog.at_level(logging.INFO):
        first = load_data("cifar10", validation=2)
    assert "decoding" in caplog.text
    assert first.note.startswith("CIFAR-10 decoded from JPEG files: JPEG is lossy")
    assert first.test.labels.tolist() == list(range(10))
    expected = np.asarray(Image.open(io.BytesIO(jpeg(301)))).transpose(2, 0, 1) / 255
    back = (
        first.test.inputs[3] * torch.tensor(first.std)[:, None, None]
        + torch.tensor(first.mean)[:, None, None]
    )
    np.testing.assert_allclose(back, expected, atol=1e-6)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(cifar, "read_images", None)  # a second decoding would call it
    again = load_data("cifar10", validation=2)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.train.inputs, first.train.inputs)


def test_order_of_members_changes_nothing(tmp_path: Path) -> None:
    files = images()
    results = []
    for number, order in enumerate((files, dict(reversed(files.items())))):
        path = tmp_path / f"{number}.tar.gz"
        path.write_bytes(packed(order))
        results.append(vars(read_images(path, SMALL)))
    for one, other in zip(results[0].values(), results[1].values(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert results[0]["train_labels"].tolist() == [label for label in range(10) for _ in range(2)]


def test_damaged_cache_is_decoded_again(folder: Path, cache: Path, caplog) -> None:
    (folder / IMAGES).write_bytes(packed(images()))
    good = load_data("cifar10", validation=2).fingerprint
    (kept,) = cache.iterdir()
    flipped = bytearray(kept.read_bytes())
    flipped[-100] ^= 1
    for damaged in (kept.read_bytes()[:-10], bytes(flipped), b"", b"\x80\x04pickle"):
        kept.write_bytes(damaged)
        assert load_data("cifar10", validation=2).fingerprint == good
    assert caplog.text.count("decoding again") == 4


def test_cache_that_cannot_be_written(folder: Path, tmp_path: Path, caplog, monkeypatch) -> None:
    (folder / IMAGES).write_bytes(packed(images()))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "file" / "in"))
    assert len(load_data("cifar10", validation=2).train) == 18
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cifar10/test/cat/0000.jpg": jpeg(1)[:-200]},
            r"cat/0000.jpg: not a whole image that Pillow can read: OSEr",
        ),
        (
            {"cifar10/test/cat/0000.jpg": b"GIF89a"},
            r"cat/0000.jpg: not a whole image .*UnidentifiedImageError",
        ),
        (
            {"cifar10/test/cat/0000.jpg": jpeg(1, (40, 32))},
            r"cat/0000.jpg has 40 x 32 pixels; 32 x 32 are right",
        ),
        ({"cifar10/test/cat/0000.jpg": b""}, r"0 images in test/cat; 1 are right"),
        ({"cifar10/train/cat/0009.jpg": jpeg(1)}, r"3 images in train/cat; 2 are right"),
        (
            {"cifar10/train/cow/0000.jpg": jpeg(1)},
            r"cow/0000.jpg: no class 'cow'; the classes are airplane, ",
        ),
        ({"cifar10/valid/cat/0000.jpg": jpeg(1)}, r"valid/cat/0000.jpg is not expected; cifar10/train"),
        ({"cifar10/train/cat/0001.png": jpeg(1)}, r"0001.png is not expected"),
        ({"../train/cat/0001.jpg": jpeg(1)}, r"'../train/cat/0001.jpg' leads outside"),
        (
            {"cifar10/train/cat/0009.jpg": b"x" * 300_000},
            r"0009.jpg' has 300000 bytes; at most 262144 are right",
        ),
    ],
)
def test_jpeg_archives_refused(folder: Path, cache: Path, changes, message: str, refused) -> None:
    (folder / IMAGES).write_bytes(packed(images(**changes)))
    with refused(rf"{IMAGES}: .*{message}"):
        load_data("cifar10")
    assert not cache.exists()


def test_first_five_classes_are_cropped_in_the_middle(folder: Path) -> None:
    (folder / IMAGES).write_bytes(packed(images()))
    whole = load_data("cifar10", validation=1)
    data = load_data("cifar10-first5", validation=1)
    assert tuple(data.test.inputs.shape) == (5, 3, 25, 25)
    assert len(data.train) == 9
    assert data.classes == ("airplane", "automobile", "bird", "cat", "deer")
    assert data.note == whole.note
    assert data.fingerprint != whole.fingerprint

    def pixels(source, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * torch.tensor(source.std)[:, None, None] + torch.tensor(source.mean)[:, None, None]

    torch.testing.assert_close(
        pixels(data, data.test.inputs), pixels(whole, whole.test.inputs[:5, :, 3:28, 3:28]), atol=1e-6, rtol=0
    )
    raw = load_data("cifar10", validation=1, normalise=False)
    raw_five = load_data("cifar10-first5", validation=1, normalise=False)
    torch.testing.assert_close(raw.test.inputs, pixels(whole, whole.test.inputs), atol=1e-6, rtol=0)
    assert torch.equal(raw_five.test.inputs, raw.test.inputs[:5, :, 3:28, 3:28])
    assert raw.fingerprint not in (whole.fingerprint, raw_five.fingerprint)


@pytest.mark.slow
def test_real_jpeg_archive(real) -> None:
    real(IMAGES)
    data = load_data("cifar10", validation=5000, download=False)
    together = torch.cat([data.train.labels, data.validation.labels]).bincount().tolist()
    assert together == [5000] * 10
    assert len(data.train) == 45_000
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=4e-3)
    five = load_data("cifar10-first5", validation=0.1, download=False)
    assert [len(five.train), len(five.validation), len(five.test)] == [22_500, 2_500, 5_000]
    assert tuple(five.train.inputs.shape[1:]) == (3, 25, 25)
