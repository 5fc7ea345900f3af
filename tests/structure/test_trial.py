"""Networks whose calls bear some numbers only, or take other paths on other weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import ModelError


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.read = nn.Embedding(50, 8), nn.GRU(8, 12, batch_first=True)
        self.last = nn.Linear(12, 5)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(x), lengths, batch_first=True, enforce_sorted=False
        )
        return self.last(self.read(packed)[1][-1])


class Sorted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x, first):
        assert (first.diff() > 0).all(), "not sorted"
        return self.b(self.a(x).relu()[first])


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (Packed, (torch.arange(28).reshape(7, 4), torch.tensor([4, 1, 3, 2, 4, 1, 2]))),
        (Sorted, (torch.randn(6, 5), torch.tensor([0, 2, 5]))),
    ],
)
def test_inputs_of_which_not_every_number_will_do(build, inputs):
    torch.manual_seed(0)
    net = build().eval()
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, inputs))
    small, proof = sc.compact(net, inputs)
    assert proof.parameters[1] < proof.parameters[0]
    assert any("other numbers of the same kind were not compared" in note for note in proof.notes)
    assert torch.allclose(small(*inputs), net(*inputs), atol=1e-5)


class Gated(nn.Module):
    """A mixture of which one matrix, of a size written in, is read in training alone."""

    def __init__(self):
        super().__init__()
        self.gate, self.noise = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(6, 5))
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 6)) for _ in range(5)]
        )

    def forward(self, x):
        scores = x @ self.gate
        if self.training:
            scores = scores + (x @ self.noise) * 0.1
        return sum(s[:, None] * e(x) for s, e in zip(scores.softmax(-1).unbind(1), self.experts, strict=True))


def test_of_many_groups_in_a_module_that_fails_only_the_one_to_blame_stays():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 6), Gated(), nn.Linear(6, 2)), torch.randn(8, 4)
    structure = sc.trace(net, x)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    _, proof = sc.compact(net, x)
    assert len(proof.kept) == 1
    assert all("training" in why for why in proof.kept.values())
    assert sum(done == 10 for done, _ in proof.removed.values()) == 5


class Routed(nn.Module):
    """Only experts to which somebody is sent are run: those of the example, and with other weights others."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate = nn.Linear(5, 16), nn.Linear(16, 4)
        self.experts = nn.ModuleList([nn.Linear(16, 8) for _ in range(4)])
        with torch.no_grad():
            self.gate.bias[0] = 50.0

    def forward(self, x):
        h = F.relu(self.stem(x))
        chosen = self.gate(h).argmax(-1)
        out = x.new_zeros(len(x), 8)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            if mine.any():
                out[mine] = expert(h[mine])
        return out


def test_a_path_that_only_other_weights_take_is_one_clear_error_or_a_note():
    torch.manual_seed(0)
    net, x = Routed().eval(), torch.randn(1, 5)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, x))
    try:
        _, proof = sc.compact(net, x)
    except ModelError as error:
        assert "give examples= that take it" in str(error)  # noqa: PT017
    else:
        assert proof.unseen or proof.notes


def test_a_forward_that_a_graph_cannot_be_called_as_is_said():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x, *more):
            return self.b(sum(more, self.a(x)).relu())

    x = torch.randn(2, 4), torch.randn(2, 8), torch.randn(2, 8)
    with pytest.raises(ModelError, match=r"as a graph does not run: .*positional arguments"):
        sc.compact(Several(), x, form="graph")
