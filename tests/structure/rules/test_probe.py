"""Operators that no rule knows are tried out, or freeze what they touch, by name."""

from __future__ import annotations

import torch
from torch import nn
from traced import SEQUENCE, pair, trace

import secateur as sc
from networks.groups import members, only, reasons, singles
from networks.parts import After

# -- what nobody knows -----------------------------------------------------------------------------


def test_an_operator_without_a_rule_is_tried_out():
    """A Fourier transform over positions treats channels one by one."""
    structure = pair(lambda x: torch.fft.fft(x, dim=1).real, SEQUENCE)
    assert members(only(structure))["b.weight", 1] == singles(4)


def test_an_operator_that_works_across_a_dim_is_named():
    structure = pair(lambda x: torch.fft.fft(x, dim=-1).real, SEQUENCE)
    assert not structure.groups
    assert "aten.fft_fft.default works across it" in reasons(structure)["a.weight", 0]


def test_an_operator_with_two_operands_and_no_rule_is_named():
    net = After(
        lambda net, x: net.c(torch.cdist(net.a(x), net.b(x))),
        a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(5, 2),
    )  # fmt: skip
    structure = sc.trace(net, SEQUENCE)
    assert "cdist.default has no rule" in reasons(structure)["a.weight", 0]


def test_writing_into_a_part_freezes_all_up_to_it():
    def op(net, x):
        y = net.a(x).clone()
        y[:, 1] = 0
        return net.b(y)

    structure = trace(op, a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    (group,) = structure.groups.values()
    assert group.slices[0].indices.tolist() == [[2], [3]]
    assert ("a.weight", 0) in reasons(structure)
