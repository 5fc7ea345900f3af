"""The IDX format of MNIST: a header, then unsigned bytes; all limits are checked before memory is taken."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from secateur.data.checks import reading
from secateur.errors import DataError

MAX_DIMS = 4
MAX_VALUES = 2**28  # MNIST's largest file has 47 million; a gzip file can claim a thousand times its size
UNSIGNED_BYTE = 0x08
DEFLATE = 1032  # the most that one byte of a gzip file can become

Array = np.ndarray[Any, Any]


def read_idx(path: Path) -> tuple[Array, str]:
    """Read an IDX file, plain or gzipped: (uint8 array, md5 of the uncompressed bytes).

    Raises DataError, naming the file and what is wrong with it, for everything but a whole IDX file
    of unsigned bytes.
    """
    kinds = (OSError, EOFError, zlib.error)
    with reading(f"{path}: cannot be read to its end", *kinds, then="; get it again"):
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: a folder, a pipe or a device; an IDX file is right")
        size = path.stat().st_size
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not zipped:
                return parse_idx(file, size, str(path))
            with gzip.GzipFile(fileobj=file, mode="rb") as unzipped:
                return parse_idx(unzipped, size * DEFLATE, str(path))


def parse_idx(file: BinaryIO | gzip.GzipFile, most: int, name: str) -> tuple[Array, str]:
    """Parse IDX from ``file``, which cannot hold more than ``most`` bytes: (array, md5 of it all)."""
    header = _exactly(file, 4, name)
    if header[:2] != b"\0\0":
        raise DataError(f"{name}: starts with {header.hex()}; an IDX file starts with 0000")
    if header[2] != UNSIGNED_BYTE:
        raise DataError(f"{name}: IDX type 0x{header[2]:02x}; unsigned bytes (0x08) are right")
    if not 1 <= header[3] <= MAX_DIMS:
        raise DataError(f"{name}: IDX with {header[3]} dims; 1 to {MAX_DIMS} are right")
    sizes = _exactly(file, 4 * header[3], name)
    shape = struct.unpack(f">{header[3]}I", sizes)
    count = math.prod(shape)
    if not 0 < count <= MAX_VALUES:
        raise DataError(f"{name}: IDX of shape {shape}; 1 to {MAX_VALUES} values are right")
    if len(header) + len(sizes) + count > most:
        raise DataError(f"{name}: truncated: shape {shape} needs {count} bytes, the file holds fewer")
    data = np.empty(count, np.uint8)
    got = _fill(file, data)
    if got < count:
        raise DataError(f"{name}: truncated: shape {shape} needs {count} bytes, the file holds {got}")
    if file.read(1):
        raise DataError(f"{name}: bytes follow the last of its {count} values; the file should end there")
    digest = hashlib.md5(header + sizes, usedforsecurity=False)
    digest.update(data.data)
    return data.reshape(shape), digest.hexdigest()


def _exactly(file: BinaryIO | gzip.GzipFile, number: int, name: str) -> bytes:
    data = file.read(number)
    if len(data) < number:
        raise DataError(f"{name}: truncated: its IDX header ends after {len(data)} of {number} bytes")
    return data


def _fill(file: BinaryIO | gzip.GzipFile, data: Array) -> int:
    view = data.data
    done = 0
    while done < len(view):
        got = file.readinto(view[done : done + 2**20])  # type: ignore[union-attr]
        if not got:
            break
        done += got
    return done
