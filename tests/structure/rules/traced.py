"""Traces of one operator between layers."""

from __future__ import annotations

import torch
from torch import nn

import secateur as sc
from networks.parts import After, Between

ROWS = torch.zeros(5, 3)
SEQUENCE = torch.zeros(2, 5, 3)
IMAGE = torch.zeros(2, 3, 8, 6)


def trace(op, x=ROWS, **parts) -> sc.Structure:
    return sc.trace(After(op, **parts), x)


def pair(op, x=ROWS) -> sc.Structure:
    """``b(op(a(x)))`` of two linear layers of 3 -> 4 -> 2."""
    return sc.trace(Between(nn.Linear(3, 4), op, nn.Linear(4, 2)), x)


def rows(a: str, b: str) -> list[tuple[str, int]]:
    return [(f"{a}.weight", 0), (f"{a}.bias", 0), (f"{b}.weight", 1)]
