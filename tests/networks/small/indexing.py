"""Networks that gather, scatter and write in place, message passing among them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..zoo import Arguments, Zoo, floats

INDEXING = Zoo()


def _graph() -> Arguments:
    """Nodes with features, and edges between them."""
    return (torch.randn(9, 6), torch.randint(9, (2, 22))), {}


class Passing(nn.Module):
    """Two rounds of message passing: each edge's message is made from both its ends, then gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(6, 18), nn.Linear(14, 4)
        self.message1, self.update1 = nn.Linear(36, 20), nn.Linear(38, 14)
        self.message2, self.update2 = nn.Linear(28, 22), nn.Linear(36, 14)

    def gather(self, messages: Tensor, target: Tensor, nodes: int) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x, (source, target) = self.embed(x).relu(), edges
        m = self.message1(torch.cat([x[source], x[target]], 1)).relu()
        x = self.update1(torch.cat([x, self.gather(m, target, len(x))], 1)).relu()
        m = self.message2(torch.cat([x.index_select(0, source), x.index_select(0, target)], 1)).relu()
        return self.out(self.update2(torch.cat([x, self.gather(m, target, len(x))], 1)).relu())


@INDEXING(_graph)
class IndexAdd(Passing):
    def gather(self, messages: Tensor, target: Tensor, nodes: int) -> Tensor:
        return torch.zeros(nodes, messages.shape[1], dtype=messages.dtype).index_add_(0, target, messages)


@INDEXING(_graph)
class ScatterAdd(Passing):
    def gather(self, messages: Tensor, target: Tensor, nodes: int) -> Tensor:
        index = target.unsqueeze(1).expand_as(messages)
        return messages.new_zeros(nodes, messages.shape[1]).scatter_add(0, index, messages)


@INDEXING(_graph)
class ScatterReduceMax(Passing):
    def gather(self, messages: Tensor, target: Tensor, nodes: int) -> Tensor:
        index = target.unsqueeze(1).expand_as(messages)
        return messages.new_zeros(nodes, messages.shape[1]).scatter_reduce(0, index, messages, "amax")


@INDEXING(_graph)
class IndexReduceMean(Passing):
    def gather(self, messages: Tensor, target: Tensor, nodes: int) -> Tensor:
        out = messages.new_zeros(nodes, messages.shape[1])
        return out.index_reduce(0, target, messages, "mean", include_self=False)


@INDEXING(_graph)
class IndexPutAccumulate(Passing):
    def gather(self, messages: Tensor, target: Tensor, nodes: int) -> Tensor:
        out = messages.new_zeros(nodes, messages.shape[1])
        return out.index_put((target,), messages, accumulate=True)


@INDEXING(_graph)
class SoftmaxOverNeighbours(Passing):
    """Attention over the edges that end in a node (GAT), by exponentials and their scattered sums."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.ModuleDict({"20": nn.Linear(20, 1), "22": nn.Linear(22, 1)})
        self.turn = 0

    def gather(self, messages: Tensor, target: Tensor, nodes: int) -> Tensor:
        score = self.scores[("20", "22")[self.turn % 2]](messages).squeeze(1).exp()
        self.turn += 1
        total = score.new_zeros(nodes).index_add(0, target, score)
        weighted = messages * (score / total[target]).unsqueeze(1)
        return messages.new_zeros(nodes, messages.shape[1]).index_add(0, target, weighted)


_IMAGE = floats((2, 3, 12, 10))


class Wide(nn.Module):
    """Two convolutions with what a class does ``between`` them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 18, 3, padding=1), nn.Conv2d(18, 14, 3, padding=1)
        self.last = nn.Linear(14, 5)

    def between(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.between(self.first(x).relu())).relu().mean((2, 3)))


@INDEXING(_IMAGE)
class SliceWrite(Wide):
    def between(self, h: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        out[:, :, 1:] = h[:, :, :-1]  # shifted by a row
        return out + h


@INDEXING(_IMAGE)
class ShiftInPlace(Wide):
    """A part of the channels is shifted along the batch (TSM)."""

    def between(self, h: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        out[1:, :6] = h[:-1, :6]
        out[:, 6:] = h[:, 6:]
        return out


@INDEXING(_IMAGE)
class SliceZeroed(Wide):
    def between(self, h: Tensor) -> Tensor:
        h = h.clone()
        h[:, :, :2] = 0.0
        return h


@INDEXING(_IMAGE)
class SliceAdded(Wide):
    def between(self, h: Tensor) -> Tensor:
        h = h.clone()
        h[..., 1:-1] += h[..., :-2] * 0.5
        return h


@INDEXING(_IMAGE)
class SliceScatter(Wide):
    def between(self, h: Tensor) -> Tensor:
        return h.slice_scatter(h[:, :, 2:6] * 2, dim=2, start=2, end=6)


@INDEXING(_IMAGE)
class SelectScatter(Wide):
    def between(self, h: Tensor) -> Tensor:
        return h.select_scatter(h[:, :, 3] * 2, dim=2, index=0)


@INDEXING(_IMAGE)
class IndexCopy(Wide):
    def between(self, h: Tensor) -> Tensor:
        return h.index_copy(2, torch.tensor([3, 0]), h[:, :, 5:7])


@INDEXING(_IMAGE)
class IndexFill(Wide):
    def between(self, h: Tensor) -> Tensor:
        return h.index_fill(3, torch.tensor([1, 4]), 0.0)


@INDEXING(_IMAGE)
class GatherRows(Wide):
    """Each channel's rows in the order of their own means."""

    def between(self, h: Tensor) -> Tensor:
        order = h.mean(3, keepdim=True).argsort(2)
        return h.gather(2, order.expand_as(h)) + torch.take_along_dim(h, order, 2)


@INDEXING(_IMAGE)
class MaskedRows(Wide):
    """Positions of an image as a list, without those that are dark."""

    def between(self, h: Tensor) -> Tensor:
        bright = h.sum(1) > 0
        out = torch.zeros_like(h).permute(0, 2, 3, 1)
        out[bright] = h.permute(0, 2, 3, 1)[bright] * 2
        return out.permute(0, 3, 1, 2)


@INDEXING(_IMAGE)
class IndexedInTheMiddle(Wide):
    def between(self, h: Tensor) -> Tensor:
        rows = torch.tensor([[0, 3, 1], [2, 2, 5]])
        return h[:, :, rows].mean(2) + h[:, :, rows[0], torch.tensor([1, 2, 3])].unsqueeze(-1)
