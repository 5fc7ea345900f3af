"""Budgets: exact counts, and each rule against a direct reading of its paper."""

from __future__ import annotations

import copy
import math
import warnings
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.errors import BudgetError, NonFiniteError, SecateurWarning
from secateur.pruning import budgets
from secateur.pruning.selection import Cut, Scores

shares = st.floats(0, 1)
shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4)


def of(weights: list[Tensor]) -> tuple[dict[str, Scores], dict[str, Tensor]]:
    named = {f"w{i}": w for i, w in enumerate(weights)}
    return {n: Scores(n, tuple(w.shape), w.abs().__getitem__) for n, w in named.items()}, named


def pruned(budget, weights: list[Tensor]) -> list[Tensor]:
    scores, named = of(weights)
    cuts = budget(scores, named)
    assert list(cuts) == list(named)
    return [cuts[n].pruned(scores[n]) for n in named]


def counts(budget, weights: list[Tensor]) -> list[int]:
    return [int(d.count_nonzero()) for d in pruned(budget, weights)]


def random(sizes: list[tuple[int, ...]], seed: int = 0) -> list[Tensor]:
    """Weights without ties, of another scale in each layer."""
    torch.manual_seed(seed)
    return [torch.randn(s, dtype=torch.float64) * 4.0 ** -(i % 3) for i, s in enumerate(sizes)]


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


def test_nm_needs_a_dim_that_divides():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(
        BudgetError, match=r"0\.weight: shape \(8, 3, 3, 3\) has no input dim .* by 4; exclude"
    ):
        sc.prune(net, sc.Magnitude(), sc.NM(2, 4))
    assert sc.prune(net, sc.Magnitude(), sc.NM(2, 4), exclude="0").sparsity == 0.5
    with pytest.raises(BudgetError, match=r"1\.bias: shape \(8,\) has no input dim"):
        sc.prune(net, sc.Magnitude(), sc.NM(2, 4), include="1.bias")


# -- what no budget can be -----------------------------------------------------------------------


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf, "0.5", None, 90])
@pytest.mark.parametrize("rule", [sc.Uniform, sc.Global, sc.ERK, sc.LAMP, lambda s: sc.PerLayer({"fc": s})])
def test_a_share_is_between_0_and_1(rule, share):
    with pytest.raises(BudgetError, match=r"sparsity.* is .*; it is a share between 0 and 1"):
        rule(share)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", None])
def test_a_value_is_finite_from_0(value):
    with pytest.raises(BudgetError, match=r"sensitivity is .*; it is a finite number from 0"):
        sc.Std(value)
    with pytest.raises(BudgetError, match=r"threshold is .*; it is a finite number from 0"):
        sc.Threshold(value)


def test_other_settings():
    with pytest.raises(BudgetError, match="min_kept is -1; it counts entries, from 0"):
        sc.Global(0.5, min_kept=-1)
    for keep, of_ in [(0, 4), (5, 4), (-1, 2)]:
        with pytest.raises(BudgetError, match=rf"NM\({keep}, {of_}\): keep 1 to {of_} of every {of_}"):
            sc.NM(keep, of_)


BUDGETS = [
    sc.Uniform(0.5), sc.Global(0.5), sc.Global(0.5, min_kept=1), sc.ERK(0.5), sc.LAMP(0.5), sc.NM(2, 4),
    sc.PerLayer({"*": 0.5}), sc.Std(1.0), sc.Std(1.0, living=True), sc.Threshold(0.1),
]  # fmt: skip


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_weights_are_refused_and_nothing_changes(mlp, budget, bad):
    net = mlp()
    with torch.no_grad():
        net[2].weight[3, 5] = bad
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"^2\.weight: .*NaN or an infinity"):
        sc.prune(net, sc.Magnitude(), budget)
    assert all(torch.equal(t.nan_to_num(9), before[n].nan_to_num(9)) for n, t in net.state_dict().items())


def test_cut_keeps_what_was_asked_for():
    scores, named = of([torch.rand(2, 5)])
    assert sc.Uniform(0.33)(scores, named)["w0"].requested == 0.33
    assert isinstance(sc.Global(0.5)(scores, named)["w0"], Cut)
    assert sc.Global(0.5)(scores, named)["w0"].requested is None


def test_magnitude_ratios_take_magnitudes_counts_by_other_scores():
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, 0.2, 0.3, 5.0]]))
        model[1].weight.copy_(torch.tensor([[6.0], [7.0], [0.4], [8.0]]))
    counts = []
    for seed in range(5):
        copied = copy.deepcopy(model)
        masks = sc.prune(copied, sc.Random(seed), sc.MagnitudeRatios(0.5))
        assert [int((~mask).sum()) for mask in masks.values()] == [3, 1]  # 0.1, 0.2, 0.3 and 0.4
        counts.append(tuple(masks["0.weight"][0].tolist()))
    assert len(set(counts)) > 1, "which of them go is the criterion's choice"


def test_per_layer_without_a_layer_is_refused():
    with pytest.raises(BudgetError, match="names no layer"):
        sc.PerLayer({})


def test_lamp_keeps_what_it_is_told_to():
    with pytest.raises(BudgetError, match="min_kept is -1"):
        sc.LAMP(0.5, min_kept=-1)


NO_SHARES = [True, False, math.nan, math.inf, -0.1, 1.1, "0.5", None, [0.5], 1j, 10**400]


@pytest.mark.parametrize("value", NO_SHARES, ids=repr)
def test_what_is_no_share_is_refused_by_every_budget(value):
    """True is not 100 %: it once pruned everything."""
    rules = [sc.Uniform, sc.Global, sc.ERK, sc.LAMP, sc.MagnitudeRatios, sc.ParameterShare]
    for make in (*rules, lambda share: sc.PerLayer({"fc1": share})):
        with pytest.raises(BudgetError, match="it is a share between 0 and 1"):
            make(value)


@pytest.mark.parametrize("value", [True, math.nan, math.inf, -0.1, "0.5", None, 10**400], ids=repr)
def test_what_is_no_value_is_refused(value):
    for rule in (sc.Std, sc.Threshold):
        with pytest.raises(BudgetError, match="it is a finite number from 0"):
            rule(value)


def test_counts_and_flags_are_what_they_are():
    for wrong in (True, -1, 1.5, "1", None, math.nan):
        for rule in (sc.Global, sc.LAMP):
            with pytest.raises(BudgetError, match=r"min_kept is .*; it counts entries"):
                rule(0.5, min_kept=wrong)
        for keep, of in ((wrong, 4), (2, wrong)):
            with pytest.raises(BudgetError, match="NM"):
                sc.NM(keep, of)
    for wrong in (1, "true", None):
        with pytest.raises(BudgetError, match=r"living is .*; it is True or False"):
            sc.Std(1.0, living=wrong)
    for wrong in (0.5, [0.5], {1: 0.5}, "fc1", None):
        with pytest.raises(BudgetError, match="is no mapping of shares by pattern"):
            sc.PerLayer(wrong)
