"""What a computed weight is computed from, and whether zeros there are its zeros."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations

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
