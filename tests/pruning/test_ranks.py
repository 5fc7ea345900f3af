"""Two processes with data of their own prune alike, as one process does that sees all; what goes wrong on
one of them is said on both, and none waits for the other."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import secateur as sc

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def make() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 10, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(40, 5),
    )


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    """Three batches for the first rank, one for the second, of different sizes."""
    generator = torch.Generator().manual_seed(10 + rank)
    sizes = [4, 6, 3] if rank == 0 else [7]
    return [
        (
            (1 + rank) * torch.randn(n, 3, 8, 8, generator=generator),
            torch.randint(0, 5, (n,), generator=generator),
        )
        for n in sizes
    ]


SINGLE = {"taylor": sc.Taylor(), "fisher": sc.Fisher(), "wanda": sc.Wanda(), "random": sc.Random(3)}
UNITS = {**SINGLE, "activations": sc.ActivationNorm()}


def pruned(criterion: Any, net: nn.Module, data: Any, **options: Any) -> sc.Masks:
    return sc.prune(net, criterion, sc.Global(0.6), data=data, loss=nn.functional.cross_entropy, **options)


def small(criterion: Any, data: Any, wrap: Any) -> tuple[sc.Masks, nn.Module]:
    net = make()
    structure = sc.trace(net, EXAMPLE)
    return pruned(criterion, wrap(net), data, structure=structure), sc.compact(net, EXAMPLE)[0]


def states(data: Any, wrap: Any) -> dict[str, Any]:
    """Return by case the masks, and the compacted networks of the same."""
    found: dict[str, Any] = {}
    for name, criterion in SINGLE.items():
        found[name] = dict(pruned(criterion, wrap(make()), data))
    for name, criterion in UNITS.items():
        masks, net = small(criterion, data, wrap)
        found[f"{name} of units"] = dict(masks)
        found[f"{name} compacted"] = dict(net.state_dict())
    return found


def trained(data: list[tuple[Tensor, Tensor]], wrap: Any, inside: bool) -> dict[str, Any]:
    """Masks and weights after pruning by degrees, between epochs or between steps."""
    net = wrap(make())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    arguments = net, sc.Taylor(), sc.Global(0.7), sc.Cubic(3)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(data[0][0]), data[0][1]).backward()
        optimizer.step()

    if inside:
        with sc.during(optimizer, *arguments, every=2, data=data) as pruning:
            for _ in range(6):
                step()
        masks = pruning.masks
    else:
        for masks in sc.gradually(*arguments, data=data):
            with masks.held(optimizer):
                step()
    return {**masks, **{f"{n} trained": p for n, p in net.state_dict().items()}}


def said(call: Any, net: nn.Module) -> str:
    before = [p.clone() for p in net.parameters()]
    try:
        call(net)
        return "nothing"
    except Exception as error:
        unchanged = all(map(torch.equal, before, net.parameters()))
        return f"{type(error).__name__}, {'unchanged' if unchanged else 'CHANGED'}: {error}"


def by_own_data(targets, data, loss):
    """A criterion of a user's that reads data itself, and so differs between the ranks."""
    return {n: t.weight * torch.randn(t.weight.shape, generator=data) for n, t in targets.items()}


