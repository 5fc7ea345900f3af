"""Accelerate on two processes needs nothing of its own: what ``during`` yields is registered as it is."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, debug_launcher
from torch import nn
from torch.multiprocessing import ProcessExitedException
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
EPOCHS, STEPS = 6, 4  # optimizer steps an epoch: 64 examples, by 4 on each of two ranks, two batches a step


def make() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 2))


def data() -> TensorDataset:
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
    return TensorDataset(inputs, (inputs[:, 0] > 0).long())


def train(folder: str, name: str, resume: bool, dies: bool) -> None:
    """Train on this rank, save at the end of each epoch, and die in the middle of the fourth, or not."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = make()
    torch.manual_seed(5 + accelerator.process_index)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02, weight_decay=0.1)
    batches = DataLoader(data(), batch_size=4)
    net, optimizer, batches = accelerator.prepare(net, optimizer, batches)
    options: dict[str, Any] = {"every": 3, "data": list(batches), "loss": nn.functional.cross_entropy}
    with sc.during(optimizer, net, sc.Taylor(), sc.Global(0.9), sc.Cubic(5), **options) as pruning:
        accelerator.register_for_checkpointing(pruning)
        if resume:
            accelerator.load_state(f"{folder}/state")
        for epoch in range(pruning.steps // STEPS, EPOCHS):
            for number, (inputs, labels) in enumerate(batches):
                with accelerator.accumulate(net):
                    accelerator.backward(nn.functional.cross_entropy(net(inputs), labels))
                    if accelerator.sync_gradients:
                        pruning.masks.mask_grads()
                        norm = accelerator.clip_grad_norm_(net.parameters(), 0.1)
                        living = [p.grad.square().sum() for p in net.parameters()]
                        assert norm > 0.1
                        assert float(sum(living)) ** 0.5 == pytest.approx(0.1, rel=1e-3)
                    optimizer.step()
                    optimizer.zero_grad()
                    pruning.masks.check()
                if dies and epoch == 3 and number == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
            if dies:
                accelerator.save_state(f"{folder}/state")
    unwrapped = accelerator.unwrap_model(net)
    pruning.masks.save(f"{folder}/{name}{accelerator.process_index}.masks")
    torch.save(unwrapped.state_dict(), f"{folder}/{name}{accelerator.process_index}.net")


def finish(folder: str) -> None:
    """Resume on this rank what was killed, and train again from the start without a break."""
    train(folder, "resumed", True, False)
    train(folder, "whole", False, False)
    Accelerator(cpu=True).end_training()


def test_two_processes_killed_and_resumed_as_uninterrupted(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    folder = str(tmp_path)
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        debug_launcher(train, (folder, "killed", False, True), num_processes=2)
    assert not list(tmp_path.glob("killed*"))
    debug_launcher(finish, (folder,), num_processes=2)
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
    state = torch.load(Path(folder) / "state" / "custom_checkpoint_0.pkl", weights_only=True)
    assert {name: n for name, n in state.items() if name != "masks"} == {
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
