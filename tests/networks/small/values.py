"""Forwards whose path depends on values: an export refuses most, a recording takes the example's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..zoo import Arguments, Zoo, floats

VALUES = Zoo()
_ROWS = floats((8, 6))


class Between(nn.Module):
    """Three layers, and before the last what a class does ``between`` them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 20), nn.Linear(20, 15), nn.Linear(15, 3)

    def between(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.second(self.first(x).relu()).relu()))


@VALUES(_ROWS)
class BranchOnMean(Between):
    def between(self, h: Tensor) -> Tensor:
        return h * 2 if h.mean() > 0 else h


@VALUES(_ROWS)
class EarlyExit(Between):
    def between(self, h: Tensor) -> Tensor:
        return h + 1 if (h > 0).float().mean() < 0.99 else h


@VALUES(_ROWS)
class LoopOfCountedSteps(Between):
    def between(self, h: Tensor) -> Tensor:
        for _ in range(int((h.sum(1) > 0).sum())):
            h = (h * 0.9).relu()
        return h


@VALUES(_ROWS)
class AssertsFinite(Between):
    def between(self, h: Tensor) -> Tensor:
        assert torch.isfinite(h).all()
        return h


@VALUES(_ROWS)
class LogsANumber(Between):
    def between(self, h: Tensor) -> Tensor:
        self.last_mean = float(h.mean())
        return h


@VALUES(_ROWS)
class SortsInNumpy(Between):
    def between(self, h: Tensor) -> Tensor:
        return h[torch.from_numpy(np.argsort(h.detach().numpy().mean(1)).copy())]


@VALUES(_ROWS)
class NumbersFromList(Between):
    def between(self, h: Tensor) -> Tensor:
        return h * sum(h.mean(1).tolist())


@VALUES(_ROWS)
class RowsByMask(Between):
    def between(self, h: Tensor) -> Tensor:
        return h[h.sum(1) > h.sum(1).mean()]


@VALUES(_ROWS)
class RowsByNonzero(Between):
    def between(self, h: Tensor) -> Tensor:
        return h[(h.sum(1) > h.sum(1).mean()).nonzero().squeeze(1)]


@VALUES(_ROWS)
class UniqueRows(Between):
    def between(self, h: Tensor) -> Tensor:
        return h[torch.unique((h.sum(1) > 1).long())]


@VALUES(_ROWS)
class MaskedSelect(Between):
    def between(self, h: Tensor) -> Tensor:
        means = h.sum(1)
        return h * torch.masked_select(means, means > means.median()).sum()


@VALUES(_ROWS)
class RepeatInterleave(Between):
    def between(self, h: Tensor) -> Tensor:
        return h.repeat_interleave((h.sum(1) > 1).long() + 1, 0)


@VALUES(_ROWS)
class Bincount(Between):
    def between(self, h: Tensor) -> Tensor:
        return h * torch.bincount((h.sum(1) > 1).long(), minlength=2)[0]


@VALUES(_ROWS)
class WritesByMask(Between):
    def between(self, h: Tensor) -> Tensor:
        h = h.clone()
        h[h.sum(1) > h.sum(1).mean()] = 0.5
        return h


@VALUES(_ROWS)
class WritesEntriesByMask(Between):
    def between(self, h: Tensor) -> Tensor:
        h = h.clone()
        h[h > 1] = 1.0
        return h


def _sequences() -> Arguments:
    return (torch.randn(4, 7, 6), torch.tensor([5, 7, 3, 2])), {}


@VALUES(_sequences, kind=nn.LSTM, name="packed_lstm")
@VALUES(_sequences, kind=nn.GRU, name="packed_gru")
class Packed(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Linear(6, 12), kind(12, 16, 2, batch_first=True)
        self.hidden, self.head = nn.Linear(16, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(x).relu(), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(self.hidden(out).relu())


@VALUES(_ROWS)
class WhileLoud(Between):
    def between(self, h: Tensor) -> Tensor:
        while h.abs().sum() > 5:
            h = h * 0.5
        return h


@VALUES(_ROWS)
class RowsSortedInPython(Between):
    def between(self, h: Tensor) -> Tensor:
        order = sorted(range(len(h)), key=lambda row: float(h[row].sum()))
        return torch.stack([h[row] for row in order])


@VALUES(_ROWS)
class ReadsInInferenceMode(Between):
    def between(self, h: Tensor) -> Tensor:
        with torch.inference_mode():
            positive = float(h.sum()) > 0
        return h * 2 if positive else h
