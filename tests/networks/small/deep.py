"""Deep networks, to time tracing: many layers, some at the widths of the originals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..zoo import Network, Zoo, floats, tokens

DEEP = Zoo()


class DenseLayer(nn.Module):
    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


@DEEP(floats((1, 3, 64, 64)), name="densenet_201")
class DenseNet(nn.Module):
    """DenseNet-201 as published: blocks of 6, 12, 48 and 32 layers, growth 32, half kept between them."""

    def __init__(self, blocks: tuple[int, ...] = (6, 12, 48, 32), growth: int = 32, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for i, layers in enumerate(blocks):
            self.blocks.append(nn.ModuleList([DenseLayer(width + j * growth, growth) for j in range(layers)]))
            width += layers * growth
            if i < len(blocks) - 1:
                shrink = nn.Conv2d(width, width // 2, 1, bias=False)
                self.transitions.append(
                    nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), shrink, nn.AvgPool2d(2))
                )
                width //= 2
        self.norm, self.classifier = nn.BatchNorm2d(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        for i, block in enumerate(self.blocks):
            features = [x]
            for layer in block:
                features.append(layer(features))
            x = torch.cat(features, 1)
            if i < len(self.transitions):
                x = self.transitions[i](x)
        return self.classifier(F.relu(self.norm(x)).mean((2, 3)))


class DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            z.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for z in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


@DEEP(tokens(1000, (1, 16)), name="decoder_48_layers")
class Decoder(nn.Module):
    """A GPT of 48 layers, 256 wide, its head tied to its embedding."""

    def __init__(self, layers: int = 48, width: int = 256, heads: int = 8, vocabulary: int = 1000) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(vocabulary, width), nn.Embedding(64, width)
        self.layers = nn.ModuleList([DecoderLayer(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.word.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


CONSTRUCTED_LARGE: tuple[Network, ...] = tuple(DEEP)
