"""What becomes of a weight: the formulas, entry by entry, and the counts that source S1 quotes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.errors import BudgetError, NonFiniteError
from secateur.pruning.selection import Cut
from secateur.pruning.shrinkage import soft_threshold

SHRINKAGES = [sc.Hard(), sc.Soft(), sc.Trimmed(0.9), sc.Smooth(2.0), sc.Smooth(1.0)]


def shrunk(linear, values: list[float] | Tensor, shrinkage, budget=None) -> tuple[Tensor, Tensor]:
    """Return (weights after, mask) of a one-row layer."""
    row = values if isinstance(values, Tensor) else torch.tensor(values)
    layer = linear(row.view(1, -1))
    masks = sc.prune(layer, sc.Magnitude(), budget or sc.Threshold(0.5), shrinkage=shrinkage)
    return layer.weight.detach().flatten(), masks["weight"].flatten()


VALUES = [-2.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 4.0]


def test_hard(linear):
    weights, mask = shrunk(linear, VALUES, sc.Hard())
    assert weights.tolist() == [-2.0, -0.5, 0, 0, 0, 0.5, 0.75, 4.0]  # |w| = t stays
    assert mask.tolist() == [True, True, False, False, False, True, True, True]


def test_hard_leaves_no_minus_zero(linear):
    weights, _ = shrunk(linear, [-0.25, 0.25, -1.0], sc.Hard())
    assert not weights[:2].signbit().any()


def test_soft(linear):
    weights, mask = shrunk(linear, VALUES, sc.Soft())
    assert weights.tolist() == [-1.5, 0, 0, 0, 0, 0, 0.25, 3.5]  # |w| = t goes: it would be 0
    assert mask.tolist() == [True, False, False, False, False, False, True, True]


@given(st.floats(0, 2), st.integers(0, 99))
def test_soft_threshold_is_the_proximal_map_of_l1(threshold, seed):
    torch.manual_seed(seed)
    w = torch.randn(50, dtype=torch.float64)
    expected = w.sign() * (w.abs() - threshold).clamp(min=0)
    torch.testing.assert_close(soft_threshold(w, threshold), expected, rtol=0, atol=0)


def test_soft_at_a_count_loses_the_cut(linear):
    weights, mask = shrunk(linear, [1.0, -2.0, 3.0, -4.0], sc.Soft(), sc.Uniform(0.5))
    assert weights.tolist() == [0, 0, 1.0, -2.0]
    assert mask.tolist() == [False, False, True, True]
    weights, mask = shrunk(linear, [1.0, -2.0], sc.Soft(), sc.Uniform(0.0))
    assert weights.tolist() == [1.0, -2.0]


def test_trimmed(linear):
    # Eight weights: the 0.75 quantile of |w| is the 7th in order, 2.0; from there on all stay.
    weights, mask = shrunk(linear, VALUES, sc.Trimmed(0.75))
    assert weights.tolist() == [-2.0, 0, 0, 0, 0, 0, 0.25, 4.0]
    assert mask.tolist() == [True, False, False, False, False, False, True, True]


def test_trimmed_with_the_upper_bound_under_the_threshold(linear):
    # Upper = 0.5 here: what reaches it stays although it is under t = 3; only 4.0 is over both.
    weights, mask = shrunk(linear, VALUES, sc.Trimmed(0.4), sc.Threshold(3.0))
    assert weights.tolist() == [-2.0, -0.5, 0, 0, 0, 0.5, 0.75, 4.0]
    assert mask.tolist() == [True, True, False, False, False, True, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.floats(0, 3), st.floats(0.01, 0.99), st.integers(1, 80), st.integers(0, 99))
def test_trimmed_is_non_zero_exactly_where_source_1_says(linear_of, dtype, threshold, upper, size, seed):
    torch.manual_seed(seed)
    before = torch.randn(1, size).to(dtype)
    layer = linear_of(before)
    masks = sc.prune(layer, sc.Magnitude(), sc.Threshold(threshold), shrinkage=sc.Trimmed(upper))
    ascending = before.abs().flatten().sort().values
    bound = ascending[min(size - 1, round(upper * size))]
    t = torch.tensor(threshold, dtype=dtype)
    expected = (before.abs() > t) | (before.abs() >= bound)
    after = layer.weight.detach()
    assert torch.equal(after != 0, expected & (before != 0))
    assert torch.equal(masks["weight"], expected)
    over = before.abs() >= bound
    assert torch.equal(after[over], before[over])
    between = expected & ~over
    torch.testing.assert_close(after[between], before[between] - t * before[between].sign())


@pytest.fixture(scope="module")
def linear_of():
    def make(weight: Tensor) -> nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight)
        return layer

    return make


def test_smooth(linear):
    values = [-2.0, 0.5, 0.25, 1.0]
    weights, mask = shrunk(linear, values, sc.Smooth(2.0))
    assert weights.tolist() == pytest.approx([-2.0 * (1 - 1 / 16), 0, 0, 1 - 1 / 4])
    assert mask.tolist() == [True, False, False, True]
    soft, _ = shrunk(linear, torch.linspace(-2, 2, 41), sc.Soft())
    smooth, _ = shrunk(linear, torch.linspace(-2, 2, 41), sc.Smooth(1.0))
    torch.testing.assert_close(soft, smooth)
    hard, _ = shrunk(linear, torch.linspace(-2, 2, 41), sc.Hard(), sc.Threshold(0.55))
    steep, _ = shrunk(linear, torch.linspace(-2, 2, 41), sc.Smooth(200.0), sc.Threshold(0.55))
    torch.testing.assert_close(hard, steep)
    unchanged, _ = shrunk(linear, values, sc.Smooth(2.0), sc.Threshold(0.0))
    assert unchanged.tolist() == values


@pytest.mark.parametrize("shrinkage", SHRINKAGES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_mask_is_where_the_weight_is_not_zero(linear, shrinkage, dtype):
    layer = linear((torch.randn(40, 30) * 0.1).to(dtype))
    masks = sc.prune(layer, sc.Magnitude(), sc.Threshold(0.05), shrinkage=shrinkage)
    assert torch.equal(masks["weight"], layer.weight != 0)
    assert 0.1 < masks.sparsity < 0.9
    assert layer.weight.dtype == dtype


@pytest.mark.parametrize("shrinkage", SHRINKAGES, ids=str)
def test_masked_weights_stay_masked(linear, shrinkage):
    layer = linear(torch.randn(20, 20) + 2)
    first = sc.prune(layer, sc.Magnitude(), sc.Uniform(0.97))
    with torch.no_grad():
        layer.weight += 3 * ~first["weight"]  # somebody else brought them back, larger than the rest
    second = sc.prune(layer, sc.Magnitude(), sc.Threshold(0.1), shrinkage=shrinkage, masks=first)
    assert not (second["weight"] & ~first["weight"]).any()
    assert not layer.weight.detach()[~first["weight"]].any()


def test_std_goes_with_every_shrinkage(linear):
    weights = torch.randn(1, 500)
    deviation = weights.double().std(correction=0).item()
    for shrinkage in SHRINKAGES:
        after, _ = shrunk(linear, weights.flatten(), shrinkage, sc.Std(1.0))
        under = weights.flatten().abs() < deviation - 1e-6
        assert not after[under].any()


# -- source S1 -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lenet() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [784, 300, 100, 10]
    net = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
    assert sum(p.numel() for p in net.parameters()) == 266_610
    return net


QUOTED = {
    98: "46.5", 97: "31.75", 95: "19.43", 90: "9.86", 85: "6.61", 80: "4.97", 75: "3.98", 70: "3.32",
    65: "2.85", 60: "2.49", 55: "2.22",
}  # fmt: skip


@pytest.mark.parametrize("percentile", QUOTED)
def test_compression_rates_of_source_1_to_the_digits_shown(lenet, percentile):
    torch.manual_seed(percentile)
    for parameter in lenet.parameters():
        nn.init.normal_(parameter, std=0.05)
    sc.prune(lenet, sc.Magnitude(), sc.Uniform(percentile / 100))
    nonzero = sum(int(p.count_nonzero()) for p in lenet.parameters())
    assert nonzero == 266_200 * (100 - percentile) // 100 + 410
    digits = len(QUOTED[percentile].partition(".")[2])
    assert f"{266_610 / nonzero:.{digits}f}" == QUOTED[percentile]


@pytest.mark.parametrize(("upper", "number"), [(0.995, 1331), (0.99, 2662), (0.98, 5324), (0.97, 7986)])
def test_trimmed_keeps_the_percentile_where_no_weight_passes_the_threshold(lenet, upper, number):
    torch.manual_seed(1)
    for parameter in lenet.parameters():
        nn.init.normal_(parameter, std=0.005)  # t = 0.05 is ten deviations away
    sc.prune(lenet, sc.Magnitude(), sc.Threshold(0.05), shrinkage=sc.Trimmed(upper))
    assert sum(int(layer.weight.count_nonzero()) for layer in lenet) == number


# -- what does not go together ---------------------------------------------------------------------


@pytest.mark.parametrize("shrinkage", SHRINKAGES[1:], ids=str)
def test_shrinkages_that_read_weights_go_with_magnitude_alone(mlp, shrinkage):
    name = type(shrinkage).__name__
    with pytest.raises(BudgetError, match=f"{name} reads .* with Magnitude alone, not with Random"):
        sc.prune(mlp(), sc.Random(), sc.Threshold(0.5), shrinkage=shrinkage)
    with pytest.raises(BudgetError, match=f"{name} works on single weights, not on blocks"):
        sc.prune(mlp(), sc.Magnitude(), sc.Threshold(0.5), shrinkage=shrinkage, granularity=sc.Block(2, 2))
    with pytest.raises(BudgetError, match=r"N:M|value budget"):
        sc.prune(mlp(), sc.Magnitude(), sc.NM(2, 4), shrinkage=shrinkage)


def test_trimmed_does_not_go_with_a_count(mlp):
    net = mlp()
    before = net[0].weight.detach().clone()
    for budget in (sc.Uniform(0.5), sc.Global(0.5), sc.ERK(0.5), sc.LAMP(0.5)):
        with pytest.raises(BudgetError, match=r"value budget \(Threshold, Std\), not with a count"):
            sc.prune(net, sc.Magnitude(), budget, shrinkage=sc.Trimmed())
    assert torch.equal(net[0].weight, before)


def test_a_cut_that_a_shrinkage_refuses_is_found_before_any_weight_changes(mlp):
    def by_value_then_by_count(scores, weights):
        return {"0.weight": Cut(0.2), "2.weight": Cut(0.2, ties=0)}

    net = mlp()
    before = net[0].weight.detach().clone()
    with pytest.raises(BudgetError, match="not with a count"):
        sc.prune(net, sc.Magnitude(), by_value_then_by_count, shrinkage=sc.Trimmed())
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize("upper", [0, 1, 1.5, -0.1, math.nan, True, "0.9", None])
def test_trimmed_settings(upper):
    with pytest.raises(BudgetError, match=r"upper is .*; it is a quantile between 0 and 1"):
        sc.Trimmed(upper)


@pytest.mark.parametrize("a", [0, -1, math.nan])
def test_smooth_settings(a):
    with pytest.raises(BudgetError, match=r"a is .*; it is a power above 0"):
        sc.Smooth(a)


@pytest.mark.parametrize("shrinkage", SHRINKAGES, ids=str)
def test_non_finite_weights_change_nothing(mlp, shrinkage):
    net = mlp()
    with torch.no_grad():
        net[2].weight[0, 0] = torch.nan
    before = net[0].weight.detach().clone()
    with pytest.raises(NonFiniteError, match=r"2\.weight"):
        sc.prune(net, sc.Magnitude(), sc.Threshold(0.1), shrinkage=shrinkage)
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_complex_weights_keep_their_direction_and_lose_what_their_size_would(linear, shrinkage):
    sizes, turn = torch.tensor(VALUES).abs(), torch.polar(torch.ones(8), torch.arange(8.0))
    layer = nn.Linear(8, 1, bias=False, dtype=torch.complex64)
    with torch.no_grad():
        layer.weight.copy_(sizes * turn)
    masks = sc.prune(layer, sc.Magnitude(), sc.Threshold(0.6), shrinkage=shrinkage)
    wanted, kept = shrunk(linear, sizes, shrinkage, sc.Threshold(0.6))
    torch.testing.assert_close(layer.weight.detach()[0], wanted * turn)
    assert torch.equal(masks["weight"].flatten(), kept)
