"""Files of arrays: IDX, plain and gzipped, and npz."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from formats import Files, Opened
from mutations import Chance, changed

from secateur.data import load_data
from secateur.data.idx import read_idx

_SIZES = (0, 1, 2, 3, 255, 2**16, 2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 1)


# -- IDX ---------------------------------------------------------------------------------------------


def idx(folder: Path) -> Opened:
    pixels = np.arange(20 * 6 * 5, dtype=np.uint8).reshape(20, 6, 5)
    plain = [_idx(pixels), _idx(np.arange(20, dtype=np.uint8) % 10)]

    def mutate(chance: Chance) -> Files:
        data = bytearray(chance.choice(plain))
        kind = chance.randrange(4)
        if kind == 0:  # sizes of the header
            for _ in range(chance.choice((1, 2))):
                at = 4 * chance.randrange(1, 1 + max(1, min(data[3], len(data) // 4 - 1)))
                data[at : at + 4] = struct.pack(">I", chance.choice(_SIZES))
        elif kind == 1:
            data[chance.randrange(4)] = chance.randrange(256)
        else:
            data = bytearray(changed(bytes(data), chance))
        if chance.random() < 0.1:
            shape = chance.choice(((2**20, 3, 3), (60_000, 28, 28), (1000, 1000, 100)))
            return {"file": zipped(_idx_header(shape), chance, zeros=chance.choice((0, 2**20, 2**24)))}
        return {"file": bytes(data) if chance.random() < 0.4 else zipped(bytes(data), chance)}

    def read(place: Path) -> None:
        read_idx(place / "file")

    return Opened(mutate, read, [{"file": data} for data in plain])


def _idx_header(shape: tuple[int, ...]) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def _idx(array: np.ndarray[Any, Any]) -> bytes:
    return _idx_header(array.shape) + array.tobytes()


def zipped(data: bytes, chance: Chance, zeros: int = 0) -> bytes:
    """Return a gzip file, mostly whole: its header, a second member or its end may be changed."""
    found = gzip.compress(data + bytes(zeros), 1, mtime=0)
    kind = chance.randrange(12)
    if kind == 0:
        return changed(found, chance)
    if kind == 1:
        return found + chance.choice((found, b"\0" * 100, b"more", found[:20]))
    if kind == 2:
        return found[: -chance.randrange(1, 12)] + chance.choice((b"", bytes(8)))
    return found


# -- npz ---------------------------------------------------------------------------------------------


def npz(folder: Path) -> Opened:
    x = np.arange(40 * 6, dtype=np.float32).reshape(40, 6)
    y = (np.arange(40) % 3).astype(np.int64)
    images = np.arange(40 * 2 * 3 * 3, dtype=np.uint8).reshape(40, 2, 3, 3)
    sets: list[dict[str, np.ndarray[Any, Any]]] = [
        {"x": x, "y": y},
        {"x_train": images, "y_train": y, "x_test": images[:9], "y_test": y[:9]},
    ]
    packed = [{f"{name}.npy": _npy(array) for name, array in arrays.items()} for arrays in sets]

    def mutate(chance: Chance) -> Files:
        members = dict(chance.choice(packed))
        for _ in range(chance.choice((1, 1, 2))):
            name = chance.choice(list(members))
            members[name] = _changed_npy(members[name], chance)
        data = _zip(members, chance)
        return {"data.npz": changed(data, chance) if chance.random() < 0.25 else data}

    def read(place: Path) -> None:
        load_data("npz", path=str(place / "data.npz"), validation=2)

    return Opened(mutate, read, [{"data.npz": _zip(members, None)} for members in packed])


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


_DESCRIPTIONS = [
    *(
        "'<f8'",
        "'|O'",
        "'<M8[s]'",
        "'|V4'",
        "'<U9'",
        "'|S3'",
        "'>i2'",
        "'<c8'",
        "'|b1'",
        "'<f16'",
        "'<i8'",
        "'|u1'",
    ),
    *(
        "[('a', '<f4')]",
        "'<f2'",
        "()",
        "''",
        "'x'",
        "1",
        "None",
        "[1]",
        "'<f4', 'more': 1",
        "'" + "O" * 3000 + "'",
    ),
]
_SHAPES = [
    *(
        "()",
        "(0,)",
        "(40,)",
        "(240,)",
        "(2**31,)",
        "(4294967296, 4294967296)",
        "(-1, 6)",
        "(True, 240)",
        "(40, 6.0)",
    ),
    *(
        "(40, 6, 1, 1, 1)",
        "[40, 6]",
        "(9" + "9" * 30 + ",)",
        "(1" + ",1" * 70 + ")",
        "None",
        "(0, 18446744073709551616)",
    ),
    *("((40,), 6)", "'x'", "(" * 150 + ")" * 150, "(40, 2, 3)", "(1, 40, 6)", "(3, 80)", "(10000000, 6)"),
]


_FIELDS = (("'descr': ", ", 'fortran", _DESCRIPTIONS), ("'shape': ", ", }", _SHAPES))


def _changed_npy(data: bytes, chance: Chance) -> bytes:
    """Change an array's header text, its version, or its bytes."""
    size = struct.unpack_from("<H", data, 8)[0]
    text, body = data[10 : 10 + size].decode("latin1"), data[10 + size :]
    kind = chance.randrange(8)
    if kind < 4:
        field, end, others = _FIELDS[kind % 2]
        start = text.find(field) + len(field)
        text = text[:start] + chance.choice(others) + text[max(start, text.find(end, start)) :]
    elif kind == 4:
        text = text.replace("False", chance.choice(("True", "0", "None", "1+1", "__import__('os')")))
    elif kind == 5:
        text = changed(text.encode(), chance).decode("latin1")
    else:
        body = changed(body, chance) if chance.random() < 0.7 else b"\xff" * len(body)
    header = text.encode("latin1", "replace")
    major = chance.choice((1, 1, 1, 1, 1, 2, 3, 9))
    length = len(header) if chance.random() < 0.95 else chance.choice((0, 1, 65535, 2**31 - 1))
    packed = struct.pack("<H", min(length, 65535)) if major == 1 else struct.pack("<I", length)
    return b"\x93NUMPY" + bytes([major, 0]) + packed + header + body


def _zip(members: dict[str, bytes], chance: Chance | None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            method = zipfile.ZIP_STORED
            if chance is not None and chance.random() < 0.2:
                method = zipfile.ZIP_DEFLATED
            elif chance is not None and chance.random() < 0.02:
                method = chance.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            info = zipfile.ZipInfo(name)
            if chance is not None and chance.random() < 0.06:
                info = zipfile.ZipInfo(
                    chance.choice(("", "../x.npy", "/x.npy", "x", "x.npy.npy", "y.npy", "a\0b", "é"))
                )
            info.compress_type = method
            if chance is not None and chance.random() < 0.002:
                data += bytes(chance.choice((2**20, 2**27)))
                info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return buffer.getvalue()


FORMATS = {"idx": idx, "npz": npz}
