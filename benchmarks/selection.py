"""Selecting the smallest of many weights: secateur beside torch, in time and in memory.

Each contender runs in a process of its own on the same weights, N(0, 0.05) in tensors of
1000 x 1000, so that its peak memory is its alone; the rounds go through all contenders in turn, and
what is printed are ratios of medians measured in this one run. On one thread (--threads 1) the clock
is the processor's, which other processes disturb less; else the wall's.

    python benchmarks/selection.py                    # 100 M weights against torch
    python benchmarks/selection.py --linear           # 25, 50 and 100 M: time a weight
    python benchmarks/selection.py --billion          # 1 B weights: time and peak memory
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import secateur as sc
from secateur.pruning.selection import Scores, cut_globally

SIDE = 1000
STD = 0.05


class Net(nn.Module):
    """``number`` square layers, never run: only their weights matter."""

    def __init__(self, number: int) -> None:
        super().__init__()
        for i in range(number):
            with torch.device("meta"):
                layer = nn.Linear(SIDE, SIDE, bias=False)
            layer.weight = nn.Parameter(torch.empty(SIDE, SIDE))
            self.add_module(f"layer{i}", layer)

    def refill(self, seed: int) -> None:
        for i, weight in enumerate(self.parameters()):
            weight.data = fresh(seed, i, weight.data)


def fresh(seed: int, index: int, out: Tensor | None = None) -> Tensor:
    """The weights of tensor ``index``: the same in every process that asks with this seed."""
    out = torch.empty(SIDE, SIDE) if out is None else out
    out.normal_(0, STD, generator=torch.Generator().manual_seed(seed * 100_003 + index))
    out[out == 0] = STD
    return out


# -- the contenders: each takes (net, count) and returns what it kept, or nothing -------------------


def select(net: Net, count: int) -> None:
    with torch.no_grad():
        raw = sc.Magnitude()(sc.find_targets(net))
        cut_globally([Scores(n, (SIDE, SIDE), rows) for n, rows in raw.items()], count)


def prune(net: Net, count: int) -> list[Tensor]:
    number = sum(p.numel() for p in net.parameters())
    return list(sc.prune(net, sc.Magnitude(), sc.Global(count / number)).values())


def global_unstructured(net: Net, count: int) -> list[Tensor]:
    layers = [(layer, "weight") for layer in net.children()]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=count)
    return [layer.weight_mask.bool() for layer in net.children()]


def concatenated(net: Net) -> Tensor:
    return torch.cat([p.detach().abs().flatten() for p in net.parameters()])


def kthvalue(net: Net, count: int) -> None:
    torch.kthvalue(concatenated(net), count)


def topk(net: Net, count: int) -> None:
    torch.topk(concatenated(net), count, largest=False, sorted=False)


CONTENDERS = {f.__name__: f for f in (select, prune, kthvalue, topk, global_unstructured)}


def status(field: str) -> float:
    """A field of /proc/self/status, in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(field)


