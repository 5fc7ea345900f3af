"""What a network says of its widths follows, though its forward does not read it."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import StorageError


class Backbone(nn.Module):
    """As timm's networks state their widths, and build a new classifier or features from them."""

    def __init__(self):
        super().__init__()
        self.stem, self.stage = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.neck, self.fc = nn.Conv2d(12, 20, 1), nn.Linear(20, 5)
        self.feature_info = [
            {"num_chs": 8, "reduction": 1, "module": "stem"},
            {"num_chs": 12, "reduction": 1, "module": "stage"},
        ]
        self.num_features, self.head_hidden_size, self.depth = 12, 20, 8

    def get_classifier(self):
        return self.fc

    def reset_classifier(self, classes):
        self.fc = nn.Linear(self.head_hidden_size, classes)

    def forward(self, x):
        x = self.stage(self.stem(x).relu()).relu()
        return self.fc(self.neck(x).relu().mean((2, 3)))


def test_a_classifier_and_features_are_built_anew():
    torch.manual_seed(0)
    net, x = Backbone().eval(), torch.randn(2, 3, 6, 6)
    structure = sc.trace(net, x)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(net, x, structure=structure)
    assert [row["num_chs"] for row in small.feature_info] == [4, 6]
    assert (small.num_features, small.head_hidden_size, small.depth) == (6, 10, 8)
    assert [row["num_chs"] for row in net.feature_info] == [8, 12]
    assert "num_features: 12 -> 6" in proof.changed
    small.reset_classifier(7)
    assert small(x).shape == (2, 7)


def test_what_a_file_brings_says_its_widths_too(tmp_path):
    net, x = Backbone().eval(), torch.randn(2, 3, 6, 6)
    small, _ = sc.prune_to(net, x, parameters=0.5)
    widths = [row["num_chs"] for row in small.feature_info]
    assert widths != [8, 12]
    sc.save(small, tmp_path / "small.safetensors")
    again = sc.load(Backbone(), tmp_path / "small.safetensors")
    assert [row["num_chs"] for row in again.feature_info] == widths
    assert [row["reduction"] for row in again.feature_info] == [1, 1]
    other = Backbone()
    other.feature_info.pop()
    with pytest.raises(StorageError, match="another model's"):
        sc.load(other, tmp_path / "small.safetensors")
    assert other.fc.in_features == 20


def test_the_size_of_an_unflatten_follows():
    torch.manual_seed(0)
    layers = nn.Linear(6, 32), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 3, 2)
    net, x = nn.Sequential(*layers).eval(), torch.randn(4, 6)
    structure = sc.trace(net, x)
    assert not structure.stays
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(net, x, structure=structure)
    assert small[2].unflattened_size == (4, 2, 2)
    assert not proof.kept
    assert torch.allclose(small(x), net(x), atol=1e-6)


class Split(nn.Module):
    """Two ways to one result, as one of YOLO's blocks has them: exports take the second."""

    def __init__(self):
        super().__init__()
        self.width, self.steps = 8, 16
        self.up, self.down = nn.Linear(4, 16), nn.Linear(8, 4)

    def forward(self, x):
        one, other = self.up(x).chunk(2, -1)
        return self.down(one.tanh() * other)

    def forward_split(self, x):
        one, other = self.up(x).split((self.width, self.width), -1)
        return self.down(one.tanh() * other)

    def forward_other(self, x):
        return self.up(x).split(self.steps, -1)[0]


def test_other_ways_of_a_forward_follow():
    torch.manual_seed(0)
    net, x = nn.Sequential(Split(), nn.Tanh()), torch.randn(3, 4)
    small, proof = sc.prune_to(net, x, parameters=0.6)
    left = len(small[0].down.weight[0])
    assert left < 8
    assert (small[0].width, small[0].steps) == (left, 16)
    assert net[0].width == 8
    assert f"0.width: 8 -> {left}" in proof.changed
    assert torch.equal(small[0].forward_split(x), small[0](x))
