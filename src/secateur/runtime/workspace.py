"""Where the values of a compiled network lie, and the numbers that its instructions read.

The arena is one array of float32. A value takes one plane a channel, which holds the images of the batch
with zeros between rows and between images, as many as convolutions pad: they read the border there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .codes import COPY, WIDTH, ZERO

_DTYPES = {  # of the numbers, in the order in which the kernels take them
    "values": np.float32,
    "addresses": np.uint32,
    "pointers": np.uint64,
    "constants": np.float32,
    "masks": np.uint8,
}
_WIDEST = 255  # what a byte holds


class UnsupportedError(ValueError):
    """The program has an operator, or a form of one, that the compiled kernels lack."""


@dataclass(frozen=True)
class Place:
    """Where a value lies: entry (c, n, y, x) at offset + c plane + n image + y row + x.

    ``before``: how many floats ahead of it are its own, and zeros. ``flat``: features, without y and x.
    ``callers``: in the caller's arrays, not in the arena.
    """

    offset: int
    channels: int
    height: int
    width: int
    plane: int
    image: int
    row: int
    flat: bool
    before: int = 0
    callers: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels,) if self.flat else (self.channels, self.height, self.width)


class Workspace:
    """The table of instructions so far, its numbers, and who holds which part of the arena.

    ``border``: how many rows and columns of zeros lie between images.
    """

    def __init__(self, batch: int, border: tuple[int, int]) -> None:
        self.batch, self.border = batch, border
        self.table: list[list[int]] = []
        self._numbers: dict[str, list[np.ndarray]] = {name: [] for name in _DTYPES}
        self.size = 0
        self._known: dict[Any, int] = {}
        self._free: list[tuple[int, int]] = []

    # -- the arena ----------------------------------------------------------------------------------------

    def new(self, shape: Sequence[int]) -> Place:
        """Take a place for a value (features,), (channels, length) or (channels, height, width)."""
        channels, height, width = sizes(shape)
        if len(shape) == 1:
            plane = 1 if self.batch == 1 else rounded(self.batch)
            return Place(self._take(channels * plane), channels, 1, 1, plane, 1, 1, True)
        down, right = self.border
        row = width + right
        image = (height + down) * row
        plane = rounded(self.batch * image)
        before = rounded(down * row + right)  # what the first image finds above itself
        offset = self._take(before + channels * plane) + before
        if before:
            self.table.append([ZERO, offset - before, before])
        return Place(offset, channels, height, width, plane, image, row, False, before)

    def like(self, place: Place, channels: int) -> Place:
        """Take a place with planes like another's, for what no convolution reads."""
        return replace(place, offset=self._take(channels * place.plane), channels=channels, before=0)

    def outside(self, offset: int, shape: Sequence[int]) -> Place:
        """The place of a value in the caller's own arrays, image after image."""
        channels, height, width = sizes(shape)
        area = height * width
        flat = len(shape) == 1
        return Place(offset, channels, height, width, area, math.prod(shape), width, flat, callers=True)

    def _take(self, floats: int) -> int:
        floats = rounded(floats)
        for i, (start, size) in enumerate(self._free):
            if size >= floats:
                self._free[i : i + 1] = [(start + floats, size - floats)] if size > floats else []
                return start
        start, self.size = self.size, self.size + floats
        return start

    def release(self, place: Place) -> None:
        """Give a place back."""
        if place.callers:
            return
        size = place.before + rounded(place.channels * place.plane)
        merged: list[tuple[int, int]] = []
        for start, length in sorted([*self._free, (place.offset - place.before, size)]):
            if merged and sum(merged[-1]) == start:
                start, length = merged[-1][0], merged.pop()[1] + length
            merged.append((start, length))
        self._free = merged

    # -- numbers ------------------------------------------------------------------------------------------

    def numbers(self) -> tuple[np.ndarray, ...]:
        """Return the values, addresses, pointers, constants and masks, each joined to one array."""
        joined = (
            np.concatenate([np.zeros(0), *self._numbers[name]]).astype(_DTYPES[name]) for name in _DTYPES
        )
        return tuple(map(np.ascontiguousarray, joined))

    def _add(self, name: str, part: np.ndarray) -> int:
        """Keep some numbers more; return where they will begin."""
        start = sum(map(len, self._numbers[name]))
        self._numbers[name].append(part)
        return start

    def constant(self, *numbers: float) -> int:
        """Return where these numbers stand one after the other."""
        if numbers not in self._known:
            self._known[numbers] = self._add("constants", np.array(numbers, np.float32))
        return self._known[numbers]

    def vector(self, tensor: np.ndarray | None) -> int:
        """Return where a tensor's entries stand, -1 for none."""
        return -1 if tensor is None else self._add("constants", tensor.reshape(-1))

    def rows(self, numbers: np.ndarray, rows: np.ndarray, count: int, addresses: np.ndarray) -> int:
        """Store the non-zeros of ``count`` rows, given in order; return where their pointers begin."""
        ends = np.cumsum(np.bincount(rows, minlength=count))
        start = self._add("values", numbers)
        self._add("addresses", addresses)
        return self._add("pointers", start + np.concatenate([[0], ends]))

    def columns(
        self, numbers: np.ndarray, columns: np.ndarray, count: int, rows: np.ndarray
    ) -> tuple[int, int]:
        """Store the non-zeros of ``count`` columns, given in order, with the gap to the row before in a byte;
        where it is too wide for one, a zero stands between. Return where their pointers begin, and how far
        the gaps lie behind the values."""
        first = np.r_[True, columns[1:] != columns[:-1]][: len(columns)]
        gaps = np.where(first, rows, np.diff(rows, prepend=0))
        zeros, gaps = gaps // _WIDEST, gaps % _WIDEST
        ends = np.cumsum(zeros + 1)
        filled, wide = np.zeros(int((zeros + 1).sum()), np.float32), np.full(int((zeros + 1).sum()), _WIDEST)
        filled[ends - 1], wide[ends - 1] = numbers, gaps
        start = self._add("constants", filled)
        shift = self._add("masks", wide.astype(np.uint8)) - start
        stops = np.cumsum(np.bincount(columns, zeros + 1, minlength=count)).astype(np.int64)
        return self._add("pointers", start + np.concatenate([[0], stops])), shift

    def mask(self, place: Place) -> int:
        """Return where the bytes are that say which columns of a plane belong to an image; -1: all."""
        if place.flat or place.plane == self.batch * place.height * place.width:
            return -1
        key = ("mask", place.plane, place.image, place.row, place.height, place.width)
        if key not in self._known:
            columns = np.arange(place.plane)
            inside = columns % place.image
            mask = (columns < self.batch * place.image) & (inside // place.row < place.height)
            self._known[key] = self._add(
                "masks", (mask & (inside % place.row < place.width)).astype(np.uint8)
            )
        return self._known[key]

    # -- copies -------------------------------------------------------------------------------------------

    def copy(self, source: Place, to: Place) -> None:
        """Copy the entries that both places have."""
        dims = [
            (min(source.channels, to.channels), source.plane, to.plane),
            (self.batch, source.image, to.image),
            (min(source.height, to.height), source.row, to.row),
            (min(source.width, to.width), 1, 1),
        ]
        self.block(dims, source, to)

    def block(self, dims: Sequence[tuple[int, int, int]], source: Place, to: Place) -> None:
        """Copy up to four dims of (size, stride, stride there), the longest strides there outermost, from
        where one place begins to where another does."""
        joined: list[tuple[int, int, int]] = []
        for size, down, up in sorted((dim for dim in dims if dim[0] != 1), key=lambda dim: -dim[2]):
            if joined and joined[-1][1:] == (size * down, size * up):  # two dims, one after the other as one
                size *= joined.pop()[0]
            joined.append((size, down, up))
        lengths, downs, ups = zip(*([(1, 1, 1)] * (4 - len(joined)) + joined), strict=True)
        row = [COPY, int(source.callers), int(to.callers), source.offset, to.offset]
        self.table.append([*row, *lengths, *downs, *ups])

    def clear(self, place: Place) -> Place:
        """Fill a place with zeros."""
        self.table.append([ZERO, place.offset, place.channels * place.plane])
        return place


def sizes(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (channels, height, width) of a value's shape without the batch."""
    if not 1 <= len(shape) <= 3:
        raise UnsupportedError(f"a value of shape {tuple(shape)}")
    channels, height, width = {1: (*shape, 1, 1), 2: (shape[0], 1, shape[-1]), 3: tuple(shape)}[len(shape)]
    return channels, height, width


def rounded(floats: int) -> int:
    """Return the next multiple of what the narrowest kernel writes."""
    return -(-floats // WIDTH) * WIDTH
