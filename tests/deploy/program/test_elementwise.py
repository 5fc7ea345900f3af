"""Comparisons, choices, masks and functions of one number in a program."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from programs import check, off, ops
from torch import nn
from torch.nn import functional as F

from networks.drawn import numbers
from networks.parts import After
from secateur.deploy.program.export import program_of
from secateur.runtime.runner import execute

COMPARISONS = [
    lambda x: x > 0,
    lambda x: x == 0,
    lambda x: x != x.mean(1, keepdim=True),
    lambda x: x.le(0.5),
    lambda x: x <= 0.25,
    lambda x: (x > x.mean(1, keepdim=True)) & (x < 1),
    lambda x: ~(x > 0) | (x < -1) ^ (x > 1),
    lambda x: torch.logical_and(x, x > -1),
    lambda x: x < torch.arange(6.0),
]


@pytest.mark.parametrize("compare", COMPARISONS)
def test_comparisons(compare):
    check(lambda m, x: compare(x).float() * 2 + torch.where(compare(x), x, -1.0), 4, 6)


def test_a_bool_and_whole_numbers_may_be_put_out():
    model = After(lambda m, x: (x > 0, (x > 0).sum(1), x.argmax(-1), (x * 3).long() + 2))
    program = program_of(model, numbers(2, 4, 6))
    found = execute(program.graph, program.arrays(), [numbers(3, 4, 6, seed=1).numpy()])
    assert [y.dtype for y in found] == [np.bool_, np.int64, np.int64, np.int64]
    for ours, theirs in zip(found, model(numbers(3, 4, 6, seed=1)), strict=True):
        assert np.array_equal(ours, theirs.numpy())


EXTREMES = [
    lambda x: x.max(1).values,
    lambda x: x.min(2).values + x.amin(-1),
    lambda x: x.max(-1, keepdim=True)[0] * x,
    lambda x: x.amin((1, 2)) - x.amax((1, 2)),
    lambda x: torch.max(x, -x) + torch.min(x, x * 2),
    lambda x: torch.stack((x, x * x, -x), 3).max(3).values,
    lambda x: x.transpose(0, 1).max(0).values,
    lambda x: sum(part.float() for part in x.max(1)),
    lambda x: sum(part.float() for part in x.min(2, keepdim=True)),
    lambda x: (x.argmin(-1) + x.argmax(1, keepdim=True).squeeze(1).sum(1, keepdim=True)).float(),
]


@pytest.mark.parametrize("extreme", EXTREMES)
def test_what_is_largest_and_smallest(extreme):
    check(lambda m, x: extreme(x), 4, 6)


def test_slopes():
    assert ops(check(lambda m, x: m.p(x), 4, 5, 6, p=nn.PReLU(4, init=0.3))).count("relu") == 1
    check(lambda m, x: m.p(x), 4, 5, p=nn.PReLU(4))
    check(lambda m, x: m.p(x), 4, p=nn.PReLU())
    check(lambda m, x: m.c(x), 3, 7, 6, c=nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Conv2d(4, 2, 2)))


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_gates(dim):
    check(lambda m, x: F.glu(x, dim), 4, 6, 8)
    check(lambda m, x: F.glu(x.transpose(0, 1), -1).transpose(0, 1), 4, 6, 8)


def test_functions_of_one_number():
    check(lambda m, x: x.exp() + x.abs().log() + x.sin() * x.cos(), 4, 6)
    check(lambda m, x: F.selu(x) + F.mish(x), 4, 6)
    check(lambda m, x: torch.maximum(x, -x) - torch.minimum(x, torch.tensor(0.1)), 4, 6)
    check(lambda m, x: x.cumsum(1) + (x > 0).cumsum(2), 4, 6)


def test_masks_that_are_constants():
    above = torch.ones(6, 6).triu(1) > 0
    check(lambda m, x: x.masked_fill(above, -math.inf).softmax(-1), 6, 6)
    check(lambda m, x: x.masked_fill(x > 0, -1e9).softmax(-1), 4, 6)
    check(lambda m, x: torch.where(above, x, torch.zeros(6)), 6, 6)
    check(lambda m, x: torch.where(above & (x > 0), 1.0, 0.0), 6, 6)


class Masked(nn.Module):
    """Attention under a mask of whole numbers that is an input, and a mean over what it leaves."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.words, self.qkv = kind, nn.Embedding(11, 8, padding_idx=0), nn.Linear(8, 24)

    def forward(self, tokens, mask):
        q, k, v = self.qkv(self.words(tokens)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        seen = mask[:, None, None, :]
        if self.kind == "bool":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen.bool())
        elif self.kind == "added":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=(1.0 - seen.float()) * -1e4)
        else:
            causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
            scores = q @ k.transpose(2, 3) / 2
            y = scores.masked_fill(~(causal & seen.bool()), torch.finfo(torch.float32).min).softmax(-1) @ v
        y = y.transpose(1, 2).flatten(2) * mask[:, :, None]
        return y.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


@pytest.mark.parametrize("kind", ["bool", "added", "causal"])
def test_a_mask_that_is_an_input(kind):
    model = Masked(kind)
    tokens = torch.tensor([[1, 2, 10, 4], [5, 3, 0, 0]])
    program = program_of(model, {"tokens": tokens, "mask": (tokens != 0).long()})
    assert [spec["dtype"] for spec in program.graph["inputs"]] == ["int64", "int64"]
    for batch in (1, 5):
        tokens = torch.randint(1, 11, (batch, 4), generator=torch.Generator().manual_seed(batch))
        mask = (torch.arange(4) < torch.arange(batch)[:, None] % 4 + 1).long()
        assert off(model, program, tokens, mask) < 1e-5


def test_positions_that_are_counted_from_a_mask():
    """As RoBERTa counts them: padding is not counted."""
    words, places = nn.Embedding(11, 6), nn.Embedding(9, 6)

    def embedded(m, tokens):
        seen = tokens.ne(1).int()
        return m.w(tokens) + m.p((torch.cumsum(seen, dim=1).type_as(seen) * seen).long() + 1)

    model = After(embedded, w=words, p=places)
    tokens = torch.tensor([[2, 3, 4, 1], [5, 1, 1, 1]])
    program = program_of(model, tokens)
    assert off(model, program, torch.tensor([[2, 1, 1, 1], [3, 4, 5, 6], [1, 1, 1, 1]])) < 1e-6


def test_a_mask_of_bools_is_an_input():
    model = After(lambda m, x, keep: x.masked_fill(~keep, 0.0).sum(1))
    keep = torch.tensor([[True, False, True], [False, False, True]])
    program = program_of(model, (numbers(2, 3), keep))
    assert [spec["dtype"] for spec in program.graph["inputs"]] == ["float32", "bool"]
    assert off(model, program, numbers(2, 3, seed=1), ~keep) < 1e-6
