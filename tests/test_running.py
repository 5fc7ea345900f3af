"""What runs somebody's network leaves no trace, on a GPU neither."""

from __future__ import annotations

import pytest
import torch

import secateur as sc
from secateur.running import seeded


def test_drawing_from_a_seed_leaves_the_callers_state(device):
    torch.manual_seed(1)
    wanted = torch.rand(3, device=device)
    torch.manual_seed(1)
    with seeded(0):
        first = torch.rand(3, device=device)
    assert torch.equal(torch.rand(3, device=device), wanted)
    with seeded(0):
        assert torch.equal(torch.rand(3, device=device), first)


def test_a_gpu_not_yet_in_use_keeps_the_seed_that_waits_for_it(monkeypatch):
    if torch.cuda.is_initialized():
        pytest.skip("it is in use")
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(1)
    sc.compact(sc.build_model("lenet-300-100"), torch.randn(2, 1, 28, 28))
    assert seeds == [1]