def ranks(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    data, wrap = batches(rank), DistributedDataParallel
    found: dict[str, Any] = {
        "ddp": states(data, wrap),
        "replicated": {n: dict(pruned(c, make(), data)) for n, c in SINGLE.items()},
        "gradually": trained(data, wrap, False),
        "during": trained(data, wrap, True),
        "one without data": dict(pruned(sc.Wanda(), make(), data if rank else [])),
        "alone": dict(pruned(sc.Taylor(), make(), data, group=False)),
    }
    own = make()
    with torch.no_grad():
        own[0].weight += rank  # a network of its own
    found["own"] = dict(pruned(sc.Taylor(), own, data))
    bad = [(x[:, :2] if rank else x, y) for x, y in data]
    masks = sc.Masks(make(), {"7.weight": torch.ones(5, 40).bool() if rank else torch.zeros(5, 40).bool()})
    found["said"] = {
        "own data": said(partial(pruned, by_own_data, data=torch.Generator().manual_seed(rank)), make()),
        "bad data": said(lambda net: pruned(sc.Taylor(), wrap(net), bad), make()),
        "no data": said(lambda net: pruned(sc.Wanda(), net, None if rank else data), make()),
        "a criterion that fails": said(
            lambda net: pruned(lambda *_: {}[1] if rank else sc.Magnitude()(*_), wrap(net), data), make()
        ),
        "no batch at all": said(lambda net: pruned(sc.Fisher(), net, []), make()),
        "other masks": said(lambda net: pruned(sc.Magnitude(), net, None, masks=masks), make()),
        "other patterns": said(
            lambda net: pruned(sc.Magnitude(), wrap(net), None, include="7" if rank else None), make()
        ),
        "other units": said(
            lambda net: pruned(sc.Random(rank), net, None, structure=sc.trace(net, EXAMPLE)), make()
        ),
    }
    torch.save(found, f"{folder}/found{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.multiprocessing.spawn(ranks, args=(str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"found{rank}", weights_only=True) for rank in range(2)]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return one.keys() == other.keys() and all(equal(v, other[k]) for k, v in one.items())


def test_both_ranks_prune_and_compact_alike(found):
    assert len(found[0]["ddp"]) == 14
    for case in ("ddp", "replicated", "one without data"):
        assert equal(found[0][case], found[1][case])


@pytest.mark.parametrize("case", ["gradually", "during"])
def test_both_ranks_prune_alike_by_degrees(found, case):
    parameters = {n for n in found[0][case] if "running" not in n and "num_batches" not in n}
    assert all(torch.equal(found[0][case][n], found[1][case][n]) for n in parameters)
    masks = [mask for mask in found[0][case].values() if mask.dtype == torch.bool]
    assert sum(int((~mask).sum()) for mask in masks) == round(0.7 * 1604)


def test_as_one_process_that_sees_all_data(found):
    whole = states([*batches(0), *batches(1)], lambda net: net)
    assert whole.keys() == found[0]["ddp"].keys()
    for name, case in whole.items():
        if "compacted" in name:
            assert {n: t.shape for n, t in case.items()} == {
                n: t.shape for n, t in found[0]["ddp"][name].items()
            }
        else:  # sums are rounded in another order
            differing = sum(int((m != found[0]["ddp"][name][n]).sum()) for n, m in case.items())
            assert differing <= 2
    alone = [dict(pruned(sc.Taylor(), make(), batches(rank))) for rank in range(2)]
    assert not equal(alone[0], alone[1])  # as the ranks would differ otherwise
    for rank in range(2):
        assert equal(found[rank]["alone"], alone[rank])


def test_ranks_with_networks_of_their_own_prune_on_their_own(found):
    for rank in range(2):
        net = make()
        with torch.no_grad():
            net[0].weight += rank
        assert equal(found[rank]["own"], dict(pruned(sc.Taylor(), net, batches(rank))))


SAID = {
    "own data": ["MaskError, unchanged: 0.weight: rank 1 would prune other entries than rank 0"] * 2,
    "bad data": [
        "CriterionError, unchanged: rank 1 failed, so that no rank prunes: ModelError: Sequential does",
        "ModelError, unchanged: Sequential does not run on a batch of data=",
    ],
    "no data": [
        "CriterionError, unchanged: rank 1 failed, so that no rank prunes: CriterionError: Wanda needs data",
        "CriterionError, unchanged: Wanda needs data",
    ],
    "a criterion that fails": [
        "CriterionError, unchanged: rank 1 failed, so that no rank prunes: KeyError: 1",
        "KeyError, unchanged: 1",
    ],
    "no batch at all": ["CriterionError, unchanged: Fisher was given data without a single batch"] * 2,
    "other masks": ["MaskError, unchanged: 0.weight: rank 1 would prune other entries than rank 0"] * 2,
    "other patterns": ["MaskError, unchanged: 0.weight: rank 1 would prune other entries than rank 0"] * 2,
    "other units": ["MaskError, unchanged: 0 -> 3: rank 1 would prune other entries than rank 0"] * 2,
}


@pytest.mark.parametrize("case", SAID)
def test_what_goes_wrong_on_one_rank_is_said_on_both(found, case):
    for rank in range(2):
        assert found[rank]["said"][case].startswith(SAID[case][rank])
