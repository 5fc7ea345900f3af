"""Accelerate on two processes needs nothing of its own: what ``during`` yields is registered as it is."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator

import secateur as sc
from integrations.killed import ended
from integrations.killed_accelerate import make

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def test_two_processes_killed_and_resumed_as_uninterrupted(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    killed = ended("killed_accelerate.py", "train", tmp_path)
    assert killed.returncode == 1
    assert "terminated with signal SIGKILL" in killed.stderr
    assert not list(tmp_path.glob("killed*"))
    finished = ended("killed_accelerate.py", "finish", tmp_path)
    assert finished.returncode == 0, finished.stderr
    names = [f"{name}{rank}" for name in ("whole", "resumed") for rank in range(2)]
    nets = [torch.load(tmp_path / f"{name}.net", weights_only=True) for name in names]
    masks = [sc.Masks.load(tmp_path / f"{name}.masks", make()) for name in names]
    for other, those in zip(nets[1:], masks[1:], strict=True):
        assert those == masks[0]
        assert all(torch.equal(weight, other[name]) for name, weight in nets[0].items())
    assert masks[0].sparsity == pytest.approx(0.9, abs=1 / 240)
    assert not any(nets[0][name][~mask].any() for name, mask in masks[0].items())
    assert not torch.equal(nets[0]["0.bias"], make()[0].bias)
    # of the saved state, our part is plain: torch opens it without running anything
    state = torch.load(tmp_path / "state" / "custom_checkpoint_0.pkl", weights_only=True)
    assert {name: n for name, n in state.items() if name not in ("masks", "settings")} == {
        "level": 5, "levels": 5, "steps": 12, "every": 3,
    }  # fmt: skip


def test_masks_alone_are_registered_too(tmp_path):
    accelerator = Accelerator(cpu=True)
    net = accelerator.prepare(make())
    masks = sc.prune(net, sc.Magnitude(), sc.Global(0.5))
    accelerator.register_for_checkpointing(masks)
    accelerator.save_state(str(tmp_path))
    kept = masks.bind(net)
    masks.load_state_dict(sc.prune(net, sc.Magnitude(), sc.Global(0.9)).state_dict())
    assert masks != kept
    accelerator.load_state(str(tmp_path))
    assert masks == kept
    masks.check()
    assert sc.sparsity(net) == 0.5
