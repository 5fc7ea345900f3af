"""Read a packed network with numpy alone: no PyTorch, no pickle, nothing in the file is ever run.

``contents.py`` says what a file holds, byte by byte.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from .contents import FLOATS, ITEM_BYTES, Entry, bytes_of, parse
from .streams import FileError, Stream


class Sparse(NamedTuple):
    """A tensor that is mostly zero: ``values`` at the flat C-order ``positions`` (int64, ascending)."""

    shape: tuple[int, ...]
    positions: np.ndarray
    values: np.ndarray


def read(
    source: str | os.PathLike[str] | bytes, *, limit: int = 1 << 32, sparse: bool = False
) -> tuple[dict[str, Any], Any]:
    """Return the tensors of a packed file as C-ordered arrays, and its metadata. Tied tensors are one array,
    and bfloat16, which numpy lacks, comes as float32, which holds all its values.

    Args:
        source: a path, or the bytes of a file.
        limit: the bytes that all arrays at their dense size and the work on the largest may take, the file
            itself apart; what the header claims is held against it before any memory is taken.
        sparse: tensors that are stored sparse come as ``Sparse``.

    Returns:
        The tensors by name, and whatever JSON the writer added.

    Raises:
        FileError: for a file that is missing, damaged, of another kind or beyond ``limit``.
        ImportError: for one that needs zstandard where that is not installed.

    Example:
        >>> import tempfile, torch, secateur as sc
        >>> path = tempfile.mkdtemp() + "/net.secateur"
        >>> _ = sc.pack({"w": torch.eye(2)}, path, metadata="mine")
        >>> from secateur.runtime.unpacking import read
        >>> read(path)[0]["w"].tolist(), read(path)[1]
        ([[1.0, 0.0], [0.0, 1.0]], 'mine')
    """
    contents = parse(bytes_of(source, limit), limit)
    streams = {name: Stream(name, *stored) for name, stored in contents.streams.items()}
    tensors: dict[str, Any] = {}
    for entry in contents.entries:
        found = {stream: streams[stream].take(size) for stream, size in entry.pieces() if size}
        tensors[entry.name] = _tensor(entry, found, sparse)
    for stream in streams.values():
        stream.take(0, last=True)
    for name, first in contents.tied.items():
        tensors[name] = tensors[first]
    return tensors, contents.metadata


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
