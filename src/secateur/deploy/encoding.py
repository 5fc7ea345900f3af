"""The bytes of a tensor, in the smallest of the ways that ``secateur.runtime.contents`` describes."""

from __future__ import annotations

import functools
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from secateur.errors import StorageError
from secateur.factories import need
from secateur.runtime.contents import FLOATS, ITEM_BYTES, MAGIC, PRELUDE, Entry
from secateur.runtime.streams import LARGEST_WINDOW, lzma_filters

_WINDOW = 1 << 16
_WINDOWS = 4


@dataclass(frozen=True)
class Plain:
    """A tensor as unsigned integers of its shape: the bits of its values in dtype ``stored``. ``error``:
    the largest change of an entry from the one that was given, relative to the largest entry."""

    name: str
    dtype: str
    stored: str
    bits: np.ndarray
    error: float = 0.0

    def floats(self) -> np.ndarray:
        """Return the values as they are read, bfloat16 as float32."""
        if self.stored == "bfloat16":
            return (self.bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return self.bits.view(self.stored)


@dataclass(frozen=True)
class Coded:
    """A tensor, how it is stored, and its bytes in each stream that it takes a piece of."""

    plain: Plain
    entry: Entry
    pieces: dict[str, bytes]


def smallest_of(plain: Plain, squeeze: Squeeze) -> Coded:
    """Return the tensor in the one of its encodings that compresses best by itself."""
    estimate = functools.cache(squeeze.estimate)  # encodings share pieces
    return min(_encodings(plain), key=lambda coded: sum(map(estimate, coded.pieces.values())))


def _encodings(plain: Plain) -> Iterator[Coded]:
    rows = plain.bits.shape[0] if plain.bits.ndim > 1 else 1
    columns = plain.bits.size // max(1, rows)
    for column in (False, True) if min(rows, columns) > 1 else (False,):
        flat = np.ravel(plain.bits.reshape(rows, columns).T if column else plain.bits)
        positions = np.flatnonzero(flat)
        entry = Entry(plain.name, plain.bits.shape, plain.dtype, plain.stored, column=column)
        if not column:
            yield from _valued(plain, entry, {}, flat)
        if len(positions) == len(flat):
            continue
        kept = flat[positions]
        gaps = _gaps(positions)
        entry = replace(entry, kept=len(kept))
        yield from _valued(plain, replace(entry, gaps=len(gaps)), {"gaps": gaps}, kept)
        yield from _valued(plain, entry, {"mask": np.packbits(flat != 0).tobytes()}, kept)


def _valued(plain: Plain, entry: Entry, where: dict[str, bytes], values: np.ndarray) -> Iterator[Coded]:
    """Yield the tensor with its values as they are and, where they are few, as a codebook."""
    yield Coded(plain, entry, {**where, **_planes(entry.stored, values)})
    if not values.size or len(np.unique(values[:4096])) > 256:
        return
    codebook, members = np.unique(values, return_inverse=True)
    if len(codebook) > 256:
        return
    for bits in {(len(codebook) - 1).bit_length(), 8}:
        pieces = {**where, f"index:{bits}": _indices(members, bits), **_planes(entry.stored, codebook)}
        yield Coded(plain, replace(entry, codebook=len(codebook), bits=bits), pieces)


def _gaps(positions: np.ndarray) -> bytes:
    """Return the zeros before each position: 255 for 255 of them and no entry, else their number."""
    zeros = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(zeros // 255 + 1) if len(zeros) else np.zeros(0, np.int64)
    found = np.full(int(ends[-1]) if len(ends) else 0, 255, np.uint8)
    found[ends - 1] = zeros % 255
    return found.tobytes()


def _planes(stored: str, values: np.ndarray) -> dict[str, bytes]:
    size = ITEM_BYTES[stored]
    if stored in FLOATS:
        one, last = values.dtype.type(1), values.dtype.type(8 * size - 1)
        values = values << one | values >> last
    planes = values.astype(f">u{size}").view(np.uint8).reshape(-1, size)
    return {f"{stored}:{plane}": planes[:, plane].tobytes() for plane in range(size)}


def _indices(members: np.ndarray, bits: int) -> bytes:
    wide = np.unpackbits(members.reshape(-1, 1).astype(np.uint8), axis=1)
    return np.packbits(wide[:, 8 - bits :].reshape(-1)).tobytes()


# -- streams and the file ----------------------------------------------------------------------------


class Squeeze:
    """Compresses bytes in the way that was chosen, or leaves them where it does not help."""

    def __init__(self, compression: str) -> None:
        self.zstandard: Any = need("zstandard", extra="fast") if compression == "zstd" else None

    def __call__(self, data: bytes) -> tuple[str, bytes]:
        """Return (codec, bytes) of the smallest that was found."""
        if self.zstandard is not None:
            codec, packed = "zstd", self._zstd(data, 22)
        else:
            sample = _sample(data)
            codec = min(("lzma0", "lzma1", "lzma3"), key=lambda c: len(lzma_packed(sample, c)))
            packed = lzma_packed(data, codec)
        return (codec, packed) if len(packed) < len(data) else ("raw", data)

    def estimate(self, data: bytes) -> int:
        """Return about how many bytes it takes, from a few windows of it where it is long."""
        sample = _sample(data)
        packed = lzma_packed(sample, "lzma1", 6) if self.zstandard is None else self._zstd(sample, 3)
        return round(min(len(packed), len(sample)) * len(data) / max(1, len(sample)))

    def _zstd(self, data: bytes, level: int) -> bytes:
        window = min(max(len(data).bit_length(), 10), LARGEST_WINDOW.bit_length() - 1)
        options = {"window_log": window, "write_content_size": False}
        parameters = self.zstandard.ZstdCompressionParameters.from_level(
            level, source_size=len(data), **options
        )
        return self.zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def lzma_packed(data: bytes, codec: str, preset: int = 9 | lzma.PRESET_EXTREME) -> bytes:
    chain = lzma_filters(codec, len(data))
    chain[0]["preset"] = preset
    return lzma.compress(data, lzma.FORMAT_RAW, filters=chain)


def _sample(data: bytes) -> bytes:
    if len(data) <= _WINDOW * _WINDOWS:
        return data
    step = (len(data) - _WINDOW) // (_WINDOWS - 1)
    return b"".join(data[start : start + _WINDOW] for start in range(0, len(data) - _WINDOW + 1, step))


def assembled(
    coded: Sequence[Coded], header: Mapping[str, Any], squeeze: Squeeze
) -> tuple[bytes, dict[str, float]]:
    """Return the bytes of a file and, by stream, the bytes it has there for one of its own.

    ``header``: what it holds besides the tensors and the streams. Raises StorageError where that is not
    JSON.
    """
    joined: dict[str, list[bytes]] = {}
    for one in coded:
        for name, size in one.entry.pieces():
            if size:
                joined.setdefault(name, []).append(one.pieces[name])
    raw = {name: b"".join(pieces) for name, pieces in joined.items()}
    streams = {name: squeeze(data) for name, data in raw.items()}
    whole = {
        "tensors": [_item(one.entry) for one in coded],
        "streams": {name: [codec, len(data)] for name, (codec, data) in streams.items()},
        **header,
    }
    try:
        text = json.dumps(whole, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StorageError(f"the metadata cannot be written as JSON: {error}") from error
    packed = lzma_packed(text, "lzma3")
    stored = packed if len(packed) < len(text) else text
    body = b"".join([stored, *(data for _, data in streams.values())])
    data = PRELUDE.pack(MAGIC, zlib.crc32(body), len(stored), len(text)) + body
    return data, {name: len(packed) / len(raw[name]) for name, (_, packed) in streams.items()}


def _item(entry: Entry) -> dict[str, Any]:
    item: dict[str, Any] = {"name": entry.name, "shape": list(entry.shape), "dtype": entry.dtype}
    if entry.stored != entry.dtype:
        item["stored"] = entry.stored
    if entry.kept is not None:
        item["kept"] = entry.kept
        item |= {"mask": True} if entry.gaps is None else {"gaps": entry.gaps}
    if entry.column:
        item["column"] = True
    if entry.codebook:
        item |= {"codebook": entry.codebook, "bits": entry.bits}
    return item
