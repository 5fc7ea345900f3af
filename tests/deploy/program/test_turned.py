"""Values whose batch is not in front on the way: moved, split, joined and worked on until it is again."""

from __future__ import annotations

import pytest
import torch
from programs import check
from torch import nn

from networks.drawn import numbers
from networks.parts import After
from secateur.deploy.program.export import program_of
from secateur.errors import ModelError


@pytest.mark.parametrize("first", [True, False])
def test_attention_of_torchs_own(first):
    layer = nn.MultiheadAttention(8, 2, batch_first=first)

    def attend(m, x, weights):
        x = x if first else x.transpose(0, 1)
        y = m.a(x, x, x, need_weights=weights)[0]
        return y if first else y.transpose(0, 1)

    for weights in (True, False):
        check(lambda m, x, weights=weights: attend(m, x, weights), 7, 8, a=layer)


def test_encoders_of_torchs_own():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    check(lambda m, x: m.a(x), 7, 8, a=layer)
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    check(lambda m, x: m.a(x.transpose(0, 1)).mean(0), 7, 8, a=encoder)


def test_steps_and_batch_in_one_dim():
    layer = nn.Linear(4, 5)
    check(lambda m, x: m.f(x.view(-1, 4)).view(x.size(0), 7, 5).mean(1), 7, 4, f=layer)
    check(lambda m, x: m.f(x.transpose(0, 1).reshape(-1, 4)).view(7, -1, 5).transpose(0, 1), 7, 4, f=layer)
    check(lambda m, x: m.f(x.reshape(-1, 4)).softmax(-1).reshape(len(x), 7 * 5), 7, 4, f=layer)


def test_stacked_and_taken_apart_in_front():
    check(lambda m, x: torch.stack([x, x * 2, x - 1]).mean(0), 4, 6)
    check(lambda m, x: torch.stack([x, x * 2])[1] + torch.stack([x, x + 1]).permute(1, 0, 2, 3)[:, 0], 4, 6)
    check(lambda m, x: torch.cat([x.unsqueeze(0), x.unsqueeze(0) + 1]).sum(0), 4, 6)
    check(lambda m, x: x.unsqueeze(0).relu().squeeze(0), 4, 6)


def test_constants_beside_steps_that_come_first():
    row, column = numbers(6), numbers(4, 1, 1)
    check(lambda m, x: (x.transpose(0, 1) * row + column).transpose(0, 1), 4, 6)
    check(lambda m, x: (x.transpose(0, 1) > column).float().sum(0), 4, 6)


def test_convolutions_and_norms_between():
    check(lambda m, x: m.n(x.permute(2, 0, 1)).permute(1, 2, 0)[:, :, ::2].flip(2), 4, 6, n=nn.LayerNorm(4))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.transpose(0, 1) + x.transpose(0, 1).flip(1),
        lambda x: (x.transpose(0, 1) + x.permute(2, 0, 1)).transpose(0, 1),
        lambda x: x.transpose(0, 1).softmax(1).transpose(0, 1),
        lambda x: x.transpose(0, 1).reshape(2, -1),
        lambda x: torch.stack([x, x * 2]).view(-1, 4, 6),
    ],
)
def test_what_mixes_examples_is_refused(function):
    with pytest.raises(ModelError, match="batch"):
        program_of(After(lambda m, x: function(x)), numbers(2, 6, 6))
