"""Prune on two processes with accelerate, stop in the middle, and go on to the same bits.

pip install 'secateur[accelerate]'
`accelerate launch` starts a script of your own; this one starts its two processes itself.
"""

import os
from pathlib import Path

import torch
from accelerate import Accelerator, debug_launcher
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc

EPOCHS = 8
inputs = torch.randn(2048, 8, generator=torch.Generator().manual_seed(0))
labels = (inputs[:, 0] * inputs[:, 1] > 0).long()  # no plane parts them


def train(name: str, first: int, last: int, share: float = 0.9) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    loader = DataLoader(TensorDataset(inputs[512:], labels[512:]), batch_size=32)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    with sc.during(optimizer, net, sc.Magnitude(), sc.Global(share), sc.Cubic(10), every=12) as pruning:
        accelerator.register_for_checkpointing(pruning)  # its masks and its place in the schedule
        if first:
            accelerator.load_state("runs/state")
        for epoch in range(first, last):
            for x, y in loader:
                accelerator.backward(nn.functional.cross_entropy(net(x), y))
                pruning.masks.mask_grads()  # before clipping: dead weights do not count in the norm
                accelerator.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if epoch + 1 == EPOCHS // 2:
                accelerator.save_state("runs/state")
    right = (net(inputs[:512]).argmax(1) == labels[:512]).float().mean().item()
    sc.save(accelerator.unwrap_model(net), f"runs/{name}-rank{accelerator.process_index}.safetensors")
    if accelerator.is_main_process:
        print(f"{name:<16} {pruning.masks.sparsity:6.1%} zeros   {right:6.1%} right")


def both() -> None:
    train("dense", 0, EPOCHS, share=0.0)
    train("pruned", 0, EPOCHS)
    train("pruned, gone on", EPOCHS // 2, EPOCHS)
    Accelerator(cpu=True).end_training()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    debug_launcher(both, num_processes=2)
    files = list(Path("runs").glob("pruned*.safetensors"))
    different = len({file.read_bytes() for file in files})
    print(f"{len(files)} files of weights, of two runs on two processes: {different} different content(s)")
