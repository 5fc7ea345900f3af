"""Training by accelerate on two processes, killed in the middle (``train``), or gone on with and then run
again without a break (``finish``)."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc

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


if __name__ == "__main__":
    # The launcher forks, which is safe in a process that has computed nothing yet.
    work = {"train": (train, (sys.argv[2], "killed", False, True)), "finish": (finish, (sys.argv[2],))}
    debug_launcher(*work[sys.argv[1]], num_processes=2)
