"""What a packed file holds: its header, checked before anything is read for it.

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
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .streams import CODECS, FileError, Stream

MAGIC = b"\x89SECAT1\n"
PRELUDE = struct.Struct("<8sIII")
ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
}  # fmt: skip
FLOATS = ("float64", "float32", "float16", "bfloat16")
Stored = dict[str, tuple[str, memoryview, int]]
_HEADER_SHARE = 64  # JSON can take some 40 bytes of memory for one of text
_ENTRY_KEYS = {"name", "shape", "dtype", "stored", "kept", "gaps", "mask", "column", "codebook", "bits"}
_HEADER_KEYS = {"tensors", "streams", "tied", "values", "metadata", "model"}


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


def parse(data: bytes, limit: int = 1 << 32) -> Contents:
    """Check the bytes of a file as far as its header goes; raises FileError as ``read`` does."""
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
        text = Stream("header", "lzma3", body[:stored], size).take(size, last=True)
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
