"""Importance of whole units, on weights whose norms can be read off."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import CriterionError
from secateur.pruning.unit_criteria import unit_scores

X = torch.zeros(2, 2)


@pytest.fixture
def net(linear) -> nn.Sequential:
    return nn.Sequential(
        linear([[3.0, 4.0], [-1.0, 0.0], [6.0, -8.0]], [0.5, -7.0, 0.0]), nn.ReLU(),
        linear([[1.0, 2.0, 2.0], [0.0, 3.0, 4.0]], [1.0, 1.0]),
    )  # fmt: skip


def scores(criterion, net, x=X, **options) -> list[float]:
    structure = sc.trace(net, x)
    (found,) = unit_scores(structure, criterion, options.get("data"), options.get("loss")).values()
    assert found.shape == (len(next(iter(structure.groups.values()))),)
    return found.tolist()


def test_norms_of_incoming_weights_without_biases(net):
    assert scores(sc.L1Norm(), net) == [7, 1, 14]
    assert scores(sc.L2Norm(), net) == [5, 1, 10]


def test_normalised_by_the_mean_of_the_group(net):
    assert scores(sc.L2Norm(normalise=True), net) == pytest.approx([15 / 16, 3 / 16, 30 / 16])
    assert scores(sc.L1Norm(normalise=True), net) == pytest.approx([21 / 22, 3 / 22, 42 / 22])


def test_a_group_of_zeros_has_no_mean_to_divide_by(net):
    nn.init.zeros_(net[0].weight)
    assert scores(sc.L2Norm(normalise=True), net) == [0, 0, 0]


def test_every_tensor_that_makes_a_unit_counts(linear):
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = linear([[3.0, 0.0], [1.0, 0.0]]), linear([[0.0, 4.0], [0.0, 0.0]])
            self.c = linear([[1.0, 1.0]])

        def forward(self, x):
            return self.c(self.a(x) + self.b(x))

    assert scores(sc.L2Norm(), Sum()) == [5, 1]
    assert scores(sc.L1Norm(), Sum()) == [7, 1]


def test_the_rows_of_a_head_count_together():
    net = nn.Sequential(nn.Linear(2, 4, bias=False), nn.GLU(), nn.Linear(2, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 0], [1, 0], [0, 4], [0, 0]]))
    assert scores(sc.L2Norm(), net) == [5, 1]


def test_filters():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[[[1.0, 1], [1, 1]]], [[[2, 4], [4, 0]]]]))
    assert scores(sc.L2Norm(), net, torch.zeros(1, 1, 4, 4)) == [2, 6]


def test_single_weights_are_summed_over_all_slices(net):
    """|row| + |bias| + |column|."""
    assert scores(sc.Magnitude(), net) == [7 + 0.5 + 1, 1 + 7 + 5, 14 + 0 + 6]


def test_random_scores_are_repeatable(net):
    assert scores(sc.Random(), net) == scores(sc.Random(), net)


def test_random_scores_do_not_rank_by_size():
    """One score a unit: a sum over many entries would be larger than one over few."""
    net = nn.Sequential(nn.Linear(2, 300), nn.Linear(300, 40), nn.Linear(40, 300), nn.Linear(300, 2))
    structure = sc.trace(net, X)
    found = unit_scores(structure, sc.Random(seed=1), None, None)
    assert all(float(scores.mean()) == pytest.approx(0.5, abs=0.12) for scores in found.values())


def test_taylor_is_summed_too(net):
    data = [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))]
    found = scores(sc.Taylor(), net, data=data)
    assert len(found) == 3
    assert all(score >= 0 for score in found)


def test_criteria_on_units_name_themselves():
    kinds = (sc.L1Norm, sc.L2Norm, sc.BNScale, sc.ActivationNorm)
    assert all(kind.counts_units for kind in kinds)
    assert not any(getattr(kind, "counts_units", False) for kind in (sc.Magnitude, sc.Random, sc.Taylor))


@pytest.mark.parametrize("criterion", [sc.L1Norm(), sc.L2Norm(), sc.BNScale(), sc.ActivationNorm()])
def test_criteria_on_units_need_a_structure(criterion, net):
    with pytest.raises(
        CriterionError, match=r"ranks whole units: pass structure=trace\(model, example_inputs\)"
    ):
        sc.prune(net, criterion, sc.Uniform(0.5))


def test_weights_are_left_as_they_were(net):
    before = [p.clone() for p in net.parameters()]
    for criterion in (sc.L2Norm(), sc.ActivationNorm(), sc.Magnitude()):
        scores(criterion, net, data=[torch.randn(3, 2)])
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


# -- BNScale ----------------------------------------------------------------------------------------


def test_bn_scale():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0]))
    assert scores(sc.BNScale(), net) == [0.5, 2.0, 1.0]


def test_bn_scale_is_the_mean_over_norms():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)
            self.bn_a, self.bn_b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.c(self.bn_a(self.a(x)) + self.bn_b(self.b(x)))

    net = Sum()
    with torch.no_grad():
        net.bn_a.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        net.bn_b.weight.copy_(torch.tensor([3.0, -6.0, 5.0]))
    assert scores(sc.BNScale(), net) == [2, 4, 4]


def test_bn_scale_of_whole_groups():
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([1.0, 2.0, 0.0, 5.0]))
    assert scores(sc.BNScale(), net, torch.zeros(2, 2, 3, 3)) == [3, 5]


def test_bn_scale_without_a_norm(net):
    with pytest.raises(CriterionError, match="no norm scales the units of 0 -> 2; exclude the group"):
        scores(sc.BNScale(), net)


def test_bn_scale_with_the_others_excluded():
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    structure = sc.trace(net, X)
    with pytest.raises(CriterionError, match="BNScale"):
        sc.prune(net, sc.BNScale(), sc.Uniform(0.5), structure=structure)
    masks = sc.prune(net, sc.BNScale(), sc.Uniform(0.5), structure=structure, exclude="2")
    assert int((~masks["1.weight"]).sum()) == 2


# -- ActivationNorm ---------------------------------------------------------------------------------


def test_activation_norm_is_what_the_next_layer_gets(net):
    """rms of relu(W x + b) over the data, times the norm of the column that reads it."""
    x = torch.randn(64, 2)
    hidden = net[:2](x).double()
    want = hidden.square().mean(0).sqrt() * net[2].weight.double().norm(dim=0)
    assert scores(sc.ActivationNorm(normalise=False), net, data=[x[:32], x[32:]]) == pytest.approx(
        want.tolist()
    )
    assert scores(sc.ActivationNorm(), net, data=[x]) == pytest.approx((want / want.mean()).tolist())


def test_activation_norm_prefers_what_the_next_layer_reads(linear):
    """Unit 0 has large weights and nobody reads it; unit 1 is small and read by much."""
    net = nn.Sequential(linear([[9.0, 9.0], [1.0, 1.0]], [0.0, 0.0]), nn.ReLU(), linear([[0.01, 5.0]]))
    x = torch.rand(16, 2)
    small, large = scores(sc.ActivationNorm(), net, data=[x])
    assert small < large
    assert scores(sc.L2Norm(), net)[0] > scores(sc.L2Norm(), net)[1]
    sc.prune(net, sc.ActivationNorm(), sc.Uniform(0.5), structure=sc.trace(net, X), data=[(x, None)])
    assert net[0].weight.tolist() == [[0, 0], [1, 1]]


def test_activation_norm_sums_over_the_layers_that_read(linear):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (
                linear([[1.0, 0.0], [0.0, 1.0]]),
                linear([[3.0, 0.0]]),
                linear([[4.0, 1.0]]),
            )

        def forward(self, x):
            h = self.a(x)
            return self.b(h), self.c(2 * h)

    found = scores(sc.ActivationNorm(normalise=False), Two(), data=[torch.ones(5, 2)])
    assert found == pytest.approx([3 + 2 * 4, 0 + 2 * 1])


def test_activation_norm_of_positions_that_a_flattening_spreads():
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
        net[2].weight.fill_(1.0)
    x = torch.ones(2, 1, 2, 2)
    assert scores(sc.ActivationNorm(normalise=False), net, x, data=[x]) == pytest.approx([2 * 2, 6 * 2])


def test_activation_norm_of_channels():
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
        net[1].weight.fill_(1.0)
    x = torch.ones(2, 1, 4, 4)
    assert scores(sc.ActivationNorm(normalise=False), net, x, data=[x]) == pytest.approx([1 * 2, 3 * 2])


def test_activation_norm_needs_data(net):
    with pytest.raises(CriterionError, match="ActivationNorm needs data"):
        scores(sc.ActivationNorm(), net)
    with pytest.raises(CriterionError, match="without a single batch"):
        scores(sc.ActivationNorm(), net, data=[])


def test_activation_norm_where_nothing_can_be_watched():
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w = nn.Linear(2, 3), nn.Parameter(torch.randn(3, 2))

        def forward(self, x):
            return self.a(x) @ self.w

    with pytest.raises(CriterionError, match="nothing that it can watch reads the units of a -> w"):
        scores(sc.ActivationNorm(), Raw(), data=[X + 1])


def test_activation_norm_leaves_modes_and_hooks(net):
    net.train()
    scores(sc.ActivationNorm(), net, data=[torch.randn(3, 2)])
    assert net.training
    assert not any(module._forward_pre_hooks for module in net.modules())


# -- found while these tests were written -----------------------------------------------------------


def test_activation_norm_behind_tied_embeddings():
    net = nn.Sequential(nn.Embedding(11, 5), nn.Linear(5, 11, bias=False))
    net[1].weight = net[0].weight
    tokens = torch.randint(11, (2, 5))
    hidden = net[0](tokens).double().reshape(-1, 5)
    want = hidden.square().mean(0).sqrt() * net[1].weight.double().norm(dim=0)
    found = scores(sc.ActivationNorm(normalise=False), net, tokens, data=[tokens])
    assert found == pytest.approx(want.tolist())


def test_wanda_on_units(net):
    assert len(scores(sc.Wanda(), net, data=[torch.randn(3, 2)])) == 3


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_a_weight_normed_layer_reads_units(net, wrap):
    x = torch.randn(8, 2)
    plain = scores(sc.ActivationNorm(), net, data=[x]), scores(sc.L2Norm(), net)
    net[2] = wrap(net[2])
    with torch.no_grad():  # of other lengths, of which the weight knows nothing
        for name, parameter in net[2].named_parameters():
            if name.endswith(("_v", "original1")):
                parameter.mul_(torch.tensor([[2.0], [7.0]]))
    assert scores(sc.ActivationNorm(), net, data=[x]) == pytest.approx(plain[0])
    assert scores(sc.L2Norm(), net) == plain[1]
