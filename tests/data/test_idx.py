"""The IDX parser: what it reads, and that nothing makes it raise anything but DataError."""

from __future__ import annotations

import gzip
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import check_one_line, idx

from secateur.data.idx import parse_idx, read_idx
from secateur.errors import DataError

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
GOOD = idx(ARRAY)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (1, 2, 3, 4)])
@pytest.mark.parametrize("zipped", [False, True])
def test_round_trip(tmp_path: Path, shape: tuple[int, ...], zipped: bool) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    found, _ = read_idx(path)
    np.testing.assert_array_equal(found, array)


def test_md5_is_that_of_the_uncompressed_bytes(tmp_path: Path) -> None:
    for name, data in (("plain", GOOD), ("zipped", gzip.compress(GOOD))):
        (tmp_path / name).write_bytes(data)
        assert read_idx(tmp_path / name)[1] == "f66852a32fc48cb6df1843b8ce4eeb08"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"truncated: its IDX header ends after 0 of 4 bytes"),
        (GOOD[:3], r"truncated: its IDX header ends after 3 of 4 bytes"),
        (GOOD[:9], r"truncated: its IDX header ends after 5 of 12 bytes"),
        (GOOD[:-1], r"truncated: shape \(2, 3, 4\) needs 24 bytes"),
        (GOOD + b"x", r"bytes follow the last of its 24 values"),
        (b"\x80\x04" + GOOD, r"starts with 80040000; an IDX file starts with 0000"),
        (b"\0\0\x0d" + GOOD[3:], r"IDX type 0x0d; unsigned bytes \(0x08\) are right"),
        (b"\0\0\x08\0" + GOOD[4:], r"IDX with 0 dims; 1 to 4 are right"),
        (b"\0\0\x08\xff" + GOOD[4:], r"IDX with 255 dims; 1 to 4 are right"),
        (b"\0\0\x08\x03" + b"\xff" * 12, r"IDX of shape \(4294967295, 4294967295, 4294967295\); 1 to"),
        (b"\0\0\x08\x02" + bytes(8), r"IDX of shape \(0, 0\); 1 to"),
        (b"\0\0\x08\x01\x0f\xff\xff\xff", r"truncated: shape \(268435455,\) needs 268435455 bytes"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_bad_files(tmp_path: Path, data: bytes, message: str, zipped: bool, refused) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(data) if zipped else data)
    with refused(r"train-images-idx3-ubyte: " + message):
        read_idx(path)


def test_bad_gzip(tmp_path: Path, refused) -> None:
    zipped = gzip.compress(GOOD)
    for number, data in enumerate(
        (zipped[:-9], zipped[:5], zipped[:-8] + bytes(8), zipped[:12] + b"\xff" * 9)
    ):
        path = tmp_path / str(number)
        path.write_bytes(data)
        with refused(rf"{path}: (cannot be read to its end: .*; get it again|starts with)"):
            read_idx(path)
    with refused(r"nowhere: cannot be read to its end: FileNotFoundError"):
        read_idx(tmp_path / "nowhere")


@settings(deadline=None, max_examples=400)
@given(at=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 255)), max_size=4), cut=st.integers(0, 60))
def test_mutated_bytes_give_the_array_or_a_data_error(at: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(GOOD)
    for position, value in at:
        data[position] = value
    mutated = bytes(data[:cut]) + b"?" * max(0, cut - len(data) - 10)
    try:
        array, _ = parse_idx(io.BytesIO(mutated), len(mutated), "file")
    except DataError as error:
        check_one_line(error)
    else:
        assert idx(array) == mutated  # whatever is accepted is exactly what the bytes say


@settings(deadline=None, max_examples=400)
@given(
    at=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 80),
)
def test_mutated_gzip_gives_the_same_array_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, at: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(gzip.compress(GOOD, mtime=0))
    for position, value in at:
        data[position % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "mutated"
    path.write_bytes(bytes(data[:cut]))
    try:
        array, _ = read_idx(path)
    except DataError as error:
        check_one_line(error)
    else:
        np.testing.assert_array_equal(array, ARRAY)


def test_a_pipe_is_refused_at_once(tmp_path: Path, refused) -> None:
    os.mkfifo(tmp_path / "pipe")
    with refused("pipe: a folder, a pipe or a device; an IDX file is right"):
        read_idx(tmp_path / "pipe")


def test_a_small_file_that_claims_to_unpack_to_a_giant_one(tmp_path: Path, refused) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", 2**28 + 1)))
    with refused("x: IDX of shape .268435457,.; 1 to 268435456 values are right"):
        read_idx(tmp_path / "x")
