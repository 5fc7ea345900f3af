"""What holding the masks costs a training step: secateur and torch.nn.utils.prune over dense.

All three train side by side in this process, a few steps each in turn, and what is printed are
medians over the rounds of the ratio to the dense steps of the same round. The whole step is
zero_grad, forward, loss, backward and the optimizer's step; the step alone is the optimizer's.
On one thread the clock is the processor's, which other processes disturb less; else the wall's.

    python benchmarks/held_step.py
    python benchmarks/held_step.py --threads 2 --rounds 200
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import secateur as sc
from secateur.models.lenet import lenet_300_100
from secateur.models.vgg import vgg_16_bn

GOAL = 1.05
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "LeNet-300-100, batch 128": (lenet_300_100, (128, 1, 28, 28), 20),
    "VGG-16-BN x 0.25, batch 32": (lambda: vgg_16_bn(width=0.25), (32, 3, 32, 32), 2),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-4),
}
WAYS = ("dense", "secateur", "torch")


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Trainer:
    """One network with its optimizer, trained on one batch; ``way`` is who holds its zeros."""

    def __init__(self, way: str, net: str, optimizer: str, sparsity: float, blocks: ExitStack) -> None:
        make, shape, self.number = NETS[net]
        torch.manual_seed(0)
        self.net = make()
        self.x, self.y = torch.randn(shape), torch.randint(0, 10, shape[:1])
        if way == "torch":
            layers = [(m, "weight") for m in self.net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
            torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=sparsity)
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        if way == "secateur":
            masks = sc.prune(self.net, sc.Magnitude(), sc.Global(sparsity))
            blocks.enter_context(masks.held(self.optimizer))

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.net(self.x), self.y)

    def whole(self) -> float:
        start = clock()
        for _ in range(self.number):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
        return (clock() - start) / self.number

    def alone(self) -> float:
        start = clock()
        for _ in range(self.number):
            self.optimizer.step()
        return (clock() - start) / self.number


def measure(net: str, optimizer: str, sparsity: float, rounds: int) -> None:
    order = random.Random(0)
    with ExitStack() as blocks:
        trainers = {way: Trainer(way, net, optimizer, sparsity, blocks) for way in WAYS}
        for what in ("whole", "alone"):
            runs = {way: getattr(trainer, what) for way, trainer in trainers.items()}
            for run in runs.values():
                run()
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way in order.sample(WAYS, len(WAYS)):
                    seconds[way].append(runs[way]())
            dense = statistics.median(seconds["dense"])
            ratio = {
                way: statistics.median(a / b for a, b in zip(s, seconds["dense"], strict=True))
                for way, s in seconds.items()
            }
            line = (
                f"{net}, {optimizer}, {'whole step' if what == 'whole' else 'optimizer.step() alone'}: dense "
                f"{dense * 1e3:.3f} ms; secateur {ratio['secateur']:.3f}x, torch {ratio['torch']:.3f}x"
            )
            met = "ok     " if ratio["secateur"] <= GOAL else "MISSED "
            print((met if what == "whole" else "       ") + line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sparsity", type=float, default=0.9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cpu = next(
        line.partition(":")[2].strip()
        for line in [*Path("/proc/cpuinfo").read_text().splitlines(), f"model name: {platform.processor()}"]
        if line.startswith("model name")
    )
    print(
        f"{cpu}, {args.threads} torch threads, torch {torch.__version__}, Python {platform.python_version()}"
    )
    print(
        f"sparsity {args.sparsity:.0%}, {args.rounds} rounds; goal: the whole step at most {GOAL}x the dense"
    )
    for net in NETS:
        for optimizer in OPTIMIZERS:
            measure(net, optimizer, args.sparsity, args.rounds)


if __name__ == "__main__":
    main()
