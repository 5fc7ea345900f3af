"""Small networks of linear layers: gates, raw parameters, products, embeddings, reparametrised weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ..zoo import Zoo, floats, tokens

DENSE = Zoo()
VECTOR = floats((3, 10))
SEQUENCE = floats((3, 7, 10))
CLASSES = 11
VOCABULARY = 37


@DENSE(VECTOR)
class PlainMLP(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 36, bias=False), nn.Tanh(), nn.Linear(36, 11)
        )


@DENSE(VECTOR)
class BatchNormMLP(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Linear(10, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 36), nn.BatchNorm1d(36)
        )
        self.extend([nn.GELU(), nn.Linear(36, CLASSES)])


@DENSE(VECTOR)
class ResidualMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(10, 26), nn.Linear(26, CLASSES)
        self.up = nn.ModuleList([nn.Linear(26, w) for w in (32, 40)])
        self.down = nn.ModuleList([nn.Linear(w, 26) for w in (32, 40)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.relu(up(x)))
        return self.out(x)


@DENSE(SEQUENCE)
class GatedUnit(nn.Module):
    """F.glu on twice the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 56), nn.Linear(28, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.glu(self.a(x), -1))


@DENSE(SEQUENCE)
class SwigluBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(10, 18), nn.RMSNorm(18)
        self.gate, self.up, self.down = (nn.Linear(*s, bias=False) for s in ((18, 40), (18, 40), (40, 18)))
        self.out = nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(x)
        return self.out(x + self.down(F.silu(self.gate(y)) * self.up(y)))


@DENSE(SEQUENCE)
class ChunkGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(10, 64), nn.Linear(32, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, -1)
        return self.c(F.relu(self.b(value * F.gelu(gate))))


@DENSE(SEQUENCE)
class InterleavedGate(nn.Module):
    """Even channels are gated by odd ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 52), nn.Linear(26, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x[..., ::2] * torch.sigmoid(x[..., 1::2]))


@DENSE(SEQUENCE)
class EinsumLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(10, 24)), nn.Parameter(torch.randn(36, 24))
        self.c = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.einsum("bti,io->bto", x, self.a))
        return self.c(F.relu(torch.einsum("bti,oi->bto", x, self.b)))


@DENSE(SEQUENCE)
class EinsumHeads(nn.Module):
    """Projections with heads and positions as axes of the weights themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Parameter(torch.randn(10, 4, d)) for d in (6, 6, 9))
        self.out, self.last = nn.Parameter(torch.randn(4, 9, 24)), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btc,chd->bhtd", x, w) for w in (self.query, self.key, self.value))
        weights = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.4, -1)
        y = torch.einsum("bhqk,bhkd->bqhd", weights, v)
        return self.last(F.relu(torch.einsum("bqhd,hdc->bqc", y, self.out)))


@DENSE(SEQUENCE)
class RawLinear(nn.Module):
    """F.linear, matmul, addmm and bmm on parameters of the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bias = nn.Parameter(torch.randn(24, 10)), nn.Parameter(torch.zeros(24))
        self.b, self.c = nn.Parameter(torch.randn(24, 32)), nn.Parameter(torch.randn(32, 40))
        self.d, self.shift = nn.Parameter(torch.randn(40, CLASSES)), nn.Parameter(torch.zeros(40))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.a, self.bias) @ self.b)
        x = F.relu(torch.addmm(self.shift, x.flatten(0, 1), self.c))
        return torch.bmm(x.unflatten(0, (3, 7)), self.d.expand(3, -1, -1))


@DENSE(SEQUENCE)
class MLPMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norms = nn.Linear(10, 18), nn.ModuleList([nn.LayerNorm(18), nn.LayerNorm(18)])
        self.places = nn.Sequential(nn.Linear(7, 26), nn.GELU(), nn.Linear(26, 7))
        self.channels = nn.Sequential(nn.Linear(18, 40), nn.GELU(), nn.Linear(40, 18))
        self.out = nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.places(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.out(x.mean(1))


@DENSE(SEQUENCE)
class SpatialGate(nn.Module):
    """gMLP: half of the channels gates the other half after a layer over the places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.place = nn.Linear(10, 18), nn.Linear(18, 52), nn.Conv1d(7, 7, 1)
        self.down, self.out = nn.Linear(26, 18), nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        left, right = F.gelu(self.up(x)).chunk(2, -1)
        return self.out(x + self.down(left * self.place(right)))


@DENSE(floats((3, 10), (3, 13)))
class BilinearLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 18), nn.Linear(13, 22)
        self.join, self.out = nn.Bilinear(18, 22, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(F.relu(self.join(F.relu(self.a(x)), torch.tanh(self.b(y)))))


@DENSE(VECTOR)
class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's weights transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 24), nn.Linear(24, 17)
        self.back, self.bias = nn.Parameter(torch.zeros(24)), nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.b(F.relu(self.a(x))))
        x = F.relu(F.linear(code, self.b.weight.t(), self.back))
        return F.linear(x, self.a.weight.t(), self.bias)


