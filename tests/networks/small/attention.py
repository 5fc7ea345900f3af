"""Small networks around one kind of attention each."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..zoo import Zoo, floats

ATTENTION = Zoo()
SEQUENCE = floats((3, 7, 10))
TWO = floats((3, 7, 10), (3, 9, 13))
CLASSES = 11
WIDTH = 24


class MultiheadNet(nn.Module):
    """nn.MultiheadAttention on a sequence itself."""

    def __init__(self, batch_first: bool = True, masked: bool = False, weights: bool = False) -> None:
        super().__init__()
        self.batch_first, self.weights = batch_first, weights
        self.stem, self.norm = nn.Linear(10, WIDTH), nn.LayerNorm(WIDTH)
        self.attend = nn.MultiheadAttention(WIDTH, 4, batch_first=batch_first)
        self.up, self.down = nn.Linear(WIDTH, 36), nn.Linear(36, CLASSES)
        self.register_buffer("mask", torch.ones(7, 7).triu(1).bool() if masked else None)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x if self.batch_first else x.transpose(0, 1))
        y = self.norm(x)
        y, weights = self.attend(y, y, y, attn_mask=self.mask, need_weights=self.weights)
        y = self.down(F.relu(self.up(x + y)))
        return (y, weights) if self.weights else y


ATTENTION(SEQUENCE, "multihead_batch_first")(MultiheadNet)
ATTENTION(SEQUENCE, "multihead_time_first", batch_first=False)(MultiheadNet)
ATTENTION(SEQUENCE, "multihead_masked", masked=True)(MultiheadNet)
ATTENTION(SEQUENCE, "multihead_with_weights", weights=True)(MultiheadNet)


@ATTENTION(TWO)
class MultiheadCross(nn.Module):
    """Keys and values of other widths, so that q, k and v have weights of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = nn.Linear(10, 24), nn.Linear(13, 18)
        self.attend = nn.MultiheadAttention(24, 4, kdim=18, vdim=18, batch_first=True)
        self.out = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x, memory = F.relu(self.stem(x)), F.relu(self.other(memory))
        return self.out(x + self.attend(x, memory, memory, need_weights=False)[0])


def layer(kind: type, **options: object) -> nn.Module:
    return kind(WIDTH, 4, dim_feedforward=40, batch_first=True, **options)


class EncoderNet(nn.Module):
    """nn.TransformerEncoderLayer, alone or as an nn.TransformerEncoder."""

    def __init__(self, layers: int = 0, norm_first: bool = False, activation: str = "relu") -> None:
        super().__init__()
        one = layer(nn.TransformerEncoderLayer, norm_first=norm_first, activation=activation)
        self.encode = nn.TransformerEncoder(one, layers, enable_nested_tensor=False) if layers else one
        self.stem, self.out = nn.Linear(10, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encode(self.stem(x)).mean(1))


ATTENTION(SEQUENCE, "encoder_layer")(EncoderNet)
ATTENTION(SEQUENCE, "encoder_layer_norm_first", norm_first=True, activation="gelu")(EncoderNet)
ATTENTION(SEQUENCE, "encoder_2_layers", layers=2)(EncoderNet)


@ATTENTION(TWO)
class DecoderNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.TransformerDecoder(layer(nn.TransformerDecoderLayer), 2, nn.LayerNorm(WIDTH))
        self.stem, self.other, self.out = nn.Linear(10, 24), nn.Linear(13, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.out(self.decode(self.stem(x), self.other(memory), tgt_mask=mask, tgt_is_causal=True))


@ATTENTION(TWO)
class WholeTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Transformer(WIDTH, 4, 1, 1, 40, batch_first=True)
        self.stem, self.other, self.out = nn.Linear(10, 24), nn.Linear(13, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.out(self.both(self.other(memory), self.stem(x)))


class Heads(nn.Module):
    """Self attention with separate projections: ``write`` says how its sizes and product are written."""

    def __init__(self, write: str) -> None:
        super().__init__()
        self.write, self.heads, self.size = write, 4, 6
        self.stem, self.out = nn.Linear(10, 18), nn.Linear(18, CLASSES)
        self.query, self.key, self.value = (nn.Linear(18, 24) for _ in range(3))
        self.project = nn.Linear(24, 18)

    def split(self, x: Tensor) -> Tensor:
        if self.write == "attributes":
            return x.view(x.shape[0], x.shape[1], self.heads, self.size).transpose(1, 2)
        if self.write == "size_inferred":
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if self.write == "heads_inferred":
            return x.reshape(*x.shape[:2], -1, self.size).permute(0, 2, 1, 3)
        if self.write == "chunks":
            return torch.stack(x.chunk(self.heads, -1), 1)
        return x.view(x.shape[0], x.shape[1], self.heads, x.shape[-1] // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        if self.write == "attributes":
            y = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(self.size), -1) @ v
        elif self.write == "heads_inferred":
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
            y = torch.bmm(torch.softmax(torch.bmm(q * self.size**-0.5, k.mT), -1), v)
            y = y.unflatten(0, (x.shape[0], -1))
        elif self.write == "chunks":
            y = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.4, -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.write == "size_inferred")
        return self.out(x + self.project(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)))


for way in ("attributes", "size_inferred", "heads_inferred", "chunks", "of_shape"):
    ATTENTION(SEQUENCE, f"heads_{way}", write=way)(Heads)


