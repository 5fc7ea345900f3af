"""One goal: what may be asked for, and how it is refused."""

import pytest
import torch
from torch import nn

from secateur.errors import BudgetError
from secateur.measure.macs import count_macs
from secateur.methods.goals import check_goal, goal_of

ALL = ("sparsity", "parameters", "macs", "latency_ms", "drop")


@pytest.mark.parametrize(
    ("name", "limit"),
    [("macs", 1), ("parameters", 0.3), ("sparsity", 0), ("latency_ms", 2.5), ("drop", 0.0)],
)
def test_one_goal(name, limit):
    assert check_goal(ALL, **dict.fromkeys(ALL) | {name: limit}) == (name, limit)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "exactly one of sparsity, parameters, macs, latency_ms and drop; got none"),
        ({"macs": 0.5, "sparsity": 0.5}, "got macs and sparsity"),
        ({"score": 0.5}, "exactly one of .*; got score"),
        ({"macs": 0}, "macs is 0; it is a share of the dense network's, between 0 and 1"),
        ({"macs": 1.1}, "macs is 1.1; it is a share"),
        ({"sparsity": 1}, "sparsity is 1; it is a share of the dense network's weights, between 0 and 1"),
        ({"macs": True}, "macs is True; it is a number"),
        ({"macs": float("nan")}, "macs is nan; it is a number"),
        ({"latency_ms": 0}, "latency_ms is 0; it is a positive number of milliseconds"),
        ({"drop": -1}, "drop is -1; it is in the score's unit"),
    ],
)
def test_what_is_no_goal(wanted, message):
    with pytest.raises(BudgetError, match=message):
        check_goal(ALL, **wanted)


def test_multiply_adds_with_arguments_by_name():
    class Gated(nn.Linear):
        def forward(self, x, gate=1.0):
            return super().forward(x) * gate

    model, x = Gated(4, 3), torch.randn(2, 4)
    assert goal_of(model, x, {"gate": 0.5}, ("macs",), macs=0.5).total == count_macs(model, x).dense == 24