@DENSE(VECTOR)
class CrossNetwork(nn.Module):
    """DCN v2: products with the first features, beside a deep branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.crosses = nn.Linear(10, 18), nn.ModuleList([nn.Linear(18, 18) for _ in range(2)])
        self.deep = nn.Sequential(nn.Linear(18, 40), nn.ReLU(), nn.Linear(40, 26), nn.ReLU())
        self.out = nn.Linear(44, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.stem(x)
        for cross in self.crosses:
            x = first * cross(x) + x
        return self.out(torch.cat([x, self.deep(first)], -1))


@DENSE(VECTOR)
class SoftExperts(nn.Module):
    """All experts run; a softmax over a router weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.up = nn.Linear(10, 4), nn.ModuleList([nn.Linear(10, w) for w in (16, 18, 20, 22)])
        self.down = nn.ModuleList([nn.Linear(w, 28) for w in (16, 18, 20, 22)])
        self.out = nn.Linear(28, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        parts = [d(F.relu(u(x))) for u, d in zip(self.up, self.down, strict=True)]
        weights = torch.softmax(self.router(x), -1)
        return self.out((torch.stack(parts, 1) * weights.unsqueeze(-1)).sum(1))


@DENSE(VECTOR)
class BatchedExperts(nn.Module):
    """The experts' weights are one tensor with an axis of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(5, 10, 24)), nn.Parameter(torch.randn(5, 24, 18))
        self.router, self.out = nn.Linear(10, 5), nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(torch.bmm(x.expand(5, -1, -1), self.up))
        y = torch.bmm(y, self.down) * torch.sigmoid(self.router(x)).t().unsqueeze(-1)
        return self.out(y.sum(0))


@DENSE(VECTOR)
class CosineClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 40), nn.Linear(40, 18)
        self.prototypes = nn.Parameter(torch.randn(CLASSES, 18))

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.relu(self.a(x)))
        return 8 * F.linear(F.normalize(x, dim=-1), F.normalize(self.prototypes, dim=-1))


@DENSE(SEQUENCE)
class PointSet(nn.Module):
    """PointNet: the maximum over the points is repeated and joined to each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(10, 16, 1), nn.Conv1d(16, 24, 1), nn.Conv1d(40, 18, 1)
        self.norm, self.out = nn.BatchNorm1d(24), nn.Conv1d(18, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = F.relu(self.a(x.transpose(1, 2)))
        whole = self.norm(self.b(near)).max(2, keepdim=True)[0].repeat(1, 1, near.shape[2])
        return self.out(F.relu(self.c(torch.cat([near, whole], 1))))


@DENSE(SEQUENCE)
class GraphConv(nn.Module):
    """Nodes are mixed by a constant adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", torch.rand(7, 7))
        self.a, self.b, self.c = nn.Linear(10, 24), nn.Linear(24, 32), nn.Linear(56, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.adjacency @ self.a(x))
        return self.c(torch.cat([x, F.relu(self.adjacency @ self.b(x))], -1))


@DENSE(VECTOR)
class SqueezeUnsqueeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.deep, self.b = nn.Linear(10, 24), nn.Conv1d(24, 36, 1), nn.Linear(36, CLASSES)
        self.scale = nn.Parameter(torch.ones(1, 36))

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(F.relu(self.a(x)).unsqueeze(-1)).squeeze(-1)
        return self.b(F.relu(x[:, None] * self.scale[None]).squeeze(1))


@DENSE(tokens(VOCABULARY, (3, 7)))
class EmbeddingMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(VOCABULARY, 24), nn.Linear(24, 36), nn.Linear(36, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.b(F.relu(self.a(self.embed(ids).mean(1))))


@DENSE(tokens(VOCABULARY, (3, 7)))
class EmbeddingBagNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.a = nn.EmbeddingBag(VOCABULARY, 24, mode="mean"), nn.Linear(24, 36)
        self.b = nn.Linear(36, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.b(F.relu(self.a(self.bag(ids))))


@DENSE(tokens(VOCABULARY, (3, 7)))
class TiedEmbedding(nn.Module):
    """A language model whose head is the embedding, with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, 18), nn.Parameter(torch.randn(9, 18))
        self.up, self.down = nn.Linear(18, 40), nn.Linear(40, 18)
        self.head = nn.Linear(18, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place[: ids.shape[1]]
        return self.head(x + self.down(F.relu(self.up(x))))


class Normalised(nn.Module):
    """Two layers whose weights are reparametrised by ``change``."""

    def __init__(self, change: str) -> None:
        super().__init__()
        apply = {
            "old_weight": nn.utils.weight_norm,
            "old_spectral": nn.utils.spectral_norm,
            "weight": parametrizations.weight_norm,
            "spectral": parametrizations.spectral_norm,
        }[change]
        self.a, self.b = apply(nn.Conv1d(10, 24, 3, padding=1)), apply(nn.Linear(24, 36))
        self.c = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x.transpose(1, 2))).transpose(1, 2))))


DENSE(SEQUENCE, "weight_norm_hook", change="old_weight")(Normalised)
DENSE(SEQUENCE, "spectral_norm_hook", change="old_spectral")(Normalised)
DENSE(SEQUENCE, "weight_norm_parametrization", change="weight")(Normalised)
DENSE(SEQUENCE, "spectral_norm_parametrization", change="spectral")(Normalised)


@DENSE(SEQUENCE)
class WaveNet(nn.Module):
    """Causal dilated convolutions with a tanh-sigmoid gate, skips added up over the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(10, 18, 1)
        self.gates = nn.ModuleList([nn.Conv1d(18, 48, 2, dilation=d) for d in (1, 2)])
        self.residuals = nn.ModuleList([nn.Conv1d(24, 18, 1) for _ in range(2)])
        self.skips = nn.ModuleList([nn.Conv1d(24, 32, 1) for _ in range(2)])
        self.out = nn.Conv1d(32, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.transpose(1, 2))
        total = torch.zeros((), dtype=x.dtype)
        for i, gate in enumerate(self.gates):
            left, right = gate(F.pad(x, (gate.dilation[0], 0))).chunk(2, 1)
            y = torch.tanh(left) * torch.sigmoid(right)
            total = total + self.skips[i](y)
            x = x + self.residuals[i](y)
        return self.out(F.relu(total))
