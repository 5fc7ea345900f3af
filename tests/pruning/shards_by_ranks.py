"""One process of several that hold one network together; see ``test_shards``, which also runs these cases
with the whole network in one process.

All numbers are small whole ones, so that sums are exact in whatever order they are taken, and many are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import secateur as sc
import secateur.shards

Shard = Callable[[nn.Module], nn.Module]
SHAPES = {"first": (13, 8), "second": (8, 13), "last": (1, 8)}


class Net(nn.Module):
    """Three layers: rows that no number of processes divides, and fewer of them than processes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        for name, (outputs, inputs) in SHAPES.items():
            layer = nn.Linear(inputs, outputs)
            for parameter in layer.parameters():
                parameter.data = torch.randint(-3, 4, parameter.shape, generator=generator).float()
            setattr(self, name, layer)
        self.register_buffer("times", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu()) * self.times


def batches(numbers: range) -> list[tuple[Tensor, Tensor]]:
    """Of one example more each, so that no rank reads what another does."""
    generators = {number: torch.Generator().manual_seed(number) for number in numbers}
    return [
        (torch.randint(-1, 2, (2 + n, 8), generator=g).float(), torch.ones(1)) for n, g in generators.items()
    ]


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs * labels).sum() / 8


BY_WEIGHTS = {
    "Global": (sc.Magnitude(), sc.Global(0.55), {}),
    "Global, min_kept": (sc.Magnitude(), sc.Global(0.9, min_kept=3), {}),
    "Uniform": (sc.Magnitude(), sc.Uniform(0.37), {}),
    "PerLayer": (sc.Magnitude(), sc.PerLayer({"first": 0.2, "last": 0.5}), {}),
    "Random": (sc.Random(7), sc.Global(0.5), {}),
    "ERK": (sc.Random(1), sc.ERK(0.6), {}),
    "LAMP": (sc.Magnitude(), sc.LAMP(0.5), {}),
    "NM": (sc.Magnitude(), sc.NM(2, 4), {}),
    "MagnitudeRatios": (sc.Random(2), sc.MagnitudeRatios(0.4), {}),
    "Threshold": (sc.Magnitude(), sc.Threshold(1.5), {}),
    "Std": (sc.Magnitude(), sc.Std(0.8), {}),
    "soft": (sc.Magnitude(), sc.Global(0.5), {"shrinkage": sc.Soft()}),
    "trimmed": (sc.Magnitude(), sc.Threshold(1.5), {"shrinkage": sc.Trimmed(0.8)}),
    "blocks": (sc.Magnitude(), sc.Global(0.5), {"granularity": sc.Block(2, 3)}),
    "a criterion of one's own": (lambda targets, *_: {n: t.weight.abs() + 1 for n, t in targets.items()},
                                 sc.Global(0.5), {}),
}  # fmt: skip
SOME = ("Global", "NM")
THOROUGH = {2: ["fsdp"], 4: ["both"]}  # the layouts that all of these are tried with, by processes
BY_DATA = {
    "Wanda": sc.Wanda(),
    "Taylor": sc.Taylor(),
    "Fisher": sc.Fisher(),
    "SynFlow": sc.SynFlow(),
}


def whole(tensor: Tensor) -> Tensor:
    return tensor.detach().full_tensor().clone() if hasattr(tensor, "placements") else tensor.detach().clone()


def outcome(masks: sc.Masks, folder: Path, name: str) -> dict[str, Any]:
    """Return the masks by way of a file, the weights that are left, and what the masks say of themselves."""
    path = folder / f"{name}.safetensors"
    masks.save(path)
    if dist.is_initialized():
        dist.barrier()
    read = sc.Masks.load(path, Net())
    assert read == sc.Masks(read.model, {n: whole(m) for n, m in masks.items()})
    assert masks == sc.Masks.load(path, masks.model)
    weights = {f"{n} left": whole(p) for n, p in masks.model.named_parameters()}
    if dist.is_initialized():
        dist.barrier()
    return {**read, **weights, "said": repr(masks)}


