"""Masks as a thing: bound to a model by name, combined, printed, written, read, taken over."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune as torch_prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import secateur as sc
from secateur.errors import MaskError, NonFiniteError, StorageError
from secateur.storage import load_tensors, pack_bits, save_tensors


@pytest.fixture
def pruned(mlp):
    net = mlp()
    return net, sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))


def of(net: nn.Module, **kept: list) -> sc.Masks:
    return sc.Masks(net, {n.replace("_", "."): torch.tensor(k, dtype=torch.bool) for n, k in kept.items()})


# -- a mapping -----------------------------------------------------------------------------------


def test_masks_are_a_mapping_of_what_is_kept(pruned):
    _, masks = pruned
    assert list(masks) == ["0.weight", "2.weight"]
    assert len(masks) == 2
    assert "0.bias" not in masks
    assert masks["2.weight"].dtype == torch.bool
    assert masks.sparsity == 0.75
    assert masks.layers()[1] == {
        "name": "2.weight",
        "shape": [4, 16],
        "weights": 64,
        "kept": 16,
        "sparsity": 0.75,
        "requested": 0.75,
    }


def test_print_is_a_table_with_notes(mlp):
    masks = sc.prune(mlp(), sc.Magnitude(), sc.PerLayer({"0": 0.5, "2": 0.25}), exclude="0.bias")
    assert repr(masks).splitlines() == [
        "tensor    shape  weights  kept  sparsity  requested",
        "0.weight  16x8       128    64    50.00%     50.00%",
        "2.weight  4x16        64    48    25.00%     25.00%",
        "all                  192   112    41.67%",
        "note: not pruned: 0.bias (excluded by name)",
    ]
    assert repr(sc.prune(mlp(), sc.Magnitude(), sc.Global(0.5))).splitlines()[-1].split() == [
        "all", "192", "96", "50.00%", "50.00%",
    ]  # fmt: skip


def test_equality_is_of_names_and_entries(mlp):
    one = sc.prune(mlp(), sc.Magnitude(), sc.Uniform(0.5))
    same = sc.prune(mlp(), sc.Magnitude(), sc.Uniform(0.5))
    assert one == same
    assert one != sc.prune(mlp(), sc.Magnitude(), sc.Uniform(0.25))
    assert one != sc.prune(mlp(), sc.Magnitude(), sc.Uniform(0.5), include="0")
    assert one != {}


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"0.wieght": torch.ones(16, 8).bool()}, r"no parameter '0\.wieght'; did you mean '0\.weight'"),
        (
            {"0.weight": torch.ones(8, 16).bool()},
            r"0\.weight: the mask has shape \(8, 16\), the parameter \(16, 8\)",
        ),
        ({"0.weight": torch.ones(16, 8)}, r"0\.weight: the mask has dtype torch\.float32; bool is right"),
    ],
)
def test_masks_that_do_not_fit(mlp, kept, message):
    with pytest.raises(MaskError, match=message):
        sc.Masks(mlp(), kept)


# -- apply, check, bind ------------------------------------------------------------------------------


def test_apply_zeroes_and_check_asserts(pruned):
    net, masks = pruned
    masks.check()
    with torch.no_grad():
        net[2].weight += 1
    with pytest.raises(MaskError, match=r"^2\.weight: 48 masked weights are not zero; something other"):
        masks.check()
    assert masks.apply() is masks
    masks.check()
    assert int(net[2].weight.count_nonzero()) == 16


def test_apply_to_another_model(pruned, mlp):
    _, masks = pruned
    other = mlp()
    masks.apply(other)
    assert int(other[0].weight.count_nonzero()) == 32
    with pytest.raises(MaskError, match=r"^Linear has no parameter '0\.weight'"):
        masks.apply(nn.Linear(8, 16))
    with pytest.raises(MaskError, match=r"^Sequential has no parameter '0\.weight'"):
        masks.apply(nn.Sequential())  # empty, and so false: it is still the model that was given


def test_apply_to_an_ema_copy_that_remembers_dead_weights(mlp):
    net = mlp()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(net)
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
    average.update_parameters(net)
    assert sc.sparsity(average.module) == 0
    masks.apply(average)
    assert sc.sparsity(average.module) == 0.75
    assert masks.bind(average) == masks


def test_apply_hides_no_nan_and_then_changes_nothing(pruned):
    net, masks = pruned
    with torch.no_grad():
        net[0].weight += 1
        net[2].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^2\.weight holds a NaN or an infinity"):
        masks.apply()
    assert int(net[0].weight.count_nonzero()) == 128


def test_mask_grads(pruned):
    net, masks = pruned
    masks.mask_grads()  # nothing there yet: nothing to do
    net(torch.randn(3, 8)).sum().backward()
    bias = net[0].bias.grad.clone()
    masks.mask_grads()
    assert not net[0].weight.grad[~masks["0.weight"]].any()
    assert net[2].weight.grad[masks["2.weight"]].any()
    assert torch.equal(net[0].bias.grad, bias)


def test_bind_and_deepcopy(pruned):
    net, masks = pruned
    twin = copy.deepcopy(net)
    bound = masks.bind(twin)
    with torch.no_grad():
        twin[0].weight += 1
    masks.check()
    with pytest.raises(MaskError):
        bound.check()
    assert bound.requested == masks.requested
    both = copy.deepcopy(masks)
    assert both == masks
    assert both.model is not net


# -- and, or -----------------------------------------------------------------------------------------


def test_and_or_by_hand(linear):
    net = nn.Sequential(linear([[1.0, 2.0, 3.0]]), linear([[1.0], [2.0]]))
    a = of(net, **{"0_weight": [[1, 1, 0]], "1_weight": [[1], [0]]})
    b = of(net, **{"0_weight": [[1, 0, 1]]})
    assert (a & b) == of(net, **{"0_weight": [[1, 0, 0]], "1_weight": [[1], [0]]})
    assert (b & a) == (a & b)
    assert (a | b) == of(net, **{"0_weight": [[1, 1, 1]]})
    assert (b | a) == (a | b)
    assert (a & a) == (a | a) == a
    c = of(net, **{"0_bias": [1]}) if net[0].bias is not None else of(net, **{"1_weight": [[0], [1]]})
    assert (a & c)["1.weight"].flatten().tolist() == [False, False]


def test_and_or_want_the_same_parameters(pruned):
    _, masks = pruned
    other = sc.prune(nn.Linear(3, 3), sc.Magnitude(), sc.Uniform(0.5))
    with pytest.raises(MaskError, match="no parameter 'weight'"):
        masks & other
    with pytest.raises(MaskError, match="no parameter 'weight'"):
        masks | other


# -- files -------------------------------------------------------------------------------------------


def test_save_and_load(pruned, mlp, tmp_path):
    _, masks = pruned
    masks.save(tmp_path / "masks.safetensors")
    fresh = mlp()
    loaded = sc.Masks.load(tmp_path / "masks.safetensors", fresh)
    assert loaded == masks
    assert repr(loaded) == repr(masks)
    assert loaded.model is fresh
    assert sc.sparsity(fresh) == 0  # until they are applied
    tensors, _ = load_tensors(tmp_path / "masks.safetensors")
    assert {n: t.numel() for n, t in tensors.items()} == {"0.weight": 16, "2.weight": 8}  # bits


def test_load_into_a_compiled_model(pruned, mlp, tmp_path):
    _, masks = pruned
    masks.save(tmp_path / "m")
    compiled = torch.compile(mlp(), backend="eager")
    assert list(sc.Masks.load(tmp_path / "m", compiled).apply()) == ["0.weight", "2.weight"]
    assert sc.sparsity(compiled) == 0.75


def test_load_into_another_network(pruned, tmp_path):
    _, masks = pruned
    masks.save(tmp_path / "m")
    with pytest.raises(MaskError, match=r"m: Linear has no parameter '0\.weight'"):
        sc.Masks.load(tmp_path / "m", nn.Linear(2, 2))
    wider = nn.Sequential(nn.Linear(8, 17), nn.ReLU(), nn.Linear(17, 4))
    with pytest.raises(MaskError, match=r"m: 0\.weight has shape \(16, 8\) there and \(17, 8\) in the model"):
        sc.Masks.load(tmp_path / "m", wider)


def test_files_that_are_not_masks(mlp, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"0.weight": torch.zeros(16, dtype=torch.uint8)}, path)
    with pytest.raises(StorageError, match="not a file of masks"):
        sc.Masks.load(path, mlp())
    packed = pack_bits(torch.ones(16, 8, dtype=torch.bool))
    save_tensors(path, {"0.weight": packed}, {"secateur": "masks 1"})
    with pytest.raises(StorageError, match="not a file of masks"):
        sc.Masks.load(path, mlp())
    save_tensors(path, {"0.weight": packed}, {"secateur": "masks 1", "shapes": {"2.weight": [4, 16]}})
    with pytest.raises(StorageError, match="shapes and the tensors do not name the same"):
        sc.Masks.load(path, mlp())
    save_tensors(path, {"0.weight": packed[:-1]}, {"secateur": "masks 1", "shapes": {"0.weight": [16, 8]}})
    with pytest.raises(StorageError, match="packed mask has 15 bytes; 16 are right"):
        sc.Masks.load(path, mlp())
    torch.save({"0.weight": torch.ones(16, 8)}, path)
    with pytest.raises(StorageError, match=r"x\.safetensors: a pickle checkpoint"):
        sc.Masks.load(path, mlp())
    with pytest.raises(StorageError, match="no such file"):
        sc.Masks.load(tmp_path / "nowhere", mlp())


# -- torch.nn.utils.prune ----------------------------------------------------------------------------


def test_from_torch_prune(mlp):
    net = mlp()
    torch_prune.l1_unstructured(net[0], "weight", 0.5)
    torch_prune.random_unstructured(net[0], "weight", 0.5)  # twice: a container there
    torch_prune.l1_unstructured(net[2], "bias", 0.5)
    x = torch.randn(5, 8)
    before, expected = net(x), net[0].weight_mask.bool()
    masks = sc.Masks.from_torch_prune(net)
    assert torch.equal(masks["0.weight"], expected)
    assert set(masks) == {"0.weight", "2.bias"}
    assert set(net.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert torch.equal(net(x), before)
    assert sc.prune(net, sc.Magnitude(), sc.Uniform(0.9), masks=masks)["2.bias"].sum() == 2
    with pytest.raises(MaskError, match=r"Sequential holds no torch\.nn\.utils\.prune mask"):
        sc.Masks.from_torch_prune(net)


def test_the_same_weights_go_as_by_torch(mlp):
    ours, theirs = mlp(), mlp()
    masks = sc.prune(ours, sc.Magnitude(), sc.Global(0.7))
    layers = [(theirs[0], "weight"), (theirs[2], "weight")]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=round(0.7 * 192))
    assert sc.Masks.from_torch_prune(theirs) == masks
