"""Norms: what goes with a channel, and what stays because it is normalised over."""

from __future__ import annotations

import pytest
from torch import nn
from traced import IMAGE, ROWS, pair, rows

import secateur as sc
from networks.groups import members, only, reasons, singles

# -- norms -------------------------------------------------------------------------------------------


def test_batch_norm_goes_with_its_channel():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1))
    group = only(sc.trace(net, IMAGE))
    places = [*rows("0", "2"), ("1.weight", 0), ("1.bias", 0), ("1.running_mean", 0), ("1.running_var", 0)]
    assert members(group) == {place: singles(5) for place in places}
    assert {part.name for part in group.slices if not part.masked} == {"1.running_mean", "1.running_var"}
    assert group.parameters == 3 + 1 + 1 + 1 + 2


def test_group_norm_lets_whole_groups_go():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6), nn.Conv2d(6, 2, 1))
    found = members(only(sc.trace(net, IMAGE)))
    assert found == {
        place: [[0, 1], [2, 3], [4, 5]] for place in [*rows("0", "2"), ("1.weight", 0), ("1.bias", 0)]
    }


def test_instance_norm_goes_with_its_channel():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.InstanceNorm2d(5, affine=True), nn.Conv2d(5, 2, 1))
    found = members(only(sc.trace(net, IMAGE)))
    assert found["1.weight", 0] == found["2.weight", 1] == singles(5)


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.RMSNorm(4), nn.LayerNorm(4, elementwise_affine=False)])
def test_what_is_normalised_over_stays(norm):
    structure = pair(norm)
    assert not structure.groups
    assert reasons(structure)["a.weight", 0]


def test_one_group_of_a_group_norm_stays():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(1, 6), nn.Conv2d(6, 2, 1))
    structure = sc.trace(net, IMAGE)
    assert not structure.groups
    assert reasons(structure)["0.weight", 0] == "normalised over"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm], ids=["hook", "parametrization"]
)
def test_weight_norm_is_masked_in_its_length_alone(wrap):
    group = only(sc.trace(nn.Sequential(wrap(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)), ROWS))
    made = {part.name: part.masked for part in group.slices if not part.reads}
    lengths = [name for name in made if name.endswith(("_g", "original0"))]
    directions = [name for name in made if name.endswith(("_v", "original1"))]
    assert [made[n] for n in lengths] == [True]
    assert [made[n] for n in directions] == [False]