def by_weights(shard: Shard, folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in names:
        criterion, budget, options = BY_WEIGHTS[name]
        masks = sc.prune(shard(Net()), criterion, budget, **options)
        found[name] = outcome(masks, folder, "masks")
    if tuple(names) == SOME:
        return found | {"saved": saved(shard(Net()), folder)}
    net = shard(Net())
    earlier = sc.prune(net, sc.Random(3), sc.Uniform(0.3))
    later = sc.prune(net, sc.Magnitude(), sc.Global(0.6), masks=earlier)
    found["earlier"] = outcome(later, folder, "masks")
    found["either"] = outcome(earlier | later, folder, "masks")
    found["both"] = outcome(earlier & sc.prune(net, sc.Random(5), sc.Uniform(0.5)), folder, "masks")
    again = sc.Masks(net, {})
    again.load_state_dict(later.state_dict())
    found["state"] = outcome(again, folder, "masks")
    return found | {"saved": saved(shard(Net()), folder)}


def saved(net: nn.Module, folder: Path) -> dict[str, Any]:
    sc.save(net, folder / "net.safetensors")
    if dist.is_initialized():
        dist.barrier()
    return {"bytes": list((folder / "net.safetensors").read_bytes())}


def by_data(shard: Shard, folder: Path, data: list[Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, criterion in BY_DATA.items():
        net = shard(Net())
        masks = sc.prune(net, criterion, sc.Global(0.5), data=data, loss=loss)
        found[name] = outcome(masks, folder, "masks")
    return found


def trained(shard: Shard, folder: Path, data: list[Any]) -> dict[str, Any]:
    """Masks that are held while an optimizer trains, and pruned further on the way."""
    net = shard(Net())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    with sc.during(optimizer, net, sc.Magnitude(), sc.Global(0.75), sc.Cubic(3), every=2) as pruning:
        for _ in range(7):
            optimizer.zero_grad()
            loss(net(data[0][0]), data[0][1]).backward()
            pruning.masks.mask_grads()
            optimizer.step()
    pruning.masks.check()
    zeros = {n: int((whole(p) == 0).sum()) for n, p in net.named_parameters() if n in pruning.masks}
    return {**outcome(pruning.masks, folder, "masks"), "zeros": sum(zeros.values()), "now": sc.sparsity(net)}


# -- ways to hold a network ----------------------------------------------------------------------------


def fsdp(net: nn.Module, **options: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in (net.first, net.last):
        fully_shard(layer, **options)
    return fully_shard(net, **options)


def distributed(*placements: Any, only: Callable[[str], bool] = lambda name: True, mesh: Any = None) -> Shard:
    """Lay the parameters out by hand; biases have one dim, and are replicated where theirs is not there."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    def lay(net: nn.Module) -> nn.Module:
        for name, module in net.named_children():
            for leaf, parameter in list(module.named_parameters()):
                kinds = [p if getattr(p, "dim", 0) < parameter.dim() else Replicate() for p in placements]
                if only(name):
                    laid = distribute_tensor(parameter.detach(), mesh, kinds)
                    setattr(module, leaf, nn.Parameter(laid))
        return net

    return lay


def parallel(mesh: Any) -> Shard:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
    return lambda net: parallelize_module(net, mesh, plan)


def layouts(number: int) -> tuple[dict[str, Shard], dict[str, Shard]]:
    """Return by name the ways to hold a network that only its weights are read of, and those that run."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard

    line = init_device_mesh("cpu", (number,))
    running = {"fsdp": fsdp}
    if number == 2:
        held = {
            "columns": distributed(Shard(1), mesh=line),
            "replicated": distributed(Replicate(), mesh=line),
            "some": distributed(Shard(0), only=lambda name: name != "second", mesh=line),
        }
        running["tensor parallel"] = parallel(line)
    else:
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        held = {
            "rows and columns": distributed(Shard(0), Shard(1), mesh=grid),
            "rows twice": distributed(Shard(0), Shard(0), mesh=grid),
            "part of the processes": distributed(Shard(0), mesh=grid["tensor"]),
        }
        running["hybrid"] = lambda net: fsdp(net, mesh=grid)
        running["both"] = lambda net: fsdp(parallel(grid["tensor"])(net), mesh=grid["data"])
    return held, running


def said(call: Callable[[nn.Module], Any], net: nn.Module) -> str:
    before = {n: whole(p) for n, p in net.named_parameters()}
    try:
        call(net)
        text = "nothing"
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    same = all(torch.equal(whole(p).nan_to_num(), before[n].nan_to_num()) for n, p in net.named_parameters())
    return text if same else f"CHANGED, {text}"


def prune_without_room(net: nn.Module, rank: int) -> sc.Masks:
    """Prune where one of the ranks has no memory for the whole."""
    own = secateur.shards._there_is_room
    secateur.shards._there_is_room = lambda parts: rank != 1 and own(parts)
    try:
        return sc.prune(net, sc.Taylor(), sc.Global(0.5), data=batches(range(2)), loss=loss)
    finally:
        secateur.shards._there_is_room = own


def refused(rank: int, number: int, folder: Path) -> dict[str, str]:
    magnitude, half = sc.Magnitude(), sc.Global(0.5)
    spoilt = fsdp(Net())
    if rank == 1:
        spoilt.second.weight.detach().to_local()[0, 0] = torch.nan
    traced = Net()
    structure = sc.trace(traced, torch.ones(2, 8))
    return {
        "a NaN on one rank": said(lambda net: sc.prune(net, magnitude, half), spoilt),
        "alone": said(lambda net: sc.prune(net, magnitude, half, group=False), fsdp(Net())),
        "other budgets": said(lambda net: sc.prune(net, magnitude, sc.Uniform((1 + rank) / 8)), fsdp(Net())),
        "bad data": said(
            lambda net: sc.prune(net, sc.Wanda(), half, data=[torch.ones(2, 8 + (rank == 1))]), fsdp(Net())
        ),
        "no room": said(lambda net: prune_without_room(net, rank), fsdp(Net())),
        "units": said(lambda net: sc.prune(net, sc.L2Norm(), half, structure=structure), fsdp(traced)),
        "sparsegpt": said(lambda net: sc.sparsegpt(net, sc.Uniform(0.5), [torch.ones(2, 8)]), fsdp(Net())),
        "trace": said(lambda net: sc.trace(net, torch.ones(2, 8)), fsdp(Net())),
        "share_weights": said(sc.share_weights, fsdp(Net())),
        "load": said(lambda net: sc.load(net, folder / "net.safetensors"), fsdp(Net())),
        "nowhere to write": said(lambda net: sc.save(net, "/dev/null/net"), fsdp(Net())),
        "zeros that came alive": said(
            lambda net: sc.Masks(net, {"first.weight": torch.zeros(13, 8).bool()}).check(), fsdp(Net())
        ),
    }


def found_by(rank: int, number: int, folder: Path) -> dict[str, Any]:
    held, running = layouts(number)
    own = batches(range(rank * 4 // number, (rank + 1) * 4 // number))
    found: dict[str, Any] = {}
    for name, shard in {**held, **running}.items():
        found[name] = by_weights(shard, folder, BY_WEIGHTS if name in THOROUGH[number] else SOME)
    for name, shard in running.items():
        data = own if name != "tensor parallel" else batches(range(4))  # which all read alike
        if name == "both":
            data = batches(range(rank // 2 * 2, rank // 2 * 2 + 2))
        found[name] |= by_data(shard, folder, data)
    found["trained"] = trained(fsdp, folder, own)
    net = fsdp(Net())
    with torch.no_grad():
        net(own[0][0])  # leaves gathered parameters in their places
    found["after a forward"] = outcome(sc.prune(net, sc.Magnitude(), sc.Global(0.55)), folder, "masks")
    found["said"] = refused(rank, number, folder)
    return found
