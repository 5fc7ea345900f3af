"""What a computed weight is computed from, and whether zeros there are its zeros."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import secateur as sc
from secateur.structure.computed import stays_finite
from secateur.structure.layers import stored_weights


def test_weights_and_what_they_are_computed_from():
    plain, normed = nn.Linear(3, 2), parametrizations.weight_norm(nn.Linear(3, 2))
    assert [(s.weight, s.parameter is plain.weight, s.refused) for s in stored_weights(plain)] == [
        ("weight", True, "")
    ]
    behind = normed.parametrizations.weight.original1
    assert [(s.weight, s.parameter is behind, s.refused) for s in stored_weights(normed)] == [
        ("weight", True, "")
    ]
    (orthogonal,) = stored_weights(parametrizations.orthogonal(nn.Linear(3, 3)))
    assert orthogonal.refused.startswith("its zeros are not those of the weight that _Orthogonal")


def test_an_emptied_row_under_weight_norm_is_not_finite():
    layer = parametrizations.weight_norm(nn.Linear(3, 2))
    behind = layer.parametrizations.weight.original1
    some = torch.tensor([[True, True, False], [False, False, True]])
    before = behind.detach().clone()
    assert stays_finite(layer, "weight", behind, some)
    assert not stays_finite(layer, "weight", behind, torch.tensor([[True] * 3, [False] * 3]))
    assert torch.equal(behind, before)
    plain = nn.Linear(3, 2)
    assert stays_finite(plain, "weight", plain.weight, torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("training", [False, True])
def test_a_norm_that_steps_when_it_is_looked_at_is_read_as_it_was_saved(training, tmp_path):
    def make():
        return nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(6, 24)), nn.ReLU(), nn.Linear(24, 3)
        )

    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(5, 6)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, x))
    small, _ = sc.compact(net, x)
    sc.save(small, tmp_path / "small.safetensors")
    sc.pack(small, tmp_path / "small.secateur")
    files = ((sc.load, "small.safetensors"), (sc.unpack, "small.secateur"))
    for again in (read(make().train(training), tmp_path / name) for read, name in files):
        assert again.training is training
        assert all(module.training is training for module in again.modules())
        assert torch.equal(again.eval()(x), small(x))
