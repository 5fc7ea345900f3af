"""Attention written by hand, and the stock module between two layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FusedHeads(nn.Module):
    """Three heads of four channels behind one projection to queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 3, 4
        self.qkv, self.out = nn.Linear(7, 36), nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))


class GroupedQuery(nn.Module):
    """Six query heads on two key-value heads of four channels."""

    def __init__(self, scale: float | None = 0.5) -> None:
        super().__init__()
        self.scale = scale
        self.q = nn.Linear(7, 24, bias=False)
        self.k, self.v = nn.Linear(7, 8, bias=False), nn.Linear(7, 8, bias=False)
        self.o = nn.Linear(24, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (part(x).view(b, t, -1, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.o(y.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Attention written by hand, and an MLP, each around a shortcut."""

    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.heads = 3

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))
        return x + self.down(F.gelu(self.up(self.n2(x))))


def attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.Linear(5, 12), layer, nn.Linear(12, 3)).double()
