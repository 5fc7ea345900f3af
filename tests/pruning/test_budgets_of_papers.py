"""ERK, LAMP and N:M against direct readings of their papers."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from counted import counts, of, pruned, random, shapes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.errors import BudgetError, SecateurWarning

# -- ERK and LAMP --------------------------------------------------------------------------------


def erk_of_the_paper(sizes: list[tuple[int, ...]], sparsity: float) -> list[float]:
    """Densities after Evci et al.: layers that would pass 1 become dense, and epsilon is found again."""
    dense: set[int] = set()
    while True:
        raw = [sum(s) / math.prod(s) for s in sizes]
        right = sum(
            -math.prod(s) * sparsity if i in dense else math.prod(s) * (1 - sparsity)
            for i, s in enumerate(sizes)
        )
        epsilon = right / sum(raw[i] * math.prod(s) for i, s in enumerate(sizes) if i not in dense)
        over = {i for i in range(len(sizes)) if i not in dense and epsilon * raw[i] > 1}
        if not over:
            return [1.0 if i in dense else epsilon * raw[i] for i in range(len(sizes))]
        dense |= over


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, 0.9, 0.95, 0.99])
def test_erk_is_the_papers(sparsity):
    sizes = [(64, 3, 3, 3), (128, 64, 3, 3), (10, 128), (6, 5), (300, 100)]
    gone = counts(sc.ERK(sparsity), random(sizes))
    for out, density, size in zip(gone, erk_of_the_paper(sizes, sparsity), sizes, strict=True):
        assert abs(math.prod(size) - out - density * math.prod(size)) <= 1


def test_erk_by_hand():
    # 100 + 400 weights, 250 stay: in proportion to 20 : 40, of which the first would be 83.3.
    weights = random([(10, 10), (20, 20)])
    assert counts(sc.ERK(0.5), weights) == [100 - 83, 400 - 167]
    scores, named = of(weights)
    assert sc.ERK(0.5)(scores, named)["w0"].requested == pytest.approx(0.17)


def test_erk_never_gives_back_what_is_masked():
    # Largest remainders alone give a layer one more when the whole has one less to keep.
    torch.manual_seed(0)
    sizes = [(6, 12), (9, 17), (6, 5), (19, 20), (16, 12), (7, 4)]
    net = nn.Sequential(*(nn.Linear(b, a) for a, b in sizes))
    number = sum(a * b for a, b in sizes)
    masks = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecateurWarning)
        for count in range(0, number + 1, 1):
            if not 640 <= count <= 690:
                continue
            masks = sc.prune(net, sc.Magnitude(), sc.ERK(count / number), masks=masks)
            assert sum(int((~m).count_nonzero()) for m in masks.values()) == count


def test_erk_that_would_give_back_masked_weights_is_refused(mlp):
    net = mlp()
    masks = sc.prune(net, sc.Magnitude(), sc.ERK(0.75))
    with pytest.raises(BudgetError, match=r"ERK\(0\.5\) cannot be met: 96 entries should stay, and only 48"):
        sc.prune(net, sc.Magnitude(), sc.ERK(0.5), masks=masks)


def lamp_of_the_paper(weights: list[Tensor], count: int) -> Tensor:
    """W[u]^2 over the sum of W[v]^2 for v >= u in ascending order, entry by entry; lowest go."""
    every: list[float] = []
    for w in weights:
        flat = w.flatten().tolist()
        every += [x * x / sum(y * y for y in flat if abs(y) >= abs(x)) for x in flat]
    gone = torch.zeros(len(every), dtype=torch.bool)
    gone[torch.tensor(every, dtype=torch.float64).argsort()[:count]] = True
    return gone


@given(st.floats(0.05, 0.9), shapes, st.integers(0, 20))
def test_lamp_is_the_papers(share, sizes, seed):
    weights = random(sizes, seed)
    count = round(share * sum(w.numel() for w in weights))
    count = min(count, sum(w.numel() - 1 for w in weights))  # the best of each layer all have 1
    share = count / sum(w.numel() for w in weights)
    got = torch.cat([d.flatten() for d in pruned(sc.LAMP(share), weights)])
    assert torch.equal(got, lamp_of_the_paper(weights, count))


def test_lamp_never_empties_a_layer_where_global_does():
    weights = [torch.rand(4, 4) * 1e-3 + 1e-6, torch.rand(20, 20) + 1]
    assert counts(sc.Global(0.9), weights)[0] == 16
    assert counts(sc.LAMP(414 / 416), weights) == [15, 399]


def test_lamp_takes_what_is_masked_first(mlp):
    net = mlp()
    first = sc.prune(net, sc.Magnitude(), sc.Global(0.4))
    second = sc.prune(net, sc.Magnitude(), sc.LAMP(0.6), masks=first)
    assert all((first[n] | ~second[n]).all() for n in first)
    assert sum(int((~m).count_nonzero()) for m in second.values()) == round(0.6 * 192)


def test_lamp_takes_what_is_masked_before_a_zero_that_lives(linear):
    net = nn.Sequential(linear(torch.zeros(4, 4)), linear(torch.ones(4, 4)))
    half = torch.arange(16).view(4, 4) % 2 == 0
    first = sc.Masks(net, {"1.weight": half})
    masks = sc.prune(net, sc.Magnitude(), sc.LAMP(0.25), masks=first)
    assert masks["0.weight"].all()
    assert torch.equal(masks["1.weight"], half)


# -- N:M -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "dim"),
    [
        (nn.Linear(8, 5), 1),
        (nn.Conv2d(8, 3, 3), 1),
        (nn.Conv2d(16, 4, 3, groups=2), 1),
        (nn.Conv1d(4, 3, 5), 1),
        (nn.ConvTranspose2d(8, 3, 2), 0),
    ],
)
def test_nm_keeps_the_best_along_the_input_dim(layer, dim):
    before = layer.weight.detach().clone()
    masks = sc.prune(layer, sc.Magnitude(), sc.NM(2, 4))
    groups = before.abs().movedim(dim, -1).reshape(-1, 4)
    best = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.topk(2).indices, True)
    assert torch.equal(masks["weight"].movedim(dim, -1).reshape(-1, 4), best)
    assert masks.sparsity == 0.5
    assert masks.requested == {"weight": 0.5}
    assert torch.equal(layer.weight, before * masks["weight"])


def test_nm_leaves_dense_what_does_not_divide_and_names_it():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1, groups=4))
    before = [layer.weight.clone() for layer in net]
    masks = sc.prune(net, sc.Magnitude(), sc.NM(2, 4))
    assert masks.notes == ("not pruned: 0.weight, 2.weight (no input dim that divides by 4)",)
    assert torch.equal(net[0].weight, before[0])
    assert torch.equal(net[2].weight, before[2])
    assert int((net[1].weight == 0).sum()) == before[1].numel() // 2
    assert masks.requested == {"1.weight": 0.5}
    with pytest.raises(BudgetError, match=r"0\.weight: shape \(8, 3, 3, 3\) .* by 4, nor has any other"):
        sc.prune(net, sc.Magnitude(), sc.NM(2, 4), include="0")
    with pytest.raises(BudgetError, match=r"1\.bias: shape \(8,\) has no input dim"):
        sc.prune(net, sc.Magnitude(), sc.NM(2, 4), include="1.bias")


def test_lamp_keeps_what_it_is_told_to():
    with pytest.raises(BudgetError, match="min_kept is -1"):
        sc.LAMP(0.5, min_kept=-1)
