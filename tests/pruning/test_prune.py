"""``prune`` as a whole: what is zeroed, what is returned, and that errors change nothing."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.errors import BudgetError, MaskError, NonFiniteError, SecateurWarning


def test_zeroes_in_place_and_returns_what_it_zeroed(linear):
    layer = linear([[1.0, -0.5], [0.25, -2.0]], bias=[0.1, 0.2])
    weight = layer.weight
    masks = sc.prune(layer, sc.Magnitude(), sc.Global(0.5))
    assert layer.weight is weight
    assert weight.tolist() == [[1.0, 0.0], [0.0, -2.0]]
    assert masks["weight"].tolist() == [[True, False], [False, True]]
    assert layer.bias.tolist() == pytest.approx([0.1, 0.2])
    assert weight.requires_grad
    assert masks.model is layer


def test_the_mask_is_what_was_cut_not_which_values_are_zero(linear):
    layer = linear([[0.0, 0.0, 0.0, 1.0]])
    masks = sc.prune(layer, sc.Magnitude(), sc.Uniform(0.5))
    assert int(masks["weight"].count_nonzero()) == 2
    assert int(layer.weight.count_nonzero()) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@given(share=st.floats(0, 1), seed=st.integers(0, 50))
def test_exact_counts_in_every_dtype(dtype, share, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Flatten(), nn.Linear(5, 9)).to(dtype)
    number = 7 * 3 * 9 + 45
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecateurWarning)
        masks = sc.prune(net, sc.Magnitude(), sc.Global(share))
    assert sum(int((~m).count_nonzero()) for m in masks.values()) == round(share * number)
    assert sum(int((t == 0).count_nonzero()) for t in (net[0].weight, net[2].weight)) == round(share * number)


def test_layers_of_different_dtypes(linear):
    net = nn.Sequential(
        linear(torch.tensor([[1.0, 4.0]])),
        linear(torch.tensor([[2.0, 5.0]], dtype=torch.bfloat16)),
        linear(torch.tensor([[3.0, 6.0]], dtype=torch.float64)),
        linear(torch.tensor([[2.5, 7.0]], dtype=torch.float16)),
    )
    sc.prune(net, sc.Magnitude(), sc.Global(0.5))
    assert [layer.weight.tolist() for layer in net] == [[[0, 4]], [[0, 5]], [[0, 6]], [[0, 7]]]


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 50))
def test_pruning_on_keeps_what_was_masked(first, second, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 4))
    first, second = sorted([first, second])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecateurWarning)
        before = sc.prune(net, sc.Magnitude(), sc.Global(first))
        with torch.no_grad():
            for layer in net:
                layer.weight.normal_()  # training that did not hold the zeros
        after = sc.prune(net, sc.Magnitude(), sc.Global(second), masks=before)
    assert all((before[n] | ~after[n]).all() for n in before)
    assert sum(int((~m).count_nonzero()) for m in after.values()) == round(second * 70)
    assert all(not layer.weight.detach()[~after[f"{i}.weight"]].any() for i, layer in enumerate(net))


@pytest.mark.parametrize("budget", [sc.Uniform(0.6), sc.Global(0.6), sc.ERK(0.6), sc.LAMP(0.6), sc.NM(2, 4)])
def test_the_same_again_changes_nothing(mlp, budget):
    net = mlp()
    once = sc.prune(net, sc.Magnitude(), budget)
    before = copy.deepcopy(net.state_dict())
    again = sc.prune(net, sc.Magnitude(), budget, masks=once)
    assert all(torch.equal(once[n], again[n]) for n in once)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_masks_of_other_tensors_are_carried_on(mlp):
    net = mlp()
    first = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5), include="0")
    both = sc.prune(net, sc.Magnitude(), sc.Uniform(0.25), include="2", masks=first)
    assert torch.equal(both["0.weight"], first["0.weight"])
    assert both.layers()[0]["sparsity"] == 0.25
    assert set(both) == {"0.weight", "2.weight"}


def test_masks_of_a_copy_are_bound_anew(mlp):
    net, twin = mlp(), mlp()
    first = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    second = sc.prune(twin, sc.Magnitude(), sc.Uniform(0.5), masks=first)
    assert second.model is twin
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_masks_of_another_network_are_refused(mlp):
    masks = sc.prune(nn.Sequential(nn.Linear(8, 3)), sc.Magnitude(), sc.Uniform(0.5))
    with pytest.raises(MaskError, match=r"^0\.weight: the mask has shape \(3, 8\), the parameter \(16, 8\)"):
        sc.prune(mlp(), sc.Magnitude(), sc.Uniform(0.5), masks=masks)


def test_asking_for_less_than_is_masked_is_refused(mlp):
    net = mlp()
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    before = copy.deepcopy(net.state_dict())
    message = r"^0\.weight: 64 weights are masked already and the budget takes 32; ask for at least as much"
    for budget in (sc.Uniform(0.25), sc.PerLayer({"0": 0.25, "2": 1.0})):
        with pytest.raises(MaskError, match=message):
            sc.prune(net, sc.Magnitude(), budget, masks=masks)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_value_budgets_add_to_what_is_masked(linear):
    layer = linear([[3.0, 2.0, 0.1, 1.0]])
    first = sc.Masks(layer, {"weight": torch.tensor([[False, True, True, True]])})
    masks = sc.prune(layer, sc.Magnitude(), sc.Threshold(0.5), masks=first)
    assert masks["weight"].tolist() == [[False, True, False, True]]
    assert layer.weight.tolist() == [[0.0, 2.0, 0.0, 1.0]]


# -- blocks ------------------------------------------------------------------------------------------


def test_block_by_hand(linear):
    layer = linear([[1.0, 1, 9, 9], [1, 1, 9, 9], [5, 5, 2, 2], [5, 5, 2, 2]])
    masks = sc.prune(layer, sc.Magnitude(), sc.Uniform(0.5), granularity=sc.Block(2, 2))
    assert masks["weight"].int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert torch.equal(layer.weight != 0, masks["weight"])


def test_ragged_blocks_count_by_their_own_mean(linear):
    # 3 x 5 in blocks of 2 x 2: the corner block is one weight, and its mean is that weight.
    weights = torch.tensor([[4.0, 4, 1, 1, 3], [4, 4, 1, 1, 3], [2, 2, 9, 9, 0.5]])
    expected = [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [0, 0, 1, 1, 0]]
    masks = sc.prune(linear(weights), sc.Magnitude(), sc.Uniform(0.5), granularity=sc.Block(2, 2))
    assert masks["weight"].int().tolist() == expected


def naive_blocks(weight: Tensor, height: int, width: int) -> list[tuple[float, Tensor]]:
    matrix = weight.detach().abs().flatten(1)
    blocks = []
    for i in range(0, matrix.shape[0], height):
        for j in range(0, matrix.shape[1], width):
            where = torch.zeros_like(matrix, dtype=torch.bool)
            where[i : i + height, j : j + width] = True
            blocks.append((matrix[where].mean().item(), where.view_as(weight)))
    return blocks


@given(
    st.integers(1, 5), st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.floats(0, 1),
    st.integers(0, 50),
)  # fmt: skip
def test_blocks_go_whole_lowest_mean_first(height, width, outputs, inputs, share, seed):
    torch.manual_seed(seed)
    net = nn.Conv2d(inputs, outputs, (2, 3))
    blocks = sorted(naive_blocks(net.weight, height, width), key=lambda block: block[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecateurWarning)
        masks = sc.prune(net, sc.Magnitude(), sc.Uniform(share), granularity=sc.Block(height, width))
    gone = torch.zeros_like(net.weight, dtype=torch.bool)
    for _, where in blocks[: round(share * len(blocks))]:
        gone |= where
    assert torch.equal(masks["weight"], ~gone)


def test_blocks_already_masked_go_first(linear):
    layer = linear(torch.ones(4, 6))
    first = sc.Masks(layer, {"weight": torch.arange(6).expand(4, 6) >= 2})
    masks = sc.prune(layer, sc.Magnitude(), sc.Uniform(0.5), granularity=sc.Block(2, 2), masks=first)
    assert not masks["weight"][:, :2].any()
    assert int(masks["weight"].count_nonzero()) == 12
    assert (masks["weight"].view(2, 2, 3, 2).float().mean((1, 3)) % 1 == 0).all()


@pytest.mark.parametrize("sides", [(0, 1), (1, 0), (-1, 2)])
def test_a_block_has_sides(sides):
    with pytest.raises(BudgetError, match="both sides count from 1"):
        sc.Block(*sides)


# -- what is said about it -----------------------------------------------------------------------------


def test_an_emptied_layer_is_noted_and_warned_of_where_the_user_stands(linear):
    net = nn.Sequential(linear([[0.1, 0.2]]), linear([[1.0, 2.0], [3.0, 4.0]]))
    with pytest.warns(SecateurWarning, match=r"^0\.weight is emptied: .* nothing but its bias") as caught:
        masks = sc.prune(net, sc.Magnitude(), sc.Global(2 / 6))
    assert [w.filename for w in caught] == [__file__]
    assert masks.notes[0].startswith("0.weight is emptied")


def test_protected_weights_are_noted(convnet):
    masks = sc.prune(convnet(), sc.Magnitude(), sc.Uniform(0.5), exclude=["0", "6"])
    assert masks.notes == ("not pruned: 0.weight, 0.bias, 6.weight, 6.bias (excluded by name)",)
    masks = sc.prune(convnet(), sc.Magnitude(), sc.Uniform(0.5), include="0")
    assert masks.notes == (
        "not pruned: 0.bias, 1.weight, 1.bias, 3.weight and 5 more (not included by name)",
    )


def test_requested_stands_beside_achieved(mlp):
    masks = sc.prune(mlp(), sc.Magnitude(), sc.Global(0.6))
    assert masks.requested_overall == 0.6
    assert masks.requested == {}
    assert masks.sparsity == pytest.approx(115 / 192)
    masks = sc.prune(mlp(), sc.Magnitude(), sc.Uniform(0.333))
    assert [row["requested"] for row in masks.layers()] == [0.333, 0.333]
    assert [row["kept"] for row in masks.layers()] == [128 - 43, 64 - 21]
    assert sc.prune(mlp(), sc.Magnitude(), sc.Threshold(0.1)).requested_overall is None


def test_the_number_of_threads_comes_back(mlp):
    torch.set_num_threads(2)
    sc.prune(mlp(), sc.Magnitude(), sc.Global(0.5))
    assert torch.get_num_threads() == 2
    with pytest.raises(NonFiniteError):
        sc.prune(mlp(), lambda targets, *_: {n: t.weight / 0 for n, t in targets.items()}, sc.Global(0.5))
    assert torch.get_num_threads() == 2


def test_the_models_forward_and_names_stay(mlp):
    net = mlp()
    names = list(net.state_dict())
    sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    assert list(net.state_dict()) == names
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
    assert "forward" not in vars(net)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models_are_pruned_under_the_same_names(mlp, wrap):
    net, plain = mlp(), mlp()
    masks = sc.prune(wrap(net), sc.Magnitude(), sc.Global(0.7))
    expected = sc.prune(plain, sc.Magnitude(), sc.Global(0.7))
    assert list(masks) == list(expected)
    assert all(torch.equal(masks[n], expected[n]) for n in expected)
    assert torch.equal(net[0].weight, plain[0].weight)


def test_channels_last_weights_are_pruned_alike(convnet):
    plain, last = convnet(), convnet().to(memory_format=torch.channels_last)
    expected = sc.prune(plain, sc.Magnitude(), sc.Global(0.6))
    masks = sc.prune(last, sc.Magnitude(), sc.Global(0.6))
    assert all(torch.equal(masks[n], expected[n]) for n in expected)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), last.parameters(), strict=True))


def test_on_each_device_the_same(device, convnet):
    here, there = convnet(), convnet().to(device)
    for budget in (sc.Global(0.5), sc.LAMP(0.6), sc.ERK(0.7), sc.Std(1.0)):
        expected = sc.prune(here, sc.Magnitude(), budget)
        masks = sc.prune(there, sc.Magnitude(), budget)
        assert all(torch.equal(masks[n].cpu(), expected[n]) for n in expected)
        assert all(m.device.type == device for m in masks.values())


def test_non_finite_scores_of_a_criterion_change_nothing(mlp):
    net = mlp()
    before = copy.deepcopy(net.state_dict())

    def rotten(targets, data=None, loss=None):
        return {n: t.weight / (0 if n == "2.weight" else 1) for n, t in targets.items()}

    for budget in (sc.Uniform(0.5), sc.Threshold(0.1)):
        with pytest.raises(NonFiniteError, match=r"^2\.weight: its weights or scores hold"):
            sc.prune(net, rotten, budget)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