class FusedHeads(nn.Module):
    """q, k and v from one layer: ``order`` of the three inside of its outputs, or an uneven split."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order, self.heads = order, 4
        self.stem, self.out = nn.Linear(10, 18), nn.Linear(18, CLASSES)
        self.sizes = [24, 24, 36] if order == "uneven" else [24, 24, 24]
        self.qkv, self.project = nn.Linear(18, sum(self.sizes)), nn.Linear(self.sizes[-1], 18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, t, _ = x.shape
        y = self.qkv(x)
        if self.order == "three_outside":
            q, k, v = y.reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.order == "heads_outside":
            q, k, v = y.view(b, t, self.heads, -1).transpose(1, 2).chunk(3, -1)
        elif self.order == "three_inside":
            q, k, v = y.view(b, t, self.heads, -1, 3).transpose(1, 2).unbind(-1)
        else:
            q, k, v = (z.view(b, t, self.heads, -1).transpose(1, 2) for z in y.split(self.sizes, -1))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(x + self.project(y.transpose(1, 2).flatten(2)))


for way in ("three_outside", "heads_outside", "three_inside", "even", "uneven"):
    ATTENTION(SEQUENCE, f"fused_{way}", order=way)(FusedHeads)


class GroupedQuery(nn.Module):
    """Six heads of queries that share ``shared`` heads of keys and values, repeated as ``write`` says."""

    def __init__(self, shared: int, write: str) -> None:
        super().__init__()
        self.heads, self.shared, self.write = 6, shared, write
        self.stem, self.out = nn.Linear(10, 18), nn.Linear(18, CLASSES)
        self.query, self.project = nn.Linear(18, 30), nn.Linear(30, 18, bias=False)
        self.key, self.value = (nn.Linear(18, 5 * shared) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, t, _ = x.shape
        q = self.query(x).view(b, t, self.heads, -1).transpose(1, 2)
        k, v = (z.view(b, t, self.shared, -1).transpose(1, 2) for z in (self.key(x), self.value(x)))
        times = self.heads // self.shared
        if self.write == "repeat":
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        elif self.write == "expand":
            k, v = (z[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.write == "flag")
        return self.out(x + self.project(y.transpose(1, 2).reshape(b, t, -1)))


for way in ("repeat", "expand", "flag"):
    ATTENTION(SEQUENCE, f"grouped_query_{way}", shared=2, write=way)(GroupedQuery)
ATTENTION(SEQUENCE, "multi_query", shared=1, write="expand")(GroupedQuery)


@ATTENTION(SEQUENCE)
class LinearAttention(nn.Module):
    """Keys and values are summed over the places first; a feature map stands for the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.query, self.key, self.value = nn.Linear(10, 24), nn.Linear(10, 24), nn.Linear(10, 36)
        self.out = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        memory = torch.einsum("bthd,bthm->bhdm", k, v)
        below = torch.einsum("bthd,bhd->bth", q, k.sum(1)).unsqueeze(-1)
        return self.out((torch.einsum("bthd,bhdm->bthm", q, memory) / below).flatten(2))


@ATTENTION(SEQUENCE)
class CrossCovariance(nn.Module):
    """XCiT: channels attend to channels, with a temperature per head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.stem, self.qkv, self.project = nn.Linear(10, 24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.heat, self.up = nn.Parameter(torch.ones(4, 1, 1)), nn.Linear(24, 40)
        self.out = nn.Linear(40, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = torch.softmax(q @ k.transpose(-2, -1) * self.heat, -1) @ v
        return self.out(F.relu(self.up(x + self.project(y.permute(0, 3, 1, 2).reshape(b, t, c)))))


@ATTENTION(SEQUENCE)
class TalkingHeads(nn.Module):
    """Linear layers mix the heads before and after the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.project = nn.Linear(10, 72), nn.Linear(24, 18)
        self.before, self.after, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = self.before((0.4 * q @ k.mT).permute(0, 2, 3, 1))
        weights = self.after(torch.softmax(scores.permute(0, 3, 1, 2), -1).permute(0, 2, 3, 1))
        return self.out(F.relu(self.project((weights.permute(0, 3, 1, 2) @ v).transpose(1, 2).flatten(2))))


@ATTENTION(SEQUENCE)
class RelativePositions(nn.Module):
    """Shaw's: queries meet embeddings of distances as wide as one head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.query, self.key, self.value = (nn.Linear(10, 24) for _ in range(3))
        self.table, self.out = nn.Embedding(13, 6), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        place = torch.arange(x.shape[1])
        near = self.table(place[:, None] - place + 6)
        scores = q @ k.mT + torch.einsum("bhqd,qkd->bhqk", q, near)
        return self.out((torch.softmax(scores * 0.4, -1) @ v).transpose(1, 2).flatten(2))


@ATTENTION(SEQUENCE)
class LatentQueries(nn.Module):
    """Perceiver: a learned array of queries reads the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.heads = nn.Parameter(torch.randn(5, 18)), 4
        self.query, self.keys, self.project = nn.Linear(18, 24), nn.Linear(10, 48), nn.Linear(24, 18)
        self.norm, self.up, self.out = nn.LayerNorm(18), nn.Linear(18, 40), nn.Linear(40, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        latent = self.latent.expand(x.shape[0], -1, -1)
        k, v = self.keys(x).chunk(2, -1)
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (self.query(latent), k, v))
        latent = latent + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.out(F.gelu(self.up(self.norm(latent))).mean(1))


@ATTENTION(SEQUENCE)
class AttentionPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.score, self.gate = nn.Linear(10, 26), nn.Linear(26, 16), nn.Linear(26, 16)
        self.weigh, self.out = nn.Linear(16, 1), nn.Linear(26, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        weights = torch.softmax(self.weigh(torch.tanh(self.score(x)) * torch.sigmoid(self.gate(x))), 1)
        return self.out((weights * x).sum(1))
