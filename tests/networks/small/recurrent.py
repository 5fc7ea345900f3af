"""Small recurrent and state-space networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..zoo import Zoo, floats, tokens

RECURRENT = Zoo()
SEQUENCE = floats((3, 7, 10))
CLASSES = 11


class Recurrent(nn.Module):
    """A recurrent layer between linear ones; its last places are read."""

    def __init__(self, kind: str, **options: object) -> None:
        super().__init__()
        options = {"batch_first": True, **options}
        self.batch_first = options["batch_first"]
        self.stem, self.recur = nn.Linear(10, 16), getattr(nn, kind)(16, 24, **options)
        width = options.get("proj_size") or 24
        self.out = nn.Linear(2 * width if options.get("bidirectional") else width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y, _ = self.recur(x if self.batch_first else x.transpose(0, 1))
        return self.out(y[:, -1] if self.batch_first else y[-1])


for kind in ("LSTM", "GRU"):
    RECURRENT(SEQUENCE, f"{kind.lower()}_1_layer", kind=kind)(Recurrent)
    RECURRENT(SEQUENCE, f"{kind.lower()}_2_layers", kind=kind, num_layers=2)(Recurrent)
    RECURRENT(SEQUENCE, f"{kind.lower()}_bidirectional", kind=kind, bidirectional=True)(Recurrent)
RECURRENT(SEQUENCE, "lstm_time_first", kind="LSTM", batch_first=False)(Recurrent)
RECURRENT(SEQUENCE, "lstm_projected", kind="LSTM", proj_size=9)(Recurrent)
RECURRENT(SEQUENCE, "lstm_deep_both_ways", kind="LSTM", num_layers=2, bidirectional=True)(Recurrent)
RECURRENT(SEQUENCE, "rnn_tanh", kind="RNN")(Recurrent)


@RECURRENT(SEQUENCE)
class LastHiddenState(nn.Module):
    """The states, not the outputs, are read."""

    def __init__(self) -> None:
        super().__init__()
        self.recur, self.out = nn.LSTM(10, 18, num_layers=2, batch_first=True), nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, cell) = self.recur(x)
        return self.out(torch.cat([hidden[-1], cell[-1]], -1))


class CellLoop(nn.Module):
    """A cell called once a place, from a state of zeros."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.width = 22
        self.stem, self.cell = nn.Linear(10, 16), getattr(nn, kind)(16, self.width)
        self.out = nn.Linear(self.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        zeros = torch.zeros(x.shape[0], self.width, dtype=x.dtype)
        state = (zeros, zeros) if isinstance(self.cell, nn.LSTMCell) else zeros
        done = []
        for step in x.unbind(1):
            state = self.cell(step, state)
            done.append(state[0] if isinstance(state, tuple) else state)
        return self.out(torch.stack(done, 1))


RECURRENT(SEQUENCE, "lstm_cell_loop", kind="LSTMCell")(CellLoop)
RECURRENT(SEQUENCE, "gru_cell_loop", kind="GRUCell")(CellLoop)
RECURRENT(SEQUENCE, "rnn_cell_loop", kind="RNNCell")(CellLoop)


@RECURRENT(SEQUENCE)
class HandwrittenGru(nn.Module):
    """All three gates come from one layer each and are cut apart by chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.state, self.out = nn.Linear(10, 54), nn.Linear(18, 54), nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.state.in_features)
        for t in range(x.shape[1]):
            reset, update, new = self.inside(x[:, t]).chunk(3, -1)
            r, u, n = self.state(h).chunk(3, -1)
            keep = torch.sigmoid(update + u)
            h = keep * h + (1 - keep) * torch.tanh(new + torch.sigmoid(reset + r) * n)
        return self.out(h)


@RECURRENT(SEQUENCE)
class ConvLstmCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.gates, self.out = nn.Conv1d(1 + 12, 48, 3, padding=1), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], self.width, x.shape[2], dtype=x.dtype)
        for step in x.split(1, 1):
            i, f, o, g = self.gates(torch.cat([step, h], 1)).split(self.width, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h.mean(2))


@RECURRENT(tokens(37, (3, 7)))
class RecurrentAttention(nn.Module):
    """A recurrent encoder and decoder joined by additive attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(37, 16)
        self.encode, self.decode = nn.GRU(16, 24, batch_first=True), nn.GRU(16, 28, batch_first=True)
        self.key, self.query, self.score = nn.Linear(24, 18), nn.Linear(28, 18), nn.Linear(18, 1, bias=False)
        self.out = nn.Linear(52, 37)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        memory, _ = self.encode(x)
        state, _ = self.decode(x.flip(1))
        mixed = torch.tanh(self.query(state).unsqueeze(2) + self.key(memory).unsqueeze(1))
        weights = torch.softmax(self.score(mixed).squeeze(-1), -1)
        return self.out(torch.cat([state, weights @ memory], -1))


@RECURRENT(SEQUENCE)
class ConvRecurrent(nn.Module):
    """A convolution whose maps are flattened into the recurrent layer's input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.recur = nn.Conv2d(1, 12, 3, padding=1), nn.GRU(12 * 5, 24, batch_first=True)
        self.out = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x.unsqueeze(1))), (1, 2))
        return self.out(self.recur(x.transpose(1, 2).flatten(2))[0])


@RECURRENT(SEQUENCE)
class SelectiveScan(nn.Module):
    """Mamba's block as a plain loop: uneven split, depthwise causal convolution, states per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.rank, self.state = 28, 3, 6
        self.stem, self.norm, self.inside = (
            nn.Linear(10, 18),
            nn.RMSNorm(18),
            nn.Linear(18, 2 * 28, bias=False),
        )
        self.conv = nn.Conv1d(28, 28, 4, groups=28, padding=3)
        self.params, self.step = nn.Linear(28, 3 + 2 * 6, bias=False), nn.Linear(3, 28)
        self.log = nn.Parameter(torch.log(torch.arange(1.0, 7)).repeat(28, 1))
        self.skip, self.outside = nn.Parameter(torch.ones(28)), nn.Linear(28, 18, bias=False)
        self.out = nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        u, gate = self.inside(self.norm(x)).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        rank, b, c = torch.split(self.params(u), [self.rank, self.state, self.state], -1)
        step = F.softplus(self.step(rank))
        decay = torch.exp(step.unsqueeze(-1) * -torch.exp(self.log))
        drive = step.unsqueeze(-1) * b.unsqueeze(2) * u.unsqueeze(-1)
        h = torch.zeros(x.shape[0], self.inner, self.state, dtype=x.dtype)
        done = []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + drive[:, t]
            done.append((h @ c[:, t].unsqueeze(-1)).squeeze(-1))
        y = torch.stack(done, 1) + u * self.skip
        return self.out(x + self.outside(y * F.silu(gate)))


@RECURRENT(SEQUENCE)
class TimeMix(nn.Module):
    """RWKV's two mixers: tokens shifted by one place, decays per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norms = nn.Linear(10, 18), nn.ModuleList([nn.LayerNorm(18), nn.LayerNorm(18)])
        self.mix, self.mix2 = nn.Parameter(torch.rand(3, 18)), nn.Parameter(torch.rand(18))
        self.receive, self.key, self.value = (nn.Linear(18, 26, bias=False) for _ in range(3))
        self.decay, self.bonus = nn.Parameter(torch.rand(26)), nn.Parameter(torch.rand(26))
        self.outside, self.up, self.down = nn.Linear(26, 18), nn.Linear(18, 40), nn.Linear(40, 18)
        self.out = nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norms[0](x)
        before = F.pad(y, (0, 0, 1, -1))
        r, k, v = (torch.lerp(before, y, w) for w in self.mix)
        r, k, v = torch.sigmoid(self.receive(r)), self.key(k), self.value(v)
        top = bottom = torch.zeros_like(k[:, 0])
        done = []
        for t in range(x.shape[1]):
            now = torch.exp(self.bonus + k[:, t])
            done.append((top + now * v[:, t]) / (bottom + now))
            keep = torch.exp(-torch.exp(self.decay))
            top, bottom = keep * top + torch.exp(k[:, t]) * v[:, t], keep * bottom + torch.exp(k[:, t])
        x = x + self.outside(r * torch.stack(done, 1))
        y = self.norms[1](x)
        y = torch.lerp(F.pad(y, (0, 0, 1, -1)), y, self.mix2)
        return self.out(x + self.down(torch.square(F.relu(self.up(y)))))


@RECURRENT(SEQUENCE)
class Retention(nn.Module):
    """RetNet: heads with a decay of their own, GroupNorm over each head, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.query, self.key, self.value = nn.Linear(10, 24), nn.Linear(10, 24), nn.Linear(10, 36)
        self.gate, self.norm, self.outside = nn.Linear(10, 36), nn.GroupNorm(4, 36), nn.Linear(36, CLASSES)
        gap = (torch.arange(7)[:, None] - torch.arange(7)).float()
        decay = torch.tensor([0.9, 0.8, 0.7, 0.6])[:, None, None] ** gap.clamp(min=0)
        self.register_buffer("decay", decay * (gap >= 0))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = (((q @ k.transpose(-1, -2)) * self.decay) @ v).transpose(1, 2).flatten(2)
        y = self.norm(y.flatten(0, 1)).view_as(y)
        return self.outside(y * F.silu(self.gate(x)))
