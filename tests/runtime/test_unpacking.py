"""Reading packed files: bytes worked out by hand, without PyTorch, and refused with a reason."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import torch

import secateur.runtime
from secateur.deploy.encoding import _gaps, _indices, _planes
from secateur.deploy.packing import pack, unpack_tensors
from secateur.errors import MissingExtraError, StorageError
from secateur.runtime.contents import MAGIC, PRELUDE
from secateur.runtime.streams import FileError, lzma_filters
from secateur.runtime.unpacking import Sparse, read


def written(header: Any, *streams: bytes, text: bytes | None = None) -> bytes:
    """A file with this header, as its description has it."""
    text = json.dumps(header).encode() if text is None else text
    body = text + b"".join(streams)
    return PRELUDE.pack(MAGIC, zlib.crc32(body), len(text), len(text)) + body


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "w", "shape": [2, 3], "dtype": "uint8", **changes}


def of(streams: dict[str, bytes], **changes: Any) -> bytes:
    """A file of one uint8 tensor whose streams are stored raw."""
    listed = {name: ["raw", len(data)] for name, data in streams.items()}
    return written({"tensors": [entry(**changes)], "streams": listed}, *streams.values())


# -- bytes by hand -----------------------------------------------------------------------------------


def test_gaps_count_the_zeros_and_255_is_an_escape():
    assert _gaps(np.array([2, 4])) == bytes([2, 1])
    assert _gaps(np.array([0, 255, 511, 1276])) == bytes([0, 254, 255, 0, 255, 255, 254])
    assert _gaps(np.array([], np.int64)) == b""


def test_planes_begin_with_the_whole_exponent_and_the_sign_is_the_last_bit():
    values = np.array([1.5, -1.5], np.float32)  # 3fc00000 and bfc00000, rotated left by one
    found = _planes("float32", values.view(np.uint32))
    assert [found[f"float32:{i}"] for i in range(4)] == [b"\x7f\x7f", b"\x80\x80", b"\0\0", b"\x00\x01"]
    assert _planes("int16", np.array([0x1234], np.uint16)) == {"int16:0": b"\x12", "int16:1": b"\x34"}


def test_indices_are_packed_first_in_the_highest_bits():
    assert _indices(np.array([1, 2, 3]), 2) == bytes([0b01_10_11_00])
    assert _indices(np.array([5, 6, 7]), 3) == bytes([0b101_110_11, 0b1_0000000])
    assert _indices(np.array([5]), 8) == bytes([5])
    assert _indices(np.array([0, 0]), 0) == b""


def test_reading_what_was_written_by_hand():
    cases: list[tuple[bytes, list[list[int]]]] = [
        (of({"uint8:0": bytes(range(6))}), [[0, 1, 2], [3, 4, 5]]),
        (of({"uint8:0": bytes(range(6))}, column=True), [[0, 2, 4], [1, 3, 5]]),
        (of({"gaps": b"\x01\x02", "uint8:0": b"\x07\x08"}, kept=2, gaps=2), [[0, 7, 0], [0, 8, 0]]),
        (
            of({"gaps": b"\x01\x02", "uint8:0": b"\x07\x08"}, kept=2, gaps=2, column=True),
            [[0, 0, 8], [7, 0, 0]],
        ),
        (of({"mask": b"\x48", "uint8:0": b"\x07\x08"}, kept=2, mask=True), [[0, 7, 0], [0, 8, 0]]),
        (of({"index:1": b"\x94", "uint8:0": b"\x07\x08"}, codebook=2, bits=1), [[8, 7, 7], [8, 7, 8]]),
        (of({"uint8:0": b"\x07"}, codebook=1, bits=0), [[7, 7, 7], [7, 7, 7]]),
    ]
    for data, wanted in cases:
        tensors, metadata = read(data)
        assert tensors["w"].tolist() == wanted
        assert tensors["w"].flags.c_contiguous
        assert metadata is None


def test_sparse_positions_ascend_in_c_order_whatever_the_file_has():
    data = of({"gaps": b"\x01\x02", "uint8:0": b"\x07\x08"}, kept=2, gaps=2, column=True)
    found = read(data, sparse=True)[0]["w"]
    assert isinstance(found, Sparse)
    assert (found.shape, found.positions.tolist(), found.values.tolist()) == ((2, 3), [2, 3], [8, 7])
    assert found.positions.dtype == np.int64
    dense = read(of({"uint8:0": bytes(6)}), sparse=True)[0]["w"]
    assert isinstance(dense, np.ndarray)


# -- where there is no PyTorch -----------------------------------------------------------------------


def test_reading_needs_numpy_alone(tmp_path):
    pack({"w": torch.eye(30), "b": torch.ones(3)}, tmp_path / "x", metadata={"name": "größe"})
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('reader', {secateur.runtime.__file__!r})\n"
        "sys.modules['reader'] = importlib.util.module_from_spec(spec)\n"
        "from reader.unpacking import read\n"
        f"tensors, metadata = read({str(tmp_path / 'x')!r})\n"
        "assert tensors['w'].trace() == 30 and metadata == {'name': 'größe'}, (tensors, metadata)\n"
        "assert not {'torch', 'secateur', 'zstandard'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_zstandard_that_is_missing_is_named(tmp_path, monkeypatch):
    pack({"w": torch.ones(500, 2).cumsum(0)}, tmp_path / "x", compression="zstd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match="pip install zstandard"):
        read(tmp_path / "x")
    with pytest.raises(MissingExtraError, match=r"pip install 'secateur\[fast\]'"):
        pack({"w": torch.ones(3)}, tmp_path / "x", compression="zstd")
    with pytest.raises(MissingExtraError, match=r"'zstandard' is not installed"):
        unpack_tensors(tmp_path / "x")


# -- refusals ----------------------------------------------------------------------------------------


def test_missing_foreign_and_damaged_files(tmp_path):
    pack({"w": torch.randn(30, 20)}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    cases = [
        (b"", "0 bytes are too few"),
        (b"PK\x03\x04" + bytes(40), "not a packed network: it does not begin as one"),
        (data[:-1], "the checksum is wrong; the file is damaged"),
        (data + b"x", "the checksum is wrong"),
        (data[:30], "it is cut or damaged"),
    ]
    for content, message in cases:
        (tmp_path / "y").write_bytes(content)
        with pytest.raises(StorageError, match=rf"y: .*{message}"):
            unpack_tensors(tmp_path / "y")
        with pytest.raises(FileError, match=message):
            read(content)
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileError, match=r"No such file|Is a directory"):
            read(path)


def test_a_small_file_that_claims_a_giant_tensor():
    packed = lzma.compress(bytes(1 << 20), lzma.FORMAT_RAW, filters=lzma_filters("lzma3", 1 << 20))
    for shape, kept in (([1 << 45], 0), ([1 << 20, 1 << 20, 1 << 20, 0], 0), ([1 << 24, 1 << 6], 1 << 20)):
        item = entry(shape=shape, dtype="float64", kept=kept, gaps=kept)
        streams = {f"float64:{i}": ["lzma3", len(packed)] for i in range(8)} | {
            "gaps": ["lzma3", len(packed)]
        }
        data = written({"tensors": [item], "streams": streams if kept else {}}, packed * (9 if kept else 0))
        with pytest.raises(FileError, match=r"w.*limit="):
            read(data)
    assert read(data, limit=1 << 34, sparse=True)[0]["w"].positions[-1] == (1 << 20) - 1


def test_a_stream_that_grows_beyond_what_its_tensors_need():
    packed = lzma.compress(bytes(1 << 26), lzma.FORMAT_RAW, filters=lzma_filters("lzma0", 4096))
    with pytest.raises(FileError, match="stream uint8:0 is not as long as its tensors need"):
        read(
            written(
                {"tensors": [entry(shape=[4096])], "streams": {"uint8:0": ["lzma0", len(packed)]}}, packed
            )
        )


def test_the_limit_holds_for_files_and_headers(tmp_path):
    pack({"w": torch.randn(300, 200)}, tmp_path / "x", metadata="a" * 5000)
    with pytest.raises(FileError, match="twice as large as limit=100000 or more"):
        read(tmp_path / "x", limit=100_000)
    with pytest.raises(FileError, match=r"the header has 5\d+ bytes; limit=300000 allows 4687"):
        read(tmp_path / "x", limit=300_000)
    with pytest.raises(FileError, match=r"w \(300, 200\): with it the tensors take more than limit=400000"):
        read(tmp_path / "x", limit=400_000)
    with pytest.raises(StorageError, match="limit=400000"):
        unpack_tensors(tmp_path / "x", limit=400_000)


@pytest.mark.parametrize(
    ("changes", "streams", "message"),
    [
        ({"kept": 2, "gaps": 2}, {"gaps": b"\x05\x00", "uint8:0": b"ab"}, "gaps do not keep 2 of 6"),
        ({"kept": 2, "mask": True}, {"mask": b"\x01", "uint8:0": b"ab"}, "mask does not keep 2"),
        ({"kept": 2, "mask": True}, {"mask": b"\x83", "uint8:0": b"ab"}, "mask does not keep 2"),
        ({"kept": 2}, {"uint8:0": b"ab"}, "one of 'gaps' and 'mask' goes with 'kept'"),
        ({"gaps": 2}, {"uint8:0": b"ab"}, "one of 'gaps' and 'mask' goes with 'kept'"),
        ({"kept": 7, "gaps": 7}, {}, "'kept' is 7; it is an integer from 0 to 6"),
        ({"kept": True, "gaps": 1}, {}, "'kept' is True; it is an integer"),
        ({"kept": 2, "gaps": 3}, {}, "'gaps' is 3; it is an integer from 2 to 2"),
        ({"codebook": 2, "bits": 1}, {"index:1": b"\x94"}, "streams are not those that the tensors need"),
        (
            {"codebook": 3, "bits": 2},
            {"index:2": b"\xff\xff", "uint8:0": b"abc"},
            "index leads past the 3 values",
        ),
        ({"codebook": 7, "bits": 3}, {}, "'codebook' is 7; it is an integer from 1 to 6"),
        ({"codebook": 3, "bits": 1}, {}, "'bits' is 1; it is an integer from 2 to 8"),
        ({"dtype": "object"}, {}, "the dtype is 'object'; it is one of float64"),
        ({"stored": "float16"}, {}, "values of dtype uint8 cannot be stored as 'float16'"),
        ({"dtype": "bool"}, {"bool:0": b"\x00\x01\x02\x00\x00\x00"}, "a bool is 0 or 1"),
        ({"shape": [2, -3]}, {}, "a dim of its shape is -3"),
        ({"shape": [2.0, 3]}, {}, "a dim of its shape is 2.0"),
        ({"shape": [1] * 33}, {}, "33 dims; 32 are the most"),
        ({"shape": "23"}, {}, "the shape is '23'; it is a list"),
        ({"name": 1}, {}, "the name of a tensor is 1; it is a str"),
        ({"column": 1}, {}, "'column' is 1; it is a bool"),
        ({"offset": 1}, {}, "a tensor has keys other than"),
        ({}, {"uint8:0": b"abcde"}, "stream uint8:0 is not as long as its tensors need"),
        ({}, {"uint8:0": b"abcdefg"}, "stream uint8:0 is not as long as its tensors need"),
        ({}, {"uint8:0": b"abcdef", "gaps": b"a"}, "streams are not those"),
    ],
)
def test_entries_that_contradict_themselves(changes, streams, message):
    with pytest.raises(FileError, match=message):
        read(of(streams, **changes))


def test_headers_that_are_none():
    good = {"tensors": [entry()], "streams": {"uint8:0": ["raw", 6]}}
    assert read(written(good, b"abcdef"))[0]["w"].shape == (2, 3)
    for changes, message in [
        ({"tensors": [entry(), entry()]}, "two tensors have one name"),
        ({"tensors": {}}, "tensors is a dict; it is a list"),
        ({"streams": []}, "streams is a list; it is a dict"),
        ({"streams": {"uint8:0": ["gzip", 6]}}, "stream uint8:0: a list is not .codec, bytes., raw, zstd"),
        ({"streams": {"uint8:0": ["lzma0", 6]}}, "stream uint8:0 cannot be decompressed|not as long as"),
        (
            {"streams": {"uint8:0": ["raw", 7]}},
            "the bytes of stream uint8:0 is 7; it is an integer from 1 to 6",
        ),
        ({"streams": {"uint8:0": ["raw", 5]}}, "1 bytes follow the last stream"),
        ({"tied": {"v": "u"}}, "'v' cannot be tied to 'u'"),
        ({"tied": {"w": "w"}}, "'w' cannot be tied to 'w'"),
        ({"code": "import os"}, "the header has keys other than"),
    ]:
        with pytest.raises(FileError, match=message):
            read(written({**good, **changes}, b"abcdef"))
    for text in (b"[]", b"{", b"\xff", b"[" * 5000 + b"]" * 5000, b'{"tensors": ' + b"1" * 5000 + b"}"):
        with pytest.raises(FileError, match="the header is not a JSON object"):
            read(written(None, text=text))


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(FileError, match=f"{name}: a pipe, a socket or a device, not a file"):
            read(tmp_path / name)
    with pytest.raises(FileError, match="null"):
        read("a\0b")
