import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, ModelError, TargetError


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, stride=2, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding="same", dilation=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.Linear(64, 4),
    )
    return net.double(), torch.randn(2, 3, 8, 8).double()


@given(st.integers(0, 20), st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_a_network_of_that_rank_is_equal(seed, rank):
    net, x = convolutions()
    torch.manual_seed(seed)
    with torch.no_grad():
        for index in (2, 5):
            weight = net[index].weight
            wide = torch.randn(len(weight), rank).double() @ torch.randn(rank, weight[0].numel()).double()
            weight.copy_(wide.reshape(weight.shape))
    small, done = sc.low_rank(net, x, energy=1 - 1e-9)
    assert done.ranks == {"2": rank, "5": rank}
    torch.testing.assert_close(small(x), net(x))
    assert done.parameters[1] == sum(p.numel() for p in small.parameters()) < done.parameters[0]


def test_the_error_is_that_of_the_best_approximation():
    net, x = convolutions()
    small, done = sc.low_rank(net, x, share=0.5, include="5")
    (rank,) = done.ranks.values()
    assert rank == int(0.5 * 512 * 64 / (512 + 64))
    values = torch.linalg.svdvals(net[5].weight)
    product = small[5][1].weight @ small[5][0].weight
    lost = (product - net[5].weight).square().sum() / net[5].weight.square().sum()
    assert done.errors["5"] == pytest.approx(float(lost))
    assert done.errors["5"] == pytest.approx(float(values[rank:].square().sum() / values.square().sum()))
    assert type(small[5][0]) is nn.Linear
    assert small[5][0].bias is None
    assert sc.profile(small, x).macs < sc.profile(net, x).macs


def test_the_ranks_of_a_record_give_a_fresh_network_the_same_shapes():
    net, x = convolutions()
    small, done = sc.low_rank(net, x, share=0.4)
    fresh, again = sc.low_rank(convolutions()[0], x, ranks=done.ranks)
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(x), small(x))
    assert again.ranks == done.ranks


def test_units_of_the_thin_layers_can_go_too():
    net, x = convolutions()
    small, _ = sc.low_rank(net, x, share=0.5)
    structure = sc.trace(small, x)
    assert "5.0 -> 5.1" in structure.groups
    sc.prune(small, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    smaller, proof = sc.compact(small, x, structure=structure)
    assert proof.parameters[1] < proof.parameters[0]
    torch.testing.assert_close(smaller(x), small(x))


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return self.first(x) @ self.last.weight.T


def test_what_cannot_be_is_refused():
    net, x = convolutions()
    for options, message in (
        ({}, "got none"),
        ({"energy": 0.9, "share": 0.5}, "got energy, share"),
        ({"energy": 0}, "energy is 0"),
        ({"share": 1}, "share is 1"),
        ({"ranks": {"5": 0}}, "5 has 0; it is from 1 to 64"),
    ):
        with pytest.raises(BudgetError, match=message):
            sc.low_rank(net, x, **options)
    with pytest.raises(TargetError, match="'1' is no layer that can be factored"):
        sc.low_rank(net, x, ranks={"1": 2})
    with pytest.raises(ModelError, match="does not run with two layers"):
        sc.low_rank(Reads(), torch.ones(1, 32), share=0.5)
    small, done = sc.low_rank(Reads(), torch.ones(1, 32), share=0.5, exclude="last")
    assert list(done.ranks) == ["first"]
    assert small(torch.ones(1, 32)).shape == (1, 32)


def test_what_is_not_factored_says_why():
    shared = nn.Linear(16, 16)
    net = nn.Sequential(nn.Conv2d(16, 16, 3, groups=4), nn.Flatten(), shared, shared, nn.Linear(16, 2))
    _, done = sc.low_rank(net, torch.ones(1, 16, 3, 3), energy=0.999999)
    assert "in 4 groups" in done.kept["0"]
    assert "no fewer multiply-adds" in done.kept["4"]


def test_what_is_saved_is_loaded_into_a_fresh_network(tmp_path):
    net, x = convolutions()
    small, done = sc.low_rank(net, x, share=0.4)
    structure = sc.trace(small, x)
    sc.prune(small, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    smaller, _ = sc.compact(small, x, structure=structure)
    for index, saved in enumerate((small, smaller)):
        sc.save(saved, tmp_path / f"{index}.safetensors")
        loaded = sc.load(convolutions()[0], tmp_path / f"{index}.safetensors")
        assert torch.equal(loaded(x), saved(x))
        sc.pack(saved, tmp_path / f"{index}.secateur")
        assert torch.equal(sc.unpack(convolutions()[0], tmp_path / f"{index}.secateur")(x), saved(x))
    other = nn.Sequential(*[nn.Conv2d(3, 16, 3), *list(net)[1:]])
    del other[2]
    with pytest.raises(ModelError):
        sc.load(other, tmp_path / "0.safetensors")
    assert not any(type(module).__name__ == "TwoLayers" for module in other.modules())
    assert done.ranks
