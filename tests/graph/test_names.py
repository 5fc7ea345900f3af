"""Wrappers leave no trace in names, and a user's own attributes that are called like theirs do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import secateur as sc
from secateur.errors import MaskError
from secateur.graph.names import canonical_names, canonical_parameters, network_of

X, Y = torch.randn(6, 8), torch.randint(0, 4, (6,))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.query, self.value, self.classifier = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.value(self.query(x).relu()).relu())


NAMES = [f"{layer}.{leaf}" for layer in ("query", "value", "classifier") for leaf in ("weight", "bias")]
WEIGHTS = NAMES[::2]


class Own(nn.Module):
    """Names that wrappers use, in a network that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(8, 4)
        self._orig_mod = nn.Linear(4, 4)
        self.base_model = nn.Sequential()
        self.base_model.model = nn.Linear(4, 4)
        self.base_layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(self.base_model(self._orig_mod(self.module(x))))


def test_a_users_own_attributes_keep_their_names():
    names = ["module.weight", "_orig_mod.weight", "base_model.model.weight", "base_layer.weight"]
    net = Own()
    assert list(sc.find_targets(net)) == names
    assert list(canonical_parameters(AveragedModel(torch.compile(net, backend="eager"))))[::2] == names
    assert network_of(net) is net


@pytest.mark.parametrize("child", ["query", "value"])
def test_compiled_children(child):
    net = Net()
    setattr(net, child, torch.compile(getattr(net, child), backend="eager"))
    assert list(canonical_parameters(net)) == NAMES
    assert canonical_names(net)[f"{child}.weight"] == f"{child}.weight"
    masks = sc.prune(Net(), sc.Magnitude(), sc.Uniform(0.5)).bind(net).apply()
    masks.check()
    optimizer = torch.optim.Adam(net.parameters())
    with masks.held(optimizer):
        nn.functional.cross_entropy(net(X), Y).backward()
        optimizer.step()


# -- LoRA ------------------------------------------------------------------------------------------------


def adapted(net: nn.Module, **options) -> nn.Module:
    import peft

    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False, **options)
    return peft.get_peft_model(net, config)


def test_adapters_are_no_targets_unless_named():
    net = adapted(Net())
    assert network_of(net) is net.base_model.model
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    assert list(masks) == WEIGHTS
    (note,) = [note for note in masks.notes if "adapter" in note]
    assert note == (
        "not pruned: query.lora_A.default.weight, query.lora_B.default.weight, value.lora_A.default.weight, "
        "value.lora_B.default.weight (part of an adapter; include it by name: include='*lora_*', say)"
    )
    named = sc.find_targets(net, include="*lora_*")
    assert sorted(named) == sorted(f"{n}.lora_{k}.default.weight" for n in ("query", "value") for k in "AB")
    assert list(sc.find_targets(net, include="query.lora_A")) == ["query.lora_A.default.weight"]


class OwnLora(nn.Module):
    """As many write it themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.lora_a, self.lora_b = nn.Linear(8, 4), nn.Linear(8, 2), nn.Linear(2, 4)


def test_adapters_of_ones_own_are_no_targets_either():
    assert list(sc.find_targets(OwnLora())) == ["linear.weight"]


@pytest.mark.parametrize("criterion", [sc.Magnitude(), sc.Wanda(), sc.Taylor(), sc.Fisher()])
def test_criteria_under_adapters(criterion):
    net = adapted(Net())
    masks = sc.prune(net, criterion, sc.Uniform(0.5), data=[(X, Y)])
    assert list(masks) == WEIGHTS
    assert not net.base_model.model.query.base_layer.weight[~masks["query.weight"]].any()


def test_masks_bind_across_adapting_and_merging():
    base = Net()
    masks = sc.prune(base, sc.Magnitude(), sc.Uniform(0.5))
    net = adapted(base, modules_to_save=["classifier"])
    assert list(sc.find_targets(net)) == WEIGHTS
    bound = masks.bind(net)
    bound.check()
    assert bound.parameters()[
        "classifier.weight"
    ].requires_grad  # the one that trains, not the one kept aside
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.1)
    with bound.held(optimizer):
        for _ in range(3):
            nn.functional.cross_entropy(net(X), Y).backward()
            optimizer.step()
    merged = net.merge_and_unload()
    after = masks.bind(merged)
    with pytest.raises(
        MaskError,
        match=r"^query\.weight: 64 masked weights are not zero; 160 in 2 tensors; .*a merged adapter\?\); "
        r"masks\.apply\(\) puts the zeros back",
    ):
        after.check()
    after.apply().check()
    assert list(merged.state_dict()) == NAMES


def test_masks_of_an_adapted_network_fit_the_plain_one(tmp_path):
    net = adapted(Net())
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    masks.save(tmp_path / "m")
    assert sc.Masks.load(tmp_path / "m", Net()).apply() == masks
    twin = copy.deepcopy(net)
    assert masks.bind(twin) == masks


def test_units_under_adapters_go_by_the_same_names():
    net = Net()
    structure = sc.trace(net, X)
    masks = sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    assert masks.bind(adapted(net)).apply() == masks
