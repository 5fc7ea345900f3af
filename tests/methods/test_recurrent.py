import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import secateur as sc
from networks.drawn import randn
from secateur.methods.recurrent import rows_read
from secateur.structure.surgery import mask_units

KINDS = {
    "lstm": lambda **o: nn.LSTM(3, 4, **o),
    "gru": lambda **o: nn.GRU(3, 4, **o),
    "tanh": lambda **o: nn.RNN(3, 4, **o),
    "relu": lambda **o: nn.RNN(3, 4, nonlinearity="relu", **o),
    "projected": lambda **o: nn.LSTM(3, 5, proj_size=4, **o),
}


def stepped(module, x, h0, c0, layer, backwards):
    """The rows that the two matrices of a layer read in one direction, computed step by step."""
    ways = 2 if module.bidirectional else 1
    for number in range(layer + 1):
        outputs = []
        for way in range(ways):
            end = f"l{number}" + ("_reverse" if way else "")
            weights = {
                n: getattr(module, f"{n}_{end}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            h, c = h0[ways * number + way], c0[ways * number + way]
            steps = list(range(len(x)))[:: -1 if way else 1]
            own, before = [None] * len(x), [None] * len(x)
            for t in steps:
                before[t] = h
                a = x[t] @ weights["weight_ih"].T + weights["bias_ih"]
                b = h @ weights["weight_hh"].T + weights["bias_hh"]
                if module.mode == "LSTM":
                    i, f, g, o = (a + b).chunk(4, -1)
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * c.tanh()
                    if module.proj_size:
                        h = h @ getattr(module, f"weight_hr_{end}").T
                elif module.mode == "GRU":
                    (r, z, n), (hr, hz, hn) = a.chunk(3, -1), b.chunk(3, -1)
                    r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
                    h = (1 - z) * (n + r * hn).tanh() + z * h
                else:
                    h = (a + b).tanh() if module.mode == "RNN_TANH" else (a + b).relu()
                own[t] = h
            outputs.append(torch.stack(own))
            if number == layer and way == int(backwards):
                return x.reshape(-1, x.shape[-1]), torch.stack(before).reshape(-1, h.shape[-1])
        x = torch.cat(outputs, -1)
    raise AssertionError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("given", [False, True])
@torch.no_grad()
def test_the_rows_are_those_of_the_steps(kind, bidirectional, given):
    torch.manual_seed(0)
    module = KINDS[kind](num_layers=2, bidirectional=bidirectional).double()
    x = randn(5, 2, 3)
    number = 4 if bidirectional else 2
    h0, c0 = (
        (randn(number, 2, 4), randn(number, 2, module.hidden_size))
        if given
        else (torch.zeros(number, 2, 4).double(), torch.zeros(number, 2, module.hidden_size).double())
    )
    args = (x,) if not given else (x, (h0, c0) if module.mode == "LSTM" else h0)
    for layer in (0, 1):
        for backwards in (False, True)[: 1 + bidirectional]:
            end = f"l{layer}" + ("_reverse" if backwards else "")
            read, before = stepped(module, x, h0, c0, layer, backwards)
            assert torch.allclose(rows_read(module, f"weight_ih_{end}", args, {}), read)
            assert torch.allclose(rows_read(module, f"weight_hh_{end}", args, {}), before)


@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh"])
@torch.no_grad()
def test_packed_and_batch_first_and_unbatched_inputs_give_the_rows_of_each_sequence(kind):
    torch.manual_seed(0)
    module = KINDS[kind](num_layers=2, bidirectional=True).double()
    sequences = [randn(length, 3) for length in (2, 5, 3)]
    leaves = [n for n in module._parameters if n.startswith("weight")]
    packed = pack_sequence(sequences, enforce_sorted=False)
    first = copy.deepcopy(module)
    first.batch_first = True
    for leaf in leaves:
        alone = torch.cat([rows_read(module, leaf, (own,), {}) for own in sequences])
        together = rows_read(module, leaf, (packed,), {})
        assert together.shape == alone.shape
        distances = torch.cdist(together, alone)
        assert distances.min(0).values.max() < 1e-6
        assert distances.min(1).values.max() < 1e-6
        batch = torch.stack([sequences[0], sequences[0] + 1])
        rows = rows_read(first, leaf, (batch,), {})
        assert torch.equal(rows, rows_read(module, leaf, (batch.transpose(0, 1),), {}))


@torch.no_grad()
def test_cells_read_their_input_and_their_state():
    for cell in (nn.LSTMCell(3, 4), nn.GRUCell(3, 4), nn.RNNCell(3, 4)):
        x, h = torch.randn(2, 3), torch.randn(2, 4)
        hx = (h, torch.randn(2, 4)) if isinstance(cell, nn.LSTMCell) else h
        assert torch.equal(rows_read(cell, "weight_ih", (x, hx), {}), x)
        assert torch.equal(rows_read(cell, "weight_hh", (x,), {"hx": hx}), h)
        assert torch.equal(rows_read(cell, "weight_hh", (x,), {}), torch.zeros(2, 4))
        assert rows_read(cell, "weight_hh", (x[0],), {}).shape == (1, 4)


class Tagger(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.embedding = nn.Linear(5, 3)
        self.recurrent = KINDS[kind](batch_first=True, **options)
        width = 4 * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.recurrent(self.embedding(x))[0])


class Stepping(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.embedding, self.cell, self.head = nn.Linear(5, 3), cell(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = x.new_zeros(len(x), 4)
        hx = (h, h) if isinstance(self.cell, nn.LSTMCell) else h
        for t in range(x.shape[1]):
            hx = self.cell(self.embedding(x[:, t]), hx)
        return self.head(hx[0] if isinstance(hx, tuple) else hx)


BUILT = {
    **{kind: lambda kind=kind: Tagger(kind) for kind in ("lstm", "gru", "tanh", "relu")},
    "two layers, both ways": lambda: Tagger("lstm", num_layers=2, bidirectional=True),
    "no bias": lambda: Tagger("gru", bias=False),
    "lstm cell": lambda: Stepping(nn.LSTMCell),
    "gru cell": lambda: Stepping(nn.GRUCell),
}


@pytest.mark.parametrize("kind", BUILT)
@torch.no_grad()
def test_a_recurrent_layer_makes_up_for_what_it_lost(kind):
    """A third of the inputs is a combination of the others, so that the products can be had again."""
    torch.manual_seed(0)
    model = BUILT[kind]().double().eval()
    model.embedding.weight[2] = model.embedding.weight[0] - 2 * model.embedding.weight[1]
    model.embedding.bias[2] = 0.3
    x = randn(40, 6, 5)
    dense, structure = copy.deepcopy(model), sc.trace(model, x)
    name = next(n for n, g in structure.groups.items() if any(s.name == "embedding.weight" for s in g.slices))
    mask_units(model, structure, {name: np.arange(3) == 2})
    wanted, before = dense(x), model(x)
    refit = sc.reconstruct(model, dense, structure, [x[:25], x[25:]], ridge=1e-12)
    names = {n for n in refit.layers if "ih" in n}
    assert names
    if kind == "no bias":  # the constant is not to be had
        assert all(after < old for old, after in (refit.layers[n] for n in names))
    else:
        assert all(after < 1e-9 for _, after in (refit.layers[n] for n in names))
        assert (model(x) - wanted).square().mean() < 1e-6 * (before - wanted).square().mean()
    assert not any(n.startswith(("recurrent", "cell")) for n in refit.skipped)


@pytest.mark.parametrize("kind", [k for k in BUILT if k != "relu"])
@torch.no_grad()
def test_without_some_of_its_own_units_it_comes_nearer(kind):
    torch.manual_seed(0)
    model = BUILT[kind]().double().eval()
    for parameter in model.parameters():
        parameter.mul_(1.5)
    x = randn(60, 6, 5)
    dense, structure = copy.deepcopy(model), sc.trace(model, x)
    groups = [n for n, g in structure.groups.items() if any("_hh" in s.name for s in g.slices)]
    mask_units(model, structure, {name: np.arange(len(structure.groups[name])) == 1 for name in groups})
    before = (model(x) - dense(x)).square().mean()
    kept = {n: p != 0 for n, p in model.named_parameters()}
    refit = sc.reconstruct(model, dense, structure, [x])
    assert any("_hh" in n for n in refit.layers)
    assert all(after <= old for old, after in refit.layers.values())
    assert (model(x) - dense(x)).square().mean() < before
    assert all(((p != 0) <= kept[n]).all() for n, p in model.named_parameters())  # what is zero stays zero
    sc.compact(model, x)
