"""What removing neurons brings in time: dense against compacted, side by side in one run.

S4's network (784-1000-1000-500-200-10) with a share of its hidden neurons removed, 10,000 images a
forward. Each round times every network in turn; what is printed are ratios of medians. Weights are
random: the time of a dense layer does not depend on them.

    python benchmarks/compact_forward.py --gone 0.5 0.8 0.9
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn

import secateur as sc
from secateur.models import build_model


def compacted(model: nn.Module, share: float) -> tuple[nn.Module, sc.Proof]:
    """Return the network without ``share`` of the neurons of each layer, and the proof."""
    masked = copy.deepcopy(model)
    example = torch.randn(2, 784)
    structure = sc.trace(masked, example)
    sc.prune(masked, sc.L2Norm(), sc.Uniform(share), structure=structure)
    return sc.compact(masked, example, structure=structure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gone", type=float, nargs="+", default=[0.5, 0.8, 0.9], metavar="SHARE")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dense = build_model("fashion-mlp").eval()
    networks = {"dense": dense}
    networks |= {f"{share:.0%} gone": compacted(dense, share)[0] for share in arguments.gone}
    images = torch.rand(arguments.images, 784)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.no_grad():
        for number in range(arguments.rounds + 2):
            for name, network in networks.items():
                start = time.process_time() if arguments.threads == 1 else time.perf_counter()
                network(images)
                end = time.process_time() if arguments.threads == 1 else time.perf_counter()
                if number >= 2:
                    seconds[name].append(end - start)
    base = statistics.median(seconds["dense"])
    print(f"{arguments.images} images, {arguments.threads} thread(s), {arguments.rounds} rounds")
    for name, network in networks.items():
        median = statistics.median(seconds[name])
        size = sum(p.numel() for p in network.parameters())
        print(f"{name:10s} {size:>10,} parameters  {base / median:6.2f}x faster than dense")


if __name__ == "__main__":
    main()
