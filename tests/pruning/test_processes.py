"""Two processes: masks are the same in both, stay zero under DDP, and flat parameters are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import secateur as sc
from secateur.errors import TargetError

RANKS = 2


def join(rank: int, folder: str, number: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=number)


def make() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def train_under_ddp(rank: int, folder: str) -> None:
    join(rank, folder, RANKS)
    net = DistributedDataParallel(make())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02, weight_decay=0.1)
    torch.manual_seed(rank)  # each rank has data of its own
    for masks in sc.gradually(net, sc.Magnitude(), sc.Global(0.75), sc.Cubic(2)):
        with masks.held(optimizer):
            for _ in range(4):
                optimizer.zero_grad()
                net(torch.randn(16, 8)).square().mean().backward()
                optimizer.step()
    masks.save(f"{folder}/masks{rank}")
    torch.save(net.module.state_dict(), f"{folder}/net{rank}")
    dist.destroy_process_group()


def try_sharded(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    join(rank, folder, RANKS)

    def first(net: nn.Module, **options) -> nn.Module:
        return FullyShardedDataParallel(net, device_id=torch.device("cpu"), **options)

    nets = [first(make()), first(make(), use_orig_params=True)]
    inner = make()
    inner[2] = first(inner[2])  # only a part of the network
    said = []
    for net in [*nets, inner]:
        try:
            sc.prune(net, sc.Magnitude(), sc.Global(0.5))
        except TargetError as error:
            said.append(str(error))
    Path(f"{folder}/said{rank}").write_text("\n".join(said))
    dist.destroy_process_group()


@pytest.fixture
def spawn(tmp_path, monkeypatch):
    def run(function) -> Path:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.multiprocessing.spawn(function, args=(str(tmp_path),), nprocs=RANKS)
        return tmp_path

    return run


pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def test_ddp_masks_alike_and_holds_them(spawn):
    folder = spawn(train_under_ddp)
    masks = [sc.Masks.load(folder / f"masks{rank}", make()) for rank in range(RANKS)]
    nets = [torch.load(folder / f"net{rank}", weights_only=True) for rank in range(RANKS)]
    assert masks[0] == masks[1]
    assert list(masks[0]) == ["0.weight", "2.weight"]
    assert masks[0].sparsity == 0.75
    for name, first in nets[0].items():
        assert torch.equal(first, nets[1][name])
        if name in masks[0]:
            assert not first[~masks[0][name]].any()
    assert not torch.equal(nets[0]["0.bias"], make()[0].bias)  # it did train


def test_networks_of_flat_parameters_are_refused(spawn):
    folder = spawn(try_sharded)
    for rank in range(RANKS):
        said = (folder / f"said{rank}").read_text().splitlines()
        assert len(said) == 3
        assert all("FullyShardedDataParallel (FSDP1) or DeepSpeed, where nothing" in line for line in said)
