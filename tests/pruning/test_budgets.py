"""Budgets: exact counts, in each layer and in all of them, and cuts by value."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from counted import counts, of, pruned, random, shapes, shares
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, MaskError
from secateur.pruning import budgets

# -- counts --------------------------------------------------------------------------------------


@given(shares, shapes)
def test_uniform_takes_round_of_every_layer(share, sizes):
    weights = random(sizes)
    assert counts(sc.Uniform(share), weights) == [round(share * w.numel()) for w in weights]


def test_round_is_half_to_even():
    assert counts(sc.Uniform(0.5), [torch.rand(1, 5), torch.rand(1, 7)]) == [2, 4]  # 2.5 and 3.5
    assert sum(counts(sc.Global(0.25), [torch.rand(1, 3), torch.rand(1, 7)])) == 2  # 2.5


@pytest.mark.parametrize("rule", [sc.Global, sc.ERK, sc.LAMP])
@given(share=shares, sizes=shapes)
def test_whole_network_budgets_take_exactly_round(rule, share, sizes):
    weights = random(sizes)
    number = sum(w.numel() for w in weights)
    assert sum(counts(rule(share), weights)) == round(share * number)


@pytest.mark.parametrize("rule", [sc.Uniform, sc.Global, sc.ERK, sc.LAMP])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_and_everything(rule, share):
    weights = [torch.randn(3, 4), torch.zeros(2, 2), torch.randn(5, 1)]
    assert [d.float().mean() for d in pruned(rule(share), weights)] == [share] * 3


def test_uniform_takes_the_lowest_of_each_layer():
    first, second = torch.tensor([[1.0, -0.1, 3.0, 0.2]]), torch.tensor([[100.0, -400.0]])
    assert [d.tolist() for d in pruned(sc.Uniform(0.5), [first, second])] == [
        [[False, True, False, True]],
        [[True, False]],
    ]


@given(shares, shapes)
def test_uniform_per_row_takes_round_of_every_row(share, sizes):
    weights = random(sizes)
    for gone, weight in zip(pruned(sc.Uniform(share, per="row"), weights), weights, strict=True):
        number = round(share * weight.shape[1])
        assert (gone.sum(1) == number).all()
        lowest = weight.abs().argsort(1)[:, :number]
        assert torch.equal(gone, torch.zeros_like(gone).scatter_(1, lowest, True))


def test_uniform_per_row_rounds_half_to_even():
    assert counts(sc.Uniform(0.5, per="row"), [torch.rand(3, 5), torch.rand(2, 7)]) == [6, 8]  # 2.5 and 3.5


@pytest.mark.parametrize(
    ("layer", "outputs"),
    [
        (nn.Linear(8, 5), 0),
        (nn.Conv2d(8, 3, 3), 0),
        (nn.Conv1d(16, 4, 3, groups=2), 0),
        (nn.ConvTranspose2d(8, 3, 2), 1),
    ],
)
def test_uniform_per_row_takes_as_many_of_each_output(layer, outputs):
    before = layer.weight.detach().clone()
    masks = sc.prune(layer, sc.Magnitude(), sc.Uniform(0.25, per="row"))
    rows = masks["weight"].movedim(outputs, 0).flatten(1)
    assert (rows.sum(1) == rows.shape[1] - round(0.25 * rows.shape[1])).all()
    assert masks.requested == {"weight": 0.25}
    assert torch.equal(layer.weight, before * masks["weight"])


def test_uniform_per_row_goes_on_from_earlier_masks():
    layer = nn.Linear(10, 4)
    first = sc.prune(layer, sc.Magnitude(), sc.Uniform(0.3, per="row"))
    second = sc.prune(layer, sc.Magnitude(), sc.Uniform(0.6, per="row"), masks=first)
    assert second["weight"].sum(1).tolist() == [4] * 4
    assert not (second["weight"] & ~first["weight"]).any()
    with pytest.raises(MaskError, match="6 weights of one output are masked already and the budget takes 3"):
        sc.prune(layer, sc.Magnitude(), sc.Uniform(0.3, per="row"), masks=second)


def test_uniform_per_row_leaves_what_has_no_rows():
    net = nn.Sequential(nn.Linear(4, 4))
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5, per="row"), include=["0.weight", "0.bias"])
    assert masks.notes == ("not pruned: 0.bias (no rows of weights)",)
    assert masks["0.bias"].all()


def test_uniform_per_row_along_a_schedule():
    layer = nn.Linear(10, 4)
    for _masks in sc.gradually(layer, sc.Magnitude(), sc.Uniform(0.8, per="row"), sc.Iterative(3)):
        pass
    assert (layer.weight != 0).sum(1).tolist() == [2] * 4


def test_global_takes_the_lowest_of_all_layers():
    first, second = torch.tensor([[1.0, -0.1, 3.0, 0.2]]), torch.tensor([[100.0, -400.0]])
    assert [d.tolist() for d in pruned(sc.Global(0.5), [first, second])] == [
        [[True, True, False, True]],
        [[False, False]],
    ]


# -- min_kept ------------------------------------------------------------------------------------


@given(st.integers(1, 8), shares, shapes, st.integers(0, 20))
def test_min_kept_keeps_the_best_of_each_layer_and_the_total(keep, share, sizes, seed):
    weights = random(sizes, seed)
    number = sum(w.numel() for w in weights)
    room = sum(max(0, w.numel() - keep) for w in weights)
    budget = sc.Global(share, min_kept=keep)
    if round(share * number) > room:
        with pytest.raises(BudgetError, match=rf"min_kept={keep} leaves only {room} that may"):
            pruned(budget, weights)
        return
    out = pruned(budget, weights)
    # The reference: the best ``keep`` of each layer are out of reach, the rest goes globally.
    values = [w.abs().flatten().clone() for w in weights]
    for v in values:
        v[v.topk(min(keep, len(v))).indices] = torch.inf
    lowest = torch.cat(values).argsort()[: round(share * number)]
    expected = torch.zeros(number, dtype=torch.bool)
    expected[lowest] = True
    assert torch.equal(torch.cat([d.flatten() for d in out]), expected)


def test_min_kept_saves_a_layer_from_being_emptied():
    small, large = torch.full((1, 4), 0.01), torch.ones(2, 4) + torch.arange(8).view(2, 4)
    assert counts(sc.Global(0.5), [small, large]) == [4, 2]
    assert counts(sc.Global(0.5, min_kept=1), [small, large]) == [3, 3]


# -- per layer -----------------------------------------------------------------------------------


def test_per_layer_first_pattern_decides_and_the_rest_stays(convnet):
    net = convnet()
    masks = sc.prune(net, sc.Magnitude(), sc.PerLayer({"0": 0.5, "*.weight": 0.25, "6": 0.9}))
    assert masks.layers()[0]["kept"] == 108
    assert [round(row["sparsity"], 6) for row in masks.layers()[1:]] == [0.25, 0.25, 0.25]
    masks = sc.prune(convnet(), sc.Magnitude(), sc.PerLayer({"6": 0.9}))
    assert masks.requested == {"0.weight": 0.0, "3.weight": 0.0, "4.weight": 0.0, "6.weight": 0.9}
    assert [masks[n].all().item() for n in masks] == [True, True, True, False]


def test_per_layer_pattern_that_matches_nothing(mlp):
    with pytest.raises(BudgetError, match=r"'fc1' matches none of the targets: 0\.weight, 2\.weight"):
        sc.prune(mlp(), sc.Magnitude(), sc.PerLayer({"0": 0.5, "fc1": 0.5}))


# -- by value ------------------------------------------------------------------------------------


def test_std_is_the_population_deviation_of_the_signed_weights():
    # The mean is 0 and the deviation exactly 2: strictly under it goes, at it stays.
    weights = torch.tensor([[2.0, -2.0, 1.0, -1.0, 8.0**0.5 - 0.5, 0.0, -(8.0**0.5 - 0.5), 0.0]])
    scores, named = of([weights])
    assert sc.Std(2.0)(scores, named)["w0"].value == pytest.approx(2 * weights.std(correction=0).item())
    symmetric = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    assert counts(sc.Std(1.0), [symmetric]) == [0]
    assert counts(sc.Std(1.0001), [symmetric]) == [4]
    shifted = torch.tensor([[4.0, 6.0, 4.0, 6.0]])  # deviation 1 about a mean of 5
    assert counts(sc.Std(5.0), [shifted]) == [2]  # only under 5.0


def test_std_differs_by_layer():
    assert counts(sc.Std(0.5), [torch.tensor([[1.0, -1.0]]), torch.tensor([[100.0, -100.0]]) / 64]) == [0, 0]
    wide = torch.tensor([[0.4, 10.0, -10.0, -0.4]])
    assert [d.tolist() for d in pruned(sc.Std(0.1), [wide, wide / 1000])] == [
        [[True, False, False, True]]
    ] * 2


def test_std_of_complex_weights_counts_both_parts():
    weights = torch.randn(30, 40, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)) + 2j
    (cut,) = sc.Std(1.0)(*of([weights])).values()
    assert cut.value == pytest.approx(weights.std(correction=0).item())


def test_std_living_leaves_zeros_out():
    weights = torch.tensor([[0.0] * 12 + [1.0, -1.0, 3.0, -3.0]])
    assert sc.Std(1.0)(*of([weights]))["w0"].value == pytest.approx(math.sqrt(20 / 16))
    assert sc.Std(1.0, living=True)(*of([weights]))["w0"].value == pytest.approx(math.sqrt(5))
    assert sc.Std(1.0, living=True)(*of([torch.zeros(2, 2)]))["w0"].value == 0


def test_std_twice_prunes_nothing_new(linear):
    layer = linear(torch.randn(50, 50))
    once = sc.prune(layer, sc.Magnitude(), sc.Std(1.25))
    twice = sc.prune(layer, sc.Magnitude(), sc.Std(1.25))
    assert torch.equal(once["weight"], twice["weight"])
    assert 0.7 < once.sparsity < 0.85
    living = sc.prune(layer, sc.Magnitude(), sc.Std(1.25, living=True))
    assert living.sparsity > once.sparsity


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_std_by_chunks_is_the_deviation_in_float64(dtype, chunk):
    weights = (torch.randn(40, 11) * 0.05 + 3).to(dtype)
    with patch.object(budgets, "CHUNK", chunk):
        value = sc.Std(1.0)(*of([weights]))["w0"].value
    assert value == pytest.approx(weights.double().std(correction=0).item(), rel=1e-12)


def test_threshold_is_strict_and_the_same_everywhere():
    weights = [torch.tensor([[0.5, -0.25, 0.125]]), torch.tensor([[0.25, 0.0]])]
    assert [d.tolist() for d in pruned(sc.Threshold(0.25), weights)] == [
        [[False, False, True]],
        [[False, True]],
    ]
    assert counts(sc.Threshold(0), weights) == [0, 0]
