"""Compiled kernels: one call runs a whole network, over the weights that are left.

Numba compiles them at their first call, and keeps the machine code in ``__pycache__`` beside this file, or
in the user's cache where that cannot be written. What they run is a table of integers (``planning.py``).

A value of the network is a set of planes, one a channel: the images of a batch one after the other, rows
with room for the padding between them. So a weight of a convolution is one address relative to where
a plane begins, and the border is read where it stands (there is no im2col).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from . import codes
from .activations import ACTIVATIONS
from .row_kernel import column_kernel, row_kernel, transpose_kernel

_FAST = {"contract", "reassoc", "nsz", "arcp"}
_row_64, _row_32, _row_16 = row_kernel(64), row_kernel(32), row_kernel(codes.WIDTH)
_transpose, _add_column = transpose_kernel(), column_kernel()


def _kept(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function, and keep its code where there is a place for it."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
        except RuntimeError:  # neither this folder nor the user's cache can be written
            return numba.njit(nogil=True, error_model="numpy", **options)(function)

    return compiled


exact, fast = _kept(), _kept(fastmath=_FAST)


def _chosen() -> Callable[..., Any]:
    """Return the function (kind, number, a, b) that applies the activation at place ``kind`` of the table.

    It is not kept itself, but as a part of what calls it: who edits a kernel elsewhere touches this file.
    """

    def inner(function: Callable[..., Any]) -> Callable[..., Any]:
        return numba.njit(nogil=True, error_model="numpy", fastmath=_FAST)(function)

    def with_one(code: int, kernel: Callable[..., Any], others: Callable[..., Any]) -> Callable[..., Any]:
        def choose(kind: int, number: Any, a: Any, b: Any) -> Any:
            return kernel(number, a, b) if kind == code else others(kind, number, a, b)

        return inner(choose)

    chosen = inner(lambda kind, number, a, b: number)
    for code, row in enumerate(ACTIVATIONS.values()):
        if row.kernel is not None:
            chosen = with_one(code, inner(row.kernel), chosen)
    return chosen


activation_of = _chosen()


@exact
def run_table(
    table: np.ndarray,
    values: np.ndarray,
    addresses: np.ndarray,
    pointers: np.ndarray,
    constants: np.ndarray,
    masks: np.ndarray,
    arena: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
) -> None:
    """Run the rows of ``table``, an instruction each, on ``arena``; ``x`` is read and ``y`` written."""
    for i in range(len(table)):
        op = table[i]
        code = op[0]
        if code == codes.ROWS:
            _run_rows(op, values, addresses, pointers, constants, masks, arena)
        elif code == codes.VECTOR:
            _run_vector(op, pointers, constants, masks, arena)
        elif code == codes.COLUMNS:
            _run_columns(op, constants, arena)
        elif code == codes.COPY:
            _run_copy(op, x if op[1] == 1 else arena, y if op[2] == 1 else arena)
        elif code == codes.ZERO:
            arena[op[1] : op[1] + op[2]] = 0
        elif code == codes.POOL:
            _run_pool(op, arena)
        elif code == codes.COMBINE:
            _run_combine(op, constants, masks, arena)
        elif code == codes.SCALE:
            _run_scale(op, constants, masks, arena)
        elif code == codes.ACTIVATE:
            _run_activate(op, constants, masks, arena)
        elif code == codes.SOFTMAX:
            _run_softmax(op, arena)


@fast
def _run_copy(op: np.ndarray, source: np.ndarray, target: np.ndarray) -> None:
    """Copy a block of four dims, each with its stride on either side."""
    start, to = op[3], op[4]
    transposed = op[11] == 1 and op[12] != 1 and op[16] == 1 and min(op[7], op[8]) >= codes.WIDTH
    for a in range(op[5]):
        for b in range(op[6]):
            here, there = start + a * op[9] + b * op[10], to + a * op[13] + b * op[14]
            if transposed:
                _run_transposition(op, here, there, source, target)
                continue
            for c in range(op[7]):
                s, t = here + c * op[11], there + c * op[15]
                if op[12] == 1 and op[16] == 1:
                    for d in range(op[8]):
                        target[t + d] = source[s + d]
                elif op[12] == 2 and op[16] == 1:  # the usual stride, known: these become vectors
                    for d in range(op[8]):
                        target[t + d] = source[s + 2 * d]
                else:
                    for d in range(op[8]):
                        target[t + d * op[16]] = source[s + d * op[12]]


@fast
def _run_transposition(op: np.ndarray, start: int, to: int, source: np.ndarray, target: np.ndarray) -> None:
    """Copy the last two dims of a block, of which one is dense here and the other there, by tiles."""
    rows, columns, down, up = op[7], op[8], op[12], op[15]
    whole_rows, whole_columns = rows // codes.WIDTH * codes.WIDTH, columns // codes.WIDTH * codes.WIDTH
    source_at, target_at = source.ctypes.data, target.ctypes.data
    for c in range(0, whole_rows, codes.WIDTH):
        for d in range(0, whole_columns, codes.WIDTH):
            from_, there = source_at + 4 * (start + c + d * down), target_at + 4 * (to + c * up + d)
            _transpose(from_, 4 * down, there, 4 * up)
    for c in range(rows):
        for d in range(whole_columns if c < whole_rows else 0, columns):
            target[to + c * up + d] = source[start + c + d * down]


@fast
def _run_rows(
    op: np.ndarray,
    values: np.ndarray,
    addresses: np.ndarray,
    pointers: np.ndarray,
    constants: np.ndarray,
    masks: np.ndarray,
    arena: np.ndarray,
) -> None:
    """Sparse rows times planes: ``out[o] = act(sum of v * plane[address] + bias[o] + residual[o])``.

    A tile of columns stays in registers over all non-zeros of a row, and its source in the first cache
    over all rows. Masked columns (the borders that a padded convolution reads) are written as zeros.
    """
    source, out, rows, length, stride, first, bias, mask, residual, bounds = op[1:11]
    low, high = constants[bounds], constants[bounds + 1]
    value_at, address_at = values.ctypes.data, addresses.ctypes.data
    base, mask_at = arena.ctypes.data, masks.ctypes.data + mask
    column = 0
    while column < length:
        left = length - column
        width = 64 if left >= 64 else (32 if left >= 32 else codes.WIDTH)
        for o in range(rows):
            start, stop = pointers[first + o], pointers[first + o + 1]
            offset = o * stride + column
            shift = constants[bias + o] if bias >= 0 else np.float32(0)
            more = base + 4 * (residual + offset) if residual >= 0 else 0
            where = mask_at + column if mask >= 0 else 0
            from_, to = base + 4 * (source + column), base + 4 * (out + offset)
            if width == 64:
                _row_64(value_at, address_at, start, stop, from_, to, shift, more, where, low, high)
            elif width == 32:
                _row_32(value_at, address_at, start, stop, from_, to, shift, more, where, low, high)
            else:
                _row_16(value_at, address_at, start, stop, from_, to, shift, more, where, low, high)
        column += width


@fast
def _run_vector(
    op: np.ndarray, pointers: np.ndarray, constants: np.ndarray, gaps: np.ndarray, arena: np.ndarray
) -> None:
    """A sparse matrix by columns times one vector: columns where the vector is zero are not read.

    Nor are those where it is as its first entry, where these are more, as the background of a normalised
    image: W x = W (x - b) + b W 1.
    """
    source, inputs, outputs, first, bias, bounds, sums = op[1], op[3], op[4], op[5], op[6], op[7], op[8]
    values_at, out_at = constants.ctypes.data, arena.ctypes.data + 4 * op[2]
    gaps_at = gaps.ctypes.data + op[9]  # that of the value at 0, were it the column's
    out = arena[op[2] : op[2] + outputs]
    _start_with(out, constants, bias)
    background, zeros, same = arena[source], 0, 0
    for i in range(inputs):
        zeros += arena[source + i] == 0
        same += arena[source + i] == background
    if same > zeros and abs(background) < np.inf:
        for o in range(outputs):
            out[o] += background * constants[sums + o]
    else:
        background = np.float32(0)
    for i in range(inputs):
        xi = arena[source + i] - background
        if xi != 0:
            start, stop = pointers[first + i], pointers[first + i + 1]
            _add_column(values_at + 4 * start, gaps_at + start, stop - start, xi, out_at)
    _bound(out, constants[bounds], constants[bounds + 1])


@fast
def _run_columns(op: np.ndarray, constants: np.ndarray, arena: np.ndarray) -> None:
    """As ``_run_vector`` for a dense matrix, its columns one after the other."""
    source, inputs, outputs, first, bias, bounds = op[1], op[3], op[4], op[5], op[6], op[7]
    out = arena[op[2] : op[2] + outputs]
    _start_with(out, constants, bias)
    for i in range(inputs):
        xi = arena[source + i]
        if xi != 0:
            column = constants[first + i * outputs : first + (i + 1) * outputs]
            for o in range(outputs):
                out[o] += column[o] * xi
    _bound(out, constants[bounds], constants[bounds + 1])


@fast
def _start_with(out: np.ndarray, constants: np.ndarray, bias: int) -> None:
    for o in range(len(out)):
        out[o] = constants[bias + o] if bias >= 0 else np.float32(0)


@fast
def _bound(out: np.ndarray, low: Any, high: Any) -> None:
    for o in range(len(out)):
        v = out[o]
        out[o] = low if v < low else (high if v > high else v)


@fast
def _run_pool(op: np.ndarray, arena: np.ndarray) -> None:
    """The largest or the mean over windows; what lies outside of an image is no part of them, or, for
    a mean with ``counted`` > 0, a zero that counts: the divisor is then ``counted``."""
    source, out, channels, batch, height, width = op[1:7]
    plane, image, row, out_plane, out_image, out_row = op[7:13]
    out_height, out_width, ky, kx, sy, sx, py, px, largest, counted = op[13:23]
    whole = py == 0 and px == 0 and (out_height - 1) * sy + 2 <= height and (out_width - 1) * sx + 2 <= width
    by_two = largest == 1 and whole and ky == 2 and kx == 2 and sy == 2 and sx == 2
    for c in range(channels):
        for n in range(batch):
            start = source + c * plane + n * image
            if by_two:  # the usual pool, known: this becomes vectors
                for y in range(out_height):
                    top, at = start + 2 * y * row, out + c * out_plane + n * out_image + y * out_row
                    for x in range(out_width):
                        first = top + 2 * x
                        best = arena[first]
                        for v in (arena[first + 1], arena[first + row], arena[first + row + 1]):
                            best = v if v > best or v != v else best
                        arena[at + x] = best
                continue
            for y in range(out_height):
                y0, y1 = max(0, y * sy - py), min(height, y * sy - py + ky)
                for x in range(out_width):
                    x0, x1 = max(0, x * sx - px), min(width, x * sx - px + kx)
                    at = out + c * out_plane + n * out_image + y * out_row + x
                    if largest == 1:
                        best = np.float32(-np.inf)
                        for i in range(y0, y1):
                            for j in range(x0, x1):
                                v = arena[start + i * row + j]
                                if v > best or v != v:
                                    best = v
                        arena[at] = best
                    else:
                        total = np.float32(0)
                        for i in range(y0, y1):
                            for j in range(x0, x1):
                                total += arena[start + i * row + j]
                        arena[at] = total / (counted if counted > 0 else (y1 - y0) * (x1 - x0))


@exact
def _run_combine(op: np.ndarray, constants: np.ndarray, masks: np.ndarray, arena: np.ndarray) -> None:
    """Two values of one shape, entry by entry, then clamped; zeros where there is no image."""
    a, b, out, channels, plane, mask, kind = op[1:8]
    low, high = constants[op[8]], constants[op[8] + 1]
    for c in range(channels):
        for k in range(plane):
            j = c * plane + k
            if mask >= 0 and masks[mask + k] == 0:
                arena[out + j] = 0
                continue
            if kind == codes.ADD:
                v = arena[a + j] + arena[b + j]
            elif kind == codes.SUBTRACT:
                v = arena[a + j] - arena[b + j]
            elif kind == codes.MULTIPLY:
                v = arena[a + j] * arena[b + j]
            else:
                v = arena[a + j] / arena[b + j]
            arena[out + j] = low if v < low else (high if v > high else v)


@exact
def _run_scale(op: np.ndarray, constants: np.ndarray, masks: np.ndarray, arena: np.ndarray) -> None:
    """A factor and a shift a channel, then clamped; zeros where there is no image."""
    source, out, channels, plane, mask, scale, shift = op[1:8]
    low, high = constants[op[8]], constants[op[8] + 1]
    for c in range(channels):
        for k in range(plane):
            j = c * plane + k
            v = arena[source + j] * constants[scale + c] + constants[shift + c]
            v = low if v < low else (high if v > high else v)
            arena[out + j] = v if mask < 0 or masks[mask + k] != 0 else np.float32(0)


@exact
def _run_activate(op: np.ndarray, constants: np.ndarray, masks: np.ndarray, arena: np.ndarray) -> None:
    """An activation in place of its input; zeros where there is no image."""
    source, out, channels, plane, mask, kind = op[1:7]
    a, b = constants[op[7]], constants[op[7] + 1]
    for c in range(channels):
        for k in range(plane):
            j = c * plane + k
            if mask < 0 or masks[mask + k] != 0:
                arena[out + j] = activation_of(kind, arena[source + j], a, b)
            else:
                arena[out + j] = 0


@exact
def _run_softmax(op: np.ndarray, arena: np.ndarray) -> None:
    """Softmax (or its logarithm) over the channels of every column."""
    source, out, channels, plane, logarithm = op[1:6]
    for j in range(plane):
        top = arena[source + j]
        for c in range(1, channels):
            top = max(top, arena[source + c * plane + j])
        total = np.float32(0)
        for c in range(channels):
            total += np.exp(arena[source + c * plane + j] - top)
        for c in range(channels):
            v = arena[source + c * plane + j] - top
            arena[out + c * plane + j] = v - np.log(total) if logarithm == 1 else np.exp(v) / total
