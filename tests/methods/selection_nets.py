"""Networks with units and residual blocks to select from, and ways to train and compare them."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from secateur.methods.structure_selection import StructureSelection


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mlp(*sizes, seed=0):
    torch.manual_seed(seed)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


class Block(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x))))))"""

    def __init__(self, inner):
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(6, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.b, self.bn_b = nn.Conv2d(inner, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x):
        return (x + self.bn_b(self.b(self.bn_a(self.a(x)).relu()))).relu()


class PreActivation(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.bn, self.a, self.b = nn.BatchNorm2d(6), nn.Conv2d(6, inner, 3, padding=1), nn.Conv2d(inner, 6, 1)

    def forward(self, x):
        return x + self.b(self.a(self.bn(x).relu()).relu())


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


def images(*blocks):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).double()


def plain():
    """Max pooling, and a linear layer that reads each channel at four places."""
    torch.manual_seed(0)
    convs = (
        nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 7, 3),
        nn.Tanh(),
    )
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(28, 9), nn.ReLU(), nn.Linear(9, 2)).double()


def attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.Linear(5, 12), layer, nn.Linear(12, 3)).double()


NETS = {
    "mlp": (lambda: mlp(5, 7, 8, 3), (6, 5)),
    "plain": (plain, (2, 3, 8, 8)),
    "post": (lambda: images(Block(5), Block(7)), (2, 3, 8, 8)),
    "pre": (lambda: images(PreActivation(5), PreActivation(7)), (2, 3, 8, 8)),
    "encoder": (lambda: nn.Sequential(Encoder(), nn.Linear(12, 3)).double(), (2, 4, 12)),
    "attention": (attention, (2, 4, 5)),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(5, 6, 3, groups=1),
            nn.ReLU(),
            nn.Conv2d(6, 2, 1),
        ).double(),
        (2, 3, 6, 6),
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1)
        ).double(),
        (2, 3, 6, 6),
    ),
}


def selection(name, **options):
    make, shape = NETS[name]
    model, x = make(), randn(*shape)
    return model, x, StructureSelection(model, x, **options)


@torch.no_grad()
def assign(chosen, values):
    """Write factors: by name, or drawn, of both signs, with zeros, where it is None."""
    generator = torch.Generator().manual_seed(3)
    for name, factor in chosen.network.factors.items():
        if values is not None:
            factor.copy_(torch.as_tensor(values.get(name, 1.0)))
        elif len(factor) > 1:
            drawn = torch.randn(factor.shape, generator=generator)
            factor.copy_(drawn.masked_fill(torch.arange(len(factor)) % 3 == 1, 0))
        else:
            factor.fill_(-0.7)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@torch.no_grad()
def apart(one, other, x):
    return float((one.eval()(x) - other.eval()(x)).abs().max())


def quadratic(network, x, target=1.0):
    return (network(x) - target).square().mean()


def stepped(chosen, optimizer, loss):
    """One step of the weights and the factors."""
    with chosen.trained(optimizer):
        loss().backward()
        optimizer.step()