def child(name: str, weights: int, sparsity: float, seed: int, repeats: int, masks: str | None) -> None:
    """One contender in this process: seconds of each repeat, and the memory of the first."""
    contender = CONTENDERS[name]
    small = Net(2)
    small.refill(seed)
    contender(small, SIDE * SIDE)  # so that nobody pays for the first use of an operation
    seconds: list[float] = []
    extra = total = 0.0
    for repeat in range(repeats):
        net = Net(weights // SIDE**2)
        net.refill(seed)
        count = round(sparsity * weights)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        kept = contender(net, count)
        seconds.append(clock() - start)
        if not repeat:
            total = status("VmHWM")
            extra = total - before
            if masks and kept:
                np.save(masks, np.stack([np.packbits(k.numpy()) for k in kept]))
        del net, kept
    print(json.dumps({"seconds": seconds, "extra_mb": extra, "peak_mb": total}))


def measure(name: str, weights: int, args: Any, seed: int, repeats: int, masks: Path | None = None) -> Any:
    command = [sys.executable, __file__, "--child", name, "--weights", str(weights), "--seed", str(seed)]
    command += ["--sparsity", str(args.sparsity), "--repeats", str(repeats)]
    command += ["--threads", str(args.threads)]
    command += ["--masks", str(masks)] if masks else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def same_zeros(ours: Path, theirs: Path, args: Any, seed: int) -> str:
    """Compare what secateur and torch kept, position by position."""
    differ = np.bitwise_xor(np.load(ours), np.load(theirs))
    values = [
        fresh(seed, int(i)).flatten().abs()[np.flatnonzero(np.unpackbits(differ[i]))]
        for i in np.flatnonzero(differ.any(1))
    ]
    if not values:
        return "the same weights are zeroed, every one"
    number, apart = sum(v.numel() for v in values), torch.cat(values).unique()
    if len(apart) > 1:
        raise SystemExit(f"FAILED: {number} weights differ, of {len(apart)} different sizes")
    return f"the same weights are zeroed but for {number} that tie at the cut ({apart.item():.9g})"


def compare(args: Any) -> None:
    """The table of 100 M weights: every contender in turn, ``--rounds`` times."""
    weights = args.weights
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    extra: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.npy" for name in ("prune", "global_unstructured")}
        for seed in range(args.rounds):
            for name in CONTENDERS:
                quick = name in ("select", "prune")
                result = measure(name, weights, args, seed, 3 if quick else 1, files.get(name))
                seconds[name] += result["seconds"]
                extra[name].append(result["extra_mb"])
            print(f"round {seed}: {same_zeros(*files.values(), args, seed)}")
    median = {name: statistics.median(s) for name, s in seconds.items()}
    memory = {name: statistics.median(e) for name, e in extra.items()}
    slowest = median["global_unstructured"]
    print(f"{'':21}{'median s':>10}{'runs':>6}{'torch/this':>12}{'extra MB':>10}{'bytes/weight':>14}")
    for name, value in median.items():
        print(
            f"{name:21}{value:10.3f}{len(seconds[name]):6}{slowest / value:11.1f}x"
            f"{memory[name]:10.0f}{memory[name] * 1e6 / weights:14.3f}"
        )
    goal("selection, times as fast as global_unstructured", slowest / median["select"], 50, above=True)
    goal("selection, MB beyond the weights", memory["select"], 20)
    goal("prune, times as fast as global_unstructured", slowest / median["prune"], 30, above=True)
    goal("prune, extra bytes a weight", memory["prune"] * 1e6 / weights, 1.2)


def linear(args: Any) -> None:
    """Time a weight at a quarter, a half and the whole; medians over rounds that interleave them."""
    sizes = [25_000_000, 50_000_000, 100_000_000]
    for name in ("select", "prune"):
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        for seed in range(args.rounds):
            for size in sizes:
                seconds[size] += measure(name, size, args, seed, 3)["seconds"]
        each = {size: statistics.median(s) / size * 1e9 for size, s in seconds.items()}
        print(name + ", ns a weight: " + "  ".join(f"{s / 1e6:.0f} M: {e:.2f}" for s, e in each.items()))
        goal(f"{name}, time a weight at 100 M over 25 M", each[sizes[-1]] / each[sizes[0]], 1.25)


def billion(args: Any) -> None:
    for name in ("select", "prune"):
        result = measure(name, 1_000_000_000, args, 0, 1)
        print(
            f"{name} of 1 B weights: {result['seconds'][0]:.2f} s, {result['extra_mb']:.0f} MB beyond the "
            f"weights, peak of the process {result['peak_mb'] / 1024**3 * 1e6:.2f} GiB"
        )
        goal(f"{name} of 1 B weights, peak GiB", result["peak_mb"] / 1024**3 * 1e6, 24)


def goal(what: str, value: float, limit: float, above: bool = False) -> None:
    met = value >= limit if above else value <= limit
    sign = ">=" if above else "<="
    print(f"{'ok    ' if met else 'MISSED'} {what}: {value:.2f} (goal {sign} {limit})")


def machine() -> str:
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return (
        f"{cpu}, {torch.get_num_threads()} torch threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=int, default=100_000_000, help="how many, in whole millions")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--linear", action="store_true", help="25, 50 and 100 M weights")
    parser.add_argument("--billion", action="store_true", help="1 B weights")
    for hidden in ("--child", "--masks"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--seed", "--repeats"):
        parser.add_argument(hidden, type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.weights % SIDE**2 or args.weights <= 0:
        parser.error("--weights is a multiple of 1,000,000")
    torch.set_num_threads(args.threads)
    if args.child:
        child(args.child, args.weights, args.sparsity, args.seed, args.repeats, args.masks)
        return
    print(f"{machine()}; sparsity {args.sparsity:.0%}")
    if args.linear:
        linear(args)
    if args.billion:
        billion(args)
    if not (args.linear or args.billion):
        print(f"{args.weights:,} weights in {args.weights // SIDE**2} tensors of {SIDE} x {SIDE}")
        compare(args)


if __name__ == "__main__":
    main()
