"""Read a packed network with numpy alone: no PyTorch, no pickle, nothing in the file is ever run.

A file, all integers little-endian:

    8 bytes   MAGIC
    4 bytes   CRC-32 of all that follows
    4 bytes   bytes of the header as stored
    4 bytes   bytes of the header as JSON; where the two differ it is LZMA-compressed ("lzma3" below)
    header    {"tensors": [entry, ...], "streams": {name: [codec, bytes], ...}} and, where there are any,
              "tied": {name: name of a tensor}, "values" (what the writer was asked for),
              "metadata" and "model" (any JSON)
    streams   one after the other, as the header lists them

An entry is {"name", "shape", "dtype"} and what differs from a plain tensor: "stored", the dtype of the
values in the file; "kept", how many entries are stored, all others being zero, with either "gaps" (bytes)
or "mask": true; "column": true, entries in column order; "codebook", the number of shared values, with
"bits" an index. Of every stream the tensors take their pieces in the order of their entries:

    <dtype>:<i>  byte i, 0 the highest, of each value, or of each value of the codebook; of a float the
                 bits are first rotated left by one, which leaves the sign last and the exponent whole
    gaps         the zeros before each kept entry; 255 stands for 255 zeros and no entry
    mask         one bit an entry, set where it is kept, the first in the highest bit
    index:<b>    for each kept entry the index of its value, in b bits, the first in the highest ones

Column order goes through dim 0 first, all other dims taken as one. Codecs: "raw", "zstd", and "lzma<lc>":
LZMA2 with no container, pb = lp = 0, its dictionary as large as the stream but between 4 KiB and 8 MiB.
"""

from __future__ import annotations

import json
import lzma
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

MAGIC = b"\x89SECAT1\n"
PRELUDE = struct.Struct("<8sIII")
ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
}  # fmt: skip
FLOATS = ("float64", "float32", "float16", "bfloat16")
Stored = dict[str, tuple[str, memoryview, int]]
CODECS = ("raw", "zstd", "lzma0", "lzma1", "lzma2", "lzma3", "lzma4")
LARGEST_WINDOW = 1 << 23
_HEADER_SHARE = 64  # JSON can take some 40 bytes of memory for one of text
_ENTRY_KEYS = {"name", "shape", "dtype", "stored", "kept", "gaps", "mask", "column", "codebook", "bits"}
_HEADER_KEYS = {"tensors", "streams", "tied", "values", "metadata", "model"}


class FileError(ValueError):
    """A file that is damaged, of another kind, or larger than allowed."""


