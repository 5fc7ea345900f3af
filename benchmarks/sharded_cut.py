"""The exact global cut over 100 million weights that 1, 2 and 4 processes hold together: is it the same?

    python benchmarks/sharded_cut.py [--weights 100000000]

Each layer's numbers come from a seed of its own and are rounded to eight bits, so that many are equal at the
cut. Prints, by number of processes, seconds of ``sc.prune`` (wall, and of the processor by process), the most
memory that one process had, and a digest of the masks; fails where digests differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import secateur as sc

LAYERS = 10


def network(weights: int, mesh: Any) -> nn.Sequential:
    """Layers that no number of processes divides evenly, by rows over ``mesh`` where there is one."""
    from torch.distributed.tensor import Shard, distribute_tensor

    side = round((weights / LAYERS) ** 0.5)
    net = nn.Sequential()
    for seed in range(LAYERS):
        generator = torch.Generator().manual_seed(seed)
        whole = torch.randn(side + 1, side - 1, generator=generator).bfloat16().float()
        layer = nn.Linear(1, 1, bias=False)
        layer.weight = nn.Parameter(whole if mesh is None else distribute_tensor(whole, mesh, [Shard(0)]))
        net.append(layer)
    return net


def digest(masks: sc.Masks) -> str:
    """Return the digest of the whole masks, tensor by tensor."""
    found = hashlib.blake2b(digest_size=8)
    for mask in masks.values():
        bits = mask.to(torch.uint8)  # not every backend gathers bools
        whole = bits.full_tensor() if hasattr(bits, "full_tensor") else bits
        found.update(whole.contiguous().numpy().data)
    return found.hexdigest()


def measure(rank: int, number: int, weights: int, meet: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    mesh = None
    if number > 1:
        dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=number)
        mesh = dist.init_device_mesh("cpu", (number,))
    net = network(weights, mesh)
    if mesh is not None:
        dist.barrier()
    wall, processor = time.perf_counter(), time.process_time()
    masks = sc.prune(net, sc.Magnitude(), sc.Global(0.9))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    entries = sum(mask.numel() for mask in masks.values())
    said = {"wall": wall, "processor": processor, "GiB": memory, "weights": entries}
    return {**said, "kept": entries - round(masks.sparsity * entries), "digest": digest(masks)}


def run(number: int, weights: int) -> list[dict[str, Any]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--weights", str(weights), "--as", f"{rank},{number},{folder}/m"],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(number)
        ]
        return [json.loads(process.communicate()[0]) for process in processes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=100_000_000)
    parser.add_argument("--as", dest="place", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.place:
        rank, number, meet = options.place.split(",", 2)
        print(json.dumps(measure(int(rank), int(number), options.weights, meet)))
        return
    digests = set()
    print("processes      weights       kept   wall s   processor s each   GiB each   digest")
    for number in (1, 2, 4):
        found = run(number, options.weights)
        digests |= {one["digest"] for one in found}
        most = {name: max(one[name] for one in found) for name in ("wall", "processor", "GiB")}
        print(
            f"{number:9} {found[0]['weights']:12,} {found[0]['kept']:10,} {most['wall']:8.1f} "
            f"{most['processor']:18.1f} {most['GiB']:10.2f}   {found[0]['digest']}"
        )
    if len(digests) > 1:
        raise SystemExit("the masks differ")


if __name__ == "__main__":
    main()
