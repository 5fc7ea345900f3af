"""What runs somebody's network leaves no trace, on a GPU neither."""

from __future__ import annotations

import pytest
import torch

import secateur as sc
from secateur.running import in_full_precision, seeded


def test_a_gpu_rounds_nothing_in_full_precision():
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    backends = (cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [backend.fp32_precision for backend in backends]
    assert "tf32" in before  # torch's own choice for convolutions
    with in_full_precision():
        assert "tf32" not in [backend.fp32_precision for backend in backends]
    assert [backend.fp32_precision for backend in backends] == before
    assert cudnn.allow_tf32  # what mixes both ways of asking for it is told so here


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
