"""Small stand-ins for data files, and the one thing that every error must be."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np

from secateur.data.mnist import STEMS

FILES = tuple(f"{stem}.gz" for stem in STEMS)


def check_one_line(error: Exception) -> None:
    assert "\n" not in str(error)
    assert 0 < len(str(error)) < 600


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def small_mnist(seed: int, top: int = 10) -> list[bytes]:
    """Four files: 60 + 20 images of 6x5, and their labels, which count up to ``top`` again and again."""
    generator = np.random.default_rng(seed)
    files = []
    for number in (60, 20):
        files.append(idx(generator.integers(0, 256, (number, 6, 5), dtype=np.uint8)))
        files.append(idx((np.arange(number) % top).astype(np.uint8)))
    return files


def md5s(files: list[bytes]) -> tuple[str, ...]:
    return tuple(hashlib.md5(data).hexdigest() for data in files)


def put(folder: Path, files: list[bytes], zipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, data in zip(STEMS, files, strict=True):
        path = folder / (f"{stem}.gz" if zipped else stem)
        path.write_bytes(gzip.compress(data) if zipped else data)


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    return info


def plain(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, size=len(data)), data


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data) if data else None)
    return buffer.getvalue()
