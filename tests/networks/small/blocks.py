"""Small networks after well-known transformers, written by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..zoo import Zoo, floats, tokens

BLOCKS = Zoo()
SEQUENCE = floats((3, 7, 10))
IMAGE = floats((2, 3, 24, 16))
VOCABULARY, CLASSES = 37, 11
WORDS = tokens(VOCABULARY, (3, 7))


@BLOCKS(IMAGE)
class VisionTransformer(nn.Module):
    """Patches by a convolution, a class token, learned positions, pre-norm blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.patch, self.token = nn.Conv2d(3, 20, 8, 8), nn.Parameter(torch.randn(1, 1, 20))
        self.place = nn.Parameter(torch.randn(1, 7, 20))
        self.norms = nn.ModuleList([nn.LayerNorm(20) for _ in range(5)])
        self.qkv = nn.ModuleList([nn.Linear(20, 60) for _ in range(2)])
        self.project = nn.ModuleList([nn.Linear(20, 20) for _ in range(2)])
        self.up = nn.ModuleList([nn.Linear(20, 44) for _ in range(2)])
        self.down = nn.ModuleList([nn.Linear(44, 20) for _ in range(2)])
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        for i in range(2):
            b, t, c = x.shape
            qkv = self.qkv[i](self.norms[i](x)).reshape(b, t, 3, self.heads, c // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            x = x + self.project[i](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))
            x = x + self.down[i](F.gelu(self.up[i](self.norms[2 + i](x))))
        return self.head(self.norms[4](x)[:, 0])


@BLOCKS(IMAGE)
class SwinWindows(nn.Module):
    """Shifted windows with a table of relative biases, then merged patches."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.window = 3, 2
        self.patch, self.norms = nn.Conv2d(3, 18, 4, 4), nn.ModuleList([nn.LayerNorm(18), nn.LayerNorm(18)])
        self.qkv, self.project, self.table = (
            nn.Linear(18, 54),
            nn.Linear(18, 18),
            nn.Parameter(torch.randn(9, 3)),
        )
        where = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        gap = (where[:, :, None] - where[:, None]) + 1
        self.register_buffer("index", gap[0] * 3 + gap[1])
        self.up, self.down = nn.Linear(18, 40), nn.Linear(40, 18)
        self.merge_norm, self.merge = nn.LayerNorm(72), nn.Linear(72, 28, bias=False)
        self.head = nn.Linear(28, CLASSES)

    def attend(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(t, t, -1).permute(2, 0, 1)
        weights = torch.softmax(q * (c // self.heads) ** -0.5 @ k.mT + bias.unsqueeze(0), -1)
        return self.project((weights @ v).transpose(1, 2).reshape(b, t, c))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        s = self.window
        y = torch.roll(self.norms[0](x), (-1, -1), (1, 2))
        y = y.view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        y = self.attend(y).view(b, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(y, (1, 1), (1, 2))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.head(self.merge(self.merge_norm(x)).mean((1, 2)))


@BLOCKS(floats((2, 18, 6, 4)))
class ConvAttention(nn.Module):
    """CvT: depthwise convolutions make q, k and v; keys and values at half the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.stem = nn.Conv2d(18, 24, 1)
        self.deep = nn.ModuleList([nn.Conv2d(24, 24, 3, s, 1, groups=24, bias=False) for s in (1, 2, 2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(24) for _ in range(3)])
        self.layers = nn.ModuleList([nn.Linear(24, w) for w in (20, 20, 28)])
        self.project, self.head = nn.Linear(28, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        made = []
        for deep, norm, linear in zip(self.deep, self.norms, self.layers, strict=True):
            flat = norm(deep(x)).flatten(2).transpose(1, 2)
            made.append(linear(flat).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        y = F.scaled_dot_product_attention(*made, scale=0.3).transpose(1, 2).flatten(2)
        return self.head(x.flatten(2).transpose(1, 2) + self.project(y))


@BLOCKS(WORDS)
class BertBlock(nn.Module):
    """Post-norm, three embeddings added up, a pooler, head sizes as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size, self.all = 4, 6, 24
        self.word, self.place, self.kind = (
            nn.Embedding(VOCABULARY, 24),
            nn.Embedding(9, 24),
            nn.Embedding(2, 24),
        )
        self.norms = nn.ModuleList([nn.LayerNorm(24, 1e-12) for _ in range(3)])
        self.query, self.key, self.value, self.dense = (nn.Linear(24, 24) for _ in range(4))
        self.up, self.down, self.pool = nn.Linear(24, 40), nn.Linear(40, 24), nn.Linear(24, 30)
        self.head = nn.Linear(30, CLASSES)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.heads, self.size).permute(0, 2, 1, 3)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(ids.size(1)).unsqueeze(0)
        x = self.norms[0](self.word(ids) + self.place(places) + self.kind(torch.zeros_like(ids)))
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        weights = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / self.size**0.5, -1)
        y = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        x = self.norms[1](self.dense(y.view(*y.size()[:-2], self.all)) + x)
        x = self.norms[2](self.down(F.gelu(self.up(x))) + x)
        return x, self.head(torch.tanh(self.pool(x[:, 0])))


class Conv1D(nn.Module):
    """GPT-2's linear layer: its weight is transposed, its width an attribute."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.nf = width
        self.weight, self.bias = nn.Parameter(torch.randn(inside, width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


@BLOCKS(WORDS)
class Gpt2Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size, self.split = 4, 6, 24
        self.word, self.place = nn.Embedding(VOCABULARY, 24), nn.Embedding(9, 24)
        self.norms = nn.ModuleList([nn.LayerNorm(24) for _ in range(3)])
        self.qkv, self.project, self.up, self.down = (
            Conv1D(72, 24),
            Conv1D(24, 24),
            Conv1D(40, 24),
            Conv1D(24, 40),
        )
        self.register_buffer("mask", torch.ones(9, 9).tril().bool().view(1, 1, 9, 9), persistent=False)
        self.head = nn.Linear(24, VOCABULARY, bias=False)
        self.head.weight = self.word.weight

    def forward(self, ids: Tensor) -> Tensor:
        t = ids.shape[1]
        x = self.word(ids) + self.place(torch.arange(t))
        q, k, v = (
            z.view(*z.shape[:2], self.heads, self.size).transpose(1, 2)
            for z in self.qkv(self.norms[0](x)).split(self.split, 2)
        )
        scores = (q @ k.mT) / v.size(-1) ** 0.5
        scores = torch.where(self.mask[:, :, :t, :t], scores, torch.finfo(scores.dtype).min)
        y = (torch.softmax(scores, -1) @ v).transpose(1, 2).contiguous().view(*x.shape[:2], -1)
        x = x + self.project(y)
        return self.head(self.norms[2](x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))))


class ScaleNorm(nn.Module):
    """T5's and Llama's RMSNorm, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@BLOCKS(WORDS)
class T5Block(nn.Module):
    """No scale, biases by buckets of distance, inner width apart from the model's, gated ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size, self.inner = 4, 7, 28
        self.word, self.buckets = nn.Embedding(VOCABULARY, 18), nn.Embedding(8, 4)
        self.norms = nn.ModuleList([ScaleNorm(18) for _ in range(3)])
        self.q, self.k, self.v = (nn.Linear(18, 28, bias=False) for _ in range(3))
        self.o, self.wi_0, self.wi_1 = (nn.Linear(*s, bias=False) for s in ((28, 18), (18, 40), (18, 40)))
        self.wo, self.head = nn.Linear(40, 18, bias=False), nn.Linear(18, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word(ids)
        b, t, _ = x.shape
        y = self.norms[0](x)
        q, k, v = (f(y).view(b, -1, self.heads, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        place = torch.arange(t)
        bias = self.buckets((place[None] - place[:, None]).abs().clamp(max=7)).permute(2, 0, 1).unsqueeze(0)
        weights = torch.softmax(torch.matmul(q, k.transpose(3, 2)) + bias, -1)
        y = torch.matmul(weights, v).transpose(1, 2).contiguous().view(b, -1, self.inner)
        x = x + self.o(y)
        y = self.norms[1](x)
        return self.head(self.norms[2](x + self.wo(F.relu(self.wi_0(y)) * self.wi_1(y))) * 18**-0.5)


def rotate(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


def rotary(t: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angle = torch.arange(t)[:, None] / 100 ** (torch.arange(0, size, 2) / size)
    both = torch.cat([angle, angle], -1).to(dtype)
    return both.cos(), both.sin()


@BLOCKS(WORDS)
class LlamaBlock(nn.Module):
    """Grouped queries, rotary positions, RMSNorm, SwiGLU, an explicit scale and mask."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shared, self.size = 6, 2, 4
        self.word, self.norms = nn.Embedding(VOCABULARY, 18), nn.ModuleList([ScaleNorm(18) for _ in range(3)])
        self.q, self.k, self.v = (nn.Linear(18, w, bias=False) for w in (24, 8, 8))
        self.o, self.gate, self.up = (nn.Linear(*s, bias=False) for s in ((24, 18), (18, 40), (18, 40)))
        self.down, self.head = nn.Linear(40, 18, bias=False), nn.Linear(18, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word(ids)
        b, t, _ = x.shape
        y = self.norms[0](x)
        q, k, v = (f(y).view(b, t, -1, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        cos, sin = rotary(t, self.size, x.dtype)
        q, k = q * cos + rotate(q) * sin, k * cos + rotate(k) * sin
        times = self.heads // self.shared
        k, v = (z[:, :, None].expand(b, self.shared, times, t, self.size) for z in (k, v))
        k, v = k.reshape(b, self.heads, t, self.size), v.reshape(b, self.heads, t, self.size)
        mask = torch.full((t, t), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
        weights = torch.softmax(q @ k.transpose(2, 3) * self.size**-0.5 + mask, -1)
        x = x + self.o((weights @ v).transpose(1, 2).contiguous().reshape(b, t, -1))
        y = self.norms[1](x)
        return self.head(self.norms[2](x + self.down(F.silu(self.gate(y)) * self.up(y))))


@BLOCKS(WORDS)
class ParallelBlock(nn.Module):
    """GPT-J: attention and MLP beside each other, interleaved rotary over a part of the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.turned = 4, 4
        self.word, self.norm = nn.Embedding(VOCABULARY, 18), nn.LayerNorm(18)
        self.qkv, self.o = nn.Linear(18, 72, bias=False), nn.Linear(24, 18, bias=False)
        self.up, self.down, self.head = nn.Linear(18, 40), nn.Linear(40, 18), nn.Linear(18, VOCABULARY)

    def turn(self, x: Tensor) -> Tensor:
        cos, sin = (z.view(-1, 2, 2).transpose(1, 2).flatten(1) for z in rotary(x.shape[2], 4, x.dtype))
        near, far = x[..., : self.turned], x[..., self.turned :]
        crossed = torch.stack([-near[..., 1::2], near[..., ::2]], -1).flatten(-2)
        return torch.cat([near * cos + crossed * sin, far], -1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word(ids)
        y = self.norm(x)
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in self.qkv(y).chunk(3, -1))
        z = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)
        return self.head(x + self.o(z.transpose(1, 2).flatten(2)) + self.down(F.gelu(self.up(y))))


@BLOCKS(WORDS)
class LatentAttention(nn.Module):
    """DeepSeek: keys and values from a low-rank latent, rotary positions in a part of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.plain, self.turned, self.size = 4, 5, 2, 6
        self.word, self.norm = nn.Embedding(VOCABULARY, 18), nn.LayerNorm(18)
        self.q, self.down_kv = nn.Linear(18, 28, bias=False), nn.Linear(18, 10 + 2, bias=False)
        self.latent_norm, self.up_kv = nn.RMSNorm(10), nn.Linear(10, 44, bias=False)
        self.o, self.head = nn.Linear(24, 18, bias=False), nn.Linear(18, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word(ids)
        b, t, _ = x.shape
        y = self.norm(x)
        near, far = self.q(y).view(b, t, self.heads, -1).transpose(1, 2).split([self.plain, self.turned], -1)
        latent, turned = self.down_kv(y).split([10, self.turned], -1)
        both = self.up_kv(self.latent_norm(latent)).view(b, t, self.heads, -1).transpose(1, 2)
        k, v = both.split([self.plain, self.size], -1)
        cos, sin = rotary(t, 2, x.dtype)
        turned = turned.view(b, 1, t, self.turned)
        far, turned = far * cos + rotate(far) * sin, turned * cos + rotate(turned) * sin
        q, k = torch.cat([near, far], -1), torch.cat([k, turned.expand(-1, self.heads, -1, -1)], -1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, -1)
        return self.head(x + self.o(y))


@BLOCKS(SEQUENCE)
class ConformerBlock(nn.Module):
    """Half-step feed-forwards around attention with normed queries and a gated depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.stem = 4, nn.Linear(10, 18)
        self.norms = nn.ModuleList([nn.LayerNorm(18) for _ in range(3)])
        self.up, self.down = nn.Linear(18, 40), nn.Linear(40, 18)
        self.qkv, self.o, self.norm = nn.Linear(18, 72), nn.Linear(24, 18), nn.RMSNorm(6)
        self.gate, self.deep = nn.Conv1d(18, 52, 1), nn.Conv1d(26, 26, 3, padding=1, groups=26)
        self.batch, self.mix, self.out = nn.BatchNorm1d(26), nn.Conv1d(26, 18, 1), nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + 0.5 * self.down(F.silu(self.up(self.norms[0](x))))
        q, k, v = self.qkv(self.norms[1](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.norm(q), self.norm(k), v)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = F.glu(self.gate(self.norms[2](x).transpose(1, 2)), 1)
        return self.out(x + self.mix(F.silu(self.batch(self.deep(y)))).transpose(1, 2))
