"""MNIST and Fashion-MNIST: the real files' known values, and small stand-ins for what can go wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import FILES, md5s, put, small_mnist

from secateur.data import load_data
from secateur.data import mnist as module


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, dict[str, list[bytes]]]:
    """A data folder, and files whose hashes are pinned in the place of the real ones."""
    files = {"mnist": small_mnist(0), "fashion-mnist": small_mnist(1)}
    monkeypatch.setattr(module, "MD5", {name: md5s(data) for name, data in files.items()})
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("SECATEUR_DATA", str(folder))
    return folder, files


def test_real_mnist(real) -> None:
    real(*(f"mnist/{file}" for file in FILES))
    data = load_data("mnist", validation=5000)
    assert tuple(data.train.inputs.shape) == (55_000, 1, 28, 28)
    assert tuple(data.validation.inputs.shape) == (5_000, 1, 28, 28)
    assert tuple(data.test.inputs.shape) == (10_000, 1, 28, 28)
    together = torch.cat([data.train.labels, data.validation.labels]).bincount().tolist()
    assert together == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.mean == pytest.approx((0.1307,), abs=3e-4)
    assert data.std == pytest.approx((0.3081,), abs=3e-4)
    assert abs(data.train.inputs.mean()) < 1e-4
    assert abs(data.train.inputs.std() - 1) < 1e-4
    assert data.classes == tuple("0123456789")
    # networks are kept by this hash: where it must change, so must assemble.FORMAT, knowingly
    assert data.fingerprint == "2780a70720bcb463"
    path = real() / "mnist" / FILES[1]
    assert module.read_pinned(path, "mnist", 1)[0] == 5


def test_real_fashion_mnist(real) -> None:
    real(*(f"fashion-mnist/{file}" for file in FILES))
    data = load_data("fashion-mnist")
    assert [len(data.train), len(data.validation), len(data.test)] == [54_000, 6_000, 10_000]
    together = torch.cat([data.train.labels, data.validation.labels]).bincount().tolist()
    assert together == [6000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.test.labels[:4].tolist() == [9, 2, 1, 1]
    assert data.classes[9] == "ankle boot"
    assert data.mean == pytest.approx((0.286,), abs=1e-3)
    assert data.std == pytest.approx((0.353,), abs=1e-3)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", ["mnist", ""])
def test_found_in_its_folder_or_directly(toy, zipped: bool, inside: str) -> None:
    folder, files = toy
    put(folder / inside, files["mnist"], zipped)
    data = load_data("mnist", validation=10, download=False)
    assert tuple(data.train.inputs.shape) == (50, 1, 6, 5)
    images = np.frombuffer(files["mnist"][2][16:], np.uint8).reshape(20, 1, 6, 5)
    back = data.test.inputs * data.std[0] + data.mean[0]
    np.testing.assert_allclose(back, images / 255, atol=1e-6)
    assert data.test.labels.tolist() == [*range(10)] * 2


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_pixels_as_they_are(toy, name: str, refused) -> None:
    folder, files = toy
    put(folder, files[name])
    raw, usual = load_data(name, normalise=False), load_data(name)
    wanted = usual.train.inputs * usual.std[0] + usual.mean[0]
    assert torch.allclose(raw.train.inputs, wanted, atol=1e-6)
    assert torch.equal((255 * raw.train.inputs).round() / 255, raw.train.inputs)
    assert raw.mean == ()
    assert raw.fingerprint != usual.fingerprint
    with refused("^normalise is 1; it is true or false$"):
        load_data(name, normalise=1)


def test_cache_serves_what_the_data_folder_lacks(toy, cache: Path) -> None:
    folder, files = toy
    put(folder / "mnist", files["mnist"])
    (folder / "mnist" / FILES[2]).rename(folder / "elsewhere")
    put(cache / "mnist", files["mnist"])
    assert len(load_data("mnist", validation=10, download=False).test) == 20


def test_the_other_sets_files_directly_in_the_folder_are_passed_over(toy, refused) -> None:
    folder, files = toy
    put(folder, files["fashion-mnist"])
    put(folder / "mnist", files["mnist"])
    one = load_data("mnist", validation=10, download=False)
    other = load_data("fashion-mnist", validation=10, download=False)
    assert one.fingerprint != other.fingerprint
    (folder / "mnist" / FILES[0]).unlink()
    with refused(r"^train-images-idx3-ubyte.gz is neither in \$SECATEUR_DATA"):
        load_data("mnist", download=False)


def test_missing_names_the_file_and_where_to_put_it(toy, cache: Path, refused, monkeypatch) -> None:
    with refused(
        rf"^train-images-idx3-ubyte.gz is neither in \$SECATEUR_DATA \({toy[0]}\) nor in the "
        rf"cache \({cache}\), and download is off; put train-images-idx3-ubyte.gz "
        r"into \$SECATEUR_DATA/mnist or .*cache/mnist$"
    ):
        load_data("mnist", download=False)
    monkeypatch.delenv("SECATEUR_DATA")
    with refused(r"is neither in \$SECATEUR_DATA \(not set\) nor"):
        load_data("mnist", download=False)
    monkeypatch.setenv("SECATEUR_DATA", "/no/such/folder")
    with refused(r"^\$SECATEUR_DATA is '/no/such/folder', which is no folder"):
        load_data("mnist", download=False)


def test_a_file_with_another_hash_is_refused(toy, refused) -> None:
    folder, files = toy
    put(folder / "mnist", files["mnist"])
    changed = bytearray(files["mnist"][0])
    changed[-1] ^= 1
    (folder / "mnist" / FILES[0]).write_bytes(gzip.compress(bytes(changed)))
    with refused(rf"mnist/{FILES[0]}: uncompressed md5 {md5s([bytes(changed)])[0]}; mnist's is "):
        load_data("mnist")


def test_files_that_do_not_fit_each_other(toy, refused, monkeypatch) -> None:
    folder, files = toy
    for wrong, message in (
        (small_mnist(0, top=11), r"^mnist: label 10; 0 to 9 are right"),
        (
            [files["mnist"][1], *files["mnist"][1:]],
            r"^mnist: images of shape \(60,\) and labels of shape \(60,\)",
        ),
        (
            [files["mnist"][2], *files["mnist"][1:]],
            r"^mnist: images of shape \(20, 6, 5\) and labels of shape",
        ),
    ):
        monkeypatch.setattr(module, "MD5", {"mnist": md5s(wrong)})
        put(folder / "mnist", wrong)
        with refused(message):
            load_data("mnist")
