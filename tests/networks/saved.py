"""Models by name at their full size, and a script that loads one in a process of its own."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

GPT2 = {"vocab_size": 61, "n_embd": 24, "n_layer": 1, "n_head": 3, "n_positions": 20, "use_cache": False}


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.b, self.head = nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.a(x)).relu()).relu().mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.mix, self.out = (
            nn.Linear(5, 12),
            nn.MultiheadAttention(12, 3, batch_first=True),
            nn.Linear(12, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.out(self.mix(x, x, x, need_weights=False)[0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(5, 9, batch_first=True), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


class Normed(nn.Module):
    """A residual stream; ``eps`` is not the one of the saved model's class by default."""

    def __init__(self, eps: float = 0.25) -> None:
        super().__init__()
        self.into, self.first, self.last = nn.Linear(5, 11), nn.LayerNorm(11), nn.RMSNorm(11, eps=eps)
        self.up, self.down, self.out = nn.Linear(11, 7), nn.Linear(7, 11), nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.out(self.last(x + self.down(self.up(self.first(x)).relu())))


class Logits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.inner = GPT2LMHeadModel(GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2))

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids).logits


MODELS = {"cnn": CNN, "attention": Attention, "lstm": Recurrent, "gpt2": Logits, "norms": Normed}
INPUTS = {"cnn": (2, 3, 8, 8), "attention": (2, 4, 5), "lstm": (2, 4, 5), "norms": (6, 5)}


def inputs(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    if name == "gpt2":
        return torch.randint(3, 61, (2, 7), generator=generator)
    return torch.randn(INPUTS[name], generator=generator)


if __name__ == "__main__":
    import secateur as sc

    torch.set_num_threads(1)
    name, file, out = sys.argv[1:]
    with torch.no_grad():
        torch.save(sc.load(MODELS[name](), file).eval()(inputs(name)), out)
