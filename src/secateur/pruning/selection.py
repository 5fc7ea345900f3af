"""Exact selection over any number of score tensors, in constant memory.

Scores are read in chunks and never concatenated. Floats are mapped to integers of the same order,
and histograms of 16 bits at a time find the k-th smallest value and the number of ties at it: two
passes for 32 bits, one for 16, four for 64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BudgetError, MaskError, NonFiniteError
from secateur.pruning.parts import Part, adding

CHUNK = 1 << 18
_FEW = 1 << 22  # ties whose hashes are kept
_MINUS_ZERO = 32767  # its place in the histogram of the high bits, below 0.0
_INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads in here, and with as many as before afterwards.

    Many small operations on the CPU want one: to wait for others at the end of each gains next to nothing,
    and on a busy machine costs up to a hundred times the work itself.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class Scores:
    """The importance of every entry of one tensor, computed some rows at a time.

    ``rows(slice)`` gives the scores of those indices of dim 0. Entries that ``masked`` marks are
    already gone: they rank below every other. ``input_dim`` runs over the layer's inputs.

    ``part``: of a tensor that several processes hold, the part that lies here; then rows, and what is
    masked, are those of the part, and shape and counts those of the whole.
    """

    name: str
    shape: tuple[int, ...]
    rows: Callable[[slice], Tensor]
    masked: Tensor | None = field(default=None)
    input_dim: int = 1
    part: Part | None = None

    @property
    def own_shape(self) -> tuple[int, ...]:
        return self.shape if self.part is None else self.part.shape

    @property
    def counted(self) -> bool:
        return self.part is None or self.part.counted

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def number_masked(self) -> int:
        return 0 if self.masked is None else self.total(int(torch.count_nonzero(self.masked)))

    @property
    def dtype(self) -> torch.dtype:
        return self.rows(slice(0, 1)).dtype

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, scores of those rows), about ``CHUNK`` entries at a time."""
        number = math.prod(self.own_shape)
        if not number:
            return
        length = self.own_shape[0]
        height = max(1, CHUNK // (number // length))
        for start in range(0, length, height):
            rows = slice(start, min(start + height, length))
            score = self.rows(rows)
            if self.masked is not None:
                score = score.masked_fill(self.masked[rows], -torch.inf)
            yield rows, score

    def whole(self) -> Tensor:
        parts = [score for _, score in self.chunks()] or [self.rows(slice(0, 0))]
        return self.gathered(torch.cat(parts).reshape(self.own_shape))

    def gathered(self, part: Tensor) -> Tensor:
        """Return a tensor of the whole shape, from the part of each process."""
        return part if self.part is None else self.part.whole(part)

    def own(self, whole: Tensor) -> Tensor:
        """Return this process's part of a tensor of the whole shape."""
        return whole if self.part is None else self.part.own(whole)

    def total(self, number: int) -> int:
        """Return the sum of what each process counts in its own part."""
        return number if self.part is None else self.part.total(number)

    def ranked_by(self, values: Tensor) -> Scores:
        """Return other scores, of the whole tensor, in the place of these; nothing is masked in them."""
        return replace(self, rows=self.own(values).__getitem__, masked=None)


@dataclass(frozen=True)
class Cut:
    """What goes from one tensor: every score under ``value``, and ``ties`` of those equal to it.

    A budget gives one for each tensor. Ties fall by a fixed hash of their position, so that they spread, and
    fall the same on every machine.

    Args:
        value: the score under which everything goes.
        ties: how many of the scores equal to ``value`` go too; None for a cut given by value (Std,
            Threshold), where ties stay.
        tied: how many scores are equal to ``value``.
        requested: the share of this tensor that was asked for, where one was.
        note: why nothing goes from this tensor, where the masks are to say so.

    Example:
        >>> import torch, secateur as sc
        >>> class Half:  # a budget of one's own: what is under the mean of each tensor's scores
        ...     def __call__(self, scores, weights):
        ...         return {name: sc.Cut(float(s.whole().mean())) for name, s in scores.items()}
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[1.0, 2.0, 3.0, 10.0]])
        >>> sc.prune(layer, sc.Magnitude(), Half())["weight"]
        tensor([[False, False, False,  True]])
    """

    value: float
    ties: int | None = None
    tied: int = 0
    requested: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.value, (Real, Tensor)) or self.value != self.value:
            raise BudgetError(f"Cut({self.value!r}): value is a score, a number that is no NaN")

    @on_threads(1)
    def pruned(self, scores: Scores) -> Tensor:
        """Return the bool tensor of what is pruned. Ties fall by a fixed hash of their position."""
        out: Tensor | None = None
        under = torch.le if self.ties and self.ties == self.tied else torch.lt
        last = self._last_tie(scores) if self.ties and self.ties < self.tied else None
        for rows, score in scores.chunks():
            if out is None:
                out = torch.empty(scores.own_shape, dtype=torch.bool, device=score.device)
            if self.ties is None:
                _refuse_non_finite(scores, rows, score)
            score = _comparable(score)
            under(score, self.value, out=out[rows])
            if last is not None:
                tied, hashes = self._tied(scores, rows, score)
                out[rows].view(-1)[tied[hashes <= last]] = True
        return torch.empty(scores.own_shape, dtype=torch.bool) if out is None else out

    def _last_tie(self, scores: Scores) -> int:
        """Return the hash up to which ties go."""

        def tied_hashes() -> Iterator[Tensor]:
            for rows, score in scores.chunks() if scores.counted else ():
                yield self._tied(scores, rows, _comparable(score))[1]

        few = list(tied_hashes()) if self.tied <= _FEW else None
        return _kth(tied_hashes if few is None else lambda: few, self.ties or 0, 64, [scores]).key

    def _tied(self, scores: Scores, rows: slice, score: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places of the ties among some rows, and the hashes of these places in the whole."""
        places = _places(score == self.value)
        return places, _hash(_positions(scores, rows, places))


@dataclass(frozen=True)
class PatternCut:
    """What goes from one tensor under N:M: all but the ``keep`` best of every ``of`` along ``dim``."""

    keep: int
    of: int
    dim: int
    requested: float | None = None

    def pruned(self, scores: Scores) -> Tensor:
        for rows, score in scores.chunks():
            _refuse_non_finite(scores, rows, score)
        score = scores.whole()
        score = score.movedim(self.dim, -1)
        groups = score.reshape(-1, self.of)
        hashes = lambda: _hash(torch.arange(groups.numel(), device=groups.device)).view_as(groups)  # noqa: E731
        pruned = _lowest(groups, self.of - self.keep, hashes)
        return scores.own(pruned.reshape(score.shape).movedim(-1, self.dim)).contiguous()


@dataclass(frozen=True)
class RowCut:
    """What goes from one tensor where each output loses as many weights: its ``number`` lowest.

    ``dim`` runs over the layer's inputs: outputs lie along dim 0, along dim 1 where that one is 0, and along
    the first two where it is 2, in a stack of matrices.
    """

    number: int
    dim: int
    requested: float | None = None

    @on_threads(1)
    def pruned(self, scores: Scores) -> Tensor:
        out: Tensor | None = None
        for rows, score in scores.chunks():
            _refuse_non_finite(scores, rows, score)
        # Where inputs come first every chunk would hold a part of each row, and so does a process's part.
        whole = self.dim == 0 or scores.part is not None
        for rows, score in [(slice(0, scores.shape[0]), scores.whole())] if whole else scores.chunks():
            if out is None:
                out = torch.empty(scores.shape, dtype=torch.bool, device=score.device)
            matrix = self._rows(score)
            if scores.masked is not None:
                self._check_room(scores.name, matrix)
            gone = _lowest(matrix, self.number, partial(self._hashes, rows, score))
            turned = gone.view(self._by_output(score).shape)
            self._by_output(out[rows])[:] = turned
        return (
            torch.empty(scores.own_shape, dtype=torch.bool) if out is None else scores.own(out).contiguous()
        )

    def _hashes(self, rows: slice, score: Tensor) -> Tensor:
        width = score.numel() // max(1, score.shape[0])
        return self._rows(
            _hash(torch.arange(score.numel(), device=score.device) + rows.start * width).view_as(score)
        )

    def _by_output(self, entries: Tensor) -> Tensor:
        return entries.transpose(0, 1) if self.dim == 0 else entries

    def _rows(self, entries: Tensor) -> Tensor:
        """Return entries as a matrix (outputs, what each reads)."""
        turned = self._by_output(entries)
        return turned.flatten(0, 1) if self.dim == 2 else turned.flatten(1)

    def _check_room(self, name: str, matrix: Tensor) -> None:
        most = int((matrix == -torch.inf).sum(1).max())
        if most > self.number:
            raise MaskError(
                f"{name}: {most} weights of one output are masked already and the budget takes {self.number} "
                "of each; ask for at least as much as before, or prune without masks="
            )


AnyCut = Cut | PatternCut | RowCut


def _lowest(matrix: Tensor, number: int, hashes: Callable[[], Tensor]) -> Tensor:
    """Return which are the ``number`` lowest of each row; ties by their hashes, asked for where there are."""
    if number == 0:
        return torch.zeros_like(matrix, dtype=torch.bool)
    matrix = _comparable(matrix)
    value = matrix.kthvalue(number, dim=1, keepdim=True).values
    under, tied = matrix < value, matrix == value
    left = number - under.sum(1, keepdim=True)
    crowded = (tied.sum(1, keepdim=True) > left).flatten().nonzero().flatten()
    if len(crowded):
        among = hashes()[crowded].masked_fill(~tied[crowded], torch.iinfo(torch.int64).max)
        tied[crowded] &= among.argsort(1).argsort(1) < left[crowded]
    return under | tied


class _Kth(NamedTuple):
    """The k-th smallest key, how many of those equal to it go, and how many there are."""

    key: int
    ties: int
    tied: int


@on_threads(1)
def cut_globally(scores: Iterable[Scores], count: int) -> dict[str, Cut]:
    """Return the cuts that take exactly the ``count`` lowest scores of all the tensors together.

    Ties at the cut are shared out over the tensors in proportion to how many each has.
    """
    scores = list(scores)
    number = sum(s.numel for s in scores)
    if not 0 <= count <= number:
        raise BudgetError(f"cannot take {count} of {number} entries")
    if count == 0:
        return {s.name: Cut(-torch.inf, 0) for s in scores}
    dtype = reduce(torch.promote_types, (s.dtype for s in scores))
    if dtype not in _INTEGERS:
        raise BudgetError(f"scores of dtype {dtype} cannot be ranked; give floating-point scores")
    integer = _INTEGERS[dtype]
    bits = torch.iinfo(integer).bits

    minus_zeros = False

    def keys(one_zero: bool = False) -> Iterator[Tensor]:
        for s in scores:
            for _, score in s.chunks() if s.counted else ():
                score = score.to(dtype)
                yield (score + 0.0 if one_zero else score).view(integer)

    def check(histogram: Tensor) -> None:
        nonlocal minus_zeros
        minus_zeros = bool(histogram[_MINUS_ZERO])
        _refuse_hidden(histogram, scores, dtype)

    kth = _kth(keys, count, bits, scores, check, signed_magnitude=True)
    if minus_zeros:  # rank again with -0.0 and 0.0 as one value
        kth = _kth(lambda: keys(one_zero=True), count, bits, scores, signed_magnitude=True)
    value = _value(kth.key, dtype)
    tied = {scores[0].name: kth.tied} if len(scores) == 1 else _tied(scores, value)
    ties = apportion(kth.ties, tied)
    return {s.name: Cut(_rounded_up(value, s.dtype), ties[s.name], tied[s.name]) for s in scores}


def _select(values: Tensor, where: Tensor) -> Tensor:
    """``values[where]``, through numpy on the CPU, where it takes a quarter of the time."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy()[where.numpy()])
    return values[where]


def apportion(number: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Share ``number`` out over ``sizes`` in proportion, by largest remainders; none exceeds its size."""
    total = sum(sizes.values())
    if number == total:
        return dict(sizes)
    shares = {name: number * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: -(number * sizes[name] % total))
    for name in by_remainder[: number - sum(shares.values())]:
        shares[name] += 1
    return shares


@on_threads(1)
def count_below(scores: Scores, cut: Cut) -> int:
    """Return how many entries ``cut`` takes from ``scores``."""
    below = sum(int(torch.count_nonzero(_comparable(s) < cut.value)) for _, s in scores.chunks())
    return scores.total(below) + (cut.ties or 0)


def _kth(
    keys: Callable[[], Iterable[Tensor]],
    k: int,
    bits: int,
    scores: list[Scores],
    check: Callable[[Tensor], None] | None = None,
    signed_magnitude: bool = False,
) -> _Kth:
    """Find the k-th smallest (from 1) of signed integers, 16 bits a pass from the top; where the ``scores``
    that they are made of lie on several processes, of those of all.

    ``signed_magnitude``: the integers are the bits of floats, where the order of negative numbers
    runs backwards; the small histograms are turned round, never the data. The key returned is in
    the order's own terms, so that it compares as an integer.
    """
    prefix, left, tied, negative = 0, k, 0, False
    for shift in range(bits - 16, -1, -16):
        first = shift == bits - 16
        histogram = torch.zeros(65536, dtype=torch.int64)
        for chunk in keys():
            high = chunk.reshape(-1) >> shift if shift else chunk.reshape(-1)
            if not first:
                wanted = prefix ^ _ones(bits - shift - 16) if negative else prefix
                high = _select(high, (high >> 16) == wanted)
            digits = high.to(torch.int32) & 0xFFFF
            histogram += torch.bincount(digits, minlength=65536).cpu()
        adding((s.part for s in scores), histogram, f"the {k} lowest")
        if first:  # from bit patterns 0..65535 to the order of signed numbers
            histogram = histogram.roll(32768)
            if signed_magnitude:
                histogram[:32768] = histogram[:32768].flip(0)
            if check is not None:
                check(histogram)
        elif negative:
            histogram = histogram.flip(0)
        cumulative = histogram.cumsum(0)
        digit = int(torch.searchsorted(cumulative, left))
        left -= int(cumulative[digit - 1]) if digit else 0
        tied = int(histogram[digit])
        prefix = digit - 32768 if first else (prefix << 16) | digit
        negative = signed_magnitude and prefix < 0
    return _Kth(prefix, left, tied)


def _ones(bits: int) -> int:
    """The bits that the order of negative floats turns over: all but the sign."""
    return (1 << (bits - 1)) - 1


def _value(key: int, dtype: torch.dtype) -> float:
    integer = _INTEGERS[dtype]
    bits = key if key >= 0 else key ^ torch.iinfo(integer).max
    return float(torch.tensor(bits, dtype=integer).view(dtype))


def _rounded_up(value: float, dtype: torch.dtype) -> float:
    """Return the least number of ``dtype`` (float32 for 16 bits) from ``value``: what is under the
    one is under the other, though comparing would round a float64 value to nearest."""
    wide = torch.promote_types(dtype, torch.float32)
    rounded = torch.tensor(value, dtype=wide)
    if float(rounded) < value:
        rounded = rounded.nextafter(torch.tensor(torch.inf, dtype=wide))
    return float(rounded)


def _comparable(score: Tensor) -> Tensor:
    """Upcast 16-bit scores, so that comparing them with a cut does not round the cut."""
    return score.float() if score.element_size() < 4 else score


def _tied(scores: list[Scores], value: float) -> dict[str, int]:
    """Return by name how many scores are equal to ``value``."""
    numbers = torch.zeros(len(scores), dtype=torch.int64)
    for at, s in enumerate(scores):
        if s.counted and _rounded_up(value, s.dtype) == value:
            numbers[at] = sum(int(torch.count_nonzero(_comparable(c) == value)) for _, c in s.chunks())
    adding((s.part for s in scores), numbers, "ties")
    return {s.name: int(number) for s, number in zip(scores, numbers, strict=True)}


def _refuse_hidden(histogram: Tensor, scores: list[Scores], dtype: torch.dtype) -> None:
    """Read off the first histogram, for nothing, whether any score is a NaN or an infinity."""
    integer = _INTEGERS[dtype]
    infinity = int(torch.tensor(torch.inf, dtype=dtype).view(integer)) >> (torch.iinfo(integer).bits - 16)
    outside = int(histogram[: 32768 - infinity].sum() + histogram[32768 + infinity :].sum())
    if outside > sum(s.number_masked for s in scores):
        for s in scores:
            for rows, score in s.chunks():
                _refuse_non_finite(s, rows, score)


def _refuse_non_finite(scores: Scores, rows: slice, score: Tensor) -> None:
    finite = torch.isfinite(score)
    if scores.masked is not None:
        finite |= scores.masked[rows]
    if not finite.all():
        raise NonFiniteError(f"{scores.name}: its weights or scores hold a NaN or an infinity")


def _places(which: Tensor) -> Tensor:
    """Return the places of what is true in a tensor read as one row, through numpy on the CPU."""
    if which.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(which.numpy()))
    return which.reshape(-1).nonzero().flatten()


def _positions(scores: Scores, rows: slice, places: Tensor) -> Tensor:
    """Return where entries at some places among some rows lie in the whole tensor, so that ties fall alike
    however it is cut up."""
    if scores.part is not None:
        return scores.part.positions(rows, places)
    return places + rows.start * (scores.numel // scores.shape[0])


def _hash(position: Tensor) -> Tensor:
    """Mix int64 positions one to one (the finaliser of splitmix64), alike on every device."""
    h = position * -7046029254386353131
    h = (h ^ ((h >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    h = (h ^ ((h >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return h ^ ((h >> 31) & 0x1FFFFFFFF)
