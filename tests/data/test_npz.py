"""A user's own arrays: what is read, and what is refused before memory is taken."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import check_one_line

from secateur.data import load_data
from secateur.errors import DataError

LABELS = np.arange(60) % 3


def four(**changes) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {
        "x_train": generator.normal(5, 3, (60, 4)),
        "y_train": LABELS,
        "x_test": generator.normal(5, 3, (12, 4)),
        "y_test": LABELS[:12],
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def saved(tmp_path: Path, arrays: dict[str, np.ndarray], zipped: bool = False) -> str:
    path = tmp_path / "own.npz"
    (np.savez_compressed if zipped else np.savez)(path, **arrays)
    return str(path)


@pytest.mark.parametrize("zipped", [False, True])
def test_four_arrays(tmp_path: Path, zipped: bool) -> None:
    arrays = four()
    data = load_data("npz", path=saved(tmp_path, arrays, zipped), validation=6)
    assert [len(data.train), len(data.validation), len(data.test)] == [54, 6, 12]
    assert data.classes == ("0", "1", "2")
    assert data.train.inputs.mean(dim=0).abs().max() < 1e-6
    back = data.test.inputs * torch.tensor(data.std) + torch.tensor(data.mean)
    np.testing.assert_allclose(back, arrays["x_test"], rtol=1e-5)


def test_two_arrays_as_they_came(tmp_path: Path) -> None:
    x = np.arange(60 * 4, dtype=np.float32).reshape(60, 4)
    data = load_data("npz", path=saved(tmp_path, {"x": x, "y": LABELS}), normalise=False, validation=0.25)
    assert [len(data.train), len(data.validation), len(data.test)] == [36, 12, 12]
    rows = torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs])
    assert sorted(rows[:, 0].tolist()) == x[:, 0].tolist()
    assert data.mean == ()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", ">i4", "float16", ">f8", "bool", "longdouble"])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 4, 5)])
def test_kinds_and_shapes(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 2, (60, *shape)).astype(dtype)
    data = load_data("npz", path=saved(tmp_path, {"x": np.asfortranarray(x), "y": LABELS.astype(">u2")}))
    assert tuple(data.train.inputs.shape[1:]) == ((1, 4, 5) if len(shape) == 2 else shape)
    assert data.train.inputs.dtype == torch.float32


def test_arrays_not_read_are_noted(tmp_path: Path) -> None:
    path = saved(tmp_path, four(extra=np.zeros(3), more=np.zeros(3)))
    assert load_data("npz", path=path).note == "arrays not read: extra, more"


NAN = np.full((60, 4), 1.0)
NAN[17, 2] = np.nan
WIDE = LABELS.astype(np.uint64)
WIDE[3] = 2**64 - 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            four(y_test=None),
            r"own.npz: holds x_test, x_train, y_train; x_train, y_train, x_test, y_test, or else x, y",
        ),
        (four(x=NAN), r"own.npz: holds x, x_test, x_train"),
        ({}, r"own.npz: holds nothing; x_train"),
        (four(x_train=NAN), r"x_train: example 17 holds a NaN or an infinity"),
        (four(x_test=np.full((12, 4), np.inf)), r"x_test: example 0 holds a NaN"),
        (
            four(x_test=np.full((12, 4), 1e300)),
            r"npz: inputs hold a NaN or an infinity, or a number too large",
        ),
        (four(x_train=np.array([None] * 60)), r"x_train: Python objects, which only pickle can read"),
        (four(x_train=np.array([["a"] * 4] * 60)), r"x_train: <U1; real numbers are right"),
        (four(x_train=np.zeros((60, 4), complex)), r"x_train: complex128; real numbers are right"),
        (
            four(x_train=np.zeros(60)),
            r"x_train: shape \(60,\); \(N, features\), \(N, H, W\) or \(N, C, H, W\)",
        ),
        (four(x_train=np.zeros((60, 0))), r"x_train: shape \(60, 0\)"),
        (
            four(x_train=np.zeros((60, 32, 32, 3))),
            r"\(60, 32, 32, 3\) looks like \(N, H, W, C\); \(N, C, H, W\)",
        ),
        (four(x_train=np.zeros((60, 5))), r"test examples have shape \(4,\), the training ones \(5,\)"),
        (four(x_train=np.zeros((59, 4))), r"x_train holds 59 examples and y_train 60; as many is right"),
        (four(y_train=LABELS * 1.0), r"y_train: labels of float64; integers are right"),
        (four(y_train=LABELS > 0), r"y_train: labels of bool; integers are right"),
        (four(y_train=LABELS[:, None]), r"y_train: shape \(60, 1\); \(N,\) is right"),
        (four(y_train=LABELS - 1), r"y_train: labels from -1 to 1; 0 to K - 1 are right"),
        (four(y_train=WIDE), r"y_train: labels from 0 to 18446744073709551615; 0 to K - 1 are right"),
        (four(y_train=LABELS * 2), r"no training example has label 1; labels 0 to K - 1 without gaps"),
        (four(y_train=LABELS * 0, y_test=LABELS[:12] * 0), r"one class only; two at least are right"),
        (four(y_test=LABELS[:12] + 1), r"a test label is 3; the training ones are 0 to 2"),
    ],
)
def test_arrays_refused(tmp_path: Path, arrays, message: str, refused) -> None:
    with refused(message):
        load_data("npz", path=saved(tmp_path, arrays))


def test_files_refused(tmp_path: Path, refused) -> None:
    with refused(r"nothing.npz: no such file; the path of an .npz is right"):
        load_data("npz", path=tmp_path / "nothing.npz")
    path = tmp_path / "own.npz"
    for data in (b"", b"\x80\x04pickle", b"PK\x03\x04", Path(saved(tmp_path, four())).read_bytes()[:-30]):
        path.write_bytes(data)
        with refused(r"own.npz: not a whole .npz archive \(numpy.savez\): BadZipFile"):
            load_data("npz", path=path)
    with refused(r"^normalise is 'yes'; it is true or false$"):
        load_data("npz", path=path, normalise="yes")


def npy(shape: str, data: bytes = b"", version: int = 1) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy("(1000000000000, 4)"), r"x: shape \(1000000000000, 4\); at most 2147483648 values are right"),
        (npy("(60, 4)", bytes(60)), r"x: shape \(60, 4\) of float64 needs 1920 bytes, the archive has 60"),
        (npy("(-60, 4)", bytes(1920)), r"an array in it cannot be read|x: shape \(-60, 4\)"),
        (npy("(60,", bytes(1920)), r"own.npz: an array in it cannot be read: "),
        (npy("(60, 4)", bytes(1920), 9), r"x: .npy version \(9, 0\); 1.0 and 2.0 are right"),
        (b"text", r"own.npz: an array in it cannot be read: ValueError"),
    ],
)
def test_headers_refused(tmp_path: Path, member: bytes, message: str, refused) -> None:
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("x.npy", member)
        archive.writestr("y.npy", npy("(60,)", bytes(480)))
    with refused(message):
        load_data("npz", path=tmp_path / "own.npz")


def _archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((12, 2), np.float32), y=np.arange(12) % 2)
    return buffer.getvalue()


GOOD = _archive()


@settings(deadline=None)
@given(at=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_archives_raise_data_error_only(
    tmp_path_factory: pytest.TempPathFactory, at: list[tuple[int, int]]
) -> None:
    data = bytearray(GOOD)
    for position, value in at:
        data[position] = value
    path = tmp_path_factory.getbasetemp() / "mutated.npz"
    path.write_bytes(bytes(data))
    try:
        load_data("npz", path=path, validation=1)
    except DataError as error:
        check_one_line(error)


def zipped_npz(tmp_path: Path, method: int, **members: bytes) -> str:
    with zipfile.ZipFile(tmp_path / "own.npz", "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return str(tmp_path / "own.npz")


def array_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_that_unpack_without_a_limit(tmp_path: Path, method: int, refused) -> None:
    path = zipped_npz(tmp_path, method, x=array_bytes(np.zeros((60, 4))), y=array_bytes(LABELS))
    with refused(r"own.npz: x: zip method \d+; numpy.savez stores or deflates"):
        load_data("npz", path=path)


def test_an_array_that_unpacks_to_far_more_than_its_bytes(tmp_path: Path, refused) -> None:
    x = np.zeros((60, 2**21), np.uint8)  # 120 MiB of zeros
    path = zipped_npz(tmp_path, zipfile.ZIP_DEFLATED, x=array_bytes(x), y=array_bytes(LABELS))
    with refused(r"own.npz: x: \d+ bytes that unpack to \d+; at most 200 times as many are read"):
        load_data("npz", path=path)


def test_a_header_that_is_longer_than_any(tmp_path: Path, refused) -> None:
    bomb = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**27) + b" " * 2**25
    path = zipped_npz(tmp_path, zipfile.ZIP_DEFLATED, x=bomb, y=array_bytes(LABELS))
    with refused(r"own.npz: an array in it cannot be read"):
        load_data("npz", path=path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name(tmp_path: Path, refused) -> None:
    for name in ("x.npy", "x"):
        path = zipped_npz(
            tmp_path, zipfile.ZIP_STORED, x=array_bytes(np.zeros((60, 4))), y=array_bytes(LABELS)
        )
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, array_bytes(np.ones((60, 4))))
        with refused(r"own.npz: two arrays of one name; each once is right"):
            load_data("npz", path=path)


def test_numbers_and_maps_as_labels(tmp_path: Path, refused) -> None:
    rng = np.random.default_rng(0)
    images, maps = rng.normal(size=(40, 3, 4, 4)), rng.integers(0, 3, (40, 4, 4))
    np.savez(tmp_path / "a.npz", x=images, y=maps)
    data = load_data("npz", path=tmp_path / "a.npz", labels="maps", validation=8)
    assert data.train.labels.shape == (24, 4, 4)
    assert data.train.labels.dtype == torch.int64
    assert data.classes == ()
    np.savez(tmp_path / "b.npz", x=images, y=rng.normal(size=(40, 2)))
    data = load_data("npz", path=tmp_path / "b.npz", labels="numbers", validation=8)
    assert data.test.labels.shape == (8, 2)
    assert data.test.labels.dtype == torch.float32
    with refused(r"b\.npz: y: shape \(40, 2\); \(N,\) is right"):
        load_data("npz", path=tmp_path / "b.npz")
    with refused(r"b\.npz: y: float64 of shape \(40, 2\); whole numbers \(N, H, W\) are right"):
        load_data("npz", path=tmp_path / "b.npz", labels="maps")
    with refused(r"labels is 'masks'; it is one of classes, numbers, maps"):
        load_data("npz", path=tmp_path / "b.npz", labels="masks")


def test_several_inputs_by_the_names_of_the_forward(tmp_path: Path, refused) -> None:
    rng = np.random.default_rng(0)
    tokens, dense = rng.integers(0, 9, (40, 6)), 5 + 3 * rng.normal(size=(40, 2))
    parts = {"x/ids": tokens, "x/features": dense, "y": np.arange(40) % 2}
    np.savez(tmp_path / "a.npz", **parts)
    data = load_data("npz", path=tmp_path / "a.npz", validation=8)
    assert data.train.inputs.keys() == {"ids", "features"}
    assert data.train.inputs["ids"].dtype == torch.int64  # tokens stay what they are
    assert abs(float(data.train.inputs["features"].mean())) < 1e-6
    np.savez(tmp_path / "b.npz", **parts | {"x/ids": tokens[:39]})
    with refused(r"b\.npz: x/ids holds 39 examples and y 40; as many is right"):
        load_data("npz", path=tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", **parts | {"x": dense})
    with refused(r"c\.npz: holds x and x/ids; one input, or several under x/, is right"):
        load_data("npz", path=tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", **{"x/ids": tokens, "y/a": parts["y"]})
    with refused(r"d\.npz: labels are one array: y is right"):
        load_data("npz", path=tmp_path / "d.npz")