class Sparse(NamedTuple):
    """A tensor that is mostly zero: ``values`` at the flat C-order ``positions`` (int64, ascending)."""

    shape: tuple[int, ...]
    positions: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Entry:
    """How one tensor is stored; ``kept`` None: every entry is; ``gaps`` None: a mask says which are."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str
    kept: int | None = None
    gaps: int | None = None
    column: bool = False
    codebook: int = 0
    bits: int = 0

    @property
    def number(self) -> int:
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        """How many values are stored, or how many indices where there is a codebook."""
        return self.number if self.kept is None else self.kept

    def pieces(self) -> Iterator[tuple[str, int]]:
        """Yield (stream, bytes) of what the tensor takes, in the order in which it is read."""
        if self.kept is not None and self.gaps is not None:
            yield "gaps", self.gaps
        elif self.kept is not None:
            yield "mask", -(-self.number // 8)
        if self.codebook:
            yield f"index:{self.bits}", -(-self.count * self.bits // 8)
        for plane in range(ITEM_BYTES[self.stored]):
            yield f"{self.stored}:{plane}", self.codebook or self.count


@dataclass(frozen=True)
class Contents:
    """The header of a file, checked, and its streams: (codec, compressed bytes, bytes) by name."""

    entries: tuple[Entry, ...]
    tied: dict[str, str]
    values: Any
    metadata: Any
    model: Any
    streams: Stored


def read(
    source: str | os.PathLike[str] | bytes, *, limit: int = 1 << 32, sparse: bool = False
) -> tuple[dict[str, Any], Any]:
    """Return the tensors of a file (a path, or its bytes) as C-ordered arrays, and its metadata.

    numpy has no bfloat16: such tensors come as float32, which holds all their values. Tied tensors are
    one array. With ``sparse=True`` a tensor that is stored sparse comes as a :class:`Sparse`.
    ``limit``: the bytes that all arrays at their dense size and the work on the largest may take, the file
    itself apart; what the header claims is held against it before any memory is taken.

    Raises FileError for a file that is missing, damaged, of another kind or beyond ``limit``; ImportError
    for one that needs zstandard where that is not installed.
    """
    contents = parse(bytes_of(source, limit), limit)
    streams = {name: _Stream(name, *stored) for name, stored in contents.streams.items()}
    tensors: dict[str, Any] = {}
    for entry in contents.entries:
        found = {stream: streams[stream].take(size) for stream, size in entry.pieces() if size}
        tensors[entry.name] = _tensor(entry, found, sparse)
    for stream in streams.values():
        stream.take(0, last=True)
    for name, first in contents.tied.items():
        tensors[name] = tensors[first]
    return tensors, contents.metadata


def parse(data: bytes, limit: int = 1 << 32) -> Contents:
    """Check the bytes of a file as far as its header goes; raises FileError as :func:`read` does."""
    if len(data) < PRELUDE.size:
        raise FileError(f"{len(data)} bytes are too few for a packed network; the file is cut or another's")
    magic, crc, stored, size = PRELUDE.unpack_from(data)
    body = memoryview(data)[PRELUDE.size :]
    if magic != MAGIC:
        raise FileError("not a packed network: it does not begin as one")
    if stored > len(body) or stored > size:
        raise FileError(f"the header has {stored} bytes and the file {len(body)}; it is cut or damaged")
    if size > limit // _HEADER_SHARE:
        raise FileError(f"the header has {size} bytes; limit={limit} allows {limit // _HEADER_SHARE}")
    if zlib.crc32(body) != crc:
        raise FileError("the checksum is wrong; the file is damaged")
    text: bytes | memoryview = body[:stored]
    if stored != size:
        text = _Stream("header", "lzma3", body[:stored], size).take(size, last=True)
    try:
        header = _typed(json.loads(bytes(text)), dict, "header")
    except (ValueError, RecursionError) as error:
        raise FileError(f"the header is not a JSON object: {error}") from error
    if header.keys() - _HEADER_KEYS:
        raise FileError(f"the header has keys other than {', '.join(sorted(_HEADER_KEYS))}")
    entries = tuple(_entry(item, limit) for item in _typed(header.get("tensors"), list, "tensors"))
    names = {entry.name for entry in entries}
    if len(names) != len(entries):
        raise FileError("two tensors have one name")
    tied = _typed(header.get("tied", {}), dict, "tied")
    for name, first in tied.items():
        if name in names or not isinstance(first, str) or first not in names:
            raise FileError(f"{name!r} cannot be tied to {first!r}")
    _check_memory(entries, limit)
    streams = _streams(_typed(header.get("streams"), dict, "streams"), entries, body[stored:])
    return Contents(entries, tied, header.get("values"), header.get("metadata"), header.get("model"), streams)


# -- the header --------------------------------------------------------------------------------------


def bytes_of(source: str | os.PathLike[str] | bytes, limit: int) -> bytes:
    if isinstance(source, bytes):
        return source
    if os.path.exists(source) and not (os.path.isfile(source) or os.path.isdir(source)):
        raise FileError(f"{os.fspath(source)}: a pipe, a socket or a device, not a file")
    try:
        if os.path.getsize(source) > 2 * limit:
            raise OSError(f"twice as large as limit={limit} or more")
        with open(source, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise FileError(f"{os.fspath(source)}: {getattr(error, 'strerror', None) or error}") from error


def _typed(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise FileError(f"{what} is {_shown(value)}; it is a {kind.__name__}")
    return value


def _between(value: Any, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise FileError(f"{what} is {_shown(value)}; it is an integer from {low} to {high}")
    return value


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, (dict, list)) else repr(value)[:80]


def _entry(item: Any, limit: int) -> Entry:
    if _typed(item, dict, "a tensor").keys() - _ENTRY_KEYS:
        raise FileError(f"a tensor has keys other than {', '.join(sorted(_ENTRY_KEYS))}")
    name = _typed(item.get("name"), str, "the name of a tensor")
    shape = tuple(_typed(item.get("shape"), list, f"{name}: the shape"))
    if len(shape) > 32:
        raise FileError(f"{name}: {len(shape)} dims; 32 are the most")
    room = limit
    for size in shape:  # a shape with a 0 in it must not overflow numpy's product of the others either
        room //= max(1, _between(size, 0, room, f"{name}: with limit={limit}, a dim of its shape"))
    dtype, stored = item.get("dtype"), item.get("stored", item.get("dtype"))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise FileError(f"{name}: the dtype is {_shown(dtype)}; it is one of {', '.join(ITEM_BYTES)}")
    if stored != dtype and not (stored == "float16" and dtype in ("float32", "float64")):
        raise FileError(f"{name}: values of dtype {dtype} cannot be stored as {_shown(stored)}")
    number = math.prod(shape)
    kept, gaps, codebook, bits = item.get("kept"), item.get("gaps"), item.get("codebook", 0), 0
    if kept is not None:
        _between(kept, 0, number, f"{name}: 'kept'")
        if gaps is not None:
            _between(gaps, kept, kept + (number - kept) // 255, f"{name}: 'gaps'")
    if (kept is not None) != (gaps is not None) + (item.get("mask", False) is True):
        raise FileError(f"{name}: one of 'gaps' and 'mask' goes with 'kept', and neither without it")
    count = number if kept is None else kept
    if codebook != 0:
        _between(codebook, 1, min(256, count), f"{name}: 'codebook'")
        bits = _between(item.get("bits"), (codebook - 1).bit_length(), 8, f"{name}: 'bits'")
    column = _typed(item.get("column", False), bool, f"{name}: 'column'")
    return Entry(name, shape, dtype, str(stored), kept, gaps, column, codebook, bits)


def _check_memory(entries: tuple[Entry, ...], limit: int) -> None:
    dense, work = 0, 0
    for entry in entries:
        size = 4 if entry.dtype == "bfloat16" else ITEM_BYTES[entry.dtype]
        need = entry.count * (size + 2 * ITEM_BYTES[entry.stored]) + entry.number * size * entry.column
        if entry.kept is not None:
            need += 40 * entry.kept + 9 * (entry.gaps or entry.number // 8)
        dense += 128 + max(entry.number * size, (entry.kept or 0) * (8 + size))
        work = max(work, need)
        if dense + work > limit:
            raise FileError(f"{entry.name} {entry.shape}: with it the tensors take more than limit={limit}")


def _streams(listed: dict[str, Any], entries: tuple[Entry, ...], payload: memoryview) -> Stored:
    """Return (codec, compressed bytes, bytes) of each stream: exactly those that the entries need."""
    sizes: dict[str, int] = {}
    for entry in entries:
        for stream, size in entry.pieces():
            if size:
                sizes[stream] = sizes.get(stream, 0) + size
    if listed.keys() != sizes.keys():
        raise FileError("the streams are not those that the tensors need")
    found: Stored = {}
    for name, item in listed.items():
        if type(item) is not list or len(item) != 2 or item[0] not in CODECS:
            raise FileError(f"stream {name}: {_shown(item)} is not [codec, bytes], {', '.join(CODECS)}")
        stored = _between(item[1], 1, len(payload), f"the bytes of stream {name}")
        found[name] = (item[0], payload[:stored], sizes[name])
        payload = payload[stored:]
    if len(payload):
        raise FileError(f"{len(payload)} bytes follow the last stream; the file is damaged")
    return found


# -- the streams -------------------------------------------------------------------------------------


def lzma_filters(codec: str, size: int) -> list[dict[str, Any]]:
    """Return what ``lzma`` takes for ``codec`` and a stream of ``size`` bytes."""
    window = min(max(size, 4096), LARGEST_WINDOW)
    return [{"id": lzma.FILTER_LZMA2, "dict_size": window, "lc": int(codec[4:]), "lp": 0, "pb": 0}]


class _Stream:
    """Decompresses piece by piece, never more than is asked for."""

    def __init__(self, name: str, codec: str, data: memoryview, size: int) -> None:
        self.name, self.data, self.failures = name, data, (lzma.LZMAError,)
        self.decoder: Any = None
        self.next: Callable[[int], Any] = self._raw if codec == "raw" else self._lzma
        if codec == "zstd":
            try:
                import zstandard
            except ImportError as error:
                raise ImportError("the file is compressed with zstd: pip install zstandard") from error
            self.next = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).stream_reader(data).read
            self.failures = (zstandard.ZstdError,)
        elif codec != "raw":
            self.decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(codec, size))

    def _raw(self, size: int) -> memoryview:
        part, self.data = self.data[:size], self.data[size:]
        return part

    def _lzma(self, size: int) -> bytes:
        data, self.data = self.data, self.data[:0]
        return b"" if self.decoder.eof else self.decoder.decompress(data, size)

    def take(self, size: int, last: bool = False) -> bytes | memoryview:
        """Return the next ``size`` bytes, or raise FileError; after the ``last`` none may be left."""
        parts, missing = [], size
        try:
            while missing and len(part := self.next(missing)):
                parts.append(part)
                missing -= len(part)
            bad = missing or (last and len(self.next(1)))
        except self.failures as error:
            raise FileError(f"stream {self.name} cannot be decompressed: {error}") from error
        ended = self.decoder is None or (self.decoder.eof and not self.decoder.unused_data)
        if bad or (last and not ended):
            raise FileError(f"stream {self.name} is not as long as its tensors need; the file is damaged")
        return parts[0] if len(parts) == 1 else b"".join(parts)


# -- a tensor ----------------------------------------------------------------------------------------


def _tensor(entry: Entry, found: dict[str, bytes | memoryview], sparse: bool) -> Any:
    values = _values(entry, found)
    rows = entry.shape[0] if entry.column and entry.shape else 1
    columns = entry.number // max(1, rows)
    positions = None if entry.kept is None else _positions(entry, found)
    if positions is not None and sparse:
        if entry.column:
            positions = positions % rows * columns + positions // rows
        order = np.argsort(positions)
        return Sparse(entry.shape, positions[order], values[order])
    flat = values if positions is None else np.zeros(entry.number, values.dtype)
    if positions is not None:
        flat[positions] = values
    if entry.column:
        flat = np.ascontiguousarray(flat.reshape(columns, rows).T)
    return flat.reshape(entry.shape)


def _positions(entry: Entry, found: dict[str, bytes | memoryview]) -> np.ndarray:
    """Return where the kept entries are, ascending in the order in which they are stored."""
    if entry.gaps is None:
        bits = np.unpackbits(np.frombuffer(found.get("mask", b""), np.uint8))
        positions = np.flatnonzero(bits[: entry.number])
        if len(positions) != entry.kept or bits[entry.number :].any():
            raise FileError(f"{entry.name}: its mask does not keep {entry.kept} entries")
        return positions
    gaps = np.frombuffer(found.get("gaps", b""), np.uint8)
    ends = gaps < 255
    steps = gaps.astype(np.int64)
    steps += ends
    positions = np.cumsum(steps, out=steps)[ends] - 1
    past = len(gaps) and (not ends[-1] or positions[-1] >= entry.number)
    if past or len(positions) != entry.kept:
        raise FileError(f"{entry.name}: its gaps do not keep {entry.kept} of {entry.number} entries")
    return positions


def _values(entry: Entry, found: dict[str, bytes | memoryview]) -> np.ndarray:
    """Return the stored values, those of a codebook one for each kept entry."""
    size, count = ITEM_BYTES[entry.stored], entry.codebook or entry.count
    planes = np.empty((count, size), np.uint8)
    for plane in range(size if count else 0):  # the highest byte comes first in the file, last here
        planes[:, size - 1 - plane] = np.frombuffer(found[f"{entry.stored}:{plane}"], np.uint8)
    bits = planes.reshape(-1).view(f"<u{size}").astype(f"u{size}", copy=False)
    if entry.stored in FLOATS:
        one, last = bits.dtype.type(1), bits.dtype.type(8 * size - 1)
        bits = bits >> one | bits << last
    if entry.stored == "bool" and count and bits.max() > 1:
        raise FileError(f"{entry.name}: a bool is 0 or 1")
    wide = entry.stored == "bfloat16"
    values = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32) if wide else bits.view(entry.stored)
    with np.errstate(all="ignore"):
        values = values.astype("float32" if entry.dtype == "bfloat16" else entry.dtype, copy=False)
    if not entry.codebook:
        return values
    indices = unpacked(found.get(f"index:{entry.bits}", b""), entry.count, entry.bits)
    if indices.max() >= entry.codebook:
        raise FileError(f"{entry.name}: an index leads past the {entry.codebook} values of its codebook")
    return values[indices]


def unpacked(packed: bytes | memoryview, count: int, bits: int) -> np.ndarray:
    """Return ``count`` indices of ``bits`` bits each as uint8."""
    found, data = np.zeros(count, np.uint8), np.frombuffer(packed, np.uint8)
    block = 1 << 16  # a multiple of 8 indices begins at a byte, and unpacked bits take eight times the room
    for start in range(0, count if bits else 0, block):
        number = min(block, count - start)
        part = np.unpackbits(data[start * bits // 8 :][: -(-number * bits // 8)], count=number * bits)
        wide = np.zeros((number, 8), np.uint8)
        wide[:, 8 - bits :] = part.reshape(number, bits)
        found[start : start + number] = np.packbits(wide, axis=1)[:, 0]
    return found
